"""Join quantized arrays without decoding them.

Scales stay with their elements. Where the parts have tiles of different sizes, tiles are cut to
the greatest common divisor by repeating scales; where the parts are packed differently, codes
are unpacked first (exact, twice the bytes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinfer.core.errors import InputError
from jaxinfer.numerics.qtensor import QTensor, _affordable


def concatenate(parts: Sequence[QTensor], axis: int) -> QTensor | None:
    """Join quantized arrays along an axis, as ``jnp.concatenate``, without decoding.

    Tiles are cut to the greatest common divisor of all parts. None where formats, dtypes or
    the use of zero points differ, where a part other than the last has padding along ``axis``
    that cannot be dropped, where other axes are padded to different sizes, or where there would
    be more scales than a quarter of the elements (and than there were).

    Args:
      parts: at least one; equal shapes but for ``axis``.
      axis: may be negative.

    Raises:
      InputError: no part, or shapes that do not fit.
    """
    if not parts:
        raise InputError("concatenate: required at least one array, got none")
    axis = parts[0]._axis(axis)
    rest = {(*q.shape[:axis], *q.shape[axis + 1 :]) for q in parts}
    if len(rest) != 1 or len({q.ndim for q in parts}) != 1:
        raise InputError(
            f"concatenate: required equal shapes but for axis {axis}, "
            f"got {', '.join(str(q.shape) for q in parts)}"
        )
    kinds = {(q.format, q.logical_dtype, q.zero_point is None) for q in parts}
    if len(kinds) != 1:
        return None
    before = sum(q.scale.size for q in parts)
    shape = list(parts[0].shape)
    shape[axis] = sum(q.shape[axis] for q in parts)
    parts = [q for q in parts if q.shape[axis]] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    joined = _aligned(parts, axis)
    if joined is None:
        return None
    join = lambda arrays: lax.concatenate(list(arrays), axis)
    wide = jnp.result_type(*(q.scale.dtype for q in joined))
    zeros = [q.zero_point for q in joined if q.zero_point is not None]
    out = joined[0]._with(
        join(q.qvalue for q in joined),
        join(q.scale.astype(wide) for q in joined),
        join(zeros) if zeros else None,
        tuple(shape),
        joined[0].packed,
    )
    return out if _affordable(out, before) else None


def _aligned(parts: Sequence[QTensor], axis: int) -> list[QTensor] | None:
    """Bring parts to one packing and to common tiles, so that their children can be joined."""
    rank = parts[0].ndim
    packed = {q.packed for q in parts}
    along = packed == {axis - rank}
    if len(packed) != 1 or (along and any(q.shape[axis] % 2 for q in parts[:-1])):
        parts = [q.unpacked() for q in parts]
        along = False
    out = list(parts)
    for dim in range(rank):
        out = [q._trim(dim) for q in out]
        held = {q.stored[dim] for q in out}
        ends = [q.stored[dim] == q.shape[dim] for q in out]
        if not all(ends[:-1]) if dim == axis else len(held) != 1:
            return None
        if min(held) == 0:
            out = [q if q.scale.shape[dim] == 1 else _one_scale(q, dim) for q in out]
            continue
        tile = math.gcd(*(q.tiles[dim] for q in out))
        out = [q._refine(dim, tile) for q in out]
    return out


def _one_scale(q: QTensor, axis: int) -> QTensor:
    """Give an axis of size 0 one scale instead of none."""
    shape = (*q.scale.shape[:axis], 1, *q.scale.shape[axis + 1 :])
    return q._with(q.qvalue, *q._map(lambda x: jnp.ones(shape, x.dtype)), q.shape, q.packed)
