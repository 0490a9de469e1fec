"""Batch, layer, group, instance and RMS normalization.

y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and variance (of the population,
in two passes) over the batch and space, the last axes, or the channels of a group. Half
inputs are computed in float32, weights may be float32, and the result is rounded once, to
the input's dtype. Saved statistics have the dtype of the statistics or weights if that is
wider than the input's (ATen/native/cpu/mixed_data_type.h).
Does not do: the in-place update of running statistics (``torch.export`` replaces it by the
functional operators, which return the new ones); such a call raises.
Source: PyTorch, ATen/native/Normalization.cpp, layer_norm.cpp, group_norm.cpp.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, acc_dtype, cast, rule

Stats = tuple[Array, Array]


def moments(x: Array, axes: tuple[int, ...]) -> Stats:
    """Mean and population variance over ``axes``, which stay with size 1."""
    mean = x.mean(axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axes, keepdims=True)


def wider(x: Array, *params: Array | None) -> np.dtype:
    """The dtype in which statistics are saved: float32 if any parameter is, else x's own."""
    given = [p.dtype for p in params if p is not None]
    return acc_dtype(x.dtype) if acc_dtype(x.dtype) in given else np.dtype(x.dtype)


def affine(x: Array, weight: Array | None, bias: Array | None, shape: tuple[int, ...]) -> Array:
    """X * weight + bias, both reshaped to ``shape``, in x's dtype."""
    if weight is not None:
        x = x * cast(weight, x.dtype).reshape(shape)
    return x if bias is None else x + cast(bias, x.dtype).reshape(shape)


def _channels(x: Array, channels_last: bool) -> tuple[int, ...]:
    return (-1,) if channels_last else (-1, *(1,) * (x.ndim - 2))


def _normalize(
    x: Array, mean: Array, var: Array, weight, bias, eps: float, channels_last: bool
) -> tuple[Array, Array]:
    """Normalize channels (axis 1, or the last) of float x; returns also 1 / sqrt(var + eps)."""
    shape = _channels(x, channels_last)
    rstd = lax.rsqrt(var + eps)
    scale = rstd if weight is None else rstd * cast(weight, x.dtype)
    return affine(x - mean.reshape(shape), scale, bias, shape), rstd


def _batch_eval(
    x: Array, weight, bias, mean: Array, var: Array, eps: float, channels_last: bool
) -> Array:
    wide = cast(x, acc_dtype(x.dtype))
    mean, var = cast(mean, wide.dtype), cast(var, wide.dtype)
    y, _ = _normalize(wide, mean, var, weight, bias, eps, channels_last)
    return cast(y, x.dtype)


def _batch_train(x: Array, weight, bias, eps: float, saved: np.dtype, channels_last: bool):
    """Output, saved mean and rstd, and the variance, of a batch's own statistics."""
    wide = cast(x, acc_dtype(x.dtype))
    axes = range(x.ndim - 1) if channels_last else (0, *range(2, x.ndim))
    mean, var = (s.reshape(-1) for s in moments(wide, tuple(axes)))
    y, rstd = _normalize(wide, mean, var, weight, bias, eps, channels_last)
    return cast(y, x.dtype), cast(mean, saved), cast(rstd, saved), mean, var


def _no_stats(x: Array, *params: Array | None) -> Stats:
    """What torch saves where nothing is needed for a backward pass: nothing."""
    empty = jnp.zeros((0,), wider(x, *params))
    return empty, empty


def _updated(x: Array, old: Array, new: Array, momentum: float, *, unbiased: bool) -> Array:
    """(1 - momentum) old + momentum new; the variance is that of the sample, n / (n - 1)."""
    n = x.size // max(new.size, 1)
    if unbiased:
        new = new * (n / max(n - 1, 1))
    return cast((1 - momentum) * cast(old, new.dtype) + momentum * new, old.dtype)


def _refuse_update(training: bool, running: Array | None, op: str) -> None:
    if training and running is not None:
        raise NotImplementedError(
            f"{op} in training mode updates its running statistics in place; export the model "
            "in eval mode, or with torch.export, which gives them back as new state"
        )


@rule("aten.batch_norm.default")
def batch_norm(
    input,
    weight,
    bias,
    running_mean,
    running_var,
    training,
    momentum,
    eps,
    cudnn_enabled=True,
    *,
    channels_last=False,
) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias by channel: running or the batch's own."""
    _refuse_update(training, running_mean, "batch_norm")
    if running_mean is not None and not training:
        return _batch_eval(input, weight, bias, running_mean, running_var, eps, channels_last)
    return _batch_train(input, weight, bias, eps, input.dtype, channels_last)[0]


@rule("aten._native_batch_norm_legit_no_training.default")
def _native_batch_norm_legit_no_training(
    input, weight, bias, running_mean, running_var, momentum, eps, *, channels_last=False
):
    """batch_norm by running statistics; nothing saved."""
    y = _batch_eval(input, weight, bias, running_mean, running_var, eps, channels_last)
    return (y, *_no_stats(input, weight, bias, running_mean))


@rule("aten.native_batch_norm.default", "aten._native_batch_norm_legit.default")
def native_batch_norm(
    input, weight, bias, running_mean, running_var, training, momentum, eps, *, channels_last=False
) -> tuple[Array, Array, Array]:
    """batch_norm, and the mean and 1 / sqrt(var + eps) of the batch if training."""
    _refuse_update(training, running_mean, "native_batch_norm")
    if training:
        saved = wider(input, weight, bias)
        return _batch_train(input, weight, bias, eps, saved, channels_last)[:3]
    y = _batch_eval(input, weight, bias, running_mean, running_var, eps, channels_last)
    return (y, *_no_stats(input, weight, bias, running_mean))


@rule("aten._native_batch_norm_legit.no_stats")
def native_batch_norm_no_stats(
    input, weight, bias, training, momentum, eps, *, channels_last=False
):
    """batch_norm by the batch's own statistics, and those."""
    saved = wider(input, weight, bias)
    return _batch_train(input, weight, bias, eps, saved, channels_last)[:3]


@rule("aten._native_batch_norm_legit_functional.default")
def _native_batch_norm_legit_functional(
    input, weight, bias, running_mean, running_var, training, momentum, eps, *, channels_last=False
):
    """native_batch_norm, then the running mean and variance as updated if training."""
    params = (weight, bias, running_mean)
    if not training:
        y = _batch_eval(input, weight, bias, running_mean, running_var, eps, channels_last)
        return (y, *_no_stats(input, *params), running_mean, running_var)
    y, saved_mean, rstd, mean, var = _batch_train(
        input, weight, bias, eps, wider(input, *params), channels_last
    )
    new_mean = _updated(input, running_mean, mean, momentum, unbiased=False)
    new_var = _updated(input, running_var, var, momentum, unbiased=True)
    return y, saved_mean, rstd, new_mean, new_var


@rule("aten._batch_norm_with_update_functional.default")
def _batch_norm_with_update_functional(
    input, weight, bias, running_mean, running_var, momentum, eps, *, channels_last=False
):
    """Output, saved mean, rstd, an empty reserve, updated running mean and variance."""
    y, mean, rstd, *running = _native_batch_norm_legit_functional(
        input,
        weight,
        bias,
        running_mean,
        running_var,
        True,
        momentum,
        eps,
        channels_last=channels_last,
    )
    return (y, mean, rstd, jnp.zeros((0,), "uint8"), *running)


@rule("aten._batch_norm_no_update.default")
def _batch_norm_no_update(
    input, weight, bias, running_mean, running_var, momentum, eps, *, channels_last=False
):
    """batch_norm by running statistics, nothing saved, an empty reserve."""
    y = _batch_eval(input, weight, bias, running_mean, running_var, eps, channels_last)
    return (y, *_no_stats(input, weight, bias, running_mean), jnp.zeros((0,), "uint8"))


@rule("aten.native_layer_norm.default")
def native_layer_norm(input, normalized_shape, weight, bias, eps) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes; mean and rstd."""
    axes = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    x = cast(input, acc_dtype(input.dtype))
    mean, var = moments(x, axes)
    rstd = lax.rsqrt(var + eps)
    y = affine((x - mean) * rstd, weight, bias, tuple(normalized_shape))
    saved = wider(input, weight, bias)
    return cast(y, input.dtype), cast(mean, saved), cast(rstd, saved)


@rule("aten.layer_norm.default")
def layer_norm(
    input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True
) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes."""
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


@rule("aten.native_group_norm.default")
def native_group_norm(input, weight, bias, N, C, HxW, group, eps, *, channels_last=False):
    """(x - mean) / sqrt(var + eps) * weight + bias over each group of channels; mean, rstd."""
    split = (N, HxW, group, C // group) if channels_last else (N, group, C // group, HxW)
    x = cast(input, acc_dtype(input.dtype)).reshape(split)
    mean, var = moments(x, (1, 3) if channels_last else (2, 3))
    rstd = lax.rsqrt(var + eps)
    normal = ((x - mean) * rstd).reshape(input.shape)
    y = affine(normal, weight, bias, _channels(input, channels_last))
    saved = wider(input, weight, bias)
    return cast(y, input.dtype), *(cast(s, saved).reshape(N, group) for s in (mean, rstd))


@rule("aten.group_norm.default")
def group_norm(
    input,
    num_groups,
    weight=None,
    bias=None,
    eps=1e-5,
    cudnn_enabled=True,
    *,
    channels_last=False,
) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias over each group of channels."""
    n, c = input.shape[0], input.shape[-1 if channels_last else 1]
    hw = int(np.prod(input.shape[1:])) // max(c, 1)
    return native_group_norm(
        input, weight, bias, n, c, hw, num_groups, eps, channels_last=channels_last
    )[0]


@rule("aten.instance_norm.default")
def instance_norm(
    input,
    weight,
    bias,
    running_mean,
    running_var,
    use_input_stats,
    momentum,
    eps,
    cudnn_enabled=True,
    *,
    channels_last=False,
) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias over the space of each channel."""
    _refuse_update(use_input_stats, running_mean, "instance_norm")
    if use_input_stats:
        channels = input.shape[-1 if channels_last else 1]
        return group_norm(input, channels, weight, bias, eps, channels_last=channels_last)
    return _batch_eval(input, weight, bias, running_mean, running_var, eps, channels_last)


@rule("aten._fused_rms_norm.default")
def _fused_rms_norm(input, normalized_shape, weight, eps) -> tuple[Array, Array]:
    """X / sqrt(mean(x^2) + eps) * weight over the last axes, and 1 / sqrt(...) in float32.

    Without eps it is the spacing of 1 in the dtype of the computation.
    """
    axes = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    x = cast(input, acc_dtype(input.dtype))
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    rstd = lax.rsqrt(jnp.square(x).mean(axes, keepdims=True) + eps)
    return cast(affine(x * rstd, weight, None, tuple(normalized_shape)), input.dtype), rstd


@rule("aten.rms_norm.default")
def rms_norm(input, normalized_shape, weight=None, eps=None) -> Array:
    """X / sqrt(mean(x^2) + eps) * weight over the last axes."""
    return _fused_rms_norm(input, normalized_shape, weight, eps)[0]
