"""Orthogonal polynomials P_n(x), n and x arrays or numbers: Chebyshev, Hermite, Laguerre, Legendre.

By the three-term recurrence P_{k+1} = a_k(x) P_k - b_k P_{k-1} with a loop to the largest n,
each element taking its own P_n as it goes by; n is truncated to an integer, and P_n is 0 for
n < 0, as in torch. Chebyshev polynomials of |x| < 1 and large n come from

    T_n = cos n t,  U_n = sin (n + 1) t / sin t,  V_n = cos (n + 1/2) t / cos t/2,
    W_n = sin (n + 1/2) t / sin t/2        with x = cos t

(shifted ones are those of 2 x - 1). Not differentiable backwards, as in torch. Source:
Abramowitz and Stegun, Handbook of Mathematical Functions, 22.3 and 22.7, 1964.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, promote_float, rule

CLOSED = 6  # n from which Chebyshev polynomials of |x| < 1 are computed from the angle
HERMITE_LIMIT = {4: 128, 8: 512}  # n above which torch gives NaN, by itemsize

Step = Callable[[Array, Array, Array, Array], Array]


def _recurrence(x: Array, n: Array, first: Array, step: Step, go: Array) -> Array:
    """Return P_n(x) where go, from P_0 = 1, P_1 = first and P_{k+1} = step(k, x, P_k, P_{k-1}).

    An element stops at NaN: beyond infinity there is no difference to take.
    """
    last = jnp.max(jnp.where(go, n, 0), initial=0)

    def body(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        k, p, q = state
        on = go & (k < n) & ~jnp.isnan(q)
        return k + 1, jnp.where(on, q, p), jnp.where(on, step(k, x, q, p), q)

    def more(state: tuple[Array, Array, Array]) -> Array:
        k, _, q = state
        return (k < last) & jnp.any(go & (k < n) & ~jnp.isnan(q))

    start = (jnp.ones((), n.dtype), jnp.ones_like(x), first)
    _, _, q = lax.while_loop(more, body, start)
    return jnp.where(n < 0, 0, jnp.where(n == 0, 1, q)).astype(x.dtype)


def _polynomial(name: str, compute: Callable[[Array, Array], Array]) -> None:
    """Register P_n(x) for arrays, and for a number as either."""

    def apply(x: Any, n: Any) -> Array:
        x, order = jnp.broadcast_arrays(*promote_float(x, n))
        return compute(x, jnp.trunc(order).astype(jnp.int32))

    rule(*(f"aten.special_{name}.{overload}" for overload in ("default", "x_scalar", "n_scalar")))(
        apply
    )


def _ends(n: Array, kind: int) -> Array:
    """Return 1, n + 1 or 2 n + 1, as a Chebyshev polynomial has at 1 and, but for sign, at -1."""
    return (jnp.ones_like(n), n + 1, 2 * n + 1)[kind]


_KINDS = {
    # P_1, form in the angle t, kinds of the ends 1 and -1
    "t": (lambda x: x, lambda n, t: jnp.cos(n * t), 0, 0),
    "u": (lambda x: 2 * x, lambda n, t: jnp.sin((n + 1) * t) / jnp.sin(t), 1, 1),
    "v": (lambda x: 2 * x - 1, lambda n, t: jnp.cos((n + 0.5) * t) / jnp.cos(t / 2), 0, 2),
    "w": (lambda x: 2 * x + 1, lambda n, t: jnp.sin((n + 0.5) * t) / jnp.sin(t / 2), 2, 0),
}


def _chebyshev(kind: str, x: Array, n: Array) -> Array:
    """T, U, V or W."""
    first, angle, at_one, at_minus_one = _KINDS[kind]
    closed = (n > CLOSED) & (jnp.abs(x) < 1)
    step = lambda k, x, q, p: 2 * x * q - p
    out = _recurrence(x, n, first(x), step, ~closed & (jnp.abs(x) != 1))
    t = jnp.arccos(jnp.where(closed, x, 0.5))
    out = jnp.where(closed, angle(n.astype(x.dtype), t), out)
    minus = _ends(n, at_minus_one) * jnp.where(n % 2 == 0, 1, -1)
    out = jnp.where(x == 1, _ends(n, at_one), jnp.where(x == -1, minus, out))
    return jnp.where(n < 0, 0, out).astype(x.dtype)


def _register_chebyshev(kind: str) -> None:
    _polynomial(f"chebyshev_polynomial_{kind}", lambda x, n: _chebyshev(kind, x, n))
    shifted = lambda x, n: _chebyshev(kind, 2 * x - 1, n)
    _polynomial(f"shifted_chebyshev_polynomial_{kind}", shifted)


for _kind in _KINDS:
    _register_chebyshev(_kind)


def _everywhere(n: Array) -> Array:
    return jnp.ones(n.shape, bool)


def hermite_h(x: Array, n: Array) -> Array:
    """H_{k+1} = 2 x H_k - 2 k H_{k-1}; NaN above torch's limit of n."""
    out = _recurrence(x, n, 2 * x, lambda k, x, q, p: 2 * x * q - 2 * k * p, _everywhere(n))
    return jnp.where(n > HERMITE_LIMIT[np.dtype(x.dtype).itemsize], jnp.nan, out)


def hermite_he(x: Array, n: Array) -> Array:
    """He_{k+1} = x He_k - k He_{k-1}; NaN above torch's limit of n."""
    out = _recurrence(x, n, x, lambda k, x, q, p: x * q - k * p, _everywhere(n))
    return jnp.where(n > HERMITE_LIMIT[np.dtype(x.dtype).itemsize], jnp.nan, out)


def laguerre_l(x: Array, n: Array) -> Array:
    """(k + 1) L_{k+1} = (2 k + 1 - x) L_k - k L_{k-1}; 1 at 0."""
    step = lambda k, x, q, p: ((2 * k + 1 - x) * q - k * p) / (k + 1)
    out = _recurrence(x, n, 1 - x, step, x != 0)
    return jnp.where((x == 0) & (n >= 0), 1, out)


def legendre_p(x: Array, n: Array) -> Array:
    """(k + 1) P_{k+1} = (2 k + 1) x P_k - k P_{k-1}; 1 or (-1)^n at 1 and -1."""
    step = lambda k, x, q, p: ((2 * k + 1) * x * q - k * p) / (k + 1)
    out = _recurrence(x, n, x, step, jnp.abs(x) != 1)
    ends = jnp.where((x > 0) | (n % 2 == 0), 1, -1)
    return jnp.where((jnp.abs(x) == 1) & (n >= 0), ends, out).astype(x.dtype)


for _function in (hermite_h, hermite_he, laguerre_l, legendre_p):
    _name, _suffix = _function.__name__.split("_")
    _polynomial(f"{_name}_polynomial_{_suffix}", _function)
