"""The k largest elements of one or several arrays, exactly, without sorting or joining them.

The threshold is found bit by bit from above: floats are ordered as the integers that their
bits give (negative ones inverted), so 32 counts ``#{x >= t}`` (64 for float64) give the k-th
largest value. Elements equal to it are kept from the first position on; how far is found by
bisection over the position. Arrays stay sharded as they are, and 7e9 elements can be ranked
without an array of that length. Memory beyond scores and masks is two bytes an element; six on
CPUs, where XLA counts through a copy in int32. Counts are pairs of int32 (``high 2^16 + low``),
since 64-bit integers are off in JAX by default.

Radix selection is textbook; see Alabi, Blanchard, Gordon, Steinbach, "Fast k-selection
algorithms for graphics processing units", 2012, https://doi.org/10.1145/2133803.2345676.

NaN counts as the lowest value, as -inf does. Subnormal numbers compare as the device compares
them: XLA on CPUs takes them for zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_HALF = 16  # bits of the lower part of a count


class Count(NamedTuple):
    """A number of elements, ``high 2^16 + low``, below 2^47: two scalars of int32."""

    high: Array
    low: Array


def count(value: int) -> Count:
    """Return a Python integer as a count."""
    high, low = divmod(value, 1 << _HALF)
    return Count(jnp.int32(high), jnp.int32(low))


def kept(size: int, sparsity: float | Array) -> Count:
    """Return ``size - round(sparsity * size)``, rounding halves to even.

    A Python number is multiplied in float64. A JAX array (that of a schedule, maybe traced) is
    multiplied in float32, on and off ``jit`` alike, which beyond 2^24 elements is exact to
    2^-24 of the size; it is clipped to [0, 1].
    """
    if not isinstance(sparsity, jax.Array):
        return count(size - round(float(sparsity) * size))
    share = jnp.clip(sparsity.astype(jnp.float32), 0, 1)
    pruned = jnp.round(share * jnp.float32(size))
    high = jnp.floor(pruned / (1 << _HALF))
    low = pruned - high * (1 << _HALF)
    return _minus(count(size), Count(high.astype(jnp.int32), low.astype(jnp.int32)))


def _total(counts: Sequence[Array]) -> Count:
    """Add counts of int32; up to 2^15 of them."""
    high = sum((c >> _HALF for c in counts), jnp.int32(0))
    low = sum((c & ((1 << _HALF) - 1) for c in counts), jnp.int32(0))
    return Count(high + (low >> _HALF), low & ((1 << _HALF) - 1))


def _at_least(a: Count, b: Count) -> Array:
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def _minus(a: Count, b: Count) -> Count:
    """Return a - b, or 0 where that is negative."""
    low = a.low - b.low
    borrow = (low < 0).astype(jnp.int32)
    fits = _at_least(a, b)
    zero = jnp.int32(0)
    high = a.high - b.high - borrow
    return Count(jnp.where(fits, high, zero), jnp.where(fits, low + (borrow << _HALF), zero))


@jax.jit
def largest(scores: tuple[Array, ...], keep: Count) -> tuple[Array, ...]:
    """Return masks of the ``keep`` largest elements of all arrays together.

    Ties are kept from the first array and the first position (row-major) on.

    Args:
      scores: floating arrays of any shapes, each of fewer than 2^31 elements.
      keep: how many, between 0 and the number of elements.

    Returns:
      bool masks of the shapes of ``scores``, True for exactly ``keep`` elements.

    Cost: 33 passes over the scores, and one for each bit of the size of an array of whose
    ties only some are kept.
    """
    scores = tuple(lax.stop_gradient(x) for x in scores)
    wide = jnp.result_type(jnp.float32, *(x.dtype for x in scores))
    threshold = _threshold(scores, keep, wide)
    above = [x.astype(wide) > threshold for x in scores]
    ties = [_equal(x.astype(wide), threshold) for x in scores]
    need = _minus(keep, _total([_sum(x) for x in above]))
    masks = []
    for over, tie in zip(above, ties, strict=True):
        equal = _sum(tie)
        every = _at_least(need, _total([equal]))
        take = jnp.where(every, equal, (need.high << _HALF) + need.low)
        masks.append(over | _first(tie, take, equal))
        need = _minus(need, _total([take]))
    return tuple(masks)


def _sum(x: Array) -> Array:
    return jnp.sum(x, dtype=jnp.int32)


def _equal(x: Array, threshold: Array) -> Array:
    return (x == threshold) | ((threshold == -jnp.inf) & jnp.isnan(x))


def _threshold(scores: Sequence[Array], keep: Count, wide: jnp.dtype) -> Array:
    """Return the largest t for which at least ``keep`` elements are >= t (NaN if ``keep`` = 0).

    The scores are compared as floats with a float made from the candidate's bits, rather than
    as integers: turning them into integers would be hoisted out of the loop, into a copy.
    """
    bits = jnp.finfo(wide).bits
    word = jnp.uint32 if bits == 32 else jnp.uint64

    def value(key: Array) -> Array:
        sign = jnp.array(1 << (bits - 1), word)
        value = lax.bitcast_convert_type(jnp.where(key >= sign, key ^ sign, ~key), wide)
        lowest = ~lax.bitcast_convert_type(jnp.array(-jnp.inf, wide), word)
        return jnp.where(key <= lowest, -jnp.inf, value)

    def step(i: Array, key: Array) -> Array:
        bit = lax.shift_left(jnp.array(1, word), (bits - 1 - i).astype(word))
        t = value(key | bit)
        every = t == -jnp.inf  # NaN among them
        seen = _total([_sum((x.astype(wide) >= t) | every) for x in scores])
        return jnp.where(_at_least(seen, keep), key | bit, key)

    return value(lax.fori_loop(0, bits, step, jnp.array(0, word)))


def _first(tie: Array, take: Array, equal: Array) -> Array:
    """Return the first ``take`` of the ``equal`` true elements of ``tie``, in row-major order."""
    size = jnp.int32(tie.size)
    low = jnp.where(take == equal, size, 0)  # nothing to search where all or none are taken
    high = jnp.where(take == 0, 0, size)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = state
        middle = low + (high - low) // 2
        enough = _sum(tie & _before(middle, tie.shape)) >= take
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    end, _ = lax.while_loop(lambda state: state[0] < state[1], step, (low, high))
    return tie & _before(end, tie.shape)


def _before(end: Array, shape: Sequence[int]) -> Array:
    """Return which elements of ``shape`` lie before the row-major position ``end``.

    Axis by axis: a reshape would unshard, and positions would be hoisted out of the loop.
    """
    if not shape:
        return end > 0
    before = jnp.zeros(shape, bool)
    for axis in reversed(range(len(shape))):
        at = end // math.prod(shape[axis + 1 :])
        at = at % shape[axis] if axis else at  # beyond the last row if ``end`` is the size
        place = lax.broadcasted_iota(jnp.int32, shape, axis)
        before = (place < at) | ((place == at) & before)
    return before
