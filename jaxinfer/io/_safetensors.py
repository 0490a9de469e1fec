"""The safetensors format, read through a memory map and written leaf by leaf.

    file = u64 little-endian n | n bytes of JSON header | data
    header = {name: {"dtype": str, "shape": [int, ...], "data_offsets": [begin, end]}, ...,
              "__metadata__": {str: str}}

with offsets counted from the end of the header, and the data covered without holes or
overlaps. Source: https://github.com/huggingface/safetensors, section Format.

The ``safetensors`` package's numpy front end cannot return bfloat16 or float8, and its writer
needs all tensors in memory at once; this module does both. ``F4`` holds two values a byte, the
first in the low four bits (torch's ``float4_e2m1fn_x2``); here each value takes a byte of its
own. Six-bit floats are not supported, nor are int4, uint4 and complex128, which the format
lacks.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import CheckpointError
from jaxinfer.io import _header, _json
from jaxinfer.io._header import CODES, DTYPES, byte_count

Spec = tuple[tuple[int, ...], str]

MAX_HEADER = 100_000_000
_CHUNK = 1 << 24

_MAGIC = (
    (b"PK\x03\x04", "a zip archive: a PyTorch .pth/.pt file, or .npz, under another name"),
    (b"\x80\x02", "a Python pickle (an old PyTorch file) under another name"),
    (b"\x80\x03", "a Python pickle under another name"),
    (b"\x80\x04", "a Python pickle under another name"),
    (b"\x80\x05", "a Python pickle under another name"),
    (b"GGUF", "a GGUF file under another name"),
    (b"\x89HDF", "an HDF5 file under another name"),
    (b"\x93NUMPY", "a numpy .npy file under another name"),
    (b"version ", "a Git LFS pointer, not the weights: run `git lfs pull`"),
    (b"<", "a web page: the download failed"),
)


class SafetensorsFile(Mapping[str, np.ndarray]):
    """A safetensors file: names to arrays, read when asked for.

    The header is checked on opening; nothing in the data is read until ``read``.

    Raises:
      CheckpointError: the file cannot be opened or its header is at fault; all faults.

    Attributes:
      path: the file.
      metadata: the strings in ``__metadata__``.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._map, header, self._start = _open(self.path)
        faults: list[str] = []
        self.metadata = _header.metadata(header.pop("__metadata__", {}), faults)
        self._entries = _header.entries(header, len(self._map) - self._start, faults)
        if faults:
            raise CheckpointError(_json.report(f"{self.path} is damaged:", faults))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def spec(self, name: str) -> Spec:
        """Return shape and dtype name (``bfloat16``, not ``BF16``) of a tensor."""
        shape, code, _ = self._entries[name]
        return shape, DTYPES[code]

    def read(self, name: str) -> np.ndarray:
        """Return a tensor: a read-only view of the memory map where its place is aligned.

        Raises:
          CheckpointError: a boolean tensor holds bytes other than 0 and 1.
        """
        shape, code, begin = self._entries[name]
        dtype, offset = dtypes.dtype_of(DTYPES[code]), self._start + begin
        if code == "F4":
            packed = np.ndarray(math.prod(shape) // 2, np.uint8, self._map, offset)
            return np.stack([packed & 15, packed >> 4], -1).reshape(shape).view(dtype)
        if offset % dtype.itemsize or 0 in shape:
            return np.frombuffer(
                self._map[offset : offset + byte_count(shape, code)], dtype
            ).reshape(shape)
        if code == "BOOL":
            raw = np.ndarray(shape, np.uint8, self._map, offset)
            if raw.size and raw.max() > 1:
                raise CheckpointError(f"{self.path}: {name}: bytes that are neither 0 nor 1")
        return np.ndarray(shape, dtype, self._map, offset)

    def release(self, name: str) -> None:
        """Drop a tensor's pages from memory; a later read brings them back from the disk."""
        if not hasattr(self._map, "madvise"):
            return
        shape, code, begin = self._entries[name]
        first = (self._start + begin) // mmap.PAGESIZE * mmap.PAGESIZE
        length = self._start + begin + byte_count(shape, code) - first
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, first, length)


def _open(path: Path) -> tuple[mmap.mmap, dict[str, Any], int]:
    """Map a file and parse its header; returns map, header and where the data starts."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a directory, not a safetensors file")
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise CheckpointError(f"{path} is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or truncated meanwhile
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    length = int.from_bytes(mapped[:8], "little")
    if size < 8:
        fault = f"{size} bytes: shorter than the length of a header"
    elif length > MAX_HEADER:
        fault = f"a header of {length} bytes is announced, at most {MAX_HEADER} are read"
    elif length > size - 8:
        fault = f"a header of {length} bytes is announced, {size - 8} follow (truncated?)"
    else:
        try:
            header = _json.parse(mapped[8 : 8 + length])
            if isinstance(header, dict):
                return mapped, header, 8 + length
            fault = f"the header is a JSON {type(header).__name__}, not an object"
        except ValueError as error:
            fault = f"header: {error}"
    kinds = [text for magic, text in _MAGIC if mapped[: len(magic)] == magic]
    hint = f"; it looks like {kinds[0]}" if kinds else ""
    raise CheckpointError(f"{path} is not a safetensors file: {fault}{hint}")


def spec_of(array: Any) -> Spec:
    """Return shape and dtype name of a numpy or JAX array."""
    return tuple(int(dim) for dim in array.shape), str(array.dtype.name)


def write(
    path: str | os.PathLike[str],
    leaves: Mapping[str, Any | Callable[[], Any]],
    specs: Mapping[str, Spec] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write tensors leaf by leaf; returns the SHA-256 of the file, in hex.

    Wide dtypes come first, so that every tensor is aligned. Beyond what ``leaves`` holds, one
    leaf is in memory at a time. The file is synced to the disk; it is not written aside.

    Args:
      path: where to; a file there is replaced.
      leaves: name to array (numpy or JAX), or to a callable that returns it when its turn comes.
      specs: shape and dtype name of each leaf; needed where ``leaves`` holds callables.
      metadata: for ``__metadata__``.

    Raises:
      TypeError: dtypes that the format lacks, all of them.
      ValueError: a leaf is not what its spec says, or has a name the format cannot hold.
      OSError: the disk is full, or the like; what was written so far is left.
    """
    specs = dict(specs) if specs is not None else {n: spec_of(leaf) for n, leaf in leaves.items()}
    if specs.keys() != leaves.keys():
        raise ValueError(
            f"names of specs and leaves differ: {sorted(specs.keys() ^ leaves.keys())}"
        )
    unknown = [f"{name}: {dtype}" for name, (_, dtype) in specs.items() if dtype not in CODES]
    if unknown:
        raise TypeError(_json.report("safetensors cannot hold the dtype of:", unknown))
    if "__metadata__" in specs:
        raise ValueError("'__metadata__' cannot be the name of a tensor")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    order = sorted(specs, key=lambda name: -dtypes.dtype_of(specs[name][1]).itemsize)
    position = 0
    for name in order:
        shape, dtype = specs[name]
        code, begin = CODES[dtype], position
        if code == "F4" and math.prod(shape) % 2:
            raise ValueError(f"{name}: {list(shape)} does not fill whole bytes at 4 bits a value")
        position += byte_count(shape, code)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, position]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"{len(specs)} names need a header of {len(text)} bytes; split the file")
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in (len(text).to_bytes(8, "little"), text):
            digest.update(chunk)
            file.write(chunk)
        for name in order:
            for chunk in _chunks(name, leaves[name], specs[name]):
                digest.update(chunk)
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _chunks(name: str, leaf: Any, spec: Spec) -> Iterator[memoryview]:
    """Yield a leaf's bytes, row-major."""
    array = np.asarray(leaf() if callable(leaf) else leaf)
    if spec_of(array) != spec:
        raise ValueError(f"{name}: required {spec}, got {spec_of(array)}")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if spec[1] == "float4_e2m1fn":
        flat = flat[0::2] & 15 | flat[1::2] << 4
    for start in range(0, flat.size, _CHUNK):
        yield memoryview(flat[start : start + _CHUNK])
