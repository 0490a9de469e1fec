"""Convolutions of 1, 2 and 3 dimensions, and transposed ones, groups and dilation included.

One lowering serves all: ``lax.conv_general_dilated``. A transposed convolution is a
convolution of the input dilated by the stride with the flipped kernel, input and output
channels swapped within each group. float32 is computed in float32 (``precision``).
Activations stay in torch's layout, channels first: ``DIMENSIONS`` is the one place that says
so. Does not do: depthwise kernels of their own, layout changes.
Source: PyTorch, ``torch.nn.Conv2d``, ``torch.nn.ConvTranspose2d``.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax import lax

from jaxinfer_converters.aten._common import Array, expand_tuple, precision, rule

# Input, kernel and output axes by number of spatial dimensions.
DIMENSIONS = {
    1: ("NCW", "OIW", "NCW"),
    2: ("NCHW", "OIHW", "NCHW"),
    3: ("NCDHW", "OIDHW", "NCDHW"),
}


def swap_channels(weight: Array, groups: int) -> Array:
    """w[g i, o, ...] -> w[g o, i, ...] with the spatial axes flipped."""
    inputs, outputs, *window = weight.shape
    weight = weight.reshape(groups, inputs // groups, outputs, *window).swapaxes(1, 2)
    weight = weight.reshape(groups * outputs, inputs // groups, *window)
    return lax.rev(weight, tuple(range(2, weight.ndim)))


def conv_general(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    input_dilation: Sequence[int] | None = None,
) -> Array:
    """y[b, o, p] = Σ_i,k x[b, i, s p + d k - pad] w[o, i, k] + bias[o]; b may be missing."""
    nd = weight.ndim - 2
    batched = x.ndim == nd + 2
    y = lax.conv_general_dilated(
        x if batched else x[None],
        weight,
        window_strides=stride,
        padding=padding,
        lhs_dilation=input_dilation,
        rhs_dilation=dilation,
        dimension_numbers=DIMENSIONS[nd],
        feature_group_count=groups,
        precision=precision(x, weight),
    )
    if bias is not None:
        y = y + bias.reshape(-1, *(1,) * nd)
    return y if batched else y[0]


@rule("aten.convolution.default")
def convolution(
    input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
) -> Array:
    """y[b, o, p] = Σ_i,k x[b, i, s p + d k - pad] w[o, i, k]; transposed: its adjoint in x."""
    nd = weight.ndim - 2
    stride, padding, dilation, extra = (
        expand_tuple(v, nd) for v in (stride, padding, dilation, output_padding)
    )
    if not transposed:
        pads = [(p, p) for p in padding]
        return conv_general(
            input, weight, bias, stride=stride, padding=pads, dilation=dilation, groups=groups
        )
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return conv_general(
        input,
        swap_channels(weight, groups),
        bias,
        stride=(1,) * nd,
        padding=[(r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True)],
        dilation=dilation,
        groups=groups,
        input_dilation=stride,
    )


@rule("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Array:
    """y[b, o, p] = Σ_i,k x[b, i, s p + d k - pad] w[o, i, k] + bias[o]."""
    return convolution(input, weight, bias, stride, padding, dilation, False, 0, groups)


@rule("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def conv_padding(
    input, weight, bias=None, stride=1, padding="valid", dilation=1, groups=1
) -> Array:
    """conv with no padding ("valid") or d (k - 1) in all ("same"), the odd one on the right."""
    nd = weight.ndim - 2
    dilation = expand_tuple(dilation, nd)
    total = [0] * nd
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return conv_general(
        input,
        weight,
        bias,
        stride=expand_tuple(stride, nd),
        padding=[(t // 2, t - t // 2) for t in total],
        dilation=dilation,
        groups=groups,
    )


@rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
) -> Array:
    """y[b, o, s p + d k - pad] += x[b, i, p] w[i, o, k]; + bias[o]."""
    return convolution(input, weight, bias, stride, padding, dilation, True, output_padding, groups)


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
