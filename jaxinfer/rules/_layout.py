"""Quantized weights through equations that only rearrange: the codes and scales move along.

Each rule declines (None) where the result cannot be had without decoding; the interpreter then
materializes, and records it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core.array_types import RULES
from jaxinfer.core.interpret import Equation, part_specs
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.qtensor import QTensor

Quantized = QTensor | ActQTensor
KINDS = ("QTensor", "ActQTensor")


def register(*primitives: str) -> Any:
    """Register a rule for both kinds of quantized weights."""
    return RULES.register(*(f"{kind}.{name}" for kind in KINDS for name in primitives))


def moved(value: Quantized, weight: QTensor | None, scale: Any) -> list[Quantized] | None:
    """Return a rule's result; ``scale`` rearranges the scale of a static activation."""
    out = value.follow(weight, scale) if isinstance(value, ActQTensor) else weight
    return None if out is None else [out]


def weight_of(value: Quantized) -> QTensor:
    """Return the quantized weight."""
    return value.weight if isinstance(value, ActQTensor) else value


@register("transpose")
def transpose(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Permute the axes."""
    (value,) = values
    perm = equation.params["permutation"]
    return moved(value, weight_of(value).transpose(perm), lambda s: lax.transpose(s, perm))


@register("squeeze")
def squeeze(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Drop axes of size 1."""
    (value,) = values
    axes = equation.params["dimensions"]
    return moved(value, weight_of(value).squeeze(axes), lambda s: lax.squeeze(s, axes))


@register("reshape")
def reshape(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Split and merge axes where tiles stay boxes."""
    value, *sizes = values
    if sizes or equation.params.get("dimensions") is not None:
        return None
    new = equation.eqn.outvars[0].aval.shape
    if isinstance(value, ActQTensor) and value.scale is not None and value.scale.size != 1:
        return None
    return moved(value, weight_of(value).reshape(new), lambda s: s.reshape((1,) * len(new)))


@register("broadcast_in_dim")
def broadcast_in_dim(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Insert axes of size 1; a real broadcast is declined."""
    value, *sizes = values
    shape, where = equation.params["shape"], equation.params["broadcast_dimensions"]
    if sizes or any(shape[at] != n for at, n in zip(where, value.shape, strict=True)):
        return None
    new = [axis for axis in range(len(shape)) if axis not in where]
    if any(shape[axis] != 1 for axis in new) or list(where) != sorted(where):
        return None
    return moved(value, weight_of(value).expand_dims(new), lambda s: lax.expand_dims(s, new))


@register("convert_element_type")
def convert_element_type(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Stand for another float dtype; codes and scales stay."""
    (value,) = values
    dtype = equation.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    return moved(value, weight_of(value).astype(dtype), lambda s: s)


@register("slice")
def slice_(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Take a static slice of stride 1."""
    (value,) = values
    p = equation.params
    if p["strides"] is not None and any(step != 1 for step in p["strides"]):
        return None
    return _sliced(value, p["start_indices"], p["limit_indices"])


def _sliced(
    value: Quantized, starts: Sequence[int], limits: Sequence[int]
) -> list[Quantized] | None:
    def scale(s: Any) -> Any:
        triples = zip(s.shape, starts, limits, strict=True)
        spans = [(0, 1) if size == 1 else (low, high) for size, low, high in triples]
        return lax.slice(s, *zip(*spans, strict=True)) if spans else s

    return moved(value, weight_of(value).slice(starts, limits), scale)


@register("split")
def split(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Cut along an axis."""
    (value,) = values
    axis, at = equation.params["axis"], 0
    found: list[Quantized] = []
    for size in equation.params["sizes"]:
        starts, limits = [0] * value.ndim, list(value.shape)
        starts[axis], limits[axis] = at, at + size
        part = _sliced(value, starts, limits)
        if part is None:
            return None
        found += part
        at += size
    return found


@register("dynamic_slice")
def dynamic_slice(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Take a slice at traced starts along axes whose elements have scales of their own."""
    value, *starts = values
    sizes, weight = equation.params["slice_sizes"], weight_of(value)
    cut = [axis for axis, size in enumerate(sizes) if size != value.shape[axis]]
    if not all(weight.independent(axis) for axis in cut):
        return None

    def part(x: Any) -> Any:
        span = [size if axis in cut and x.shape[axis] != 1 else x.shape[axis]
                for axis, size in enumerate(sizes)]  # fmt: skip
        begin = [s if axis in cut and x.shape[axis] != 1 else jnp.zeros_like(s)
                 for axis, s in enumerate(starts)]  # fmt: skip
        return lax.dynamic_slice(x, begin, span)

    return moved(value, jax.tree.map(part, weight), part)


@register("copy", "copy_p", "optimization_barrier", "pvary", "pcast")
def each_part(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Evaluate the equation on every part."""
    if len(values) != 1:
        return None

    def part(x: Any) -> Any:
        out = equation.eqn.primitive.bind(x, **equation.params)
        return out[0] if equation.eqn.primitive.multiple_results else out

    return [jax.tree.map(part, values[0])]


@register("stop_gradient")
def stop_gradient(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Stop it at every part."""
    del equation
    return [jax.tree.map(lax.stop_gradient, values[0])]


@register("sharding_constraint")
def sharding_constraint(equation: Equation, values: Sequence[Any]) -> list[Quantized] | None:
    """Demand of each part what the sharding of the whole makes of it; declined if uneven."""
    (value,) = values
    sharding = equation.params["sharding"]
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return None
    specs = part_specs(value, sharding.spec, sharding.mesh)
    if specs is None:
        return None
    place = lambda x, spec: lax.with_sharding_constraint(
        x, jax.sharding.NamedSharding(sharding.mesh, spec)
    )
    return [jax.tree.map(place, value, specs)]


@register("gather")
def gather(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Take rows of codes and of scales, and decode what was taken.

    Declined unless whole slices are taken along axes that have scales of their own.
    """
    value, indices = values
    fill = equation.params["fill_value"]
    if not isinstance(value, Quantized) or not (fill is None or fill == 0 or fill != fill):
        return None  # a scale of 0 or NaN makes 0 or NaN of any code
    weight, p = weight_of(value).unpacked(), equation.params
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    picked = numbers.start_index_map
    if numbers.operand_batching_dims or sorted(numbers.collapsed_slice_dims) != sorted(picked):
        return None
    whole = all(n == size for axis, (n, size) in enumerate(zip(value.shape, sizes, strict=True))
                if axis not in picked)  # fmt: skip
    if not whole or not all(weight.independent(axis) for axis in picked):
        return None
    rank = len(equation.eqn.outvars[0].aval.shape)
    if list(numbers.offset_dims) != list(range(rank - len(numbers.offset_dims), rank)):
        return None
    rest = [axis for axis in range(value.ndim) if axis not in picked]

    def part(x: Any) -> Any:
        own = tuple(1 if axis in picked else x.shape[axis] for axis in range(x.ndim))
        fill = p["fill_value"] if jnp.issubdtype(x.dtype, jnp.floating) else None
        return lax.gather(
            x, indices, numbers, own, mode=p["mode"], fill_value=fill,
            indices_are_sorted=p["indices_are_sorted"], unique_indices=p["unique_indices"],
        )  # fmt: skip

    place = {axis - value.ndim: new - len(rest) for new, axis in enumerate(rest)}
    padded = tuple((place[axis], size) for axis, size in weight.sizes)
    taken = dataclasses.replace(jax.tree.map(part, weight), sizes=padded)
    return [taken.materialize()]
