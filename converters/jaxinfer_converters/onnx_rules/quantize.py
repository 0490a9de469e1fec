"""Quantization: linear quantize and dequantize, integer matmul and convolution.

    q = saturate(round(x / scale) + zero_point),   x = (q - zero_point) scale

Rounding is to nearest, ties to even. Products of 8-bit integers are summed in int32 exactly.
Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html and its kin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, category, rule
from jaxinfer_converters.onnx_rules.math import cast
from jaxinfer_converters.onnx_rules.window import paddings


def _along(p: Array, x: Array, axis: int, block_size: int = 0) -> Array:
    """A scale or zero point, per tensor, axis or block, in the shape of x."""
    if p.ndim == 0 or (p.ndim == 1 and p.size == 1):
        return p.reshape(())
    axis = axis % x.ndim
    if p.ndim == 1 and not block_size:
        return p.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    p = jnp.repeat(p, block_size, axis)
    return lax.slice_in_dim(p, 0, x.shape[axis], axis=axis)


def _saturated(x: Array, zero: Array, name: str) -> Array:
    """round(x) + zero, held to the range of an integer dtype."""
    info = jnp.iinfo(dtypes.dtype_of(name))
    return jnp.clip(jnp.round(x) + zero.astype(x.dtype), int(info.min), int(info.max))


@rule("onnx.QuantizeLinear")
def quantize(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: str | None = None,
    precision: Any = None,
    saturate: int = 1,
) -> Array:
    """saturate(round(x / scale) + zero_point)."""
    name = output_dtype or "uint8"
    if zero_point is not None:
        name = np.dtype(zero_point.dtype).name
    wide = x.astype(jnp.float32 if precision is None else dtypes.canonical(precision))
    y = wide / _along(scale, x, axis, block_size).astype(wide.dtype)
    if category(dtypes.dtype_of(name)) == 2:
        zero = 0 if zero_point is None else _along(zero_point, x, axis, block_size)
        return cast(y + jnp.asarray(zero, y.dtype), to=name, saturate=saturate)
    zero = jnp.zeros(()) if zero_point is None else _along(zero_point, x, axis, block_size)
    return _saturated(y, zero, name).astype(dtypes.canonical(name))


@rule("onnx.DequantizeLinear")
def dequantize(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: str | None = None,
) -> Array:
    """(x - zero_point) scale, in the dtype of scale."""
    wide = x.astype(jnp.float32)
    if category(x.dtype) == 1 and x.dtype.itemsize >= 2:
        whole = x.astype(jnp.int32)
        if zero_point is not None:
            whole = whole - _along(zero_point, x, axis, block_size).astype(jnp.int32)
        wide = whole.astype(jnp.float32)
    elif zero_point is not None:
        wide = wide - _along(zero_point, x, axis, block_size).astype(jnp.float32)
    y = wide * _along(scale, x, axis, block_size).astype(jnp.float32)
    return y.astype(scale.dtype if output_dtype is None else dtypes.canonical(output_dtype))


def _centred(x: Array, zero: Array | None, shape: Sequence[int] | None = None) -> Array:
    wide = x.astype(jnp.int32)
    if zero is None:
        return wide
    zero = zero.astype(jnp.int32)
    return wide - (zero.reshape(()) if zero.size == 1 else zero.reshape(shape or zero.shape))


@rule("onnx.MatMulInteger")
def matmul_integer(
    a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None
) -> Array:
    """(a - a_zero) (b - b_zero) in int32."""
    rows = None if a_zero is None or a_zero.ndim != 1 else (-1, 1)
    return jnp.matmul(_centred(a, a_zero, rows), _centred(b, b_zero))


def _requantized(y: Array, factor: Array, zero: Array, like: Array) -> Array:
    name = np.dtype(zero.dtype).name
    if category(zero.dtype) == 2:
        return cast(y * factor + zero.astype(y.dtype), to=name)
    del like
    return _saturated(y * factor, zero, name).astype(zero.dtype)


@rule("onnx.QLinearMatMul")
def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    y_scale: Array,
    y_zero: Array,
) -> Array:
    """quantize(dequantize(a) dequantize(b)), the product summed in int32."""
    scales = [s.astype(jnp.float32).reshape(()) if s.size == 1 else s for s in (a_scale, b_scale)]
    if a_scale.ndim == 1 and a_scale.size > 1:
        scales[0] = a_scale.reshape(-1, 1)
    y = matmul_integer(a, b, a_zero, b_zero).astype(jnp.float32)
    return _requantized(y, scales[0] * scales[1] / y_scale.astype(jnp.float32), y_zero, a)


@rule("onnx.ConvInteger")
def conv_integer(
    x: Array,
    w: Array,
    x_zero: Array | None = None,
    w_zero: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Array:
    """Σ (x - x_zero) (w - w_zero) in int32; padding is x_zero."""
    del kernel_shape
    nd = w.ndim - 2
    strides, dilations = strides or (1,) * nd, dilations or (1,) * nd
    return lax.conv_general_dilated(
        _centred(x, x_zero),
        _centred(w, w_zero, (-1, *(1,) * (nd + 1))),
        window_strides=strides,
        padding=paddings(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad),
        rhs_dilation=dilations,
        dimension_numbers=lax.conv_dimension_numbers(x.shape, w.shape, None),
        feature_group_count=group,
    )


@rule("onnx.QLinearConv")
def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero: Array,
    w: Array,
    w_scale: Array,
    w_zero: Array,
    y_scale: Array,
    y_zero: Array,
    b: Array | None = None,
    **window: Any,
) -> Array:
    """quantize(dequantize(x) * dequantize(w) + b); b is in units of x_scale w_scale."""
    y = conv_integer(x, w, x_zero, w_zero, **window)
    column = (1, -1, *(1,) * (w.ndim - 2))
    if b is not None:
        y = y + b.reshape(column)
    scale = w_scale.reshape(()) if w_scale.size == 1 else w_scale.reshape(column)
    return _requantized(y.astype(jnp.float32), x_scale.reshape(()) * scale / y_scale, y_zero, x)


@rule("onnx.DynamicQuantizeLinear")
def dynamic_quantize(x: Array) -> tuple[Array, Array, Array]:
    """x as uint8 over its own range, which is widened to hold 0; scale; zero point."""
    low, high = jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)
    scale = (high - low) / 255
    zero = jnp.clip(jnp.round(-low / scale), 0, 255)
    return _saturated(x / scale, zero, "uint8").astype(jnp.uint8), scale, zero.astype(jnp.uint8)
