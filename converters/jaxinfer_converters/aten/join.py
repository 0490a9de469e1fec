"""Joining and repeating: cat, stack, tile, repeat_interleave, shuffles, products of ranges.

No intermediate has more than six dims (XLA's CPU back end has crashed above).
``repeat_interleave`` by a tensor needs ``output_size``: its length is the sum of the repeats.
Source: PyTorch, ATen/native/TensorShape.cpp, PixelShuffle.cpp, Repeat.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, canonical_dim, prod, promote, rule
from jaxinfer_converters.aten._data_dependent import refuse

Sizes = Sequence[int]


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(tensors: Sequence[Array], dim: int = 0) -> Array:
    """Concatenate along dim in the common dtype; one-dim tensors of size 0 fit anywhere."""
    xs = promote(*tensors)
    xs = [x for x in xs if x.shape != (0,)] or xs[:1]
    return lax.concatenate(xs, canonical_dim(dim, xs[0].ndim))


@rule("aten.stack.default")
def stack(tensors: Sequence[Array], dim: int = 0) -> Array:
    """Concatenate along a new dim, in the common dtype."""
    dim = canonical_dim(dim, tensors[0].ndim + 1)
    return lax.concatenate([lax.expand_dims(x, (dim,)) for x in promote(*tensors)], dim)


def _repeat(x: Array, dim: int, n: int, inner: bool) -> Array:
    """Repeat dim n times: as a whole, or (inner) each element."""
    before, size, after = prod(x.shape[:dim]), x.shape[dim], prod(x.shape[dim + 1 :])
    if inner:
        block = jnp.broadcast_to(x.reshape(before, size, 1, after), (before, size, n, after))
    else:
        block = jnp.broadcast_to(x.reshape(before, 1, size, after), (before, n, size, after))
    return block.reshape(*x.shape[:dim], n * size, *x.shape[dim + 1 :])


@rule("aten.repeat.default", "aten.tile.default")
def repeat(self: Array, repeats: Sizes) -> Array:
    """out[i] = self[i % n] with size n * repeats; missing entries are in front, as ones."""
    ndim = max(len(repeats), self.ndim)
    x = self.reshape(*(1,) * (ndim - self.ndim), *self.shape)
    for dim, n in enumerate(repeats, start=ndim - len(repeats)):
        x = x if n == 1 else _repeat(x, dim, n, inner=False)
    return x


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(
    self: Array, repeats: int, dim: int | None = None, *, output_size: int | None = None
) -> Array:
    """out[i] = self[i // repeats] along dim; None flattens."""
    del output_size
    x = self.reshape(-1) if dim is None or self.ndim == 0 else self
    return _repeat(x, canonical_dim(dim or 0, x.ndim), repeats, inner=True)


def _repeated_places(repeats: Array, output_size: int | None) -> Array:
    """Return int[output_size]: place i of repeats, repeats[i] times."""
    if output_size is None:
        refuse("repeat_interleave by a tensor", "pass output_size, or repeat by an integer")
    places = lax.iota(repeats.dtype, repeats.size)
    return jnp.repeat(places, repeats, total_repeat_length=output_size)


@rule("aten.repeat_interleave.Tensor")
def repeat_interleave_places(repeats: Array, *, output_size: int | None = None) -> Array:
    """The places 0, 1, .. each repeated repeats[i] times."""
    return _repeated_places(repeats, output_size)


@rule("aten.repeat_interleave.self_Tensor")
def repeat_interleave_tensor(
    self: Array, repeats: Array, dim: int | None = None, *, output_size: int | None = None
) -> Array:
    """self[i] repeated repeats[i] times along dim; None flattens."""
    x = self.reshape(-1) if dim is None or self.ndim == 0 else self
    dim = canonical_dim(dim or 0, x.ndim)
    repeats = jnp.broadcast_to(repeats, (x.shape[dim],))
    return jnp.take(x, _repeated_places(repeats, output_size), axis=dim, mode="clip")


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(self: Array, upscale_factor: int, *, channels_last: bool = False) -> Array:
    """out[.., c, h*r + i, w*r + j] = self[.., c*r*r + i*r + j, h, w]."""
    r = upscale_factor
    if channels_last:
        n, height, width, channels = self.shape
        x = self.reshape(n, height, width, channels // r**2, r, r)
        x = lax.transpose(x, (0, 1, 4, 2, 5, 3))
        return x.reshape(n, height * r, width * r, channels // r**2)
    *batch, channels, height, width = self.shape
    x = self.reshape(prod(batch), channels // r**2, r, r, height, width)
    return lax.transpose(x, (0, 1, 4, 2, 5, 3)).reshape(
        *batch, channels // r**2, height * r, width * r
    )


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(self: Array, downscale_factor: int, *, channels_last: bool = False) -> Array:
    """out[.., c*r*r + i*r + j, h, w] = self[.., c, h*r + i, w*r + j]."""
    r = downscale_factor
    if channels_last:
        n, height, width, channels = self.shape
        x = self.reshape(n, height // r, r, width // r, r, channels)
        x = lax.transpose(x, (0, 1, 3, 5, 2, 4))
        return x.reshape(n, height // r, width // r, channels * r**2)
    *batch, channels, height, width = self.shape
    x = self.reshape(prod(batch), channels, height // r, r, width // r, r)
    return lax.transpose(x, (0, 1, 3, 5, 2, 4)).reshape(
        *batch, channels * r**2, height // r, width // r
    )


@rule("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(self: Array, groups: int, *, channels_last: bool = False) -> Array:
    """out[:, i*g + j] = self[:, j*(c/g) + i]."""
    if channels_last:
        *lead, channels = self.shape
        x = self.reshape(*lead, groups, channels // groups)
        return jnp.swapaxes(x, -1, -2).reshape(self.shape)
    batch, channels = self.shape[:2]
    x = self.reshape(batch, groups, channels // groups, prod(self.shape[2:]))
    return jnp.swapaxes(x, 1, 2).reshape(self.shape)


def _grid(tensors: Sequence[Array]) -> list[Array]:
    shape = [x.size for x in tensors]
    return [lax.broadcast_in_dim(x.reshape(-1), shape, (d,)) for d, x in enumerate(tensors)]


@rule("aten.meshgrid.default", "aten.meshgrid.indexing")
def meshgrid(tensors: Sequence[Array], *, indexing: str = "ij") -> list[Array]:
    """grids[k][i] = tensors[k][i[k]]; "xy" swaps the first two dims."""
    if indexing == "xy" and len(tensors) > 1:
        first, second, *rest = tensors
        second, first, *rest = _grid([second, first, *rest])
        return [first, second, *rest]
    return _grid(tensors)


@rule("aten.block_diag.default")
def block_diag(tensors: Sequence[Array]) -> Array:
    """The tensors as blocks along the diagonal, zero elsewhere; vectors are rows."""
    blocks = [x.reshape(1, -1) if x.ndim < 2 else x for x in promote(*tensors)]
    width, start, rows = sum(x.shape[1] for x in blocks), 0, []
    for block in blocks:
        rows.append(jnp.pad(block, ((0, 0), (start, width - start - block.shape[1]))))
        start += block.shape[1]
    return lax.concatenate(rows, 0)


@rule("aten.cartesian_prod.default")
def cartesian_prod(tensors: Sequence[Array]) -> Array:
    """All tuples with one element of each tensor, the last tensor running fastest."""
    if len(tensors) == 1:
        return tensors[0]
    return jnp.stack([grid.reshape(-1) for grid in _grid(tensors)], axis=1)
