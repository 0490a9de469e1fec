"""Attention by cuDNN's fused kernel, which never writes the scores to memory.

``jax.nn.dot_product_attention(implementation="cudnn")`` takes q, k, v of [b, t, n, h] in float16
or bfloat16, heads of up to 128 values (256 from compute capability 9.0 on) and a multiple of 8.
Source: T. Dao, "FlashAttention-2", 2023, https://arxiv.org/abs/2307.08691.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core.errors import InputError
from jaxinfer_converters.aten._common import Array

HALVES = ("float16", "bfloat16")


def misfit(query: Array, key: Array, value: Array) -> str:
    """Say why the kernel does not take these; "" if it does.

    Raises:
      InputError: there is no NVIDIA GPU.
    """
    platform = jax.default_backend()
    if platform != "gpu":
        raise InputError(
            f"attention 'cudnn': needs an NVIDIA GPU, JAX computes on {platform} here; "
            "ask for 'whole' or 'blocked'"
        )
    if query.ndim < 3:
        return f"rank {query.ndim}: there are no heads"
    if 0 in (*query.shape, *key.shape, *value.shape):
        return "a size is 0"
    if query.shape[-1] != value.shape[-1]:
        return f"keys of {query.shape[-1]} values, values of {value.shape[-1]}"
    if query.shape[-1] % 8:
        return f"heads of {query.shape[-1]} values, which is no multiple of 8"
    if query.shape[-1] > 256:
        return f"heads of {query.shape[-1]} values, more than 256"
    return ""


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    causal: bool,
    scale: float | None,
) -> Array:
    """Attention for q [..., n, t, h], k [..., k, s, h], v [..., k, s, h]; float32 in bfloat16.

    A row that is masked wholly gives zeros, as torch's kernels do.
    """
    dtype = query.dtype if np.dtype(query.dtype).name in HALVES else jnp.dtype("bfloat16")
    lead, (heads, t, _), s = query.shape[:-3], query.shape[-3:], key.shape[-2]
    flat = [
        jnp.swapaxes(x.astype(dtype).reshape(-1, *x.shape[-3:]), 1, 2) for x in (query, key, value)
    ]
    seen = bias = empty = None
    if mask is not None:
        shape = jnp.broadcast_shapes(mask.shape, (*[1] * len(lead), 1, t, s))
        mask = jnp.broadcast_to(mask, shape)
        if any(size != 1 for size in shape[:-3]):
            mask = jnp.broadcast_to(mask, (*lead, *shape[-3:]))
        mask = mask.reshape(-1, *shape[-3:])
        allowed = mask if mask.dtype == jnp.bool_ else mask > -jnp.inf
        if causal:
            allowed = allowed & jnp.tril(jnp.ones((t, s), bool))
        empty = ~jnp.any(allowed, -1)  # [b or 1, n or 1, t]
        if mask.dtype == jnp.bool_:
            seen = mask
        else:
            low = 0.7 * float(jnp.finfo(dtype).min)  # as dot_product_attention has for booleans
            bias = jnp.maximum(mask.astype(jnp.float32), low).astype(dtype)
    out = jax.nn.dot_product_attention(
        *flat, bias=bias, mask=seen, is_causal=causal, scale=scale, implementation="cudnn"
    )
    out = jnp.swapaxes(out, 1, 2)
    if empty is not None:
        out = jnp.where(empty[..., None], 0, out)
    return out.reshape(*lead, heads, t, value.shape[-1]).astype(query.dtype)
