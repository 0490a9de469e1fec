"""Sequences and optionals: Python lists of arrays of a known length, and values or None.

Positions are static; a sequence whose length depends on data is refused at conversion.
Source: https://onnx.ai/onnx/operators/onnx__SequenceInsert.html and its kin.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, rule
from jaxinfer_converters.onnx_rules.host import split_sizes
from jaxinfer_converters.onnx_rules.shape import ints

Arrays = Sequence[Array]


@rule("onnx.SequenceConstruct")
def sequence_construct(*xs: Array) -> list[Array]:
    """[x, ...]."""
    return list(xs)


@rule("onnx.SequenceEmpty")
def sequence_empty(*, dtype: Any = None) -> list[Array]:
    """[]."""
    del dtype
    return []


@rule("onnx.SequenceAt")
def sequence_at(xs: Arrays, position: Any) -> Array:
    """xs[position]."""
    return xs[ints(position)[0]]


@rule("onnx.SequenceInsert")
def sequence_insert(xs: Arrays, x: Array, position: Any = None) -> list[Array]:
    """xs with x before position, or at the end."""
    at = len(xs) if position is None else ints(position)[0]
    at = at + len(xs) if at < 0 else at
    return [*xs[:at], x, *xs[at:]]


@rule("onnx.SequenceErase")
def sequence_erase(xs: Arrays, position: Any = None) -> list[Array]:
    """xs without the array at position, or the last."""
    at = (len(xs) - 1 if position is None else ints(position)[0]) % len(xs)
    return [*xs[:at], *xs[at + 1 :]]


@rule("onnx.ConcatFromSequence")
def concat_from_sequence(xs: Arrays, *, axis: int, new_axis: int = 0) -> Array:
    """The arrays one after another along axis, or stacked along a new one."""
    return jnp.stack(xs, axis) if new_axis else jnp.concatenate(xs, axis)


@rule("onnx.SplitToSequence")
def split_to_sequence(
    x: Array, split: Any = None, *, axis: int = 0, keepdims: int = 1
) -> list[Array]:
    """Parts of x along axis: of the given size or sizes, or single slices."""
    axis, size = axis % x.ndim, x.shape[axis]
    if split is None:
        sizes = [1] * size
    elif np.ndim(split) == 0:
        part = ints(split)[0]
        sizes = split_sizes(size, [min(part, size - at) for at in range(0, size, part)], 0)
    else:
        sizes = ints(split)
    ends = np.cumsum([0, *sizes])
    parts = [lax.slice_in_dim(x, int(a), int(b), axis=axis) for a, b in itertools.pairwise(ends)]
    if split is None and not keepdims:
        return [jnp.squeeze(part, axis) for part in parts]
    return parts


@rule("onnx.Optional")
def optional(x: Any = None, *, type: Any = None) -> Any:
    """An optional that holds x, or nothing."""
    del type
    return x


@rule("onnx.OptionalGetElement")
def optional_get_element(x: Any) -> Any:
    """What an optional holds.

    Raises:
      ValueError: it is empty.
    """
    if x is None:
        raise ValueError("the optional is empty")
    return x
