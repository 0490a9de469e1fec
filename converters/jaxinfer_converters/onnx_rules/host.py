"""Static values: numpy in, numpy out, while JAX traces; how ONNX graphs compute shapes.

int64 stays int64 here, whatever JAX's x64 setting: ``onnx.to_array`` narrows, with a check, what
goes on to JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, rule

Host = np.ndarray


@rule("onnx.constant")
def constant(values: Sequence[Any], shape: Sequence[int], dtype: str) -> Host:
    """The array of these values, in row order."""
    return np.asarray(values).astype(dtypes.dtype_of(dtype)).reshape([int(n) for n in shape])


@rule("onnx.to_array")
def to_array(x: Any) -> Array:
    """The same array for JAX; 64-bit integers are narrowed, and checked to fit."""
    import jax.numpy as jnp

    return jnp.asarray(dtypes.narrow(np.asarray(x), "a constant of the ONNX graph"))


def host(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a numpy function as ``onnx.host.<name>``."""
    return rule(*(f"onnx.host.{name}" for name in names))


@host("Shape")
def shape(x: Any, *, start: int = 0, end: int | None = None) -> Host:
    """The sizes of axes start to end - 1."""
    return np.asarray(tuple(x.shape)[slice(start, end)], np.int64)


@host("Size")
def size(x: Any) -> Host:
    """The number of elements."""
    return np.asarray(np.prod(x.shape, dtype=np.int64), np.int64)


@host("SequenceLength")
def sequence_length(xs: Sequence[Any]) -> Host:
    """The number of tensors in a sequence."""
    return np.asarray(len(xs), np.int64)


@host("OptionalHasElement")
def optional_has_element(x: Any = None) -> Host:
    """Whether the optional holds anything."""
    return np.asarray(x is not None)


def _divide(x: Host, y: Host) -> Host:
    """x / y; integers are cut towards zero."""
    if x.dtype.kind in "iu":
        return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)
    return x / y


def _mod(x: Host, y: Host, *, fmod: int = 0) -> Host:
    return np.fmod(x, y) if fmod else np.mod(x, y)


for _name, _fn in {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Mod": _mod,
    "Neg": np.negative, "Abs": np.abs, "Sqrt": np.sqrt, "Floor": np.floor, "Ceil": np.ceil,
    "Round": np.round, "Sign": np.sign, "Reciprocal": np.reciprocal, "Exp": np.exp, "Log": np.log,
    "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal, "Not": np.logical_not, "And": np.logical_and,
    "Or": np.logical_or, "Xor": np.logical_xor, "Where": np.where,
}.items():  # fmt: skip
    host(_name)(lambda *xs, _fn=_fn, **kw: np.asarray(_fn(*xs, **kw)))


@host("Pow")
def power(x: Host, y: Host) -> Host:
    """x^y in the dtype of x."""
    return np.asarray(np.power(x, y)).astype(x.dtype)


@host("Max")
def maximum(*xs: Host) -> Host:
    """The largest, element by element."""
    return _chain(np.maximum, xs)


@host("Min")
def minimum(*xs: Host) -> Host:
    """The smallest, element by element."""
    return _chain(np.minimum, xs)


def _chain(fn: Callable[..., Host], xs: Sequence[Host]) -> Host:
    out = xs[0]
    for x in xs[1:]:
        out = fn(out, x)
    return np.asarray(out)


@host("Cast")
def cast(x: Host, *, to: str, **kwargs: Any) -> Host:
    """x as another dtype."""
    del kwargs
    return x.astype(dtypes.dtype_of(to))


@host("CastLike")
def cast_like(x: Host, like: Host, **kwargs: Any) -> Host:
    """x in the dtype of another array."""
    del kwargs
    return x.astype(like.dtype)


@host("Relu")
def relu(x: Host) -> Host:
    """max(x, 0)."""
    return np.maximum(x, 0)


@host("Concat")
def concat(*xs: Host, axis: int) -> Host:
    """The arrays one after another along axis."""
    return np.concatenate(xs, axis)


@host("Gather")
def gather(x: Host, indices: Host, *, axis: int = 0) -> Host:
    """x[..., indices, ...] along axis."""
    return np.asarray(np.take(x, indices, axis))


@host("Slice")
def slice_(x: Host, starts: Host, ends: Host, axes: Any = None, steps: Any = None) -> Host:
    """x[start:end:step] along axes."""
    return x[slices(x.ndim, starts, ends, axes, steps)]


def slices(ndim: int, starts: Any, ends: Any, axes: Any, steps: Any) -> tuple[slice, ...]:
    """Return Python slices for the operands of Slice."""
    out = [slice(None)] * ndim
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop: int | None = int(end)
        # An end before the first element, going backwards, has no number in Python.
        if step < 0 and int(end) < -(2**30):
            stop = None
        out[int(axis)] = slice(int(start), stop, int(step))
    return tuple(out)


@host("Squeeze")
def squeeze(x: Host, axes: Any = None) -> Host:
    """x without these axes of size 1."""
    return np.squeeze(x, None if axes is None else tuple(int(a) for a in axes))


@host("Unsqueeze")
def unsqueeze(x: Host, axes: Host) -> Host:
    """x with new axes of size 1."""
    return np.expand_dims(x, tuple(int(a) for a in axes.reshape(-1)))


@host("Reshape")
def reshape(x: Host, shape: Host, *, allowzero: int = 0) -> Host:
    """x in another shape; 0 keeps the size of an axis."""
    return x.reshape(new_shape(x.shape, shape, allowzero))


def new_shape(old: Sequence[int], shape: Any, allowzero: int = 0) -> list[int]:
    """Return the shape that Reshape means: 0 copies an axis, -1 is inferred."""
    new = [int(n) for n in shape]
    return new if allowzero else [old[i] if n == 0 else n for i, n in enumerate(new)]


@host("Flatten")
def flatten(x: Host, *, axis: int = 1) -> Host:
    """x as a matrix: axes before ``axis``, and the others."""
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


@host("Transpose")
def transpose(x: Host, *, perm: Sequence[int] | None = None) -> Host:
    """x with its axes in another order; reversed by default."""
    return np.transpose(x, perm)


@host("Expand")
def expand(x: Host, shape: Host) -> Host:
    """x broadcast against a shape."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(n) for n in shape)))


@host("Tile")
def tile(x: Host, repeats: Host) -> Host:
    """x repeated along each axis."""
    return np.tile(x, [int(n) for n in repeats])


@host("Range")
def range_(start: Host, limit: Host, delta: Host) -> Host:
    """start, start + delta, ... before limit."""
    count = max(int(np.ceil((limit - start) / delta).reshape(())), 0)
    return (np.arange(count) * delta + start).astype(start.dtype).reshape(-1)


@host("ConstantOfShape")
def constant_of_shape(shape: Host, *, value: Any = 0, value_dtype: str = "float32") -> Host:
    """One value everywhere."""
    return np.full([int(n) for n in shape], value, dtypes.dtype_of(value_dtype))


def _reduced(fn: Callable[..., Any]) -> Callable[..., Host]:
    def reduce(
        x: Host, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Host:
        if (axes is None or len(axes) == 0) and noop_with_empty_axes:
            return x
        over = None if axes is None or len(axes) == 0 else tuple(int(a) for a in axes)
        return np.asarray(fn(x, axis=over, keepdims=bool(keepdims))).astype(x.dtype)

    return reduce


for _name, _fn in {"Prod": np.prod, "Sum": np.sum, "Max": np.max, "Min": np.min}.items():
    host(f"Reduce{_name}")(_reduced(_fn))


@host("Split")
def split(x: Host, split: Any = None, *, axis: int = 0, num_outputs: int = 0) -> list[Host]:
    """Parts of x along axis."""
    ends = np.cumsum(split_sizes(x.shape[axis], split, num_outputs))[:-1]
    return list(np.split(x, ends, axis))


def split_sizes(size: int, split: Any, count: int) -> list[int]:
    """Return the sizes of parts: as given, else ``count`` equal ones, the last smaller."""
    if split is not None:
        return [int(n) for n in split]
    part = -(-size // count)
    return [max(min(part, size - part * i), 0) for i in range(count)]


@host("ScatterND")
def scatter_nd(x: Host, indices: Host, updates: Host, *, reduction: str = "none") -> Host:
    """x with x[indices[i]] = updates[i]."""
    if reduction != "none":
        raise NotImplementedError(f"ScatterND with reduction {reduction!r} in a computed shape")
    out = x.copy()
    out[tuple(np.moveaxis(indices, -1, 0))] = updates
    return out


@host("NonZero")
def nonzero(x: Host) -> Host:
    """The indices of what is not zero, one row for each axis."""
    return np.asarray(np.nonzero(x), np.int64)


@host("CumSum")
def cumsum(x: Host, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Host:
    """Running sums along axis."""
    at = int(axis.reshape(()))
    out = np.flip(x, at) if reverse else x
    total = np.cumsum(out, at, dtype=x.dtype)
    total = total - out if exclusive else total
    return np.flip(total, at) if reverse else total
