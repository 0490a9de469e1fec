"""How each kind of leaf trains: its float copy, what the forward pass sees of it, what it ends as.

    plain    w                     master f32, cast in the forward pass, cast back at the end
    Masked   where(m, w, 0)        the weight trains, the mask is held
    QTensor  w + stop(q(w) - w)    straight-through: forward the codes, backward the floats

Source of the straight-through estimator: Bengio, Leonard, Courville, "Estimating or propagating
gradients through stochastic neurons", 2013, https://arxiv.org/abs/1308.3432; of training with
quantized weights: Jacob et al., 2018, https://arxiv.org/abs/1712.05877.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core.array_types import is_array_type
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.numerics.quantize import absmax_scale, minmax_scale, quantize

Array = jax.Array


class Layout(NamedTuple):
    """What ``quantize`` has to be told for a QTensor of the same layout."""

    axes: tuple[int, ...]
    tiles: Mapping[int, int]


def layout_of(q: QTensor) -> Layout:
    """Return which axes share scales, from the shapes alone."""
    axes, tiles = [], {}
    for axis, (size, count, tile) in enumerate(zip(q.stored, q.scale.shape, q.tiles, strict=True)):
        if count == size == q.shape[axis]:
            continue  # a scale for each element
        axes.append(axis)
        if count != 1:
            tiles[axis] = tile
    return Layout(tuple(axes), tiles)


def requantized(values: Array, like: QTensor) -> QTensor:
    """Quantize to the format, tiles, dtypes and packing of another QTensor.

    The scales are those of the new values (absmax, or minmax where there are zero points); what
    a QTensor decodes to, gives the same codes again wherever the largest code occurs in each
    tile, as it does after absmax.
    """
    axes, tiles = layout_of(like)
    find = absmax_scale if like.zero_point is None else minmax_scale
    scale, zero = find(values, like.format, axes=axes, tiles=tiles)
    if zero is not None and like.zero_point is not None:
        zero = zero.astype(like.zero_point.dtype)
    made = quantize(
        values, like.format, axes=axes, tiles=tiles, scale=scale.astype(like.scale.dtype),
        zero_point=zero, dtype=like.dtype,
    )  # fmt: skip
    return made if like.packed is not None else made.unpacked()


def quantized_part(leaf: Any) -> QTensor | None:
    """Return the QTensor that a leaf is, or whose ``weight`` it is."""
    part = leaf if isinstance(leaf, QTensor) else getattr(leaf, "weight", None)
    return part if is_array_type(leaf) and isinstance(part, QTensor) else None


def unfit(leaf: Any) -> str:
    """Return why a leaf does not train, or nothing."""
    q = quantized_part(leaf)
    if q is not None:
        shapes = jax.eval_shape(lambda q: requantized(q.materialize(), q), q)
        same = jax.tree.structure(shapes) == jax.tree.structure(q) and all(
            (a.shape, a.dtype) == (b.shape, b.dtype)
            for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(q), strict=True)
        )
        return "" if same else "its codes are laid out as no quantization gives them"
    if is_array_type(leaf) and not isinstance(leaf, Masked):
        return f"a {type(leaf).__name__} does not train"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"{leaf.dtype}"
    return ""


def master(leaf: Any) -> Array:
    """Return the float copy of a leaf that is trained, in float32 at least; a new array."""
    q = quantized_part(leaf)
    values = leaf.weight if isinstance(leaf, Masked) else leaf if q is None else q.materialize()
    return jnp.array(values, jnp.promote_types(values.dtype, jnp.float32), copy=True)


def seen(values: Array, leaf: Any, mask: Array | None) -> Any:
    """Return what stands at the leaf in the forward pass; differentiable in ``values``."""
    q = quantized_part(leaf)
    if q is not None:
        fake = requantized(lax.stop_gradient(values), q).materialize().astype(values.dtype)
        return (values + lax.stop_gradient(fake - values)).astype(q.dtype)
    if isinstance(leaf, Masked):
        return Masked(values.astype(leaf.dtype), mask)
    return values.astype(leaf.dtype)


def trained(values: Array, leaf: Any, mask: Array | None) -> Any:
    """Return the leaf with what was trained in it, of the same type and layout."""
    q = quantized_part(leaf)
    if q is None:
        return seen(values, leaf, mask)
    made = requantized(values, q)
    return made if isinstance(leaf, QTensor) else dataclasses.replace(leaf, weight=made)


def how(leaf: Any) -> str:
    """Return how a leaf trains, in words."""
    q = quantized_part(leaf)
    if q is not None:
        return f"trained through {q.format}"
    return "trained under its mask" if isinstance(leaf, Masked) else "trained"
