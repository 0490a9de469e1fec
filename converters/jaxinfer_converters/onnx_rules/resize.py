"""Resize in all of ONNX's modes: one matrix of weights for each axis that changes.

    y[..., o, ...] = Σ_i W[o, i] x[..., i, ...],   W from the coordinate of o in x

Scales and sizes are static, so the matrices are constants. Antialiasing stretches the filter by
1 / scale. Source: https://onnx.ai/onnx/operators/onnx__Resize.html.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, category, precision, rule


def _coordinates(mode: str, n: int, out: int, scale: float, roi: tuple[float, float]) -> np.ndarray:
    """The place in the input of each output position."""
    o = np.arange(out, dtype=np.float64)
    length = n * scale
    if mode == "asymmetric":
        return o / scale
    if mode == "align_corners":
        return o * (n - 1) / (length - 1) if length != 1 else np.zeros(out)
    if mode == "tf_crop_and_resize":
        start, end = roi
        if length == 1:
            return np.full(out, 0.5 * (start + end) * (n - 1))
        return start * (n - 1) + o * (end - start) * (n - 1) / (length - 1)
    if mode == "pytorch_half_pixel" and length <= 1:
        return np.full(out, -0.5)
    if mode == "half_pixel_symmetric":
        return n / 2 * (1 - out / length) + (o + 0.5) / scale - 0.5
    if mode == "tf_half_pixel_for_nn":
        return (o + 0.5) / scale
    return (o + 0.5) / scale - 0.5


def _nearest(x: np.ndarray, mode: str) -> np.ndarray:
    """The nearest whole position, by ONNX's rule for halves."""
    if mode == "floor":
        return np.floor(x)
    if mode == "ceil":
        return np.ceil(x)
    return np.ceil(x - 0.5) if mode == "round_prefer_floor" else np.floor(x + 0.5)


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel (1981): two cubics, zero from distance 2 on."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def weights(
    n: int,
    out: int,
    scale: float,
    *,
    mode: str,
    coordinates: str,
    nearest: str,
    cubic: float,
    exclude_outside: bool,
    antialias: bool,
    roi: tuple[float, float],
    extrapolation: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return W: f64[out, n], and what is added where a crop reaches outside: f64[out]."""
    at = _coordinates(coordinates, n, out, scale, roi)
    matrix = np.zeros((out, n))
    if mode == "nearest":
        index = np.clip(_nearest(at, nearest), 0, n - 1).astype(int)
        matrix[np.arange(out), index] = 1
    else:
        stretch = min(scale, 1.0) if antialias else 1.0
        reach = (1 if mode == "linear" else 2) / stretch
        count = 2 * math.ceil(reach)
        first = np.floor(at).astype(int) - math.ceil(reach) + 1
        index = first[:, None] + np.arange(count)
        distance = (index - at[:, None]) * stretch
        taps = _linear(distance) if mode == "linear" else _cubic(distance, cubic)
        if exclude_outside or (antialias and mode == "linear"):
            taps = np.where((index >= 0) & (index < n), taps, 0) if exclude_outside else taps
        total = taps.sum(1, keepdims=True)
        if exclude_outside or antialias:
            taps = taps / np.where(total == 0, 1, total)
        rows = np.repeat(np.arange(out), count)
        np.add.at(matrix, (rows, np.clip(index, 0, n - 1).reshape(-1)), taps.reshape(-1))
    extra = np.zeros(out)
    if coordinates == "tf_crop_and_resize":
        outside = (at < 0) | (at > n - 1)
        matrix[outside], extra = 0, np.where(outside, extrapolation, 0)
    return matrix, extra


def _sizes(
    shape: Sequence[int], axes: Sequence[int], scales: Any, sizes: Any, policy: str, roi: Any
) -> list[tuple[int, float]]:
    """Return (output size, scale) of each axis in ``axes``."""
    if sizes is None:
        given = [float(s) for s in np.asarray(scales, np.float32)]
        spans = [1.0 if roi is None else float(roi[1][i] - roi[0][i]) for i in range(len(axes))]
        return [
            (math.floor(shape[axis] * s * span), s)
            for axis, s, span in zip(axes, given, spans, strict=True)
        ]
    wanted = [int(size) for size in sizes]
    ratios = [size / shape[axis] for axis, size in zip(axes, wanted, strict=True)]
    if policy == "stretch":
        return list(zip(wanted, ratios, strict=True))
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [(math.floor(ratio * shape[axis] + 0.5), ratio) for axis in axes]


@rule("onnx.Resize")
def resize(
    x: Array,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """Interpolate x along its axes to ``sizes``, or by ``scales``."""
    over = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    bounds = np.asarray(roi, np.float64).reshape(2, -1) if crop else None
    plan = _sizes(x.shape, over, scales, sizes, keep_aspect_ratio_policy, bounds)
    exact = category(x.dtype) < 2
    y = x if exact and mode == "nearest" else x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for place, (axis, (out, scale)) in enumerate(zip(over, plan, strict=True)):
        n = x.shape[axis]
        if out == n and scale == 1 and not crop:
            continue
        matrix, extra = weights(
            n,
            out,
            scale,
            mode=mode,
            coordinates=coordinate_transformation_mode,
            nearest=nearest_mode,
            cubic=cubic_coeff_a,
            exclude_outside=bool(exclude_outside),
            antialias=bool(antialias),
            roi=(0.0, 1.0) if bounds is None else (bounds[0, place], bounds[1, place]),
            extrapolation=extrapolation_value,
        )
        if mode == "nearest" and not extra.any() and not crop:
            y = jnp.take(y, matrix.argmax(1).astype(np.int32), axis)
            continue
        w = jnp.asarray(matrix, y.dtype)
        y = lax.dot_general(y, w, (((axis,), (1,)), ((), ())), precision=precision(y, w))
        y = jnp.moveaxis(y, -1, axis)
        if crop:
            shape = [-1 if i == axis else 1 for i in range(y.ndim)]
            outside = (matrix == 0).all(1).reshape(shape)
            y = jnp.where(outside, jnp.asarray(extrapolation_value, y.dtype), y)
    if exact and mode != "nearest":
        info = jnp.iinfo(x.dtype)
        y = jnp.clip(y, int(info.min), int(info.max))
    return y.astype(x.dtype)
