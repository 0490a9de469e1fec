"""Convolutions, pools, norms, resizing: PyTorch's operators where they say the same.

Those rules are the ones that the layout pass knows; what PyTorch cannot say (padding on one
side, by name, dilated averages) goes to ONNX's own.
"""

from __future__ import annotations

from typing import Any

from jaxinfer_converters.graph import Ref
from jaxinfer_converters.onnx.build import Builder, lowers, plain
from jaxinfer_converters.onnx.call import Call


def _pairs(n: Call, nd: int, kernel: Any = None) -> list[int] | None:
    """Return padding as PyTorch takes it, one number an axis, or None if it cannot."""
    auto = n.attrs.get("auto_pad", "NOTSET")
    strides = n.attrs.get("strides") or [1] * nd
    dilations = n.attrs.get("dilations") or [1] * nd
    if auto == "VALID":
        return [0] * nd
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if kernel is None or any(s != 1 for s in strides):
            return None
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        return None if any(r % 2 for r in reach) else [r // 2 for r in reach]
    pads = n.attrs.get("pads") or [0] * (2 * nd)
    return list(pads[:nd]) if pads[:nd] == pads[nd:] and min(pads) >= 0 else None


def _kernel(b: Builder, n: Call) -> list[int] | None:
    """Return the kernel's spatial sizes, of the attribute or the weight's shape."""
    shape = b.info(n.inputs[1]).shape
    if shape is not None and all(isinstance(size, int) for size in shape[2:]):
        return [int(size or 0) for size in shape[2:]]
    return n.attrs.get("kernel_shape")


def _options(n: Call, nd: int) -> tuple[list[int], list[int]]:
    return n.attrs.get("strides") or [1] * nd, n.attrs.get("dilations") or [1] * nd


@lowers("Conv")
def _conv(b: Builder, n: Call) -> Ref:
    x, w, bias = b.array(n.inputs[0]), b.array(n.inputs[1]), b.optional(n.input(2))
    kernel = _kernel(b, n)
    if kernel is not None and 1 <= len(kernel) <= 3:
        nd, group = len(kernel), n.attrs.get("group", 1)
        padding, (strides, dilations) = _pairs(n, nd, kernel), _options(n, nd)
        pads = n.attrs.get("pads")
        if padding is None and n.attrs.get("auto_pad", "NOTSET") == "NOTSET" and pads:
            order = [p for i in reversed(range(nd)) for p in (pads[i], pads[i + nd])]
            x, padding = b.emit("aten.constant_pad_nd.default", x, order, 0), [0] * nd
        if padding is not None:
            return b.emit(
                "aten.convolution.default", x, w, bias, strides, padding, dilations, False,
                [0] * nd, group,
            )  # fmt: skip
    return b.emit("onnx.Conv", x, w, bias, **plain(n.attrs))


@lowers("ConvTranspose")
def _conv_transpose(b: Builder, n: Call) -> Ref:
    x, w, bias = b.array(n.inputs[0]), b.array(n.inputs[1]), b.optional(n.input(2))
    kernel = _kernel(b, n)
    named = n.attrs.get("auto_pad", "NOTSET").startswith("SAME") or n.attrs.get("output_shape")
    if kernel is not None and 1 <= len(kernel) <= 3 and not named:
        nd = len(kernel)
        padding, (strides, dilations) = _pairs(n, nd), _options(n, nd)
        extra = n.attrs.get("output_padding") or [0] * nd
        if padding is not None:
            return b.emit(
                "aten.convolution.default", x, w, bias, strides, padding, dilations, True, extra,
                n.attrs.get("group", 1),
            )  # fmt: skip
    return b.emit("onnx.ConvTranspose", x, w, bias, **plain(n.attrs))


@lowers("MaxPool")
def _max_pool(b: Builder, n: Call) -> Ref | list[Ref]:
    x, kernel = b.array(n.inputs[0]), n.attrs["kernel_shape"]
    nd = len(kernel)
    padding, (strides, dilations) = _pairs(n, nd, kernel), _options(n, nd)
    if n.has_output(1):
        out = b.emit("onnx.MaxPool", x, indices=True, **plain(n.attrs))
        return [b.item(out, 0), b.item(out, 1)]
    if padding is not None and nd <= 3:
        ceil = bool(n.attrs.get("ceil_mode", 0))
        return b.emit(f"aten.max_pool{nd}d.default", x, kernel, strides, padding, dilations, ceil)
    return b.emit("onnx.MaxPool", x, **plain(n.attrs))


@lowers("AveragePool")
def _average_pool(b: Builder, n: Call) -> Ref:
    x, kernel = b.array(n.inputs[0]), n.attrs["kernel_shape"]
    nd = len(kernel)
    padding, (strides, dilations) = _pairs(n, nd, kernel), _options(n, nd)
    if padding is not None and nd <= 3 and set(dilations) == {1}:
        ceil, count = bool(n.attrs.get("ceil_mode", 0)), bool(n.attrs.get("count_include_pad", 0))
        return b.emit(f"aten.avg_pool{nd}d.default", x, kernel, strides, padding, ceil, count)
    return b.emit("onnx.AveragePool", x, **plain(n.attrs))


def _spatial(b: Builder, n: Call) -> list[int] | None:
    rank = b.info(n.inputs[0]).rank
    return None if rank is None or rank < 3 else list(range(2, rank))


@lowers("GlobalAveragePool")
def _global_average_pool(b: Builder, n: Call) -> Ref:
    axes = _spatial(b, n) or [-2, -1]
    return b.emit("aten.mean.dim", b.array(n.inputs[0]), axes, True)


@lowers("GlobalMaxPool")
def _global_max_pool(b: Builder, n: Call) -> Ref:
    axes = _spatial(b, n) or [-2, -1]
    return b.emit("aten.amax.default", b.array(n.inputs[0]), axes, True)


@lowers("BatchNormalization")
def _batch_norm(b: Builder, n: Call) -> Ref | list[Ref]:
    args = [b.array(name) for name in n.inputs]
    epsilon, momentum = n.attrs.get("epsilon", 1e-5), n.attrs.get("momentum", 0.9)
    if n.attrs.get("training_mode"):
        out = b.emit("onnx.BatchNormalizationTraining", *args, epsilon=epsilon, momentum=momentum)
        return [b.item(out, i) for i in range(3)]
    x, scale, bias, mean, var = args
    out = b.emit(
        "aten._native_batch_norm_legit_no_training.default",
        x, scale, bias, mean, var, 1 - momentum, epsilon,
    )  # fmt: skip
    return [b.item(out, 0)]


@lowers("InstanceNormalization")
def _instance_norm(b: Builder, n: Call) -> Ref:
    x, scale, bias = map(b.array, n.inputs)
    epsilon = n.attrs.get("epsilon", 1e-5)
    return b.emit(
        "aten.instance_norm.default", x, scale, bias, None, None, True, 0.1, epsilon, False
    )


@lowers("GridSample")
def _grid_sample(b: Builder, n: Call) -> Ref:
    mode = {"bilinear": 0, "linear": 0, "nearest": 1, "bicubic": 2, "cubic": 2}
    padding = {"zeros": 0, "border": 1, "reflection": 2}
    return b.emit(
        "aten.grid_sampler.default",
        b.array(n.inputs[0]),
        b.array(n.inputs[1]),
        mode[n.attrs.get("mode", "linear")],
        padding[n.attrs.get("padding_mode", "zeros")],
        bool(n.attrs.get("align_corners", 0)),
    )


@lowers("Resize", "Upsample")
def _resize(b: Builder, n: Call) -> Ref:
    x = b.array(n.inputs[0])
    if n.op == "Upsample" or (n.version < 11):
        roi, scales, sizes = "", n.inputs[1], ""
        mode = n.attrs.get("mode", "nearest")
        options: dict[str, Any] = {"mode": "linear" if mode == "bilinear" else mode}
        options |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        roi, scales, sizes = n.input(1), n.input(2), n.input(3)
        options = plain(n.attrs)
    if sizes:
        scales = ""
    if (plan := _upsample(b, n, scales, sizes, options)) is not None:
        op, size, factors, corners = plan
        if corners is None:
            return b.emit(f"{op}.vec", x, size, factors)
        return b.emit(f"{op}.vec", x, size, corners, factors)
    crop = options.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    given = [b.host(roi) if roi and crop else None, *(b.optional_host(s) for s in (scales, sizes))]
    return b.emit("onnx.Resize", x, *given, **options)


def _upsample(
    b: Builder, n: Call, scales: str, sizes: str, options: dict[str, Any]
) -> tuple[str, list[int] | None, list[float] | None, bool | None] | None:
    """Return PyTorch's operator, size, factors and ``align_corners``, if it means the same."""
    rank = b.info(n.inputs[0]).rank
    value = b.known(scales or sizes)
    if rank not in (3, 4, 5) or value is None or len(value) != rank:
        return None
    if any(options.get(key) for key in ("antialias", "axes", "exclude_outside")):
        return None
    if options.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    shape = b.info(n.inputs[0]).shape or ()
    kept = [1.0, 1.0] if scales else [float(s) if isinstance(s, int) else -1 for s in shape[:2]]
    if [float(v) for v in value[:2]] != kept:
        return None
    size = None if scales else [int(v) for v in value[2:]]
    factors = [float(v) for v in value[2:]] if scales else None
    if factors is not None and any(not f.is_integer() for f in factors):
        return None  # rounding of the output's size differs
    mode = options.get("mode", "nearest")
    where = options.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        if where == "asymmetric" and options.get("nearest_mode") == "floor":
            return f"aten.upsample_nearest{rank - 2}d", size, factors, None
        return None
    if mode != "linear" or (where == "align_corners" and scales):
        return None
    op = {3: "upsample_linear1d", 4: "upsample_bilinear2d", 5: "upsample_trilinear3d"}[rank]
    if where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        if where == "pytorch_half_pixel" and (size is None or 1 in size):
            return None
        return f"aten.{op}", size, factors, where == "align_corners"
    return None
