"""The inputs of a pipeline: which axis of each is the batch, and the sizes of all others.

A batch is cut into micro-batches along one symbolic size; every other size is a number, for an
executable has one shape. What the user declares overrides what the model's signature says, and
a size that one input fixes (``seq = 128``) holds for every input that bears its name.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxinfer.core import dtypes
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.signature import LeafSpec
from jaxinfer.core.symbols import Dim, bound_text, evaluate, is_name, solve


class Inputs(NamedTuple):
    """The leaves of a model's inputs with one symbol left, the batch.

    Attributes:
      symbol: name of the batch.
      leaves: every leaf; dims are integers, or ``symbol``.
      bounds: of the batch, as the model declares them; high None is unbounded.
    """

    symbol: str
    leaves: tuple[LeafSpec, ...]
    bounds: tuple[int, int | None]

    @property
    def arrays(self) -> tuple[LeafSpec, ...]:
        """The leaves that are arrays."""
        return tuple(leaf for leaf in self.leaves if leaf.is_array)

    @property
    def axes(self) -> tuple[int | None, ...]:
        """For every array, which axis is the batch."""
        return tuple(
            leaf.shape.index(self.symbol) if self.symbol in leaf.shape else None
            for leaf in self.arrays
        )

    def structs(self, size: int) -> list[jax.ShapeDtypeStruct]:
        """Return the arrays' shapes and dtypes at one size of the batch."""
        return [
            jax.ShapeDtypeStruct(
                tuple(size if dim == self.symbol else int(dim) for dim in leaf.shape),
                dtypes.canonical(leaf.dtype),
            )
            for leaf in self.arrays
        ]


def resolve(
    model: Model, declared: Mapping[str, Any] | Sequence[Any] | None, batch: str | None
) -> Inputs:
    """Return the inputs with everything but the batch fixed.

    Args:
      model: with example inputs.
      declared: shapes by path of the leaf, or for every array leaf in order; a shape is a
        tuple of integers and names, or an array. None: as the model's signature has them.
      batch: name of the batch; by default ``"batch"``, or the only symbolic size.

    Raises:
      InputError: unknown paths, other ranks, sizes that contradict each other or have no
        value, no batch; all at once where they do not follow from each other.
    """
    signature = model.signature
    if signature.open:
        raise InputError(
            "pipeline: this model was made without example inputs: give from_function "
            "example_inputs, so that names, ranks and dtypes are known"
        )
    arrays = [leaf for leaf in signature.leaves if leaf.is_array]
    shapes, problems = _declared(arrays, declared)
    sizes: dict[str, int] = {}
    alias: dict[str, str] = {}
    fixed = model.program.fixed
    for leaf in arrays:
        for axis, (own, dim) in enumerate(
            zip(leaf.shape, shapes.get(leaf.path, leaf.shape), strict=True)
        ):
            problems += _bind(leaf, axis, own, dim, fixed, sizes, alias)
    found: dict[str, tuple[Dim, ...]] = {}
    for leaf in arrays:
        given = shapes.get(leaf.path) if not fixed else None
        dims = leaf.shape if given is None else given
        found[leaf.path] = tuple(_value(dim, sizes, alias) for dim in dims)
    if problems:
        raise InputError(listing("pipeline: the declared inputs do not fit:", problems))
    names = sorted({name for dims in found.values() for dim in dims for name in _names(dim)})
    symbol = _symbol(names, batch, arrays)
    problems = [
        f"{path}: axis {axis} is {dim}; required a number"
        + (f", or {symbol} itself" if symbol in _names(dim) else "")
        for path, dims in found.items()
        for axis, dim in enumerate(dims)
        if isinstance(dim, str) and dim != symbol
    ]
    problems += [
        f"{path}: {symbol} is on more than one axis of [{', '.join(map(str, dims))}]"
        for path, dims in found.items()
        if dims.count(symbol) > 1
    ]
    if problems:
        advice = f"Declare the sizes, for example {_example(arrays, symbol)}."
        title = "pipeline: an executable has one shape, apart from the batch:"
        raise InputError(listing(title, problems, advice))
    leaves = tuple(
        dataclasses.replace(leaf, shape=found[leaf.path]) if leaf.is_array else leaf
        for leaf in signature.leaves
    )
    original = next((own for own, new in alias.items() if new == symbol), symbol)
    return Inputs(symbol, leaves, signature.symbols.get(original, (0, None)))


def check_microbatch(inputs: Inputs, microbatch: int) -> None:
    """Raise InputError unless micro-batches may have that many rows."""
    if isinstance(microbatch, bool) or not isinstance(microbatch, int) or microbatch < 1:
        raise InputError(f"pipeline: microbatch must be an integer of 1 or more, got {microbatch}")
    low, high = inputs.bounds
    if microbatch < low or (high is not None and microbatch > high):
        raise InputError(
            f"pipeline: microbatch={microbatch} is outside the sizes that the model takes "
            f"({bound_text(inputs.symbol, low, high)})"
        )


def _declared(
    arrays: Sequence[LeafSpec], declared: Mapping[str, Any] | Sequence[Any] | None
) -> tuple[dict[str, tuple[Dim, ...]], list[str]]:
    if declared is None:
        return {}, []
    paths = [leaf.path for leaf in arrays]
    if not isinstance(declared, Mapping):
        if len(declared) != len(paths):
            return {}, [f"required {len(paths)} shapes ({', '.join(paths)}), got {len(declared)}"]
        declared = dict(zip(paths, declared, strict=True))
    problems = [f"{name}: no such input" for name in declared if name not in paths]
    shapes: dict[str, tuple[Dim, ...]] = {}
    for leaf in arrays:
        if leaf.path not in declared:
            continue
        shape = tuple(getattr(declared[leaf.path], "shape", declared[leaf.path]))
        bad = [dim for dim in shape if not (is_name(dim) or (isinstance(dim, int) and dim >= 0))]
        if bad:
            problems.append(f"{leaf.path}: sizes are numbers and names, got {bad[0]!r}")
        elif len(shape) != len(leaf.shape):
            problems.append(f"{leaf}: declared with rank {len(shape)}")
        else:
            shapes[leaf.path] = shape
    if problems:
        problems.append(f"the model takes: {'; '.join(map(str, arrays))}")
    return shapes, problems


def _bind(
    leaf: LeafSpec,
    axis: int,
    own: Dim,
    dim: Dim,
    fixed: bool,
    sizes: dict[str, int],
    alias: dict[str, str],
) -> list[str]:
    """Take what one declared dim says of the signature's symbols; returns what is wrong."""
    if not fixed or own == dim:
        return []
    where = f"{leaf}: axis {axis}"
    if isinstance(own, int):
        return [f"{where} is fixed to {own}, got {dim}; convert again with that axis dynamic"]
    if isinstance(dim, str):
        if not is_name(own):
            return [f"{where} is {own}, got {dim}"]
        if alias.setdefault(own, dim) != dim:
            return [f"{where}: {own} is called {alias[own]} and {dim}"]
        return []
    for name, value in solve(own, dim, sizes).items():
        sizes[name] = value
    if (value := evaluate(own, sizes)) is not None and value != dim:
        return [f"{where}: {own} is {value} by another input, got {dim}"]
    return []


def _value(dim: Dim, sizes: Mapping[str, int], alias: Mapping[str, str]) -> Dim:
    value = evaluate(dim, sizes)
    return alias.get(str(dim), dim) if value is None else value


def _names(dim: Dim) -> set[str]:
    if isinstance(dim, int):
        return set()
    nodes = ast.walk(ast.parse(dim, mode="eval"))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _symbol(names: Sequence[str], batch: str | None, arrays: Sequence[LeafSpec]) -> str:
    if batch is not None and batch in names:
        return batch
    if batch is None and ("batch" in names or len(names) == 1):
        return "batch" if "batch" in names else names[0]
    if batch is None and not names:
        raise InputError(
            "pipeline: no input has a symbolic size to cut into micro-batches; "
            f"declare it: {_example(arrays, 'batch')}"
        )
    known = ", ".join(names) or "none"
    what = "several sizes are symbolic" if batch is None else f"no size is called {batch!r}"
    raise InputError(f"pipeline: {what} (symbolic: {known}); name the batch: batch=...")


def _example(arrays: Sequence[LeafSpec], symbol: str) -> str:
    if not arrays:
        return "a model without array inputs has no batch"
    leaf = arrays[0]
    dims = [dim if isinstance(dim, int) else 128 for dim in leaf.shape[1:]]
    return f"inputs={{{leaf.path!r}: {(symbol, *dims)!r}}}"
