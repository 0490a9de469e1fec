"""Normalizations: layer, batch (training), local response, p-norm.

Computed in float32 for half types. Source: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, acc_dtype, in_float32, rule


@rule("onnx.LayerNormalization")
def layer_norm(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: Any = None,
) -> tuple[Array, Array, Array]:
    """(x - mean) / √(var + ε) scale + bias over the axes from ``axis`` on; mean; 1 / √(var + ε)."""
    del stash_type
    over = tuple(range(axis % x.ndim, x.ndim))
    wide = x.astype(acc_dtype(x.dtype))
    mean = wide.mean(over, keepdims=True)
    off = wide - mean
    inverse = lax.rsqrt(jnp.square(off).mean(over, keepdims=True) + epsilon)
    y = (off * inverse).astype(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


@rule("onnx.BatchNormalizationTraining")
def batch_norm_training(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> tuple[Array, Array, Array]:
    """Normalize by the batch's own mean and variance; running statistics moved towards them."""
    over = (0, *range(2, x.ndim))
    shape = (1, -1, *(1,) * (x.ndim - 2))
    wide = x.astype(acc_dtype(x.dtype))
    now = wide.mean(over)
    spread = jnp.square(wide - now.reshape(shape)).mean(over)
    y = (wide - now.reshape(shape)) * lax.rsqrt(spread + epsilon).reshape(shape)
    y = y * scale.reshape(shape) + bias.reshape(shape)
    new_mean = mean * momentum + now * (1 - momentum)
    new_var = var * momentum + spread * (1 - momentum)
    return y.astype(x.dtype), new_mean.astype(mean.dtype), new_var.astype(var.dtype)


@rule("onnx.LRN")
def local_response_norm(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """x / (bias + alpha / size Σ x²)^beta, the sum over the ``size`` nearest channels."""

    def norm(x: Array) -> Array:
        left = (size - 1) // 2
        window = (1, size, *(1,) * (x.ndim - 2))
        pads = [(left, size - 1 - left) if axis == 1 else (0, 0) for axis in range(x.ndim)]
        total = lax.reduce_window(
            jnp.square(x), np.zeros((), x.dtype)[()], lax.add, window, (1,) * x.ndim, pads
        )
        return x / (bias + alpha / size * total) ** beta

    return in_float32(norm, x)


@rule("onnx.LpNormalization")
def lp_norm(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """x / (Σ |x|^p)^(1/p) along axis; zero where the norm is."""

    def norm(x: Array) -> Array:
        size = jnp.sum(jnp.abs(x) if p == 1 else jnp.square(x), axis, keepdims=True)
        size = size if p == 1 else jnp.sqrt(size)
        return jnp.where(size == 0, 0, x / jnp.where(size == 0, 1, size))

    return in_float32(norm, x)
