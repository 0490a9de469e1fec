"""Arrays to QTensors: scales from the values, and codes from the scales.

``code = clip(round(x / scale) + zero_point)``, with one scale for a tile of the array:

- ``absmax_scale``: ``max|x| / bound``, no zero point;
- ``minmax_scale``: ``(max - min) / (high - low)`` over a range that holds 0, with a zero point;
- ``mse_scale``: either of them, shrunk by the factor with the least squared error.

Statistics are taken in float32 (float64 for float64), whatever the dtype of ``x``. A tile that
does not fill is padded with zeros, which change no statistic: the range holds 0 in any case,
and 0 has an exact code.

Sources: B. Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, 2018, https://arxiv.org/abs/1712.05877; Y. Choukroun et al.,
Low-bit Quantization of Neural Networks for Efficient Inference, 2019,
https://arxiv.org/abs/1902.06822 (least squared error).

What it does not do: look at activations (``calibration.py``), round by anything but to the
nearest code, or check for NaN and infinity: a tile that holds one decodes to NaN, or to
nothing of use. ``nonfinite`` counts them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core.dtypes import dtype_of
from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.numerics import _tiling
from jaxinfer.numerics.formats import Format, decode, encode, format_of
from jaxinfer.numerics.packing import best_axis, pack
from jaxinfer.numerics.qtensor import QTensor

Array = jax.Array
Scales = tuple[Array, Array | None]

SHRINK = tuple(1 - 0.01 * step for step in range(61))
"""Factors that ``mse_scale`` tries: 1 to 0.4."""


def quantize(
    x: Any,
    format: str,
    *,
    axes: Sequence[int],
    tiles: Mapping[int, int] | None = None,
    symmetric: bool | None = None,
    dtype: Any = None,
    scale: Any = None,
    zero_point: Any = None,
) -> QTensor:
    """Quantize an array, with one scale for all elements along ``axes`` (or for a tile of them).

    For integers the error is at most ``scale / 2``, up to float32 rounding of ``x / scale``
    (by the reciprocal: a relative 2**-22 of it). The symmetric range is -127 to 127 for int8,
    -7 to 7 for int4. A tile of zeros has scale 1 and decodes to exact zeros. Codes of 4 bits
    are packed two a byte, if some axis allows it.

    Args:
      x: floats[...] of rank 0 or more.
      format: name of a format.
      axes: axes that share a scale, for a matrix the contracted ones; may be negative. All
        axes: one scale for the array. None of them: a scale for each element.
      tiles: {axis: size} for one scale to every ``size`` elements along one of ``axes``. A size
        that does not divide pads the codes; one beyond the axis is the axis.
      symmetric: whether there is no zero point; by default true but for unsigned formats.
      dtype: float dtype that the result stands for, by default that of ``x``.
      scale: floats of the scale's shape to use instead of statistics (of any float dtype).
      zero_point: integers of the scale's shape, to go with ``scale``.

    Returns:
      A QTensor of ``x``'s shape. Cost: two passes over ``x``; one compilation for each shape
      outside ``jit``. Beside the result it takes at most two copies of ``x`` in float32 while it
      runs, and none for float32 on CPUs where no tile is padded.

    Raises:
      InputTypeError: ``x`` or ``dtype`` is not of floats.
      InputError: unknown format, axes or tiles that do not fit, a format that has no symmetric
        (or no asymmetric) range, a scale of another shape.

    >>> q = quantize(jnp.array([[1.0, -2.0], [0.5, 0.0]]), "int8", axes=(1,))
    >>> q.qvalue.tolist()
    [[64, -127], [127, 0]]
    >>> q
    QTensor(int8[2,2], float32, tiles=(1, 2))
    """
    x, fmt, groups, sizes = _prepare(x, format, axes, tiles)
    symmetric = _symmetric(fmt, symmetric if zero_point is None else False)
    name = np.dtype(x.dtype if dtype is None else dtype).name
    if not jnp.issubdtype(dtype_of(name), jnp.floating):
        raise InputTypeError(f"quantize: required a float dtype, got {name}")
    packed = best_axis(sizes, groups) if fmt.bits == 4 else None
    if scale is None:
        if zero_point is not None:
            raise InputError("quantize: zero_point is given, required scale with it")
        qvalue, scale, zero_point = _quantized(x, fmt, groups, sizes, symmetric, packed)
    else:
        scale = jnp.asarray(scale)
        zero_point = None if zero_point is None else jnp.asarray(zero_point)
        if (zero_point is None) != symmetric:
            raise InputError(
                f"quantize: scale is given for a range of {format} that is not symmetric, "
                "required zero_point with it (zeros, if 0 is the smallest value)"
            )
        if not jnp.issubdtype(scale.dtype, jnp.floating):
            raise InputTypeError(f"quantize: required a scale of floats, got {scale.dtype}")
        if zero_point is not None and not jnp.issubdtype(zero_point.dtype, jnp.integer):
            raise InputTypeError(f"quantize: required integer zero_point, got {zero_point.dtype}")
        for what, value in (("scale", scale), ("zero_point", zero_point)):
            if value is not None and value.shape != groups:
                raise InputError(
                    f"quantize: {what} of shape {value.shape}, required {groups} "
                    f"for x of shape {x.shape}, axes {tuple(axes)} and tiles {tiles}"
                )
        qvalue = _codes(x, scale, zero_point, fmt, sizes, packed)
    packed = None if packed is None else packed - x.ndim
    made = QTensor(qvalue, scale, zero_point, format, name, packed)
    return made._with(qvalue, scale, zero_point, x.shape, packed)


def absmax_scale(
    x: Any, format: str, *, axes: Sequence[int], tiles: Mapping[int, int] | None = None
) -> Scales:
    """Return ``max|x| / bound`` for each tile, and None (there is no zero point).

    Args:
      x: floats[...].
      format: name of a format with a symmetric range.
      axes: axes that share a scale.
      tiles: {axis: size}, as for ``quantize``.

    Returns:
      (f32[...], None): 1 for a tile of zeros, at least the smallest normal number.

    >>> absmax_scale(jnp.array([[1.0, -254.0]]), "int8", axes=(1,))[0].tolist()
    [[2.0]]
    """
    x, fmt, groups, sizes = _prepare(x, format, axes, tiles)
    return _extremes(x, fmt, groups, sizes, _symmetric(fmt, True))


def minmax_scale(
    x: Any, format: str, *, axes: Sequence[int], tiles: Mapping[int, int] | None = None
) -> Scales:
    """Return scale and zero point of ``[min(x, 0), max(x, 0)]`` for each tile.

    ``scale = (max - min) / (high - low)``, ``zero_point = round(low - min / scale)``.

    Args:
      x: floats[...].
      format: name of an integer format.
      axes: axes that share a scale.
      tiles: {axis: size}, as for ``quantize``.

    Returns:
      (f32[...], int[...]): the zero point in the format's storage dtype.
    """
    x, fmt, groups, sizes = _prepare(x, format, axes, tiles)
    return _extremes(x, fmt, groups, sizes, _symmetric(fmt, False))


def mse_scale(
    x: Any,
    format: str,
    *,
    axes: Sequence[int],
    tiles: Mapping[int, int] | None = None,
    symmetric: bool | None = None,
    factors: Sequence[float] = SHRINK,
) -> Scales:
    """Return the scale, shrunk by one of ``factors``, with the least squared error of each tile.

    Args:
      x: floats[...].
      format: name of a format.
      axes: axes that share a scale.
      tiles: {axis: size}, as for ``quantize``.
      symmetric: as for ``quantize``.
      factors: of the range from absmax or minmax; the first of equals is taken, so with 1 as
        the first the error is never above theirs.

    Returns:
      (f32[...], None or int[...]). Cost: ``len(factors)`` passes over ``x``.

    Raises:
      InputError: as ``quantize``; ``factors`` is empty or holds a number that is not positive.
    """
    x, fmt, groups, sizes = _prepare(x, format, axes, tiles)
    if not factors or min(factors) <= 0:
        raise InputError(f"mse_scale: required positive factors, got {tuple(factors)}")
    return _search(x, fmt, groups, sizes, _symmetric(fmt, symmetric), tuple(factors))


@jax.jit
def nonfinite(x: Any) -> Array:
    """Return how many elements are NaN or infinite: i32[] (fewer than 2**31 elements).

    >>> int(nonfinite(jnp.array([1.0, jnp.nan, -jnp.inf])))
    2
    """
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.int32)


def _prepare(
    x: Any, format: str, axes: Sequence[int], tiles: Mapping[int, int] | None
) -> tuple[Array, Format, tuple[int, ...], tuple[int, ...]]:
    """Check the arguments; return x, the format, scales along each axis, and padded sizes."""
    fmt = format_of(format)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputTypeError(f"quantize: required an array of floats, got {x.dtype}")
    rank = x.ndim
    for axis in (*axes, *(tiles or ())):
        if not -rank <= axis < rank:
            raise InputError(f"quantize: axis {axis}, required less than rank {rank} of {x.shape}")
    shared = {axis % rank for axis in axes}
    runs = {axis % rank: size for axis, size in (tiles or {}).items()}
    if len(shared) != len(axes) or len(runs) != len(tiles or ()):
        raise InputError(f"quantize: axes {tuple(axes)} and tiles {tiles}, required no axis twice")
    for axis, size in runs.items():
        if axis not in shared:
            raise InputError(f"quantize: tiles along axis {axis}, required one of axes {axes}")
        if size < 1:
            raise InputError(f"quantize: tile size {size} of axis {axis}, required 1 or more")
    groups, sizes = [], []
    for axis, size in enumerate(x.shape):
        run = min(runs.get(axis, size), size) if axis in shared else 1
        count = 1 if run == size and axis in shared else -(-size // run)
        groups.append(count)
        sizes.append(count * run)
    return x, fmt, tuple(groups), tuple(sizes)


def _symmetric(fmt: Format, symmetric: bool | None) -> bool:
    if symmetric is None:
        return fmt.bound is not None
    if symmetric and fmt.bound is None:
        raise InputError(
            f"quantize: {fmt.name} has no symmetric range; required symmetric=False, "
            f"or {fmt.name.removeprefix('u')}"
        )
    if not symmetric and fmt.kind != "integer":
        raise InputError(
            f"quantize: {fmt.name} has no zero point; required symmetric=True or an integer format"
        )
    return symmetric


def _tiled(x: Array, groups: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """Return x in at least float32, padded with zeros, each axis split in tiles."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if x.shape != sizes:
        x = jnp.pad(x, [(0, size - n) for size, n in zip(sizes, x.shape, strict=True)])
    return x.reshape(_tiling.split(sizes, groups).values).astype(wide)


def _to_scale(
    high: Array, low: Array | None, fmt: Format, factor: Any = 1.0
) -> tuple[Array, Array | None]:
    """Return scale and zero point of the range ``[low, high] * factor`` (``low`` None: -high)."""
    tiny = jnp.finfo(high.dtype).tiny
    steps = fmt.bound if low is None else fmt.high - fmt.low
    assert steps is not None  # _symmetric has seen to it
    width = high * (1 / steps) if low is None else high * (1 / steps) - low * (1 / steps)
    scale = jnp.where(width == 0, 1, jnp.maximum(width * factor, tiny)).astype(high.dtype)
    if low is None:
        return scale, None
    zero = jnp.clip(jnp.round(fmt.low - low * factor / scale), fmt.low, fmt.high)
    return scale, zero.astype(fmt.storage)


def _range(tiled: Array, shared: tuple[int, ...], symmetric: bool) -> tuple[Array, Array | None]:
    high = jnp.max(tiled, shared, keepdims=True, initial=0)
    low = jnp.min(tiled, shared, keepdims=True, initial=0)
    # XLA on CPUs would write out abs(tiled)
    return (jnp.maximum(high, -low), None) if symmetric else (high, low)


def divide(tiled: Array, scale: Array) -> Array:
    """Return ``tiled / scale`` by the reciprocal, as XLA would in some programs and not others.

    A quarter of both keeps the reciprocal of the largest scales a normal number.
    """
    part = jnp.where(scale > 1, 0.25, 1).astype(scale.dtype)
    return (tiled * part) * (1 / jnp.where(scale == 0, 1, scale * part))


_static = functools.partial(jax.jit, static_argnames=("fmt", "groups", "sizes", "symmetric"))


@_static
def _extremes(
    x: Array, fmt: Format, groups: tuple[int, ...], sizes: tuple[int, ...], symmetric: bool
) -> Scales:
    shared = _tiling.split(sizes, groups).shared
    scale, zero = _to_scale(*_range(_tiled(x, groups, sizes), shared, symmetric), fmt)
    return scale.reshape(groups), None if zero is None else zero.reshape(groups)


@functools.partial(_static, static_argnames=("fmt", "groups", "sizes", "symmetric", "factors"))
def _search(
    x: Array,
    fmt: Format,
    groups: tuple[int, ...],
    sizes: tuple[int, ...],
    symmetric: bool,
    factors: tuple[float, ...],
) -> Scales:
    tiled = _tiled(x, groups, sizes)
    shared = _tiling.split(sizes, groups).shared
    high, low = _range(tiled, shared, symmetric)
    grid = jnp.asarray(factors, tiled.dtype)

    def error(factor: Array) -> Array:
        scale, zero = _to_scale(high, low, fmt, factor)
        got = decode(encode(divide(tiled, scale), fmt, zero), fmt, tiled.dtype)
        got = got if zero is None else got - zero.astype(got.dtype)
        # in units of the range, so that squares neither overflow nor vanish
        unit = jnp.where(high == 0, 1, high) if low is None else jnp.maximum(high, -low)
        unit = jnp.where(unit == 0, 1, unit)
        return jnp.sum(((got * scale - tiled) / unit) ** 2, shared, keepdims=True)

    def step(best: tuple[Array, Array], factor: Array) -> tuple[tuple[Array, Array], None]:
        least, chosen = best
        found = error(factor)
        better = found < least
        return (jnp.where(better, found, least), jnp.where(better, factor, chosen)), None

    start = (error(grid[0]), jnp.full(high.shape, grid[0]))
    (_, chosen), _ = lax.scan(step, start, grid[1:])
    scale, zero = _to_scale(high, low, fmt, chosen)
    return scale.reshape(groups), None if zero is None else zero.reshape(groups)


@functools.partial(jax.jit, static_argnames=("fmt", "sizes", "packed"))
def _codes(
    x: Array,
    scale: Array,
    zero_point: Array | None,
    fmt: Format,
    sizes: tuple[int, ...],
    packed: int | None,
) -> Array:
    tiled = _tiled(x, scale.shape, sizes)
    shape = _tiling.split(sizes, scale.shape).scale
    step = scale.astype(tiled.dtype).reshape(shape)
    zero = None if zero_point is None else zero_point.reshape(shape)
    codes = encode(divide(tiled, step), fmt, zero).reshape(sizes)
    return codes if packed is None else pack(codes, packed)


@functools.partial(jax.jit, static_argnames=("fmt", "groups", "sizes", "symmetric", "packed"))
def _quantized(
    x: Array,
    fmt: Format,
    groups: tuple[int, ...],
    sizes: tuple[int, ...],
    symmetric: bool,
    packed: int | None,
) -> tuple[Array, Array, Array | None]:
    """Statistics and codes in one program: half the compiling."""
    scale, zero = _extremes(x, fmt, groups, sizes, symmetric)
    return _codes(x, scale, zero, fmt, sizes, packed), scale, zero
