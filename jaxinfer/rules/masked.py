"""Rules of ``Masked`` and ``Compressed``: what only moves elements moves the parts.

    Masked.layout(w, m)     = Masked(layout(w), layout(m))
    Masked.product(x, w)    = product(x, where(m, w, 0))
    Compressed.product(x, w) = product(x, decompress(w))

A product on the materialized weight is the product of the pruned model, no approximation of
it, and XLA fuses the selection where its back-end fuses operands. It is a rule, not an unknown
use, so that a transform does not report it as one.

What it does not do: skip the zeros, or take the compressed weight into a kernel for sparse tensor
cores. Pruned weights cost what dense ones do (`Compressed` ones, less memory at rest).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxinfer.core.array_types import RULES, is_array_type, materialize
from jaxinfer.core.interpret import Equation
from jaxinfer.numerics.masks import Masked

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general", "gather")
"""Primitives that take the materialized weight."""

MOVES = (
    *("transpose", "reshape", "broadcast_in_dim", "squeeze", "slice", "dynamic_slice", "rev"),
    *("split", "copy", "sharding_constraint", "reshard", "pvary", "pcast"),
)
"""Primitives that move elements and compute nothing, of the first operand."""

VALUES = ("convert_element_type", "stop_gradient", "reduce_precision")
"""Primitives that act on each element, and leave 0 as it is."""


def _bound(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Evaluate the equation on arrays; always a list of results."""
    out = equation.eqn.primitive.bind(*values, **equation.params)
    return list(out) if equation.eqn.primitive.multiple_results else [out]


def _of_first(values: Sequence[Any]) -> bool:
    return is_array_type(values[0]) and not any(map(is_array_type, values[1:]))


@RULES.register(*(f"{kind}.{name}" for kind in ("Masked", "Compressed") for name in PRODUCTS))
def product(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Compute on materialized operands: ``product(x, where(mask, w, 0))``."""
    return _bound(equation, list(map(materialize, values)))


@RULES.register(*(f"Masked.{name}" for name in MOVES))
def move(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Move weight and mask alike; further operands (traced starts, sizes) serve both."""
    if not _of_first(values):
        return None
    masked, *rest = values
    weights = _bound(equation, [masked.weight, *rest])
    masks = _bound(equation, [masked.mask, *rest])
    return [Masked(weight, mask) for weight, mask in zip(weights, masks, strict=True)]


@RULES.register(*(f"Masked.{name}" for name in VALUES))
def masked_values(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Act on the weight; the mask stays: ``f(where(m, w, 0)) = where(m, f(w), 0)``."""
    (masked,) = values
    return [Masked(weight, masked.mask) for weight in _bound(equation, [masked.weight])]


@RULES.register("Masked.concatenate")
def concatenate(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Join masked weights; declines where a plain array is among them."""
    if not all(isinstance(value, Masked) for value in values):
        return None
    (weight,) = _bound(equation, [value.weight for value in values])
    (mask,) = _bound(equation, [value.mask for value in values])
    return [Masked(weight, mask)]


@RULES.register(*(f"Compressed.{name}" for name in VALUES))
def compressed_values(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Act on the stored values; what is not stored is 0 still."""
    (small,) = values
    return [dataclasses.replace(small, values=out) for out in _bound(equation, [small.values])]
