"""Sorting and order statistics: sort, topk, kthvalue, median, mode.

NaN is the largest value, as in torch. Sorting is stable in both directions: descending is an
ascending sort of the reversed dim, reversed. ``topk`` orders NaN by XLA's total order, in
which a NaN with the sign bit set is the smallest value. Median and kthvalue sort, O(n log n).
With equal values, ``topk``, ``kthvalue`` and ``median`` give the first index; torch leaves that
open. Source: PyTorch, ATen/native/Sorting.cpp.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, canonical_dim, cast, category, rule
from jaxinfer_converters.aten._data_dependent import data_dependent

data_dependent(
    "aten._unique.default",
    "aten._unique2.default",
    "aten.unique_dim.default",
    "aten.unique_consecutive.default",
    "aten.unique_dim_consecutive.default",
    instead="sort and mark where neighbours differ, or pad to a fixed number of values",
)


def _sorted(x: Array, dim: int, descending: bool = False) -> tuple[Array, Array]:
    """Return sorted values and their indices, stable; x has at least one dim."""
    size = x.shape[dim]
    index = lax.broadcasted_iota(dtypes.canonical("int64"), x.shape, dim)
    if descending:
        x, index = lax.rev(x, (dim,)), size - 1 - index
    values, index = lax.sort((x, index), dimension=dim, is_stable=True, num_keys=1)
    return (lax.rev(values, (dim,)), lax.rev(index, (dim,))) if descending else (values, index)


@rule("aten.sort.default")
def sort(self: Array, dim: int = -1, descending: bool = False) -> tuple[Array, Array]:
    """Sorted values and their indices along dim, stable."""
    if self.ndim == 0:
        return self, jnp.zeros((), dtypes.canonical("int64"))
    return _sorted(self, canonical_dim(dim, self.ndim), descending)


@rule("aten.sort.stable")
def sort_stable(
    self: Array, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Array, Array]:
    """As sort, which is stable anyway."""
    del stable
    return sort(self, dim, descending)


@rule("aten.argsort.default")
def argsort(self: Array, dim: int = -1, descending: bool = False) -> Array:
    """The indices of sort."""
    return sort(self, dim, descending)[1]


@rule("aten.argsort.stable")
def argsort_stable(self: Array, *, stable: bool, dim: int = -1, descending: bool = False) -> Array:
    """The indices of sort."""
    del stable
    return sort(self, dim, descending)[1]


@rule("aten.msort.default")
def msort(self: Array) -> Array:
    """Sorted values along the first dim."""
    return sort(self, 0)[0]


def _order_key(x: Array, largest: bool) -> Array:
    """Return keys whose total order is torch's (reversed if not largest)."""
    if category(x.dtype) < 2:
        if x.dtype.itemsize < 4:  # exact in float32, for which XLA has a fast top-k
            x = cast(x, jnp.float32)
            return x if largest else -x
        return x if largest else ~x
    x = cast(x, jnp.float32) if x.dtype.itemsize < 4 else x
    nan = jnp.asarray(np.copysign(np.nan, 1 if largest else -1), x.dtype)
    return jnp.where(jnp.isnan(x), nan, x if largest else -x)


@rule("aten.topk.default")
def topk(
    self: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Array, Array]:
    """The k largest (smallest) values along dim, in order, and their indices."""
    del sorted  # in order satisfies both
    if self.ndim == 0:
        return sort(self)
    x = jnp.moveaxis(self, dim, -1)
    index = lax.top_k(_order_key(x, largest), k)[1]
    values = jnp.take_along_axis(x, index, axis=-1, mode="promise_in_bounds")
    index = index.astype(dtypes.canonical("int64"))
    return jnp.moveaxis(values, -1, dim), jnp.moveaxis(index, -1, dim)


def _pick(values: Array, index: Array, place: Array, dim: int, keepdim: bool) -> list[Array]:
    """Return values and index at place (size 1 in dim) along dim."""
    picked = [
        jnp.take_along_axis(x, place, axis=dim, mode="promise_in_bounds") for x in (values, index)
    ]
    return picked if keepdim else [lax.squeeze(x, (dim,)) for x in picked]


@rule("aten.kthvalue.default")
def kthvalue(self: Array, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Array, Array]:
    """The k-th smallest value along dim (from 1) and its index."""
    if self.ndim == 0:
        return sort(self)
    dim = canonical_dim(dim, self.ndim)
    values, index = (lax.index_in_dim(x, k - 1, dim) for x in _sorted(self, dim))
    return (values, index) if keepdim else (lax.squeeze(values, (dim,)), lax.squeeze(index, (dim,)))


def _median(x: Array, dim: int, keepdim: bool, ignore_nan: bool) -> tuple[Array, Array]:
    size = x.shape[dim]
    values, index = _sorted(x, dim)
    numbers = jnp.full((), size, jnp.int32)
    if category(x.dtype) == 2:
        numbers = size - jnp.sum(jnp.isnan(x), axis=dim, keepdims=True, dtype=jnp.int32)
    place = jnp.maximum((numbers - 1) // 2, 0)
    if not ignore_nan:  # a NaN is the result: the first one, which follows the numbers
        place = jnp.where(numbers < size, numbers, place)
    place = jnp.broadcast_to(place, (*x.shape[:dim], 1, *x.shape[dim + 1 :]))
    value, at = _pick(values, index, place, dim, keepdim)
    return value, at


def _median_rule(name: str, ignore_nan: bool) -> None:
    @rule(f"aten.{name}.dim")
    def along(self: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
        if self.ndim == 0:
            return sort(self)
        return _median(self, canonical_dim(dim, self.ndim), keepdim, ignore_nan)

    @rule(f"aten.{name}.default")
    def overall(self: Array) -> Array:
        if self.size == 0:
            if category(self.dtype) == 2:
                return jnp.full((), jnp.nan, self.dtype)
            return jnp.full((), jnp.iinfo(self.dtype).min, self.dtype)
        return _median(self.reshape(-1), 0, False, ignore_nan)[0]


_median_rule("median", ignore_nan=False)
_median_rule("nanmedian", ignore_nan=True)


@rule("aten.mode.default")
def mode(self: Array, dim: int = -1, keepdim: bool = False) -> tuple[Array, Array]:
    """The most frequent value along dim (of several the smallest) and its last index."""
    if self.ndim == 0:
        return sort(self)
    dim = canonical_dim(dim, self.ndim)
    values, index = _sorted(self, dim)
    size, place = self.shape[dim], lax.broadcasted_iota(jnp.int32, self.shape, dim)
    differs = lax.slice_in_dim(values, 1, size, axis=dim) != lax.slice_in_dim(
        values, 0, size - 1, axis=dim
    )
    edge = jnp.ones((*self.shape[:dim], 1, *self.shape[dim + 1 :]), jnp.bool_)
    starts, ends = (lax.concatenate(c, dim) for c in ([edge, differs], [differs, edge]))
    start = lax.cummax(jnp.where(starts, place, 0), dim)
    count = jnp.where(ends, place - start + 1, 0)
    best = jnp.argmax(count, axis=dim, keepdims=True)
    value, at = _pick(values, index, best, dim, keepdim)
    return value, at
