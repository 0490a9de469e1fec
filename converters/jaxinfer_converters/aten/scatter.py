"""Writing by index: scatter, scatter_reduce, index_add, index_copy, index_fill, put.

out[index[i]] = reduce(self[index[i]], values[i]) along one dim. Half types accumulate in
float32 and round once; bools reduce as integers. ``mean`` divides by the number of values,
counting self's own with ``include_self``; integers divide with floor. Where an index occurs
twice without a reduction, which value stays is undefined, as in torch on a GPU.
Source: PyTorch, ATen/native/TensorAdvancedIndexing.cpp.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import (
    Array,
    Number,
    acc_dtype,
    canonical_dim,
    cast,
    category,
    rule,
)
from jaxinfer_converters.aten.index import IN_BOUNDS, add_at

Places = tuple[Array | slice, ...]


def _along(dim: int, index: Array) -> Places:
    """Return the places of a scatter: index along dim, the own position in other dims."""
    return tuple(
        index if d == dim else lax.broadcasted_iota(jnp.int32, index.shape, d)
        for d in range(index.ndim)
    )


def _raised(x: Array) -> Array:
    return x.reshape(1) if x.ndim == 0 else x


def _scattered(
    x: Array, dim: int, index: Array, src: Array | Number
) -> tuple[Array, Places, Array]:
    """Return self with at least one dim, the places, and the values for them."""
    dim, index = canonical_dim(dim, x.ndim), _raised(index)
    if isinstance(src, Number):
        values = jnp.broadcast_to(cast(src, x.dtype), index.shape)
    else:
        values = _raised(src)[tuple(slice(n) for n in index.shape)]
    return _raised(x), _along(dim, index), values


def _identity(dtype: jnp.dtype, reduce: str) -> Number:
    """Return the number that does not change the reduction."""
    if reduce in ("sum", "mean", "prod"):
        return int(reduce == "prod")
    largest = reduce == "amin"
    if category(dtype) == 2:
        return float("inf") if largest else float("-inf")
    info = jnp.iinfo(dtype)
    return info.max if largest else info.min


def _reduce_at(x: Array, where: Places, values: Array, reduce: str, include_self: bool) -> Array:
    """Return x reduced with values at places."""
    wide = jnp.dtype(jnp.int32) if x.dtype == jnp.bool_ else acc_dtype(x.dtype)
    work, values = cast(x, wide), cast(values, wide)
    if not include_self:
        work = work.at[where].set(cast(_identity(wide, reduce), wide), mode=IN_BOUNDS)
    at = work.at[where]
    ways = {"sum": at.add, "mean": at.add, "prod": at.mul, "amax": at.max, "amin": at.min}
    work = ways[reduce](values, mode=IN_BOUNDS)
    if reduce == "mean":
        start = jnp.full(x.shape, int(include_self), jnp.int32)
        count = cast(jnp.maximum(start.at[where].add(1, mode=IN_BOUNDS), 1), wide)
        work = work / count if category(wide) > 1 else jnp.floor_divide(work, count)
    return cast(work, x.dtype)


@rule("aten.scatter.src", "aten.scatter.value")
def scatter(self: Array, dim: int, index: Array, src: Array | Number) -> Array:
    """self with self[i, .., index[i, .., k]] = src[i, .., k] along dim."""
    x, where, values = _scattered(self, dim, index, src)
    return x.at[where].set(cast(values, x.dtype), mode=IN_BOUNDS).reshape(self.shape)


@rule("aten.scatter_reduce.two")
def scatter_reduce(
    self: Array, dim: int, index: Array, src: Array, reduce: str, *, include_self: bool = True
) -> Array:
    """self[index] = reduce(self[index], src) along dim; reduce is sum prod mean amax amin."""
    x, where, values = _scattered(self, dim, index, src)
    return _reduce_at(x, where, values, reduce, include_self).reshape(self.shape)


@rule("aten.scatter.reduce", "aten.scatter.value_reduce")
def scatter_with(self: Array, dim: int, index: Array, src: Array | Number, *, reduce: str) -> Array:
    """scatter_reduce with the older names "add" and "multiply"."""
    x, where, values = _scattered(self, dim, index, src)
    name = {"add": "sum", "multiply": "prod"}[reduce]
    return _reduce_at(x, where, values, name, include_self=True).reshape(self.shape)


@rule("aten.scatter_add.default")
def scatter_add(self: Array, dim: int, index: Array, src: Array) -> Array:
    """self[index] += src along dim."""
    return add_at(*_scattered(self, dim, index, src)).reshape(self.shape)


def _indexed(x: Array, dim: int, index: Array, source: Array) -> tuple[Array, Places, Array]:
    """Return self with a dim, the places self[.., index, ..], and source in their shape."""
    dim, x, index = canonical_dim(dim, x.ndim), _raised(x), index.reshape(-1)
    values = source.reshape(*x.shape[:dim], index.size, *x.shape[dim + 1 :])
    return x, (slice(None),) * dim + (index,), values


@rule("aten.index_copy.default", context=True)
def index_copy(context: Any, self: Array, dim: int, index: Array, source: Array) -> Array:
    """self with self[.., index[k], ..] = source[.., k, ..]; one slice where index counts up.

    That is how a key-value cache is written, and a slice is written in place.
    """
    x, where, values = _indexed(self, dim, index, source)
    values = cast(values, x.dtype)
    if index.size == 1 or (index.size and context.counts_up(2)):
        start, axis = index.reshape(-1)[0], canonical_dim(dim, self.ndim)
        out = lax.dynamic_update_slice_in_dim(x, values, start, axis, allow_negative_indices=False)
    else:
        out = x.at[where].set(values, mode=IN_BOUNDS)
    return out.reshape(self.shape)


@rule("aten.index_add.default")
def index_add(self: Array, dim: int, index: Array, source: Array, *, alpha: Number = 1) -> Array:
    """self with self[.., index[k], ..] += alpha * source[.., k, ..]."""
    x, where, values = _indexed(self, dim, index, source)
    if alpha != 1:
        wide = acc_dtype(values.dtype)
        values = cast(values, wide) * cast(alpha, wide)
    return add_at(x, where, values).reshape(self.shape)


@rule("aten.index_reduce.default")
def index_reduce(
    self: Array, dim: int, index: Array, source: Array, reduce: str, *, include_self: bool = True
) -> Array:
    """self[.., index[k], ..] = reduce(itself, source[.., k, ..]); prod mean amax amin."""
    x, where, values = _indexed(self, dim, index, source)
    return _reduce_at(x, where, values, reduce, include_self).reshape(self.shape)


@rule("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(self: Array, dim: int, index: Array, value: Number | Array) -> Array:
    """self with self[.., index[k], ..] = value; negative indices wrap."""
    where = (slice(None),) * canonical_dim(dim, self.ndim) + (index.reshape(-1),)
    x = _raised(self).at[where].set(cast(value, self.dtype), mode=IN_BOUNDS)
    return x.reshape(self.shape)


@rule("aten.put.default")
def put(self: Array, index: Array, source: Array, accumulate: bool = False) -> Array:
    """self with self.flat[index] = (+=) source; negative indices wrap."""
    flat, where, values = self.reshape(-1), (index.reshape(-1),), source.reshape(-1)
    if accumulate:
        return add_at(flat, where, values).reshape(self.shape)
    return flat.at[where].set(cast(values, self.dtype), mode=IN_BOUNDS).reshape(self.shape)
