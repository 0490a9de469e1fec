"""What a search knows, and how one candidate is built, judged, timed and compared.

The order of stages is ``search.py``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxinfer.core.errors import JaxinferError
from jaxinfer.tune.budget import Budget
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.journal import Journal
from jaxinfer.tune.measurement import FAILED, MEASURED, REJECTED, Measurement
from jaxinfer.tune.objective import Objective
from jaxinfer.tune.space import Choices

TIE = 0.03
NOISE = 2.0  # standard errors of a difference that are no difference
WRONG = 1e-3  # of the largest value: more than reordering sums explains in float32
RUNGS = (5, 15)
FINAL_CALLS = 60
Progress = Callable[[str, str, "float | None", float], None]


class BudgetError(JaxinferError, ValueError):
    """The budget does not last for the reference and the baseline; says what is needed."""


class Engine(Protocol):
    """What makes the numbers of a search; every result is JSON."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the model has: ``convolutions``, ``attention``, ``scans``, ``batch``, ``donate``."""
        ...

    def build(self, candidate: Candidate) -> dict[str, Any]:
        """Compile; returns compile_s, first_call_ms, peak_bytes, weight_bytes, notes, or failed."""
        ...

    def judge(self, candidate: Candidate, full: bool) -> dict[str, Any]:
        """Run on the data that judge; returns metric, drop, similarity, or failed."""
        ...

    def time(self, candidates: Sequence[Candidate], calls: int) -> dict[str, list[float]]:
        """Time in turn; returns milliseconds of each call by the candidate's key."""
        ...

    def learn(self, run_s: float) -> None:
        """Hear how long judging the baseline on all data took."""
        ...

    def bound(self, candidate: Candidate) -> float | None:
        """Return milliseconds that no call of it can beat here."""
        ...

    def same(self, candidate: Candidate) -> bool:
        """Whether a candidate's program is the baseline's, so that it need not be tried."""
        ...

    def sensitivities(self, level: str) -> dict[str, float]:
        """Return the divergence of each group alone at a level."""
        ...

    def savings(self, level: str) -> dict[str, float]:
        """Return what each group may save at a level, in milliseconds or as a share."""
        ...


@dataclasses.dataclass
class State:
    """What a search works with, and how it builds, judges, times and compares candidates.

    Attributes:
      engine, journal, space, objective, budget: what it works with.
      max_drop: allowed drop of the metric.
      sensitivities: of groups, by level, where they were measured.
      found: measurements by the candidate's key, in the order proposed.
    """

    engine: Engine
    journal: Journal
    space: Choices
    objective: Objective
    budget: Budget
    max_drop: float
    progress: Progress | None = None
    found: dict[str, Measurement] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    sensitivities: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    compiles: int = 0
    cost_s: dict[str, float] = dataclasses.field(default_factory=dict)
    stage: str = "baseline"
    base: Candidate = dataclasses.field(default_factory=Candidate)

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        self.stage, before = name, self.journal.spent
        try:
            return work()
        finally:
            self.seconds[name] = self.seconds.get(name, 0) + self.journal.spent - before

    # what is left

    @property
    def left(self) -> float:
        """Seconds of the budget that remain."""
        return self.budget.seconds - self.journal.spent

    def _reserve(self) -> float:
        """Return seconds to keep for the final stage."""
        return min(0.2 * self.budget.seconds, 4 + self._call_s() * FINAL_CALLS * 2)

    def _call_s(self) -> float:
        times = [m.p50_ms for m in self.found.values() if m.p50_ms]
        return max(times) / 1e3 if times else 0.0

    def _affordable(self, candidate: Candidate) -> str:
        """Return why the budget does not allow another one; empty if it does."""
        if self.budget.compiles is not None and self.compiles >= self.budget.compiles:
            return f"not tried: {self.budget.compiles} programs have been compiled (budget)"
        known = self.cost_s.get(self._kind(candidate), max(self.cost_s.values(), default=0.0))
        if known > self.left - self._reserve():
            return f"not tried: it takes about {known:.0f} s, {max(0, self.left):.0f} s are left"
        return ""

    def _kind(self, candidate: Candidate) -> str:
        quantized = "int8" if "int8" in candidate.levels else ""
        return f"{candidate.backend} {quantized}"

    # one candidate

    def _say(self, text: str) -> None:
        if self.progress is not None:
            best = self._best()
            shown = best.p50_ms if best is not None else None
            self.progress(self.stage, text, shown, max(0.0, self.left))

    def _put(self, candidate: Candidate, **changes: Any) -> Measurement:
        held = self.found.get(candidate.key) or Measurement(
            candidate.to_json(), candidate.label, self.stage,
            batch=candidate.batch or int(self.engine.facts.get("batch", 1)),
        )  # fmt: skip
        self.found[candidate.key] = held.replace(**changes)
        return self.found[candidate.key]

    def _reject(self, candidate: Candidate, reason: str, **changes: Any) -> None:
        self._put(candidate, status=REJECTED, reason=reason, **changes)

    def _prepare(self, candidate: Candidate, *, always: bool = False) -> bool:
        """Build and judge a candidate; returns whether it may be timed."""
        if (known := self.found.get(candidate.key)) is not None:
            return known.status == MEASURED
        bound = None
        if not always:
            bound = self.journal.do(
                "bound", candidate.to_json(), lambda: self.engine.bound(candidate)
            )
            if reason := self._bounded(candidate, bound):
                self._reject(candidate, reason, bound_ms=bound)
                return False
            if self._arranged(candidate) and self.journal.do(
                "same", candidate.to_json(), lambda: self.engine.same(candidate)
            ):
                self._reject(candidate, "the same program as the baseline")
                return False
            if reason := self._affordable(candidate):
                self._reject(candidate, reason, bound_ms=bound)
                return False
        self._say(candidate.label)
        before = self.journal.spent
        self.compiles += not always
        facts = self.journal.do("build", candidate.to_json(), lambda: self.engine.build(candidate))
        if "failed" in facts:
            self._put(candidate, status=FAILED, reason=facts["failed"], bound_ms=bound)
            return False
        self._put(candidate, bound_ms=bound, **facts)
        reason = "" if always else self.objective.unfit(self.found[candidate.key])
        if reason:
            self._reject(candidate, reason)
            return False
        score = self._judge(candidate, full=always)
        spent = self.journal.spent - before
        kind = self._kind(candidate)
        self.cost_s[kind] = max(self.cost_s.get(kind, 0.0), spent)
        return score

    def _arranged(self, candidate: Candidate) -> bool:
        """Whether it differs from the baseline by what may change nothing in a model."""
        plain = candidate.replace(attention="", layout="", unroll=False)
        return plain == self.base != candidate

    def _judge(self, candidate: Candidate, full: bool) -> bool:
        what = [candidate.to_json(), full]
        score = dict(self.journal.do("judge", what, lambda: self.engine.judge(candidate, full)))
        if "failed" in score:
            self._put(candidate, status=FAILED, reason=score["failed"])
            return False
        run_s = score.pop("run_s", 0.0)
        if candidate == self.base:
            self.engine.learn(run_s)
        reason = ""
        if not math.isfinite(score["drop"]):
            self._reject(candidate, "its outputs are not finite", similarity=score["similarity"])
            return False
        if score["drop"] > self.max_drop:
            reason = f"drop {score['drop']:.4g}, allowed {self.max_drop:.4g}"
        self._put(candidate, reason=reason, **score)
        error = score["similarity"].get("max", 0.0)
        if self._exact(candidate) and error > WRONG:
            self._reject(
                candidate, f"wrong numbers: {error:.1e} of the largest value off in float32"
            )
            return False
        return True

    def _exact(self, candidate: Candidate) -> bool:
        return candidate.levels == ("f32",) and not candidate.prune

    def _bounded(self, candidate: Candidate, bound: float | None) -> str:
        best = self._best()
        if bound is None or best is None or best.p50_ms is None or not self.objective.is_time:
            return ""
        size = candidate.batch or int(self.engine.facts.get("batch", 1))
        if bound / size <= best.p50_ms / best.batch:
            return ""
        return (
            f"bound: no call is faster than {bound:.3g} ms here, "
            f"{best.label} takes {best.p50_ms:.3g} ms"
        )

    # timing

    def _time(self, candidates: Sequence[Candidate], calls: int) -> None:
        """Time candidates in turn; adds to their times."""
        if not candidates:
            return
        limit = max(1.0, 0.05 * self.budget.seconds)
        expected = sum(self._expected_s(each) for each in candidates)
        calls = max(3, min(calls, int(limit / expected) if expected > 0 else calls))
        what = [[each.to_json() for each in candidates], calls, self.stage]
        times = self.journal.do("time", what, lambda: self.engine.time(candidates, calls))
        for each in candidates:
            self._put(each, times_ms=(*self.found[each.key].times_ms, *times[each.key]))

    def _expected_s(self, candidate: Candidate) -> float:
        held = self.found[candidate.key]
        return (held.p50_ms or held.first_call_ms or 0.0) / 1e3

    def _halving(self, candidates: Sequence[Candidate], rungs: Sequence[int] = RUNGS) -> None:
        """Time all a few calls, then the better third (two at least) more."""
        alive = list(candidates)
        if all(self._timed(each) for each in alive[:2]) and len(alive) < 2:
            return
        for number, calls in enumerate(rungs):
            if self.left <= self._reserve() / 2 and number:
                return
            self._say(f"timing {len(alive)} candidates")
            self._time(alive, calls)
            order = sorted(alive, key=lambda each: self.objective.value(self.found[each.key]))
            kept = order[: max(2, -(-len(alive) // 3))]
            alive = [each for each in alive if each in kept]

    def _better(self, new: Measurement, old: Measurement) -> bool:
        """Whether ``new`` is better beyond a tie."""
        after, before = self.objective.value(new), self.objective.value(old)
        if math.isinf(after) or math.isinf(before):
            return after < before
        return before - after > self._tie(new, old)

    def _tie(self, a: Measurement, b: Measurement) -> float:
        """Return how far apart two may be and be as good: a few percent, or their noise."""
        values = [self.objective.value(a), self.objective.value(b)]
        noise = 0.0
        if self.objective.is_time:
            noise = NOISE * math.hypot(self.objective.error(a), self.objective.error(b))
        return max(TIE * max(values), noise)

    def _first_best(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Return the best of what is measured; of ties the first."""
        known = [each for each in candidates if self._timed(each)]
        if not known:
            return None
        best = min(known, key=lambda each: self.objective.value(self.found[each.key]))
        least = self.found[best.key]
        return next(
            each for each in known if each == best or not self._better(least, self.found[each.key])
        )

    def _timed(self, candidate: Candidate) -> bool:
        held = self.found.get(candidate.key)
        return held is not None and held.status == MEASURED and len(held.times_ms) > 0

    def _candidates(self) -> list[Candidate]:
        return [Candidate.from_json(each.candidate) for each in self.found.values()]

    def allowed(self, held: Measurement) -> bool:
        """Whether a measurement meets the metric and the constraints."""
        if held.status != MEASURED or not len(held.times_ms) or held.drop is None:
            return False
        return held.drop <= self.max_drop and not self.objective.violated(held)

    def _best(self) -> Measurement | None:
        known = [each for each in self._candidates() if self.allowed(self.found[each.key])]
        best = self._first_best(known)
        return self.found[best.key] if best is not None else None
