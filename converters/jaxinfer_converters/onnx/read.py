"""An ONNX file, checked: protobuf, opsets, external data. Tensors are read one at a time.

Nothing outside the model's own folder is opened, no size is believed before it is held
against the bytes that are there, and a tensor's bytes are read only when it is asked for.
Source: the ONNX specification, docs/IR.md, docs/ExternalData.md, docs/Versioning.md.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from jaxinfer.core import dtypes
from jaxinfer.core.errors import CheckpointError, ConversionError, listing

OLDEST = 7
"""The first opset with numpy's broadcasting: before it, Add and its kin have an attribute."""

_LIMIT = 2**31 - 1


def newest() -> int:
    """Return the newest opset that the installed onnx package knows."""
    return onnx.defs.onnx_opset_version()


def dtype_name(elem_type: int, what: str) -> str:
    """Return jaxinfer's name of an ONNX element type.

    Raises:
      ConversionError: strings, and types that JAX has no dtype for.
    """
    if elem_type == onnx.TensorProto.STRING:
        raise ConversionError(
            f"{what}: a tensor of strings; JAX has none. Cut the text processing out of the "
            "model (onnx.utils.extract_model) and do it before the call"
        )
    try:
        name = helper.tensor_dtype_to_np_dtype(elem_type).name
    except KeyError as error:
        raise ConversionError(f"{what}: unknown element type {elem_type}") from error
    if name not in dtypes.NAMES:
        known = onnx.TensorProto.DataType.Name(elem_type)
        raise ConversionError(f"{what}: element type {known} has no dtype in JAX")
    return name


@dataclasses.dataclass(frozen=True)
class File:
    """A checked model, and the folder that its external data lies in (None: no folder)."""

    model: onnx.ModelProto
    folder: pathlib.Path | None
    label: str

    def read(self, tensor: onnx.TensorProto) -> np.ndarray:
        """Return a tensor's values; external ones are mapped, not loaded.

        Raises:
          CheckpointError: the data is not there, too short, or outside the folder.
        """
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return _external(tensor, self.folder, self.label)
        _check_size(tensor, self.label)
        return numpy_helper.to_array(tensor)


def open_model(source: str | os.PathLike[str] | onnx.ModelProto) -> File:
    """Read a model and check all that can be checked without its weights.

    Raises:
      CheckpointError: not a readable ONNX file, or external data that is missing, damaged or
        outside the folder; all of them.
      ConversionError: opsets that are not supported.
    """
    if isinstance(source, onnx.ModelProto):
        file = File(source, None, source.graph.name or "ModelProto")
    else:
        path = pathlib.Path(source)
        file = File(_parse(path), path.parent, path.name)
    _check_opsets(file)
    faults = []
    for tensor in tensors(file.model.graph):
        try:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _place(tensor, file.folder, file.label)
            else:
                _check_size(tensor, file.label)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(listing(f"{file.label}: tensors that cannot be read:", faults))
    return file


def _parse(path: pathlib.Path) -> onnx.ModelProto:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    size = path.stat().st_size
    if size > _LIMIT:
        raise CheckpointError(
            f"{path}: {size} bytes; a protobuf holds 2 GiB at most. Save it with external data: "
            "onnx.save_model(model, path, save_as_external_data=True)"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path}: not a readable ONNX protobuf, or cut short") from error
    if not model.ir_version or not model.HasField("graph"):
        raise CheckpointError(f"{path}: a protobuf, but not of an ONNX model (it has no graph)")
    return model


def _check_opsets(file: File) -> None:
    version = opsets(file.model).get("", newest())
    if not OLDEST <= version <= newest():
        raise ConversionError(
            f"{file.label}: opset {version}; supported are {OLDEST} to {newest()} with onnx "
            f"{onnx.__version__}. Bring it there with onnx.version_converter.convert_version, "
            "or install a newer onnx"
        )


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Return the version of each operator domain; the standard one is ``""``."""
    return {_domain(item.domain): item.version for item in model.opset_import}


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor stored in a graph, those of attributes and subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors(inner)


def _itembits(tensor: onnx.TensorProto) -> int:
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if name.endswith("INT4") or name.startswith("FLOAT4"):
        return 4
    if name.endswith("INT2"):
        return 2
    return helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8


def _nbytes(tensor: onnx.TensorProto) -> int:
    return -(-math.prod(tensor.dims) * _itembits(tensor) // 8)


def _check_size(tensor: onnx.TensorProto, label: str) -> None:
    """Raise if a tensor's shape is not that of the values stored in the file."""
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return
    if any(dim < 0 for dim in tensor.dims):
        raise CheckpointError(f"{label}: {tensor.name}: negative size in {list(tensor.dims)}")
    try:
        want = _nbytes(tensor)
    except KeyError:
        raise CheckpointError(
            f"{label}: {tensor.name}: unknown element type {tensor.data_type}"
        ) from None
    if tensor.HasField("raw_data") and len(tensor.raw_data) != want:
        raise CheckpointError(
            f"{label}: {tensor.name}: shape {list(tensor.dims)} needs {want} bytes, the file "
            f"has {len(tensor.raw_data)}"
        )
    if not tensor.HasField("raw_data"):
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        count = max(len(getattr(tensor, field)) for field in fields)
        if count * 8 < math.prod(tensor.dims):
            raise CheckpointError(
                f"{label}: {tensor.name}: shape {list(tensor.dims)}, but {count} values stored"
            )


def _place(
    tensor: onnx.TensorProto, folder: pathlib.Path | None, label: str
) -> tuple[pathlib.Path, int, int]:
    """Return file, offset and length of external data, after checking all three."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, name = entries.get("location", ""), f"{label}: {tensor.name}"
    if folder is None:
        raise CheckpointError(
            f"{name}: external data {location!r}, but the model was given as an object; pass the "
            "path of the file, or load the data first (onnx.load does)"
        )
    relative = pathlib.PurePosixPath(location)
    home = folder.resolve()
    path = (folder / location).resolve()
    inside = location and not relative.is_absolute() and path.is_relative_to(home)
    if not inside or ".." in relative.parts or "\\" in location or path == home:
        raise CheckpointError(
            f"{name}: refused: its external data {location!r} is not a file in the model's folder"
        )
    if not path.is_file():
        raise CheckpointError(
            f"{name}: its external data is missing: {folder / location}; copy it beside the model"
        )
    want, size = _nbytes(tensor), path.stat().st_size
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or want)
    except ValueError:
        raise CheckpointError(
            f"{name}: offset and length of external data must be integers"
        ) from None
    if min(tensor.dims, default=0) < 0 or length != want:
        raise CheckpointError(
            f"{name}: shape {list(tensor.dims)} needs {want} bytes, external data has {length}"
        )
    if offset < 0 or offset + length > size:
        raise CheckpointError(
            f"{name}: bytes {offset} to {offset + length} of {location}, which has {size}: it is "
            "cut short, or of another model"
        )
    return path, offset, length


def _external(tensor: onnx.TensorProto, folder: pathlib.Path | None, label: str) -> np.ndarray:
    path, offset, length = _place(tensor, folder, label)
    if not length:
        return np.zeros(tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type))
    mapped = np.memmap(path, np.uint8, "r", offset, length)
    if _itembits(tensor) < 8:
        whole = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims)
        whole.raw_data = mapped.tobytes()
        return numpy_helper.to_array(whole)
    dtype: Any = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return mapped.view(dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype).reshape(
        tuple(tensor.dims)
    )
