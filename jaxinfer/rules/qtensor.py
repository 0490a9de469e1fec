"""Products with quantized weights, computed on the codes where the scales allow it.

    one scale for all that a result sums:   y = (x . decode(q)) * s            QTensor
                                            y = (code(x) . q) * (sx * s)       ActQTensor
    scales along what is summed (groups):   y = x . (decode(q) * s)            QTensor
                                            y = sum over groups of the above   ActQTensor

Integers are summed in int32 and float8 in float32 (``preferred_element_type``), scales are
applied in float32, before whatever the function adds. A zero point z adds - z * sum(code(x)).
Convolutions with quantized activations sum in int32, on GPUs in float32 (exact below 2**24).

Cost beside the product: the decoded weight is a temporary where the back-end does not fuse it
(XLA on CPUs does not); the products of G groups take G times the result.

What it does not do: products of two quantized operands (one is materialized, and recorded).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinfer.core.interpret import Equation, is_array_type
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.formats import Format, decode, encode, format_of
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.numerics.quantize import divide
from jaxinfer.rules._layout import register, weight_of

Array = Any
Axes = Sequence[int]


def values_of(q: QTensor, dtype: Any) -> Array:
    """Return ``decode(codes) - zero_point`` without the scale, of the logical shape.

    Only for zero points that do not vary within a tile's axis beyond the scale's own shape.
    """
    out = decode(q.codes(), q.spec, dtype)
    if q.zero_point is not None:
        out -= spread(q.zero_point, q.stored).astype(dtype)
    return out if q.shape == q.stored else lax.slice(out, [0] * q.ndim, q.shape)


def spread(scale: Array, sizes: Sequence[int]) -> Array:
    """Repeat scales of runs to the elements of their axes; an axis of one scale stays 1."""
    for axis, (count, size) in enumerate(zip(scale.shape, sizes, strict=True)):
        if count not in (1, size):
            scale = jnp.repeat(scale, size // count, axis=axis)
    return scale


def uniform(q: QTensor, axes: Axes) -> bool:
    """Whether one scale serves all that a result sums along ``axes``, and scales can be spread."""
    padded = {axis % q.ndim for axis, _ in q.sizes}
    whole = all(q.scale.shape[a] in (1, q.stored[a]) for a in padded)
    return whole and all(q.scale.shape[axis] == 1 for axis in axes)


def per_result(scale: Array, side: int, numbers: Any, ranks: tuple[int, int]) -> Array:
    """Return what varies with an operand's free axes as it meets a dot_general's result.

    Args:
      scale: of the operand's rank, 1 along its contracting axes.
      side: of the operand.
      numbers: the equation's dimension numbers.
      ranks: of both operands.
    """
    (contracting, batch) = (numbers[0][side], numbers[1][side])
    free = [a for a in range(ranks[side]) if a not in contracting and a not in batch]
    other = ranks[1 - side] - len(numbers[0][1 - side]) - len(batch)
    order = lax.transpose(lax.squeeze(scale, contracting), _ranks([*batch, *free]))
    at = len(batch) if side else order.ndim
    return lax.expand_dims(order, range(at, at + other))


def _ranks(axes: Axes) -> list[int]:
    """Return the permutation that puts axes, of which some are gone, in the given order."""
    left = sorted(axes)
    return [left.index(axis) for axis in axes]


def activation(x: Array, fmt: Format, scale: Array | None, axes: Axes) -> tuple[Array, Array]:
    """Return the codes of values, and their scale with size 1 along ``axes`` (f32)."""
    wide = x.astype(jnp.float32)
    bound = fmt.bound
    assert bound is not None
    if scale is None:
        most = jnp.max(jnp.abs(wide), axis=tuple(axes), keepdims=True, initial=0)
        step = jnp.where(most == 0, 1, jnp.maximum(most * (1 / bound), jnp.finfo("f4").tiny))
    else:
        step = scale.reshape((1,) * x.ndim).astype(jnp.float32)
    return encode(divide(wide, step), fmt), step


def accumulator(a: Format, b: Format) -> Any:
    """Return the dtype in which products of codes are summed."""
    return jnp.int32 if a.kind == b.kind == "integer" else jnp.float32


@register("dot_general")
def dot_general(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """A matrix product with a quantized operand."""
    if sum(map(is_array_type, values)) != 1:
        return None
    side = int(is_array_type(values[1]))
    weight, x = values[side], values[1 - side]
    aval = equation.eqn.outvars[0].aval
    q, numbers = weight_of(weight), equation.params["dimension_numbers"]
    ranks = (values[0].ndim, values[1].ndim)
    contracting = numbers[0][side]
    pair = lambda w, v: (w, v) if side == 0 else (v, w)
    floats = _wide(x) if _sums_wide(x, numbers, ranks[0]) else x.dtype

    def product(w: Array, v: Array, preferred: Any, dims: Any = numbers) -> Array:
        precision = equation.params["precision"] if jnp.issubdtype(v.dtype, jnp.floating) else None
        if v.dtype.itemsize == 1:
            precision = None
        return lax.dot_general(*pair(w, v), dims, precision, preferred)

    if not isinstance(weight, ActQTensor):
        if not uniform(q, contracting):
            return [product(q.materialize().astype(x.dtype), x, floats).astype(aval.dtype)]
        y = product(values_of(q, x.dtype), x, floats)
        scale = per_result(spread(q.scale, q.stored), side, numbers, ranks)
        return [(y.astype(_wide(x)) * scale.astype(_wide(x))).astype(aval.dtype)]

    fmt = format_of(weight.activation)
    codes, sx = activation(x, fmt, weight.scale, numbers[0][1 - side])
    total = accumulator(fmt, q.spec)
    sums = tuple(numbers[0][1 - side])
    if q.spec.arithmetic and uniform(q, contracting):
        w = q.codes()
        w = w if q.shape == q.stored else lax.slice(w, [0] * q.ndim, q.shape)
        y = product(w, _matching(codes, w), total).astype(jnp.float32)
        if q.zero_point is not None:
            of_x = jnp.sum(codes.astype(total), sums, keepdims=True).astype(jnp.float32)
            zero = spread(q.zero_point, q.stored).astype(jnp.float32)
            y -= per_result(of_x, 1 - side, numbers, ranks) * per_result(zero, side, numbers, ranks)
        y *= per_result(sx, 1 - side, numbers, ranks)
        y *= per_result(spread(q.scale, q.stored), side, numbers, ranks).astype(jnp.float32)
        return [y.astype(aval.dtype)]
    grouped = [axis for axis in contracting if q.scale.shape[axis] != 1]
    if q.spec.arithmetic and len(grouped) == 1 and not _padded_elsewhere(q, grouped[0]):
        y = _by_groups(q, codes, grouped[0], side, numbers, total, product)
        return [(y * per_result(sx, 1 - side, numbers, ranks)).astype(aval.dtype)]
    # no arithmetic on the codes: what they stand for, in floats
    rounded = (decode(codes, fmt) * sx).astype(x.dtype)
    return [product(q.materialize().astype(x.dtype), rounded, floats).astype(aval.dtype)]


def _padded_elsewhere(q: QTensor, axis: int) -> bool:
    return any(a % q.ndim != axis for a, _ in q.sizes)


def _matching(codes: Array, w: Array) -> Array:
    """Return codes that a product takes together with ``w``: of one kind of dtype."""
    both_int = jnp.issubdtype(codes.dtype, jnp.integer) and jnp.issubdtype(w.dtype, jnp.integer)
    return codes.astype(jnp.int8) if both_int and w.dtype == jnp.int8 else codes


def _by_groups(
    q: QTensor, codes: Array, axis: int, side: int, numbers: Any, total: Any, product: Any
) -> Array:
    """Sum over groups of one contracting axis: the group is one more batch axis, the first."""
    groups = q.scale.shape[axis]
    tile = q.stored[axis] // groups
    (contract, batch) = numbers
    place = list(contract[side]).index(axis)
    own, other = contract[side][place], contract[1 - side][place]
    missing = q.stored[axis] - codes.shape[other]
    if missing:  # codes of zero
        codes = jnp.pad(codes, [(0, missing if a == other else 0) for a in range(codes.ndim)])
    w = q.codes()
    cut = lambda x, at: x.reshape(*x.shape[:at], groups, tile, *x.shape[at + 1 :])
    shift = lambda axes, at: [a + (a > at) for a in axes]
    dims: list[Any] = [[[], []], [[], []]]
    for who, at in ((side, own), (1 - side, other)):
        dims[0][who] = [at + 1 if a == at else a + (a > at) for a in contract[who]]
        dims[1][who] = [at, *shift(batch[who], at)]
    wide, w = cut(codes, other), cut(w, own)
    if w.dtype != wide.dtype and jnp.issubdtype(w.dtype, jnp.integer):
        w = w.astype(jnp.int8) if w.dtype == jnp.uint8 and q.spec.bits == 4 else w
    y = product(w, wide, total, dims).astype(jnp.float32)
    ranks = (w.ndim, wide.ndim) if side == 0 else (wide.ndim, w.ndim)
    # scale: [.., groups, 1 (the tile), ..], spread along the free axes
    sizes = [groups if a == axis else n for a, n in enumerate(q.stored)]
    lift = lambda s: lax.expand_dims(spread(s, sizes), (axis + 1,)).astype(jnp.float32)
    if q.zero_point is not None:
        of_x = jnp.sum(wide.astype(total), tuple(dims[0][1 - side]), keepdims=True)
        zero = per_result(lift(q.zero_point), side, dims, ranks)
        y -= per_result(of_x.astype(jnp.float32), 1 - side, dims, ranks) * zero
    return jnp.sum(y * per_result(lift(q.scale), side, dims, ranks), 0)


@register("conv_general_dilated")
def conv_general_dilated(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """A convolution with a quantized kernel; values are quantized image by image."""
    x, weight = values
    if is_array_type(x) or equation.params["batch_group_count"] != 1:
        return None
    q, p = weight_of(weight), dict(equation.params)
    numbers, aval = p["dimension_numbers"], equation.eqn.outvars[0].aval
    p.pop("preferred_element_type")
    out, *summed = numbers.rhs_spec

    def product(v: Array, w: Array, preferred: Any) -> Array:
        given = p if jnp.issubdtype(v.dtype, jnp.floating) and v.dtype.itemsize > 1 else {
            **p, "precision": None}  # fmt: skip
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers",
                 "feature_group_count", "precision")  # fmt: skip
        return lax.conv_general_dilated(
            v, w, **{name: given[name] for name in names}, preferred_element_type=preferred
        )

    shape = [1] * x.ndim
    shape[numbers.out_spec[1]] = q.shape[out]
    simple = uniform(q, summed)
    if isinstance(weight, ActQTensor):
        fmt = format_of(weight.activation)
        axes = [a for a in range(x.ndim) if a != numbers.lhs_spec[0]]
        codes, sx = activation(x, fmt, weight.scale, axes)
        if simple and q.spec.arithmetic and q.zero_point is None:
            w = q.codes()
            w = w if q.shape == q.stored else lax.slice(w, [0] * q.ndim, q.shape)
            y = _on_codes(product, _matching(codes, w), w, accumulator(fmt, q.spec))
            y *= _spread_to(q.scale, out, shape, q.stored[out])
            image = [1] * x.ndim
            image[numbers.out_spec[0]] = sx.size
            return [(y * sx.reshape(image)).astype(aval.dtype)]
        x = (decode(codes, fmt) * sx).astype(x.dtype)
    if simple:
        y = product(x, values_of(q, x.dtype), _wide(x))
        return [(y * _spread_to(q.scale, out, shape, q.stored[out])).astype(aval.dtype)]
    return [product(x, q.materialize().astype(x.dtype), _wide(x)).astype(aval.dtype)]


def _on_codes(product: Any, x: Array, w: Array, total: Any) -> Array:
    if total != jnp.int32:
        return product(x, w, total)
    floats = lambda a, b: product(a.astype(jnp.float32), b.astype(jnp.float32), jnp.float32)
    integers = lambda a, b: product(a, b, jnp.int32).astype(jnp.float32)
    return lax.platform_dependent(x, w, cuda=floats, rocm=floats, default=integers)


def _spread_to(scale: Array, axis: int, shape: Sequence[int], stored: int) -> Array:
    flat = scale.reshape(-1).astype(jnp.float32)
    flat = jnp.repeat(flat, stored // flat.size) if flat.size not in (1, stored) else flat
    size = math.prod(shape)
    return flat.reshape([1] * len(shape)) if flat.size == 1 else flat[:size].reshape(shape)


@register("ragged_dot_general")
def ragged_dot_general(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """A product of rows with the matrix of their group; scales are taken by group."""
    x, weight, sizes = values[:3]
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (lhs, rhs), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    plain = (
        not is_array_type(x)
        and (x.ndim, weight.ndim) == (2, 3)
        and not lhs_batch
        and not rhs_batch
        and tuple(numbers.lhs_ragged_dimensions) == (0,) == tuple(numbers.rhs_group_dimensions)
        and tuple(lhs) == (1,)
    )
    if not plain:
        return None
    q, aval = weight_of(weight), equation.eqn.outvars[0].aval
    p = {k: v for k, v in equation.params.items() if k not in ("preferred_element_type",)}

    def product(v: Array, w: Array, preferred: Any) -> Array:
        given = p if jnp.issubdtype(v.dtype, jnp.floating) else {**p, "precision": None}
        primitive = equation.eqn.primitive
        return primitive.bind(v, w, *values[2:], **given, preferred_element_type=preferred)

    def scaled(y: Array) -> Array:
        scale = lax.squeeze(spread(q.scale, q.stored), rhs).astype(jnp.float32)
        if scale.shape[0] != 1:
            ends = jnp.cumsum(sizes)
            group = jnp.searchsorted(ends, jnp.arange(x.shape[0], dtype=ends.dtype), side="right")
            scale = jnp.take(scale, group, axis=0, mode="clip")
        return y * scale

    if isinstance(weight, ActQTensor):
        fmt = format_of(weight.activation)
        codes, sx = activation(x, fmt, weight.scale, (1,))
        integers = fmt.kind == q.spec.kind == "integer" and q.zero_point is None
        if integers and uniform(q, rhs) and q.shape == q.stored:
            y = product(codes.astype(jnp.int8), q.codes(), jnp.int32).astype(jnp.float32)
            return [(scaled(y) * sx).astype(aval.dtype)]
        x = (decode(codes, fmt) * sx).astype(x.dtype)
    if uniform(q, rhs):
        return [scaled(product(x, values_of(q, x.dtype), _wide(x))).astype(aval.dtype)]
    return [product(x, q.materialize().astype(x.dtype), _wide(x)).astype(aval.dtype)]


def _wide(x: Array) -> Any:
    """Return the dtype in which products of floats are summed: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _sums_wide(x: Array, numbers: Any, rank: int) -> bool:
    """Return whether a matrix product of floats is to give float32, to be scaled and rounded then.

    bf16 x bf16 = f32 with batch axes, or with the left operand contracted over other axes than
    its last, is a layout for which XLA on CPUs may have no kernel (jax 0.10.1, "Unsupported
    element type for DotThunk"); it gives bf16 at once, summed in float32 as well.
    """
    (contracting, _), (batch, _) = numbers
    last = tuple(contracting) == tuple(range(rank - len(contracting), rank))
    return x.dtype != jnp.bfloat16 or (not batch and last)
