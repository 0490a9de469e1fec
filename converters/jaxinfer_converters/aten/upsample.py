"""Resizing: nearest, linear, cubic, and their antialiased kinds, in 1, 2 and 3 dimensions.

Each axis on its own: y[..., o, ...] = Σ_t w[o, t] x[..., i[o, t], ...] with taps ``i`` and
weights ``w`` made while tracing, in float32 as torch makes them. A given scale counts for the
positions even where the output's size was given too (``scale_factors`` of
``interpolate`` without ``recompute_scale_factor``). Half inputs are computed in float32 and
rounded once; uint8 is rounded after each axis, last axis first, as torch's CPU code does,
which computes with weights of 16 bits: ours may differ from it by 1.
Does not do: gradients of uint8. Source: PyTorch, ATen/native/UpSample.h and
cpu/UpSampleKernel.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinfer_converters.aten._common import Array, acc_dtype, cast, category
from jaxinfer_converters.aten._window import by_dims, space, take_windows

F = np.float32
UNROLLED = 64  # taps: a sum of slices is 4 times or more faster than a reduction (XLA:CPU)
# Positions, weights, and which of them count: windows may be shorter than the longest.
Taps = tuple[np.ndarray, np.ndarray, np.ndarray]


def _scale(n: int, out: int, align_corners: bool, scale: float | None) -> Any:
    """Input positions for one output position."""
    if align_corners:
        return F(n - 1) / F(out - 1) if out > 1 else F(0)
    return F(1.0 / scale) if scale is not None and scale > 0 else F(n) / F(out)


def _source(n: int, out: int, align_corners: bool, scale: float | None) -> np.ndarray:
    """Where each output position lies in the input, in float32."""
    step, o = _scale(n, out, align_corners, scale), np.arange(out, dtype=F)
    return step * o if align_corners else step * (o + F(0.5)) - F(0.5)


def _split(source: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    low = np.minimum(np.floor(source).astype(np.int64), n - 1)
    return low, np.clip(source - low.astype(F), F(0), F(1))


def linear_taps(n: int, out: int, align_corners: bool, scale: float | None) -> Taps:
    """The two neighbours, weighted 1 - f and f."""
    low, f = _split(np.maximum(_source(n, out, align_corners, scale), F(0)), n)
    index = np.stack([low, np.minimum(low + 1, n - 1)], 1)
    return index, np.stack([1 - f, f], 1), np.ones(index.shape, bool)


def cubic_weight(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel: (a+2)|t|^3 - (a+3)t^2 + 1 to 1, a|t|^3 - 5at^2 + 8a|t| - 4a to 2."""
    t, edge = np.abs(t), F(a)
    near = ((edge + 2) * t - (edge + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * edge - 4 * edge
    return np.where(t < 1, near, np.where(t < 2, far, F(0))).astype(F)


def cubic_taps(n: int, out: int, align_corners: bool, scale: float | None) -> Taps:
    """The four neighbours, clamped at the edges, weighted by Keys' kernel with a = -3/4."""
    low, f = _split(_source(n, out, align_corners, scale), n)
    offsets = np.arange(-1, 3)
    weights = cubic_weight(f[:, None] - offsets.astype(F), -0.75)
    return np.clip(low[:, None] + offsets, 0, n - 1), weights, np.ones(weights.shape, bool)


def antialiased(kernel: Callable[[np.ndarray], np.ndarray], width: int):
    """Taps of a kernel ``width`` wide that is stretched by the scale when shrinking."""

    def taps(n: int, out: int, align_corners: bool, scale: float | None) -> Taps:
        step = _scale(n, out, align_corners, scale)
        stretch = max(step, F(1))
        # Where torch's C++ mixes float with the double 0.5, so does this: windows end there.
        support = F(width / 2) * stretch
        center = (step.astype(float) * (np.arange(out) + 0.5)).astype(F)
        first = np.maximum(((center - support).astype(float) + 0.5).astype(np.int64), 0)
        last = np.minimum(((center + support).astype(float) + 0.5).astype(np.int64), n)
        index = first[:, None] + np.arange((last - first).max(initial=1))
        distance = (index.astype(F) - center[:, None]).astype(float) + 0.5
        weights = kernel((distance * (F(1) / stretch)).astype(F))
        used = index < last[:, None]
        weights = np.where(used, weights, F(0)).astype(F)
        total = weights.sum(1, keepdims=True)
        return np.minimum(index, n - 1), weights / np.where(total == 0, F(1), total), used

    return taps


def _triangle(t: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(t), F(0))


def _lanczos(t: np.ndarray) -> np.ndarray:
    return np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0)


linear_aa = antialiased(_triangle, 2)
cubic_aa = antialiased(lambda t: cubic_weight(t, -0.5), 4)
lanczos_aa = antialiased(_lanczos, 6)


def weighted(x: Array, axis: int, taps: Taps) -> Array:
    """y[..., o, ...] = Σ_t w[o, t] x[..., index[o, t], ...] over the taps that are used."""
    right = (1,) * (x.ndim - axis - 1)

    def term(index: np.ndarray, weights: np.ndarray, used: np.ndarray) -> Array:
        weights = weights.reshape(*weights.shape, *right).astype(x.dtype)
        product = take_windows(x, axis, index) * weights
        return product if used.all() else jnp.where(used.reshape(weights.shape), product, 0)

    if taps[0].shape[1] > UNROLLED:
        return term(*taps).sum(axis + 1)
    terms = [term(*(table[:, t] for table in taps)) for t in range(taps[0].shape[1])]
    return sum(terms[1:], terms[0])


def _resize(nd: int, x: Array, size, align_corners, scales, taps, channels_last) -> Array:
    """Resize the ``nd`` spatial axes, last first."""
    y = cast(x, acc_dtype(x.dtype) if category(x.dtype) == 2 else F)
    for back in range(1, nd + 1):
        axis = space(x.ndim, nd, channels_last)[1] - back
        n, out = x.shape[axis], size[nd - back]
        if n == out and taps is not cubic_taps:  # whatever the scale, as in torch's CPU code
            continue
        y = weighted(y, axis, taps(n, out, align_corners, scales[nd - back]))
        if category(x.dtype) != 2:
            y = jnp.clip(jnp.floor(y + 0.5), 0, jnp.iinfo(x.dtype).max)
    return cast(y, x.dtype)


def _nearest(nd: int, x: Array, size, scales, exact: bool, channels_last: bool) -> Array:
    """y[..., o, ...] = x[..., min(floor(o step), n - 1), ...]; exact: (o + 1/2) step."""
    for axis, out, scale in zip(
        range(*space(x.ndim, nd, channels_last)), size, scales, strict=True
    ):
        n = x.shape[axis]
        step, o = _scale(n, out, False, scale), np.arange(out, dtype=F)
        source = step * o
        if exact:  # rounded as by torch's fused multiply-add, which decides where ties fall
            source = (np.float64(step) * (o + 0.5) - 0.5).astype(F) + F(0.5)
        source = np.floor(source).astype(np.int64)
        index = np.minimum(source, n - 1)
        if out > n and out % n == 0 and np.array_equal(index, np.repeat(np.arange(n), out // n)):
            x = jnp.repeat(x, out // n, axis, total_repeat_length=out)
        else:
            x = take_windows(x, axis, index)
    return x


def _target(
    nd: int,
    x: Array,
    size: Sequence[int] | None,
    factors: Sequence[float] | None,
    channels_last: bool,
):
    """Output size and scales of a ``.vec`` overload: floor(n * factor)."""
    if factors is None:
        return size, (None,) * nd
    shape = x.shape[slice(*space(x.ndim, nd, channels_last))]
    return [int(n * f) for n, f in zip(shape, factors, strict=True)], factors


def _add_nearest(name: str, exact: bool) -> None:
    @by_dims(f"aten.{name}{{}}d.default")
    def default(nd, self, output_size, *scales, channels_last=False):
        return _nearest(nd, self, output_size, scales or (None,) * nd, exact, channels_last)

    @by_dims(f"aten.{name}{{}}d.vec")
    def vec(nd, input, output_size, scale_factors, *, channels_last=False):
        target = _target(nd, input, output_size, scale_factors, channels_last)
        return _nearest(nd, input, *target, exact, channels_last)


def _add_resize(name: str, nd: int, taps) -> None:
    @by_dims(f"aten.{name}.default", dims=(nd,))
    def default(nd, self, output_size, align_corners, *scales, channels_last=False):
        scales = scales or (None,) * nd
        return _resize(nd, self, output_size, align_corners, scales, taps, channels_last)

    @by_dims(f"aten.{name}.vec", dims=(nd,))
    def vec(nd, input, output_size, align_corners, scale_factors, *, channels_last=False):
        size, scales = _target(nd, input, output_size, scale_factors, channels_last)
        return _resize(nd, input, size, align_corners, scales, taps, channels_last)


_add_nearest("upsample_nearest", exact=False)
_add_nearest("_upsample_nearest_exact", exact=True)
_add_resize("upsample_linear1d", 1, linear_taps)
_add_resize("upsample_bilinear2d", 2, linear_taps)
_add_resize("upsample_trilinear3d", 3, linear_taps)
_add_resize("upsample_bicubic2d", 2, cubic_taps)
_add_resize("_upsample_bilinear2d_aa", 2, linear_aa)
_add_resize("_upsample_bicubic2d_aa", 2, cubic_aa)
_add_resize("_upsample_lanczos2d_aa", 2, lanczos_aa)
