"""What automatic partitioning knows of a model: its dimensions, its sites, its inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import nbytes
from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.provenance import Obstacle, Site, by_path
from jaxinfer.core.symbols import is_name
from jaxinfer.core.trace import example_sizes, input_structs, trace
from jaxinfer.sharding._auto_dimensions import Dimension, dimensions
from jaxinfer.sharding._auto_factors import Factor, lead
from jaxinfer.sharding._auto_flow import Flow

_BATCH, _SEQUENCE = (
    ("batch", "batch_size", "b", "n"),
    ("sequence", "seq", "length", "tokens", "t", "s"),
)


@dataclasses.dataclass(frozen=True)
class InputAxis:
    """An axis of an input: component, index among its array leaves, axis."""

    component: int
    index: int
    axis: int


@dataclasses.dataclass
class Reading:
    """A model at one choice of sizes.

    Attributes:
      leaves: the parameters by path.
      flow, dimensions: of all components together.
      sites, obstacles: of each parameter.
      components: names, in order.
      given: leaves of the inputs of each component, arrays as shapes.
      names: paths of the array inputs of each component.
      batch, sequence: axes of inputs that are the batch, and the sequence.
      sizes: the sizes that were chosen by name.
    """

    leaves: dict[str, Any]
    flow: Flow
    dimensions: dict[Factor, Dimension]
    sites: dict[str, list[Site]]
    obstacles: dict[str, list[Obstacle]]
    components: tuple[str, ...]
    given: list[list[Any]]
    names: list[list[str]]
    batch: list[InputAxis]
    sequence: list[InputAxis]
    sizes: dict[str, int]

    def arrays(self, component: int) -> list[Any]:
        """Return shapes of the array inputs of a component."""
        return [v for v in self.given[component] if hasattr(v, "dtype")]

    def bytes(self, paths: Sequence[str]) -> int:
        """Return the bytes of some leaves."""
        return sum(nbytes(self.leaves[path]) for path in dict.fromkeys(paths))

    @property
    def total(self) -> int:
        """Bytes of all leaves."""
        return sum(map(nbytes, self.leaves.values()))

    def stacked(self, path: str) -> bool:
        """Return whether the first axis of a leaf is the layers of a scan."""
        if not self.leaves[path].shape:
            return False
        factor = self.leading(path, 0)
        return factor is not None and "scan" in self.dimensions[factor].kinds

    def windows(self, path: str) -> set[int]:
        """Return the axes of a leaf that are the window of a convolution.

        They are never split: XLA's partitioner then sums over devices that hold the same
        (transpose, then such a convolution, on a mesh with another axis beside: 2 or 4 times
        the result; jax 0.10.1 and 0.11.2, CPU).
        """
        return {axis for site in self.sites.get(path, ()) for axis in site.windows}

    def flops(self, path: str) -> list[int]:
        """Return the FLOPs of each product with a parameter, two for a multiply-add."""
        shape = self.leaves[path].shape
        found = []
        for products in self.flow.products:
            for use in products.values():
                if use.path == path and (sites := self.sites.get(path)):
                    summed = math.prod(shape[a] for a in sites[0].contracting)
                    itemsize = max(use.operand_bytes // max(math.prod(shape), 1), 1)
                    found.append(2 * summed * use.bytes // itemsize if sites[0].contracting else 0)
        return found

    def leading(self, path: str, axis: int) -> Factor | None:
        """Return the dimension that an axis of a parameter is split along."""
        axes = self.flow.params.get(path)
        return lead(axes[axis]) if axes else None


def read(
    model: Model,
    mesh: Mesh,
    sizes: Mapping[str, int] | None,
    inputs: Sequence[Any] | None,
) -> Reading:
    """Trace a model and find its dimensions; no memory for arrays.

    Raises:
      InputError: inputs for a model of several components, a size that the model does not have,
        or another number of inputs than it takes.
    """
    parts = model.components
    if inputs is not None and len(parts) > 1:
        raise InputError(
            f"inputs: the model has components {', '.join(parts)}, each with its own inputs; "
            "give sizes"
        )
    flow = Flow()
    names, given, chosen = [], [], {}
    traced = []
    for part in parts.values():
        with x64_scope(x64_of(part.program)):
            own, at = _inputs(part, mesh, sizes, inputs)
        chosen |= at
        given.append(own)
        names.append([spec.path for spec in part.inputs if spec.is_array])
        if part.signature.open:
            names[-1] = [f"x{i}" for i in range(len(own))]
        (one,) = trace(part, own)
        traced.append(one)
        flow.add(one.jaxpr, one.paths)
    unknown = sorted(
        set(sizes or ()) - {s for part in parts.values() for s in part.signature.symbols}
    )
    if unknown:
        known = sorted({s for part in parts.values() for s in part.signature.symbols})
        raise InputError(f"sizes: no such size {unknown}; the model has {known or 'none'}")
    sites: dict[str, list[Site]] = {}
    obstacles: dict[str, list[Obstacle]] = {}
    for one in traced:
        for path, (found, blocked) in by_path(one.uses).items():
            if found:
                sites.setdefault(path, []).extend(found)
            obstacles.setdefault(path, []).extend(blocked)
    made = Reading(
        *(named_leaves(model.params), flow, dimensions(flow), sites, obstacles),
        *(tuple(parts), given, names, [], [], chosen),
    )
    for number, part in enumerate(parts.values()):
        batch, sequence = _roles(made, number, part)
        made.batch += batch
        made.sequence += sequence
    return made


def _inputs(
    model: Model, mesh: Mesh, sizes: Mapping[str, int] | None, inputs: Sequence[Any] | None
) -> tuple[list[Any], dict[str, int]]:
    if inputs is None:
        chosen = {**scoring_sizes(model, mesh), **(sizes or {})}
        own = {name: size for name, size in chosen.items() if name in model.signature.symbols}
        return input_structs(model, own), own
    arrays = [v for v in inputs if hasattr(v, "dtype")]
    specs = model.inputs
    if model.signature.open:
        return arrays, {}
    wanted = sum(spec.is_array for spec in specs)
    if len(arrays) != wanted:
        raise InputError(f"inputs: required {wanted} arrays or shapes, got {len(arrays)}")
    filled = iter(arrays)
    full = [next(filled) if spec.is_array else spec.value for spec in specs]
    if model.program.fixed:
        return full, dict(model.signature.bind_sizes(full))
    return full, {}


def scoring_sizes(model: Model, mesh: Mesh) -> dict[str, int]:
    """Return the symbolic sizes at which candidates are compared, where none are given.

    The batch is the number of devices, any other size 128 or what the model takes at most;
    both multiples of the number of devices where the range allows it.
    """
    found = {}
    small = example_sizes(model)
    for name, (low, high) in model.signature.symbols.items():
        devices = math.prod(mesh.shape.values())
        wanted = devices if _matches(name, _BATCH) else max(128 // devices, 1) * devices
        if high is not None and wanted > high:
            wanted = max(high // devices * devices, small[name])
        found[name] = max(wanted, low)
    return found


def _matches(name: str, words: Sequence[str]) -> bool:
    return name.lower().rstrip("0123456789_") in words


def _roles(reading: Reading, number: int, model: Model) -> tuple[list[InputAxis], list[InputAxis]]:
    """Return which axes of a component's inputs are the batch, and which the sequence.

    By the names of symbolic sizes; without names, the first axis of the first input is the
    batch, and the second axis is the sequence if that input has two or three axes. Axes of
    other inputs follow that are the same dimension of the program, the same symbol, or (the
    batch, without names) first axes of that size.
    """
    shapes: list[tuple[Any, ...]] = [spec.shape for spec in model.inputs if spec.is_array]
    arrays = reading.arrays(number)
    if len(shapes) != len(arrays):
        shapes = [tuple(v.shape) for v in arrays]
    places = [(i, a) for i, shape in enumerate(shapes) for a in range(len(shape))]
    found: list[list[tuple[int, int]]] = []
    for words in (_BATCH, _SEQUENCE):
        at = [
            p
            for p in places
            if is_name(shapes[p[0]][p[1]]) and _matches(str(shapes[p[0]][p[1]]), words)
        ]
        found.append(at)
    named = any(is_name(dim) for shape in shapes for dim in shape)
    ranked = [i for i, shape in enumerate(shapes) if shape]
    if ranked and not found[0] and not named:
        first, size = ranked[0], arrays[ranked[0]].shape[0]
        found[0] = [(i, 0) for i in ranked if arrays[i].shape[0] == size]
        if not found[1] and len(shapes[first]) in (2, 3):
            found[1] = [(first, 1)]
    return tuple([_follow(reading, number, at) for at in found])  # pyright: ignore[reportReturnType]


def _follow(reading: Reading, number: int, places: Sequence[tuple[int, int]]) -> list[InputAxis]:
    axes = reading.flow.inputs[number]
    classes = {lead(axes[i][a]) for i, a in places} - {None}
    same = [
        (i, a) for i, own in enumerate(axes) for a in range(len(own)) if lead(own[a]) in classes
    ]
    return [InputAxis(number, i, a) for i, a in dict.fromkeys([*places, *same])]
