"""Observers: the range of the values that pass a place, as pure functions of statistics.

    init(shape) -> stats           neutral: merge(init, s) = merge(s, init) = s
    update(stats, x) -> stats      merge(stats, statistics of x)
    merge(a, b) -> stats           associative; a came before b
    bounds(stats) -> (low, high)   what a quantizer should cover

Statistics are NamedTuples of arrays and nothing else, so they come out of ``lax.scan`` stacked,
are carried through ``lax.while_loop``, are returned by the branches of ``lax.cond`` (neutral
where a branch does not pass the place), are saved, and combine over batches (``merge_trees``).
``merge`` and ``bounds`` take stacked statistics as they are, without ``vmap``.

    absmax          (-a, a), a = max |x|: exact
    minmax          (min x, max x): exact
    moving_average  the mean over batches of their min and max, weights falling by 1 - rate
    percentile      the quantile of |x|, from a histogram: over by at most one bin
    mse             the clip of |x| with the least expected squared error for a number of levels

Statistics are float32 whatever the input. Values that are not finite, or too large for float32,
enter no range: they are counted in ``nonfinite``, and ``problems`` says so. An empty batch
changes nothing. Counts are exact up to 2**64 without 64-bit types.

Not done here: deciding on a scale and zero point (that is quantization), levels that are not
evenly spaced (mse), the divergence of distributions (TensorRT's entropy method), gradients.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, https://arxiv.org/abs/1712.05877 (moving averages
of ranges); Wu et al., "Integer Quantization for Deep Learning Inference: Principles and
Empirical Evaluation", 2020, https://arxiv.org/abs/2004.09602 (max and percentile compared);
Kingma and Ba, "Adam", 2015, https://arxiv.org/abs/1412.6980 (dividing by the sum of weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.core.table import RuleTable
from jaxinfer.numerics import _histogram
from jaxinfer.numerics._histogram import Count


class RangeStats(NamedTuple):
    """The least and largest value.

    Attributes:
      low: f32, +inf where nothing was seen.
      high: f32, -inf where nothing was seen.
      count: how many finite values were seen.
      nonfinite: how many values were not finite.
    """

    low: Array
    high: Array
    count: Count
    nonfinite: Count


class MovingStats(NamedTuple):
    """Weighted sums over batches; after ``weight`` they are means.

    Attributes:
      low: f32, sum of the weights times the least value of each batch.
      high: f32, sum of the weights times the largest value of each batch.
      weight: f32, sum of the weights: 0 where nothing was seen, 1 after many batches.
      count: how many finite values were seen.
      nonfinite: how many values were not finite.
    """

    low: Array
    high: Array
    weight: Array
    count: Count
    nonfinite: Count


class HistogramStats(NamedTuple):
    """A histogram of |x| over [0, 2**exponent), and the exact ends.

    Attributes:
      low: f32, least value.
      high: f32, largest value.
      exponent: i32, of the range.
      bins: counts, with one more axis (the last) than ``low``: 8 bytes for each bin.
      nonfinite: how many values were not finite.
    """

    low: Array
    high: Array
    exponent: Array
    bins: Count
    nonfinite: Count

    @property
    def count(self) -> Count:
        """How many finite values were seen."""
        return _histogram.total(self.bins)


Stats = RangeStats | MovingStats | HistogramStats


class Observer(NamedTuple):
    """The four functions of a calibration method; see the head of this module.

    Attributes:
      init: shape of the values -> neutral statistics.
      update: (stats, x) -> stats.
      merge: (earlier, later) -> stats.
      bounds: stats -> (low, high), f32 with the rank of x and size 1 on the axes that are not
        kept; NaN where nothing was seen.
    """

    init: Callable[[Sequence[int]], Any]
    update: Callable[[Any, Array], Any]
    merge: Callable[[Any, Any], Any]
    bounds: Callable[[Any], tuple[Array, Array]]


Method = tuple[Callable[[Array, tuple[int, ...]], Any], Callable[[Any], tuple[Array, Array]]]
"""Statistics of values x along axes (kept with size 1), and the bounds of statistics."""

METHODS: RuleTable[Callable[..., Method]] = RuleTable("calibration method")
"""Methods by name: functions from options to a ``Method``."""


def observer(method: str, *, axes: Sequence[int] = (), **options: Any) -> Observer:
    """Return the observer of a method.

    Args:
      method: a name in ``METHODS``.
      axes: the axes of x that are kept (channels); none for one range for all of x.
      options: of the method: ``moving_average(rate=0.01)``,
        ``percentile(percent=99.99, bins=2048)``, ``mse(levels=255, symmetric=True, bins=2048)``.

    Returns:
      An Observer. All its functions trace under jit, vmap and scan. ``update`` costs a pass or
      two over x; with a histogram also one scatter-add. Statistics take 24 bytes a channel,
      with a histogram 24 + 8 * bins.

    Raises:
      InputError: an unknown method or option, an option out of range; in ``update`` an axis
        that x does not have, a shape that does not fit the statistics, 2**32 values or more.
      InputTypeError: in ``update``: x is not of a float dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> seen = observer("minmax", axes=(-1,))
      >>> stats = seen.init((4, 2))
      >>> for batch in (jnp.array([[1.0, -2.0]]), jnp.array([[3.0, 5.0], [0.0, jnp.inf]])):
      ...     stats = seen.update(stats, batch)
      >>> [x.tolist() for x in seen.bounds(stats)]
      [[[0.0, -2.0]], [[3.0, 5.0]]]
      >>> problems(stats, "fc.weight, input")
      ['fc.weight, input: 1 of 6 values is not finite']
    """
    if method not in METHODS:
        near = METHODS.near(method) or sorted(METHODS)
        raise InputError(f"calibration: unknown method {method!r}; try {', '.join(near)}")
    try:
        measure, bounds = METHODS[method](**options)
    except TypeError as error:
        raise InputError(f"calibration {method!r}: {error}; got options {options}") from error

    def init(shape: Sequence[int]) -> Any:
        reduced = _reduced(len(shape), axes)
        kept = [1 if i in reduced else n for i, n in enumerate(shape)]
        stats = measure(jnp.full(kept, jnp.nan, jnp.float32), reduced)  # no range has a NaN
        return stats._replace(nonfinite=_histogram.zeros(kept))

    def update(stats: Any, x: Array) -> Any:
        seen = measure(_checked(x, method), _reduced(jnp.ndim(x), axes))
        if seen.low.shape != stats.low.shape:
            raise InputError(
                f"calibration {method!r}: statistics have shape {stats.low.shape}, those of "
                f"values of shape {jnp.shape(x)} with axes {tuple(axes)} kept have "
                f"{seen.low.shape}; give data of one shape, or begin with init{jnp.shape(x)}"
            )
        return merge(stats, seen)

    def checked_bounds(stats: Any) -> tuple[Array, Array]:
        low, high = bounds(stats)
        empty = stats.weight == 0 if isinstance(stats, MovingStats) else stats.low > stats.high
        return jnp.where(empty, jnp.nan, low), jnp.where(empty, jnp.nan, high)

    return Observer(init, update, merge, checked_bounds)


def merge(a: Any, b: Any) -> Any:
    """Return the statistics of the values of ``a`` and then ``b``; of any one kind.

    Exact and commutative but for ``MovingStats``, where the order counts and the sums round.

    Raises:
      InputTypeError: the two are not statistics of one kind.
      InputError: histograms of different numbers of bins.
    """
    if type(a) is not type(b) or not isinstance(a, Stats):
        raise InputTypeError(
            f"calibration: cannot merge {type(a).__name__} and {type(b).__name__}; merge "
            "statistics of one method"
        )
    nonfinite = _histogram.add(a.nonfinite, b.nonfinite)
    if isinstance(a, MovingStats):
        rest = 1 - b.weight
        low, high, weight = (late + rest * early for early, late in zip(a[:3], b[:3], strict=True))
        return MovingStats(low, high, weight, _histogram.add(a.count, b.count), nonfinite)
    low, high = jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high)
    if isinstance(a, RangeStats):
        return RangeStats(low, high, _histogram.add(a.count, b.count), nonfinite)
    if a.bins.low.shape[-1] != b.bins.low.shape[-1]:
        raise InputError(
            f"calibration: cannot merge histograms of {a.bins.low.shape[-1]} and "
            f"{b.bins.low.shape[-1]} bins; observe both with one number of bins"
        )
    bins, exponent = _histogram.merged(a.bins, b.bins, a.exponent, b.exponent)
    return HistogramStats(low, high, exponent, bins, nonfinite)


def merge_trees(a: Any, b: Any) -> Any:
    """Merge two pytrees of statistics of one structure, leaf by leaf."""
    return jax.tree.map(merge, a, b, is_leaf=lambda x: isinstance(x, Stats))


def unseen(stats: Stats) -> bool:
    """Return whether concrete statistics lack any range: some channel saw no finite value."""
    return not _histogram.to_int(stats.count).all()


def problems(stats: Stats, where: str, *, empty: bool = True) -> list[str]:
    """Return what is wrong with concrete statistics: values that are not finite, or none at all.

    Args:
      stats: of any method, stacked or not; not a tracer.
      where: what was observed, for the message (the leaf path, and the batch).
      empty: whether no value at all is a problem.
    """
    bad = int(_histogram.to_int(stats.nonfinite).sum())
    good = _histogram.to_int(stats.count)
    found = []
    if bad:
        verb = "is" if bad == 1 else "are"
        found.append(f"{where}: {bad} of {bad + int(good.sum())} values {verb} not finite")
    if empty and good.size and not good.all():
        which = "no finite value was seen"
        if good.any():
            first = tuple(int(i) for i in np.argwhere(good == 0)[0])
            which += f" for {int((good == 0).sum())} of {good.size} channels, the first at {first}"
        found.append(f"{where}: {which}")
    return found


@METHODS.register("absmax")
def absmax() -> Method:
    """(-a, a) with a = max |x|."""

    def bounds(stats: RangeStats) -> tuple[Array, Array]:
        high = jnp.maximum(jnp.abs(stats.low), jnp.abs(stats.high))
        return -high, high

    return _range, bounds


@METHODS.register("minmax")
def minmax() -> Method:
    """(min x, max x)."""
    return _range, lambda stats: (stats.low, stats.high)


@METHODS.register("moving_average")
def moving_average(rate: float = 0.01) -> Method:
    """Means over batches of min and max, where a batch weighs 1 - rate of the one after it.

    m <- (1 - rate) m + rate x, begun at 0 and divided by the sum of the weights (as in Adam),
    so the first batch alone gives its own range and no start value remains in the mean.
    """
    if not 0 < rate <= 1:
        raise InputError(f"calibration 'moving_average': rate must be in (0, 1], got {rate}")

    def measure(x: Array, axes: tuple[int, ...]) -> MovingStats:
        low, high, count, nonfinite = _range(x, axes)
        some = low <= high
        weight = jnp.where(some, jnp.float32(rate), 0)
        low, high = (weight * jnp.where(some, end, 0) for end in (low, high))
        return MovingStats(low, high, weight, count, nonfinite)

    def bounds(stats: MovingStats) -> tuple[Array, Array]:
        weight = jnp.where(stats.weight > 0, stats.weight, 1)
        return stats.low / weight, stats.high / weight

    return measure, bounds


@METHODS.register("percentile")
def percentile(percent: float = 99.99, bins: int = 2048) -> Method:
    """The least edge c of a bin with ``percent`` of all |x| below it, within min and max.

    With q the exact percentile (the least |x| that at most 100 - percent of the values exceed)
    and w the width of a bin, 0 <= c - q <= w and w <= 2 max |x| / bins (w = 2**-100 / bins for
    max |x| below 2**-101).
    """
    if not 0 < percent <= 100:
        raise InputError(f"calibration 'percentile': percent must be in (0, 100], got {percent}")

    def bounds(stats: HistogramStats) -> tuple[Array, Array]:
        width = _histogram.widths(stats.exponent, bins)
        return _clipped(stats, _histogram.quantile(stats.bins, width, 1 - percent / 100))

    return _histogram_of(bins, "percentile"), bounds


@METHODS.register("mse")
def mse(levels: int = 255, symmetric: bool = True, bins: int = 2048) -> Method:
    """The clip c of |x| with the least expected squared error of rounding to evenly spaced levels.

    Among c = max |x| * j / 128, with the values spread evenly over each bin of the histogram.
    Symmetric: ``levels`` levels from -c to c (255 of int8, 15 of int4). Else: ``levels`` over
    [max(-c, min x), min(c, max x)] and zero, so values of one sign get all of them (256: uint8).
    """
    if levels < 2 or (symmetric and levels % 2 == 0):
        need = "odd and at least 3, so that zero is a level" if symmetric else "at least 2"
        raise InputError(f"calibration 'mse': levels must be {need}, got {levels}")

    def bounds(stats: HistogramStats) -> tuple[Array, Array]:
        width = _histogram.widths(stats.exponent, bins)
        ends = _seen(stats)
        return _clipped(stats, _histogram.best_clip(stats.bins, width, *ends, levels, symmetric))

    return _histogram_of(bins, "mse"), bounds


def _range(x: Array, axes: tuple[int, ...]) -> RangeStats:
    """Measure min and max along axes."""
    finite = jnp.isfinite(x)
    low = jnp.min(x, axis=axes, keepdims=True, initial=jnp.inf, where=finite)
    high = jnp.max(x, axis=axes, keepdims=True, initial=-jnp.inf, where=finite)
    counts = (_histogram.of_mask(mask, axes) for mask in (finite, ~finite))
    return RangeStats(low, high, *counts)


def _histogram_of(bins: int, method: str) -> Callable[[Array, tuple[int, ...]], HistogramStats]:
    """Return the function that measures a histogram along axes."""
    if bins not in (2**n for n in range(2, 17)):
        raise InputError(
            f"calibration {method!r}: bins must be a power of two from 4 to 65536, got {bins}"
        )

    def measure(x: Array, axes: tuple[int, ...]) -> HistogramStats:
        low, high, _, nonfinite = _range(x, axes)
        kept = low.shape
        largest = jnp.where(low <= high, jnp.maximum(jnp.abs(low), jnp.abs(high)), 0)
        exponent = _histogram.exponent_of(largest)
        order = (*(i for i in range(x.ndim) if i not in axes), *axes)
        rows, each = math.prod(kept), math.prod(x.shape[i] for i in axes)
        flat = x.transpose(order).reshape(rows, each)
        counts = _histogram.counted(jnp.abs(flat), jnp.isfinite(flat), exponent.reshape(rows), bins)
        return HistogramStats(
            low, high, exponent, Count(*(c.reshape(*kept, bins) for c in counts)), nonfinite
        )

    return measure


def _seen(stats: HistogramStats) -> tuple[Array, Array]:
    """Return the ends, 0 where nothing was seen."""
    some = stats.low <= stats.high
    return jnp.where(some, stats.low, 0), jnp.where(some, stats.high, 0)


def _clipped(stats: HistogramStats, clip: Array) -> tuple[Array, Array]:
    """Return [-clip, clip] within what was seen."""
    low, high = _seen(stats)
    high = jnp.maximum(jnp.minimum(high, clip), -clip)
    return jnp.minimum(jnp.maximum(low, -clip), high), high


def _checked(x: Array, method: str) -> Array:
    """Return x in float32."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputTypeError(
            f"calibration {method!r}: observes float values, got {x.dtype}; leave this place out"
        )
    if math.prod(x.shape) >= 2**32:
        raise InputError(
            f"calibration {method!r}: at most 2**32 - 1 values at a time, got {x.shape}; "
            "give smaller batches"
        )
    return x.astype(jnp.float32)


def _axes(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    """Return the axes that are kept, counted from the left."""
    if any(not -ndim <= axis < ndim for axis in axes):
        raise InputError(
            f"calibration: axes {tuple(axes)} are to be kept, the values have rank {ndim}; "
            "name axes that they have"
        )
    return tuple(axis % ndim for axis in axes)


def _reduced(ndim: int, axes: Sequence[int]) -> tuple[int, ...]:
    kept = _axes(ndim, axes)
    return tuple(i for i in range(ndim) if i not in kept)
