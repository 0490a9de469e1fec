"""Arrays in: numpy, JAX, torch tensors and Python numbers become arrays that JAX can take.

torch is not imported: a tensor is recognized by its class's module and read through numpy.
64-bit integers are range-checked on the host before they are narrowed, so a value that
would wrap is an error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.core import Tracer

from jaxinfer.core import dtypes
from jaxinfer.core.errors import InputTypeError


def from_torch_tensor(tensor: Any) -> np.ndarray:
    """Return a numpy view of a torch tensor (bfloat16 and float8 through their bits)."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in ("bfloat16",) or name.startswith("float8"):
        torch = sys.modules["torch"]  # imported already: the caller holds one of its tensors
        bits = torch.int16 if name == "bfloat16" else torch.uint8
        return tensor.contiguous().view(bits).numpy().view(getattr(ml_dtypes, name))
    return tensor.numpy()


def is_torch_tensor(value: Any) -> bool:
    """Return whether ``value`` is a torch tensor or parameter, without importing torch."""
    return any(
        base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__
    )


def as_array(value: Any, path: str) -> Any:
    """Return ``value`` as a JAX or numpy array of a dtype that JAX computes in.

    Raises:
      InputTypeError: the value is not an array or a number.
      OverflowError: an integer does not fit the dtype that JAX computes in.
    """
    if isinstance(value, (jax.Array, Tracer)):
        return value
    if is_torch_tensor(value):
        value = from_torch_tensor(value)
    elif isinstance(value, (bool, int)):
        value = np.asarray(value)
    elif isinstance(value, (float, complex)):
        value = np.asarray(value, np.float32 if isinstance(value, float) else np.complex64)
    elif not isinstance(value, (np.ndarray, np.generic)):
        if not hasattr(value, "__array__"):
            raise InputTypeError(f"{path}: required an array, got {type(value).__name__}")
        value = np.asarray(value)
    value = np.asarray(value)
    if value.dtype.name not in dtypes.NAMES:
        raise InputTypeError(f"{path}: required an array of numbers, got dtype {value.dtype}")
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if value.dtype.kind in "iu":
        return dtypes.narrow(value, path)
    return value


def owned(array: np.ndarray) -> jax.Array:
    """Return a JAX array with a copy of ``array``: nobody else's writes reach it.

    JAX on CPU takes over aligned numpy memory without a copy (even with ``may_alias=False``,
    jax 0.10.1), and copies unaligned memory; an aligned buffer of our own is copied once.
    """
    buffer = aligned(array.shape, array.dtype)
    np.copyto(buffer, array)
    return hand_over(buffer)


def aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return an uninitialized array that JAX on CPU can take over without a copy."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    padded = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -padded.ctypes.data % _ALIGNMENT
    return padded[start : start + nbytes].view(dtype).reshape(shape)


def hand_over(buffer: np.ndarray) -> jax.Array:
    """Return ``buffer`` as a JAX array; the caller must not write to it again."""
    return jax.device_put(buffer).block_until_ready()


_ALIGNMENT = 64
