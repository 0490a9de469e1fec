"""What masks and compressed weights check of their arguments, as far as these are known.

Under ``jit`` and ``vmap`` shapes and dtypes are known and values are not: those checks are
then left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core.errors import InputError, InputTypeError

Array = jax.Array

_MOST = 2**31 - 1  # elements of an array that int32 can count


def holds(condition: Any) -> bool | None:
    """Return a condition as a Python bool, or None where it is traced."""
    try:
        return bool(condition)
    except jax.errors.TracerBoolConversionError:
        return None


def sparsity(value: float | Array, path: str) -> None:
    """Raise InputError unless a sparsity is one number in [0, 1)."""
    if np.ndim(value):
        raise InputError(f"mask of {path}: sparsity must be one number, got {value}")
    if holds((value >= 0) & (value < 1)) is False:
        raise InputError(
            f"mask of {path}: sparsity must be in [0, 1), got {value}; "
            "to remove a leaf as a whole, remove it from the model"
        )


def nm(n: int, m: int, path: str) -> None:
    """Raise InputError unless ``1 <= n <= m``."""
    if not 1 <= n <= m:
        raise InputError(
            f"{n}:{m} mask of {path}: required 1 <= n <= m (n of each m elements are kept)"
        )


def axis(shape: Sequence[int], value: int, path: str) -> int:
    """Return an axis as a number from 0 on, or raise InputError."""
    if not -len(shape) <= value < len(shape):
        raise InputError(f"mask of {path}: no axis {value} in an array of shape {tuple(shape)}")
    return value % len(shape)


def floating(scores: Array, path: str) -> Array:
    """Return scores as a JAX array, those of 8 bits and fewer in float32.

    Raises:
      InputTypeError: they are not floating.
    """
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise InputTypeError(f"mask of {path}: scores must be floating, got {scores.dtype}")
    return scores.astype(jnp.float32) if scores.dtype.itemsize < 2 else scores


def problem(scores: Array, path: str) -> str | None:
    """Return what is wrong with floating scores: none or too many of them, or NaN."""
    if not scores.size:
        return empty(path, scores.shape)
    if scores.size > _MOST:
        return f"{path}: shape {scores.shape} has more than 2^31 - 1 elements; split the leaf"
    nan = jnp.isnan(scores)
    if holds(nan.any()):
        return f"{path}: {int(nan.sum())} of {scores.size} scores are NaN"
    return None


def scores(values: Array, path: str) -> Array:
    """Return scores as a floating JAX array, or raise InputError or InputTypeError."""
    values = floating(values, path)
    found = problem(values, path)
    if found:
        raise InputError(f"mask of {found}")
    return values


def empty(path: str, shape: Sequence[int]) -> str:
    """Say that a leaf has no elements."""
    return f"{path}: shape {tuple(shape)} has no elements; exclude the leaf"


def mask(weight: Array, values: Array, path: str) -> tuple[Array, Array]:
    """Return a weight and its mask as JAX arrays.

    Raises:
      InputError: the mask has another shape than the weight.
      InputTypeError: the mask is not boolean.
    """
    weight, values = jnp.asarray(weight), jnp.asarray(values)
    if values.dtype != jnp.bool_:
        raise InputTypeError(f"mask of {path}: required bool, got {values.dtype}")
    if values.shape != weight.shape:
        raise InputError(
            f"mask of {path}: required the weight's shape {weight.shape}, got {values.shape}"
        )
    return weight, values
