"""What a model is, as data: operators, parameters, inputs, outputs, cost."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import is_array_type, nbytes
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.flops import Cost, count
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.parity import outputs_of
from jaxinfer.core.program import x64_of
from jaxinfer.core.symbols import bound_text, evaluate


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One leaf of the parameters."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "bytes": self.nbytes,
        }


def parameters(model: Model) -> list[Parameter]:
    """Return the leaves of a model's parameters, in order; an array type is one leaf."""
    return [
        Parameter(name, tuple(leaf.shape), _dtype_text(leaf), nbytes(leaf))
        for name, leaf in named_leaves(model.params).items()
    ]


def _dtype_text(leaf: Any) -> str:
    """Return the dtype of an array; of an array type its number format and what it is."""
    if not is_array_type(leaf):
        return leaf.dtype.name
    inner, name = leaf, None
    while is_array_type(inner) and name is None:
        name = getattr(inner, "format", None)
        inner = getattr(inner, "weight", None)
    return f"{name or np.dtype(leaf.dtype).name} {type(leaf).__name__}"


def stages(model: Model) -> list[str]:
    """Return the stages of transforms that a model has been through, as far as it says so."""
    found = model.provenance.get("stages")
    return [str(stage) for stage in found] if isinstance(found, (list, tuple)) else []


def rewrites(model: Model) -> list[str]:
    """Return each rewrite's kind and arguments, shortened."""
    texts = [json.dumps(rewrite.to_json(), default=str) for rewrite in model.rewrites]
    return [
        f"{rewrite.kind} {text[:117]}..." if len(text) > 120 else f"{rewrite.kind} {text}"
        for rewrite, text in zip(model.rewrites, texts, strict=True)
    ]


def scan_rows(notes: Any) -> list[tuple[str, str]]:
    """Say which layers are scanned, and which are not and why; [] if it was not asked for."""
    if not isinstance(notes, Mapping):
        return []
    rows = [
        ("scanned", f"{run.get('path')}: {run.get('blocks')} blocks of {run.get('nodes')} calls")
        for run in notes.get("scanned", ())
        if isinstance(run, Mapping)
    ]
    return [*rows, *(("not scanned", str(why)) for why in notes.get("declined", ()))]


def operators(model: Model) -> dict[str, int]:
    """Return how often each operator is called, the most frequent first; {} if not a graph."""
    graph = getattr(model.program, "graph", None)
    if graph is None:
        return {}
    return dict(collections.Counter(node.op for node in graph.walk()).most_common())


def constant_bytes(model: Model) -> int:
    """Return the bytes of arrays that belong to the program."""
    return sum(array.nbytes for array in model.program.arrays.values())


def symbol_ranges(model: Model) -> list[str]:
    """Return the ranges of the symbolic sizes as text.

    >>> symbol_ranges.__name__
    'symbol_ranges'
    """
    return [bound_text(name, *bounds) for name, bounds in model.signature.symbols.items()]


def chosen_sizes(model: Model, given: Mapping[str, int]) -> dict[str, int]:
    """Return a value for every symbolic size: what is given, else the smallest from 1 up.

    Raises:
      InputError: names that the model does not have, and sizes outside their range.
    """
    symbols = model.signature.symbols
    known = ", ".join(symbols) or "none"
    problems = [f"{name}: no such size; known: {known}" for name in given if name not in symbols]
    sizes = {}
    for name, (low, high) in symbols.items():
        sizes[name] = given.get(name, max(low, 1))
        if sizes[name] < low or (high is not None and sizes[name] > high):
            problems.append(f"{name} = {sizes[name]} is outside {bound_text(name, low, high)}")
    if problems:
        raise InputError(listing("--size does not fit the model:", problems))
    return sizes


@dataclasses.dataclass(frozen=True)
class Costs:
    """Cost and outputs at one choice of sizes."""

    sizes: Mapping[str, int]
    cost: Cost
    outputs: Mapping[str, Any]


def costs(model: Model, sizes: Mapping[str, int]) -> Costs:
    """Trace the model at the given sizes; nothing is computed.

    Raises:
      InputError: a size of an input is an expression that has no value.
    """
    with x64_scope(x64_of(model.program)):
        return _costs(model, sizes)


def _costs(model: Model, sizes: Mapping[str, int]) -> Costs:
    specs = model.inputs
    avals: list[Any] = []
    for spec in specs:
        if not spec.is_array:
            continue
        shape = [evaluate(dim, sizes) for dim in spec.shape]
        if any(dim is None for dim in shape):
            raise InputError(f"{spec}: a size has no value at {dict(sizes)}; pass --size")
        avals.append(jax.ShapeDtypeStruct(shape, dtypes.canonical(spec.dtype)))

    def run(params: Any, arrays: list[Any], key: Any) -> Any:
        filled = iter(arrays)
        leaves = iter([next(filled) if spec.is_array else spec.value for spec in specs])
        values = [structure.unflatten(leaves) for structure in model.signature.structures]
        key = key if model.program.random else None
        return model.apply(params, *values, rng_key=key)

    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), model.params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    closed, shape = jax.make_jaxpr(run, return_shape=True)(params, avals, key)
    return Costs(sizes, count(closed), outputs_of(model, shape))


def output_texts(model: Model, outputs: Mapping[str, Any]) -> list[str]:
    """Return ``path: dtype[shape]`` of each output, with symbolic sizes where recorded."""
    recorded = _recorded(model)
    texts = []
    for index, (path, aval) in enumerate(outputs.items()):
        shown = f"{aval.dtype.name}[{', '.join(map(str, aval.shape))}]"
        if len(recorded) == len(outputs) and recorded[index] is not None:
            shown = str(recorded[index])
        texts.append(f"{path}: {shown}")
    return texts


def _recorded(model: Model) -> list[Any]:
    """Return what the graph recorded of each result (None: unknown), without absent ones."""
    graph = getattr(model.program, "graph", None)
    if graph is None:
        return []
    avals = {item.name: item.aval for item in graph.inputs}
    avals |= {node.name: node.avals[0] for node in graph.nodes if len(node.avals) == 1}
    results = [result.value for result in graph.results if result.value is not None]
    return [avals.get(getattr(value, "name", "")) for value in results]
