"""Slices and splits at static places, their scattering inverses, and flips, rolls, triangles.

Starts, ends and sizes are Python integers; ``select`` and ``narrow`` also take a start that is
computed by the model, because their result's shape does not depend on it. The ``*_scatter``
operators are what functionalization makes of assignments to views.
Source: PyTorch, ATen/native/TensorShape.cpp.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, canonical_dim, cast, is_array, rule
from jaxinfer_converters.aten._data_dependent import data_dependent, refuse
from jaxinfer_converters.aten.view import strided_indices

Sizes = Sequence[int]


def _bounds(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Clamp Python-style slice bounds to 0 <= start <= end <= size."""
    if is_array(start) or is_array(end):
        refuse("a slice with a computed end", "use torch.narrow with a fixed length, or a mask")
    if any(
        jax.export.is_symbolic_dim(bound) for bound in (size, start or 0, end or 0)
    ):  # an export with open sizes
        held = lambda bound: max(min(bound if bound >= 0 else bound + size, size), 0)
        start = 0 if start is None else held(start)
        whole = end is None or (isinstance(end, int) and end >= 2**31 - 1)
        return start, size if whole else max(start, held(end))
    start, end, _ = slice(start, end).indices(size)
    return start, max(start, end)


@rule("aten.slice.Tensor", "aten.slice_copy.Tensor")
def slice_tensor(
    self: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    """self[start:end:step] of one dim; bounds are clamped and may be negative."""
    dim = canonical_dim(dim, self.ndim)
    start, end = _bounds(self.shape[dim], start, end)
    return lax.slice_in_dim(self, start, end, step, dim)


@rule("aten.select.int", "aten.select_copy.int")
def select(self: Array, dim: int, index: int | Array) -> Array:
    """self[index] of one dim, which goes; negative wraps."""
    dim = canonical_dim(dim, self.ndim)
    if isinstance(index, int):
        return lax.index_in_dim(self, index, dim, keepdims=False)
    return lax.dynamic_index_in_dim(self, index, dim, keepdims=False)


@rule("aten.narrow.default", "aten.narrow.Tensor", "aten.narrow_copy.default")
def narrow(self: Array, dim: int, start: int | Array, length: int) -> Array:
    """self[start : start + length] of one dim; start may be a tensor."""
    dim = canonical_dim(dim, self.ndim)
    if isinstance(start, int):
        start = start + self.shape[dim] if start < 0 else start
        return lax.slice_in_dim(self, start, start + length, axis=dim)
    return lax.dynamic_slice_in_dim(self, start.reshape(()), length, dim)


@rule(
    "aten.split_with_sizes.default",
    "aten.split_with_sizes_copy.default",
    "aten.unsafe_split_with_sizes.default",
    "aten.split.sizes",
)
def split_with_sizes(self: Array, split_sizes: Sizes, dim: int = 0) -> list[Array]:
    """Consecutive pieces of the given sizes."""
    return list(lax.split(self, tuple(split_sizes), canonical_dim(dim, self.ndim)))


@rule("aten.split.Tensor", "aten.split_copy.Tensor", "aten.unsafe_split.Tensor")
def split(self: Array, split_size: int, dim: int = 0) -> list[Array]:
    """Pieces of split_size, the last one smaller."""
    size = self.shape[canonical_dim(dim, self.ndim)]
    if size == 0 or split_size == 0:
        return [self]
    pieces = [min(split_size, size - start) for start in range(0, size, split_size)]
    return split_with_sizes(self, pieces, dim)


@rule("aten.chunk.default", "aten.unsafe_chunk.default")
def chunk(self: Array, chunks: int, dim: int = 0) -> list[Array]:
    """At most chunks pieces of ceil(size / chunks)."""
    size = self.shape[canonical_dim(dim, self.ndim)]
    return split(self, -(-size // chunks), dim) if size else [self] * chunks


@rule("aten.tensor_split.sections")
def tensor_split_sections(self: Array, sections: int, dim: int = 0) -> list[Array]:
    """Exactly sections pieces; the first size % sections are one longer."""
    base, longer = divmod(self.shape[canonical_dim(dim, self.ndim)], sections)
    return split_with_sizes(self, [base + (i < longer) for i in range(sections)], dim)


@rule("aten.tensor_split.indices")
def tensor_split_indices(self: Array, indices: Sizes, dim: int = 0) -> list[Array]:
    """self[:i0], self[i0:i1], ... with Python's slice rules."""
    edges = [None, *indices, None]
    return [slice_tensor(self, dim, start, end) for start, end in itertools.pairwise(edges)]


data_dependent(
    "aten.tensor_split.tensor_indices_or_sections",
    instead="pass the indices or sections as Python integers",
)


@rule("aten.unbind.int", "aten.unbind_copy.int")
def unbind(self: Array, dim: int = 0) -> list[Array]:
    """All slices of one dim, which goes."""
    dim = canonical_dim(dim, self.ndim)
    return [lax.index_in_dim(self, i, dim, keepdims=False) for i in range(self.shape[dim])]


@rule("aten.flip.default")
def flip(self: Array, dims: Sizes) -> Array:
    """out[i] = self[n - 1 - i] in each of dims."""
    return lax.rev(self, [canonical_dim(d, self.ndim) for d in dims] if self.ndim else [])


@rule("aten.roll.default")
def roll(self: Array, shifts: Sizes, dims: Sizes = ()) -> Array:
    """out[(i + shift) % n] = self[i] in each of dims; without dims, of the flat tensor."""
    if self.ndim == 0 or self.size == 0:
        return self
    if not dims:
        return jnp.roll(self, shifts[0])
    return jnp.roll(self, tuple(shifts), tuple(dims))


@rule("aten.rot90.default")
def rot90(self: Array, k: int = 1, dims: Sizes = (0, 1)) -> Array:
    """Rotate k times by 90 degrees from dims[0] towards dims[1]."""
    first, second = dims
    return jnp.rot90(self, k, (first, second))


def _triangle(x: Array, diagonal: int, lower: bool) -> Array:
    rows, columns = x.shape[-2:]
    row = lax.broadcasted_iota(jnp.int32, (rows, columns), 0)
    column = lax.broadcasted_iota(jnp.int32, (rows, columns), 1)
    diagonal = max(-rows - 1, min(columns + 1, diagonal))
    keep = column - row <= diagonal if lower else column - row >= diagonal
    return jnp.where(keep, x, jnp.zeros((), x.dtype))


@rule("aten.tril.default")
def tril(self: Array, diagonal: int = 0) -> Array:
    """self where column - row <= diagonal, else 0."""
    return _triangle(self, diagonal, lower=True)


@rule("aten.triu.default")
def triu(self: Array, diagonal: int = 0) -> Array:
    """self where column - row >= diagonal, else 0."""
    return _triangle(self, diagonal, lower=False)


@rule("aten.slice_scatter.default")
def slice_scatter(
    self: Array,
    src: Array,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Array:
    """self with self[start:end:step] = src."""
    dim = canonical_dim(dim, self.ndim)
    start, end = _bounds(self.shape[dim], start, end)
    count = len(range(start, end, step))
    shape = (*self.shape[:dim], count, *self.shape[dim + 1 :])
    src = jnp.broadcast_to(cast(src, self.dtype), shape)
    if count == self.shape[dim]:
        return src
    if step == 1 or count == 1:
        return lax.dynamic_update_slice_in_dim(self, src, start, dim)
    return self.at[(slice(None),) * dim + (slice(start, end, step),)].set(src)


@rule("aten.select_scatter.default")
def select_scatter(self: Array, src: Array, dim: int, index: int | Array) -> Array:
    """self with self[index] = src in one dim."""
    dim = canonical_dim(dim, self.ndim)
    src = jnp.broadcast_to(cast(src, self.dtype), (*self.shape[:dim], *self.shape[dim + 1 :]))
    return lax.dynamic_update_index_in_dim(self, src, index, dim)


@rule("aten.diagonal_scatter.default")
def diagonal_scatter(
    self: Array, src: Array, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Array:
    """self with diagonal(offset, dim1, dim2) = src."""
    x = jnp.moveaxis(self, (dim1, dim2), (-2, -1))
    rows = lax.iota(jnp.int32, src.shape[-1]) + max(-offset, 0)
    x = x.at[..., rows, rows + offset].set(cast(src, self.dtype), unique_indices=True)
    return jnp.moveaxis(x, (-2, -1), (dim1, dim2))


@rule("aten.as_strided_scatter.default")
def as_strided_scatter(
    self: Array, src: Array, size: Sizes, stride: Sizes, storage_offset: int | None = None
) -> Array:
    """self with as_strided(size, stride, offset) = src, self taken as contiguous."""
    index = strided_indices(size, stride, storage_offset or 0)
    return self.reshape(-1).at[index].set(cast(src, self.dtype)).reshape(self.shape)
