"""Convolutions of 1, 2 and 3 dimensions, and transposed ones, groups and dilation included.

Images are channels first, as torch has them, or channels last with kernels [..., i, o], as the
layout pass (``jaxinfer_converters.layout``) stores them. What each is computed by is chosen in
``_lowering.py``; float32 is computed in float32 (``precision``).
Source: PyTorch, ``torch.nn.Conv2d``, ``torch.nn.ConvTranspose2d``.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, expand_tuple, precision, rule
from jaxinfer_converters.aten._convolve import Transposed, Window
from jaxinfer_converters.aten._lowering import convolve, convolve_first, convolve_transposed


def conv_general(
    x: Array, weight: Array, bias: Array | None, window: Window, *, channels_last: bool = False
) -> Array:
    """y[b, o, p] = Σ_i,k x[b, i, s p + d k - pad] w[o, i, k] + bias[o]; b may be missing."""
    nd = weight.ndim - 2
    batched = x.ndim == nd + 2
    y = (convolve if channels_last else convolve_first)(x if batched else x[None], weight, window)
    if bias is not None:
        y = y + (bias if channels_last else bias.reshape(-1, *(1,) * nd))
    return y if batched else y[0]


def conv_transposed(
    x: Array, weight: Array, bias: Array | None, how: Transposed, *, channels_last: bool = False
) -> Array:
    """y[b, o, s p + d k - pad] += x[b, i, p] w[i, o, k]; + bias[o]; b may be missing."""
    nd = weight.ndim - 2
    batched = x.ndim == nd + 2
    x = x if batched else x[None]
    if channels_last:
        y = convolve_transposed(x, weight, how)
    else:
        last = lax.transpose(weight, (*range(2, nd + 2), 0, 1))
        y = jnp.moveaxis(convolve_transposed(jnp.moveaxis(x, 1, -1), last, how), -1, 1)
    if bias is not None:
        y = y + (bias if channels_last else bias.reshape(-1, *(1,) * nd))
    return y if batched else y[0]


@rule("aten.convolution.default")
def convolution(
    input,
    weight,
    bias,
    stride,
    padding,
    dilation,
    transposed,
    output_padding,
    groups,
    *,
    channels_last=False,
) -> Array:
    """y[b, o, p] = Σ_i,k x[b, i, s p + d k - pad] w[o, i, k]; transposed: its adjoint in x.

    Channels last: x[b, ..., i], and w[..., i, o] (the same for a transposed one).
    """
    nd = weight.ndim - 2
    stride, padding, dilation, extra = (
        expand_tuple(v, nd) for v in (stride, padding, dilation, output_padding)
    )
    if transposed:
        how = Transposed(stride, padding, extra, dilation, groups)
        return conv_transposed(input, weight, bias, how, channels_last=channels_last)
    window = Window(stride, tuple((p, p) for p in padding), dilation, groups)
    return conv_general(input, weight, bias, window, channels_last=channels_last)


@rule("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def conv(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, channels_last=False
) -> Array:
    """y[b, o, p] = Σ_i,k x[b, i, s p + d k - pad] w[o, i, k] + bias[o]."""
    return convolution(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        False,
        0,
        groups,
        channels_last=channels_last,
    )


@rule("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def conv_padding(
    input,
    weight,
    bias=None,
    stride=1,
    padding="valid",
    dilation=1,
    groups=1,
    *,
    channels_last=False,
) -> Array:
    """conv with no padding ("valid") or d (k - 1) in all ("same"), the odd one on the right."""
    nd = weight.ndim - 2
    dilation = expand_tuple(dilation, nd)
    total = [0] * nd
    if padding == "same":
        sizes = weight.shape[:-2] if channels_last else weight.shape[2:]
        total = [d * (k - 1) for d, k in zip(dilation, sizes, strict=True)]
    pads = tuple((t // 2, t - t // 2) for t in total)
    window = Window(expand_tuple(stride, nd), pads, dilation, groups)
    return conv_general(input, weight, bias, window, channels_last=channels_last)


@rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
    *,
    channels_last=False,
) -> Array:
    """y[b, o, s p + d k - pad] += x[b, i, p] w[i, o, k]; + bias[o]."""
    return convolution(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        True,
        output_padding,
        groups,
        channels_last=channels_last,
    )


@rule("aten.conv_tbc.default")
def conv_tbc(self, weight, bias, pad=0) -> Array:
    """y[t, b, o] = Σ_k,i x[t + k - pad, b, i] w[k, i, o] + bias[o]."""
    y = lax.conv_general_dilated(
        self,
        weight,
        window_strides=(1,),
        padding=[(pad, pad)],
        dimension_numbers=("WNC", "WIO", "WNC"),
        precision=precision(self, weight),
    )
    return y + bias
