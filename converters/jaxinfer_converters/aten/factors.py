"""Packed factors of matrices and what is made of them: Householder QR, LU, eigenvectors.

A Householder factorization holds R in the upper triangle and the reflectors v_i below the
diagonal, with Q = H_1 .. H_k and H_i = 1 - tau_i v_i v_i^H (LAPACK geqrf, orgqr, ormqr). An LU
factorization holds U in the upper triangle and L, whose diagonal is 1, below; its pivots count
from 1, and row i was exchanged with row pivots[i]. Eigenvectors have norm 1; their phases are a
choice and may differ from torch's. The eigenvalues of a general matrix exist on CPU only in
JAX, on other platforms where its own ``jax.lax.linalg.eig`` runs.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, rule
from jaxinfer_converters.aten.linalg import _full, _mh, _mt


@rule("aten.geqrf.default")
@_full
def geqrf(a: Array) -> tuple[Array, Array]:
    """(R and reflectors, tau) of a = Q R."""
    if a.size == 0:
        return a, jnp.zeros((*a.shape[:-2], min(a.shape[-2:])), a.dtype)
    packed, tau = jnp.linalg.qr(a, mode="raw")
    return _mt(packed), tau


@rule("aten.linalg_householder_product.default", "aten.orgqr.default")
@_full
def householder_product(a: Array, tau: Array) -> Array:
    """The first columns of Q = H_1 .. H_k, as many as a has."""
    return lax.linalg.householder_product(a, tau) if a.size else a


@rule("aten.ormqr.default")
@_full
def ormqr(a: Array, tau: Array, other: Array, left: bool = True, transpose: bool = False) -> Array:
    """Q c, or c Q if not left; Q^H for Q if transpose."""
    if a.size == 0 or other.size == 0:
        return other  # no reflector, or nothing to reflect
    rows = a.shape[-2]
    a = a[..., :rows]  # reflectors lie below the diagonal
    pad = [(0, 0)] * (a.ndim - 1) + [(0, rows - a.shape[-1])]
    q = householder_product(jnp.pad(a, pad), tau)
    q = _mh(q) if transpose else q
    return q @ other if left else other @ q


@rule("aten.lu_unpack.default")
def lu_unpack(
    data: Array, pivots: Array, unpack_data: bool = True, unpack_pivots: bool = True
) -> tuple[Array, Array, Array]:
    """(P, L, U) of a = P L U; what is not asked for is empty."""
    rows, columns = data.shape[-2:]
    small = min(rows, columns)
    p = lower = upper = jnp.zeros((0,), data.dtype)
    if unpack_data:
        lower = jnp.tril(data[..., :small], -1) + jnp.eye(rows, small, dtype=data.dtype)
        upper = jnp.triu(data[..., :small, :])
    if unpack_pivots:
        order = lax.linalg.lu_pivots_to_permutation(pivots - 1, rows)
        p = (order[..., None, :] == jnp.arange(rows)[:, None]).astype(data.dtype)
    return p, lower, upper


@rule("aten.linalg_eig.default")
@_full
def linalg_eig(a: Array) -> tuple[Array, Array]:
    """(λ, V) of a V = V diag(λ), complex."""
    if a.size == 0:
        dtype = jnp.result_type(a.dtype, jnp.complex64)
        return jnp.zeros(a.shape[:-1], dtype), jnp.zeros(a.shape, dtype)
    values, vectors = jnp.linalg.eig(a)
    return values, vectors


@rule("aten.linalg_eigvals.default", "aten._linalg_eigvals.default")
@_full
def linalg_eigvals(a: Array) -> Array:
    """λ of a v = λ v, complex."""
    if a.size == 0:
        return jnp.zeros(a.shape[:-1], jnp.result_type(a.dtype, jnp.complex64))
    return jnp.linalg.eigvals(a)
