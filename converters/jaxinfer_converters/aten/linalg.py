"""Decompositions, solvers, determinants and functions of matrices, over leading batch dims.

What ``jax.lax.linalg`` computes, with torch's outputs (https://docs.pytorch.org/docs/stable/linalg.html).
All products inside run in full float32. Where torch raises because a matrix is singular or not
positive definite, a traced function cannot: the result is inf or NaN, and ``info`` (of the
``_ex`` operators) is the place of the zero pivot, or 1 for a failed Cholesky decomposition.
Signs of singular and eigenvectors are a choice; they may differ from torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, rule

LU = tuple[Array, Array, Array]


def _full(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Trace ``fn`` with float32 products in float32, unless the user has chosen otherwise."""

    @functools.wraps(fn)
    def traced(*args: Any, **kwargs: Any) -> Any:
        chosen = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        with jax.default_matmul_precision(chosen or "highest"):
            return fn(*args, **kwargs)

    return traced


def _mt(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _mh(x: Array) -> Array:
    return jnp.conj(_mt(x))


def _info(lu: Array) -> Array:
    """The place, from 1, of the first zero on the diagonal; 0 for none."""
    zero = jnp.diagonal(lu, axis1=-2, axis2=-1) == 0
    if zero.shape[-1] == 0:
        return jnp.zeros(zero.shape[:-1], np.int32)
    return jnp.where(jnp.any(zero, -1), jnp.argmax(zero, -1) + 1, 0).astype(np.int32)


def _lu(a: Array) -> LU:
    """(LU, pivots from 1, permutation)."""
    lu, pivots, permutation = lax.linalg.lu(a)
    return lu, pivots + 1, permutation


def _invert(a: Array) -> Array:
    return jnp.linalg.inv(a) if a.size else a


rule("aten.linalg_inv.default", "aten.inverse.default")(_full(_invert))


@rule("aten.linalg_inv_ex.default")
@_full
def linalg_inv_ex(a: Array, *, check_errors: bool = False) -> tuple[Array, Array]:
    """(a⁻¹, info)."""
    del check_errors
    return _invert(a), _info(_lu(a)[0])


def _solve(a: Array, b: Array, left: bool) -> Array:
    """X of a x = b (x a = b); b is a vector, or as many as a has batches."""
    vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    b = b[..., None] if vector else b
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    if b.size == 0:
        out = b
    elif left or vector:
        out = jnp.linalg.solve(a, b)
    else:
        out = _mt(jnp.linalg.solve(_mt(a), _mt(b)))
    return out[..., 0] if vector else out


@rule("aten.linalg_solve.default")
@_full
def linalg_solve(a: Array, b: Array, *, left: bool = True) -> Array:
    """X of a x = b, or of x a = b if not left."""
    return _solve(a, b, left)


@rule("aten.linalg_solve_ex.default")
@_full
def linalg_solve_ex(
    a: Array, b: Array, *, left: bool = True, check_errors: bool = False
) -> tuple[Array, Array]:
    """(x of a x = b, info)."""
    del check_errors
    return _solve(a, b, left), _info(_lu(a)[0])


@rule("aten._linalg_solve_ex.default")
@_full
def linalg_solve_primitive(
    a: Array, b: Array, *, left: bool = True, check_errors: bool = False
) -> tuple[Array, Array, Array, Array]:
    """(x of a x = b, LU of a (of aᵀ if not left), its pivots, info)."""
    del check_errors
    lu, pivots, _ = _lu(a if left else _mt(a))
    return _solve(a, b, left), lu, pivots, _info(lu)


def _cholesky(a: Array, upper: bool) -> Array:
    """L of a = L Lᴴ from the lower triangle, or Lᴴ from the upper one."""
    if a.size == 0:
        return a
    factor = lax.linalg.cholesky(_mh(a) if upper else a, symmetrize_input=False)
    factor = jnp.tril(factor)
    return _mh(factor) if upper else factor


@rule("aten.cholesky.default")
@_full
def cholesky(a: Array, upper: bool = False) -> Array:
    """L of a = L Lᴴ; upper: Lᴴ."""
    return _cholesky(a, upper)


@rule("aten.linalg_cholesky.default")
@_full
def linalg_cholesky(a: Array, *, upper: bool = False) -> Array:
    """L of a = L Lᴴ; upper: Lᴴ."""
    return _cholesky(a, upper)


@rule("aten.linalg_cholesky_ex.default")
@_full
def linalg_cholesky_ex(
    a: Array, *, upper: bool = False, check_errors: bool = False
) -> tuple[Array, Array]:
    """(L of a = L Lᴴ, 1 where there is none)."""
    del check_errors
    factor = _cholesky(a, upper)
    return factor, jnp.any(jnp.isnan(factor), (-2, -1)).astype(np.int32)


def _triangular(a: Array, b: Array, upper: bool, left: bool, transpose: bool, unit: bool) -> Array:
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    if b.size == 0:
        return b
    return lax.linalg.triangular_solve(
        a, b, left_side=left, lower=not upper, transpose_a=transpose, unit_diagonal=unit
    )


@rule("aten.linalg_solve_triangular.default")
@_full
def linalg_solve_triangular(
    a: Array, b: Array, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Array:
    """X of a x = b (x a = b if not left) for triangular a."""
    return _triangular(a, b, upper, left, False, unitriangular)


@rule("aten.triangular_solve.default")
@_full
def triangular_solve(
    b: Array, a: Array, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Array, Array]:
    """(x of a x = b (aᵀ x = b) for triangular a, a)."""
    out = _triangular(a, b, upper, True, transpose, unitriangular)
    return out, jnp.broadcast_to(a, (*out.shape[:-2], *a.shape[-2:]))


@rule("aten.cholesky_solve.default")
@_full
def cholesky_solve(b: Array, factor: Array, upper: bool = False) -> Array:
    """X of L Lᴴ x = b (Uᴴ U x = b if upper)."""
    lower = _mh(factor) if upper else factor
    half = _triangular(lower, b, False, True, False, False)
    return _triangular(_mh(lower), half, True, True, False, False)


@rule("aten.cholesky_inverse.default")
@_full
def cholesky_inverse(factor: Array, upper: bool = False) -> Array:
    """(L Lᴴ)⁻¹ ((Uᴴ U)⁻¹ if upper)."""
    eye = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    return cholesky_solve(jnp.broadcast_to(eye, factor.shape), factor, upper)


def _needs_pivots(pivot: bool) -> None:
    if not pivot:
        raise NotImplementedError("LU without pivoting: torch has no CPU kernel for it either")


@rule("aten.linalg_lu.default")
@_full
def linalg_lu(a: Array, *, pivot: bool = True) -> tuple[Array, Array, Array]:
    """(P, L, U) with a = P L U."""
    _needs_pivots(pivot)
    lu, _, permutation = _lu(a)
    rows, columns = a.shape[-2:]
    size = min(rows, columns)
    p = _mt(jax.nn.one_hot(permutation, rows, dtype=a.dtype))
    lower = jnp.tril(lu, -1)[..., :size] + jnp.eye(rows, size, dtype=a.dtype)
    return p, lower, jnp.triu(lu)[..., :size, :]


@rule("aten.linalg_lu_factor_ex.default")
@_full
def linalg_lu_factor_ex(
    a: Array, *, pivot: bool = True, check_errors: bool = False
) -> tuple[Array, Array, Array]:
    """(L and U in one, pivots from 1, info)."""
    del check_errors
    _needs_pivots(pivot)
    lu, pivots, _ = _lu(a)
    return lu, pivots, _info(lu)


@rule("aten.linalg_lu_factor.default")
def linalg_lu_factor(a: Array, *, pivot: bool = True) -> tuple[Array, Array]:
    """(L and U in one, pivots from 1)."""
    return linalg_lu_factor_ex(a, pivot=pivot)[:2]


@rule("aten.linalg_lu_solve.default")
@_full
def linalg_lu_solve(
    lu: Array, pivots: Array, b: Array, *, left: bool = True, adjoint: bool = False
) -> Array:
    """X of a x = b (aᴴ x = b if adjoint; x a = b if not left) from the factors of a."""
    lead = jnp.broadcast_shapes(lu.shape[:-2], b.shape[:-2])
    lu, b = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (lu, b))
    factors = lu, jnp.broadcast_to(pivots - 1, (*lead, pivots.shape[-1]))
    if left:
        return jax.scipy.linalg.lu_solve(factors, b, trans=2 if adjoint else 0)
    return _mh(jax.scipy.linalg.lu_solve(factors, _mh(b), trans=0 if adjoint else 2))


@rule("aten.linalg_qr.default")
@_full
def linalg_qr(a: Array, mode: str = "reduced") -> tuple[Array, Array]:
    """(Q, R) with a = Q R; mode r leaves Q empty."""
    if mode == "r":
        return jnp.zeros((0,), a.dtype), jnp.linalg.qr(a, mode="r")
    q, r = jnp.linalg.qr(a, mode=mode)
    return q, r


@rule("aten.qr.default")
def qr(a: Array, some: bool = True) -> tuple[Array, Array]:
    """(Q, R) with a = Q R; not some: Q is square."""
    return linalg_qr(a, "reduced" if some else "complete")


@rule("aten.linalg_svd.default")
@_full
def linalg_svd(
    a: Array, full_matrices: bool = True, *, driver: str | None = None
) -> tuple[Array, Array, Array]:
    """(U, S, Vᴴ) with a = U diag(S) Vᴴ, S descending."""
    del driver  # which LAPACK or cuSOLVER routine torch calls
    u, s, vh = jnp.linalg.svd(a, full_matrices=full_matrices)
    return u, s, vh


@rule("aten.linalg_svdvals.default")
@_full
def linalg_svdvals(a: Array, *, driver: str | None = None) -> Array:
    """Singular values, descending."""
    del driver
    return jnp.linalg.svd(a, compute_uv=False)


@rule("aten._linalg_svd.default")
def linalg_svd_primitive(
    a: Array, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None
) -> tuple[Array, Array, Array]:
    """(U, S, Vᴴ); without compute_uv U and Vᴴ are empty."""
    if compute_uv:
        return linalg_svd(a, full_matrices, driver=driver)
    empty = jnp.zeros((0,), a.dtype)
    return empty, linalg_svdvals(a), empty


@rule("aten.linalg_eigh.default")
@_full
def linalg_eigh(a: Array, UPLO: str = "L") -> tuple[Array, Array]:
    """(eigenvalues ascending, eigenvectors) of a Hermitian matrix, from one triangle."""
    lower = UPLO.upper() == "L"
    vectors, values = lax.linalg.eigh(_hermitian(a, lower), symmetrize_input=False)
    return values, vectors


def _hermitian(a: Array, lower: bool) -> Array:
    """The Hermitian matrix that has this triangle."""
    half = jnp.tril(a, -1) if lower else jnp.triu(a, 1)
    diagonal = jnp.real(jnp.diagonal(a, axis1=-2, axis2=-1)).astype(a.dtype)
    return half + _mh(half) + diagonal[..., None] * jnp.eye(a.shape[-1], dtype=a.dtype)


@rule("aten.linalg_eigvalsh.default")
@_full
def linalg_eigvalsh(a: Array, UPLO: str = "L") -> Array:
    """Eigenvalues ascending of a Hermitian matrix."""
    return jnp.linalg.eigvalsh(_hermitian(a, UPLO.upper() == "L"))


@rule("aten._linalg_eigh.default")
def linalg_eigh_primitive(a: Array, UPLO: str = "L", compute_v: bool = True) -> tuple[Array, Array]:
    """(eigenvalues, eigenvectors); without compute_v no vectors."""
    if compute_v:
        return linalg_eigh(a, UPLO)
    return linalg_eigvalsh(a, UPLO), jnp.zeros((0,), a.dtype)


@rule("aten.linalg_det.default")
@_full
def linalg_det(a: Array) -> Array:
    """Determinant."""
    return jnp.linalg.det(a)


@rule("aten._linalg_det.default")
@_full
def linalg_det_primitive(a: Array) -> tuple[Array, Array, Array]:
    """(determinant, LU, pivots)."""
    lu, pivots, _ = _lu(a)
    return jnp.linalg.det(a), lu, pivots


@rule("aten.linalg_slogdet.default", "aten.slogdet.default")
@_full
def linalg_slogdet(a: Array) -> tuple[Array, Array]:
    """(sign, log |determinant|)."""
    sign, logarithm = jnp.linalg.slogdet(a)
    return sign, logarithm


@rule("aten._linalg_slogdet.default")
@_full
def linalg_slogdet_primitive(a: Array) -> tuple[Array, Array, Array, Array]:
    """(sign, log |determinant|, LU, pivots)."""
    lu, pivots, _ = _lu(a)
    return *linalg_slogdet(a), lu, pivots


@rule("aten.linalg_matrix_exp.default")
@_full
def linalg_matrix_exp(a: Array) -> Array:
    """Σ aᵏ / k!."""
    return jax.scipy.linalg.expm(a) if a.size else a


@rule("aten.linalg_matrix_power.default", "aten.matrix_power.default")
@_full
def linalg_matrix_power(a: Array, n: int) -> Array:
    """Aⁿ; n < 0: powers of the inverse."""
    return jnp.linalg.matrix_power(a, n)


@_full
def _pinv(a: Array, atol: Any, rtol: Any, hermitian: bool) -> Array:
    """V diag(1/σ where σ > max(atol, rtol σ₀), else 0) Uᴴ."""
    if a.size == 0:
        return _mt(a)
    if rtol is None:
        rtol = max(a.shape[-2:]) * jnp.finfo(a.dtype).eps if atol is None else 0.0
    atol = 0.0 if atol is None else atol
    atol, rtol = (t[..., None] if jnp.ndim(t) else t for t in (atol, rtol))
    if hermitian:
        values, left = linalg_eigh(a)
        right = _mh(left)
    else:
        left, values, right = linalg_svd(a, False)
    size = jnp.abs(values)
    small = size <= jnp.maximum(atol, rtol * jnp.max(size, -1, keepdims=True))
    inverse = jnp.where(small, 0, 1 / jnp.where(small, 1, values)).astype(values.dtype)
    return jnp.matmul(_mh(right) * inverse[..., None, :], _mh(left))


@rule("aten.linalg_pinv.atol_rtol_tensor", "aten.linalg_pinv.atol_rtol_float")
def linalg_pinv(a: Array, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Array:
    """Moore-Penrose inverse; singular values up to max(atol, rtol σ₀) count as zero."""
    return _pinv(a, atol, rtol, hermitian)


@rule("aten.linalg_pinv.default", "aten.linalg_pinv.rcond_tensor")
def linalg_pinv_rcond(a: Array, rcond: Any, hermitian: bool = False) -> Array:
    """Moore-Penrose inverse; singular values up to rcond σ₀ count as zero."""
    return _pinv(a, 0.0, rcond, hermitian)
