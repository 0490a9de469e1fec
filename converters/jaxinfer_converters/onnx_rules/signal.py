"""Fourier transforms and mel filters; complex numbers are a last axis of two, as in ONNX.

Source: https://onnx.ai/onnx/operators/onnx__DFT.html, onnx__STFT.html,
onnx__MelWeightMatrix.html.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, rule
from jaxinfer_converters.onnx_rules.shape import ints


def _complex(x: Array) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return wide[..., 0] + 1j * wide[..., 1] if x.shape[-1] == 2 else wide[..., 0]


def _pairs(x: Array, dtype: Any) -> Array:
    return jnp.stack([x.real, x.imag], -1).astype(dtype)


@rule("onnx.DFT")
def dft(
    x: Array, length: Any = None, axis: Any = None, *, inverse: int = 0, onesided: int = 0
) -> Array:
    """Σ_t x[t] exp(∓2πi k t / n) along axis (1 / n for the inverse); onesided: half of it."""
    (at,) = (-2,) if axis is None else ints(axis)
    at = at % x.ndim
    n = x.shape[at] if length is None else ints(length)[0]
    if inverse and onesided:
        half = _complex(x)
        size = 2 * (x.shape[at] - 1) if length is None else n
        return jnp.fft.irfft(half, size, at)[..., None].astype(x.dtype)
    z = _complex(x)
    y = jnp.fft.ifft(z, n, at) if inverse else jnp.fft.fft(z, n, at)
    if onesided:
        y = jnp.take(y, np.arange(n // 2 + 1), at)
    return _pairs(y, x.dtype)


@rule("onnx.STFT")
def stft(
    x: Array, step: Any, window: Array | None = None, length: Any = None, *, onesided: int = 1
) -> Array:
    """The DFT of windowed frames, ``step`` apart: f[b, frames, bins, 2]."""
    (hop,) = ints(step)
    n = ints(length)[0] if length is not None else (x.shape[1] if window is None else len(window))
    frames = 1 + (x.shape[1] - n) // hop
    at = np.arange(frames)[:, None] * hop + np.arange(n)
    z = (_complex(x) if x.ndim == 3 else x)[:, at]
    z = z if window is None else z * window
    y = jnp.fft.fft(z, axis=-1)
    y = y[..., : n // 2 + 1] if onesided else y
    return _pairs(y, x.dtype)


@rule("onnx.host.MelWeightMatrix", "onnx.MelWeightMatrix")
def mel_weight_matrix(
    bins: Any, dft_length: Any, rate: Any, low: Any, high: Any, *, output_datatype: str = "float32"
) -> np.ndarray:
    """Triangles, evenly spaced in mel = 2595 log10(1 + f / 700), over the DFT's bins."""
    count, size = ints(bins)[0], ints(dft_length)[0]
    mel = lambda f: 2595 * np.log10(1 + float(f) / 700)
    step = (mel(high) - mel(low)) / (count + 2)  # so the specification: the last is not ``high``
    points = mel(low) + np.arange(count + 2) * step
    hertz = 700 * (10 ** (points / 2595) - 1)
    edges = np.floor((size + 1) * hertz / ints(rate)[0]).astype(int)
    out = np.zeros((size // 2 + 1, count))
    for i in range(count):
        left, centre, right = edges[i : i + 3]
        rise, fall = np.arange(left, centre), np.arange(centre, right)
        if centre == left:
            out[centre, i] = 1
        out[rise, i] = (rise - left) / max(centre - left, 1)
        out[fall, i] = (right - fall) / max(right - centre, 1)
    return out.astype(dtypes.dtype_of(output_datatype))
