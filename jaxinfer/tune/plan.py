"""Plan: what ``optimize`` returns: the model that was chosen, and all that was tried."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxinfer.core.errors import InputError, JaxinferError, listing
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.measurement import FAILED, MEASURED, REJECTED, Measurement
from jaxinfer.tune.objective import CONSTRAINTS, Objective
from jaxinfer.tune.recipe import Recipe
from jaxinfer.tune.results import Results
from jaxinfer.tune.tuned import TunedModel


class UnmetError(JaxinferError, ValueError):
    """Nothing meets ``max_drop`` and the constraints; the message shows the best reachable.

    Attributes:
      results: of the search.
    """

    def __init__(self, message: str, results: Results):
        super().__init__(message)
        self.results = results


@dataclasses.dataclass(frozen=True)
class Plan:
    """The result of a search.

    Attributes:
      results: every measurement, plain data.
      recipe: of what was chosen; ``recipe.save("recipe.json")``.
      model: what was chosen, a Model whose calls run its executable.

    Example::

        plan = ji.optimize(model, data, max_drop=0.005)
        print(plan.table())
        plan.report("report.html")
        y = plan.model(x)
    """

    results: Results
    recipe: Recipe
    model: TunedModel
    _make: Callable[[Candidate, Measurement], TunedModel] = dataclasses.field(repr=False)

    def table(self, width: int = 0) -> str:
        """Return all candidates, the layers and the verdict as text.

        Args:
          width: of a line; 0: that of the terminal.
        """
        from jaxinfer.tune.report import text

        return text(self.results, width=width or shutil.get_terminal_size((120, 40)).columns)

    def report(self, path: Any) -> None:
        """Write a report: ``.html`` (one file, pictures inside; needs matplotlib) or ``.json``.

        Raises:
          MissingExtraError: matplotlib is not installed.
          InputError, ArtefactError: an unknown suffix, a path that cannot be written.
        """
        from jaxinfer.tune.report import write_report

        write_report(self.results, Path(path), recipe_json=self.recipe.to_json())

    @property
    def front(self) -> tuple[int, ...]:
        """Places in ``results.measurements`` of the Pareto front that is allowed, fastest first."""
        held = self.results.measurements
        return tuple(i for i in self.results.front if not held[i].reason)

    def candidate(self, place: int) -> TunedModel:
        """Return another measured candidate, compiled now if it is not held any more.

        Args:
          place: in ``results.measurements``.

        Raises:
          InputError: there is none there, or it was not measured.
        """
        held = self.results.measurements
        if not 0 <= place < len(held) or held[place].status != MEASURED:
            measured = ", ".join(str(i) for i, m in enumerate(held) if m.status == MEASURED)
            raise InputError(f"candidate {place}: not measured; those that were: {measured}")
        return self._make(Candidate.from_json(held[place].candidate), held[place])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"Plan({self.results.verdict})"


def verdict_of(objective: Objective, held: Sequence[Measurement], chosen: int, drop: str) -> str:
    """Return one sentence: what was won, or that nothing beat the baseline."""
    best, base = held[chosen], held[0]
    assert base.p50_ms is not None
    assert best.p50_ms is not None
    each = "a sample" if objective.of == "throughput" else "a call"
    if chosen == 0:
        tried = sum(1 for m in held if m.status == MEASURED) - 1
        return (
            f"Nothing beat the baseline, which takes {base.p50_ms:.3g} ms a call: {tried} of "
            f"{len(held) - 1} other candidates were measured, and none that is allowed was better "
            "by more than the noise."
        )
    size = {"a sample": (best.batch, base.batch), "a call": (1, 1)}[each]
    mine, its = best.p50_ms / size[0], base.p50_ms / size[1]
    won = f"{its / mine:.2f} times as fast as the baseline ({mine:.3g} against {its:.3g} ms {each})"
    if objective.of == "memory":
        a, b = best.peak_bytes or 0, base.peak_bytes or 0
        won = f"{a / 1e6:.3g} MB at its peak against {b / 1e6:.3g} MB of the baseline"
    elif objective.of == "p99":
        won = f"{best.p99_ms or 0:.3g} ms in the 99th percentile against {base.p99_ms or 0:.3g} ms"
    unit = " of the reference" if drop == "relative" else ""
    return f"{best.label}: {won}, with a drop of {best.drop:.3g}{unit}."


def unmet(objective: Objective, held: Sequence[Measurement], max_drop: float) -> str:
    """Return why nothing is allowed, with the best that can be reached."""
    timed = [m for m in held if m.status == MEASURED and len(m.times_ms) and m.drop is not None]
    lines = []
    least = min(timed, key=lambda m: (m.drop, m.p50_ms))
    alone = [least.drop is not None and least.drop <= max_drop]
    lines.append(
        f"max_drop: required {max_drop:.4g} at most; the best reachable is {least.drop:.4g} "
        f"({least.label}, {least.p50_ms:.4g} ms)"
    )
    for name, limit in objective.constraints.items():
        sign = -1 if CONSTRAINTS[name] == "least" else 1
        known = [m for m in (*timed, *_unfit(held)) if getattr(m, name) is not None]
        if not known:
            continue
        best = min(known, key=lambda m: sign * getattr(m, name))
        value = getattr(best, name)
        alone.append(sign * value <= sign * limit)
        word = "at least" if sign < 0 else "at most"
        lines.append(
            f"{name}: required {limit:g} {word}; the best reachable is {value:.6g} ({best.label})"
        )
    advice = "Loosen what is out of reach, or give more time or a larger space."
    if all(alone) and len(alone) > 1:
        advice = "Each can be met alone, all of them together by nothing here: loosen one of them."
    failed = sum(m.status in (FAILED, REJECTED) for m in held)
    title = f"optimize: nothing is allowed; {len(timed)} candidates were measured, {failed} not:"
    return listing(title, lines, advice)


def _unfit(held: Sequence[Measurement]) -> list[Measurement]:
    """Return what was rejected before timing with bytes or seconds known."""
    return [m for m in held if m.status == REJECTED and m.peak_bytes is not None]
