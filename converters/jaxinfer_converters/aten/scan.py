"""Cumulative sums, products and extremes along a dim, and finite differences.

Formulas: https://docs.pytorch.org/docs/stable/torch.html#other-operations. Half types are
accumulated in float32 and rounded once. Cumulative extremes give the *last* index of equals
and keep a NaN once met, as torch does. ``trapezoid`` is left to its decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import (
    Array,
    canonical_dim,
    cast,
    category,
    in_float32,
    promote_float,
    rule,
)


def _along(fn: Callable[[Array, int], Any], x: Array, dim: int) -> Any:
    """fn(x, axis); a scalar is returned as it is."""
    axis = canonical_dim(dim, x.ndim)
    return x if x.ndim == 0 else in_float32(lambda x: fn(x, axis), x)


def _accumulate(fn: Callable[[Array, int], Array], x: Array, dim: int, dtype: Any) -> Array:
    if dtype is None:
        dtype = dtypes.canonical("int64") if category(x.dtype) < 2 else x.dtype
    return _along(fn, cast(x, dtype), dim)


@rule("aten.cumsum.default")
def cumsum(x: Array, dim: int, *, dtype: Any = None) -> Array:
    """out[i] = Σ_{j ≤ i} x[j]."""
    return _accumulate(lambda x, axis: lax.cumsum(x, axis), x, dim, dtype)


@rule("aten.cumprod.default")
def cumprod(x: Array, dim: int, *, dtype: Any = None) -> Array:
    """out[i] = Π_{j ≤ i} x[j]."""
    return _accumulate(lambda x, axis: lax.cumprod(x, axis), x, dim, dtype)


@rule("aten.logcumsumexp.default")
def logcumsumexp(x: Array, dim: int) -> Array:
    """out[i] = log Σ_{j ≤ i} exp x[j]."""
    (x,) = promote_float(x)
    return _along(lambda x, axis: lax.cumlogsumexp(x, axis), x, dim)


def _cumulative(better: Callable[[Array, Array], Array], x: Array, dim: int) -> tuple[Array, Array]:
    """(values, indices) of the best so far; later equals replace, a NaN stays."""
    axis = canonical_dim(dim, x.ndim)
    index = dtypes.canonical("int64")
    if x.ndim == 0:
        return x, jnp.zeros((), index)
    floating = category(x.dtype) == 2

    def later(old: Any, new: Any) -> Any:
        take = better(new[0], old[0])
        if floating:
            take = jnp.isnan(new[0]) | (take & ~jnp.isnan(old[0]))
        return tuple(jnp.where(take, n, o) for n, o in zip(new, old, strict=True))

    if x.shape[axis] == 0:
        return x, jnp.zeros(x.shape, index)
    steps = lax.broadcasted_iota(index, x.shape, axis)
    return lax.associative_scan(later, (x, steps), axis=axis)


@rule("aten.cummax.default")
def cummax(x: Array, dim: int) -> tuple[Array, Array]:
    """out[i] = max_{j ≤ i} x[j], and the last j that attains it."""
    return _cumulative(jnp.greater_equal, x, dim)


@rule("aten.cummin.default")
def cummin(x: Array, dim: int) -> tuple[Array, Array]:
    """out[i] = min_{j ≤ i} x[j], and the last j that attains it."""
    return _cumulative(jnp.less_equal, x, dim)


@rule("aten.diff.default")
def diff(
    x: Array, n: int = 1, dim: int = -1, prepend: Array | None = None, append: Array | None = None
) -> Array:
    """n times out[i] = x[i + 1] - x[i] of [prepend, x, append]; for bools, whether they differ."""
    axis = canonical_dim(dim, x.ndim)
    parts = [part for part in (prepend, x, append) if part is not None]
    x = jnp.concatenate(parts, axis) if len(parts) > 1 else x
    for _ in range(min(n, x.shape[axis])):
        high = lax.slice_in_dim(x, 1, None, axis=axis)
        low = lax.slice_in_dim(x, 0, -1, axis=axis)
        x = high != low if category(x.dtype) == 0 else high - low
    return x
