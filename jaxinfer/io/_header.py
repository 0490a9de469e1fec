"""The header of a safetensors file, checked: every fault of every tensor at once.

Source: https://github.com/huggingface/safetensors, section Format. ``F4`` holds two values a
byte; six-bit floats are not supported.
"""

from __future__ import annotations

import math
from typing import Any

from jaxinfer.core import dtypes

Entry = tuple[tuple[int, ...], str, int]

_MAX_RANK = 64

DTYPES = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
CODES = {name: code for code, name in DTYPES.items()}


def metadata(value: Any, faults: list[str]) -> dict[str, str]:
    """Return the strings of ``__metadata__``; anything else is a fault."""
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return value
    faults.append("__metadata__: required an object of strings")
    return {}


def byte_count(shape: tuple[int, ...], code: str) -> int:
    """Return the bytes that a tensor takes in the file."""
    count = math.prod(shape)
    return count // 2 if code == "F4" else count * dtypes.dtype_of(DTYPES[code]).itemsize


def entries(header: dict[str, Any], size: int, faults: list[str]) -> dict[str, Entry]:
    """Return shape, code and first byte of each tensor.

    Each entry is checked by itself, then that together they tile the data.

    Args:
      header: the JSON object, without ``__metadata__``.
      size: bytes of data in the file.
      faults: what is wrong is appended here.
    """
    found: dict[str, Entry] = {}
    spans: list[tuple[int, int, str]] = []
    sound = True
    for name, item in header.items():
        label = repr(name[:200])
        fault = _entry_fault(item)
        if not fault:
            begin, end = item["data_offsets"]
            if end > size:
                fault = f"ends at byte {end} of {size} (truncated?)"
            else:
                spans.append((begin, end, label))
                found[name] = (tuple(item["shape"]), item["dtype"], begin)
        if fault:
            faults.append(f"{label}: {fault}")
            sound = False
    position = 0
    for begin, end, label in sorted(spans):
        if begin < position:
            faults.append(f"{label}: overlaps the tensor before it at byte {begin}")
        elif begin > position and sound:
            faults.append(f"{label}: {begin - position} bytes before it belong to no tensor")
        position = max(position, end)
    if position < size and sound:
        faults.append(f"{size - position} bytes at the end belong to no tensor")
    return found


def _entry_fault(item: Any) -> str:
    """Return what is wrong with one entry by itself, or an empty string."""
    if not isinstance(item, dict) or not {"dtype", "shape", "data_offsets"} <= item.keys():
        return "required an object with dtype, shape and data_offsets"
    code, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        return f"unknown dtype {str(code)[:40]!r}; known: {', '.join(DTYPES)}"
    if not _naturals(shape) or len(shape) > _MAX_RANK:
        return f"bad shape {str(shape)[:80]}"
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"bad data_offsets {str(offsets)[:80]}"
    if math.prod(dim for dim in shape if dim) * dtypes.dtype_of(DTYPES[code]).itemsize >= 1 << 63:
        return f"shape {str(shape)[:80]} is too large"
    if code == "F4" and math.prod(shape) % 2:
        return f"shape {shape} does not fill whole bytes at 4 bits a value"
    need, got = byte_count(tuple(shape), code), offsets[1] - offsets[0]
    return "" if need == got else f"{code}{shape} takes {need} bytes, data_offsets hold {got}"


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
