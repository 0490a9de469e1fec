"""Classical models, domain ``ai.onnx.ml``: what is arithmetic on tensors of numbers.

Source: https://onnx.ai/onnx/operators/index_ai_onnx_ml.html.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxinfer_converters.aten._common import Array, precision, rule


@rule("ai.onnx.ml.Binarizer")
def binarizer(x: Array, *, threshold: float = 0.0) -> Array:
    """1 where x > threshold, else 0."""
    return (x > threshold).astype(x.dtype)


@rule("ai.onnx.ml.Scaler")
def scaler(x: Array, *, offset: Sequence[float] = (), scale: Sequence[float] = ()) -> Array:
    """(x - offset) scale, by feature."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.asarray(offset, jnp.float32) if offset else wide
    return wide * jnp.asarray(scale, jnp.float32) if scale else wide


@rule("ai.onnx.ml.Normalizer")
def normalizer(x: Array, *, norm: str = "MAX") -> Array:
    """x over its largest value (MAX), Σ |x| (L1) or √Σ x² (L2), row by row."""
    wide = x.astype(jnp.float32)
    size = {
        "MAX": lambda x: x.max(-1, keepdims=True),
        "L1": lambda x: jnp.abs(x).sum(-1, keepdims=True),
        "L2": lambda x: jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)),
    }[norm](wide)
    return jnp.where(size == 0, wide, wide / jnp.where(size == 0, 1, size))


@rule("ai.onnx.ml.LinearRegressor")
def linear_regressor(
    x: Array,
    *,
    coefficients: Sequence[float],
    intercepts: Sequence[float] = (),
    targets: int = 1,
    post_transform: str = "NONE",
) -> Array:
    """x A' + b.

    Raises:
      NotImplementedError: a post_transform.
    """
    if post_transform != "NONE":
        raise NotImplementedError(f"LinearRegressor with post_transform {post_transform!r}")
    a = jnp.asarray(coefficients, jnp.float32).reshape(targets, -1)
    wide = x.astype(jnp.float32)
    y = jnp.matmul(wide, a.T, precision=precision(wide, a))
    return y + jnp.asarray(intercepts, jnp.float32) if intercepts else y
