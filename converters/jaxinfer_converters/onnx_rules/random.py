"""Random numbers: normal, uniform, Bernoulli, multinomial. The draws are JAX's, not ONNX's.

A ``seed`` attribute is not used: the key comes from the caller, as everywhere here.
Source: https://onnx.ai/onnx/operators/onnx__RandomNormal.html and its kin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, rule

_ALWAYS = lambda *args, **kwargs: True


def _float(dtype: str | None, like: Any = None) -> Any:
    if dtype is not None:
        return dtypes.canonical(dtype)
    if like is not None and jnp.issubdtype(like.dtype, jnp.floating):
        return like.dtype
    return jnp.float32


@rule("onnx.RandomNormal", samples=_ALWAYS)
def random_normal(
    context: Any,
    *,
    shape: Sequence[int],
    dtype: str | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float = 0.0,
) -> Array:
    """mean + scale N(0, 1)."""
    del seed
    return (jax.random.normal(context.key(), shape) * scale + mean).astype(_float(dtype))


@rule("onnx.RandomNormalLike", samples=_ALWAYS)
def random_normal_like(
    context: Any,
    x: Array,
    *,
    dtype: str | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float = 0.0,
) -> Array:
    """mean + scale N(0, 1), in the shape of x."""
    del seed
    return (jax.random.normal(context.key(), x.shape) * scale + mean).astype(_float(dtype, x))


@rule("onnx.RandomUniform", samples=_ALWAYS)
def random_uniform(
    context: Any,
    *,
    shape: Sequence[int],
    dtype: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
    seed: float = 0.0,
) -> Array:
    """U(low, high)."""
    del seed
    drawn = jax.random.uniform(context.key(), shape, minval=low, maxval=high)
    return drawn.astype(_float(dtype))


@rule("onnx.RandomUniformLike", samples=_ALWAYS)
def random_uniform_like(
    context: Any,
    x: Array,
    *,
    dtype: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
    seed: float = 0.0,
) -> Array:
    """U(low, high), in the shape of x."""
    del seed
    drawn = jax.random.uniform(context.key(), x.shape, minval=low, maxval=high)
    return drawn.astype(_float(dtype, x))


@rule("onnx.Bernoulli", samples=_ALWAYS)
def bernoulli(context: Any, p: Array, *, dtype: str | None = None, seed: float = 0.0) -> Array:
    """1 with probability p, else 0."""
    del seed
    drawn = jax.random.bernoulli(context.key(), p.astype(jnp.float32))
    return drawn.astype(p.dtype if dtype is None else dtypes.canonical(dtype))


@rule("onnx.Multinomial", samples=_ALWAYS)
def multinomial(
    context: Any, x: Array, *, dtype: str | None = None, sample_size: int = 1, seed: float = 0.0
) -> Array:
    """sample_size draws from each row of unnormalized log-probabilities."""
    del seed
    shape = (x.shape[0], sample_size)
    drawn = jax.random.categorical(context.key(), x[:, None, :], axis=-1, shape=shape)
    return drawn.astype(dtypes.canonical(dtype or "int32"))


@rule("onnx.DropoutTraining", samples=_ALWAYS)
def dropout_training(
    context: Any, x: Array, ratio: Any = None, *, seed: int = 0
) -> tuple[Array, Array]:
    """x / (1 - ratio) where kept, else 0; which were kept."""
    del seed
    rate = jnp.asarray(0.5 if ratio is None else ratio, jnp.float32)
    keep = jax.random.uniform(context.key(), x.shape) >= rate
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), 0).astype(x.dtype), keep
