"""Activation functions, kept whole: one rule instead of the five nodes of a decomposition.

Formulas: ``torch.nn.functional`` (https://docs.pytorch.org/docs/stable/nn.functional.html). Half
types are computed in float32 and rounded once, as in torch. Branches are written so that
gradients are finite where the other branch overflows. ``rrelu`` is in random.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import (
    Array,
    Number,
    canonical_dim,
    cast,
    in_float32,
    rule,
    unary,
)

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


def _activation(fn: Callable[[Array], Array], name: str) -> None:
    unary(fn, f"aten.{name}.default", to_float=True)


def _softplus(x: Array) -> Array:
    return jnp.logaddexp(x, 0.0)


def _log_sigmoid(x: Array) -> Array:
    return jnp.minimum(x, 0) - lax.log1p(lax.exp(-jnp.abs(x)))


_activation(lax.logistic, "sigmoid")
_activation(lax.tanh, "tanh")
_activation(lambda x: x * lax.logistic(x), "silu")
_activation(lambda x: x * lax.tanh(_softplus(x)), "mish")
_activation(lambda x: x * jnp.clip(x + 3, 0, 6) / 6, "hardswish")
_activation(lambda x: jnp.clip(x + 3, 0, 6) / 6, "hardsigmoid")
_activation(_log_sigmoid, "log_sigmoid")
unary(jax.nn.relu, "aten.relu.default")
unary(lambda x: jnp.clip(x, 0, 6), "aten.relu6.default")


@rule("aten.gelu.default")
def gelu(self: Array, *, approximate: str = "none") -> Array:
    """x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, or by tanh(sqrt(2 / pi) (x + 0.044715 x^3))."""

    def apply(x: Array) -> Array:
        if approximate == "tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
            return 0.5 * x * (1 + lax.tanh(inner))
        return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))

    return in_float32(apply, self)


@rule("aten.elu.default")
def elu(self: Array, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Array:
    """scale * (x if x > 0 else alpha (exp(input_scale x) - 1))."""

    def apply(x: Array) -> Array:
        negative = alpha * scale * lax.expm1(input_scale * jnp.minimum(x, 0))
        return jnp.where(x <= 0, negative, scale * x)

    return in_float32(apply, self)


@rule("aten.selu.default")
def selu(self: Array) -> Array:
    """``elu`` with the constants of Klambauer et al., Self-Normalizing Neural Networks, 2017."""
    return elu(self, _SELU_ALPHA, _SELU_SCALE)


@rule("aten.celu.default")
def celu(self: Array, alpha: Number = 1.0) -> Array:
    """x if x > 0 else alpha (exp(x / alpha) - 1)."""
    return elu(self, alpha, 1, 1 / alpha)


@rule("aten.leaky_relu.default")
def leaky_relu(self: Array, negative_slope: Number = 0.01) -> Array:
    """x if x > 0 else slope * x."""
    return in_float32(lambda x: jnp.where(x > 0, x, x * negative_slope), self)


@rule("aten.prelu.default")
def prelu(self: Array, weight: Array, *, channels_last: bool = False) -> Array:
    """x if x > 0 else weight[channel] * x, channels along axis 1, or the last."""
    if weight.ndim and self.ndim > 1 and not channels_last:
        weight = weight.reshape(-1, *(1,) * (self.ndim - 2))
    return prelu_kernel(self, weight.reshape(()) if self.ndim == 0 else weight)


@rule("aten._prelu_kernel.default")
def prelu_kernel(self: Array, weight: Array) -> Array:
    """x if x > 0 else weight * x."""
    return in_float32(lambda x, w: jnp.where(x > 0, x, w * x), self, weight)


@rule("aten.hardtanh.default")
def hardtanh(self: Array, min_val: Number = -1, max_val: Number = 1) -> Array:
    """min(max(x, min_val), max_val) in x's own dtype."""
    return jnp.minimum(jnp.maximum(self, cast(min_val, self.dtype)), cast(max_val, self.dtype))


@rule("aten.hardshrink.default")
def hardshrink(self: Array, lambd: Number = 0.5) -> Array:
    """0 where -lambd <= x <= lambd, else x."""
    bound = cast(lambd, self.dtype)
    return jnp.where((self >= -bound) & (self <= bound), cast(0, self.dtype), self)


@rule("aten.softshrink.default")
def softshrink(self: Array, lambd: Number = 0.5) -> Array:
    """x - lambd above it, x + lambd below -lambd, else 0 (NaN stays)."""

    def apply(x: Array) -> Array:
        return jnp.where(x > lambd, x - lambd, jnp.where(x < -lambd, x + lambd, x * 0))

    return in_float32(apply, self)


@rule("aten.threshold.default")
def threshold(self: Array, threshold: Number, value: Number) -> Array:
    """value where x <= threshold, else x."""
    return jnp.where(self <= threshold, cast(value, self.dtype), self)


@rule("aten.softplus.default")
def softplus(self: Array, beta: Number = 1, threshold: Number = 20) -> Array:
    """log(1 + exp(beta x)) / beta, and x itself where beta x > threshold."""

    def apply(x: Array) -> Array:
        linear = x * beta > threshold
        return jnp.where(linear, x, _softplus(jnp.where(linear, 0, x * beta)) / beta)

    return in_float32(apply, self)


@rule("aten.log_sigmoid_forward.default")
def log_sigmoid_forward(self: Array) -> tuple[Array, Array]:
    """(log sigmoid(x), exp(-|x|)): the second is what torch keeps for the gradient on CPUs."""
    return in_float32(_log_sigmoid, self), in_float32(lambda x: lax.exp(-jnp.abs(x)), self)


@rule("aten.glu.default")
def glu(self: Array, dim: int = -1) -> Array:
    """a * sigmoid(b), with a and b the halves of x along dim."""
    axis = canonical_dim(dim, self.ndim)
    first, second = jnp.split(self, 2, axis)
    return in_float32(lambda a, b: a * lax.logistic(b), first, second)
