"""Bessel functions of both kinds, modified ones of the second, and Ai, in orders 0 and 1.

Near the origin a ratio of polynomials in x^2, with the first zeros taken out; beyond x = 5 the
asymptotic form with modulus and phase,

    J(x) = sqrt(2 / (pi x)) (p cos(x - phase) - 5 / x q sin(x - phase))

K and Ai as in Cephes. Absolute error about 1e-6 in float32, 1e-15 in float64; the phase loses
the bits that x itself lacks. Source: S. L. Moshier, Methods and Programs for Mathematical
Functions, 1989 (https://www.netlib.org/cephes), which torch follows as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jax.scipy import special

from jaxinfer_converters.aten import _cephes as tables
from jaxinfer_converters.aten._common import Array, unary

TWO_OVER_PI = 2 / math.pi


def _poly(x: Array, coefficients: Sequence[float]) -> Array:
    """Evaluate the polynomial by Horner's rule, highest power first."""
    out = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        out = out * x + coefficient
    return out


def _chebyshev(x: Array, coefficients: Sequence[float]) -> Array:
    """Evaluate half the Chebyshev sum at x / 2 by Clenshaw's rule (Cephes chbevl)."""
    b0, b1, b2 = jnp.full_like(x, coefficients[0]), jnp.zeros_like(x), jnp.zeros_like(x)
    for coefficient in coefficients[1:]:
        b0, b1, b2 = x * b0 - b1 + coefficient, b0, b1
    return 0.5 * (b0 - b2)


def _far(x: Array, name: str, phase: float, *, second: bool) -> Array:
    """Return J (or Y) for x > 5 by modulus and phase."""
    pp, pq, qp, qq = (getattr(tables, f"{name}_{part}") for part in ("PP", "PQ", "QP", "QQ"))
    z = jnp.square(5 / x)
    p, q = _poly(z, pp) / _poly(z, pq), 5 / x * _poly(z, qp) / _poly(z, qq)
    cos, sin = lax.cos(x - phase), lax.sin(x - phase)
    return (p * sin + q * cos if second else p * cos - q * sin) * jnp.sqrt(TWO_OVER_PI / x)


def bessel_j0(x: Array) -> Array:
    """J_0(x), even."""
    x = jnp.abs(x)
    z = jnp.square(jnp.minimum(x, 5))
    near = _poly(z, tables.J0_RP) / _poly(z, tables.J0_RQ)
    near = (z - 5.78318596294678452118) * (z - 30.4712623436620863991) * near
    return jnp.where(x <= 5, near, _far(jnp.maximum(x, 5), "J0", math.pi / 4, second=False))


def bessel_j1(x: Array) -> Array:
    """J_1(x), odd."""
    a = jnp.abs(x)
    z = jnp.square(jnp.minimum(a, 5))
    near = _poly(z, tables.J1_RP) / _poly(z, tables.J1_RQ) * jnp.minimum(a, 5)
    near = near * (z - 14.6819706421238932572) * (z - 49.2184563216946036703)
    far = _far(jnp.maximum(a, 5), "J1", 3 * math.pi / 4, second=False)
    return jnp.where(x < 0, -1, 1) * jnp.where(a <= 5, near, far)


def _second(x: Array, near: Array, far: Array) -> Array:
    """Join the two ranges: -inf at 0, NaN below."""
    out = jnp.where(x <= 5, near, far)
    return jnp.where(x == 0, -jnp.inf, jnp.where(x < 0, jnp.nan, out))


def bessel_y0(x: Array) -> Array:
    """Y_0(x) = R(x^2) + 2 / pi log(x) J_0(x) for 0 < x <= 5."""
    low = jnp.where((x > 0) & (x <= 5), x, 1)
    near = _poly(low * low, tables.Y0_P) / _poly(low * low, tables.Y0_Q)
    near = near + TWO_OVER_PI * jnp.log(low) * bessel_j0(low)
    return _second(x, near, _far(jnp.maximum(x, 5), "J0", math.pi / 4, second=True))


def bessel_y1(x: Array) -> Array:
    """Y_1(x) = x R(x^2) + 2 / pi (log(x) J_1(x) - 1 / x) for 0 < x <= 5."""
    low = jnp.where((x > 0) & (x <= 5), x, 1)
    near = low * _poly(low * low, tables.Y1_P) / _poly(low * low, tables.Y1_Q)
    near = near + TWO_OVER_PI * (bessel_j1(low) * jnp.log(low) - 1 / low)
    return _second(x, near, _far(jnp.maximum(x, 5), "J1", 3 * math.pi / 4, second=True))


def _scaled_k(x: Array, order: int) -> Array:
    """exp(x) K_order(x): inf at 0, NaN below."""
    a, b = (getattr(tables, f"K{order}_{part}") for part in "AB")
    low, high = jnp.where((x > 0) & (x <= 2), x, 1), jnp.maximum(x, 2)
    sum_ = _chebyshev(low * low - 2, a)
    if order:
        near = jnp.log(0.5 * low) * special.i1(low) + sum_ / low
    else:
        near = sum_ - jnp.log(0.5 * low) * special.i0(low)
    far = _chebyshev(8 / high - 2, b) / jnp.sqrt(high)
    out = jnp.where(x <= 2, near * jnp.exp(low), far)
    return jnp.where(x == 0, jnp.inf, jnp.where(x < 0, jnp.nan, out))


def _k(order: int) -> Callable[[Array], Array]:
    """K_order(x)."""
    return lambda x: jnp.exp(-jnp.maximum(x, 0)) * _scaled_k(x, order)


def airy_ai(x: Array) -> Array:
    """Ai(x): its Maclaurin series for |x| < 2.09, Cephes' ratios beyond; NaN at infinity."""
    root = 1 / math.sqrt(math.pi)
    mid = jnp.clip(x, -2.09, 2.09)
    z = mid**3
    f = g = jnp.ones_like(x)
    for k in range(60, 0, -3):  # sum 3^n (1/3)_n x^(3n) / (3n)!, and the one of x
        f, g = 1 + z / ((k - 1) * k) * f, 1 + z / (k * (k + 1)) * g
    series = 0.355028053887817239260 * f - 0.258819403792806798405 * mid * g
    high = jnp.maximum(x, 2.09)
    zeta = 2 / 3 * high * jnp.sqrt(high)
    ratio = _poly(1 / zeta, tables.AIRY_AN) / _poly(1 / zeta, tables.AIRY_AD)
    decaying = root * ratio / (2 * jnp.sqrt(jnp.sqrt(high))) * jnp.exp(-zeta)
    low = jnp.maximum(-x, 2.09)
    zeta = 2 / 3 * low * jnp.sqrt(low)
    z = 1 / zeta
    p = 1 + z * z * _poly(z * z, tables.AIRY_AFN) / _poly(z * z, tables.AIRY_AFD)
    q = z * _poly(z * z, tables.AIRY_AGN) / _poly(z * z, tables.AIRY_AGD)
    phase = zeta + math.pi / 4
    waving = root / jnp.sqrt(jnp.sqrt(low)) * (jnp.sin(phase) * p - jnp.cos(phase) * q)
    out = jnp.where(x < -2.09, waving, jnp.where(x >= 2.09, decaying, series))
    return jnp.where(jnp.isinf(x), jnp.nan, out)


def spherical_bessel_j0(x: Array) -> Array:
    """sin(x) / x; its series near 0, 0 at infinity."""
    near = jnp.abs(x) < 0.5
    z = jnp.square(jnp.where(near, x, 0))
    series = jnp.ones_like(x)
    for k in range(12, 0, -2):
        series = 1 - z / (k * (k + 1)) * series
    away = jnp.where(near, 1, x)
    return jnp.where(jnp.isinf(x), 0, jnp.where(near, series, jnp.sin(away) / away))


for _name, _function in {
    "bessel_j0": bessel_j0,
    "bessel_j1": bessel_j1,
    "bessel_y0": bessel_y0,
    "bessel_y1": bessel_y1,
    "modified_bessel_i0": special.i0,
    "modified_bessel_i1": special.i1,
    "modified_bessel_k0": _k(0),
    "modified_bessel_k1": _k(1),
    "scaled_modified_bessel_k0": lambda x: _scaled_k(x, 0),
    "scaled_modified_bessel_k1": lambda x: _scaled_k(x, 1),
    "airy_ai": airy_ai,
    "spherical_bessel_j0": spherical_bessel_j0,
}.items():
    unary(_function, f"aten.special_{_name}.default", to_float=True)
