"""Softmaxes and scaled dot-product attention.

Attention(q, k, v) = softmax(q kᵀ · scale + mask) v (Vaswani et al., Attention Is All You Need,
2017, https://arxiv.org/abs/1706.03762), with the options of
``torch.nn.functional.scaled_dot_product_attention``. Scores, mask and softmax are float32 for
half types; the weights are rounded to the value's type before the second product.

Grouped queries fold the group into the query length, so K and V are never repeated. A causal
mask is aligned top left. A row that is masked wholly gives zeros, as torch's kernels do.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core.attention import chosen, record
from jaxinfer_converters.aten import _fused
from jaxinfer_converters.aten._common import (
    Array,
    acc_dtype,
    canonical_dim,
    cast,
    in_float32,
    rule,
)
from jaxinfer_converters.aten._heads import by_blocks, divisible, large
from jaxinfer_converters.aten.matmul import wide_dot


def _over(fn: Any, x: Array, dim: int) -> Array:
    """fn(x, axis) in float32 for half types; a scalar is a vector of one."""
    axis = canonical_dim(dim, x.ndim)
    wide = lambda x: fn(x[None], 0)[0] if x.ndim == 0 else fn(x, axis)
    return in_float32(wide, x) if x.size else x


@rule("aten.softmax.int")
def softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """Exp x / Σ exp x over dim; a row of -inf gives NaN."""
    return _over(jax.nn.softmax, x if dtype is None else cast(x, dtype), dim)


@rule("aten.log_softmax.int")
def log_softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """X - log Σ exp x over dim."""
    return _over(jax.nn.log_softmax, x if dtype is None else cast(x, dtype), dim)


@rule("aten._softmax.default")
def softmax_primitive(x: Array, dim: int, half_to_float: bool) -> Array:
    """Softmax over dim; half_to_float keeps float32."""
    return softmax(x, dim, np.dtype("float32") if half_to_float else None)


@rule("aten._log_softmax.default")
def log_softmax_primitive(x: Array, dim: int, half_to_float: bool) -> Array:
    """log_softmax over dim; half_to_float keeps float32."""
    return log_softmax(x, dim, np.dtype("float32") if half_to_float else None)


def _zero_masked(x: Array, axis: int) -> Array:
    """Softmax in which a row of -inf gives zeros; differentiable there too."""
    empty = jnp.max(x, axis, keepdims=True, initial=-jnp.inf) == -jnp.inf
    return jnp.where(empty, 0, jax.nn.softmax(jnp.where(empty, 0, x), axis))


@rule("aten._safe_softmax.default")
def safe_softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """Softmax over dim; a row of -inf gives zeros."""
    return _over(_zero_masked, x if dtype is None else cast(x, dtype), dim)


def _scores(query: Array, key: Array, mask: Array | None, causal: bool, scale: Any) -> Array:
    """Q kᵀ scale + mask: [..., heads, t, s] in the accumulation dtype; key may have fewer heads."""
    batch = tuple(range(query.ndim - 2))
    last = query.ndim - 1
    folded = _fold(query, key)
    scores = wide_dot(folded, key, ((last,), (last,)), (batch, batch))
    scores = scores.reshape(*query.shape[:-1], key.shape[-2])
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if mask is not None and mask.dtype == jnp.bool_:
        scores = jnp.where(mask, scores, -jnp.inf)
    elif mask is not None:
        scores = scores + cast(mask, scores.dtype)
    if causal:
        rows = lax.broadcasted_iota(np.int32, scores.shape[-2:], 0)
        columns = lax.broadcasted_iota(np.int32, scores.shape[-2:], 1)
        scores = jnp.where(rows >= columns, scores, -jnp.inf)
    return scores


def _fold(x: Array, key: Array) -> Array:
    """[..., k·g, t, h] -> [..., k, g·t, h] where key has k heads."""
    heads = key.shape[-3] if key.ndim > 2 else None
    if heads is None or x.shape[-3] == heads:
        return x
    return x.reshape(*x.shape[:-3], heads, x.shape[-3] // heads * x.shape[-2], x.shape[-1])


def _same_batch(query: Array, key: Array, value: Array, grouped: bool) -> tuple[Array, ...]:
    """Broadcast leading dims where they differ (heads too, unless queries are grouped)."""
    inner = 3 if grouped and query.ndim > 2 else 2
    if grouped and key.shape[-3] != value.shape[-3]:
        heads = max(key.shape[-3], value.shape[-3])
        key, value = (jnp.repeat(x, heads // x.shape[-3], -3) for x in (key, value))
    lead = jnp.broadcast_shapes(*(x.shape[:-inner] for x in (query, key, value)))
    return tuple(
        x if x.shape[:-inner] == lead else jnp.broadcast_to(x, (*lead, *x.shape[-inner:]))
        for x in (query, key, value)
    )


def _has_dropout(*args: Any, **kwargs: Any) -> bool:
    return (args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)) > 0


@rule("aten.scaled_dot_product_attention.default", samples=_has_dropout)
def scaled_dot_product_attention(
    context: Any,
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """Softmax(q kᵀ scale + mask) v for q [..., n, t, h], k [..., k, s, h], v [..., k, s, e]."""
    query, key, value = _same_batch(query, key, value, enable_gqa)
    dense = functools.partial(_attend, causal=is_causal, scale=scale)
    if dropout_p > 0:
        _record("whole", query, key, "dropout is drawn for all scores at once")
        return dense(query, key, value, attn_mask, dropout=(context.key(), dropout_p))
    blocks = functools.partial(by_blocks, dense)
    if mode := chosen():
        return _as_chosen(mode, query, key, value, attn_mask, dense, blocks)
    if not large(query, key):
        return dense(query, key, value, attn_mask)
    return lax.platform_dependent(query, key, value, attn_mask, cpu=blocks, default=dense)


def _as_chosen(
    mode: str, query: Array, key: Array, value: Array, mask: Array | None, dense: Any, blocks: Any
) -> Array:
    """Attention as ``core.attention`` has it asked for, and a record of what was done."""
    if mode == "blocked":
        if divisible(query, key):
            _record("blocked", query, key)
            return blocks(query, key, value, mask)
        _record("whole", query, key, "there are no heads of a known number to take in turn")
    elif mode == "cudnn":
        why = _fused.misfit(query, key, value)
        if not why:
            half = np.dtype(query.dtype).name in _fused.HALVES
            rounded = "" if half else f"{query.dtype} operands are rounded to bfloat16"
            _record("cudnn", query, key, rounded)
            options = dense.keywords
            return _fused.attend(query, key, value, mask, **options)
        _record("whole", query, key, f"cuDNN: {why}")
    else:
        _record("whole", query, key)
    return dense(query, key, value, mask)


def _record(how: str, query: Array, key: Array, why: str = "") -> None:
    record(how, why, (*query.shape[:-1], key.shape[-2]))


def _attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    causal: bool,
    scale: float | None,
    dropout: tuple[Array, float] | None = None,
) -> Array:
    """Attention with all scores at once; ``dropout`` is a key and a probability."""
    scores = _scores(query, key, mask, causal, scale)
    masked = mask is not None or key.shape[-2] == 0
    weights = _zero_masked(scores, -1) if masked else jax.nn.softmax(scores, -1)
    if dropout is not None:
        rng, p = dropout
        keep = jax.random.bernoulli(rng, 1 - p, weights.shape)
        weights = jnp.where(keep, weights / (1 - p), 0) if p < 1 else weights * 0
    batch = tuple(range(value.ndim - 2))
    last = value.ndim - 1
    folded = _fold(cast(weights, value.dtype), value)
    out = cast(wide_dot(folded, value, ((last,), (last - 1,)), (batch, batch)), query.dtype)
    return out.reshape(*query.shape[:-1], value.shape[-1])


def _flash_has_dropout(*args: Any, **kwargs: Any) -> bool:
    return (args[3] if len(args) > 3 else kwargs.get("dropout_p", 0.0)) > 0


@rule("aten._scaled_dot_product_flash_attention_for_cpu.default", samples=_flash_has_dropout)
def flash_attention_for_cpu(
    context: Any,
    query: Array,
    key: Array,
    value: Array,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Array | None = None,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """(attention, log Σ exp scores), of graphs that were decomposed before they came here."""
    out = scaled_dot_product_attention(
        context, query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )
    scores = _scores(query, key, attn_mask, is_causal, scale)
    total = jax.nn.logsumexp(scores, -1)
    return out, jnp.where(total == -jnp.inf, 0, total).astype(acc_dtype(query.dtype))
