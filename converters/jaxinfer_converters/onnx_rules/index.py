"""Indexing: gather, scatter, one-hot, top-k. Negative indices count from the end.

Indices out of range are an error in ONNX; here, as everywhere in XLA, they are moved inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, rule
from jaxinfer_converters.onnx_rules.shape import ints


def _positive(indices: Any, size: int) -> Any:
    """Indices from the start: negative ones have the size added."""
    if isinstance(indices, np.ndarray):
        return np.where(indices < 0, indices + size, indices).astype(np.int32)
    if jnp.issubdtype(indices.dtype, jnp.unsignedinteger):
        return indices
    return jnp.where(indices < 0, indices + size, indices)


@rule("onnx.Gather")
def gather(x: Array, indices: Any, *, axis: int = 0) -> Array:
    """y[..., i, ...] = x[..., indices[i], ...] along axis."""
    axis = axis % x.ndim
    at = _positive(indices, x.shape[axis])
    if isinstance(at, np.ndarray) and at.ndim == 0:
        return lax.index_in_dim(x, int(at), axis, keepdims=False)
    return jnp.take(x, at, axis, mode="clip")


@rule("onnx.GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """y[i, j] = x[indices[i, j], j] for axis 0, and so on."""
    axis = axis % x.ndim
    at = jnp.asarray(_positive(indices, x.shape[axis]))
    places = [lax.broadcasted_iota(jnp.int32, at.shape, i) for i in range(x.ndim)]
    places[axis] = at
    return x.at[tuple(places)].get(mode="clip")


@rule("onnx.GatherND")
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """y[b, i] = x[b, indices[b, i, 0], indices[b, i, 1], ...]."""

    def one(x: Array, at: Array) -> Array:
        columns = [_positive(at[..., i], x.shape[i]) for i in range(at.shape[-1])]
        return x.at[tuple(columns)].get(mode="clip")

    indices = jnp.asarray(indices)
    for _ in range(batch_dims):
        one = jax.vmap(one)
    return one(x, indices)


def _combine(x: Array, at: tuple[Any, ...], updates: Array, reduction: str) -> Array:
    ref = x.at[at]
    fns: dict[str, Callable[..., Array]] = {
        "none": ref.set, "add": ref.add, "mul": ref.multiply, "max": ref.max, "min": ref.min,
    }  # fmt: skip
    return fns[reduction](updates)


@rule("onnx.ScatterElements", "onnx.Scatter")
def scatter_elements(
    x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Array:
    """y = x, then y[indices[i, j], j] = updates[i, j] for axis 0, and so on."""
    axis = axis % x.ndim
    at = jnp.asarray(_positive(indices, x.shape[axis]))
    places = [lax.broadcasted_iota(jnp.int32, at.shape, i) for i in range(x.ndim)]
    places[axis] = at
    return _combine(x, tuple(places), updates, reduction)


@rule("onnx.ScatterND")
def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """y = x, then y[indices[i]] = updates[i]."""
    indices = jnp.asarray(indices)
    count = indices.shape[-1]
    columns = [_positive(indices[..., i], x.shape[i]) for i in range(count)]
    return _combine(x, tuple(columns), updates, reduction)


@rule("onnx.TensorScatter")
def tensor_scatter(
    past: Array, update: Array, write: Any = None, *, axis: int = -2, mode: str = "linear"
) -> Array:
    """past with update written from write[b] on along axis; ``circular`` goes round the end."""
    axis = axis % past.ndim
    batch, length, size = past.shape[0], update.shape[axis], past.shape[axis]
    start = jnp.zeros((batch,), jnp.int32) if write is None else jnp.asarray(write)
    at = start[:, None] + jnp.arange(length)
    at = at % size if mode == "circular" else at
    one = lambda x, i, u: jnp.moveaxis(jnp.moveaxis(x, axis - 1, 0).at[i].set(
        jnp.moveaxis(u, axis - 1, 0)), 0, axis - 1)  # fmt: skip
    return jax.vmap(one)(past, at, update)


@rule("onnx.OneHot")
def one_hot(indices: Array, depth: Any, values: Array, *, axis: int = -1) -> Array:
    """values[1] where the new axis's place is the index, else values[0]; depth is static."""
    size = ints(depth)[0]
    at = jnp.asarray(indices)
    axis = axis % (at.ndim + 1)
    at = jnp.expand_dims(jnp.where(at < 0, at + size, at), axis)
    shape = [size if i == axis else 1 for i in range(at.ndim)]
    hot = at == jnp.arange(size).reshape(shape).astype(at.dtype)
    return jnp.where(hot, values[1], values[0])


@rule("onnx.TopK")
def top_k(
    x: Array, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Array, Array]:
    """The k largest (smallest) along axis in order, and their places; the first of equals."""
    del sorted
    size, axis = ints(k)[0], axis % x.ndim
    order = jnp.argsort(x, axis, stable=True, descending=bool(largest))
    order = lax.slice_in_dim(order, 0, size, axis=axis)
    index = order.astype(dtypes.canonical("int64"))
    return jnp.take_along_axis(x, order, axis), index


@rule("ai.onnx.ml.ArrayFeatureExtractor")
def array_feature_extractor(x: Array, indices: Array) -> Array:
    """x[..., indices]."""
    return jnp.take(x.reshape(-1, x.shape[-1]), jnp.asarray(indices).reshape(-1), -1, mode="clip")
