"""Elementwise functions of one tensor: rounding, powers, exponentials, trigonometry.

Semantics: ``torch.*`` (https://docs.pytorch.org/docs/stable/torch.html#pointwise-ops). Integers
become float32 where torch says so; half types are computed in float32 and rounded once.
Activations are in activations.py, special functions in special.py.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import (
    Array,
    cast,
    category,
    in_float32,
    promote,
    promote_float,
    rule,
    unary,
)


def _sinc(x: Array) -> Array:
    """sin(pi x) / (pi x), 1 at 0; NaN at infinity, which ``jnp.sinc`` gives as 0 from jax 0.11."""
    zero = x == 0
    turns = jnp.where(zero, 1, x) * np.pi
    return jnp.where(zero, 1, lax.sin(turns) / turns).astype(x.dtype)


for _name, _function in {
    "acos": lax.acos,
    "acosh": lax.acosh,
    "asin": lax.asin,
    "asinh": lax.asinh,
    "atan": lax.atan,
    "atanh": lax.atanh,
    "cos": lax.cos,
    "cosh": lax.cosh,
    "exp": lax.exp,
    "exp2": lax.exp2,
    "expm1": lax.expm1,
    "log": lax.log,
    "log10": jnp.log10,
    "log1p": lax.log1p,
    "log2": jnp.log2,
    "reciprocal": lambda x: lax.integer_pow(x, -1),
    "rsqrt": lax.rsqrt,
    "sin": lax.sin,
    "sinc": _sinc,
    "sinh": lax.sinh,
    "sqrt": lax.sqrt,
    "tan": lax.tan,
}.items():
    unary(_function, f"aten.{_name}.default", to_float=True)

unary(lambda x: x * (math.pi / 180), "aten.deg2rad.default", to_float=True)
unary(lambda x: x * (180 / math.pi), "aten.rad2deg.default", to_float=True)
unary(lax.neg, "aten.neg.default")
unary(lambda x: x, "aten.positive.default")


def _floats_only(function):
    """Leave bools and integers as they are."""
    return lambda x: function(x) if category(x.dtype) >= 2 else x


unary(_floats_only(lax.floor), "aten.floor.default")
unary(_floats_only(lax.ceil), "aten.ceil.default")
unary(_floats_only(jnp.trunc), "aten.trunc.default")
unary(
    _floats_only(lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)), "aten.round.default"
)
unary(lambda x: x - jnp.trunc(x), "aten.frac.default")
unary(jnp.abs, "aten.abs.default")


@rule("aten.round.decimals")
def round_decimals(self: Array, *, decimals: int) -> Array:
    """round(x * 10**decimals) / 10**decimals, ties to even."""
    if category(self.dtype) < 2:
        return self
    scale = 10.0 ** abs(decimals)
    if decimals < 0:
        return in_float32(lambda x: jnp.round(x / scale) * scale, self)
    return in_float32(lambda x: jnp.round(x * scale) / scale, self)


@rule("aten.sign.default")
def sign(self: Array) -> Array:
    """-1, 0 or 1; NaN gives 0 as in torch; a bool is itself."""
    if category(self.dtype) == 0:
        return self
    return cast(self > 0, self.dtype) - cast(self < 0, self.dtype)


@rule("aten.sgn.default")
def sgn(self: Array) -> Array:
    """z / |z|, and 0 at 0; ``sign`` for real numbers."""
    if category(self.dtype) < 3:
        return sign(self)
    size = lax.abs(self)
    return jnp.where(size == 0, 0, self / jnp.where(size == 0, 1, size))


@rule("aten.square.default")
def square(self: Array) -> Array:
    """x * x; a bool becomes an integer."""
    if category(self.dtype) == 0:
        (self, _) = promote(self, 2)
    return self * self


@rule("aten.logit.default")
def logit(self: Array, eps: float | None = None) -> Array:
    """log(x / (1 - x)), with x clamped to [eps, 1 - eps] if eps is given."""

    def apply(x: Array) -> Array:
        if eps is not None:
            x = jnp.where(x < eps, eps, jnp.where(x > 1 - eps, 1 - eps, x)).astype(x.dtype)
        return lax.log(x / (1 - x))

    return in_float32(apply, *promote_float(self))


@rule("aten.nan_to_num.default")
def nan_to_num(
    self: Array,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Array:
    """NaN, inf and -inf replaced; by 0 and the dtype's largest and smallest numbers if None."""
    if category(self.dtype) < 2:
        return self
    if category(self.dtype) == 3:
        parts = (nan_to_num(part, nan, posinf, neginf) for part in (self.real, self.imag))
        return lax.complex(*parts)
    info = jnp.finfo(self.dtype)
    out = jnp.where(jnp.isnan(self), cast(0.0 if nan is None else nan, self.dtype), self)
    high = info.max if posinf is None else cast(posinf, self.dtype)
    low = info.min if neginf is None else cast(neginf, self.dtype)
    out = jnp.where(self == jnp.inf, jnp.asarray(high, self.dtype), out)
    return jnp.where(self == -jnp.inf, jnp.asarray(low, self.dtype), out)


@rule("aten.frexp.Tensor")
def frexp(self: Array) -> tuple[Array, Array]:
    """(m, e) with x = m * 2**e and 0.5 <= |m| < 1; e is int32."""
    mantissa, exponent = jnp.frexp(self)
    return mantissa, cast(exponent, "int32")
