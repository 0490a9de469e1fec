"""Special functions: error, gamma and Bessel functions and their relatives.

Semantics: ``torch.special`` (https://docs.pytorch.org/docs/stable/special.html), in float32 where
torch computes half types and integers so. Bessel functions of other kinds and Airy
functions are in bessel.py, orthogonal polynomials in polynomials.py.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import custom_derivatives, lax
from jax.scipy import special

from jaxinfer_converters.aten._common import (
    Array,
    binary,
    in_float32,
    promote_float,
    rule,
    unary,
)

for _name, _function in {
    "erf": lax.erf,
    "erfc": lax.erfc,
    "erfinv": lax.erf_inv,
    "lgamma": lax.lgamma,
    "digamma": lambda x: jnp.where(x == 0, -jnp.copysign(jnp.inf, x), lax.digamma(x)),
    "i0": special.i0,
    "special_i0e": special.i0e,
    "special_i1": special.i1,
    "special_i1e": special.i1e,
    "special_entr": special.entr,
    "special_ndtr": special.ndtr,
    "special_log_ndtr": special.log_ndtr,
    "special_ndtri": special.ndtri,
}.items():
    unary(_function, f"aten.{_name}.default", to_float=True)

binary(lambda a, x: lax.igamma(*jnp.broadcast_arrays(a, x)), "aten.igamma.default", to_float=True)
binary(lambda a, x: lax.igammac(*jnp.broadcast_arrays(a, x)), "aten.igammac.default", to_float=True)


@jax.custom_jvp
def zeta(s: Array, q: Array) -> Array:
    """sum over k >= 0 of (q + k)^-s; s = 1 and whole q <= 0 give inf, s < 1 NaN.

    For q < 0 and a whole s the terms below zero are added one by one, as torch does.
    """
    below = (q < 0) & (s > 1) & (s == jnp.floor(s)) & (q != jnp.floor(q))
    steps = jnp.where(below, jnp.ceil(-q), 0)

    def body(state: tuple[Array, Array]) -> tuple[Array, Array]:
        k, total = state
        return k + 1, total + jnp.where(k < steps, jnp.power(q + k, -s), 0)

    first = (jnp.zeros((), q.dtype), jnp.zeros_like(q))
    count = jnp.max(steps, initial=0)
    _, head = lax.while_loop(lambda state: state[0] < count, body, first)
    out = head + special.zeta(s, jnp.where(q > 0, q, jnp.where(below, q + steps, 1)))
    out = jnp.where(q > 0, out, jnp.where(below, out, jnp.nan))
    out = jnp.where((q <= 0) & (q == jnp.floor(q)), jnp.inf, out)
    return jnp.where(s == 1, jnp.inf, jnp.where(s < 1, jnp.nan, out))


@functools.partial(zeta.defjvp, symbolic_zeros=True)
def _zeta_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """By q alone: -s zeta(s + 1, q)."""
    (s, q), (ds, dq) = primals, tangents
    if not isinstance(ds, custom_derivatives.SymbolicZero):
        raise NotImplementedError("the derivative of zeta by its exponent, which torch lacks too")
    value = zeta(s, q)
    if isinstance(dq, custom_derivatives.SymbolicZero):
        return value, jnp.zeros_like(value)
    return value, -s * zeta(s + 1, q) * dq


binary(
    lambda s, q: zeta(*jnp.broadcast_arrays(s, q)),
    "aten.special_zeta.default",
    "aten.special_zeta.other_scalar",
    "aten.special_zeta.self_scalar",
    to_float=True,
)


def _cotangent(n: int, x: Array) -> Array:
    """The n-th derivative of cot(pi x): pi^n P_n(cot pi x), P_{n+1}(c) = -(1 + c^2) P_n'(c)."""
    terms = np.polynomial.Polynomial([0.0, 1.0])
    for _ in range(n):
        terms = -np.polynomial.Polynomial([1.0, 0.0, 1.0]) * terms.deriv()
    c = 1 / jnp.tan(math.pi * (x - jnp.round(x)))
    return math.pi**n * jnp.polyval(jnp.asarray(terms.coef[::-1], x.dtype), c)


@rule("aten.polygamma.default")
def polygamma(n: int, self: Array) -> Array:
    """The n-th derivative of digamma: (-1)^(n+1) n! zeta(n + 1, x).

    Reflected for x < 1/2: psi_n(x) = (-1)^n psi_n(1 - x) - pi d^n cot(pi x) / dx^n.
    """

    def apply(x: Array) -> Array:
        if n == 0:
            return lax.digamma(x)
        reflect = x < 0.5
        factor = (-1.0) ** (n + 1) * math.gamma(n + 1.0)
        inner = special.zeta(jnp.full_like(x, n + 1.0), jnp.where(reflect, 1 - x, x)) * factor
        out = jnp.where(reflect, (-1) ** n * inner - math.pi * _cotangent(n, x), inner)
        pole = (x <= 0) & (x == jnp.floor(x))
        return jnp.where(pole, math.copysign(math.inf, factor), out)

    return in_float32(apply, *promote_float(self))


@rule("aten.mvlgamma.default")
def mvlgamma(self: Array, p: int) -> Array:
    """p (p - 1) / 4 log(pi) + sum over j < p of lgamma(x - j / 2)."""

    def apply(x: Array) -> Array:
        terms = jnp.stack([lax.lgamma(x - j / 2) for j in range(p)])
        return terms.sum(0) + p * (p - 1) / 4 * math.log(math.pi)

    return in_float32(apply, *promote_float(self))


@rule("aten.special_erfcx.default")
def erfcx(self: Array) -> Array:
    """exp(x^2) erfc(x); from x = 5 by the asymptotic series, whose error there is below 1e-6.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.23, 1964.
    """

    def apply(x: Array) -> Array:
        far = x > 5
        near = jnp.where(far, 0, x)
        u = 0.5 / jnp.square(jnp.where(far, x, 5))
        series = 1 - u * (1 - 3 * u * (1 - 5 * u * (1 - 7 * u * (1 - 9 * u))))
        asymptotic = series / (jnp.where(far, x, 5) * math.sqrt(math.pi))
        return jnp.where(far, asymptotic, lax.exp(near * near) * lax.erfc(near))

    return in_float32(apply, *promote_float(self))
