"""Two codes of 4 bits in one byte, along one axis.

``byte[i] = code[2 i] & 15 | (code[2 i + 1] & 15) << 4``: neighbours share a byte, so slices
and concatenations at even places are slices and concatenations of bytes.

``jnp.int4`` is not used: whether an array of it takes half a byte an element differs between
``nbytes``, the device's own count and the compiled program's arguments. A uint8 array takes
what it says, on every back-end and on disk.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def pack(codes: Array, axis: int) -> Array:
    """Pack codes of 4 bits along ``axis``; an odd axis is padded by one code of 0.

    Args:
      codes: i8 or u8[..., n, ...]; only the low 4 bits of each are kept.
      axis: may be negative.

    Returns:
      u8[..., ceil(n / 2), ...].

    >>> pack(jnp.array([1, -2, 3], jnp.int8), 0).tolist()  # 0xe1, 0x03
    [225, 3]
    """
    axis %= codes.ndim
    codes = lax.bitcast_convert_type(codes, jnp.uint8) & jnp.uint8(15)
    if codes.shape[axis] % 2:
        codes = jnp.pad(codes, [(0, int(i == axis)) for i in range(codes.ndim)])
    shape = codes.shape
    pairs = codes.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
    low = lax.index_in_dim(pairs, 0, axis + 1, keepdims=False)
    high = lax.index_in_dim(pairs, 1, axis + 1, keepdims=False)
    return low | (high << jnp.uint8(4))


def unpack(packed: Array, axis: int, *, signed: bool, size: int | None = None) -> Array:
    """Return the codes that ``pack`` packed along ``axis``.

    Args:
      packed: u8[..., m, ...].
      axis: may be negative.
      signed: whether the highest of the 4 bits is a sign.
      size: number of codes along the axis, 2 m by default.

    Returns:
      i8 (``signed``) or u8[..., size, ...].

    >>> unpack(jnp.array([225, 3], jnp.uint8), 0, signed=True, size=3).tolist()
    [1, -2, 3]
    """
    axis %= packed.ndim
    pairs = jnp.stack([packed & jnp.uint8(15), packed >> jnp.uint8(4)], axis + 1)
    shape = packed.shape
    codes = pairs.reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
    if size is not None and size != codes.shape[axis]:
        codes = lax.slice_in_dim(codes, 0, size, axis=axis)
    if not signed:
        return codes
    return lax.bitcast_convert_type((codes ^ jnp.uint8(8)) - jnp.uint8(8), jnp.int8)


def best_axis(sizes: Sequence[int], groups: Sequence[int]) -> int | None:
    """Return the axis to pack along, or None where packing gains nothing or cannot be.

    An axis qualifies if it is even, or if one scale serves all of it (it can be padded).
    First comes an axis whose elements share scales and that wastes at most an eighth: output
    channels, rows and stacked layers can then be sliced without unpacking. Otherwise the axis
    with the fewest bytes; the last of equals.

    Args:
      sizes: number of codes along each axis.
      groups: number of scales along each axis.

    >>> best_axis((64, 63), (1, 63)), best_axis((3, 3, 1, 64), (1, 1, 1, 64)), best_axis((5,), (5,))
    (0, 3, None)
    """
    ranked = []
    for axis, (size, count) in enumerate(zip(sizes, groups, strict=True)):
        if size == 1 or (size % 2 and count != 1):
            continue
        waste = (size % 2) / max(size, 1)
        ranked.append((waste > 1 / 8, count == size, waste, -axis))
    return -min(ranked)[-1] if ranked else None
