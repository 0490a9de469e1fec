"""Histograms of magnitudes whose range grows by doubling, so that merging loses nothing.

    range     [0, 2**e), e the smallest exponent that holds the largest magnitude seen
    bins      B = 2**b of equal width 2**(e - b); bin of x: floor(|x| * 2**(b - e))
    doubling  bin i becomes bin i >> 1; floor(floor(v) / 2) = floor(v / 2), so it is exact

The edges of a range are among those of half of it, and scaling by a power of two is exact in
float32. Hence a histogram depends on the values alone: not on how they were cut into batches
or in what order they came. Doubling the range of a running histogram is how TensorRT's
calibrator keeps one, there with edges that follow the first batch.

Counts are two 32-bit words (``Count``): float32 stops counting at 2**24, and 64-bit integers
need x64. The sum of two words carries, so counts are exact up to 2**64.

The clip with the least squared error: for a uniform grid of step s with zero on it, and values
spread evenly over each bin, the error of a bin [u, v) of n values is n (F(v) - F(u)) / (v - u),

    F(v) = k s**3 / 12 + (v - k s)**3 / 3,  k = round(v / s),        for v <= c
    F(v) = F(c) + (v - c)**3 / 3                                     beyond the clip c

Not done here: ranges with a sign (a histogram is of |x|), bins of unequal width.

Source: NVIDIA, "8-bit inference with TensorRT", GTC 2017,
https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf;
the mean squared error as the measure: Choukroun et al., "Low-bit Quantization of Neural Networks
for Efficient Inference", 2019, https://arxiv.org/abs/1902.06822.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

LOWEST = -100
"""Least exponent of a range; values below 2**LOWEST share its bins."""
CANDIDATES = 128
"""Clips that ``best_clip`` compares: c = absmax * j / CANDIDATES."""


class Count(NamedTuple):
    """A count up to 2**64 as two words: ``high * 2**32 + low``, each uint32 of one shape."""

    high: Array
    low: Array


def zeros(shape: Sequence[int]) -> Count:
    """Return counts of zero."""
    return Count(jnp.zeros(tuple(shape), jnp.uint32), jnp.zeros(tuple(shape), jnp.uint32))


def add(a: Count, b: Count) -> Count:
    """Return a + b, exact modulo 2**64."""
    low = a.low + b.low
    return Count(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def of_mask(mask: Array, axes: tuple[int, ...]) -> Count:
    """Return how many of ``mask`` are true along ``axes``, which are kept with size 1."""
    low = jnp.sum(mask, axis=axes, keepdims=True, dtype=jnp.uint32)
    return Count(jnp.zeros_like(low), low)


def to_float(count: Count) -> Array:
    """Return a count as float32, with a relative error of at most 2**-22."""
    return count.high.astype(jnp.float32) * 2.0**32 + count.low.astype(jnp.float32)


def to_int(count: Count) -> np.ndarray:
    """Return a concrete count as uint64 on the host."""
    return (np.asarray(count.high).astype(np.uint64) << np.uint64(32)) + np.asarray(count.low)


def power_of_two(exponent: Array) -> Array:
    """Return 2**exponent in float32, exact for exponents from -126 to 127."""
    bits = (jnp.asarray(exponent, jnp.int32) + 127) << 23
    return lax.bitcast_convert_type(bits, jnp.float32)


def exponent_of(absmax: Array) -> Array:
    """Return the least e >= LOWEST with absmax < 2**e, for finite absmax >= 0 (f32 to i32)."""
    biased = lax.bitcast_convert_type(absmax, jnp.int32) >> 23
    return jnp.maximum(biased - 126, LOWEST)


def widths(exponent: Array, bins: int) -> Array:
    """Return the width of the bins, f32 of the shape of ``exponent``."""
    return power_of_two(exponent - _log2(bins))


def counted(magnitude: Array, finite: Array, exponent: Array, bins: int) -> Count:
    """Return the histogram of the rows of ``magnitude``, leaving out what is not finite.

    One scatter-add: n steps for n values, on CPUs one after the other.

    Args:
      magnitude: f32[rows, n], at least 0.
      finite: bool[rows, n].
      exponent: i32[rows], each row's range; all finite values lie in it.
      bins: how many, a power of two.

    Returns:
      Count of [rows, bins].
    """
    rows = magnitude.shape[0]
    scaled = magnitude * power_of_two(_log2(bins) - exponent)[:, None]
    index = jnp.where(finite, scaled, bins).astype(jnp.int32)  # bins is out of range: dropped
    row = lax.broadcasted_iota(jnp.int32, index.shape, 0)
    low = jnp.zeros((rows, bins), jnp.uint32).at[row, index].add(jnp.uint32(1), mode="drop")
    return Count(jnp.zeros_like(low), low)


@jax.jit  # a loop outside jit would be compiled at each call
def widened(count: Count, doublings: Array) -> Count:
    """Return histograms [..., bins] with each range doubled ``doublings`` (i32[...]) times."""
    bins = count.low.shape[-1]

    def halve(words: Count) -> Count:
        pairs = [x.reshape(*x.shape[:-1], bins // 2, 2) for x in words]
        half = add(Count(*(x[..., 0] for x in pairs)), Count(*(x[..., 1] for x in pairs)))
        return Count(*(jnp.concatenate([x, jnp.zeros_like(x)], axis=-1) for x in half))

    def body(step: Array, count: Count) -> Count:
        take = (doublings > step)[..., None]
        return Count(*(jnp.where(take, a, b) for a, b in zip(halve(count), count, strict=True)))

    most = jnp.minimum(jnp.max(doublings, initial=0), _log2(bins))
    return lax.fori_loop(jnp.int32(0), most.astype(jnp.int32), body, count)


def total(count: Count) -> Count:
    """Return the sum of histograms [..., bins] over their bins."""
    whole = jnp.full(count.low.shape[:-1], _log2(count.low.shape[-1]), jnp.int32)
    return Count(*(words[..., 0] for words in widened(count, whole)))


def merged(a: Count, b: Count, exponent_a: Array, exponent_b: Array) -> tuple[Count, Array]:
    """Return the histogram of the values of both, and its exponent."""
    exponent = jnp.maximum(exponent_a, exponent_b)
    both = add(widened(a, exponent - exponent_a), widened(b, exponent - exponent_b))
    return both, exponent


def quantile(count: Count, width: Array, above: float) -> Array:
    """Return the least upper edge with at most a fraction ``above`` of the values over it.

    It is the exact quantile or up to one width beyond: 0 < edge - quantile <= width. The tail
    is summed in integers and compared in float32, so its size is right to 1 part in 2**20.

    Args:
      count: of [..., bins].
      width: f32[...], of the bins.
      above: from 0 to 1.

    Returns:
      f32[...]; the first edge where nothing was counted.
    """
    halves = jnp.stack([word >> at & 0xFFFF for word in reversed(count) for at in (0, 16)])
    tails = lax.cumsum(halves, axis=count.low.ndim, reverse=True)  # below 2**32: 2**16 bins at most
    weights = power_of_two(jnp.arange(0, 64, 16)).reshape(4, *[1] * count.low.ndim)
    size = jnp.sum(tails.astype(jnp.float32) * weights, axis=0)
    over = size[..., 1:] > size[..., :1] * jnp.float32(above)
    return (jnp.sum(over, axis=-1, dtype=jnp.int32) + 1).astype(jnp.float32) * width


@functools.partial(jax.jit, static_argnames=("levels", "symmetric"))
def best_clip(
    count: Count, width: Array, low: Array, high: Array, levels: int, symmetric: bool
) -> Array:
    """Return the clip c of |x| with the least expected squared error of rounding to a grid.

    The grid has ``levels`` levels from -c to c, or over [max(-c, low), min(c, high)] where it
    is not symmetric, and zero is one of them. Ties go to the larger clip.

    Cost: CANDIDATES * bins evaluations for each row, one candidate after the other.

    Args:
      count: of [..., bins].
      width: f32[...], of the bins.
      low: f32[...], least value seen.
      high: f32[...], largest value seen.
      levels: how many.
      symmetric: whether the grid is.

    Returns:
      f32[...], one of ``absmax * j / CANDIDATES``.
    """
    bins = count.low.shape[-1]
    absmax = jnp.maximum(jnp.abs(low), jnp.abs(high))
    unit = jnp.where(absmax > 0, absmax, 1)  # magnitudes in units of absmax: no s**3 underflows
    edges = jnp.arange(bins + 1, dtype=jnp.float32) * (width / unit)[..., None]
    edges = jnp.minimum(edges, 1)
    size = to_float(count)
    spread = edges[..., 1:] - edges[..., :-1]
    share = size / jnp.maximum(jnp.sum(size, axis=-1, keepdims=True), 1)
    density = jnp.where(spread > 0, share / jnp.where(spread > 0, spread, 1), 0)
    low, high = jnp.minimum(low / unit, 0), jnp.maximum(high / unit, 0)

    def error(fraction: Array) -> Array:
        both = (
            2 * fraction if symmetric else jnp.minimum(fraction, high) + jnp.minimum(fraction, -low)
        )
        step = jnp.broadcast_to(both / (levels - 1), width.shape)[..., None]
        step = jnp.where(step > 0, step, 1)
        inside = jnp.minimum(edges, fraction)
        k = jnp.round(inside / step)
        area = k * step**3 / 12 + ((inside - k * step) ** 3 + (edges - inside) ** 3) / 3
        return jnp.sum(density * (area[..., 1:] - area[..., :-1]), axis=-1)

    fractions = jnp.arange(CANDIDATES, 0, -1, dtype=jnp.float32) / CANDIDATES
    errors = lax.map(error, fractions)
    return absmax * fractions[jnp.argmin(errors, axis=0)]


def _log2(bins: int) -> int:
    return bins.bit_length() - 1
