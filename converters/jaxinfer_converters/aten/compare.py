"""Comparisons, logic, bits, and selection by a condition.

Semantics: ``torch.*`` (https://docs.pytorch.org/docs/stable/torch.html#comparison-ops). Operands
are promoted first, so a number beside a half-precision tensor is rounded to it, as in torch.
``equal`` and ``allclose`` give Python bools from values, so they have no rule.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxinfer_converters.aten._common import (
    Array,
    binary,
    cast,
    category,
    promote,
    rule,
    unary,
)

for _name, _function in {
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
}.items():
    binary(_function, f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")

for _name, _function in {
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
}.items():
    binary(_function, *(f"aten.{_name}.{form}" for form in ("Tensor", "Scalar", "Scalar_Tensor")))
    _sign = f"__{_name.removeprefix('bitwise_')}__"  # x & y, x | y, x ^ y
    binary(_function, f"aten.{_sign}.Tensor", f"aten.{_sign}.Scalar")

for _name, _function in {
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
}.items():
    binary(lambda x, y, of=_function: of(cast(x, bool), cast(y, bool)), f"aten.{_name}.default")

unary(lambda x: ~cast(x, bool), "aten.logical_not.default")
unary(jnp.bitwise_not, "aten.bitwise_not.default")
unary(jnp.isnan, "aten.isnan.default")
unary(jnp.isinf, "aten.isinf.default")
unary(jnp.isfinite, "aten.isfinite.default")
unary(
    lambda x: jnp.signbit(x) if category(x.dtype) == 2 else jnp.less(x, jnp.zeros((), x.dtype)),
    "aten.signbit.default",
)


@rule("aten.isposinf.default")
def isposinf(self: Array) -> Array:
    """x == inf."""
    return self == jnp.inf if category(self.dtype) == 2 else jnp.zeros(self.shape, bool)


@rule("aten.isneginf.default")
def isneginf(self: Array) -> Array:
    """x == -inf."""
    return self == -jnp.inf if category(self.dtype) == 2 else jnp.zeros(self.shape, bool)


@rule(
    "aten.bitwise_left_shift.Tensor",
    "aten.bitwise_left_shift.Tensor_Scalar",
    "aten.bitwise_left_shift.Scalar_Tensor",
    "aten.__lshift__.Tensor",
    "aten.__lshift__.Scalar",
)
def left_shift(self: Any, other: Any) -> Array:
    """x << n; 0 for n below zero or at least the number of bits."""
    return jnp.left_shift(*promote(self, other))


@rule(
    "aten.bitwise_right_shift.Tensor",
    "aten.bitwise_right_shift.Tensor_Scalar",
    "aten.bitwise_right_shift.Scalar_Tensor",
    "aten.__rshift__.Tensor",
    "aten.__rshift__.Scalar",
)
def right_shift(self: Any, other: Any) -> Array:
    """x >> n, filled with the sign."""
    return jnp.right_shift(*promote(self, other))


@rule("aten.isclose.default")
def isclose(
    self: Array, other: Array, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Array:
    """x == y, or |x - y| finite and <= atol + |rtol * y|."""
    x, y = promote(self, other)
    close = x == y
    if equal_nan and category(x.dtype) >= 2:
        close = close | (jnp.isnan(x) & jnp.isnan(y))
    if category(x.dtype) < 2:
        error = cast(jnp.abs(cast(x, "int32") - cast(y, "int32")), jnp.float32)
        y = cast(y, jnp.float32)
    else:
        error = jnp.abs(x - y)
    return close | (jnp.isfinite(error) & (error <= atol + jnp.abs(rtol * y)))


@rule("aten.where.self", "aten.where.Scalar", "aten.where.ScalarSelf", "aten.where.ScalarOther")
def where(condition: Array, self: Any, other: Any) -> Array:
    """x where the condition holds, else y, broadcast and promoted."""
    x, y = promote(self, other)
    return jnp.where(cast(condition, bool), x, y)
