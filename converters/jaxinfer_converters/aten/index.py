"""Reading by index tensors and masks: index, index_put, gather, take, masked_fill.

Advanced indexing is numpy's, which is torch's: adjacent index tensors leave their broadcast
shape in place, others put it in front. ``index``, ``index_put`` and ``take`` wrap negative
indices; ``gather`` and ``index_select`` take none. torch raises on an index out of range; here
it is clamped (reads) or dropped (writes) without a check, as a check would need the values.
A mask as an index reads a number of elements that depends on data: refused. Assigning through
a mask has a static shape: with k = cumsum(mask) - 1, out = where(mask, values[k], self).
Source: PyTorch, ATen/native/TensorAdvancedIndexing.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import (
    Array,
    Number,
    acc_dtype,
    canonical_dim,
    cast,
    prod,
    rule,
)
from jaxinfer_converters.aten._data_dependent import data_dependent, refuse

IN_BOUNDS = "promise_in_bounds"
Indices = Sequence[Array | None]

data_dependent(
    "aten.masked_select.default",
    "aten.nonzero.default",
    instead="keep all elements and use torch.where, masked_fill or a weighted sum, or pad to a "
    "fixed size (torch.nonzero_static)",
)


def is_mask(index: Array | None) -> bool:
    """Return whether an index is a mask (bool, or the deprecated uint8)."""
    return index is not None and index.dtype in (jnp.bool_, jnp.uint8)


def places(indices: Indices) -> tuple[Array | slice, ...]:
    """Return jnp indices: None is a whole dim."""
    if any(is_mask(index) for index in indices):
        refuse("indexing with a bool mask", "use torch.where or masked_fill, or pad")
    return tuple(slice(None) if index is None else index for index in indices)


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index_tensor(self: Array, indices: Indices) -> Array:
    """self[i0, :, i1, ..] with None for a whole dim; negative indices wrap."""
    return self.at[places(indices)].get(mode=IN_BOUNDS)


@rule("aten._unsafe_masked_index.default")
def masked_index(self: Array, mask: Array, indices: Indices, fill: Number) -> Array:
    """self[indices] where mask, fill elsewhere; there the indices may be out of range."""
    inside = [
        None if index is None else jnp.clip(index, -self.shape[d], self.shape[d] - 1)
        for d, index in enumerate(indices)
    ]
    return jnp.where(mask, index_tensor(self, inside), cast(fill, self.dtype))


def add_at(
    x: Array, where: tuple[Array | slice, ...], values: Array, mode: Any = IN_BOUNDS
) -> Array:
    """Return x with values added at places: half types in float32, bool as "or"."""
    wide = jnp.int32 if x.dtype == jnp.bool_ else acc_dtype(x.dtype)
    return cast(cast(x, wide).at[where].add(cast(values, wide), mode=mode), x.dtype)


@rule("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(self: Array, indices: Indices, values: Array, accumulate: bool = False) -> Array:
    """self with self[i0, :, i1, ..] = (+=) values; a mask stands for the indices of its Trues."""
    values = cast(values, self.dtype)
    if any(is_mask(index) for index in indices):
        return _put_masked(self, indices, values, accumulate)
    where = places(indices)
    if accumulate:
        return add_at(self, where, values)
    given = [(d, index) for d, index in enumerate(indices) if index is not None]
    if len(given) == 1 and given[0][1].shape == (1,):  # a slice is written in place
        axis, index = given[0]
        shape = (*self.shape[:axis], 1, *self.shape[axis + 1 :])
        values = jnp.broadcast_to(values, shape)
        return lax.dynamic_update_slice_in_dim(self, values, index[0], axis)
    return self.at[where].set(values, mode=IN_BOUNDS)


def _put_masked(x: Array, indices: Indices, values: Array, accumulate: bool) -> Array:
    given = [d for d, index in enumerate(indices) if index is not None]
    if len(given) > 1:
        return _put_beside_mask(x, indices, values, accumulate)
    mask = cast(indices[given[0]], jnp.bool_)
    after = x.shape[given[0] + mask.ndim :]
    axis = values.ndim - len(after) - 1  # of values: one entry an element that is selected
    if axis >= 0 and values.shape[axis] == 1:
        values = values.reshape(*values.shape[:axis], *(1,) * mask.ndim, *values.shape[axis + 1 :])
    elif axis >= 0:
        values = jnp.take(values, _rank(mask), axis=axis, mode="clip")
    mask = mask.reshape(*mask.shape, *(1,) * len(after))
    if accumulate:
        values = x | values if x.dtype == jnp.bool_ else x + values
    return jnp.where(mask, values, x)


def _put_beside_mask(x: Array, indices: Indices, values: Array, accumulate: bool) -> Array:
    """x[mask, i1, ..] = (+=) values: a mask stands for the k places of its True elements.

    k is at most the mask's size n: the places are filled up to n with some out of range,
    which are not written, and the other indices and the values to as many along that axis.
    """
    n = min(index.size for index in indices if index is not None and is_mask(index))
    fill = max(x.shape, default=0)  # out of range along every axis

    def padded(value: Array, axis: int) -> Array:
        if axis < 0 or value.shape[axis] == 1:
            return value
        width = n - value.shape[axis]
        return jnp.pad(value, [(0, width if d == axis else 0) for d in range(value.ndim)])

    where: list[Array | slice] = []
    for index in indices:
        if index is None:
            where.append(slice(None))
        elif is_mask(index):
            where += jnp.nonzero(cast(index, jnp.bool_), size=n, fill_value=fill)
        else:
            where.append(padded(index, index.ndim - 1))
    taken = [d for d, index in enumerate(where) if not isinstance(index, slice)]
    adjacent = taken[-1] - taken[0] + 1 == len(taken)
    behind = x.ndim - (taken[-1] + 1 if adjacent else len(taken))
    values = padded(values, values.ndim - behind - 1)
    if accumulate:
        return add_at(x, tuple(where), values, mode="drop")
    return x.at[tuple(where)].set(values, mode="drop")


def _rank(mask: Array) -> Array:
    """Return i32[mask.shape]: how many elements before this one, in flat order, are True."""
    return (jnp.cumsum(mask.reshape(-1), dtype=jnp.int32) - 1).reshape(mask.shape)


@rule("aten.index_select.default")
def index_select(self: Array, dim: int, index: Array) -> Array:
    """out[.., k, ..] = self[.., index[k], ..]."""
    if self.ndim == 0:
        return self
    return jnp.take(self, index.reshape(-1), axis=canonical_dim(dim, self.ndim), mode="clip")


@rule("aten.gather.default")
def gather(self: Array, dim: int, index: Array, *, sparse_grad: bool = False) -> Array:
    """out[i, .., k] = self[i, .., index[i, .., k]] along dim; index may be smaller elsewhere."""
    del sparse_grad
    dim = canonical_dim(dim, self.ndim)
    if self.ndim == 0 or index.ndim == 0:
        return jnp.take(self.reshape(-1), index, mode="clip")
    if index.size == 0:
        return jnp.zeros(index.shape, self.dtype)
    used = [self.shape[d] if d == dim else n for d, n in enumerate(index.shape)]
    return jnp.take_along_axis(
        lax.slice(self, [0] * self.ndim, used), index, axis=dim, mode=IN_BOUNDS
    )


@rule("aten.take.default")
def take(self: Array, index: Array) -> Array:
    """self.flat[index]; negative indices wrap."""
    return self.reshape(-1).at[index].get(mode=IN_BOUNDS)


@rule("aten.take_along_dim.default")
def take_along_dim(self: Array, indices: Array, dim: int | None = None) -> Array:
    """gather after broadcasting the other dims; without dim, of the flat tensors.

    Negative indices wrap.
    """
    if dim is None:
        return take_along_dim(self.reshape(-1), indices.reshape(-1), 0)
    dim = canonical_dim(dim, self.ndim)
    size = self.shape[dim] if self.ndim else 1
    indices = jnp.where(indices < 0, indices + size, indices)
    others = [1 if d == dim else n for d, n in enumerate(self.shape)]
    shape = jnp.broadcast_shapes(tuple(others), tuple(indices.shape))
    wide = [self.shape[d] if d == dim else n for d, n in enumerate(shape)]
    shape = [indices.shape[d] if d == dim else n for d, n in enumerate(shape)]
    return gather(jnp.broadcast_to(self, wide), dim, jnp.broadcast_to(indices, shape))


@rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(self: Array, mask: Array, value: Number | Array) -> Array:
    """where(mask, value, self), in self's dtype."""
    return jnp.where(cast(mask, jnp.bool_), cast(value, self.dtype), self)


@rule("aten.masked_scatter.default")
def masked_scatter(self: Array, mask: Array, source: Array) -> Array:
    """self with its k-th element under the mask = source.flat[k]."""
    shape = jnp.broadcast_shapes(tuple(self.shape), tuple(mask.shape))
    if prod(source.shape) == 0:
        return jnp.broadcast_to(self, shape)
    mask = jnp.broadcast_to(cast(mask, jnp.bool_), shape)
    values = jnp.take(source.reshape(-1), _rank(mask), mode="clip")
    return jnp.where(mask, cast(values, self.dtype), self)


@rule("aten.nonzero_static.default")
def nonzero_static(self: Array, *, size: int, fill_value: int = -1) -> Array:
    """The first size places of non-zero elements, one a row, in flat order, then fill_value."""
    dtype = dtypes.canonical("int64")
    if self.ndim == 0 or self.size == 0:
        return jnp.full((size, self.ndim), fill_value, dtype)
    found = jnp.nonzero(self, size=size, fill_value=fill_value)
    return jnp.stack(found, axis=1).astype(dtype)
