"""Grouped matrix products (mixture of experts) and weight normalization.

A grouped product multiplies each run of rows with its own matrix; runs end at ``offs``. It is
``lax.ragged_dot`` here. Groups of columns or of the contraction, which inference does not need,
are masked products over all groups, at as many times the cost. Rows after the last offset are
undefined in torch and zero here. The custom operator of transformers
(``transformers.integrations.moe``) is the same product.
Weight norm: Salimans and Kingma, 2016, https://arxiv.org/abs/1602.07868.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, acc_dtype, cast, precision, rule
from jaxinfer_converters.aten.matmul import wide_dot, wide_matmul
from jaxinfer_converters.aten.reduce import linalg_vector_norm


def _sizes(offs: Array) -> Array:
    """Lengths of the runs that end at offs."""
    return jnp.diff(offs.astype(np.int32), prepend=jnp.zeros((1,), np.int32))


def _ragged(x: Array, weights: Array, offs: Array) -> Array:
    """out[s] = x[s] @ weights[group of s], not yet rounded; zero after the last group."""
    return lax.ragged_dot(
        x,
        weights,
        _sizes(offs),
        precision=precision(x, weights),
        preferred_element_type=acc_dtype(x.dtype),
    )


def _members(offs: Array, size: int) -> Array:
    """[group, position]: whether the position lies in the group."""
    ends = offs.astype(np.int32)[:, None]
    position = jnp.arange(size, dtype=np.int32)
    return (position < ends) & (position >= ends - _sizes(offs)[:, None])


@rule("transformers.grouped_mm_fallback.default")
def grouped_mm_fallback(input: Array, weight: Array, offs: Array) -> Array:
    """out[s] = input[s] @ weight[e] for offs[e - 1] ≤ s < offs[e]."""
    return cast(_ragged(input, weight, offs), input.dtype)


@rule("aten._grouped_mm.default")
def grouped_mm(
    x: Array,
    mat2: Array,
    offs: Array | None = None,
    bias: Array | None = None,
    out_dtype: Any = None,
) -> Array:
    """Groups of rows (2d @ 3d), of columns (3d @ 2d), of the contraction (2d @ 2d), or bmm."""
    if bias is not None:
        raise NotImplementedError("_grouped_mm with a bias: torch has no kernel for it either")
    if offs is None:
        out = wide_matmul(x, mat2)
    elif x.ndim == 2 and mat2.ndim == 3:
        out = _ragged(x, mat2, offs)
    elif x.ndim == 3:
        columns = jnp.where(_members(offs, mat2.shape[1])[:, None, :], mat2, 0)
        out = wide_dot(x, columns, ((0, 2), (0, 1)))
    else:
        out = wide_matmul(jnp.where(_members(offs, x.shape[1])[:, None, :], x, 0), mat2)
    return cast(out, out_dtype or x.dtype)


def _normalize(v: Array, g: Array, dim: int) -> tuple[Array, Array]:
    """(g v / ‖v‖, ‖v‖), the norm over all dims but ``dim`` (all for -1)."""
    rest = [axis for axis in range(v.ndim) if axis != dim]
    norm = linalg_vector_norm(v, 2, rest, keepdim=dim != -1)
    return v * (g / norm), norm


@rule("aten._weight_norm.default")
def weight_norm(v: Array, g: Array, dim: int = 0) -> Array:
    """G v / ‖v‖ over all dims but dim."""
    return _normalize(v, g, dim)[0]


@rule("aten._weight_norm_interface.default")
def weight_norm_interface(v: Array, g: Array, dim: int = 0) -> tuple[Array, Array]:
    """(g v / ‖v‖, ‖v‖)."""
    return _normalize(v, g, dim)
