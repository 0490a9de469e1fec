"""Programs with convolutions: every layout, with groups, strides and transposition."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from tests.laws._program import blocked, conv, f32, normal, program

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")
IMAGE = (f32("b, 9, 8, 6"),)
CHANNELS_FIRST = (f32("b, 6, 9, 8"),)


def convolve(x, w, numbers=NHWC, stride=1, padding: Any = "VALID", **rest):
    strides = (stride,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **rest)


@program({"w": (3, 2, 6, 5), "b": (5,)}, IMAGE, {"w": conv(0, 1, 2), "b": blocked("add")})
def conv_nhwc(params, x):
    """Section 6.1: qwix raises on a weight-only convolution."""
    return convolve(x, params["w"]) + params["b"]


@program({"w": (5, 6, 3, 2), "b": (5,)}, CHANNELS_FIRST, {"w": conv(1, 2, 3), "b": blocked("add")})
def conv_nchw(params, x):
    """Pitfall 11: torch's layout; the output channel is axis 0."""
    return convolve(x, params["w"], NCHW, 2, "SAME") + params["b"][:, None, None]


@program({"w": (5, 3, 2, 6)}, CHANNELS_FIRST, {"w": conv(1, 2, 3)})
def conv_turned(params, x):
    """Pitfall 11: stored as [o, h, w, i], and turned before the convolution."""
    return convolve(x, params["w"].transpose(0, 3, 1, 2), NCHW)


@program({"w": (3, 7, 11)}, (f32("b, 13, 7"),), {"w": conv(0, 1)})
def conv_1d_last(params, x):
    """Section 6.1: one spatial axis, channels last, dilated."""
    return convolve(x, params["w"], ("NWC", "WIO", "NWC"), rhs_dilation=(2,))


@program({"w": (11, 7, 3)}, (f32("b, 7, 13"),), {"w": conv(1, 2)})
def conv_1d_first(params, x):
    """Section 6.1: one spatial axis, channels first, strided."""
    return convolve(x, params["w"], ("NCH", "OIH", "NCH"), 2)


@program({"w": (3, 2, 1, 12)}, IMAGE, {"w": conv(0, 1, 2)})
def conv_depthwise(params, x):
    """Section 6.1: depthwise with two outputs for each channel; the I axis has size 1."""
    return convolve(x, params["w"], feature_group_count=6)


@program({"w": (6, 1, 5)}, (f32("b, 6, 13"),), {"w": conv(1, 2)})
def conv_depthwise_1d_causal(params, x):
    """Section 6.1: the short causal convolution of a state-space block."""
    return convolve(x, params["w"], ("NCH", "OIH", "NCH"), 1, [(4, 0)], feature_group_count=6)


@program({"w": (3, 2, 2, 15)}, IMAGE, {"w": conv(0, 1, 2)})
def conv_grouped(params, x):
    """Section 6.1: three groups; the output channels still have one scale each."""
    return convolve(x, params["w"], feature_group_count=3)


@program({"w": (15, 2, 3, 2)}, CHANNELS_FIRST, {"w": conv(1, 2, 3)})
def conv_grouped_nchw(params, x):
    """Section 6.1: three groups in torch's layout."""
    return convolve(x, params["w"], NCHW, feature_group_count=3)


@program({"w": (3, 2, 6, 5)}, IMAGE, {"w": conv(0, 1, 2)})
def conv_transposed(params, x):
    """Section 6.1: ``lax.conv_transpose``: the input is dilated, the kernel as stored."""
    return lax.conv_transpose(x, params["w"], (2, 3), "SAME", dimension_numbers=NHWC)


@program({"w": (3, 2, 5, 6)}, IMAGE, {"w": conv(0, 1, 3)})
def conv_transposed_kernel(params, x):
    """Pitfall 12: the gradient's form: the kernel is stored as [h, w, o, i] and flipped."""
    return lax.conv_transpose(
        x, params["w"], (2, 2), "VALID", dimension_numbers=NHWC, transpose_kernel=True
    )


@program({"w": (6, 5, 3, 2)}, CHANNELS_FIRST, {"w": conv(0, 2, 3)})
def conv_transposed_nchw(params, x):
    """Pitfall 12: torch's ConvTranspose2d: [i, o, h, w], flipped and turned."""
    kernel = jnp.flip(params["w"], (2, 3)).swapaxes(0, 1)
    return convolve(x, kernel, NCHW, padding=[(2, 2), (1, 1)], lhs_dilation=(2, 2))


@program({"w": (6, 5, 3, 2)}, CHANNELS_FIRST, {"w": conv(0, 2, 3)})
def conv_transposed_grouped(params, x):
    """Pitfall 12: with groups, [g i, o, h, w] -> [g o, i, h, w]: axis 0 is free and summed."""
    kernel = jnp.flip(params["w"], (2, 3)).reshape(3, 2, 5, 3, 2).swapaxes(1, 2)
    kernel = kernel.reshape(15, 2, 3, 2)
    return convolve(
        x, kernel, NCHW, padding=[(2, 2), (1, 1)], lhs_dilation=(2, 2), feature_group_count=3
    )


@program({"w": (11, 7)}, (f32("b, 7, 13"),), {"w": conv(1)})
def conv_pointwise(params, x):
    """Pitfall 12: a dense weight that becomes a 1x1 kernel."""
    return convolve(x, params["w"][:, :, None], ("NCH", "OIH", "NCH"))


@program({"image": (1, 9, 8, 6)}, (f32("3, 2, 6, b"),), {"image": blocked("conv_general_dilated")})
def conv_left(params, kernel):
    """Section 6.1: the parameter is the image, and the kernel is an input."""
    return convolve(params["image"], kernel)


def _statistics(seed):
    shapes = {"w": (3, 2, 6, 5), "mean": (5,), "var": (5,), "gamma": (5,), "beta": (5,)}
    params = normal(seed, shapes)
    return params | {"var": params["var"] ** 2 + 0.5}


@program(
    _statistics,
    IMAGE,
    {
        "w": conv(0, 1, 2),
        "mean": blocked("sub"),
        "var": blocked("add"),
        "gamma": blocked("mul"),
        "beta": blocked("add"),
    },
)
def conv_batch_norm(params, x):
    """Section 6.3: batch norm in evaluation, to be folded into the convolution."""
    y = convolve(x, params["w"]) - params["mean"]
    gain = params["gamma"] * lax.rsqrt(params["var"] + 1e-5)
    return jnp.tanh(y * gain + params["beta"])
