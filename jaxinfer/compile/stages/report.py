"""What a pipeline's stages compute, hold, take and give, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple


class StageRow(NamedTuple):
    """One stage.

    Attributes:
      stage, device: its number, and the device or devices where it runs.
      equations: how many it evaluates.
      flops: of one micro-batch (``core.flops``).
      cost: what the cut balances: FLOPs, transcendentals, and values written by the rest.
      param_bytes: its parameters.
      bytes_per_device: what a device holds of them: all, or its shards.
      input_bytes: inputs that go straight to it, of one micro-batch.
      bytes_in, bytes_out: boundary values of one micro-batch; a value that two stages read
        is sent twice.
      aliased_bytes: boundary values whose buffers its results take over.
      compile_s: seconds of lowering and compiling (stages compile side by side).
      params: names of its parameters.
      begins: its first equation, with the module or the line that it comes from.
    """

    stage: int
    device: str
    equations: int
    flops: int
    cost: int
    param_bytes: int
    bytes_per_device: int
    input_bytes: int
    bytes_in: int
    bytes_out: int
    aliased_bytes: int
    compile_s: float
    params: tuple[str, ...]
    begins: str


@dataclasses.dataclass(frozen=True)
class PipelineReport:
    """The stages of a pipeline.

    Attributes:
      stages: one row each.
      microbatch: rows of a micro-batch.
      batch: name of the batch.
      recomputed: equations that several stages evaluate, each for itself.
      splits: scans that were split, with the lengths of the pieces.
      rows: how it was checked that rows do not depend on each other.
    """

    stages: tuple[StageRow, ...]
    microbatch: int
    batch: str
    recomputed: int = 0
    splits: tuple[str, ...] = ()
    rows: str = ""

    @property
    def balance(self) -> float:
        """Cost of the dearest stage over the mean: 1 is even, k is all in one stage."""
        costs = [row.cost for row in self.stages]
        return max(costs) * len(costs) / sum(costs) if sum(costs) else 1.0

    @property
    def shares(self) -> tuple[float, ...]:
        """Each stage's share of the cost."""
        total = sum(row.cost for row in self.stages) or 1
        return tuple(row.cost / total for row in self.stages)

    @property
    def tied(self) -> dict[str, tuple[int, ...]]:
        """Parameters that several stages hold, with the stages."""
        at: dict[str, list[int]] = {}
        for row in self.stages:
            for name in row.params:
                at.setdefault(name, []).append(row.stage)
        return {name: tuple(where) for name, where in at.items() if len(where) > 1}

    def notes(self) -> list[str]:
        """Return what a reader must know besides the table."""
        found = [f"stage {row.stage} begins at {row.begins}" for row in self.stages[1:]]
        found += [
            f"{name} is on stages {', '.join(map(str, where))}" for name, where in self.tied.items()
        ]
        if self.recomputed:
            found.append(
                f"{self.recomputed} equations on inputs alone are evaluated by every stage that "
                "needs them"
            )
        found += [f"the scan at equation {split} steps" for split in self.splits]
        if self.balance > UNBALANCED:
            row = max(self.stages, key=lambda row: row.cost)
            found.append(
                f"unbalanced: stage {row.stage} has {self.balance:.2f} times the mean; one "
                "equation (a loop, a branch, a large product) may hold more than a stage's share"
            )
        if self.rows:
            found.append(f"rows: {self.rows}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "stages": [row._asdict() | {"params": list(row.params)} for row in self.stages],
            "shares": list(self.shares),
            "balance": self.balance,
            "microbatch": self.microbatch,
            "batch": self.batch,
            "tied": {name: list(where) for name, where in self.tied.items()},
            "recomputed": self.recomputed,
            "splits": list(self.splits),
            "rows": self.rows,
        }

    def __str__(self) -> str:
        head = (
            "stage  device    equations         flops   share   parameters   per device     inputs"
            "         in        out   compile"
        )
        lines = [
            f"{row.stage:>5}  {row.device:<8} {row.equations:>10} {row.flops:>13,} "
            f"{share * 100:>5.1f} % {row.param_bytes:>10,} B "
            f"{row.bytes_per_device:>10,} B {row.input_bytes:>8,} B "
            f"{row.bytes_in:>8,} B {row.bytes_out:>8,} B {row.compile_s:>7.2f} s"
            for row, share in zip(self.stages, self.shares, strict=True)
        ]
        foot = (
            f"micro-batches of {self.microbatch} ({self.batch}); balance {self.balance:.3f} "
            "(dearest stage / mean)"
        )
        return "\n".join([head, *lines, foot, *self.notes()])


UNBALANCED = 1.25
"""Dearest stage over the mean from which the report says so."""
