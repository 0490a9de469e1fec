"""Pooling: maximum (values, and torch's flat indices), average, adaptive, unpooling.

Windows of ``kernel`` positions ``dilation`` apart start every ``stride`` from ``-padding``;
in ceil mode the last may reach over the right edge. Adaptive windows run from
``floor(o n / out)`` to ``ceil((o + 1) n / out)``. Averages accumulate in float32.
Indices are flat over the unpadded spatial axes, the first maximum in row order; a NaN is the
maximum of its window (the last one, if several), as in torch.
Does not do: strides of zero, pooling of bool. Source: PyTorch, ATen/native/Pool.h,
AdaptiveAveragePooling.cpp, DilatedMaxPool2d.cpp, FractionalMaxPool2d.cpp.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import (
    Array,
    acc_dtype,
    cast,
    category,
    expand_tuple,
    prod,
    rule,
)
from jaxinfer_converters.aten._window import (
    adaptive_windows,
    by_dims,
    geometry,
    output_size,
    pool_windows,
    right_padding,
    space,
    take_windows,
)

INDEX = "int64"


def lowest(dtype: Any) -> Any:
    """The value below all others of a dtype: -inf, or the smallest integer."""
    if category(dtype) == 2:
        return np.array(-np.inf, dtype)[()]
    return np.array(jnp.iinfo(dtype).min, dtype)[()]


def _reduce_windows(
    x: Array, fn, init, sizes, strides, paddings, dilations, outs, channels_last=False
) -> Array:
    """Reduce windows over the spatial axes of x."""
    first, stop = space(x.ndim, len(sizes), channels_last)
    lead, shape, trail = first, x.shape[first:stop], x.ndim - stop
    if x.size == 0:
        return jnp.zeros((*x.shape[:lead], *outs, *x.shape[stop:]), x.dtype)
    pads = [
        (p, right_padding(n, o, k, s, p, d))
        for n, o, k, s, p, d in zip(shape, outs, sizes, strides, paddings, dilations, strict=True)
    ]
    return lax.reduce_window(
        x,
        init,
        fn,
        (*(1,) * lead, *sizes, *(1,) * trail),
        (*(1,) * lead, *strides, *(1,) * trail),
        [*[(0, 0)] * lead, *pads, *[(0, 0)] * trail],
        window_dilation=(*(1,) * lead, *dilations, *(1,) * trail),
    )


def _outputs(shape, sizes, strides, paddings, dilations, ceil_mode: bool) -> tuple[int, ...]:
    axes = zip(shape, sizes, strides, paddings, dilations, strict=True)
    outs = tuple(output_size(*axis, ceil_mode) for axis in axes)
    if min(outs) < 1:
        raise ValueError(f"windows of {sizes} do not fit the input {shape}: no output is left")
    return outs


@by_dims("aten.max_pool{}d.default")
def max_pool(
    nd,
    self,
    kernel_size,
    stride=(),
    padding=0,
    dilation=1,
    ceil_mode=False,
    *,
    channels_last=False,
):
    """y[..., o] = max_j x[..., s o - p + d j], o and j over the spatial axes."""
    window = geometry(nd, kernel_size, stride, padding, dilation)
    outs = _outputs(self.shape[slice(*space(self.ndim, nd, channels_last))], *window, ceil_mode)
    return _reduce_windows(self, lax.max, lowest(self.dtype), *window, outs, channels_last)


def _pick(x: Array, at: Array, axis: int, index: np.ndarray) -> tuple[Array, Array]:
    """Maximum of each window along one axis, and the flat index that came with it."""
    windows, places = take_windows(x, axis, index), take_windows(at, axis, index)
    best = jnp.argmax(windows, axis + 1, keepdims=True)
    if category(x.dtype) == 2:
        nan = jnp.isnan(windows)
        last = index.shape[1] - 1 - jnp.argmax(jnp.flip(nan, axis + 1), axis + 1, keepdims=True)
        best = jnp.where(nan.any(axis + 1, keepdims=True), last, best)
    pick = functools.partial(jnp.take_along_axis, indices=best, axis=axis + 1)
    return pick(windows).squeeze(axis + 1), pick(places).squeeze(axis + 1)


def _max_indices(
    x: Array, tables: list[np.ndarray], channels_last: bool = False
) -> tuple[Array, Array]:
    """Maxima and flat indices of windows given by a table for each of the spatial axes.

    The last axis goes first: the winner of a row meets the winners of the other rows.
    """
    first, stop = space(x.ndim, len(tables), channels_last)
    shape, trail = x.shape[first:stop], (1,) * (x.ndim - stop)
    dtype = dtypes.canonical(INDEX)
    places = jnp.arange(prod(shape), dtype=dtype).reshape(*shape, *trail)
    at = jnp.broadcast_to(places, x.shape)
    if x.size == 0:
        outs = (*x.shape[:first], *(len(table) for table in tables), *x.shape[stop:])
        return jnp.zeros(outs, x.dtype), jnp.zeros(outs, dtype)
    for back, table in enumerate(reversed(tables), 1):
        x, at = _pick(x, at, stop - back, table)
    return x, at


@by_dims("aten.max_pool{}d_with_indices.default")
def max_pool_with_indices(
    nd,
    self,
    kernel_size,
    stride=(),
    padding=0,
    dilation=1,
    ceil_mode=False,
    *,
    channels_last=False,
):
    """max_pool, and the flat place of each maximum."""
    shape = self.shape[slice(*space(self.ndim, nd, channels_last))]
    window = geometry(nd, kernel_size, stride, padding, dilation)
    outs = _outputs(shape, *window, ceil_mode)
    tables = [pool_windows(*axis) for axis in zip(shape, outs, *window, strict=True)]
    values = max_pool(
        nd, self, kernel_size, stride, padding, dilation, ceil_mode, channels_last=channels_last
    )
    return values, _max_indices(self, tables, channels_last)[1]


@by_dims("aten.avg_pool{}d.default")
def avg_pool(
    nd,
    self,
    kernel_size,
    stride=(),
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    *,
    channels_last=False,
):
    """y[..., o] = Σ_j x[..., s o - p + j] / count(o), or / divisor_override."""
    window = geometry(nd, kernel_size, stride, padding)
    sizes, strides, paddings, _ = window
    first, last = space(self.ndim, nd, channels_last)
    shape = self.shape[first:last]
    outs = _outputs(shape, *window, ceil_mode)
    x = cast(self, acc_dtype(self.dtype))
    zero = np.zeros((), x.dtype)[()]
    total = _reduce_windows(x, lax.add, zero, *window, outs, channels_last)
    count = np.ones((), np.int64)
    for n, out, k, s, p in zip(shape, outs, sizes, strides, paddings, strict=True):
        start = np.arange(out) * s - p
        end = np.minimum(start + k, n + p)
        if not count_include_pad:
            start, end = np.maximum(start, 0), np.minimum(end, n)
        count = count[..., None] * np.maximum(end - start, 1)
    if divisor_override is not None:
        count = np.full_like(count, divisor_override)
    count = count.reshape(*count.shape, *(1,) * (x.ndim - last))
    count = jnp.broadcast_to(jnp.asarray(count, x.dtype), total.shape)
    return cast(lax.div(total, count), self.dtype)


@by_dims("aten._adaptive_avg_pool{}d.default", dims=(2, 3))
@by_dims("aten.adaptive_avg_pool{}d.default")
def adaptive_avg_pool(nd, self, output_size, *, channels_last=False):
    """y[..., o] = mean of x[..., floor(o n / out) : ceil((o + 1) n / out)]."""
    x = cast(self, acc_dtype(self.dtype))
    outs = expand_tuple(output_size, nd)
    for axis, out in zip(range(*space(self.ndim, nd, channels_last)), outs, strict=True):
        index, valid = adaptive_windows(x.shape[axis], out)
        windows = take_windows(x, axis, index)
        right = (1,) * (x.ndim - axis - 1)
        if not valid.all():
            windows = jnp.where(valid.reshape(*valid.shape, *right), windows, 0)
        count = valid.sum(1).astype(x.dtype)
        x = windows.sum(axis + 1) / count.reshape(-1, *right)
    return cast(x, self.dtype)


@by_dims("aten.adaptive_max_pool{}d.default")
def adaptive_max_pool(nd, self, output_size, *, channels_last=False):
    """Maxima of the adaptive windows, and their flat places."""
    shape = self.shape[slice(*space(self.ndim, nd, channels_last))]
    sizes = zip(shape, expand_tuple(output_size, nd), strict=True)
    return _max_indices(self, [adaptive_windows(*size)[0] for size in sizes], channels_last)


def _fractional_starts(sample: Array, n: int, kernel: int, out: int) -> Array:
    """trunc((o + u) a) - trunc(u a), a = (n - kernel) / (out - 1); the last is n - kernel."""
    if out == 1:
        return jnp.full((1,), n - kernel)
    alpha = np.float32(n - kernel) / np.float32(out - 1)
    u = sample.astype("float32")
    starts = jnp.trunc((jnp.arange(out) + u) * alpha) - jnp.trunc(u * alpha)
    return starts.astype("int32").at[-1].set(n - kernel)


@by_dims("aten.fractional_max_pool{}d.default", dims=(2, 3))
def fractional_max_pool(nd, self, kernel_size, output_size, random_samples):
    """Maxima of windows at pseudo-random places drawn from samples, and their flat places."""
    shape = self.shape[self.ndim - nd :]
    sizes, outs = expand_tuple(kernel_size, nd), expand_tuple(output_size, nd)
    dtype = dtypes.canonical(INDEX)

    def plane(x: Array, samples: Array) -> tuple[Array, Array]:
        flat = jnp.zeros((1,) * (2 * nd), "int32")
        for axis, (n, k, out) in enumerate(zip(shape, sizes, outs, strict=True)):
            # In 2d the first sample is the last axis's, in 3d the first's (ATen's own order).
            sample = samples[1 - axis if nd == 2 else axis]
            starts = _fractional_starts(sample, n, k, out)
            index = starts[:, None] + jnp.arange(k)
            place = [1] * (2 * nd)
            place[axis], place[nd + axis] = out, k
            flat = flat * n + index.reshape(place)
        flat = flat.reshape(prod(outs), prod(sizes))
        values = x.reshape(-1).at[flat].get(mode="promise_in_bounds")
        windows = np.arange(flat.size).reshape(flat.shape)
        best, at = _pick(values.reshape(-1), flat.reshape(-1), 0, windows)
        return best.reshape(outs), at.reshape(outs).astype(dtype)

    lead = self.shape[: self.ndim - nd]
    planes = prod(lead)
    values, at = jax.vmap(plane)(self.reshape(planes, *shape), random_samples.reshape(planes, nd))
    return values.reshape(*lead, *outs), at.reshape(*lead, *outs)


def _scatter(self: Array, indices: Array, size: tuple[int, ...]) -> Array:
    """y[..., indices[..., p]] = x[..., p], zero elsewhere; indices are flat over ``size``."""
    nd = len(size)
    lead = self.shape[: self.ndim - nd]
    rows = (prod(lead), prod(self.shape[self.ndim - nd :]))
    put = lambda values, at: jnp.zeros(prod(size), self.dtype).at[at].set(values)
    return jax.vmap(put)(self.reshape(rows), indices.reshape(rows)).reshape(*lead, *size)


@rule("aten.max_unpool2d.default")
def max_unpool2d(self, indices, output_size) -> Array:
    """y[..., indices[..., p]] = x[..., p], zero elsewhere."""
    return _scatter(self, indices, tuple(output_size))


@rule("aten.max_unpool3d.default")
def max_unpool3d(self, indices, output_size, stride, padding) -> Array:
    """y[..., indices[..., p]] = x[..., p], zero elsewhere."""
    return _scatter(self, indices, tuple(output_size))
