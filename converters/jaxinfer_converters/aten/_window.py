"""Sliding windows along one axis: how many there are, what each covers, how to get them.

Windows are described by a static table ``index[out, k]`` of positions, so that pooling of any
kind (ceil mode, dilation, adaptive) shares one gather per axis: ``x[..., index, ...]``. A
table that only partitions the axis, in order, is a reshape. Axes are treated one by one, so
the work grows with the sum of the kernel's sizes, not with their product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, expand_tuple, rule

Dims = tuple[int, ...]


def output_size(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    """floor or ceil of (n + 2 p - d (k - 1) - 1) / s, + 1.

    In ceil mode a window that would start in the right padding is dropped.
    Source: ATen/native/Pool.h, ``pooling_output_shape_pad_lr``.
    """
    span = n + 2 * padding - dilation * (kernel - 1) - 1
    out = (span + (stride - 1 if ceil else 0)) // stride + 1
    return out - 1 if ceil and (out - 1) * stride >= n + padding else out


def right_padding(n: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How far the last window reaches beyond n; 0 if it does not."""
    return max((out - 1) * stride + dilation * (kernel - 1) + 1 - n - padding, 0)


def shifted(x: Array, axis: int, kernel: int, stride: int, dilation: int, out: int) -> list[Array]:
    """[x[..., j d + s o, ...] for each j < kernel]: strided slices of a padded axis."""
    return [
        lax.slice_in_dim(x, j * dilation, j * dilation + (out - 1) * stride + 1, stride, axis)
        for j in range(kernel)
    ]


def pad_axes(x: Array, widths: dict[int, tuple[int, int]], value: Array) -> Array:
    """Pad (or crop, where negative) the axes in ``widths`` with ``value``."""
    return lax.pad(x, value, [(*widths.get(axis, (0, 0)), 0) for axis in range(x.ndim)])


def adaptive_windows(n: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """index[o, :] = floor(o n / out) .. ceil((o + 1) n / out) - 1, and which entries count.

    Windows of unequal length are filled up with their last position, which changes no maximum.
    """
    start = np.arange(out) * n // max(out, 1)
    stop = -(-(np.arange(out) + 1) * n // max(out, 1))
    width = int((stop - start).max(initial=0))
    index = start[:, None] + np.arange(width)
    valid = index < stop[:, None]
    return np.where(valid, index, stop[:, None] - 1), valid


def pool_windows(n: int, out: int, kernel: int, stride: int, padding: int, dilation: int):
    """index[o, j] = s o - p + d j; positions in the padding become the nearest one inside."""
    index = np.arange(out)[:, None] * stride - padding + np.arange(kernel) * dilation
    inside = (index >= 0) & (index < n)
    first = np.where(inside, index, n - 1).min(axis=1, keepdims=True, initial=n - 1)
    last = np.where(inside, index, 0).max(axis=1, keepdims=True, initial=0)
    return np.clip(index, first, last)


def take_windows(x: Array, axis: int, index: np.ndarray) -> Array:
    """x[..., index[o, k], ...]: axis becomes the two axes (o, k)."""
    n = x.shape[axis]
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    if index.size == n and np.array_equal(index.reshape(-1), np.arange(n)):
        return x.reshape(shape)
    return x.at[(slice(None),) * axis + (index,)].get(mode="promise_in_bounds")


def geometry(nd: int, kernel, stride, padding, dilation=1) -> tuple[Dims, Dims, Dims, Dims]:
    """Each argument as ``nd`` integers; an empty stride means the kernel's size."""
    size = expand_tuple(kernel, nd)
    return (
        size,
        expand_tuple(stride, nd) if stride else size,
        expand_tuple(padding, nd),
        expand_tuple(dilation, nd),
    )


def space(ndim: int, nd: int, channels_last: bool) -> tuple[int, int]:
    """Return where the nd spatial axes begin and end: at the end, or before the channels."""
    return (ndim - 1 - nd, ndim - 1) if channels_last else (ndim - nd, ndim)


def by_dims(pattern: str, dims: Dims = (1, 2, 3)) -> Callable[[Any], Any]:
    """Register ``fn(nd, ...)`` for each number of spatial dimensions put into ``pattern``."""

    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        for nd in dims:
            rule(pattern.format(nd))(functools.update_wrapper(functools.partial(fn, nd), fn))
        return fn

    return add
