"""Random operators: JAX's generators with the model's ``rng_key``, never torch's numbers.

A rule draws from its node's own key, so results depend on the key alone. Distributions are
torch's (https://docs.pytorch.org/docs/stable/torch.html#random-sampling), streams are not.
Dropout that does not drop (``train`` false, or p = 0) is the identity and needs no key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import (
    FLOAT,
    Array,
    acc_dtype,
    cast,
    category,
    is_array,
    rule,
)
from jaxinfer_converters.aten.activations import leaky_relu


def _always(*args: Any, **kwargs: Any) -> bool:
    del args, kwargs
    return True


def _drops(input: Any, p: float, train: bool | None) -> bool:
    """Whether dropout draws; ``train`` None is true in torch."""
    del input
    return train is not False and 0 < p < 1


def _scaled_mask(context: Any, shape: Sequence[int], p: float, dtype: Any) -> Array:
    """1 / (1 - p) where kept, else 0."""
    if p == 1:
        return jnp.zeros(tuple(shape), dtype)
    keep = jax.random.bernoulli(context.key(), 1 - p, tuple(shape))
    return cast(keep, dtype) * jnp.asarray(1 / (1 - p), dtype)


def _features(x: Array) -> tuple[int, ...]:
    """One number for each example and channel."""
    return (*x.shape[:2], *(1,) * (x.ndim - 2))


def _dropped(context: Any, x: Array, p: float, train: bool | None, shape: Sequence[int]) -> Array:
    if train is False or p == 0:
        return x
    wide = cast(x, acc_dtype(x.dtype))
    real = FLOAT if category(wide.dtype) == 3 else wide.dtype
    return cast(wide * _scaled_mask(context, shape, p, real), x.dtype)


@rule("aten.dropout.default", samples=_drops)
def dropout(context: Any, input: Array, p: float, train: bool) -> Array:
    """x / (1 - p) with probability 1 - p, else 0."""
    return _dropped(context, input, p, train, input.shape)


@rule("aten.feature_dropout.default", samples=_drops)
def feature_dropout(context: Any, input: Array, p: float, train: bool) -> Array:
    """As dropout, for whole channels."""
    return _dropped(context, input, p, train, _features(input))


@rule("aten.native_dropout.default", samples=_drops)
def native_dropout(context: Any, input: Array, p: float, train: bool | None) -> tuple[Array, Array]:
    """Dropout and the mask of what is kept."""
    if train is False or p == 0:
        return input, jnp.ones(input.shape, bool)
    mask = _scaled_mask(context, input.shape, p, acc_dtype(input.dtype))
    return cast(input * mask, input.dtype), mask != 0


def _alpha(context: Any, x: Array, p: float, train: bool, shape: Sequence[int]) -> Array:
    """Drop to -alpha and rescale, so that mean and variance stay (SELU networks)."""
    if not train or p == 0:
        return x
    if p == 1:
        return jnp.zeros_like(x)
    alpha = 1.7580993408473766
    scale = 1 / math.sqrt((alpha * alpha * p + 1) * (1 - p))
    keep = jax.random.bernoulli(context.key(), 1 - p, tuple(shape))
    wide = cast(x, acc_dtype(x.dtype))
    return cast(jnp.where(keep, wide, -alpha) * scale + alpha * scale * p, x.dtype)


@rule("aten.alpha_dropout.default", samples=_drops)
def alpha_dropout(context: Any, input: Array, p: float, train: bool) -> Array:
    """a (x or -alpha) + b, of equal mean and variance."""
    return _alpha(context, input, p, train, input.shape)


@rule("aten.feature_alpha_dropout.default", samples=_drops)
def feature_alpha_dropout(context: Any, input: Array, p: float, train: bool) -> Array:
    """As alpha_dropout, for whole channels."""
    return _alpha(context, input, p, train, _features(input))


def _rrelu_samples(self: Any, *numbers: Any, training: bool = False) -> bool:
    del self
    return bool(numbers[2]) if len(numbers) > 2 else training


def _rrelu_noise_samples(self: Any, noise: Any, *numbers: Any, training: bool = False) -> bool:
    del noise
    return _rrelu_samples(self, *numbers, training=training)


@rule("aten.rrelu_with_noise_functional.default", samples=_rrelu_noise_samples)
def rrelu_with_noise(
    context: Any,
    self: Array,
    noise: Array,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: None = None,
) -> tuple[Array, Array]:
    """(x * slope, slope): 1 above zero; below, drawn for each element or the middle."""
    del generator
    if not training:
        return leaky_relu(self, (lower + upper) / 2), noise
    wide = acc_dtype(self.dtype)
    drawn = _uniform(context.key(), self.shape, wide, lower, upper)
    slope = jnp.where(self > 0, 1, drawn)
    return cast(cast(self, wide) * slope, self.dtype), cast(slope, noise.dtype)


@rule("aten.rrelu.default", samples=_rrelu_samples)
def rrelu(context: Any, self: Array, *numbers: Any, training: bool = False) -> Array:
    """x if x > 0 else slope * x; the slope is the middle, or drawn for each element."""
    numbers = (*numbers, training) if len(numbers) == 2 else numbers
    return rrelu_with_noise(context, self, self, *numbers)[0]


def _uniform(key: Any, shape: Sequence[int], dtype: Any, low: Any = 0.0, high: Any = 1.0) -> Array:
    if category(dtype) == 3:
        parts = [jax.random.uniform(k, shape, FLOAT, low, high) for k in jax.random.split(key)]
        return cast(lax.complex(*parts), dtype)
    return jax.random.uniform(key, shape, dtype, low, high)


def _normal(key: Any, shape: Sequence[int], dtype: Any) -> Array:
    return jax.random.normal(key, tuple(shape), dtype)


@rule("aten.rand.default", "aten.rand.generator", samples=_always)
def rand(context: Any, size: Sequence[int], *, dtype: Any = None) -> Array:
    """Uniform numbers in [0, 1)."""
    return _uniform(context.key(), tuple(size), dtype or FLOAT)


@rule("aten.rand_like.default", samples=_always)
def rand_like(context: Any, self: Array, *, dtype: Any = None) -> Array:
    """Uniform numbers in [0, 1) in the shape of x."""
    return _uniform(context.key(), self.shape, dtype or self.dtype)


@rule("aten.randn.default", "aten.randn.generator", samples=_always)
def randn(context: Any, size: Sequence[int], *, dtype: Any = None) -> Array:
    """Standard normal numbers."""
    return _normal(context.key(), size, dtype or FLOAT)


@rule("aten.randn_like.default", samples=_always)
def randn_like(context: Any, self: Array, *, dtype: Any = None) -> Array:
    """Standard normal numbers in the shape of x."""
    return _normal(context.key(), self.shape, dtype or self.dtype)


def _integers(key: Any, shape: Sequence[int], low: Any, high: Any, dtype: Any) -> Array:
    """Integers low <= n < high, cast to ``dtype``; bounds are range-checked."""
    wide = dtypes.canonical("int64")
    drawn = jax.random.randint(key, tuple(shape), cast(low, wide), cast(high, wide), wide)
    return cast(drawn, dtype)


@rule("aten.randint.default", "aten.randint.generator", samples=_always)
def randint(context: Any, high: int, size: Sequence[int], *, dtype: Any = None) -> Array:
    """Integers below high."""
    return randint_low(context, 0, high, size, dtype=dtype)


@rule("aten.randint.low", "aten.randint.low_generator", samples=_always)
def randint_low(
    context: Any, low: int, high: int, size: Sequence[int], *, dtype: Any = None
) -> Array:
    """Integers from low to below high."""
    return _integers(context.key(), size, low, high, dtype or dtypes.canonical("int64"))


@rule("aten.randint_like.default", "aten.randint_like.Tensor", samples=_always)
def randint_like(context: Any, self: Array, high: Any, *, dtype: Any = None) -> Array:
    """Integers below high in the shape of x."""
    return _integers(context.key(), self.shape, 0, high, dtype or self.dtype)


@rule("aten.randint_like.low_dtype", samples=_always)
def randint_like_low(context: Any, self: Array, low: int, high: int, *, dtype: Any = None) -> Array:
    """Integers from low to below high in the shape of x."""
    return _integers(context.key(), self.shape, low, high, dtype or self.dtype)


@rule("aten.randperm.default", "aten.randperm.generator", samples=_always)
def randperm(context: Any, n: int, *, dtype: Any = None) -> Array:
    """A permutation of 0 ... n - 1."""
    wide = dtypes.canonical("int64")
    return cast(jax.random.permutation(context.key(), n).astype(wide), dtype or wide)


@rule("aten.bernoulli.default", samples=_always)
def bernoulli(context: Any, self: Array) -> Array:
    """1 with the probability that x says, else 0."""
    wide = cast(self, acc_dtype(self.dtype))
    return cast(jax.random.bernoulli(context.key(), wide), self.dtype)


@rule("aten.bernoulli.p", "aten.bernoulli.Tensor", samples=_always)
def bernoulli_p(context: Any, self: Array, p: Any) -> Array:
    """1 with probability p, else 0, in the shape of x."""
    probability = jnp.broadcast_to(cast(p, FLOAT), self.shape)
    return cast(jax.random.bernoulli(context.key(), probability), self.dtype)


@rule(
    "aten.normal.Tensor_float",
    "aten.normal.float_Tensor",
    "aten.normal.Tensor_Tensor",
    samples=_always,
)
def normal(context: Any, mean: Any, std: Any = 1.0) -> Array:
    """mean + std * z, element by element."""
    dtype = mean.dtype if is_array(mean) else std.dtype
    wide = acc_dtype(dtype)
    mean, std = jnp.broadcast_arrays(cast(mean, wide), cast(std, wide))
    return cast(mean + std * _normal(context.key(), mean.shape, wide), dtype)


@rule("aten.normal.float_float", samples=_always)
def normal_sized(
    context: Any, mean: float, std: float, size: Sequence[int], *, dtype: Any = None
) -> Array:
    """mean + std * z of a given shape."""
    return mean + std * _normal(context.key(), size, dtype or FLOAT)


def _drawn_like(*names: str) -> Callable[[Any], Any]:
    """Register draws in the shape and dtype of x: ``fn(key, shape, wide dtype, *numbers)``."""

    def add(fn: Callable[..., Array]) -> Callable[..., Array]:
        def apply(context: Any, self: Array, *numbers: Any) -> Array:
            wide = acc_dtype(self.dtype) if category(self.dtype) >= 2 else FLOAT
            return cast(fn(context.key(), self.shape, wide, *numbers), self.dtype)

        rule(*names, samples=_always)(apply)
        return fn

    return add


@_drawn_like("aten.normal_functional.default")
def normal_functional(key: Any, shape: Any, dtype: Any, mean: Any = 0.0, std: Any = 1.0) -> Array:
    """mean + std * z."""
    return mean + std * _normal(key, shape, dtype)


@_drawn_like("aten.log_normal.default")
def log_normal(key: Any, shape: Any, dtype: Any, mean: Any = 1.0, std: Any = 2.0) -> Array:
    """exp(mean + std * z)."""
    return lax.exp(mean + std * _normal(key, shape, dtype))


@_drawn_like("aten.exponential.default")
def exponential(key: Any, shape: Any, dtype: Any, lambd: Any = 1.0) -> Array:
    """-log(u) / lambd."""
    return jax.random.exponential(key, shape, dtype) / lambd


@_drawn_like("aten.cauchy.default")
def cauchy(key: Any, shape: Any, dtype: Any, median: Any = 0.0, sigma: Any = 1.0) -> Array:
    """median + sigma * tan(pi (u - 1/2))."""
    return median + sigma * jax.random.cauchy(key, shape, dtype)


@_drawn_like("aten.geometric.default")
def geometric(key: Any, shape: Any, dtype: Any, p: float) -> Array:
    """The number of the first success, from 1."""
    return cast(jax.random.geometric(key, p, shape), dtype)


@rule("aten.uniform.default", samples=_always)
def uniform(context: Any, self: Array, from_: float = 0.0, to: float = 1.0) -> Array:
    """Uniform numbers in [from, to) in the shape and dtype of x."""
    return _uniform(context.key(), self.shape, self.dtype, from_, to)


@rule("aten.random.from", samples=_always)
def random_from(context: Any, self: Array, from_: int, to: int | None) -> Array:
    """Integers from ``from`` to below ``to`` in the shape and dtype of x."""
    if to is None:
        raise NotImplementedError("random.from without an upper bound draws from all of int64")
    return _integers(context.key(), self.shape, from_, to, self.dtype)


@rule("aten.random.to", samples=_always)
def random_to(context: Any, self: Array, to: int) -> Array:
    """Integers below ``to`` in the shape and dtype of x."""
    return _integers(context.key(), self.shape, 0, to, self.dtype)


@rule("aten.poisson.default", samples=_always)
def poisson(context: Any, self: Array, generator: None = None) -> Array:
    """Poisson counts of rate x. JAX draws them with threefry keys (its default) only."""
    del generator
    return cast(jax.random.poisson(context.key(), cast(self, FLOAT)), self.dtype)


@rule("aten.binomial.default", samples=_always)
def binomial(context: Any, count: Array, prob: Array, generator: None = None) -> Array:
    """The number of successes of ``count`` trials."""
    del generator
    n, p = jnp.broadcast_arrays(cast(count, FLOAT), cast(prob, FLOAT))
    return cast(jax.random.binomial(context.key(), n, p), count.dtype)


@rule("aten.multinomial.default", samples=_always)
def multinomial(context: Any, self: Array, num_samples: int, replacement: bool = False) -> Array:
    """Category numbers by weight (argmax of log w + Gumbel noise); distinct ones: the k largest."""
    logits = lax.log(cast(self, FLOAT))
    if replacement:
        shape = (num_samples, *self.shape[:-1])
        drawn = jax.random.categorical(context.key(), logits, shape=shape)
        return cast(jnp.moveaxis(drawn, 0, -1), dtypes.canonical("int64"))
    keys = logits + jax.random.gumbel(context.key(), logits.shape)
    return cast(lax.top_k(keys, num_samples)[1], dtypes.canonical("int64"))
