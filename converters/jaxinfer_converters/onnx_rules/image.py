"""Sampling at computed places: region of interest pooling, deformable convolution, col2im.

Source: https://onnx.ai/onnx/operators/onnx__RoiAlign.html, onnx__DeformConv.html,
onnx__Col2Im.html; Dai et al., Deformable Convolutional Networks, 2017,
https://arxiv.org/abs/1703.06211.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer_converters.aten._common import Array, precision, rule
from jaxinfer_converters.onnx_rules.shape import ints


def _corner(x: Array, places: Sequence[Array]) -> Array:
    """x[..., p] with zero outside; ``places`` are integers for each of the last axes."""
    inside = jnp.ones(places[0].shape, bool)
    index = []
    for place, size in zip(places, x.shape[x.ndim - len(places) :], strict=True):
        inside &= (place >= 0) & (place < size)
        index.append(jnp.clip(place, 0, size - 1))
    return jnp.where(inside, x[(..., *index)], 0)


def _interpolated(x: Array, at: Sequence[Array]) -> Array:
    """Multilinear interpolation of the last axes of x at ``at``, zero outside."""
    floors = [jnp.floor(a) for a in at]
    total: Any = 0
    for corner in itertools.product((0, 1), repeat=len(at)):
        weight: Any = 1
        for c, a, low in zip(corner, at, floors, strict=True):
            weight = weight * ((a - low) if c else (1 - (a - low)))
        places = [low.astype(jnp.int32) + c for c, low in zip(corner, floors, strict=True)]
        total = total + weight * _corner(x, places)
    return total


@rule("onnx.RoiAlign")
def roi_align(
    x: Array,
    rois: Array,
    batch_indices: Array,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Array:
    """Each region (x1, y1, x2, y2) pooled to output_height x output_width by bilinear samples.

    Raises:
      NotImplementedError: ``sampling_ratio`` 0: the number of samples depends on the regions.
    """
    if sampling_ratio <= 0:
        raise NotImplementedError(
            "RoiAlign with sampling_ratio 0 takes a number of samples that depends on the data; "
            "set sampling_ratio (torchvision's own default for detection is 2)"
        )
    half = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    height, width = x.shape[2:]
    s = sampling_ratio

    def region(roi: Array, index: Array) -> Array:
        x1, y1, x2, y2 = roi * spatial_scale - half
        w, h = x2 - x1, y2 - y1
        if not half:
            w, h = jnp.maximum(w, 1), jnp.maximum(h, 1)

        def places(start: Array, length: Array, out: int, size: int) -> tuple[Array, Array]:
            step = length / out
            offset = (jnp.arange(out * s) + 0.5) / s
            at = start + offset * step
            outside = (at < -1) | (at > size)
            return jnp.clip(at, 0, size - 1), outside

        ys, out_y = places(y1, h, output_height, height)
        xs, out_x = places(x1, w, output_width, width)
        image = x[index]
        low_y, low_x = jnp.floor(ys).astype(jnp.int32), jnp.floor(xs).astype(jnp.int32)
        high_y, high_x = jnp.minimum(low_y + 1, height - 1), jnp.minimum(low_x + 1, width - 1)
        fy, fx = (ys - low_y)[:, None], (xs - low_x)[None, :]
        parts = [
            image[:, low_y][:, :, low_x] * (1 - fy) * (1 - fx),
            image[:, low_y][:, :, high_x] * (1 - fy) * fx,
            image[:, high_y][:, :, low_x] * fy * (1 - fx),
            image[:, high_y][:, :, high_x] * fy * fx,
        ]
        outside = out_y[:, None] | out_x[None, :]
        shape = (-1, output_height, s, output_width, s)
        if mode == "max":  # the largest weighted corner, as the specification's kernel has it
            best = jnp.stack([jnp.where(outside, 0, part) for part in parts]).max(0)
            return best.reshape(shape).max((2, 4))
        samples = jnp.where(outside, 0, sum(parts))
        return samples.reshape(shape).mean((2, 4))

    return jax.vmap(region)(rois, batch_indices)


@rule("onnx.DeformConv")
def deform_conv(
    x: Array,
    w: Array,
    offset: Array,
    b: Array | None = None,
    mask: Array | None = None,
    *,
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Array:
    """y[b, o, p] = Σ_i,k w[o, i, k] x[b, i, s p + d k - pad + offset[k, p]] mask[k, p] + bias."""
    del kernel_shape
    kernel = w.shape[2:]
    nd, count = len(kernel), math.prod(kernel)
    strides, dilations = strides or (1,) * nd, dilations or (1,) * nd
    given = list(pads or [0] * (2 * nd))
    batch, channels = x.shape[:2]
    outs = offset.shape[2:]
    offset = offset.reshape(batch, offset_group, count, nd, *outs)
    mask = (
        jnp.ones((batch, offset_group, count, *outs), x.dtype)
        if mask is None
        else mask.reshape(batch, offset_group, count, *outs)
    )
    grids = []
    for axis in range(nd):
        taps = np.asarray([k[axis] for k in np.ndindex(*kernel)]) * dilations[axis]
        start = np.arange(outs[axis]) * strides[axis] - given[axis]
        shape = [1] * (nd + 1)
        shape[0] = count
        steps = [1] * (nd + 1)
        steps[axis + 1] = outs[axis]
        grids.append(taps.reshape(shape) + start.reshape(steps))

    def one(x: Array, offset: Array, mask: Array) -> Array:
        """x: [c / g, ...], offset: [k, nd, *outs], mask: [k, *outs] -> [c / g, k, *outs]."""
        at = [grids[axis] + offset[:, axis] for axis in range(nd)]
        return _interpolated(x, at) * mask

    planes = x.reshape(batch, offset_group, channels // offset_group, *x.shape[2:])
    columns = jax.vmap(jax.vmap(one))(planes, offset, mask)
    columns = columns.reshape(batch, group, (channels // group) * count, math.prod(outs))
    kernels = w.reshape(group, w.shape[0] // group, -1)
    y = jnp.einsum("gok,bgkp->bgop", kernels, columns, precision=precision(kernels, columns))
    y = y.reshape(batch, w.shape[0], *outs)
    return y if b is None else y + b.reshape(1, -1, *(1,) * nd)


@rule("onnx.Col2Im")
def col2im(
    x: Array,
    image_shape: Any,
    block_shape: Any,
    *,
    dilations: Sequence[int] = (),
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Array:
    """y[b, c, s p + d k - pad] += x[b, c k, p]: blocks added where they overlap."""
    image, block = ints(image_shape), ints(block_shape)
    nd = len(image)
    strides, dilations = strides or (1,) * nd, dilations or (1,) * nd
    given = list(pads or [0] * (2 * nd))
    full = [n + given[i] + given[i + nd] for i, n in enumerate(image)]
    outs = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(full, block, strides, dilations, strict=True)
    ]
    batch, channels = x.shape[0], x.shape[1] // math.prod(block)
    x = x.reshape(batch, channels, *block, *outs)
    y = jnp.zeros((batch, channels, *full), x.dtype)
    for k in np.ndindex(*block):
        where = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(k, dilations, outs, strides, strict=True)
        )
        y = y.at[(slice(None), slice(None), *where)].add(x[(slice(None), slice(None), *k)])
    inner = tuple(slice(given[i], given[i] + n) for i, n in enumerate(image))
    return y[(slice(None), slice(None), *inner)]
