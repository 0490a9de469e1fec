"""Dtype names: one spelling for graphs, checkpoints and arrays, and what x64 does to them.

A name is numpy's (``float32``, ``int64``, ``bool``) or ml_dtypes' (``bfloat16``,
``float8_e4m3fn``). With 64-bit types off, JAX holds ``int64`` as ``int32`` and ``float64``
as ``float32``; jaxinfer says so (``canonical``) and refuses values that would wrap
(``check_range``), where JAX itself wraps in silence.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from jaxinfer.core._compat import x64_enabled

_NARROW = {
    "int64": "int32",
    "uint64": "uint32",
    "float64": "float32",
    "complex128": "complex64",
}
_EXTENDED = (
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "int2",
    "uint2",
    "int4",
    "uint4",
    "float4_e2m1fn",
)
_PLAIN = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
X64_ADVICE = (
    "turn them on (x64=True in ji.from_torch, --x64 on the command line, or "
    "jax.config.update('jax_enable_x64', True))"
)
NAMES = frozenset((*_PLAIN, *_EXTENDED))


def dtype_of(name: str) -> np.dtype:
    """Return the numpy dtype of a name, without regard to x64.

    Raises:
      ValueError: the name is not one of ``NAMES``.

    >>> dtype_of("bfloat16").itemsize
    2
    """
    if name not in NAMES:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(sorted(NAMES))}")
    return np.dtype(getattr(ml_dtypes, name) if name in _EXTENDED else name)


def canonical(name: str) -> np.dtype:
    """Return the dtype that JAX computes in for ``name`` under the current x64 setting."""
    return dtype_of(name if x64_enabled() else _NARROW.get(name, name))


def check_range(array: np.ndarray, target: np.dtype, what: str) -> None:
    """Raise if casting integer ``array`` to integer ``target`` would wrap a value.

    Raises:
      OverflowError: naming ``what``, the value and the range.
    """
    if array.dtype.kind not in "iu" or target.kind not in "iu" or array.size == 0:
        return
    if np.can_cast(array.dtype, target):
        return
    info = np.iinfo(target)
    low, high = array.min(), array.max()
    if low < info.min or high > info.max:
        worst = int(low if low < info.min else high)
        raise OverflowError(
            f"{what}: {array.dtype.name} value {worst} does not fit {target.name} "
            f"([{info.min}, {info.max}]), which JAX computes in with 64-bit types off; "
            f"{X64_ADVICE}, or make the value smaller"
        )


def narrow(array: np.ndarray, what: str) -> np.ndarray:
    """Return ``array`` in the dtype that JAX computes in; integers are range-checked."""
    target = canonical(array.dtype.name)
    if target == array.dtype:
        return array
    check_range(array, target, what)
    return array.astype(target)


def meet_ends(array: np.ndarray) -> np.ndarray:
    """Return int64 with its smallest and largest value at the ends of what JAX computes in.

    In a constant they stand for infinity (an identity of min and max), not for a number. The
    array itself comes back if there is nothing to do.
    """
    target = canonical(array.dtype.name)
    if array.dtype != np.int64 or target == array.dtype:
        return array
    wide, narrow_ = np.iinfo(np.int64), np.iinfo(target)
    low, high = array == wide.min, array == wide.max
    if not (low.any() or high.any()):
        return array
    return np.where(low, narrow_.min, np.where(high, narrow_.max, array))


def kind(dtype: np.dtype) -> str:
    """Return ``bool``, ``integer``, ``float`` or ``complex``.

    >>> kind(dtype_of("bfloat16")), kind(dtype_of("int4")), kind(dtype_of("bool"))
    ('float', 'integer', 'bool')
    """
    name = np.dtype(dtype).name
    if name == "bool":
        return "bool"
    if name.startswith(("int", "uint")):
        return "integer"
    return "complex" if name.startswith("complex") else "float"
