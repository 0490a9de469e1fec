"""Sizes of an export: numbers, and dimensions that stay open within the model's ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.export

from jaxinfer.compile._spec import _Names
from jaxinfer.core import dtypes
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.signature import LeafSpec
from jaxinfer.core.symbols import Dim, evaluate

_NAME = re.compile(r"[A-Za-z_]\w*")


class Sizes(NamedTuple):
    """The array inputs of one function, and which of their sizes stay open.

    Attributes:
      leaves: the array leaves in order: numbers, and expressions of the open sizes.
      ranges: (low, high) of each open size; high None is unbounded. JAX has none below 1.
      examples: a number for each open size, to find out which one is in the way.
    """

    leaves: tuple[LeafSpec, ...]
    ranges: Mapping[str, tuple[int, int | None]]
    examples: Mapping[str, int]

    @property
    def dynamic(self) -> tuple[str, ...]:
        """The open sizes."""
        return tuple(self.ranges)

    def structs(self, names: Sequence[str] | None = None) -> list[jax.ShapeDtypeStruct]:
        """Return shape and dtype of every input, with some (None: all) sizes left open."""
        free = [name for name in self.ranges if names is None or name in names]
        bounds = []
        for name in free:
            low, high = self.ranges[name]
            bounds += [f"{name} >= {low}"] if low > 1 else []
            bounds += [f"{name} <= {high}"] if high is not None else []
        scope = jax.export.SymbolicScope(bounds)
        fixed = {name: n for name, n in self.examples.items() if name not in free}
        found = []
        for leaf in self.leaves:
            dims = [substituted(dim, fixed) for dim in leaf.shape]
            if any(isinstance(dim, str) for dim in dims):
                shape = jax.export.symbolic_shape(f"({', '.join(map(str, dims))},)", scope=scope)
            else:
                shape = tuple(dims)
            found.append(jax.ShapeDtypeStruct(shape, dtypes.canonical(leaf.dtype)))  # pyright: ignore[reportArgumentType]
        return found


def substituted(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """Return a size with numbers for some names.

    >>> substituted("2*seq + batch", {"batch": 3}), substituted("2*seq", {"seq": 4})
    ('2*seq + 3', 8)
    """
    if not isinstance(dim, str):
        return dim
    value = evaluate(dim, sizes)
    if value is not None:
        return value
    return _NAME.sub(lambda found: str(sizes.get(found[0], found[0])), dim)


def names_in(dim: Dim) -> set[str]:
    """Return the names in a size.

    >>> sorted(names_in("2*seq + Max(1, batch)"))
    ['batch', 'seq']
    """
    if not isinstance(dim, str):
        return set()
    return {name for name in _NAME.findall(dim) if not re.search(rf"\b{name}\(", dim)}


def resolve(
    parts: Mapping[str, Model],
    dynamic: Sequence[str],
    inputs: Mapping[str, Sequence[int | str]] | None,
    sizes: Mapping[str, int] | None,
    problems: list[str],
) -> dict[str, Sizes]:
    """Return the sizes of every function.

    Args:
      parts: the functions by name.
      dynamic, inputs, sizes: as ``export`` takes them.
      problems: what was found before; all are raised together.

    Raises:
      InputError: everything that does not fit.
    """
    given = {name: tuple(shape) for name, shape in (inputs or {}).items()}
    numbers = dict(sizes or {})
    problems += [
        f"sizes: {name}: required a number from 0 on, got {size!r}"
        for name, size in numbers.items()
        if type(size) is not int or size < 0
    ]
    problems += [
        f"dynamic: {name}: has a number too ({numbers[name]}); give one of the two"
        for name in dynamic
        if name in numbers
    ]
    found: dict[str, Sizes] = {}
    known_inputs: dict[str, None] = {}
    known_sizes: dict[str, None] = {}
    open_sizes: dict[str, None] = {}
    for component, model in parts.items():
        if model.signature.open:
            problems.append(
                f"{component}: was made without example inputs: give from_function example_inputs"
            )
            continue
        arrays = [leaf for leaf in model.inputs if leaf.is_array]
        known_inputs |= dict.fromkeys(leaf.path for leaf in arrays)
        names = _Names(model, problems)
        declared = [names.leaf(leaf, given.get(leaf.path)) for leaf in arrays]
        leaves = [names.fixed(leaf) for leaf in declared]
        used = {name: None for leaf in leaves for dim in leaf.shape for name in names_in(dim)}
        known_sizes |= used
        leaves = [
            LeafSpec(leaf.path, tuple(substituted(dim, numbers) for dim in leaf.shape), leaf.dtype)
            for leaf in leaves
        ]
        left = {name: None for leaf in leaves for dim in leaf.shape for name in names_in(dim)}
        open_sizes |= left
        ranges: dict[str, tuple[int, int | None]] = {}
        for name in used:
            low, high = model.signature.symbols.get(names.model_name(name), (1, None))
            size = numbers.get(name)
            if type(size) is int and (size < low or (high is not None and size > high)):
                problems.append(f"sizes: {name}: the model takes {low} to {high}, not {size}")
            if name in left and name in dynamic:
                ranges[name] = (max(low, 1), high)
        found[component] = Sizes(tuple(leaves), ranges, _examples(ranges))
    problems += [
        f"inputs: {name}: no such array input; there are {', '.join(known_inputs) or 'none'}"
        for name in given
        if name not in known_inputs
    ]
    have = ", ".join(known_sizes) or "none: name them by inputs={'x': ('batch', ...)}"
    problems += [
        f"dynamic: {name}: not an open size of any input; open: {have}"
        for name in dynamic
        if name not in open_sizes and name not in numbers
    ]
    problems += [
        f"sizes: {name}: not a dimension of any input; dimensions: {have}"
        for name in numbers
        if name not in known_sizes
    ]
    problems += [
        f"{name}: has no size: name it in dynamic, or give it a number (sizes={{{name!r}: ...}})"
        for name in open_sizes
        if name not in dynamic
    ]
    if problems:
        raise InputError(listing("this cannot be exported as asked:", problems))
    return found


def _examples(ranges: Mapping[str, tuple[int, int | None]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, (low, high) in ranges.items():
        size = max(low, 2) if high is None or high >= 2 else low
        while size in found.values() and (high is None or size < high):
            size += 1
        found[name] = size
    return found
