"""Peers of a benchmark that run ONNX: ONNX Runtime and OpenVINO, in float32 and int8.

``open_peer`` is found through the entry point of this folder's front end; see
``jaxinfer.tune.bench``. ``prepared`` is used for what was exported from a torch module, too.
"""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from jaxinfer.core.errors import InputError, MissingExtraError
from jaxinfer.tune.bench import _openvino
from jaxinfer.tune.bench._peer_inputs import Interface, calibration_batches
from jaxinfer.tune.bench._worker import resident_mb
from jaxinfer.tune.bench.side import Prepared

PRODUCTS = ("Conv", "Gemm", "MatMul")
Outputs = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


def open_peer(settings: Mapping[str, Any]) -> OnnxFile:
    """Open a peer on the ONNX file ``settings["source"]``.

    Raises:
      InputError: a peer that needs a torch module.
    """
    return OnnxFile(settings)


class OnnxFile:
    """The source's own ``.onnx`` file, with its inputs fixed to the shapes of the call."""

    def __init__(self, settings: Mapping[str, Any]):
        self._settings, self._peer = settings, str(settings["peer"])
        self._path = Path(settings["source"])
        if not self._peer.startswith(("onnxruntime", "openvino")):
            raise InputError(f"{self._peer} runs torch modules; {self._path} is an ONNX file")
        self._interface = Interface(settings["model_dir"])
        self.base_mb = resident_mb()
        self.facts: dict[str, Any] = peer_facts(settings)

    def prepare(self, arrays: Sequence[np.ndarray]) -> Prepared:
        """Fix the shapes, and compile."""
        given = self._interface.inward(arrays)
        fixed = Path(self._settings["scratch"]) / "fixed.onnx"
        model = onnx.load(str(self._path))
        _fix_shapes(model, {n: a.shape for n, a in self._interface.named(given).items()})
        onnx.save(model, str(fixed), save_as_external_data=model.ByteSize() > 1 << 30)
        return prepared(self._settings, fixed, given, self._interface.outward)


def peer_facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return precision, device, versions and notes of a peer.

    Raises:
      InputError: OpenVINO, where jaxinfer ran on something else than the CPU.
    """
    peer = str(settings["peer"])
    packages = ["onnxruntime"] if peer.startswith("onnxruntime") else ["openvino"]
    packages += ["nncf"] if peer == "openvino-int8" else []
    found = {name: importlib.metadata.version(name) for name in packages}
    precision = "int8" if peer.endswith("int8") else "f32"
    device = str(settings.get("device") or "cpu")
    if device != "cpu" and peer.startswith("openvino"):
        raise InputError(f"OpenVINO's sides are for the CPU, and jaxinfer ran on {device}")
    return {"precision": precision, "device": device, "versions": found, "notes": []}


def _fix_shapes(model: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write numbers for the names of sizes in the inputs."""
    for item in model.graph.input:
        dims = item.type.tensor_type.shape.dim
        if item.name in shapes and len(dims) == len(shapes[item.name]):
            for dim, size in zip(dims, shapes[item.name], strict=True):
                dim.dim_value = int(size)


def prepared(
    settings: Mapping[str, Any], path: Path, arrays: Sequence[np.ndarray], outputs: Outputs
) -> Prepared:
    """Compile an ONNX file, its shapes fixed, by ONNX Runtime or OpenVINO.

    Args:
      settings: the side's.
      path: the file.
      arrays: the inputs in the file's order.
      outputs: puts results in the model's order of axes.
    """
    if str(settings["peer"]).startswith("openvino"):
        return _by_openvino(settings, path, arrays, outputs)
    notes: list[str] = []
    if str(settings["peer"]).endswith("int8"):
        path, note = _quantized(settings, path, arrays)
        notes.append(note)
    session = _session(path, settings)
    names = [item.name for item in session.get_inputs()]
    feed = _feed(names, path, arrays)
    return Prepared(lambda: session.run(None, feed), outputs, notes)


def _session(path: Path, settings: Mapping[str, Any]) -> Any:
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            f"needs onnxruntime ({error}): pip install 'jaxinfer[bench]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(settings["threads"])
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    provider = "CPUExecutionProvider"
    if str(settings.get("device") or "cpu") != "cpu":
        provider = "CUDAExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise MissingExtraError("this onnxruntime has no CUDA: pip install onnxruntime-gpu")
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


def _feed(names: Sequence[str], path: Path, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the inputs by name: by place in the file, of which the session has dropped some."""
    declared = _declared(path)
    if len(declared) != len(arrays):
        raise InputError(f"the ONNX file takes {len(declared)} inputs, the model {len(arrays)}")
    given = dict(zip(declared, arrays, strict=True))
    return {name: given[name] for name in names}


def _by_openvino(
    settings: Mapping[str, Any], path: Path, arrays: Sequence[np.ndarray], outputs: Outputs
) -> Prepared:
    from jaxinfer.compile.openvino.loading import load_openvino

    converted = load_openvino().convert_model(str(path))
    notes = []
    if str(settings["peer"]).endswith("int8"):
        batches, note = calibration_batches(settings, arrays)
        converted, done = _openvino.quantized(converted, batches)
        notes += [done, *note]
    return _openvino.prepared(converted, arrays, outputs, int(settings["threads"]), notes)


def _quantized(
    settings: Mapping[str, Any], path: Path, arrays: Sequence[np.ndarray]
) -> tuple[Path, str]:
    """Quantize by ONNX Runtime's static QDQ, weights by channel; returns the file and a note.

    Activations are unsigned (faster than signed with VNNI). Where activations are multiplied by
    each other (attention), products alone are quantized: all of MiniLM has a cosine of 0.38 to
    float32, its products alone 0.85, in the same time.
    """
    from onnxruntime import quantization  # pyright: ignore[reportMissingImports]
    from onnxruntime.quantization.shape_inference import (  # pyright: ignore[reportMissingImports]
        quant_pre_process,
    )

    batches, note = calibration_batches(settings, arrays)
    ready, out = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    names, attends = _declared(path), _attends(path)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter([dict(zip(names, batch, strict=True)) for batch in batches])

        def get_next(self) -> Any:
            return next(self._left, None)

    level = logging.root.level
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(ready),
                str(out),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=list(PRODUCTS) if attends else None,
            )
    finally:
        logging.disable(level if level > logging.CRITICAL else logging.NOTSET)
    what = "QDQ, weights by channel" + (", products alone" if attends else "")
    done = f"quantized by ONNX Runtime ({what}) on {len(batches)} batches"
    return out, "; ".join([done, *note])


def _attends(path: Path) -> bool:
    """Return whether activations are multiplied by each other."""
    graph = onnx.load(str(path), load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # in order: what is computed of constants alone is one
        named = [name for name in node.input if name]
        if node.op_type == "Constant" or (named and constant.issuperset(named)):
            constant |= set(node.output)
    products = [node for node in graph.node if node.op_type in ("MatMul", "Attention")]
    return any(not constant & set(node.input[:2]) for node in products)


def _declared(path: Path) -> list[str]:
    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    return [item.name for item in graph.input if item.name not in stored]
