"""DryRun: what a search would try first, without measuring anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxinfer.core.model import Model
from jaxinfer.tune.budget import Budget
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.data import Dataset
from jaxinfer.tune.engine import facts_of
from jaxinfer.tune.groups import Group
from jaxinfer.tune.space import Choices, structures


@dataclasses.dataclass(frozen=True)
class DryRun:
    """Candidates by stage, as far as they are known before anything is measured.

    Attributes:
      rows: (stage, label of a candidate, what decides whether it is tried).
      compiles: programs at most; the reference's two and the baseline are three of them.
      data: samples that calibrate and that judge.
      budget: that was given.
      notes: what is not tried, and why.
    """

    rows: Sequence[tuple[str, str, str]]
    compiles: int
    data: tuple[int, int]
    budget: Budget
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return it as lines for people."""
        lines = [
            f"{stage:10} {label}{f'   ({why})' if why else ''}" for stage, label, why in self.rows
        ]
        limit = f", {self.budget.compiles} programs" if self.budget.compiles else ""
        lines += [
            f"at most {self.compiles} programs are compiled, in {self.budget.seconds:g} s{limit}",
            f"{self.data[0]} samples calibrate, {self.data[1]} judge; nothing was measured",
            *self.notes,
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return dataclasses.asdict(self)


def dry_run_of(
    model: Model, found: Choices, base: Candidate, judging: Dataset, groups: Sequence[Group],
    budget: Budget, notes: Sequence[str], calibration: int = 0,
) -> DryRun:  # fmt: skip
    """Return the candidates of a space; see ``optimize.dry_run``."""
    facts = facts_of(model, judging)
    best = "on the best of these"
    rows = [("baseline", base.label, "")]
    rows += [("structure", each.label, "") for each in structures(found, facts, base)]
    rows += [("batch", base.replace(batch=size).label, best) for size in found["batch"] or ()]
    for level in found["precision"]:
        backend = "openvino" if level == "int8" else "xla"
        if backend in found["backend"]:
            label = base.replace(precision=level, backend=backend).label
            rows.append(("precision", label, f"{best}, unless its lower bound is slower"))
    steps = max(1, len(groups).bit_length())
    if found["groups"] and found["precision"]:
        what = f"a level for a part of {len(groups)} groups"
        rows.append(("groups", what, f"about {steps} each, of the two fastest that are inaccurate"))
    rows += [
        ("options", f"{name}={value}", "if the best is of XLA") for name, value in found["options"]
    ]
    if found["donate"] and facts["donate"]:
        rows.append(("options", f"donate {', '.join(facts['donate'])}", "if the best is of XLA"))
    compiles = 2 + sum(1 for stage, _, _ in rows if stage != "groups") + 2 * steps + 2
    return DryRun(rows, compiles, (calibration, judging.size), budget, list(notes))
