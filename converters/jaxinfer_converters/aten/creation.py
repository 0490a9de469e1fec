"""Tensors from nothing: filled, ranges, windows; copies and casts.

Semantics: ``torch.*`` (https://docs.pytorch.org/docs/stable/torch.html#creation-ops). Sizes are
static. Uninitialized tensors (``empty``) are zeros. Ranges and windows of numbers known while
tracing are computed by numpy in float64 and rounded once; integer ranges are an iota. Strides
mean nothing to JAX and are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import (
    FLOAT,
    Array,
    Number,
    cast,
    category,
    is_array,
    result_type,
    rule,
    unary,
)

unary(
    lambda x: x,
    "aten.alias.default",
    "aten.alias_copy.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.lift.default",
    "aten.lift_fresh.default",
    "aten.lift_fresh_copy.default",
)
# x with no gradient; what leaves a no_grad region is detached at conversion (torch/gradients.py)
unary(lax.stop_gradient, "aten.detach.default", "aten.detach_copy.default")


def _filled(size: Sequence[int], value: Any, dtype: Any) -> Array:
    """Broadcast a number or a one-element array, range-checked, to ``size``."""
    value = cast(value, dtype)
    return jnp.broadcast_to(value.reshape(()) if value.size == 1 else value, tuple(size))


@rule("aten.full.default")
def full(size: Sequence[int], fill_value: Number, *, dtype: Any = None) -> Array:
    """A tensor of one number; its dtype is the number's if not given."""
    return _filled(size, fill_value, result_type(fill_value) if dtype is None else dtype)


@rule("aten.zeros.default", "aten.empty.memory_format")
def zeros(size: Sequence[int], *, dtype: Any = None) -> Array:
    """Zeros, float32 if not said."""
    return jnp.zeros(tuple(size), dtype or FLOAT)


@rule("aten.empty_strided.default", "aten.empty_permuted.default")
def empty_strided(size: Sequence[int], stride: Sequence[int], *, dtype: Any = None) -> Array:
    """Zeros; the layout is ignored."""
    del stride
    return zeros(size, dtype=dtype)


@rule("aten.ones.default")
def ones(size: Sequence[int], *, dtype: Any = None) -> Array:
    """Ones, float32 if not said."""
    return jnp.ones(tuple(size), dtype or FLOAT)


@rule("aten.full_like.default")
def full_like(self: Array, fill_value: Number, *, dtype: Any = None) -> Array:
    """One number in the shape, and dtype if not given, of x."""
    return _filled(self.shape, fill_value, dtype or self.dtype)


@rule("aten.zeros_like.default", "aten.empty_like.default")
def zeros_like(self: Array, *, dtype: Any = None) -> Array:
    """Zeros in the shape, and dtype if not given, of x."""
    return jnp.zeros(self.shape, dtype or self.dtype)


@rule("aten.ones_like.default")
def ones_like(self: Array, *, dtype: Any = None) -> Array:
    """Ones in the shape, and dtype if not given, of x."""
    return jnp.ones(self.shape, dtype or self.dtype)


@rule("aten.new_full.default")
def new_full(self: Array, size: Sequence[int], fill_value: Number, *, dtype: Any = None) -> Array:
    """One number in a given shape, in x's dtype if not given."""
    return _filled(size, fill_value, dtype or self.dtype)


@rule("aten.new_zeros.default", "aten.new_empty.default")
def new_zeros(self: Array, size: Sequence[int], *, dtype: Any = None) -> Array:
    """Zeros of a given shape, in x's dtype if not given."""
    return jnp.zeros(tuple(size), dtype or self.dtype)


@rule("aten.new_empty_strided.default")
def new_empty_strided(
    self: Array, size: Sequence[int], stride: Sequence[int], *, dtype: Any = None
) -> Array:
    """Zeros of a given shape, in x's dtype if not given; the layout is ignored."""
    del stride
    return new_zeros(self, size, dtype=dtype)


@rule("aten.new_ones.default")
def new_ones(self: Array, size: Sequence[int], *, dtype: Any = None) -> Array:
    """Ones of a given shape, in x's dtype if not given."""
    return jnp.ones(tuple(size), dtype or self.dtype)


@rule("aten.scalar_tensor.default")
def scalar_tensor(s: Number, *, dtype: Any = None) -> Array:
    """A 0-dimensional tensor of one number, float32 if not said."""
    return _filled((), s, dtype or FLOAT)


@rule("aten.fill.Scalar", "aten.fill.Tensor")
def fill(self: Array, value: Any) -> Array:
    """One number in the shape and dtype of x."""
    return _filled(self.shape, value, self.dtype)


@rule("aten.copy.default")
def copy(self: Array, src: Array, non_blocking: bool | None = None) -> Array:
    """Src, broadcast and cast to the shape and dtype of x."""
    del non_blocking
    return jnp.broadcast_to(cast(src, self.dtype), self.shape)


@rule("aten._to_copy.default")
def to_copy(self: Array, *, dtype: Any = None) -> Array:
    """x in another dtype; floats are truncated to integers."""
    return self if dtype is None else cast(self, dtype)


@rule("aten.to.dtype", "aten.to.dtype_layout")
def to_dtype(
    self: Array,
    dtype: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: None = None,
) -> Array:
    """x in another dtype; floats are truncated to integers."""
    del non_blocking, copy, memory_format
    return to_copy(self, dtype=dtype)


@rule("aten.to.device")
def to_device(
    self: Array,
    device: Any,
    dtype: Any,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: None = None,
) -> Array:
    """x in another dtype; JAX places a function's values itself."""
    del device, non_blocking, copy, memory_format
    return to_copy(self, dtype=dtype)


@rule("aten.type_as.default", "aten.to.other")
def type_as(
    self: Array,
    other: Array,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: None = None,
) -> Array:
    """x in the dtype of y."""
    del non_blocking, copy, memory_format
    return cast(self, other.dtype)


@rule("aten.arange.default")
def arange(end: Number, *, dtype: Any = None) -> Array:
    """0, 1, ... below end."""
    return arange_step(0, end, 1, dtype=dtype)


@rule("aten.arange.start")
def arange_start(start: Number, end: Number, *, dtype: Any = None) -> Array:
    """Start, start + 1, ... below end."""
    return arange_step(start, end, 1, dtype=dtype)


@rule("aten.arange.start_step")
def arange_step(start: Any, end: Any, step: Any = 1, *, dtype: Any = None) -> Array:
    """start + step * i for i below ceil((end - start) / step)."""
    if any(map(is_array, (start, end, step))):
        raise NotImplementedError("the size of this arange depends on the values of a tensor")
    if any(map(jax.export.is_symbolic_dim, (start, end, step))):  # an export with open sizes
        kind = result_type(0) if dtype is None else dtype
        count = max(-((start - end) // step), 0)
        return cast(start + step * lax.iota(np.dtype(result_type(0)), count), kind)
    target = np.dtype(result_type(start, end, step) if dtype is None else dtype)
    if category(target) == 1:
        start, end, step = int(start), int(end), int(step)
    whole = all(isinstance(x, int) for x in (start, end, step))
    n = max(-((start - end) // step) if whole else math.ceil((end - start) / step), 0)
    if category(target) == 1:
        first = cast(start, target)
        cast(start + step * max(n - 1, 0), target)  # the last number must fit
        return first + cast(step, target) * lax.iota(target, n) if n else jnp.zeros((0,), target)
    return _constant(start + step * np.arange(n, dtype=np.float64), target)


def _constant(values: np.ndarray, dtype: Any) -> Array:
    """Round float64 values to ``dtype``, towards zero for integers."""
    return cast(jnp.asarray(values.astype(np.dtype(dtype))), dtype)


def _spaced(start: Any, end: Any, steps: int) -> Any:
    """Evenly spaced numbers, both ends exact: from the nearer end, as torch computes them."""
    traced = is_array(start) or is_array(end)
    np_or_jnp: Any = jnp if traced else np
    if traced:
        wide = jnp.promote_types(FLOAT, result_type(start, end))
        start, end = (cast(x, wide).reshape(()) for x in (start, end))
    index = np_or_jnp.arange(steps)
    step = (end - start) / max(steps - 1, 1)
    up, down = start + step * index, end - step * (steps - 1 - index)
    values = np_or_jnp.where(index < max(steps // 2, 1), up, down)
    return values if traced else np.asarray(values, np.result_type(values, np.float64))


def _end(value: Any, dtype: np.dtype) -> Any:
    """Return an end of a range: torch truncates it first if the range is of integers."""
    if category(dtype) > 1:
        return value
    return jnp.trunc(value) if is_array(value) else int(value)


def _range_dtype(dtype: Any, *ends: Any) -> np.dtype:
    if dtype is not None:
        return np.dtype(dtype)
    return np.dtype("complex64") if category(result_type(*ends)) == 3 else FLOAT


@rule(
    "aten.linspace.default",
    "aten.linspace.Tensor_Tensor",
    "aten.linspace.Tensor_Scalar",
    "aten.linspace.Scalar_Tensor",
)
def linspace(start: Any, end: Any, steps: int, *, dtype: Any = None) -> Array:
    """start + (end - start) i / (steps - 1); float32 if no dtype is given."""
    dtype = _range_dtype(dtype, start, end)
    values = _spaced(_end(start, dtype), _end(end, dtype), steps)
    return cast(values, dtype) if isinstance(values, jnp.ndarray) else _constant(values, dtype)


@rule(
    "aten.logspace.default",
    "aten.logspace.Tensor_Tensor",
    "aten.logspace.Tensor_Scalar",
    "aten.logspace.Scalar_Tensor",
)
def logspace(start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: Any = None) -> Array:
    """Base to the power of each of ``linspace(start, end, steps)``."""
    dtype = _range_dtype(dtype, start, end)
    values = base ** _spaced(_end(start, dtype), _end(end, dtype), steps)
    return cast(values, dtype) if isinstance(values, jnp.ndarray) else _constant(values, dtype)


@rule("aten.eye.default", "aten.eye.m")
def eye(n: int, m: int | None = None, *, dtype: Any = None) -> Array:
    """1 where i = j, of n rows and m (or n) columns."""
    return jnp.eye(n, m, dtype=dtype or FLOAT)


@rule("aten.tril_indices.default")
def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None) -> Array:
    """Row and column numbers of the lower triangle, row by row."""
    return jnp.asarray(np.stack(np.tril_indices(row, offset, col)), dtype or _int64())


@rule("aten.triu_indices.default")
def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None) -> Array:
    """Row and column numbers of the upper triangle, row by row."""
    return jnp.asarray(np.stack(np.triu_indices(row, offset, col)), dtype or _int64())


def _int64() -> np.dtype:
    return dtypes.canonical("int64")


def _window(n: int, periodic: bool, formula: Callable[[np.ndarray], Any], dtype: Any) -> Array:
    """``formula`` of i / (m - 1) for i < n, with m = n + 1 if periodic, else n."""
    if n == 1:
        return jnp.ones((1,), dtype or FLOAT)
    last = n if periodic else n - 1
    return _constant(np.asarray(formula(np.arange(n) / max(last, 1))), dtype or FLOAT)


@rule("aten.hann_window.default", "aten.hann_window.periodic")
def hann_window(window_length: int, periodic: bool = True, *, dtype: Any = None) -> Array:
    """(1 - cos(2 pi t)) / 2."""
    return hamming_window(window_length, periodic, 0.5, 0.5, dtype=dtype)


@rule(
    "aten.hamming_window.default",
    "aten.hamming_window.periodic",
    "aten.hamming_window.periodic_alpha",
    "aten.hamming_window.periodic_alpha_beta",
)
def hamming_window(
    window_length: int,
    periodic: bool = True,
    alpha: float = 0.54,
    beta: float = 0.46,
    *,
    dtype: Any = None,
) -> Array:
    """Alpha - beta cos(2 pi t)."""
    formula = lambda t: alpha - beta * np.cos(2 * np.pi * t)
    return _window(window_length, periodic, formula, dtype)


@rule("aten.blackman_window.default", "aten.blackman_window.periodic")
def blackman_window(window_length: int, periodic: bool = True, *, dtype: Any = None) -> Array:
    """0.42 - 0.5 cos(2 pi t) + 0.08 cos(4 pi t)."""
    formula = lambda t: 0.42 - 0.5 * np.cos(2 * np.pi * t) + 0.08 * np.cos(4 * np.pi * t)
    return _window(window_length, periodic, formula, dtype)


@rule("aten.bartlett_window.default", "aten.bartlett_window.periodic")
def bartlett_window(window_length: int, periodic: bool = True, *, dtype: Any = None) -> Array:
    """1 - |2 t - 1|."""
    return _window(window_length, periodic, lambda t: 1 - np.abs(2 * t - 1), dtype)


@rule("aten.kaiser_window.default", "aten.kaiser_window.periodic", "aten.kaiser_window.beta")
def kaiser_window(
    window_length: int, periodic: bool = True, beta: float = 12.0, *, dtype: Any = None
) -> Array:
    """I0(beta sqrt(1 - (2 t - 1)^2)) / I0(beta)."""
    formula = lambda t: np.i0(beta * np.sqrt(1 - (2 * t - 1) ** 2)) / np.i0(beta)
    return _window(window_length, periodic, formula, dtype)
