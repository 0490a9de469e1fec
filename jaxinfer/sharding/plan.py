"""ShardingPlan: how every leaf and every input of a model lies on a mesh, and why.

A plan is data: specs by leaf path in the weight's own axes, JSON-able. What it is applied to
may have other leaves at the same paths (quantized, masked): their parts follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinfer.core.array_types import is_array_type
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.leaves import map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.parts import join, split
from jaxinfer.sharding import _specs
from jaxinfer.sharding._pins import pinned
from jaxinfer.sharding._score import Score
from jaxinfer.sharding.mesh import make_mesh


class Row(NamedTuple):
    """One leaf of the parameters, or one input (path ``inputs.NAME``).

    Attributes:
      path, shape, dtype: of the leaf.
      spec: over which mesh axes each of its axes is split.
      bytes: of the leaf, all parts.
      bytes_per_device: of its shard.
      why: where the spec comes from.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    bytes: int
    bytes_per_device: int
    why: str


@dataclasses.dataclass(frozen=True)
class ShardingPlan:
    """How a model lies on a mesh.

    Attributes:
      mesh: the mesh.
      params: spec by leaf path, in the weight's own axes; a path that is not there is whole.
      inputs: spec of each array leaf of the inputs, in order.
      rows: the leaves, with bytes and reasons; after them the inputs.
      strategy: what made it: a strategy (``data+tensor``), ``rules`` or ``logical``.
      candidates: what was compared, the best first.
      notes: what the user should know: rules that match nothing, sizes that do not divide.
      gathered: mesh axes over which a parameter is made whole where it is used, by path.
      closed: parameters whose splits do not spread to what comes after them.
    """

    mesh: Mesh
    params: Mapping[str, PartitionSpec]
    inputs: tuple[PartitionSpec, ...]
    rows: tuple[Row, ...] = ()
    strategy: str = ""
    candidates: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()
    gathered: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    closed: tuple[str, ...] = ()

    def run(self, model: Model) -> Callable[..., Any]:
        """Return the model's flat function ``run(params, leaves, rng_key=None)`` for this plan.

        The same numbers as without it; XLA is told what to gather and what not to spread
        (``_pins``), which saves communication. To be jitted with ``param_shardings`` and
        ``input_shardings``.
        """
        return self.pin(model._run())

    def pin(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a flat function ``run(params, leaves, rng_key=None)`` with the plan's pins.

        Args:
          run: of the model that the plan is for, also padded to a bucket: any function of its
            parameters. It may close over values that are being traced.
        """
        specs = (self.mesh, self.params, self.inputs, self.gathered, self.closed)
        return pinned(run, *specs)

    def param_shardings(self, params: Any) -> dict[str, NamedSharding]:
        """Return the sharding of every array among the parameters.

        Args:
          params: arrays, ``jax.ShapeDtypeStruct``, or array types of either.

        Returns:
          By the names of ``core.parts.split``: ``w``, or ``w.qvalue`` and ``w.scale``.

        Raises:
          InputError: parts that the specs do not fit; all at once.
        """
        found: dict[str, NamedSharding] = {}
        problems: list[str] = []
        for path, leaf in named_leaves(params).items():
            spec = self.params.get(path, PartitionSpec())
            problems += _specs.faults(path, leaf, spec, self.mesh)
            if not problems:
                for name, own in _specs.part_specs(path, leaf, spec).items():
                    found[name] = NamedSharding(self.mesh, own)
        if problems:
            raise InputError(listing("the plan does not fit the parameters:", problems))
        return found

    def input_shardings(self, inputs: Sequence[Any] | None = None) -> list[NamedSharding]:
        """Return the sharding of each array leaf of the inputs.

        Args:
          inputs: arrays or shapes of one call: an axis that does not divide at these sizes (a
            batch of 1 over two devices) is kept whole. By default the plan's specs as they are.
        """
        specs = list(self.inputs)
        if inputs is not None:
            specs = [
                _specs.trimmed(
                    [
                        entry if size % _specs.shards(entry, self.mesh) == 0 else None
                        for size, entry in zip(given.shape, spec, strict=False)
                    ]
                )
                for given, spec in zip(inputs, specs, strict=True)
            ]
        return [NamedSharding(self.mesh, spec) for spec in specs]

    def place(self, model: Model) -> Model:
        """Return the model with every part on its devices.

        On a mesh that spans processes every process must hold the whole of each array, and
        keeps its own shards.

        Raises:
          InputError: parts that the specs do not fit; all at once.

        Cost: one copy of each shard; the arrays that came in are not freed.
        """
        shardings = self.param_shardings(model.params)
        arrays, types = split(named_leaves(model.params))
        placed = {name: put(array, shardings[name]) for name, array in arrays.items()}
        whole = join(placed, types)
        return model.replace(params=map_leaves(lambda path, _: whole[path], model.params))

    @property
    def bytes_per_device(self) -> int:
        """Bytes of the parameters on one device."""
        return sum(r.bytes_per_device for r in self.rows if not r.path.startswith("inputs."))

    @property
    def bytes(self) -> int:
        """Bytes of the parameters, unsharded."""
        return sum(row.bytes for row in self.rows if not row.path.startswith("inputs."))

    def table(self) -> str:
        """Return leaf, shape, spec, bytes per device and reason as text, one leaf a line."""
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        head = (
            f"{self.strategy} on {axes}: {self.bytes_per_device:,} of {self.bytes:,} bytes "
            "of parameters on each device"
        )
        cells = [("leaf", "shape", "spec", "bytes/device", "why")]
        cells += [
            (r.path, str(list(r.shape)), text(r.spec), f"{r.bytes_per_device:,}", r.why)
            for r in self.rows
        ]
        widths = [max(len(cell[i]) for cell in cells) for i in range(4)]
        lines = [
            "  ".join(
                [*(c.ljust(w) for c, w in zip(row[:4], widths, strict=True)), row[4]]
            ).rstrip()
            for row in cells
        ]
        return "\n".join([head, *lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; the devices are not in it, only the axes."""
        return {
            "axes": {name: int(size) for name, size in self.mesh.shape.items()},
            "strategy": self.strategy,
            "params": {path: _specs.to_lists(spec) for path, spec in self.params.items()},
            "inputs": [_specs.to_lists(spec) for spec in self.inputs],
            "rows": [
                {**row._asdict(), "shape": list(row.shape), "spec": _specs.to_lists(row.spec)}
                for row in self.rows
            ],
            "candidates": [score.to_json() for score in self.candidates],
            "notes": list(self.notes),
            "gathered": {path: list(names) for path, names in self.gathered.items()},
            "closed": list(self.closed),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], mesh: Any = None) -> ShardingPlan:
        """Rebuild a plan.

        Args:
          data: of ``to_json``.
          mesh: by default one of the plan's axes, over this machine's devices.

        Raises:
          InputError: data that ``to_json`` does not give, a mesh that cannot be made, or one
            with other axes.
        """
        try:
            axes = {str(name): int(size) for name, size in data["axes"].items()}
            rows = tuple(
                Row(
                    *(str(r["path"]), tuple(map(int, r["shape"])), str(r["dtype"])),
                    *(_specs.from_lists(r["spec"]), int(r["bytes"])),
                    *(int(r["bytes_per_device"]), str(r["why"])),
                )
                for r in data["rows"]
            )
            parts = (
                {str(path): _specs.from_lists(spec) for path, spec in data["params"].items()},
                tuple(map(_specs.from_lists, data["inputs"])),
                rows,
                str(data["strategy"]),
                tuple(map(Score.from_json, data["candidates"])),
                tuple(map(str, data["notes"])),
                {str(path): tuple(map(str, n)) for path, n in data["gathered"].items()},
                tuple(map(str, data["closed"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"no sharding plan: {type(error).__name__}: {error}") from error
        made = make_mesh(axes if mesh is None else mesh)
        if dict(made.shape) != axes:
            raise InputError(f"the plan is for a mesh {axes}, got {dict(made.shape)}")
        return cls(made, *parts)


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """Return an array on the devices of a sharding; a process gives its own shards."""
    if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def text(spec: PartitionSpec) -> str:
    """Return a spec for people.

    >>> text(PartitionSpec(None, "model")), text(PartitionSpec(("data", "seq")))
    ('(-, model)', '(data*seq)')
    """
    if not any(_specs.axes_of(entry) for entry in spec):
        return "whole"
    return f"({', '.join('*'.join(_specs.axes_of(entry)) or '-' for entry in spec)})"


def rows_of(
    leaves: Mapping[str, Any],
    specs: Mapping[str, PartitionSpec],
    why: Mapping[str, str],
    mesh: Mesh,
) -> list[Row]:
    """Return one row for each leaf."""
    return [
        Row(
            path,
            tuple(map(int, leaf.shape)),
            _kind(leaf),
            spec := specs.get(path, PartitionSpec()),
            _specs.total_bytes({path: leaf}),
            _specs.bytes_per_device(path, leaf, spec, mesh),
            why.get(path, ""),
        )
        for path, leaf in leaves.items()
    ]


def _kind(leaf: Any) -> str:
    name = np.dtype(leaf.dtype).name if not is_array_type(leaf) else str(leaf.dtype)
    return f"{type(leaf).__name__} {name}" if is_array_type(leaf) else name
