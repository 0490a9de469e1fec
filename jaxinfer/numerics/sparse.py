"""N:M sparse weights stored without their zeros.

Of each group of m successive elements along an axis the n kept ones are stored in order, and
the place of each in its group in ``bits = ceil(log2 m)`` bits, low bits first, one after
another along the axis: byte b holds the bits 8 b to 8 b + 7. 2:4 in bfloat16 takes 9/16 of the
dense bytes, in float32 17/32.

After Mishra et al., "Accelerating sparse deep neural networks", 2021,
https://arxiv.org/abs/2104.08378 (values and 2-bit metadata; the order that the tensor cores of
a GPU want them in is a matter of the kernel, not of this storage).

Not done here: products with compressed weights; they are decompressed where they are used.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core.array_types import ARRAY_TYPES, ArrayType
from jaxinfer.core.errors import InputError, listing
from jaxinfer.numerics import _checks

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Compressed(ArrayType):
    """An N:M sparse weight without its zeros: an array type, of the dense shape and dtype.

    The axis is counted from the last, so both children may have leading axes more (stacked
    layers under ``scan`` and ``vmap``).

    Attributes:
      values: any dtype[..., groups n, ...], groups = ceil(length / m).
      indices: u8[..., ceil(groups n bits / 8), ...], places in the groups.
      n, m: n of each m elements are stored.
      axis: the axis of the groups, negative.
      length: its size in the dense weight.
    """

    kind: ClassVar[str] = "Compressed"
    values: Any
    indices: Any
    n: int = dataclasses.field(metadata={"static": True})
    m: int = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense weight."""
        shape = list(self.values.shape)
        shape[self.axis] = self.length
        return tuple(shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the weight."""
        return self.values.dtype

    def validate(self, path: str) -> None:
        """Raise if the indices do not fit the values.

        Raises:
          InputError: n, m or axis out of range, or indices of another dtype or shape.
        """
        problems = []
        if not 1 <= self.n <= self.m <= 256 or not -self.ndim <= self.axis < 0:
            problems.append(f"n={self.n}, m={self.m}, axis={self.axis}: out of range")
        elif self.indices.dtype != jnp.uint8 or self.indices.ndim != self.values.ndim:
            problems.append(f"indices: required uint8 of rank {self.values.ndim}")
        else:
            groups = -(-self.length // self.m)
            if self.values.shape[self.axis] != groups * self.n:
                problems.append(
                    f"values: required {groups * self.n} along axis {self.axis}, "
                    f"got {self.values.shape}"
                )
        if problems:
            raise InputError(listing(f"{path}: the parts do not fit each other:", problems))

    def materialize(self) -> Array:
        """Return the dense weight."""
        return decompress(self)


ARRAY_TYPES.register("Compressed")(Compressed)


def compress(
    weight: Array, mask: Array, n: int, m: int, axis: int, *, path: str = "weight"
) -> Compressed:
    """Store an N:M masked weight without its zeros.

    ``decompress`` gives ``where(mask, weight, 0)`` back bit for bit. Where a group keeps fewer
    than n elements, zeros fill up; that they were pruned is then no longer known.

    Args:
      weight: any dtype[..., k, ...].
      mask: bool[..., k, ...], at most n of each m along the axis, as of ``masks.nm``.
      n, m: ``1 <= n <= m``.
      axis: the axis of the groups; may be negative.
      path: names the leaf in errors.

    Returns:
      a ``Compressed`` of the weight's shape and dtype.

    Raises:
      InputError: n or m out of range, no such axis, a mask of another shape, or one (where it is
        known) that keeps more than n of some group; of a traced mask the first n are stored.
      InputTypeError: the mask is not boolean.

    Cost: one sort within groups; a few times the dense weight in memory. Done once.

    >>> w = jnp.array([0.0, 3, 0, 4, 5, 0])
    >>> small = compress(w, w != 0, 2, 4, 0)
    >>> small.values.tolist(), small.indices.tolist()  # places 1 3 0 1, two bits each
    ([3.0, 4.0, 5.0, 0.0], [77])
    """
    weight, mask = _checks.mask(weight, mask, path)
    _checks.nm(n, m, path)
    axis = _checks.axis(weight.shape, axis, path)
    length = weight.shape[axis]
    dense = jnp.where(mask, weight, jnp.zeros((), weight.dtype))
    mask, dense = _grouped(mask, axis, m), _grouped(dense, axis, m)
    if _checks.holds((mask.sum(-1) > n).any()):
        raise InputError(
            f"compressing {path}: the mask keeps up to {int(mask.sum(-1).max())} of {m} along "
            f"axis {axis}, required at most {n}; make it with masks.nm(scores, {n}, {m}, {axis})"
        )
    values, indices = _stored(mask, dense, n, m, axis)
    return Compressed(values, indices, n=n, m=m, axis=axis - weight.ndim, length=length)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _stored(mask: Array, dense: Array, n: int, m: int, axis: int) -> tuple[Array, Array]:
    """Return values and packed places of groups [..., groups, m], back along ``axis``."""
    places = jnp.sort(jnp.argsort(~mask, axis=-1, stable=True)[..., :n], axis=-1)
    values = jnp.take_along_axis(dense, places, axis=-1)
    flat = (*values.shape[:-2], values.shape[-2] * n)
    indices = _pack(places.reshape(flat), m)
    return jnp.moveaxis(values.reshape(flat), -1, axis), jnp.moveaxis(indices, -1, axis)


@jax.jit
def decompress(small: Compressed) -> Array:
    """Return the dense weight: each value at its place, 0 elsewhere.

    Cost: n m comparisons a group, no sort and no gather, so it fuses with its consumer where
    the back-end fuses at all.
    """
    n, m, axis = small.n, small.m, small.axis
    values = jnp.moveaxis(small.values, axis, -1)
    groups = -(-small.length // m)
    places = _unpack(jnp.moveaxis(small.indices, axis, -1), m, groups * n)
    lead = values.shape[:-1]
    values, places = (x.reshape(*lead, groups, n, 1) for x in (values, places))
    out = jnp.zeros((*lead, groups, m), small.dtype)
    for slot in range(n):  # selected, not summed: -0.0 stays
        here = places[..., slot, :] == jnp.arange(m, dtype=places.dtype)
        out = jnp.where(here, values[..., slot, :], out)
    out = out.reshape(*lead, groups * m)
    return jnp.moveaxis(lax.slice_in_dim(out, 0, small.length, axis=-1), -1, axis)


def _grouped(x: Array, axis: int, m: int) -> Array:
    """Return [..., k, ...] as [..., groups, m], padded with zeros."""
    x = jnp.moveaxis(x, axis, -1)
    groups = -(-x.shape[-1] // m)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, groups * m - x.shape[-1])])
    return x.reshape(*x.shape[:-1], groups, m)


def _word(m: int) -> tuple[int, Any]:
    """Return the bits of a place among m, and the smallest dtype for it."""
    bits = (m - 1).bit_length()
    return bits, jnp.uint8 if bits <= 8 else jnp.uint32


def _pack(places: Array, m: int) -> Array:
    """Pack places[..., count], each below m, into u8[..., ceil(count bits / 8)]."""
    *lead, size = places.shape
    bits, word = _word(m)
    stream = (places.astype(word)[..., None] >> jnp.arange(bits, dtype=word)) & word(1)
    stream = stream.astype(jnp.uint8).reshape(*lead, size * bits)
    length = -(-size * bits // 8)
    stream = jnp.pad(stream, [(0, 0)] * len(lead) + [(0, length * 8 - size * bits)])
    octets = stream.reshape(*lead, length, 8) << jnp.arange(8, dtype=jnp.uint8)
    return octets.sum(-1, dtype=jnp.uint8)


def _unpack(packed: Array, m: int, size: int) -> Array:
    """Return the places[..., size] that ``_pack`` packed, as u8 (u32 for m above 256)."""
    *lead, length = packed.shape
    bits, word = _word(m)
    stream = (packed[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & jnp.uint8(1)
    stream = lax.slice_in_dim(stream.reshape(*lead, length * 8), 0, size * bits, axis=-1)
    stream = stream.reshape(*lead, size, bits).astype(word)
    return (stream << jnp.arange(bits, dtype=word)).sum(-1, dtype=word)
