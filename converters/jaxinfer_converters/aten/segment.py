"""segment_reduce: sums, means, products and extremes of consecutive pieces of an axis.

Segment s holds the elements offsets[s] <= p < offsets[s + 1]; lengths are the differences. An
empty segment gives the initial value (0, NaN for a mean, 1, -inf or inf if none is given).
Source: PyTorch, ATen/native/SegmentReduce.cpp.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxinfer_converters.aten._common import (
    Array,
    Number,
    acc_dtype,
    canonical_dim,
    cast,
    prod,
    rule,
)

INITIAL = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": float("-inf"), "min": float("inf")}


@rule("aten.segment_reduce.default")
def segment_reduce(
    data: Array,
    reduce: str,
    *,
    lengths: Array | None = None,
    indices: Array | None = None,
    offsets: Array | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Number | None = None,
) -> Array:
    """out[.., s, ..] = reduce over segment s of data[.., p, ..], starting from initial."""
    del unsafe
    axis = canonical_dim(axis, data.ndim)
    if indices is not None:
        raise NotImplementedError("segment_reduce by indices; torch has lengths and offsets only")
    if offsets is None:
        if lengths is None:
            raise ValueError("segment_reduce needs lengths or offsets")
        ends = jnp.cumsum(lengths, -1)
        offsets = jnp.concatenate([jnp.zeros_like(ends[..., :1]), ends], -1)
    lead, size, rest = data.shape[:axis], data.shape[axis], data.shape[axis + 1 :]
    count = offsets.shape[-1] - 1
    start = cast(INITIAL[reduce] if initial is None else initial, acc_dtype(data.dtype))
    positions = jnp.arange(size)

    def row(x: Array, edges: Array) -> Array:
        place = jnp.searchsorted(edges, positions, side="right") - 1
        place = jnp.where(place < 0, count, place)  # before the first: dropped, as after the last
        at = jnp.full((count, *rest), start).at[place]
        ways = {"sum": at.add, "mean": at.add, "prod": at.mul, "max": at.max, "min": at.min}
        out = ways[reduce](x, mode="drop")
        if reduce != "mean":
            return out
        width = jnp.diff(edges).reshape(-1, *(1,) * len(rest)).astype(out.dtype)
        empty = out if initial is not None else jnp.nan
        return jnp.where(width == 0, empty, out / jnp.maximum(width, 1))

    wide = cast(data, acc_dtype(data.dtype)).reshape(prod(lead), size, *rest)
    out = jax.vmap(row)(wide, offsets.reshape(prod(lead), count + 1))
    return cast(out, data.dtype).reshape(*lead, count, *rest)
