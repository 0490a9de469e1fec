"""Embedding tables: embedding, embedding_bag (sum, mean, max) and one_hot.

embedding: out[i] = weight[indices[i]]. embedding_bag: bag b holds indices[offsets[b] :
offsets[b+1]]; with the bag of each index (a running count of offsets) it is one gather and one
sorted segment reduction, whatever the lengths of the bags. Entries equal to ``padding_idx``
are left out. Half types accumulate in float32.
Does not do: embedding_renorm (``max_norm``), which writes to the weight.
Source: PyTorch, ATen/native/EmbeddingBag.cpp.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer.core.symbols import evaluate
from jaxinfer_converters.aten._common import Array, acc_dtype, cast, rule
from jaxinfer_converters.aten._data_dependent import refuse
from jaxinfer_converters.aten.reduce import p_norm

SUM, MEAN, MAX = 0, 1, 2


@rule("aten.embedding.default")
def embedding(
    weight: Array,
    indices: Array,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Array:
    """out[i] = weight[indices[i]]; the other arguments matter for gradients only."""
    del padding_idx, scale_grad_by_freq, sparse
    return jnp.take(weight, indices, axis=0, mode="clip")


def _bags(offsets: Array, count: int, include_last: bool) -> tuple[Array, int]:
    """Return the bag of each of count indices (i32[count], sorted) and the number of bags."""
    starts = jnp.zeros(count, jnp.int32).at[offsets].add(1, mode="drop")
    return jnp.cumsum(starts) - 1, offsets.shape[0] - include_last


def _fit(context: Any, result: int, x: Array, length: int) -> Array:
    """Cut or zero-fill x[n, ..] to the length that torch recorded for a result, else to length."""
    aval = context.aval(result) if context.node is not None else None
    if aval is not None:
        length = evaluate(aval.shape[0], context.sizes) or 0
    more = [(0, max(0, length - x.shape[0]))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, more)[:length]


@rule(
    "aten._embedding_bag.default",
    "aten._embedding_bag_forward_only.default",
    "aten.embedding_bag.default",
    "aten.embedding_bag.padding_idx",
    context=True,
)
def embedding_bag(
    context: Any,
    weight: Array,
    indices: Array,
    offsets: Array,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    sparse: bool = False,
    per_sample_weights: Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = -1,
) -> tuple[Array, Array, Array, Array]:
    """out[b] = reduce over i in bag b of weight[indices[i]] * per_sample_weights[i]; see above."""
    del scale_grad_by_freq, sparse
    padding = -1 if padding_idx is None else padding_idx
    bag, bags = _bags(offsets, indices.shape[0], include_last_offset)
    keep = indices != padding if padding >= 0 else jnp.ones(indices.shape, jnp.bool_)
    rows = jnp.take(weight, indices, axis=0, mode="clip")
    rows = cast(rows, acc_dtype(weight.dtype))
    segments = {"num_segments": bags, "indices_are_sorted": True}
    size = jax.ops.segment_sum(keep.astype(jnp.int32), bag, **segments)

    if mode == MAX:
        rows = jnp.where(keep[:, None], rows, -jnp.inf)
        out = jnp.where(size[:, None] > 0, jax.ops.segment_max(rows, bag, **segments), 0)
        best = rows == jnp.take(out, bag, axis=0, mode="clip")
        item = jnp.where(
            best & keep[:, None], lax.broadcasted_iota(jnp.int32, rows.shape, 0), 2**30
        )
        first = jax.ops.segment_min(item, bag, **segments)
        chosen = jnp.take(indices, first, mode="clip") if indices.size else first
        chosen = jnp.where(size[:, None] > 0, chosen, 0)
    else:
        scale = keep.astype(rows.dtype)
        if per_sample_weights is not None:
            scale = scale * cast(per_sample_weights, rows.dtype)
        if per_sample_weights is not None or padding >= 0:
            rows = rows * scale[:, None]
        out = jax.ops.segment_sum(rows, bag, **segments)
        if mode == MEAN:
            out = out / jnp.maximum(size, 1).astype(rows.dtype)[:, None]
        else:
            size = jnp.zeros_like(size)
        chosen = size

    # torch's kernels for sums leave out the bag of each index; some add an entry to size.
    bag = _fit(context, 1, bag, 0 if mode == SUM and padding < 0 else bag.shape[0])
    size, chosen = _fit(context, 2, size, bags), _fit(context, 3, chosen, bags)
    integers = [cast(x, offsets.dtype) for x in (bag, size, chosen)]
    return cast(out, weight.dtype), integers[0], integers[1], integers[2]


@rule("aten.one_hot.default")
def one_hot(self: Array, num_classes: int = -1) -> Array:
    """out[.., c] = 1 if self[..] = c else 0, int64."""
    if num_classes < 0:
        refuse("one_hot without num_classes", "pass num_classes")
    classes = lax.iota(self.dtype, num_classes)
    return (self[..., None] == classes).astype(dtypes.canonical("int64"))


@rule("aten.embedding_renorm.default")
def embedding_renorm(self: Array, indices: Array, max_norm: float, norm_type: float) -> Array:
    """The table with the rows that indices name scaled down to a norm of max_norm."""
    wide = cast(self, acc_dtype(self.dtype))
    norm = p_norm(wide, norm_type, -1, True)
    used = jnp.zeros((self.shape[0], 1), bool).at[indices.reshape(-1)].set(True)
    scale = jnp.where(used & (norm > max_norm), max_norm / (norm + 1e-7), 1)
    return cast(wide * scale, self.dtype)
