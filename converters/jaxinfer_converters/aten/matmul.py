"""Matrix products, contractions, and distances built from them.

Half types are multiplied with float32 accumulation, and what is added to a product (a bias,
``beta * self``) is added before the one rounding. float32 is multiplied in float32
(``precision``). Formulas: https://docs.pytorch.org/docs/stable/torch.html#blas-and-lapack-operations.
The overloads with ``out_dtype`` have no CPU kernel in torch and no rule here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import (
    Array,
    Number,
    acc_dtype,
    canonical_dim,
    canonical_dims,
    cast,
    in_float32,
    precision,
    promote,
    promote_float,
    rule,
)
from jaxinfer_converters.aten.reduce import p_norm


def wide_dot(x: Array, y: Array, contract: Any, batch: Any = ((), ())) -> Array:
    """dot_general in the accumulation dtype, not yet rounded."""
    return lax.dot_general(
        x,
        y,
        (contract, batch),
        precision=precision(x, y),
        preferred_element_type=acc_dtype(x.dtype),
    )


def wide_matmul(x: Array, y: Array) -> Array:
    """Broadcast matmul in the accumulation dtype, not yet rounded."""
    return jnp.matmul(x, y, precision=precision(x, y), preferred_element_type=acc_dtype(x.dtype))


@rule(*(f"aten.{name}.default" for name in ("mm", "bmm", "mv", "dot", "matmul")))
def matmul(x: Array, y: Array) -> Array:
    """out[..., i, j] = Σ_k x[..., i, k] y[..., k, j], batch dims broadcast."""
    return cast(wide_matmul(x, y), x.dtype)


@rule("aten.linear.default")
def linear(
    x: Array, weight: Array, bias: Array | None = None, *, transposed: bool = False
) -> Array:
    """out[..., o] = Σ_i x[..., i] weight[o, i] + bias[o]; ``transposed``: it is weight[i, o]."""
    out = wide_dot(x, weight, ((x.ndim - 1,), (0 if transposed else weight.ndim - 1,)))
    if bias is not None:
        out = out + cast(bias, out.dtype)
    return cast(out, x.dtype)


def _add(x: Array, product: Array, beta: Number, alpha: Number) -> Array:
    """beta x + alpha product, rounded once to x's dtype; x is not read if beta is 0."""
    out = product if alpha == 1 else product * cast(alpha, product.dtype)
    if beta != 0:
        wide = cast(x, out.dtype)
        out = out + (wide if beta == 1 else wide * cast(beta, out.dtype))
    return cast(out, x.dtype)


@rule("aten.addmm.default", "aten.addmv.default", "aten.baddbmm.default")
def addmm(x: Array, mat1: Array, mat2: Array, *, beta: Number = 1, alpha: Number = 1) -> Array:
    """Beta x + alpha mat1 @ mat2 (a matrix, batches of them, or mat2 a vector)."""
    return _add(x, wide_matmul(mat1, mat2), beta, alpha)


@rule("aten.addbmm.default")
def addbmm(x: Array, batch1: Array, batch2: Array, *, beta: Number = 1, alpha: Number = 1) -> Array:
    """Beta x + alpha Σ_b batch1[b] @ batch2[b]."""
    product = wide_dot(batch1, batch2, ((0, 2), (0, 1)))
    return _add(x, product, beta, alpha)


@rule("aten.addr.default")
def addr(x: Array, vec1: Array, vec2: Array, *, beta: Number = 1, alpha: Number = 1) -> Array:
    """Beta x + alpha vec1 vec2ᵀ."""
    x, vec1, vec2 = promote(x, vec1, vec2)
    wide = acc_dtype(x.dtype)
    return _add(x, cast(vec1, wide)[:, None] * cast(vec2, wide)[None, :], beta, alpha)


@rule("aten.outer.default")
def outer(x: Array, y: Array) -> Array:
    """out[i, j] = x[i] y[j]."""
    x, y = promote(x, y)
    return x[:, None] * y[None, :]


@rule("aten.vdot.default")
def vdot(x: Array, y: Array) -> Array:
    """Σ conj(x) y."""
    return matmul(jnp.conj(x), y)


@rule("aten.inner.default")
def inner(x: Array, y: Array) -> Array:
    """out[..., ...'] = Σ_k x[..., k] y[...', k]; a scalar multiplies."""
    if x.ndim == 0 or y.ndim == 0:
        return x * y
    return cast(wide_dot(x, y, ((x.ndim - 1,), (y.ndim - 1,))), x.dtype)


@rule("aten.tensordot.default")
def tensordot(x: Array, y: Array, dims_self: Sequence[int], dims_other: Sequence[int]) -> Array:
    """Σ over the paired dims; a pair of which one has size 1 broadcasts."""
    left, right = canonical_dims(tuple(dims_self), x.ndim), canonical_dims(dims_other, y.ndim)
    left, right = (left, right) if len(dims_self) else ((), ())
    for a, b in zip(left, right, strict=True):
        if x.shape[a] == 1 != y.shape[b]:
            y = jnp.sum(y, b, keepdims=True)
        elif y.shape[b] == 1 != x.shape[a]:
            x = jnp.sum(x, a, keepdims=True)
    return cast(wide_dot(x, y, (left, right)), x.dtype)


@rule("aten.einsum.default")
def einsum(equation: str, tensors: Sequence[Array], *, path: Any = None) -> Array:
    """Einstein summation; the contraction order is chosen from the shapes."""
    del path  # an order of contraction for torch: it changes no result
    dtype = tensors[0].dtype
    out = jnp.einsum(
        equation.replace(" ", ""),
        *tensors,
        precision=precision(*tensors),
        preferred_element_type=acc_dtype(dtype),
    )
    return cast(out, dtype)


@rule("aten.bilinear.default")
def bilinear(x: Array, y: Array, weight: Array, bias: Array | None = None) -> Array:
    """out[..., o] = Σ_ij x[..., i] weight[o, i, j] y[..., j] + bias[o]."""
    out = jnp.einsum(
        "...i,oij,...j->...o",
        x,
        weight,
        y,
        precision=precision(x, y),
        preferred_element_type=acc_dtype(x.dtype),
    )
    return cast(out if bias is None else out + cast(bias, out.dtype), x.dtype)


@rule("aten.kron.default")
def kron(x: Array, y: Array) -> Array:
    """Kronecker product; the smaller rank is padded with leading ones."""
    x, y = promote(x, y)
    wide = jnp.int32 if x.dtype == jnp.bool_ else x.dtype
    return cast(jnp.kron(cast(x, wide), cast(y, wide)), x.dtype)


@rule("aten.linalg_multi_dot.default", "aten.chain_matmul.default")
def multi_dot(tensors: Sequence[Array]) -> Array:
    """Product of matrices in the cheapest order; the ends may be vectors."""
    if len(tensors) == 1:
        return tensors[0]
    chain = functools.partial(jnp.linalg.multi_dot, precision=precision(*tensors))
    return in_float32(lambda *xs: chain(list(xs)), *tensors)


@rule("aten.trace.default")
def trace(x: Array) -> Array:
    """Σ_i x[i, i]."""
    floating = np.dtype(x.dtype).kind not in "biu"
    return cast(
        jnp.trace(cast(x, acc_dtype(x.dtype) if floating else dtypes.canonical("int64"))),
        x.dtype if floating else dtypes.canonical("int64"),
    )


@rule("aten.linalg_cross.default")
def linalg_cross(x: Array, y: Array, *, dim: int = -1) -> Array:
    """out[i] = x[i+1] y[i+2] - x[i+2] y[i+1] (mod 3) along dim."""
    x, y = jnp.broadcast_arrays(*promote(x, y))
    return jnp.cross(x, y, axis=dim)


@rule("aten.cross.default")
def cross(x: Array, y: Array, dim: int | None = None) -> Array:
    """linalg_cross along dim, or along the first dim of size 3."""
    return linalg_cross(x, y, dim=x.shape.index(3) if dim is None else dim)


@rule("aten.cdist.default", "aten._cdist_forward.default")
def cdist(x1: Array, x2: Array, p: float = 2.0, compute_mode: int | None = None) -> Array:
    """out[..., i, j] = ‖x1[..., i, :] - x2[..., j, :]‖_p.

    As in torch, the 2-norm of more than 25 rows (or compute_mode 1) goes through a matmul,
    √(|x|² + |y|² - 2xy), which is fast and loses digits for points close to each other.
    """
    x1, x2 = promote_float(x1, x2)
    large = max(x1.shape[-2], x2.shape[-2]) > 25
    if p == 2 and (compute_mode == 1 or (compute_mode in (None, 0) and large)):
        squares = jnp.sum(x1 * x1, -1)[..., :, None] + jnp.sum(x2 * x2, -1)[..., None, :]
        square = squares - 2 * matmul(x1, jnp.swapaxes(x2, -1, -2))
        zero = square <= 0
        return jnp.where(zero, 0, lax.sqrt(jnp.where(zero, 1, square)))
    off = x1[..., :, None, :] - x2[..., None, :, :]
    if off.shape[-1] == 0:
        return jnp.zeros(off.shape[:-1], off.dtype)
    return p_norm(off, p, -1)


@rule("aten._pdist_forward.default")
def pdist(x: Array, p: float = 2.0) -> Array:
    """‖x[i] - x[j]‖_p for i < j, row by row."""
    rows, columns = np.triu_indices(x.shape[0], 1)
    if x.shape[1] == 0:
        return jnp.zeros(rows.shape, x.dtype)
    return p_norm(x[rows] - x[columns], p, -1)


@rule("aten.pairwise_distance.default")
def pairwise_distance(
    x1: Array, x2: Array, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Array:
    """‖x1 - x2 + eps‖_p over the last dim."""
    x1, x2 = promote_float(x1, x2)
    return in_float32(lambda x: p_norm(x, p, -1, keepdim), x1 - x2 + cast(eps, x1.dtype))


@rule("aten.cosine_similarity.default")
def cosine_similarity(x1: Array, x2: Array, dim: int = 1, eps: float = 1e-8) -> Array:
    """Σ x1 x2 / (max(‖x1‖, eps) max(‖x2‖, eps)) over dim."""
    x1, x2 = jnp.broadcast_arrays(*promote_float(x1, x2))
    axis = canonical_dim(dim, x1.ndim)
    shape = [n for d, n in enumerate(x1.shape) if d != axis]
    x1, x2 = (x.reshape(1) if x.ndim == 0 else x for x in (x1, x2))

    def similarity(x1: Array, x2: Array) -> Array:
        unit1, unit2 = (x / jnp.maximum(p_norm(x, 2, axis, True), eps) for x in (x1, x2))
        return jnp.sum(unit1 * unit2, axis)

    return in_float32(similarity, x1, x2).reshape(shape)
