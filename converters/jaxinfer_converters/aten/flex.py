"""FlexAttention: attention whose scores a function of their position changes and masks.

    out[b, h, q] = softmax over k of mod(q·k * scale, b, h, q, k), where mask(b, h, q, k); times v

(Dong et al., Flex Attention: A Programming Model for Generating Optimized Attention Kernels,
2024, https://arxiv.org/abs/2412.05496). Both functions are subgraphs of scalars; ``vmap``
makes them arrays. The computation is dense, as torch's is in eager mode: the mask function
decides, the block mask's lists of blocks are not read, and no block is skipped, so the scores take
b * h * q * k floats. Scores are float32; a row that is masked wholly gives zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, acc_dtype, cast, rule
from jaxinfer_converters.aten.attention import safe_softmax
from jaxinfer_converters.aten.matmul import wide_dot


def _everywhere(fn: Any, *, scores: bool) -> Any:
    """Map a function of scalars (score?, b, h, q, k) over all positions: [b, h, q, k]."""
    first = (0,) if scores else ()
    for place in (3, 2, 1, 0):
        axes = [0 if i == place else None for i in range(4)]
        fn = jax.vmap(fn, (*first, *axes))
    return fn


@rule("higher_order.flex_attention", context=True)
def flex_attention(
    context: Any,
    query: Array,
    key: Array,
    value: Array,
    score_mod: Any,
    block_mask: Sequence[Any],
    scale: float,
    kernel_options: Any = None,
    score_buffers: Sequence[Any] = (),
    mask_buffers: Sequence[Any] = (),
) -> tuple[Array, Array, Array]:
    """(attention, log2 Σ 2^..., largest score / ln 2): the last two as torch's kernels give them.

    Args:
      query: [b, h, q, d]. key, value: [b or 1, n, k, d]; h is a multiple of n.
      score_mod: subgraph (score, b, h, q, k, *score_buffers) -> score.
      block_mask: its last entry is the subgraph (b, h, q, k, *mask_buffers) -> bool.
    """
    del kernel_options
    groups = query.shape[1] // key.shape[1]
    key, value = (
        jnp.broadcast_to(jnp.repeat(x, groups, 1), (query.shape[0], query.shape[1], *x.shape[2:]))
        for x in (key, value)
    )
    wide = acc_dtype(query.dtype)
    scores = wide_dot(query, key, ((3,), (3,)), ((0, 1), (0, 1))) * scale
    places = [jnp.arange(size, dtype=dtypes.canonical("int64")) for size in scores.shape]
    change = lambda *xs: context.call(score_mod, [*xs, *score_buffers])[0]
    visible = lambda *xs: context.call(block_mask[-1], [*xs, *mask_buffers])[0]
    changed = cast(_everywhere(change, scores=True)(scores, *places), wide)
    masked = jnp.where(_everywhere(visible, scores=False)(*places), changed, -jnp.inf)
    weights = cast(safe_softmax(masked, -1), query.dtype)
    out = cast(
        wide_dot(weights, cast(value, query.dtype), ((3,), (2,)), ((0, 1), (0, 1))), query.dtype
    )
    total, largest = jax.nn.logsumexp(masked, -1), jnp.max(masked, -1, initial=-jnp.inf)
    return out, total / math.log(2), largest / math.log(2)
