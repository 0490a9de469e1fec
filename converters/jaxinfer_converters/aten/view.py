"""Views: the same elements in another shape or order (reshape, permute, expand, windows).

JAX arrays have no strides, so a view is a value like any other and XLA decides whether it
copies. ``view`` and ``reshape`` are therefore one rule, and every ``*_copy`` variant is its
operator. ``as_strided`` reads its input as a contiguous (row-major) buffer: for a tensor that
is itself a non-contiguous view torch addresses the storage behind it, which a graph of values
does not have. Source: PyTorch, ATen/native/TensorShape.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import (
    Array,
    canonical_dim,
    canonical_dims,
    category,
    prod,
    rule,
)

Sizes = Sequence[int]


@rule(
    "aten.view.default",
    "aten.view_copy.default",
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten._reshape_copy.default",
)
def reshape(self: Array, size: Sizes) -> Array:
    """out.flat[i] = self.flat[i]; one size may be -1."""
    return jnp.reshape(self, tuple(size))


@rule("aten._reshape_alias.default", "aten._reshape_alias_copy.default")
def reshape_alias(self: Array, size: Sizes, stride: Sizes) -> Array:
    """As reshape: the strides only restate the size."""
    del stride
    return reshape(self, size)


@rule("aten.view_as.default", "aten.reshape_as.default")
def view_as(self: Array, other: Array) -> Array:
    """Reshape to the other tensor's shape."""
    return reshape(self, other.shape)


@rule("aten.flatten.using_ints")
def flatten(self: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    """Merge the dims start_dim..end_dim into one; a scalar becomes one element."""
    start, end = canonical_dim(start_dim, self.ndim), canonical_dim(end_dim, self.ndim)
    middle = prod(self.shape[start : end + 1])
    return reshape(self, (*self.shape[:start], middle, *self.shape[end + 1 :]))


@rule("aten.unflatten.int")
def unflatten(self: Array, dim: int, sizes: Sizes) -> Array:
    """Split one dim into sizes, of which one may be -1."""
    dim = canonical_dim(dim, self.ndim)
    known = prod([size for size in sizes if size != -1])
    split = [self.shape[dim] // known if size == -1 else size for size in sizes]
    return reshape(self, (*self.shape[:dim], *split, *self.shape[dim + 1 :]))


@rule("aten.view.dtype", "aten.view_copy.dtype", context=True)
def view_dtype(context: Any, self: Array, dtype: np.dtype) -> Array:
    """The same bytes read as another dtype; the last dim scales by the ratio of item sizes."""
    aval = context.aval() if context.node is not None else None
    if aval is not None and dtypes.canonical(aval.dtype) != dtypes.dtype_of(aval.dtype):
        raise NotImplementedError(
            f"the bytes of {aval.dtype} do not exist with 64-bit types off: {dtypes.X64_ADVICE}"
        )
    dtype = np.dtype(dtype)
    if self.dtype == dtype:
        return self
    if category(self.dtype) == 0:
        return _bits(self.astype(jnp.uint8), dtype)
    if category(self.dtype) == 3:
        parts = jnp.stack([self.real, self.imag], axis=-1)
        return _bits(parts.reshape(*self.shape[:-1], -1) if self.ndim else parts, dtype)
    return _bits(self, dtype)


def _bits(x: Array, dtype: np.dtype) -> Array:
    if category(dtype) == 0:
        return _bits(x, np.dtype("uint8")) != 0
    if category(dtype) == 3:
        half = np.dtype("float32" if dtype.itemsize == 8 else "float64")
        parts = _bits(x, half).reshape(*x.shape[:-1], -1, 2)
        return lax.complex(parts[..., 0], parts[..., 1])
    have, want = x.dtype.itemsize, dtype.itemsize
    if have == want:
        return lax.bitcast_convert_type(x, dtype)
    if have > want:
        return lax.bitcast_convert_type(x, dtype).reshape(*x.shape[:-1], -1)
    ratio = want // have
    grouped = x.reshape(*x.shape[:-1], x.shape[-1] // ratio, ratio)
    return lax.bitcast_convert_type(grouped, dtype)


@rule("aten.permute.default", "aten.permute_copy.default")
def permute(self: Array, dims: Sizes) -> Array:
    """out.shape[i] = self.shape[dims[i]]."""
    return lax.transpose(self, canonical_dims(list(dims), self.ndim))


@rule(
    "aten.transpose.int",
    "aten.transpose_copy.int",
    "aten.swapaxes.default",
    "aten.swapdims.default",
)
def transpose(self: Array, dim0: int, dim1: int) -> Array:
    """Swap two dims."""
    if self.ndim == 0:
        return self
    return jnp.swapaxes(self, canonical_dim(dim0, self.ndim), canonical_dim(dim1, self.ndim))


@rule("aten.t.default", "aten.t_copy.default", "aten.numpy_T.default")
def t(self: Array) -> Array:
    """Reverse the dims (t: of a matrix; a vector and a scalar are themselves)."""
    return self.T


@rule("aten.mT.default")
def mt(self: Array) -> Array:
    """Swap the last two dims."""
    return jnp.swapaxes(self, -1, -2)


@rule("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int", "aten.moveaxis.intlist")
def movedim(self: Array, source: int | Sizes, destination: int | Sizes) -> Array:
    """Move dims source to destination; the others keep their order."""
    if self.ndim == 0:
        return self
    return jnp.moveaxis(self, source, destination)


@rule("aten.expand.default", "aten.expand_copy.default", "aten.broadcast_to.default")
def expand(self: Array, size: Sizes, *, implicit: bool = False) -> Array:
    """Repeat dims of size 1 to size; -1 keeps a dim; new dims are in front."""
    del implicit
    new = len(size) - self.ndim
    shape = [self.shape[i - new] if n == -1 else n for i, n in enumerate(size)]
    return jnp.broadcast_to(self, shape)


@rule("aten.expand_as.default")
def expand_as(self: Array, other: Array) -> Array:
    """Broadcast to the other tensor's shape."""
    return jnp.broadcast_to(self, other.shape)


@rule("aten.broadcast_tensors.default")
def broadcast_tensors(tensors: Sequence[Array]) -> list[Array]:
    """Broadcast all tensors to their common shape."""
    return list(jnp.broadcast_arrays(*tensors))


@rule("aten.unsqueeze.default", "aten.unsqueeze_copy.default")
def unsqueeze(self: Array, dim: int) -> Array:
    """Insert a dim of size 1 at dim."""
    return lax.expand_dims(self, (canonical_dim(dim, self.ndim + 1),))


@rule(
    "aten.squeeze.default",
    "aten.squeeze_copy.default",
    "aten.squeeze.dim",
    "aten.squeeze_copy.dim",
    "aten.squeeze.dims",
    "aten.squeeze_copy.dims",
)
def squeeze(self: Array, dim: int | Sizes | None = None) -> Array:
    """Drop the named dims (None: all) that have size 1; others stay."""
    dims = () if dim == [] or dim == () else canonical_dims(dim, self.ndim)
    return lax.squeeze(self, tuple(d for d in dims if self.shape[d] == 1))


def strided_indices(size: Sizes, stride: Sizes, offset: int) -> Array:
    """Return i32[size]: offset + sum over d of i[d] * stride[d]."""
    index = jnp.full(tuple(size), offset, jnp.int32)
    for d, step in enumerate(stride):
        index = index + lax.broadcasted_iota(jnp.int32, tuple(size), d) * np.int32(step)
    return index


@rule("aten.as_strided.default", "aten.as_strided_copy.default")
def as_strided(self: Array, size: Sizes, stride: Sizes, storage_offset: int | None = None) -> Array:
    """out[i] = self.flat[offset + sum i[d] * stride[d]], self taken as contiguous."""
    size, offset, flat = tuple(size), storage_offset or 0, self.reshape(-1)
    if prod(size) == 0:
        return jnp.zeros(size, self.dtype)
    # Without a gather where the strides are a transposed, broadcast, contiguous block.
    dense = sorted((d for d, s in enumerate(stride) if s and size[d] > 1), key=lambda d: -stride[d])
    block = [size[d] for d in dense]
    if all(stride[d] == prod(block[i + 1 :]) for i, d in enumerate(dense)):
        values = lax.slice(flat, (offset,), (offset + prod(block),)).reshape(block)
        order = sorted(dense)
        values = lax.transpose(values, [dense.index(d) for d in order])
        return lax.broadcast_in_dim(values, size, order)
    return jnp.take(flat, strided_indices(size, stride, offset), mode="clip")


@rule("aten.unfold.default", "aten.unfold_copy.default")
def unfold(self: Array, dimension: int, size: int, step: int) -> Array:
    """out[.., i, .., j] = self[.., i * step + j, ..], j in a new last dim."""
    x = self.reshape(1) if self.ndim == 0 else self
    dim = canonical_dim(dimension, self.ndim)
    if self.ndim == 0:
        return x[:size]
    count = (x.shape[dim] - size) // step + 1
    if size == step:
        cut = lax.slice_in_dim(x, 0, count * size, axis=dim)
        windows = cut.reshape(*x.shape[:dim], count, size, *x.shape[dim + 1 :])
    else:
        windows = jnp.take(x, strided_indices((count, size), (step, 1), 0), axis=dim, mode="clip")
    return jnp.moveaxis(windows, dim + 1, -1)


@rule("aten.diagonal.default", "aten.diagonal_copy.default")
def diagonal(self: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    """out[.., i] = self[i, i + offset] of the two dims, i in the last dim."""
    rows, columns = self.shape[dim1], self.shape[dim2]
    if offset >= columns or -offset >= rows:
        dims = {canonical_dim(dim1, self.ndim), canonical_dim(dim2, self.ndim)}
        rest = [n for d, n in enumerate(self.shape) if d not in dims]
        return jnp.zeros((*rest, 0), self.dtype)
    return jnp.diagonal(self, offset, dim1, dim2)


@rule("aten.diag_embed.default")
def diag_embed(self: Array, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Array:
    """out[.., i, i + offset] = self[.., i], zero elsewhere; the plane lies in dim1, dim2."""
    size = self.shape[-1] + abs(offset)
    before = max(offset, 0)
    widths = [(0, 0)] * (self.ndim - 1) + [(before, size - self.shape[-1] - before)]
    columns = jnp.pad(self, widths)[..., None, :]
    row = lax.broadcasted_iota(jnp.int32, (size, size), 0)
    column = lax.broadcasted_iota(jnp.int32, (size, size), 1)
    plane = jnp.where(column - row == offset, columns, jnp.zeros((), self.dtype))
    return jnp.moveaxis(plane, (-2, -1), (dim1, dim2))


@rule("aten.diagflat.default")
def diagflat(self: Array, offset: int = 0) -> Array:
    """diag_embed of the flattened tensor."""
    return diag_embed(self.reshape(-1), offset)


@rule("aten.resize.default")
def resize(self: Array, size: Sequence[int], *, memory_format: None = None) -> Array:
    """The first elements of x in flat order, in another shape; zeros where x has no more."""
    del memory_format
    flat, count = self.reshape(-1), prod(size)
    return jnp.pad(flat[:count], (0, max(0, count - flat.size))).reshape(size)
