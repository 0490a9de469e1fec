"""Shapes: reshape, slice, split, tile, pad, expand. Sizes come as static numpy arrays.

Source: https://onnx.ai/onnx/operators/ (each operator by its name).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, rule
from jaxinfer_converters.onnx_rules.host import new_shape, slices, split_sizes


def ints(values: Any) -> list[int]:
    """Return a static operand as Python integers."""
    return [int(value) for value in np.asarray(values).reshape(-1)]


@rule("onnx.Reshape")
def reshape(x: Array, shape: Any, *, allowzero: int = 0) -> Array:
    """x in another shape; 0 keeps the size of an axis, -1 is inferred."""
    new = new_shape(x.shape, shape, allowzero)
    if -1 in new and x.size == 0:
        rest = math.prod(n for n in new if n != -1)
        new = [(0 if not rest else x.size // rest) if n == -1 else n for n in new]
    return jnp.reshape(x, new)


@rule("onnx.Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    """x as a matrix: the axes before ``axis``, and the others."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@rule("onnx.Squeeze")
def squeeze(x: Array, axes: Any = None) -> Array:
    """x without these axes (all, if none are given) of size 1."""
    return jnp.squeeze(x, None if axes is None else tuple(ints(axes)))


@rule("onnx.Unsqueeze")
def unsqueeze(x: Array, axes: Any) -> Array:
    """x with new axes of size 1, at these places of the result."""
    return jnp.expand_dims(x, tuple(ints(axes)))


@rule("onnx.Transpose")
def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """x with its axes in another order; reversed by default."""
    return jnp.transpose(x, perm)


@rule("onnx.Expand")
def expand(x: Array, shape: Any) -> Array:
    """x broadcast against a shape (both ways: a 1 in the shape keeps x's size)."""
    return jnp.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(ints(shape))))


@rule("onnx.Tile")
def tile(x: Array, repeats: Any, axis: Any = None) -> Array:
    """x repeated along each axis (opset 1 names one axis)."""
    if axis is not None:
        (at,), (count,) = ints(axis), ints(repeats)
        repeats = [count if i == at % x.ndim else 1 for i in range(x.ndim)]
    return jnp.tile(x, ints(repeats))


@rule("onnx.Slice")
def slice_(x: Array, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Array:
    """x[start:end:step] along axes."""
    return x[slices(x.ndim, starts, ends, axes, steps)]


@rule("onnx.Split")
def split(x: Array, split: Any = None, *, axis: int = 0, num_outputs: int = 0) -> list[Array]:
    """Parts of x along axis."""
    sizes = split_sizes(x.shape[axis], split, num_outputs)
    ends = np.cumsum([0, *sizes])
    return [
        lax.slice_in_dim(x, int(a), int(b), axis=axis % x.ndim) for a, b in itertools.pairwise(ends)
    ]


@rule("onnx.ConstantOfShape")
def constant_of_shape(shape: Any, *, value: Any = 0, value_dtype: str = "float32") -> Array:
    """One value everywhere."""
    return jnp.full(ints(shape), value, dtypes.canonical(value_dtype))


@rule("onnx.Range")
def range_(start: Any, limit: Any, delta: Any) -> Array:
    """start, start + delta, ... before limit."""
    count = max(int(np.ceil((limit - start) / delta).reshape(())), 0)
    dtype = dtypes.canonical(start.dtype.name)
    return jnp.arange(count).astype(dtype) * delta.astype(dtype) + start.astype(dtype)


@rule("onnx.EyeLike")
def eye_like(x: Array, *, dtype: str | None = None, k: int = 0) -> Array:
    """1 on diagonal k of a matrix like x, else 0."""
    return jnp.eye(*x.shape, k=k, dtype=x.dtype if dtype is None else dtypes.canonical(dtype))


@rule("onnx.Trilu")
def trilu(x: Array, k: Any = None, *, upper: int = 1) -> Array:
    """The upper (lower) triangle of the last two axes, from diagonal k on."""
    at = 0 if k is None else ints(k)[0]
    rows, columns = (lax.broadcasted_iota(jnp.int32, x.shape[-2:], axis) for axis in (0, 1))
    keep = columns - rows >= at if upper else columns - rows <= at
    return jnp.where(keep, x, jnp.zeros((), x.dtype))


@rule("onnx.Pad")
def pad(x: Array, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant"):
    """x with pads[i] before and pads[i + n] after axis i; negative pads cut.

    ``reflect`` mirrors without the edge, ``edge`` repeats it, ``wrap`` goes round.
    """
    widths = ints(pads)
    at = range(x.ndim) if axes is None else [a % x.ndim for a in ints(axes)]
    config = [(0, 0)] * x.ndim
    for place, axis in enumerate(at):
        config[axis] = (widths[place], widths[place + len(at)])
    if mode == "constant":
        fill = jnp.zeros((), x.dtype) if value is None else jnp.asarray(value, x.dtype)
        return lax.pad(x, fill.reshape(()), [(a, b, 0) for a, b in config])
    cut = [(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape, config, strict=True)]
    x = x[tuple(slice(a, b) for a, b in cut)]
    grow = [(max(a, 0), max(b, 0)) for a, b in config]
    return jnp.pad(x, grow, mode=mode)


@rule("onnx.DepthToSpace")
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Blocks of channels become blocks of pixels: the block axes come first (DCR) or last."""
    b, c, h, w = x.shape
    s = blocksize
    if mode == "DCR":
        x = x.reshape(b, s, s, c // s**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(b, c // s**2, s, s, h, w).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, c // s**2, h * s, w * s)


@rule("onnx.SpaceToDepth")
def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Blocks of pixels become blocks of channels: the inverse of DepthToSpace."""
    b, c, h, w = x.shape
    s = blocksize
    x = x.reshape(b, c, h // s, s, w // s, s)
    x = x.transpose(0, 3, 5, 1, 2, 4) if mode == "DCR" else x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, c * s * s, h // s, w // s)


@rule("onnx.ReverseSequence")
def reverse_sequence(x: Array, lengths: Array, *, batch_axis: int = 1, time_axis: int = 0):
    """Turn round the first lengths[b] steps of each sequence."""
    x = jnp.moveaxis(x, (batch_axis, time_axis), (0, 1))
    step = jnp.arange(x.shape[1])
    at = jnp.where(step < lengths[:, None], lengths[:, None] - 1 - step, step)
    out = jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)
    return jnp.moveaxis(out, (0, 1), (batch_axis, time_axis))
