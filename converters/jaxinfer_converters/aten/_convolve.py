"""Ways to compute one convolution, channels last, that are the same sums in another order.

    y[b, p, g o] = Σ_k,i x[b, s p + d k - pad, g i] w[k, i, g o]

``direct`` is XLA's own convolution; ``taps`` adds up shifted products and is for depthwise
kernels; ``product`` is one matrix product, for kernels of one entry; ``planes`` takes three
dimensions as two.

A transposed convolution y[s p + d k - pad] += x[p] w[k] is ``dilated`` (XLA's, of the input
with zeros in between) or ``phases``: each of the s^nd residues of the output's places is a
plain convolution with every s-th entry of the kernel, and all of them are one convolution with
s^nd as many outputs, interleaved.
Source: Shi et al., Real-time single image and video super-resolution using an efficient
sub-pixel convolutional neural network, 2016, and Is the deconvolution layer the same as a
convolutional layer?, 2016 (phases).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, acc_dtype, cast, precision, prod

Pads = Sequence[tuple[int, int]]
LAST = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}


class Window(NamedTuple):
    """How a kernel is laid over an image; ``groups`` of channels do not see each other."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def outputs(self, space: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Return the sizes of the output."""
        axes = zip(space, kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]


def direct(x: Array, w: Array, window: Window, zeros: Sequence[int] | None = None) -> Array:
    """Compute by XLA's convolution; ``zeros`` dilates the input."""
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=window.stride,
        padding=window.padding,
        lhs_dilation=zeros,
        rhs_dilation=window.dilation,
        dimension_numbers=LAST[w.ndim - 2],
        feature_group_count=window.groups,
        precision=precision(x, w),
    )


def padded(x: Array, pads: Pads) -> Array:
    """Pad the spatial axes with zeros, or crop them."""
    widths = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    return lax.pad(x, np.zeros((), x.dtype)[()], widths)


def shifted(x: Array, window: Window, kernel: Sequence[int], outs: Sequence[int]):
    """Yield, for every entry of the kernel in order, what of the padded image it meets."""
    for taps in itertools.product(*map(range, kernel)):
        start = [0, *(t * d for t, d in zip(taps, window.dilation, strict=True)), 0]
        sizes = [x.shape[0], *((o - 1) * s + 1 for o, s in zip(outs, window.stride, strict=True))]
        stop = [a + n for a, n in zip(start, [*sizes, x.shape[-1]], strict=True)]
        yield lax.slice(x, start, stop, (1, *window.stride, 1))


def taps(x: Array, w: Array, window: Window) -> Array:
    """Compute a depthwise convolution (one input channel a group) as Σ_k shift_k(x) w[k]."""
    *kernel, _, features = w.shape
    outs = window.outputs(x.shape[1:-1], kernel)
    wide = acc_dtype(x.dtype)
    many = features // x.shape[-1]
    entries = w.reshape(prod(kernel), x.shape[-1], many).astype(wide)
    if many == 1:
        entries = entries[..., 0]
    pieces = shifted(padded(x, window.padding), window, kernel, outs)
    total = None
    for entry, piece in zip(entries, pieces, strict=True):
        piece = cast(piece, wide)
        term = (piece if many == 1 else piece[..., None]) * entry
        total = term if total is None else total + term
    return cast(total, x.dtype).reshape(x.shape[0], *outs, features)


def product(x: Array, w: Array, window: Window) -> Array:
    """Compute a convolution with a kernel of one entry, one group, as a matrix product."""
    *kernel, inputs, features = w.shape
    outs = window.outputs(x.shape[1:-1], kernel)
    (x,) = shifted(padded(x, window.padding), window, kernel, outs)
    entry = w.reshape(inputs, features)
    y = lax.dot_general(
        x,
        entry,
        (((x.ndim - 1,), (0,)), ((), ())),
        precision=precision(x, entry),
        preferred_element_type=acc_dtype(x.dtype),
    )
    return cast(y, x.dtype)


def planes(x: Array, w: Array, window: Window) -> Array:
    """Compute a convolution in three dimensions as a sum of ones in two, over the kernel's depth.

    The depths of the output are more images of the batch.
    """
    depth = w.shape[0]
    flat = Window(window.stride[1:], window.padding[1:], window.dilation[1:], window.groups)
    x = padded(x, (window.padding[0], (0, 0), (0, 0)))
    step, dilation = window.stride[0], window.dilation[0]
    count = (x.shape[1] - dilation * (depth - 1) - 1) // step + 1
    total = np.zeros((), x.dtype)
    for entry in range(depth):
        start = entry * dilation
        images = lax.slice_in_dim(x, start, start + (count - 1) * step + 1, step, 1)
        images = images.reshape(x.shape[0] * count, *x.shape[2:])
        y = cast(direct(images, w[entry], flat), acc_dtype(x.dtype))
        total = y if entry == 0 else total + y
    return cast(total, x.dtype).reshape(x.shape[0], count, *total.shape[1:])


class Transposed(NamedTuple):
    """A transposed convolution: strides, cropped edges, sizes added at the high end."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    extra: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def outputs(self, space: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Return the sizes of the output."""
        axes = zip(space, kernel, self.stride, self.padding, self.extra, self.dilation, strict=True)
        return [(n - 1) * s - 2 * p + d * (k - 1) + 1 + e for n, k, s, p, e, d in axes]


def swap_channels(w: Array, groups: int) -> Array:
    """w[..., g i, o] -> w[..., i, g o]."""
    *kernel, inputs, features = w.shape
    w = w.reshape(*kernel, groups, inputs // groups, features).swapaxes(-3, -2)
    return w.reshape(*kernel, inputs // groups, groups * features)


def dilated(x: Array, w: Array, how: Transposed) -> Array:
    """Compute by XLA's convolution of the input with stride - 1 zeros between its entries."""
    *kernel, _, _ = w.shape
    reach = [d * (k - 1) for d, k in zip(how.dilation, kernel, strict=True)]
    edges = zip(reach, how.padding, how.extra, strict=True)
    window = Window(
        (1,) * len(kernel),
        tuple((r - p, r - p + e) for r, p, e in edges),
        how.dilation,
        how.groups,
    )
    flipped = lax.rev(swap_channels(w, how.groups), tuple(range(len(kernel))))
    return direct(x, flipped, window, how.stride)


def phases(x: Array, w: Array, how: Transposed, convolve=direct) -> Array:
    """Compute all residues of the output's places at once: y[s q + r] = Σ_j x[q - j] w[r + s j].

    The kernel must not be dilated.
    """
    *kernel, inputs, features = w.shape
    nd, groups, stride = len(kernel), how.groups, how.stride
    parts = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]
    whole = [(0, j * s - k) for j, s, k in zip(parts, stride, kernel, strict=True)]
    w = jnp.pad(w, [*whole, (0, 0), (0, 0)])
    w = w.reshape(*(n for pair in zip(parts, stride, strict=True) for n in pair), groups,
                  inputs // groups, features)  # fmt: skip
    js, rs = range(0, 2 * nd, 2), range(1, 2 * nd, 2)
    w = lax.rev(w, tuple(js))
    w = lax.transpose(w, (*js, 2 * nd + 1, 2 * nd, *rs, 2 * nd + 2))  # [j, i, g, r, o]
    w = w.reshape(*parts, inputs // groups, groups * prod(stride) * features)
    window = Window((1,) * nd, tuple((j - 1, j - 1) for j in parts), (1,) * nd, groups)
    y = convolve(x, w, window)
    places = y.shape[1:-1]
    y = y.reshape(y.shape[0], *places, groups, *stride, features)
    order = [n for axis in range(nd) for n in (1 + axis, nd + 2 + axis)]
    y = lax.transpose(y, (0, *order, nd + 1, 2 * nd + 2))
    full = [q * s for q, s in zip(places, stride, strict=True)]
    y = y.reshape(y.shape[0], *full, groups * features)
    outs = how.outputs(x.shape[1:-1], kernel)
    sizes = zip(outs, full, how.padding, strict=True)
    return padded(y, [(-p, out + p - n) for out, n, p in sizes])
