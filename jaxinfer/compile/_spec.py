"""What is compiled: the sizes of every input, which of them have buckets, and their combinations.

A size of an input is a number, or the name of a dimension. A named dimension is either fixed
(``inputs`` gives a number where the model has a name) or bucketed. The user's names need not be
the model's: ``{"x": ("batch", 128)}`` calls the first axis of x "batch", whatever the model does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from jaxinfer.core import dtypes
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.signature import LeafSpec
from jaxinfer.core.symbols import evaluate, is_name

Sizes = Mapping[str, int]


class Spec(NamedTuple):
    """The array inputs of an executable, and the sizes at which it is compiled.

    Attributes:
      leaves: array leaves of the inputs in order, with integers and names for sizes.
      buckets: the sizes of each bucketed dimension, rising.
      low: the least size that each bucketed dimension may have: that of the model; and 1 where
        there is a bucket of 1.
      model_names: the model's own name of each bucketed dimension.
    """

    leaves: tuple[LeafSpec, ...]
    buckets: Mapping[str, tuple[int, ...]]
    low: Mapping[str, int]
    model_names: Mapping[str, str]

    def combinations(self) -> Iterator[dict[str, int]]:
        """Yield the sizes of every executable: each combination of buckets."""
        for sizes in itertools.product(*self.buckets.values()):
            yield dict(zip(self.buckets, sizes, strict=True))

    def structs(self, sizes: Sizes) -> list[jax.ShapeDtypeStruct]:
        """Return shape and dtype of every array input at some sizes."""
        return [
            jax.ShapeDtypeStruct(_shape(leaf, sizes), dtypes.canonical(leaf.dtype))
            for leaf in self.leaves
        ]

    def exact(self, sizes: Sizes) -> tuple[str, ...]:
        """Return the dimensions whose real size cannot but be that of the bucket."""
        found = []
        for name, size in sizes.items():
            smaller = [other for other in self.buckets[name] if other < size]
            least = max([self.low[name], *(other + 1 for other in smaller)])
            if least >= size:
                found.append(name)
        return tuple(found)


def _shape(leaf: LeafSpec, sizes: Sizes) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in leaf.shape)


def resolve(
    model: Model,
    inputs: Mapping[str, Sequence[int | str]] | None,
    buckets: Mapping[str, Sequence[int]] | None,
) -> Spec:
    """Return what to compile.

    Args:
      model: the model; one function, with a known signature.
      inputs: shape by input name (or leaf path): numbers, and names of dimensions. An input
        that is left out has the shape that the model declares.
      buckets: sizes by dimension name.

    Raises:
      InputError: everything that does not fit, at once.
    """
    _require_one_function(model)
    problems: list[str] = []
    given = {name: tuple(shape) for name, shape in (inputs or {}).items()}
    arrays = [leaf for leaf in model.inputs if leaf.is_array]
    known = {leaf.path for leaf in arrays}
    problems += [
        f"inputs: {name}: no such array input; there are {', '.join(sorted(known)) or 'none'}"
        for name in given
        if name not in known
    ]
    names = _Names(model, problems)
    declared = [names.leaf(leaf, given.get(leaf.path)) for leaf in arrays]
    leaves = tuple(names.fixed(leaf) for leaf in declared)
    used = {dim for leaf in leaves for dim in leaf.shape if isinstance(dim, str)}
    sizes = {name: _sizes(name, each, problems) for name, each in (buckets or {}).items()}
    for name in sizes:
        if name not in used:
            have = ", ".join(sorted(used)) or "none is open"
            problems.append(f"buckets: {name}: not a dimension of any input; dimensions: {have}")
    for name in sorted(used - set(sizes)):
        if is_name(name):
            problems.append(
                f"{name}: has no size: give inputs a number for it, or buckets={{{name!r}: [...]}}"
            )
        else:
            problems.append(f"{name}: an expression is not bucketed; fix the sizes in it")
    low = {}
    for name, each in sizes.items():
        bounds = model.signature.symbols.get(names.model_name(name), (0, None))
        # a bucket of 1 holds 1 and not 0: at size 1 axes broadcast, so it says nothing of others
        low[name] = max(bounds[0], 1) if 1 in each else bounds[0]
        high = bounds[1]
        problems += [
            f"buckets: {name}: the model takes {bounds[0]} to {high}, not {size}"
            for size in each
            if high is not None and size > high
        ]
    if problems:
        raise InputError(listing("these sizes cannot be compiled:", problems))
    return Spec(leaves, sizes, low, {name: names.model_name(name) for name in sizes})


def _require_one_function(model: Model) -> None:
    if isinstance(model.program, MultiProgram):
        names = ", ".join(model.components)
        raise InputError(
            f"this model has several functions ({names}); compile one of them: "
            f"ji.compile(model.components[{next(iter(model.components))!r}], ...)"
        )
    if model.signature.open:
        raise InputError(
            "this model was made without example inputs, so the dtypes of its inputs are not "
            "known: give from_function example_inputs"
        )


def _sizes(name: str, sizes: Sequence[int], problems: list[str]) -> tuple[int, ...]:
    each = [sizes] if isinstance(sizes, int) else list(sizes)
    wrong = [size for size in each if type(size) is not int or size < 1]
    if wrong or not each:
        problems.append(f"buckets: {name}: required sizes of 1 or more, got {each}")
        return ()
    if len(set(each)) != len(each):
        problems.append(f"buckets: {name}: sizes that are there twice: {each}")
    return tuple(sorted(set(each)))


class _Names:
    """Matches the user's dimension names with the model's."""

    def __init__(self, model: Model, problems: list[str]):
        self.program, self.problems = model.program, problems
        self.to_user: dict[str, str] = {}
        self.sizes: dict[str, int] = {}

    def model_name(self, user: str) -> str:
        return next((own for own, name in self.to_user.items() if name == user), user)

    def leaf(self, leaf: LeafSpec, given: Sequence[int | str] | None) -> LeafSpec:
        if given is None:
            return leaf
        if len(given) != len(leaf.shape):
            self.problems.append(f"inputs: {leaf}: required {len(leaf.shape)} sizes, got {given}")
            return leaf
        shape = [self._dim(leaf, own, dim) for own, dim in zip(leaf.shape, given, strict=True)]
        return LeafSpec(leaf.path, tuple(shape), leaf.dtype)

    def _dim(self, leaf: LeafSpec, own: int | str, given: int | str) -> int | str:
        number = type(given) is int
        if not number and not (isinstance(given, str) and given.isidentifier()):
            self.problems.append(f"inputs: {leaf}: {given!r} is no size and no name")
        elif isinstance(own, int):
            if number and self.program.fixed and given != own:
                self.problems.append(f"inputs: {leaf}: {own} is fixed in the model, got {given}")
            elif not number and self.program.fixed:
                self.problems.append(
                    f"inputs: {leaf}: {given!r} names a size that is fixed to {own} in the model; "
                    "convert it with that dimension dynamic"
                )
            return given
        elif number:
            if self.sizes.setdefault(own, int(given)) != given and is_name(own):
                self.problems.append(f"inputs: {leaf}: {own} is {self.sizes[own]} and {given}")
        elif is_name(own) and self.to_user.setdefault(own, str(given)) != given:
            both = f"{self.to_user[own]!r} and {given!r}"
            self.problems.append(f"inputs: {leaf}: {own} is one dimension, named {both}")
        return own

    def fixed(self, leaf: LeafSpec) -> LeafSpec:
        """Return a leaf with what is known by now: numbers, and the user's names."""
        shape: list[int | str] = []
        for dim in leaf.shape:
            value = evaluate(dim, self.sizes)
            shape.append(self.to_user.get(str(dim), dim) if value is None else value)
        return LeafSpec(leaf.path, tuple(shape), leaf.dtype)
