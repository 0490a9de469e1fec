"""Special functions: error, gamma and Bessel functions and their relatives.

Semantics: ``torch.special`` (https://docs.pytorch.org/docs/stable/special.html), in float32 where
torch computes half types and integers so. Bessel functions of other kinds and Airy
functions are in bessel.py, orthogonal polynomials in polynomials.py.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
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
binary(
    special.zeta,
    "aten.special_zeta.default",
    "aten.special_zeta.other_scalar",
    "aten.special_zeta.self_scalar",
    to_float=True,
)


def _trigamma(x: Array) -> Array:
    """zeta(2, x), reflected for x < 1/2: psi1(1 - x) + psi1(x) = (pi / sin(pi x))^2."""
    reflect = x < 0.5
    inner = special.zeta(jnp.full_like(x, 2.0), jnp.where(reflect, 1 - x, x))
    return jnp.where(reflect, (math.pi / jnp.sin(math.pi * x)) ** 2 - inner, inner)


@rule("aten.polygamma.default")
def polygamma(n: int, self: Array) -> Array:
    """The n-th derivative of digamma: (-1)^(n+1) n! zeta(n + 1, x) for n >= 2."""

    def apply(x: Array) -> Array:
        if n == 0:
            return lax.digamma(x)
        if n == 1:
            return _trigamma(x)
        factor = (-1.0) ** (n + 1) * math.gamma(n + 1.0)
        return factor * special.zeta(jnp.full_like(x, n + 1.0), x)

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
