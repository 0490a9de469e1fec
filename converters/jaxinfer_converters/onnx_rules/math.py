"""Arithmetic that differs from PyTorch's: truncating division, casts that saturate, softmax
over a flattened shape, and the reductions with ONNX's own conventions for axes.

Half types are computed in float32 and rounded once, as the ``aten`` rules do.
Source: https://onnx.ai/onnx/operators/ (each operator by its name).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, acc_dtype, category, in_float32, precision, rule
from jaxinfer_converters.onnx_rules.shape import ints


@rule("onnx.Div")
def div(x: Array, y: Array) -> Array:
    """x / y; integers are cut towards zero."""
    if category(x.dtype) >= 2:
        return x / y
    x, y = jnp.broadcast_arrays(x, y)
    return lax.div(x, y)


@rule("onnx.Pow")
def power(x: Array, y: Array) -> Array:
    """x^y in the dtype of x."""
    if category(x.dtype) == 1 and category(y.dtype) == 1:
        exact = jnp.power(x, jnp.maximum(y, 0).astype(x.dtype))
        inverse = jnp.where(x == 1, 1, jnp.where(x == -1, 1 - 2 * (y & 1), 0))
        return jnp.where(y < 0, inverse.astype(x.dtype), exact)
    dtype = x.dtype if category(x.dtype) == 2 else jnp.float32
    return cast(jnp.power(x.astype(dtype), y.astype(dtype)), to=np.dtype(x.dtype).name)


@rule("onnx.Mod")
def mod(x: Array, y: Array, *, fmod: int = 0) -> Array:
    """x - y floor(x / y), the sign of y; with fmod, that of x (C's fmod)."""
    return in_float32(jnp.fmod if fmod else jnp.mod, x, y) if category(x.dtype) == 2 else (
        jnp.fmod(x, y) if fmod else jnp.mod(x, y)
    )  # fmt: skip


@rule("onnx.BitShift")
def bit_shift(x: Array, y: Array, *, direction: str) -> Array:
    """x << y or x >> y."""
    return jnp.left_shift(x, y) if direction == "LEFT" else jnp.right_shift(x, y)


@rule("onnx.Mean")
def mean(*xs: Array) -> Array:
    """The mean of several arrays, broadcast."""
    return in_float32(lambda *xs: functools.reduce(jnp.add, xs) / len(xs), *xs)


@rule("onnx.IsInf")
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Whether x is infinite, of the signs asked for."""
    sign = ((x > 0) & bool(detect_positive)) | ((x < 0) & bool(detect_negative))
    return jnp.isinf(x) & sign


# The largest finite value of formats that saturate (https://onnx.ai/onnx/technical/float8.html).
_FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


@rule("onnx.Cast", "onnx.CastLike")
def cast(x: Array, like: Any = None, *, to: Any = None, saturate: int = 1, **kwargs: Any) -> Array:
    """x as another dtype; floats are cut towards zero, float8 saturates unless told not to."""
    name = to if like is None else np.dtype(like.dtype).name
    target, source = dtypes.canonical(name), np.dtype(x.dtype)
    if name == "float8_e8m0fnu":
        return _to_e8m0(x, kwargs.get("round_mode", "up"), bool(saturate))
    if name in _FLOAT8 or name == "float4_e2m1fn":
        wide = x.astype(jnp.float32)
        limit = float(jnp.finfo(target).max)
        if saturate or name == "float4_e2m1fn":
            wide = jnp.clip(wide, -limit, limit)
        return _round_small(wide, target)
    if target == np.dtype("bool"):
        return x != 0
    if category(source) == 2 and source.itemsize == 1:
        x = x.astype(jnp.float32)
    if category(source) == 2 and name in ("int4", "uint4", "int2", "uint2"):
        x = x.astype(jnp.int32)  # whole numbers wrap, they do not saturate
    return lax.convert_element_type(x, target)


def _round_small(x: Array, target: np.dtype) -> Array:
    """Round float32 to a narrow float once: its mantissa to nearest even, by hand.

    XLA on CPU goes through float16, which rounds twice.
    """
    info = jnp.finfo(target)
    exponent = jnp.floor(jnp.log2(jnp.maximum(jnp.abs(x), float(info.tiny))))
    two = functools.partial(jnp.ldexp, jnp.ones_like(x))
    exponent = jnp.where(two(exponent.astype(jnp.int32)) > jnp.abs(x), exponent - 1, exponent)
    exponent = jnp.maximum(exponent, float(info.minexp))
    unit = two(exponent.astype(jnp.int32) - info.nmant)
    return jnp.where(jnp.isfinite(x), jnp.round(x / unit) * unit, x).astype(target)


def _to_e8m0(x: Array, mode: str, saturate: bool) -> Array:
    """x as a power of two: 2^ceil, 2^floor or the nearest of log2 |x|."""
    mantissa, exponent = jnp.frexp(jnp.abs(x.astype(jnp.float32)))
    exponent = exponent - 1  # |x| = (2 mantissa) 2^exponent, 1 <= 2 mantissa < 2
    over = mantissa > 0.5 if mode == "up" else mantissa >= 0.75
    exponent = exponent + (over & (mode != "down")).astype(exponent.dtype)
    low = jnp.clip(exponent, -127, 127)
    bits = jnp.where(jnp.isnan(x) | (jnp.isinf(x) & (not saturate)), 255, low + 127)
    bits = jnp.where(~jnp.isnan(x) & (x == 0), 0, bits)
    bits = jnp.where(jnp.isinf(x) & saturate, 254, bits)
    return lax.bitcast_convert_type(bits.astype(jnp.uint8), jnp.float8_e8m0fnu)


@rule("onnx.BitCast")
def bit_cast(x: Array, *, to: str) -> Array:
    """The bits of x read as another dtype of the same width.

    Raises:
      NotImplementedError: a 64-bit dtype while 64-bit types are off: the bits are not there.
    """
    target = dtypes.canonical(to)
    if dtypes.dtype_of(to) != target:
        raise NotImplementedError(
            f"BitCast to {to}: JAX has no {to} with 64-bit types off; turn them on "
            "(jax.config.update('jax_enable_x64', True))"
        )
    if target == np.dtype("bool") or x.dtype == jnp.bool_:
        return x.astype(target) if target != np.dtype("bool") else x != 0
    return lax.bitcast_convert_type(x, target)


@rule("onnx.Gemm")
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """alpha A' B' + beta C, A' and B' transposed if asked."""
    axes = (((0 if transA else 1,), (1 if transB else 0,)), ((), ()))
    y = lax.dot_general(a, b, axes, precision=precision(a, b))
    y = y if alpha == 1 else (y * alpha).astype(y.dtype)
    if c is None or beta == 0:
        return y
    return y + (c if beta == 1 else (c * beta).astype(c.dtype))


@rule("onnx.Det")
def det(x: Array) -> Array:
    """The determinant of the last two axes."""
    return jnp.linalg.det(x)


@rule("onnx.CumSum")
def cumsum(x: Array, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running sums along axis; exclusive: without the element itself; reverse: from the end."""
    return _cumulative(jnp.cumsum, 0, x, axis, exclusive, reverse)


@rule("onnx.CumProd")
def cumprod(x: Array, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running products along axis; as CumSum."""
    return _cumulative(jnp.cumprod, 1, x, axis, exclusive, reverse)


def _cumulative(fn: Any, unit: int, x: Array, axis: Any, exclusive: int, reverse: int) -> Array:
    (at,) = ints(axis)
    at = at % x.ndim
    x = jnp.flip(x, at) if reverse else x
    if exclusive:
        x = lax.slice_in_dim(x, 0, x.shape[at] - 1, axis=at)
        x = jnp.pad(x, [(i == at, 0) for i in range(x.ndim)], constant_values=unit)
    y = fn(x, at, dtype=x.dtype)
    return jnp.flip(y, at) if reverse else y


_LOGSUM: Callable[..., Array] = lambda x, a, keepdims: jnp.log(jnp.sum(x, a, keepdims=keepdims))
_REDUCE: dict[str, Callable[..., Array]] = {
    "L1": lambda x, a, keepdims: jnp.sum(jnp.abs(x), a, keepdims=keepdims),
    "L2": lambda x, a, keepdims: jnp.sqrt(jnp.sum(jnp.square(x), a, keepdims=keepdims)),
    "LogSum": _LOGSUM,
    "LogSumExp": lambda x, a, keepdims: jax.nn.logsumexp(x, a, keepdims=keepdims),
    "Max": jnp.max,
    "Mean": jnp.mean,
    "Min": jnp.min,
    "Prod": jnp.prod,
    "Sum": jnp.sum,
    "SumSquare": lambda x, a, keepdims: jnp.sum(jnp.square(x), a, keepdims=keepdims),
}


def _identity_of(name: str, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """What a reduction over no elements gives: the least (Max) or the largest (Min) value."""
    kept = [1 if i in axes else n for i, n in enumerate(x.shape) if i not in axes or keepdims]
    if x.dtype == jnp.bool_:
        return jnp.full(kept, name == "Min", bool)
    if category(x.dtype) == 2:
        return jnp.full(kept, -math.inf if name == "Max" else math.inf, x.dtype)
    info = jnp.iinfo(x.dtype)
    return jnp.full(kept, info.min if name == "Max" else info.max, x.dtype)


def _reduction(name: str, fn: Callable[..., Array]) -> None:
    def reduce(
        x: Array, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        over = None if axes is None or len(axes) == 0 else tuple(a % x.ndim for a in ints(axes))
        if over is None and noop_with_empty_axes:
            over = ()
            if name in ("Max", "Mean", "Min", "Prod", "Sum"):
                return x
        over = tuple(range(x.ndim)) if over is None else over
        if name in ("Max", "Min") and any(x.shape[axis] == 0 for axis in over):
            return _identity_of(name, x, over, bool(keepdims))
        if x.dtype == jnp.bool_ and name in ("Max", "Min"):
            return (jnp.any if name == "Max" else jnp.all)(x, over, keepdims=bool(keepdims))
        wide = x.astype(acc_dtype(x.dtype))
        if category(x.dtype) < 2 and name in ("L2", "LogSum", "LogSumExp", "Mean"):
            wide = x.astype(jnp.float32)
        return fn(wide, over, keepdims=bool(keepdims)).astype(x.dtype)

    reduce.__doc__ = f"The {name} of x over axes (all, if none are given), in the dtype of x."
    rule(f"onnx.Reduce{name}")(reduce)


for _name, _fn in _REDUCE.items():
    _reduction(_name, _fn)


def _arg(pick: Any, x: Array, axis: int, keepdims: int, select_last_index: int) -> Array:
    axis = axis % x.ndim
    index = pick(jnp.flip(x, axis) if select_last_index else x, axis, keepdims=bool(keepdims))
    index = x.shape[axis] - 1 - index if select_last_index else index
    return index.astype(dtypes.canonical("int64"))


@rule("onnx.ArgMax")
def argmax(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The place of the largest along axis: the first of equals, or the last."""
    return _arg(jnp.argmax, x, axis, keepdims, select_last_index)


@rule("onnx.ArgMin")
def argmin(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The place of the smallest along axis: the first of equals, or the last."""
    return _arg(jnp.argmin, x, axis, keepdims, select_last_index)


def _flat(fn: Callable[[Array], Array], x: Array, axis: int) -> Array:
    """Apply ``fn`` to rows that hold all axes from ``axis`` on (operators before opset 13)."""
    axis = axis + x.ndim if axis < 0 else axis
    rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return in_float32(fn, rows).reshape(x.shape)


@rule("onnx.SoftmaxFlat")
def softmax_flat(x: Array, *, axis: int = 1) -> Array:
    """exp x / Σ exp x over all axes from ``axis`` on (Softmax before opset 13)."""
    return _flat(lambda x: jax.nn.softmax(x, -1), x, axis)


@rule("onnx.LogSoftmaxFlat")
def log_softmax_flat(x: Array, *, axis: int = 1) -> Array:
    """x - log Σ exp x over all axes from ``axis`` on (LogSoftmax before opset 13)."""
    return _flat(lambda x: jax.nn.log_softmax(x, -1), x, axis)


@rule("onnx.Hardmax")
def hardmax(x: Array, *, axis: int = -1) -> Array:
    """1 at the first maximum along axis, else 0."""
    return jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], dtype=x.dtype, axis=axis)


@rule("onnx.HardmaxFlat")
def hardmax_flat(x: Array, *, axis: int = 1) -> Array:
    """1 at the first maximum over all axes from ``axis`` on (Hardmax before opset 13)."""
    return _flat(hardmax, x, axis)


def _activation(name: str) -> Callable[[Any], Any]:
    return rule(f"onnx.{name}")


@_activation("PRelu")
def prelu(x: Array, slope: Array) -> Array:
    """slope x where x < 0, else x."""
    return jnp.where(x < 0, slope * x, x)


@_activation("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """max(0, min(1, alpha x + beta))."""
    return in_float32(lambda x: jnp.clip(alpha * x + beta, 0, 1), x)


@_activation("Swish")
def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """x sigmoid(alpha x)."""
    return in_float32(lambda x: x * jax.nn.sigmoid(alpha * x), x)


@_activation("Softsign")
def softsign(x: Array) -> Array:
    """x / (1 + |x|)."""
    return in_float32(jax.nn.soft_sign, x)


@_activation("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """x where x > alpha, else 0."""
    return jnp.where(x > alpha, x, jnp.zeros((), x.dtype))


@_activation("Shrink")
def shrink(x: Array, *, lambd: float = 0.5, bias: float = 0.0) -> Array:
    """x - bias where x > lambd, x + bias where x < -lambd, else 0."""
    zero = jnp.zeros((), x.dtype)
    bias_ = jnp.asarray(bias).astype(x.dtype)
    return jnp.where(x > lambd, x - bias_, jnp.where(x < -lambd, x + bias_, zero))


@_activation("Einsum")
def einsum(*xs: Array, equation: str) -> Array:
    """Σ over the letters that the result lacks."""
    return jnp.einsum(equation.replace(" ", ""), *xs, precision=precision(*xs))
