"""Places in sorted sequences and counts between edges: searchsorted, bucketize, histograms.

searchsorted: the number of edges < v (left) or <= v (right), with a NaN v after all edges:
exactly torch's binary search, here log2(n) + 1 unrolled steps of one gather, or, for few
edges, one comparison with each. Histograms are counts over bins [e0, e1), [e1, e2), .. [.., en],
values outside dropped. Source: PyTorch, ATen/native/Bucketization.cpp, Histogram.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, Number, acc_dtype, cast, promote, rule
from jaxinfer_converters.aten._data_dependent import data_dependent

FEW = 32  # edges up to which comparing with all of them is cheaper than gathers

data_dependent(
    "aten.bincount.default",
    instead="scatter_add ones into a tensor of a fixed number of bins",
)


def _search(edges: Array, values: Array, right: bool) -> Array:
    """Return i32[values.shape]: places in edges[.., n], both with the same leading dims."""
    size = edges.shape[-1]

    def passed(edge: Array) -> Array:  # torch's own tests, so that NaN goes its way
        return ~(edge > values[..., None]) if right else ~(edge >= values[..., None])

    if size <= FEW:
        return jnp.sum(passed(edges[..., None, :]), axis=-1, dtype=jnp.int32)
    low = jnp.zeros(values.shape, jnp.int32)
    high = jnp.full(values.shape, size, jnp.int32)
    for _ in range(size.bit_length()):
        middle = (low + high) // 2
        edge = jnp.take_along_axis(edges, middle, axis=-1, mode="clip")
        go = passed(edge[..., None])[..., 0] & (low < high)
        low, high = jnp.where(go, middle + 1, low), jnp.where(go, high, middle)
    return low


def _searchsorted(edges: Array, values: Array, right: bool, out_int32: bool) -> Array:
    edges, values = promote(edges, values)
    if edges.ndim == 1:
        found = _search(edges, values.reshape(-1), right).reshape(values.shape)
    else:
        found = _search(edges, values, right)
    return found.astype(jnp.int32 if out_int32 else dtypes.canonical("int64"))


@rule("aten.searchsorted.Tensor", "aten.searchsorted.Scalar")
def searchsorted(
    sorted_sequence: Array,
    self: Array | Number,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Array | None = None,
) -> Array:
    """The place at which self would be inserted into the last dim, left or right of equals."""
    if sorter is not None:
        sorted_sequence = jnp.take_along_axis(sorted_sequence, sorter, axis=-1, mode="clip")
    values = cast(self, sorted_sequence.dtype) if isinstance(self, Number) else self
    return _searchsorted(sorted_sequence, values, right or side == "right", out_int32)


@rule("aten.bucketize.Tensor", "aten.bucketize.Scalar")
def bucketize(
    self: Array | Number, boundaries: Array, *, out_int32: bool = False, right: bool = False
) -> Array:
    """searchsorted of self in one row of boundaries."""
    return searchsorted(boundaries, self, out_int32=out_int32, right=right)


def _count(bins: Array, values: Array, edges: Array, weight: Array, size: int) -> Array:
    """Return the sums of weight by bin; values outside the edges are dropped."""
    inside = (values >= edges[0]) & (values <= edges[-1])
    place = jnp.where(inside, jnp.minimum(bins, size - 1), size)
    total = jnp.zeros(size, acc_dtype(weight.dtype)).at[place].add(weight, mode="drop")
    return cast(total, weight.dtype)


def _range(x: Array, low: Number | Array, high: Number | Array, widen: float) -> list[Array]:
    """Return bounds, widened by ``widen`` on both sides where they are equal."""
    low, high = cast(low, x.dtype), cast(high, x.dtype)
    same = jnp.where(low == high, widen, 0).astype(x.dtype)
    return [low - same, high + same]


@rule("aten.histc.default")
def histc(self: Array, bins: int = 100, min: Number = 0, max: Number = 0) -> Array:
    """Counts of self in equal bins over [min, max], or over self's range if both are equal."""
    x = self.reshape(-1)
    empty = min == max and x.size
    low, high = _range(x, x.min(), x.max(), 1.0) if empty else _range(x, min, max, 1.0)
    wide = acc_dtype(x.dtype)
    low, high, values = (cast(v, wide) for v in (low, high, x))
    place = jnp.floor((values - low) * (bins / (high - low))).astype(jnp.int32)
    return _count(place, values, jnp.stack([low, high]), jnp.ones_like(x), bins)


def _histogram(x: Array, edges: Array, weight: Array | None, density: bool) -> tuple[Array, Array]:
    values = x.reshape(-1)
    weight = jnp.ones_like(values) if weight is None else weight.reshape(-1)
    place = _search(edges, values, right=True) - 1
    total = _count(place, values, edges, weight, edges.size - 1)
    if density:
        total = total / (total.sum() * jnp.diff(edges))
    return total, edges


@rule("aten.histogram.bins_tensor")
def histogram_edges(
    self: Array, bins: Array, *, weight: Array | None = None, density: bool = False
) -> tuple[Array, Array]:
    """Counts (sums of weight, densities) of self between the edges, and the edges."""
    return _histogram(self, bins, weight, density)


def _edges(x: Array, bins: int, range: Sequence[float] | None) -> Array:
    """Return bins + 1 equally spaced edges over range, or over x's own range."""
    if range is not None:
        low, high = _range(x, range[0], range[1], 0.5)
    elif x.size:
        low, high = _range(x, x.min(), x.max(), 0.5)
    else:
        low, high = cast(0, x.dtype), cast(1, x.dtype)
    steps = np.arange(bins + 1)
    # from both ends, as torch.linspace does, so that the last edge is exact
    width = (high - low) / bins
    return jnp.where(
        steps < (bins + 1) // 2, low + width * cast(steps, x.dtype),
        high - width * cast(bins - steps, x.dtype),
    )  # fmt: skip


@rule("aten.histogram.bin_ct")
def histogram(
    self: Array,
    bins: int = 100,
    *,
    range: Sequence[float] | None = None,
    weight: Array | None = None,
    density: bool = False,
) -> tuple[Array, Array]:
    """As with edges, these being equally spaced over range or over self's own range."""
    return _histogram(self, _edges(self, bins, range), weight, density)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


@rule("aten._histogramdd_bin_edges.default")
def histogramdd_bin_edges(
    self: Array,
    bins: Sequence[int],
    *,
    range: Sequence[float] | None = None,
    weight: Array | None = None,
    density: bool = False,
) -> list[Array]:
    """Edges along each entry of the last dim, equally spaced over its range."""
    del weight, density
    x = _rows(self)
    pairs = [None if range is None else range[2 * d : 2 * d + 2] for d, _ in enumerate(bins)]
    return [_edges(x[:, d], n, pair) for d, (n, pair) in enumerate(zip(bins, pairs, strict=True))]


@rule("aten._histogramdd_from_bin_tensors.default")
def histogramdd(
    self: Array, bins: Sequence[Array], *, weight: Array | None = None, density: bool = False
) -> Array:
    """Counts (sums of weight, densities) of the rows of self in the boxes between the edges."""
    x, shape = _rows(self), tuple(edges.size - 1 for edges in bins)
    weight = jnp.ones(x.shape[0], x.dtype) if weight is None else weight.reshape(-1)
    inside, place = jnp.ones(x.shape[0], bool), []
    for d, edges in enumerate(bins):
        values = x[:, d]
        inside &= (values >= edges[0]) & (values <= edges[-1])
        place.append(jnp.clip(_search(edges, values, right=True) - 1, 0, shape[d] - 1))
    place[0] = jnp.where(inside, place[0], shape[0])  # out of range: dropped
    total = jnp.zeros(shape, acc_dtype(weight.dtype)).at[tuple(place)].add(weight, mode="drop")
    if density:
        total = total / total.sum()
        for d, edges in enumerate(bins):
            total = total / jnp.diff(edges).reshape(-1, *(1,) * (len(bins) - d - 1))
    return cast(total, weight.dtype)


@rule("aten._histogramdd_from_bin_cts.default")
def histogramdd_from_counts(
    self: Array,
    bins: Sequence[int],
    *,
    range: Sequence[float] | None = None,
    weight: Array | None = None,
    density: bool = False,
) -> Array:
    """As with edges, these being equally spaced over range or over self's own range."""
    edges = histogramdd_bin_edges(self, bins, range=range)
    return histogramdd(self, edges, weight=weight, density=density)
