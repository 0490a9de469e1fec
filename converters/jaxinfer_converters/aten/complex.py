"""Complex numbers: parts, views, conjugates.

Semantics: ``torch.*`` (https://docs.pytorch.org/docs/stable/complex_numbers.html). JAX has no
complex half type: complex numbers of float16 parts raise ``TypeError``.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, category, promote_float, rule, unary

unary(lambda x: lax.real(x) if category(x.dtype) == 3 else x, "aten.real.default")
unary(lax.imag, "aten.imag.default")
unary(
    lambda x: lax.conj(x) if category(x.dtype) == 3 else x,
    "aten.conj.default",
    "aten._conj.default",
    "aten._conj_copy.default",
    "aten._conj_physical.default",
    "aten.conj_physical.default",
)
unary(lambda x: x, "aten.resolve_conj.default", "aten.resolve_neg.default")
unary(lax.neg, "aten._neg_view.default", "aten._neg_view_copy.default")


@rule("aten.view_as_real.default", "aten.view_as_real_copy.default")
def view_as_real(self: Array) -> Array:
    """The real and imaginary parts along a new last axis."""
    return jnp.stack([lax.real(self), lax.imag(self)], -1)


@rule("aten.view_as_complex.default", "aten.view_as_complex_copy.default")
def view_as_complex(self: Array) -> Array:
    """x[..., 0] + i x[..., 1]."""
    return lax.complex(self[..., 0], self[..., 1])


@rule("aten.complex.default")
def complex_of(real: Array, imag: Array) -> Array:
    """re + i im, broadcast."""
    return lax.complex(*jnp.broadcast_arrays(real, imag))


@rule("aten.polar.default")
def polar(abs: Array, angle: Array) -> Array:
    """abs * exp(i angle), broadcast."""
    return complex_of(abs * lax.cos(angle), abs * lax.sin(angle))


@rule("aten.angle.default")
def angle(self: Any) -> Array:
    """atan2(im, re); of real numbers 0 or, below zero, pi; NaN stays."""
    (x,) = promote_float(self)
    if category(x.dtype) == 3:
        return lax.atan2(lax.imag(x), lax.real(x))
    return jnp.where(jnp.isnan(x), x, jnp.where(x < 0, math.pi, 0.0).astype(x.dtype))
