"""Attention head by head, for scores that do not fit the caches of a CPU.

All scores of [b, n, t, s] are written and read several times. Once they are larger than the
caches, XLA on CPUs takes 2 to 2.5 times as long as for a few heads after each other (8 x 12 x
512 x 512: 90 and 38 ms on 2 cores, ``benchmarks/attention.py``), and memory for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array

LARGE = 8 << 20
"""Scores beyond which they are computed in blocks: 32 MiB of float32."""
BLOCK = 2 << 20
"""Scores of a block, if one head has no more: 8 MiB of float32."""

Attend = Callable[[Array, Array, Array, Array | None], Array]


def large(query: Array, key: Array) -> bool:
    """Whether the scores are many, and there are heads to take one after the other."""
    return divisible(query, key) and math.prod((*query.shape[:-1], key.shape[-2])) > LARGE


def divisible(query: Array, key: Array) -> bool:
    """Whether there are heads to take one after the other, of sizes that are known."""
    known = all(isinstance(size, int) for size in (*query.shape, *key.shape))
    return known and query.ndim > 2 and 0 not in (*query.shape[:-1], *key.shape[-3:-1])


def by_blocks(attend: Attend, query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Map ``attend`` over the batch, and within it over groups of heads.

    Args:
      attend: takes q [n, t, h], k [k, s, h], v [k, s, e] and a mask.
      mask: broadcasts against [..., n, t, s].
    """
    *lead, heads, _, _ = query.shape
    groups = key.shape[-3]
    scores = heads // groups * query.shape[-2] * key.shape[-2]  # of one head of the keys
    fit = max(1, BLOCK // max(1, scores))
    each = max(n for n in range(1, groups + 1) if groups % n == 0 and n <= fit)
    count = groups // each

    def split(x: Array) -> Array:
        return x.reshape(count, x.shape[0] // count, *x.shape[1:])

    def one(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        """Attend for one entry of the batch."""
        own = mask is not None and mask.ndim > 2 and mask.shape[-3] > 1  # a mask for each head
        each = split(mask) if mask is not None and own else mask
        out = _map(attend, (split(query), split(key), split(value)), each, own)
        return out.reshape(heads, *out.shape[2:])

    if not lead:
        return one(query, key, value, mask)
    own = mask is not None and math.prod(mask.shape[:-3]) > 1
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*lead, *mask.shape[-3:])) if own else mask
        mask = mask.reshape(*([-1] if own else []), *mask.shape[-3:])
    flat = [x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)]
    out = _map(one, (flat[0], flat[1], flat[2]), mask, own)
    return out.reshape(*lead, *out.shape[1:])


def _map(
    attend: Attend, arrays: tuple[Array, Array, Array], mask: Array | None, own: bool
) -> Array:
    """Map over the first axis, also of the mask if each entry has its own."""
    if mask is None or not own:
        return lax.map(lambda x: attend(x[0], x[1], x[2], mask), arrays)
    return lax.map(lambda x: attend(x[0], x[1], x[2], x[3]), (*arrays, mask))
