"""Discrete Fourier transforms, and the short-time transforms of speech front ends.

Everything stands on three primitives with torch's normalization codes (0: none, 1: 1/√n,
2: 1/n): complex to complex, real to complex, complex to real. Formulas and the meaning of
``n``, ``s``, ``dim`` and ``norm``: https://docs.pytorch.org/docs/stable/fft.html. Half types
are not transformed (torch has no CPU kernel for them either).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import (
    Array,
    canonical_dim,
    canonical_dims,
    cast,
    category,
    prod,
    promote_float,
    rule,
)

Dims = Sequence[int] | int | None
NONE, BY_ROOT_N, BY_N = 0, 1, 2


def _scale(x: Array, n: int, normalization: int) -> Array:
    """Multiply by 1, 1/√n or 1/n."""
    if normalization == NONE:
        return x
    return x * (1 / (math.sqrt(n) if normalization == BY_ROOT_N else n))


def _complex(x: Array) -> Array:
    (x,) = promote_float(x)
    return x if category(x.dtype) == 3 else lax.complex(x, jnp.zeros_like(x))


@rule("aten._fft_c2c.default")
def c2c(x: Array, dim: Sequence[int], normalization: int, forward: bool) -> Array:
    """out[k] = Σ_j x[j] exp(∓2πi jk/n) over each of dim."""
    axes = canonical_dims(tuple(dim), x.ndim) if len(dim) else ()
    transform = jnp.fft.fftn if forward else jnp.fft.ifftn
    unscaled = "backward" if forward else "forward"
    n = prod([x.shape[axis] for axis in axes])
    for start in range(0, len(axes), 3):  # XLA transforms at most three dims at once
        x = transform(x, axes=axes[start : start + 3], norm=unscaled)
    return _scale(x, n, normalization)


@rule("aten._fft_r2c.default")
def r2c(x: Array, dim: Sequence[int], normalization: int, onesided: bool) -> Array:
    """c2c of a real tensor; onesided keeps the first n/2 + 1 of the last of dim."""
    if not onesided:
        return c2c(_complex(x), dim, normalization, True)
    *rest, last = canonical_dims(tuple(dim), x.ndim)
    out = _scale(jnp.fft.rfft(x, axis=last), x.shape[last], normalization)
    return c2c(out, rest, normalization, True)


@rule("aten._fft_c2r.default")
def c2r(x: Array, dim: Sequence[int], normalization: int, last_dim_size: int) -> Array:
    """Real result of the inverse transform of a half spectrum; the last of dim grows."""
    *rest, last = canonical_dims(tuple(dim), x.ndim)
    x = c2c(x, rest, normalization, False)
    out = jnp.fft.irfft(x, last_dim_size, axis=last, norm="forward")
    return _scale(out, last_dim_size, normalization)


def _code(norm: str | None, forward: bool) -> int:
    """Return the normalization code of a transform in one direction."""
    if norm == "ortho":
        return BY_ROOT_N
    return BY_N if (norm in (None, "backward")) != forward else NONE


def _resize(x: Array, sizes: Sequence[int | None], dims: Sequence[int]) -> Array:
    """Trim or zero-pad each dim to its size; None or -1 leaves it."""
    for size, axis in zip(sizes, dims, strict=True):
        if size is None or size == -1 or size == x.shape[axis]:
            continue
        x = lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
        pads = [(0, size - x.shape[axis] if a == axis else 0, 0) for a in range(x.ndim)]
        x = lax.pad(x, jnp.zeros((), x.dtype), pads)
    return x


def _shape(x: Array, s: Any, dim: Dims) -> tuple[Sequence[int | None], list[int]]:
    """Sizes (None where kept) and axes; without dim, s names the last dims, without s all."""
    if dim is None:
        axes = list(range(0 if s is None else x.ndim - len(s), x.ndim))
    else:
        axes = [canonical_dim(d, x.ndim) for d in ((dim,) if isinstance(dim, int) else dim)]
    sizes = [None] * len(axes) if s is None else [None if size == -1 else size for size in s]
    return sizes, axes


def _to_complex(x: Array, s: Any, dim: Dims, norm: str | None, forward: bool) -> Array:
    """Fft, ifft and their kin of many dims."""
    sizes, axes = _shape(x, s, dim)
    return c2c(_resize(_complex(x), sizes, axes), axes, _code(norm, forward), forward)


def _from_real(x: Array, s: Any, dim: Dims, norm: str | None, forward: bool) -> Array:
    """Rfft and its kin; not forward: ihfft, the conjugate of an inverse."""
    (x,) = promote_float(x)
    sizes, axes = _shape(x, s, dim)
    x = _resize(x, sizes, axes)
    if forward:
        return r2c(x, axes, _code(norm, True), True)
    last = r2c(x, axes[-1:], _code(norm, False), True)
    return c2c(jnp.conj(last), axes[:-1], _code(norm, False), False)


def _to_real(x: Array, s: Any, dim: Dims, norm: str | None, forward: bool) -> Array:
    """Irfft and its kin; forward: hfft, the transform of a Hermitian signal."""
    x = _complex(x)
    sizes, axes = _shape(x, s, dim)
    length = sizes[-1] if sizes[-1] is not None else 2 * (x.shape[axes[-1]] - 1)
    x = _resize(x, [*sizes[:-1], length // 2 + 1], axes)
    if not forward:
        return c2r(x, axes, _code(norm, False), length)
    x = c2c(x, axes[:-1], _code(norm, True), True)
    return c2r(jnp.conj(x), axes[-1:], _code(norm, True), length)


def _family(name: str, fn: Callable[..., Array], forward: bool) -> None:
    """Register the transforms of one, two and n dims."""

    def one(x: Array, n: int | None = None, dim: int = -1, norm: str | None = None) -> Array:
        return fn(x, None if n is None else (n,), (dim,), norm, forward)

    def two(x: Array, s: Any = None, dim: Dims = (-2, -1), norm: str | None = None) -> Array:
        return fn(x, s, dim, norm, forward)

    def many(x: Array, s: Any = None, dim: Dims = None, norm: str | None = None) -> Array:
        return fn(x, s, dim, norm, forward)

    for suffix, transform in (("", one), ("2", two), ("n", many)):
        rule(f"aten.fft_{name}{suffix}.default")(transform)


for _name, _fn, _forward in (
    ("fft", _to_complex, True),
    ("ifft", _to_complex, False),
    ("rfft", _from_real, True),
    ("ihfft", _from_real, False),
    ("irfft", _to_real, False),
    ("hfft", _to_real, True),
):
    _family(_name, _fn, _forward)


@rule("aten.fft_fftshift.default")
def fftshift(x: Array, dim: Dims = None) -> Array:
    """Roll by n // 2 along dim: the zero frequency to the middle."""
    return jnp.fft.fftshift(x, canonical_dims(dim, x.ndim))


@rule("aten.fft_ifftshift.default")
def ifftshift(x: Array, dim: Dims = None) -> Array:
    """Roll by -(n // 2) along dim: undoes fftshift."""
    return jnp.fft.ifftshift(x, canonical_dims(dim, x.ndim))


@rule("aten.fft_fftfreq.default")
def fftfreq(n: int, d: float = 1.0, *, dtype: Any = None) -> Array:
    """[0, 1, ..., -2, -1] / (n d)."""
    return jnp.asarray(np.fft.fftfreq(n, d), dtype or np.float32)


@rule("aten.fft_rfftfreq.default")
def rfftfreq(n: int, d: float = 1.0, *, dtype: Any = None) -> Array:
    """[0, 1, ..., n // 2] / (n d)."""
    return jnp.asarray(np.fft.rfftfreq(n, d), dtype or np.float32)


def _window(window: Array | None, win_length: int, n_fft: int, dtype: Any) -> Array:
    """The window (ones if None), zero-padded to n_fft on both sides."""
    values = jnp.ones((win_length,), dtype) if window is None else cast(window, dtype)
    left = (n_fft - win_length) // 2
    return jnp.pad(values, (left, n_fft - win_length - left))


def _real_dtype(dtype: Any) -> np.dtype:
    return np.dtype(jnp.finfo(dtype).dtype)


def _pairs(x: Array) -> Array:
    return jnp.stack([lax.real(x), lax.imag(x)], -1)


@rule("aten.stft.default")
def stft(
    x: Array,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Array | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Array:
    """out[..., f, t] = Σ_j window[j] x[..., t hop + j] exp(-2πi fj/n_fft)."""
    hop = n_fft // 4 if hop_length is None else hop_length
    length = n_fft if win_length is None else win_length
    if align_to_window:
        left = (n_fft - length) // 2
        pads = [(0, 0)] * (x.ndim - 1) + [(left, n_fft - length - left)]
        x = jnp.pad(x, pads)
    frames = 1 + (x.shape[-1] - n_fft) // hop
    index = np.arange(frames)[:, None] * hop + np.arange(n_fft)[None, :]
    cut = x[..., index] * _window(window, length, n_fft, _real_dtype(x.dtype))
    code = BY_ROOT_N if normalized else NONE
    axes = (cut.ndim - 1,)
    if category(cut.dtype) == 3:
        out = c2c(cut, axes, code, True)
    else:
        out = r2c(cut, axes, code, onesided is not False)
    out = jnp.swapaxes(out, -1, -2)
    return out if return_complex else _pairs(out)


@rule("aten.stft.center")
def stft_center(
    x: Array,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Array | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Array:
    """Stft of x padded by n_fft // 2 on both sides."""
    if center:
        mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}[pad_mode]
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(n_fft // 2, n_fft // 2)], mode=mode)
    return stft(
        x,
        n_fft,
        hop_length,
        win_length,
        window,
        normalized,
        onesided,
        return_complex,
        align_to_window,
    )


@rule("aten.istft.default")
def istft(
    x: Array,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Array | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Array:
    """Overlap-add of the inverse transforms, over the overlap-add of window².

    Torch raises where that envelope is zero within the result; here the result is inf or NaN.
    """
    hop = n_fft // 4 if hop_length is None else hop_length
    real = _real_dtype(x.dtype)
    weights = _window(window, n_fft if win_length is None else win_length, n_fft, real)
    spectra = jnp.swapaxes(x, -1, -2)
    axes = (spectra.ndim - 1,)
    code = BY_ROOT_N if normalized else BY_N
    if return_complex:
        frames = c2c(spectra, axes, code, False)
    else:
        frames = c2r(spectra[..., : n_fft // 2 + 1], axes, code, n_fft)
    count = frames.shape[-2]
    total = n_fft + hop * (count - 1)
    index = (np.arange(count)[:, None] * hop + np.arange(n_fft)[None, :]).reshape(-1)
    parts = (frames * weights).reshape(*frames.shape[:-2], -1)
    signal = jnp.zeros((*parts.shape[:-1], total), parts.dtype).at[..., index].add(parts)
    squares = jnp.broadcast_to(weights**2, (count, n_fft)).reshape(-1)
    envelope = jnp.zeros((total,), real).at[index].add(squares)
    start = n_fft // 2 if center else 0
    end = start + length if length is not None else total - (start if center else 0)
    stop = min(end, total)
    out = signal[..., start:stop] / envelope[start:stop]
    return jnp.pad(out, [(0, 0)] * (out.ndim - 1) + [(0, end - stop)])
