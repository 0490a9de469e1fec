"""Sampling an image at given points: grid_sampler in 2 and 3 dimensions, and affine grids.

A point in [-1, 1] becomes a position in pixels; positions outside are clamped (border),
mirrored (reflection) or read as zero (zeros). The value is a weighted sum of 2 (linear), 4
(cubic) or 1 (nearest) taps an axis. Positions and weights are computed in float32 for half
inputs; the result is rounded once.
Does not do: cubic in 3 dimensions (torch has none). A NaN position reads zero.
Source: PyTorch, ATen/native/GridSampler.h.
"""

from __future__ import annotations

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, acc_dtype, cast, precision, prod, rule

LINEAR, NEAREST, CUBIC = 0, 1, 2
ZEROS, BORDER, REFLECTION = 0, 1, 2


def _pixels(point: Array, n: int, align_corners: bool) -> Array:
    """[-1, 1] to [0, n - 1] (corners aligned) or to [-0.5, n - 0.5]."""
    return (point + 1) / 2 * (n - 1) if align_corners else ((point + 1) * n - 1) / 2


def _mirror(at: Array, low: float, span: float) -> Array:
    """Reflect positions at ``low`` and ``low + span`` until they are between."""
    if span == 0:
        return jnp.zeros_like(at)
    at = jnp.abs(at - low)
    flips, rest = jnp.floor(at / span), lax.rem(at, jnp.full_like(at, span))
    return jnp.where(flips % 2 == 0, rest + low, span - rest + low)


def _bound(at: Array, n: int, padding_mode: int, align_corners: bool) -> Array:
    """Positions as the padding mode has them."""
    if padding_mode == ZEROS:
        return at
    if padding_mode == REFLECTION:
        at = _mirror(at, 0.0, n - 1.0) if align_corners else _mirror(at, -0.5, float(n))
    return jnp.clip(at, 0, n - 1)


def _cubic(t: Array) -> list[Array]:
    """Keys' weights (a = -3/4) of the neighbours at -1, 0, 1, 2 from a position t in [0, 1)."""
    a = -0.75
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _taps(point: Array, n: int, mode: int, padding_mode: int, align_corners: bool):
    """(whole-numbered position, weight) of each tap of one axis."""
    at = _pixels(point, n, align_corners)
    if mode == CUBIC:
        low = jnp.floor(at)
        places = [_bound(low + k, n, padding_mode, align_corners) for k in (-1, 0, 1, 2)]
        # A mirrored pixel without aligned corners is a whole number again; clip kept it so.
        return list(zip(places, _cubic(at - low), strict=True))
    at = _bound(at, n, padding_mode, align_corners)
    if mode == NEAREST:
        return [(jnp.round(at), jnp.ones_like(at))]
    low = jnp.floor(at)
    return [(low, low + 1 - at), (low + 1, at - low)]


def _grid_sample(x: Array, grid: Array, mode: int, padding_mode: int, align_corners: bool):
    """y[b, c, p] = Σ over taps of weight * x[b, c, tap]; grid[..., 0] is the last axis."""
    batch, channels, *space = x.shape
    points = grid.shape[1:-1]
    dtype = acc_dtype(x.dtype)
    if batch == 0 or prod(points) == 0 or channels == 0:
        return jnp.zeros((batch, channels, *points), x.dtype)
    where = cast(grid, dtype).reshape(batch, prod(points), len(space))
    axes = [
        _taps(where[..., len(space) - 1 - a], n, mode, padding_mode, align_corners)
        for a, n in enumerate(space)
    ]
    pixels = x.reshape(batch, channels, prod(space))
    read = lambda image, at: image.at[:, at].get(mode="promise_in_bounds")
    total = jnp.zeros((), dtype)
    for taps in itertools.product(*axes):
        inside, flat = jnp.ones((), bool), jnp.zeros((), "int32")
        for n, (at, _) in zip(space, taps, strict=True):
            valid = (at >= 0) & (at <= n - 1)
            inside = inside & valid
            flat = flat * n + jnp.where(valid, at, 0).astype("int32")
        weight = functools.reduce(operator.mul, (weight for _, weight in taps))
        value = cast(jax.vmap(read)(pixels, flat), dtype)
        # What is outside counts nothing, even if its weight is not a number.
        total = total + jnp.where(inside[:, None], value * weight[:, None], 0)
    return cast(total, x.dtype).reshape(batch, channels, *points)


@rule("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners) -> Array:
    """y[b, c, p] = x[b, c, at grid[b, p]] by linear (0), nearest (1) or cubic (2) weights."""
    return _grid_sample(input, grid, interpolation_mode, padding_mode, align_corners)


def _coordinates(n: int, align_corners: bool, dtype) -> Array:
    """n numbers from -1 to 1, or the centres of n cells of [-1, 1]; 0 if there is one."""
    if n <= 1:
        return jnp.zeros((n,), dtype)
    ends = jnp.linspace(-1, 1, n, dtype=dtype)
    return ends if align_corners else ends * ((n - 1) / n)


@rule("aten.affine_grid_generator.default")
def affine_grid_generator(theta, size, align_corners) -> Array:
    """y[b, p, i] = Σ_j theta[b, i, j] [point p, 1][j], points in (x, y(, z)) order."""
    batch, _, *space = size
    dtype = acc_dtype(theta.dtype)
    axes = [_coordinates(n, align_corners, dtype) for n in space]
    mesh = jnp.meshgrid(*axes, indexing="ij")
    points = jnp.stack([*reversed(mesh), jnp.ones(space, dtype)], -1).reshape(-1, len(space) + 1)
    wide = cast(theta, dtype)
    grid = jnp.einsum("bij,pj->bpi", wide, points, precision=precision(wide, points))
    return cast(grid, theta.dtype).reshape(batch, *space, len(space))
