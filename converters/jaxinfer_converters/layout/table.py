"""The operators that may run channels-last, each with its mark; all others forbid it.

The table is closed: ``tests/layout/test_marks.py`` holds every entry against the operator in
torch's own order. Does not do: operators along flat indices (``max_unpool``, ``argmax`` of all
elements), matrix products, ``gather`` and its kind.
"""

from __future__ import annotations

from jaxinfer_converters.layout.marks import (
    Convolution,
    Dims,
    Elementwise,
    Like,
    Mark,
    Pad,
    Permute,
    Size,
    Sizes,
    Spatial,
    View,
)

MARKS: dict[str, Mark] = {}


def _add(mark: Mark, names: str) -> None:
    for name in names.split():
        full = f"aten.{name}" if "." in name else f"aten.{name}.default"
        assert full not in MARKS, full
        MARKS[full] = mark


_add(
    Elementwise(),
    """
    abs acos acosh asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2
    expm1 floor frac i0 lgamma log log10 log1p log2 logit neg positive rad2deg reciprocal round
    round.decimals rsqrt sgn sigmoid sign sin sinc sinh sqrt square tan tanh trunc nan_to_num
    elu celu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish relu
    relu6 selu silu softplus softshrink threshold _prelu_kernel
    isfinite isinf isnan isneginf isposinf signbit logical_not bitwise_not
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar
    div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode true_divide.Tensor true_divide.Scalar
    floor_divide floor_divide.Scalar remainder.Tensor remainder.Scalar remainder.Scalar_Tensor
    fmod.Tensor fmod.Scalar pow.Tensor_Tensor pow.Scalar pow.Tensor_Scalar
    float_power.Tensor_Tensor float_power.Tensor_Scalar float_power.Scalar
    maximum minimum fmax fmin max.other min.other atan2 hypot logaddexp logaddexp2
    copysign.Tensor copysign.Scalar clamp clamp.Tensor clamp_min clamp_min.Tensor clamp_max
    clamp_max.Tensor lerp.Scalar lerp.Tensor addcmul addcdiv
    eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor
    gt.Scalar ge.Tensor ge.Scalar logical_and logical_or logical_xor
    bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar
    bitwise_xor.Tensor bitwise_xor.Scalar isclose
    where.self where.Scalar where.ScalarSelf where.ScalarOther masked_fill.Scalar
    """,
)
_add(
    Like(),
    """
    alias alias_copy clone contiguous detach detach_copy lift_fresh_copy _to_copy dropout
    zeros_like ones_like full_like empty_like
    """,
)
_add(Convolution(), "convolution")
for _nd in (1, 2, 3):
    _add(Convolution(_nd), f"conv{_nd}d conv{_nd}d.padding")
    _add(
        Convolution(_nd, transposed=True),
        f"conv_transpose{_nd}d.{'default' if _nd == 1 else 'input'}",
    )
    _add(
        Spatial(_nd),
        f"max_pool{_nd}d avg_pool{_nd}d adaptive_avg_pool{_nd}d upsample_nearest{_nd}d "
        f"upsample_nearest{_nd}d.vec _upsample_nearest_exact{_nd}d "
        f"_upsample_nearest_exact{_nd}d.vec",
    )
    _add(Spatial(_nd, (0, 1)), f"max_pool{_nd}d_with_indices adaptive_max_pool{_nd}d")
    _add(Pad(), f"reflection_pad{_nd}d replication_pad{_nd}d")
_add(Spatial(2), "_adaptive_avg_pool2d")
_add(Spatial(3), "_adaptive_avg_pool3d")
_add(Spatial(1), "upsample_linear1d upsample_linear1d.vec")
_add(Spatial(3), "upsample_trilinear3d upsample_trilinear3d.vec")
for _name in (
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "_upsample_lanczos2d_aa",
):
    _add(Spatial(2), f"{_name} {_name}.vec")
_add(Spatial(2), "pixel_shuffle pixel_unshuffle")
_add(
    Spatial(),
    """
    prelu batch_norm _native_batch_norm_legit_no_training native_batch_norm
    _native_batch_norm_legit _native_batch_norm_legit.no_stats
    _native_batch_norm_legit_functional _batch_norm_with_update_functional _batch_norm_no_update
    group_norm native_group_norm instance_norm channel_shuffle native_channel_shuffle
    """,
)
_add(Pad("pad"), "constant_pad_nd pad _pad_circular")

_add(Dims(lists=True, default=0), "cat concat concatenate")
_add(Dims("insert", lists=True, default=0), "stack")
_add(Dims("insert"), "unsqueeze unsqueeze_copy")
_add(Dims("squeeze"), "squeeze.dim squeeze.dims squeeze_copy.dim squeeze_copy.dims")
_add(Dims("drop", default=0), "select.int select_copy.int unbind.int unbind_copy.int")
_add(Dims(default=0), "slice.Tensor slice_copy.Tensor narrow narrow.Tensor narrow_copy")
_add(
    Dims(index=2, default=0),
    """
    split_with_sizes split_with_sizes_copy unsafe_split_with_sizes split.sizes split.Tensor
    split_copy.Tensor unsafe_split.Tensor chunk unsafe_chunk tensor_split.sections
    tensor_split.indices
    """,
)
_add(Dims(name="dims"), "flip")
_add(Dims(index=2, name="dims"), "roll")
_add(Dims(default=-1), "glu")
_add(
    Dims(),
    "softmax.int log_softmax.int _softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp",
)
_add(
    Dims("reduce", keepdim=2),
    """
    mean.dim sum.dim_IntList prod.dim_int amax amin any.dim any.dims all.dim all.dims max.dim
    min.dim argmax argmin logsumexp
    """,
)
_add(
    Dims("reduce", keepdim=3),
    "var.correction std.correction var_mean.correction std_mean.correction var.dim std.dim "
    "var_mean.dim std_mean.dim",
)
_add(Dims("reduce", index=2, keepdim=3), "linalg_vector_norm norm.ScalarOpt_dim")
_add(
    Permute(),
    """
    permute permute_copy transpose.int transpose_copy.int swapaxes swapdims mT movedim.int
    moveaxis.int
    """,
)
_add(View(), "view view_copy _unsafe_view reshape _reshape_copy flatten.using_ints unflatten.int")
_add(Sizes("size"), "expand expand_copy broadcast_to")
_add(Sizes("repeats"), "repeat")
_add(Size(), "sym_size.int")
