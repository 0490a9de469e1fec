"""Elementwise arithmetic of two and three tensors or numbers, broadcast and promoted.

Semantics: ``torch.*`` (https://docs.pytorch.org/docs/stable/torch.html#pointwise-ops). A Python
number (or a wider 0-dimensional tensor) beside a half-precision tensor is used in float32 by
products and quotients, and rounded to the half type first by sums, as torch does on CPUs. An
integer division by zero, an error in torch, gives an unspecified number here: values are not
known while tracing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import (
    FLOAT,
    Array,
    Number,
    acc_dtype,
    binary,
    cast,
    category,
    in_float32,
    is_array,
    promote,
    promote_float,
    result_type,
    rule,
)


def _compute(fn: Callable[..., Array], *xs: Any, to_float: bool = False) -> Array:
    """Compute ``fn`` in the accumulation dtype of the promoted operands and round once."""
    dtype = result_type(*xs)
    if to_float and category(dtype) < 2:
        dtype = FLOAT
    wide = acc_dtype(dtype)
    return cast(fn(*(cast(x, wide) for x in xs)), dtype)


def _compute_once(fn: Callable[..., Array], *xs: Any, to_float: bool = False) -> Array:
    """As ``_compute`` for an ``fn`` that rounds once: equal dtypes need no widening."""
    if all(is_array(x) for x in xs):
        dtype = xs[0].dtype
        if all(x.dtype == dtype for x in xs) and (category(dtype) >= 2 or not to_float):
            return fn(*xs)
    return _compute(fn, *xs, to_float=to_float)


@rule("aten.add.Tensor", "aten.add.Scalar")
def add(self: Any, other: Any, alpha: Number = 1) -> Array:
    """x + alpha * y; of bools: or."""
    x, y = promote(self, other)
    if isinstance(alpha, (bool, int)) and alpha == 1:
        return jnp.add(x, y)
    return in_float32(lambda x, y, a: x + a * y, x, y, cast(alpha, x.dtype))


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def sub(self: Any, other: Any, alpha: Number = 1) -> Array:
    """x - alpha * y."""
    x, y = promote(self, other)
    if isinstance(alpha, (bool, int)) and alpha == 1:
        return jnp.subtract(x, y)
    return in_float32(lambda x, y, a: x - a * y, x, y, cast(alpha, x.dtype))


@rule("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(self: Any, other: Any, alpha: Number = 1) -> Array:
    """y - alpha * x."""
    return sub(other, self, alpha)


@rule("aten.mul.Tensor", "aten.mul.Scalar")
def mul(self: Any, other: Any) -> Array:
    """x * y; of bools: and."""
    return _compute_once(jnp.multiply, self, other)


@rule("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", "aten.true_divide.Scalar")
def div(self: Any, other: Any) -> Array:
    """x / y; of integers: in float32."""
    return _compute_once(lax_divide, self, other, to_float=True)


def lax_divide(x: Array, y: Array) -> Array:
    """x / y of equal dtypes, broadcast."""
    return lax.div(*jnp.broadcast_arrays(x, y))


@rule("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(self: Any, other: Any, *, rounding_mode: str | None) -> Array:
    """x / y, rounded towards zero (``trunc``) or down (``floor``); integers stay integers."""
    if rounding_mode is None:
        return div(self, other)
    if rounding_mode == "floor":
        return _compute(_floor_divide, self, other)
    if rounding_mode != "trunc":
        raise ValueError(f"rounding_mode is {rounding_mode!r}, required 'trunc' or 'floor'")
    if category(result_type(self, other)) < 2:
        return _compute(lax_divide, self, other)
    return _compute(lambda x, y: jnp.trunc(_exact_quotient(x, y)), self, other)


def _exact_quotient(x: Array, y: Array) -> Array:
    """x / y correctly rounded: XLA multiplies by 1 / y if y is a scalar, unless kept from it."""
    x, y = jnp.broadcast_arrays(x, y)
    return lax.div(x, lax.optimization_barrier(y))


def _floor_divide(x: Array, y: Array) -> Array:
    """floor(x / y), exact also where x / y rounds up (c10/util/generic_math.h)."""
    if category(x.dtype) < 2:
        return jnp.floor_divide(x, y)
    mod = jnp.fmod(x, y)
    quotient = (x - mod) / y - cast((mod != 0) & ((y < 0) != (mod < 0)), x.dtype)
    whole = lax.floor(quotient)
    whole = whole + cast(quotient - whole > 0.5, x.dtype)
    whole = jnp.where(quotient == 0, jnp.copysign(jnp.zeros_like(whole), x / y), whole)
    return jnp.where(y == 0, x / y, whole)


@rule("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(self: Any, other: Any) -> Array:
    """floor(x / y)."""
    return _compute(_floor_divide, self, other)


@rule("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def remainder(self: Any, other: Any) -> Array:
    """x - floor(x / y) * y: the sign of y."""
    return _compute(jnp.remainder, self, other)


@rule("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(self: Any, other: Any) -> Array:
    """x - trunc(x / y) * y: the sign of x."""
    return _compute(jnp.fmod, self, other)


def _power(x: Array, y: Array) -> Array:
    """x ** y; an integer to a negative power is 0, but for 1 and -1."""
    if category(x.dtype) >= 2:
        return jnp.power(x, y)
    if x.dtype == np.dtype("bool"):
        return x | ~y
    if x.dtype.kind == "u":
        return jnp.power(x, y)
    odd_sign = jnp.where(y % 2 == 0, 1, x)
    negative = jnp.where(x == 1, 1, jnp.where(x == -1, odd_sign, 0))
    return jnp.where(y < 0, negative, jnp.power(x, jnp.maximum(y, 0))).astype(x.dtype)


@rule("aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def pow_tensor(self: Any, exponent: Any) -> Array:
    """x ** y, element by element."""
    return _compute(_power, self, exponent)


@rule("aten.pow.Tensor_Scalar")
def pow_scalar(self: Array, exponent: Number) -> Array:
    """x ** n; small whole powers by multiplication, halves by square roots, as in torch."""
    dtype = result_type(self, exponent)
    if is_array(exponent) or isinstance(exponent, (bool, complex)):
        return _compute(_power, self, exponent)
    if category(dtype) < 2 and exponent < 0:
        raise ValueError("integers to negative integer powers are not allowed")
    wide = cast(self, acc_dtype(dtype))
    if float(exponent).is_integer() and (category(dtype) == 1 or abs(exponent) <= 4):
        out = lax.integer_pow(wide, int(exponent))
    elif exponent == 0.5:
        out = lax.sqrt(wide)
    elif exponent == -0.5:
        out = lax.rsqrt(wide)
    else:
        out = jnp.power(wide, cast(exponent, wide.dtype))
    return cast(out, dtype)


@rule("aten.float_power.Tensor_Tensor", "aten.float_power.Tensor_Scalar", "aten.float_power.Scalar")
def float_power(self: Any, exponent: Any) -> Array:
    """x ** y in torch's float64 or complex128, as JAX holds them."""
    wide = "complex128" if category(result_type(self, exponent)) == 3 else "float64"
    dtype = dtypes.canonical(wide)
    return jnp.power(cast(self, dtype), cast(exponent, dtype))


binary(jnp.maximum, "aten.maximum.default")
binary(jnp.minimum, "aten.minimum.default")
binary(jnp.fmax, "aten.fmax.default")
binary(jnp.fmin, "aten.fmin.default")
binary(jnp.arctan2, "aten.atan2.default", to_float=True)
binary(jnp.hypot, "aten.hypot.default", to_float=True)
binary(jnp.logaddexp, "aten.logaddexp.default", to_float=True)
binary(jnp.logaddexp2, "aten.logaddexp2.default", to_float=True)
binary(jnp.copysign, "aten.copysign.Tensor", "aten.copysign.Scalar", to_float=True)
binary(jnp.gcd, "aten.gcd.default")
binary(jnp.lcm, "aten.lcm.default")


@rule("aten.nextafter.default")
def nextafter(self: Array, other: Array) -> Array:
    """The next number after x towards y, in their own dtype."""
    return jnp.nextafter(*promote(self, other))


@rule("aten.heaviside.default")
def heaviside(self: Array, values: Array) -> Array:
    """0 below zero, ``values`` at zero, 1 above; 0 at NaN as in torch."""
    x, y = promote(self, values)
    return jnp.where(x == 0, y, cast(x > 0, y.dtype))


@rule("aten.ldexp.Tensor")
def ldexp(self: Array, other: Array) -> Array:
    """x * 2**y."""
    return _compute(lambda x, y: x * lax.exp2(y), self, other, to_float=True)


@rule("aten.clamp.default", "aten.clamp.Tensor")
def clamp(self: Array, min: Any = None, max: Any = None) -> Array:
    """min(max(x, low), high): NaN anywhere gives NaN; high wins if low > high."""
    low, high = min, max
    dtype = result_type(self, *(bound for bound in (low, high) if bound is not None))
    out = cast(self, dtype)
    if low is not None:
        out = jnp.maximum(out, cast(low, dtype))
    return out if high is None else jnp.minimum(out, cast(high, dtype))


@rule("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(self: Array, min: Any) -> Array:
    """max(x, low)."""
    return clamp(self, min)


@rule("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(self: Array, max: Any) -> Array:
    """min(x, high)."""
    return clamp(self, None, max)


@rule("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(self: Array, end: Array, weight: Any) -> Array:
    """x + w (y - x), from the nearer end."""
    dtype = result_type(self, end)
    x, y, w = (cast(value, acc_dtype(dtype)) for value in (self, end, weight))
    near = jnp.abs(w) < 0.5
    return cast(jnp.where(near, x + w * (y - x), y - (y - x) * (1 - w)), dtype)


@rule("aten.addcmul.default")
def addcmul(self: Array, tensor1: Array, tensor2: Array, *, value: Number = 1) -> Array:
    """x + value * a * b."""
    return _compute(lambda x, a, b: x + cast(value, x.dtype) * a * b, self, tensor1, tensor2)


@rule("aten.addcdiv.default")
def addcdiv(self: Array, tensor1: Array, tensor2: Array, *, value: Number = 1) -> Array:
    """x + value * a / b."""
    return _compute(lambda x, a, b: x + cast(value, x.dtype) * (a / b), self, tensor1, tensor2)


def _x_log(log: Callable[[Array], Array], x: Array, y: Array) -> Array:
    """x * log(y), 0 where x is 0, NaN where y is; the derivative at x = 0 is log(y) or 0."""
    zero = (x == 0) & ~jnp.isfinite(log(y)) & ~jnp.isnan(y)
    return jnp.where(zero, 0, x * log(jnp.where(zero, 1, y)))


@rule("aten.xlogy.Tensor", "aten.xlogy.Scalar_Other", "aten.xlogy.Scalar_Self")
def xlogy(self: Any, other: Any) -> Array:
    """x log(y), 0 where x is 0."""
    return _compute(lambda x, y: _x_log(lax.log, x, y), *promote_float(self, other))


@rule(
    "aten.special_xlog1py.default",
    "aten.special_xlog1py.other_scalar",
    "aten.special_xlog1py.self_scalar",
)
def xlog1py(self: Any, other: Any) -> Array:
    """x log(1 + y), 0 where x is 0."""
    return _compute(lambda x, y: _x_log(lax.log1p, x, y), *promote_float(self, other))
