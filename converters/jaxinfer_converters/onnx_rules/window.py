"""Convolution and pooling with padding on one side, by name (``SAME_UPPER``) or by output shape.

What PyTorch's operators can say is lowered to ``aten.convolution`` and ``aten.*_pool`` at
conversion; these are the rest. Padding by name needs the input's size, known while tracing.
Source: https://onnx.ai/onnx/operators/onnx__Conv.html, onnx__MaxPool.html, onnx__LpPool.html.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, acc_dtype, category, rule
from jaxinfer_converters.aten.conv import convolution
from jaxinfer_converters.onnx_rules.shape import ints

Pads = list[tuple[int, int]]


def paddings(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Pads:
    """Return padding before and after each axis; SAME puts an odd one at the end (or start)."""
    n = len(sizes)
    if auto_pad in ("NOTSET", ""):
        given = [0] * (2 * n) if pads is None else list(pads)
        return [(given[i], given[i + n]) for i in range(n)]
    if auto_pad == "VALID":
        return [(0, 0)] * n
    out = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        out.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return out


@rule("onnx.Conv")
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Array:
    """y[b, o, p] = Σ_i,k x[b, i, s p + d k - pad] w[o, i, k] + b[o]."""
    del kernel_shape
    nd = w.ndim - 2
    strides, dilations = list(strides) or [1] * nd, list(dilations) or [1] * nd
    widths = paddings(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *((p, q, 0) for p, q in widths)])
    return convolution(x, w, b, strides, [0] * nd, dilations, False, [0] * nd, group)


@rule("onnx.ConvTranspose")
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Array:
    """y[b, o, s p + d k - pad] += x[b, i, p] w[i, o, k]; + b[o]."""
    del kernel_shape
    nd = w.ndim - 2
    strides, dilations = list(strides) or [1] * nd, list(dilations) or [1] * nd
    extra = list(output_padding) or [0] * nd
    given = [0] * (2 * nd) if pads is None else list(pads)
    crop: Pads = []
    for i, (n, k, s, d) in enumerate(
        zip(x.shape[2:], w.shape[2:], strides, dilations, strict=True)
    ):
        before, after = given[i], given[i + nd]
        if output_shape or auto_pad.startswith("SAME"):
            want = list(output_shape)[-nd:][i] if output_shape else n * s
            total = s * (n - 1) + extra[i] + d * (k - 1) + 1 - want
            before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            before = 0 if total < 0 else before
            after = total - before
        elif auto_pad == "VALID":
            before = after = 0
        crop.append((-before, extra[i] - after))
    y = convolution(x, w, None, strides, [0] * nd, dilations, True, [0] * nd, group)
    y = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), (0, 0, 0), *((p, q, 0) for p, q in crop)])
    return y if b is None else y + b.reshape(-1, *(1,) * nd)


def _geometry(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int,
) -> tuple[list[int], list[int], Pads, list[int]]:
    """Return strides, dilations, padding (with what ceil mode adds) and output sizes."""
    nd, sizes = len(kernel), x.shape[2:]
    strides, dilations = list(strides) or [1] * nd, list(dilations) or [1] * nd
    widths = paddings(sizes, kernel, strides, dilations, pads, auto_pad)
    outs: list[int] = []
    for i, (n, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        before, after = widths[i]
        span = n + before + after - d * (k - 1) - 1
        out = (-(-span // s) if ceil_mode else span // s) + 1
        if ceil_mode and (out - 1) * s >= n + before:
            out -= 1  # a window that would start in the padding at the end
        outs.append(out)
        reach = (out - 1) * s + d * (k - 1) + 1 - n - before
        widths[i] = (before, max(after, reach))
    return strides, dilations, widths, outs


def _reduce(x: Array, fn: Any, init: Any, kernel: Any, strides: Any, widths: Any, dilations: Any):
    return lax.reduce_window(
        x,
        np.asarray(init, x.dtype)[()],
        fn,
        (1, 1, *kernel),
        (1, 1, *strides),
        [(0, 0), (0, 0), *widths],
        window_dilation=(1, 1, *dilations),
    )


def _cut(y: Array, outs: Sequence[int]) -> Array:
    return y[(slice(None), slice(None), *(slice(n) for n in outs))]


@rule("onnx.MaxPool")
def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] = (),
    indices: bool = False,
) -> Any:
    """y[p] = max_k x[s p + d k - pad]; with ``indices``, also its flat place in the tensor.

    Places count over the whole unpadded tensor, the last axis fastest (storage_order 0), or
    the first of the spatial axes (1).
    """
    strides, dilations, widths, outs = _geometry(
        x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode
    )
    lowest = -np.inf if category(x.dtype) == 2 else jnp.iinfo(x.dtype).min
    y = _cut(_reduce(x, lax.max, lowest, kernel_shape, strides, widths, dilations), outs)
    if not indices:
        return y
    sizes = x.shape[2:]
    order = range(len(sizes)) if not storage_order else range(len(sizes))[::-1]
    weights, weight = [0] * len(sizes), 1
    for axis in reversed(list(order)):
        weights[axis], weight = weight, weight * sizes[axis]
    flat = sum(
        (lax.broadcasted_iota(jnp.int32, sizes, i) * weights[i] for i in range(len(sizes))),
        jnp.zeros(sizes, jnp.int32),
    )
    best, place = None, None
    padded = jnp.pad(x, [(0, 0), (0, 0), *widths], constant_values=lowest)
    where = jnp.pad(flat, widths, constant_values=-1)
    for offset in np.ndindex(*kernel_shape):
        index = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, dilations, outs, strides, strict=True)
        )
        value, at = padded[(slice(None), slice(None), *index)], where[index]
        at = jnp.broadcast_to(at, value.shape)
        if best is None or place is None:
            best, place = value, at
        else:
            better = (value > best) | ((place < 0) & (at >= 0))
            best, place = jnp.where(better, value, best), jnp.where(better, at, place)
    assert place is not None
    lead = jnp.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * len(sizes))
    return [y, (lead * math.prod(sizes) + place).astype(dtypes.canonical("int64"))]


@rule("onnx.AveragePool")
def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] = (),
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Array:
    """y[p] = mean_k x[s p + d k - pad], over the positions inside (or in the padding, too)."""
    strides, dilations, widths, outs = _geometry(
        x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode
    )
    wide = x.astype(acc_dtype(x.dtype))
    total = _cut(_reduce(wide, lax.add, 0, kernel_shape, strides, widths, dilations), outs)
    given = paddings(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    count = np.ones((), np.int64)
    for n, k, s, d, out, (before, after) in zip(
        x.shape[2:], kernel_shape, strides, dilations, outs, given, strict=True
    ):
        at = np.arange(out)[:, None] * s - before + np.arange(k) * d
        low, high = (-before, n + after) if count_include_pad else (0, n)
        count = count[..., None] * np.maximum(((at >= low) & (at < high)).sum(1), 1)
    return (total / jnp.asarray(count, wide.dtype)).astype(x.dtype)


@rule("onnx.LpPool")
def lp_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    p: float = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Array:
    """y[o] = (Σ_k |x[s o + d k - pad]|^p)^(1/p)."""
    strides, dilations, widths, outs = _geometry(
        x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode
    )
    wide = jnp.abs(x.astype(acc_dtype(x.dtype))) ** p
    total = _reduce(wide, lax.add, 0, kernel_shape, strides, widths, dilations)
    return (_cut(total, outs) ** (1 / p)).astype(x.dtype)


@rule("onnx.GlobalLpPool")
def global_lp_pool(x: Array, *, p: float = 2) -> Array:
    """(Σ |x|^p)^(1/p) over the spatial axes."""
    over = tuple(range(2, x.ndim))
    wide = jnp.abs(x.astype(acc_dtype(x.dtype))) ** p
    return (wide.sum(over, keepdims=True) ** (1 / p)).astype(x.dtype)


@rule("onnx.MaxUnpool")
def max_unpool(
    x: Array,
    indices: Array,
    output_shape: Any = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Array:
    """y.flat[indices] = x, zero elsewhere; the indices are those of MaxPool."""
    nd = len(kernel_shape)
    strides, given = list(strides) or [1] * nd, list(pads or [0] * (2 * nd))
    inferred = [
        (n - 1) * s + k - given[i] - given[i + nd]
        for i, (n, k, s) in enumerate(zip(x.shape[2:], kernel_shape, strides, strict=True))
    ]
    shape = [*x.shape[:2], *inferred]
    want = shape if output_shape is None else ints(output_shape)
    # The indices are flat over the pooled tensor's shape, which a larger output contains.
    places = jnp.unravel_index(indices.reshape(-1), shape)
    return jnp.zeros(want, x.dtype).at[places].set(x.reshape(-1))
