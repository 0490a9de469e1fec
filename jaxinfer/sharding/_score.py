"""What a sharding costs: bytes per device, communication in the compiled HLO, one number to rank.

    memory   = arguments + results + temporaries of one device, as the compiled program states them
    traffic  = arguments + results + 2 * temporaries            each read or written once
    cost     = traffic + LINK * wire + FLOPs / INTENSITY        in bytes of memory traffic

    wire     = bytes that a device sends (core/hlo.py; loops in full)
    LINK     = 8     bytes of memory traffic in the time of one byte between devices
    INTENSITY = 128  FLOPs in the time of one byte of memory traffic

What fits the memory of a device comes before what does not; then the smaller cost; then the
smaller memory; then the name. Nothing fits: the smaller memory first. LINK and INTENSITY are of
the order of today's accelerators (H100: 3.35 TB/s of memory, 0.45 TB/s of NVLink one way,
about 200-300 bfloat16 FLOPs a byte; TPU v5e: 0.82 TB/s, 0.2 TB/s of links, 240). The cost is an
order, not a time: it knows no latencies, no overlap and no topology.

Without compiling only the bytes of parameters and inputs are known: ``memory`` and ``traffic``
are those, communication and FLOPs 0, and the order is by bytes.

FLOPs are XLA's own count for one device, which sees the body of a loop once.

Sources: https://docs.jax.dev/en/latest/aot.html; the roofline model: S. Williams, A. Waterman,
D. Patterson, Roofline, 2009, https://doi.org/10.1145/1498765.1498785; published figures of
https://www.nvidia.com/en-us/data-center/h100/ and https://cloud.google.com/tpu/docs/v5e.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.hlo import Collective, communication
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.leaves import map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.parts import join, split
from jaxinfer.core.program import x64_of

LINK = 8.0
INTENSITY = 128.0


@dataclasses.dataclass(frozen=True)
class Score:
    """One candidate with its numbers, of one device and one run.

    Attributes:
      strategy: its name.
      param_bytes: of the parameters.
      argument_bytes, output_bytes, temp_bytes: as compiled (else inputs and parameters alone).
      wire_bytes: sent to other devices.
      collectives: by kind, with bytes and counts.
      flops: by XLA's count.
      compiled: whether these are of a compiled program.
      available: bytes of memory of a device, 0 if it is not known.
      problem: why it cannot be used; empty if it can.
      unknown_loops: loops with communication whose trip count is data: counted as one trip.
    """

    strategy: str
    param_bytes: int = 0
    argument_bytes: int = 0
    output_bytes: int = 0
    temp_bytes: int = 0
    wire_bytes: int = 0
    collectives: tuple[Collective, ...] = ()
    flops: float = 0.0
    compiled: bool = False
    available: int = 0
    problem: str = ""
    unknown_loops: int = 0

    @property
    def memory(self) -> int:
        """Bytes that the device holds."""
        return self.argument_bytes + self.output_bytes + self.temp_bytes

    @property
    def fits(self) -> bool:
        """Whether the device has that many; True where it is not known."""
        return not self.available or self.memory <= self.available

    @property
    def cost(self) -> float:
        """The number to rank by, in bytes of memory traffic."""
        traffic = self.memory + self.temp_bytes
        return traffic + LINK * self.wire_bytes + self.flops / INTENSITY

    @property
    def key(self) -> tuple[Any, ...]:
        """What candidates are sorted by."""
        first = (bool(self.problem), not self.fits)
        if not self.fits:
            return (*first, float(self.memory), self.cost, self.strategy)
        return (*first, self.cost, float(self.memory), self.strategy)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        data = dataclasses.asdict(self)
        data["collectives"] = [each._asdict() for each in self.collectives]
        return data | {"memory": self.memory, "cost": self.cost, "fits": self.fits}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Score:
        """Inverse of ``to_json``."""
        names = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in data.items() if name in names}
        kept = [
            Collective(each["kind"], each["bytes"], each["count"]) for each in given["collectives"]
        ]
        return cls(**{**given, "collectives": tuple(kept)})


def flat(model: Model, inputs: Sequence[Any], run: Any) -> Any:
    """Return ``fn(arrays, inputs, key) -> results``: arrays by part name, then array leaves."""
    _, types = split(named_leaves(model.params))

    def fn(arrays: Mapping[str, Any], given: Sequence[Any], key: Any) -> list[Any]:
        whole = join(arrays, types)
        filled = iter(given)
        full = [next(filled) if hasattr(v, "dtype") else v for v in inputs]
        params = map_leaves(lambda path, _: whole[path], model.params)
        return jax.tree.leaves(run(params, full, key))

    return fn


def compiled(
    model: Model,
    inputs: Sequence[Any],
    param_shardings: Mapping[str, NamedSharding],
    input_shardings: Sequence[NamedSharding],
    run: Any,
) -> Any:
    """Compile a model on shapes with shardings; no weights are needed.

    Args:
      model: a model, its leaves arrays or shapes.
      inputs: leaves of its inputs at concrete sizes.
      param_shardings: by part name.
      input_shardings: one for each array among the inputs.
      run: its flat function.
    """
    arrays, _ = split(named_leaves(model.params))
    given = [v for v in inputs if hasattr(v, "dtype")]

    def struct(value: Any, sharding: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    avals = {name: struct(array, param_shardings[name]) for name, array in arrays.items()}
    shapes = [struct(v, s) for v, s in zip(given, input_shardings, strict=True)]
    with x64_scope(x64_of(model.program)):
        key = jax.eval_shape(lambda: jax.random.key(0)) if model.program.random else None
        return jax.jit(flat(model, inputs, run)).lower(avals, shapes, key).compile()


def score(
    strategy: str,
    programs: Sequence[Any],
    param_bytes: int,
    input_bytes: int,
    available: int,
) -> Score:
    """Return the numbers of compiled programs that share parameters (their costs added).

    Args:
      strategy: name.
      programs: ``Compiled`` objects; none: bytes alone.
      param_bytes, input_bytes: of one device.
      available: bytes of memory of a device, 0 if unknown.
    """
    made = Score(strategy, param_bytes, param_bytes + input_bytes, available=available)
    if not programs:
        return made
    found = [communication(program.as_text()) for program in programs]
    memory = [program.memory_analysis() for program in programs]
    kinds: dict[str, list[int]] = {}
    for each in found:
        for kind, size, count in each.by_kind:
            total = kinds.setdefault(kind, [0, 0])
            total[0], total[1] = total[0] + size, total[1] + count
    return dataclasses.replace(
        made,
        argument_bytes=max(int(m.argument_size_in_bytes) for m in memory),
        output_bytes=sum(int(m.output_size_in_bytes) for m in memory),
        temp_bytes=max(int(m.temp_size_in_bytes) for m in memory),
        wire_bytes=round(sum(each.wire for each in found)),
        collectives=tuple(Collective(kind, *total) for kind, total in kinds.items()),
        flops=sum(_flops(program) for program in programs),
        compiled=True,
        unknown_loops=sum(each.unknown_loops for each in found),
    )


def _flops(program: Any) -> float:
    costs = program.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, (list, tuple)) else costs
    return max(float(costs.get("flops", 0.0)), 0.0)


def available_bytes(mesh: Mesh) -> int:
    """Return the memory of the smallest device of a mesh that says it; 0 if none does.

    Devices of a CPU share the machine's memory in equal parts.
    """
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    limits = []
    for device in local:
        stats = device.memory_stats() or {}
        if limit := int(stats.get("bytes_limit", 0)):
            limits.append(limit)
    if not limits and local and local[0].platform == "cpu":
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(local))
    return min(limits, default=0)
