"""Which way a convolution is computed, by its shape and the platform it is lowered for.

Chosen by measurement (``benchmarks/conv_lowerings.py``, results beside it), on 2 cores with
AVX-512, float32, against XLA's own convolution of the same layout:

* depthwise kernels up to ``TAPS`` entries on CPUs: ``taps``;
* kernels of one entry: ``product``, on every platform;
* three dimensions on CPUs: ``planes``;
* transposed convolutions with strides on CPUs: ``phases``, if they are depthwise or of three
  dimensions (9 to 120 times faster), or the kernel is a multiple of the stride (0 to 25 %);
* everything else: XLA's own.

``lax.platform_dependent`` keeps both ways until the platform is known, so that an export for
several platforms has the right one for each.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten import _convolve as ways
from jaxinfer_converters.aten._common import Array, precision, prod
from jaxinfer_converters.aten._convolve import Transposed, Window

# Input, kernel and output axes by number of spatial dimensions, as torch has them.
FIRST = {
    1: ("NCW", "OIW", "NCW"),
    2: ("NCHW", "OIHW", "NCHW"),
    3: ("NCDHW", "OIDHW", "NCDHW"),
}

TAPS = 128  # entries of a depthwise kernel: each is a term of the compiled sum


def _depthwise(inputs: int, channels: int, kernel: tuple[int, ...], groups: int) -> bool:
    return inputs == 1 and groups == channels > 1 and prod(kernel) <= TAPS


def convolve(x: Array, w: Array, window: Window) -> Array:
    """Convolve channels last: x[b, ..., i] with w[..., i, o]."""
    *kernel, inputs, _ = w.shape
    direct = functools.partial(ways.direct, window=window)
    if _depthwise(inputs, x.shape[-1], tuple(kernel), window.groups):
        taps = functools.partial(ways.taps, window=window)
        return lax.platform_dependent(x, w, cpu=taps, default=direct)
    if prod(kernel) == 1 and window.groups == 1:
        return ways.product(x, w, window)
    if len(kernel) == 3:
        planes = functools.partial(ways.planes, window=window)
        return lax.platform_dependent(x, w, cpu=planes, default=direct)
    return direct(x, w)


def convolve_first(x: Array, w: Array, window: Window) -> Array:
    """Convolve channels first: x[b, i, ...] with w[o, i, ...]."""
    nd = w.ndim - 2

    def direct(x: Array, w: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            w,
            window_strides=window.stride,
            padding=window.padding,
            rhs_dilation=window.dilation,
            dimension_numbers=FIRST[nd],
            feature_group_count=window.groups,
            precision=precision(x, w),
        )

    def taps(x: Array, w: Array) -> Array:
        w = lax.transpose(w, (*range(2, nd + 2), 1, 0))
        return jnp.moveaxis(ways.taps(jnp.moveaxis(x, 1, -1), w, window), -1, 1)

    if _depthwise(w.shape[1], x.shape[1], w.shape[2:], window.groups):
        return lax.platform_dependent(x, w, cpu=taps, default=direct)
    return direct(x, w)


def convolve_transposed(x: Array, w: Array, how: Transposed) -> Array:
    """Transposed convolution channels last: x[b, ..., i] with w[..., i, o]."""
    dilated = functools.partial(ways.dilated, how=how)
    *kernel, _, _ = w.shape
    even = all(k % s == 0 for k, s in zip(kernel, how.stride, strict=True))
    pays = even or len(kernel) == 3 or how.groups == x.shape[-1] > 1
    if not pays or max(how.dilation) > 1 or max(how.stride) == 1:
        return dilated(x, w)
    phases = functools.partial(ways.phases, how=how, convolve=convolve)
    return lax.platform_dependent(x, w, cpu=phases, default=dilated)
