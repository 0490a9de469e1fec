"""The search: which candidates are built, judged and timed, in which order, and which is taken.

    baseline    the float32 model as it came, on XLA
    structure   folding, back-ends, attention, layout, meshes, one at a time; then what won together
    batch       samples in a call (objective throughput)
    precision   each level for the whole model, on the best structure of its back-end
    groups      a level that is fast and too inaccurate: for a part of the groups of layers
    options     compiler options and donation, one at a time; then what won together
    final       those on the Pareto front, timed longer and judged on all data

A candidate is rejected before it is compiled if its lower bound is worse than the best so far,
before it is timed if it does not fit the memory or its numbers are wrong. Timing is successive
halving: all a few calls, the better part more, in turn (``timing.py``).

A level for a part of the groups: groups are sorted by time that the level may save over the
divergence that it causes alone; the largest number of them, in that order, that keeps the metric
is found by bisection, and what follows is added one by one while the budget lasts. This is the
accuracy-aware quantization of NNCF (https://github.com/openvinotoolkit/nncf), with measured
times in the order and in the choice.

Everything here is decided by numbers from the journal; an engine (``engine.py``) makes them. Of
candidates whose times differ by less than ``TIE`` or their noise, the one proposed first is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.core.errors import JaxinferError
from jaxinfer.tune._search_state import FINAL_CALLS, RUNGS, State
from jaxinfer.tune._search_state import BudgetError as BudgetError
from jaxinfer.tune._search_state import Engine as Engine
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.measurement import MEASURED
from jaxinfer.tune.results import pareto
from jaxinfer.tune.space import structures

FINALISTS = 4
GROUPS_SHARE = 0.2  # of the budget, for which groups are not begun with less
NEAR = 1.5  # compiler options are not tried on what is further behind


class Search(State):
    """One search; ``run()`` fills ``found``."""

    def run(self) -> int | None:
        """Search; returns the place in ``found`` of what is chosen, None if nothing is allowed."""
        self._baseline()
        best = self._stage("structure", self._structure)
        if self.space["batch"]:
            best = self._stage("batch", lambda: self._batch(best))
        levels = self._stage("precision", lambda: self._precision(best))
        if self.space["groups"] and levels:
            self._stage("groups", lambda: self._groups(levels))
        self._stage("options", self._options)
        return self._stage("final", self._final)

    def _baseline(self) -> None:
        def work() -> None:
            ready = self._prepare(self.base, always=True)
            held = self.found[self.base.key]
            if not ready:
                raise JaxinferError(f"optimize: the baseline cannot be measured: {held.reason}")
            self._time([self.base], RUNGS[-1])

        self._stage("baseline", work)
        if not self.engine.facts.get("judged_all", True):
            self.notes.append(
                "all data take long to run: the search judged by the first calls alone, and the "
                "finalists by all of them; drops of the others are of the first calls"
            )
        if self.left <= 0:
            needed = math.ceil(1.5 * self.journal.spent + 5)
            raise BudgetError(
                f"optimize: the reference and the baseline took {self.journal.spent:.1f} s, the "
                f"budget is {self.budget.seconds:g} s; give {needed} s or more"
            )

    def _structure(self) -> dict[str, Candidate]:
        """Return the best float32 candidate of each back-end."""
        tried = [self.base, *structures(self.space, self.engine.facts, self.base)]
        ready = [each for each in tried if self._prepare(each)]
        self._halving(ready)
        best: dict[str, Candidate] = {}
        for backend in self.space["backend"]:
            own = [each for each in ready if each.backend == backend]
            if backend == "xla":
                own = self._together(own)
            first = self._first_best([each for each in own if self._accurate(each)])
            if first is not None:
                best[backend] = first
        return best or {"xla": self.base}

    def _accurate(self, candidate: Candidate) -> bool:
        held = self.found[candidate.key]
        return held.drop is not None and held.drop <= self.max_drop

    def _together(self, own: list[Candidate], fields: Sequence[str] = ()) -> list[Candidate]:
        """Add the product of those that beat the baseline, if there are several."""
        fields = fields or ("fold", "attention", "layout", "unroll", "mesh", "prune", "buckets")
        base = self.found[self.base.key]
        winners = [
            each
            for each in own
            if each != self.base and self._timed(each) and self._accurate(each)
            and self._better(self.found[each.key], base)
        ]  # fmt: skip
        winners.sort(key=lambda each: self.objective.value(self.found[each.key]))
        changes: dict[str, Any] = {}
        for each in winners:
            for name in fields:
                if getattr(each, name) != getattr(self.base, name):
                    changes.setdefault(name, getattr(each, name))
        product = self.base.replace(**changes)
        if "mesh" in changes:
            with_mesh = next(each for each in winners if each.mesh == changes["mesh"])
            product = product.replace(sharding=with_mesh.sharding)
        if len(winners) < 2 or product in own or not self._prepare(product):
            return own
        self._time([winners[0], product], RUNGS[-1])
        return [*own, product]

    def _batch(self, best: dict[str, Candidate]) -> dict[str, Candidate]:
        """Return the same with the number of samples in a call that has the best throughput."""
        found: dict[str, Candidate] = {}
        for backend, candidate in best.items():
            tried = [candidate]
            ready = [candidate]
            for size in self.space["batch"]:
                each = candidate.replace(batch=size)
                if size == self.engine.facts.get("batch"):
                    continue
                tried.append(each)
                if self._prepare(each):
                    ready.append(each)
            self._halving(ready)
            fits = [each for each in ready if not self.objective.violated(self.found[each.key])]
            found[backend] = self._first_best(fits or ready) or candidate
        return found

    def _precision(self, best: Mapping[str, Candidate]) -> list[Candidate]:
        """Return candidates of a level that are fast and too inaccurate, fastest first."""
        made: list[Candidate] = []
        for level in self.space["precision"]:
            if "xla" in best and level != "int8":
                made.append(best["xla"].replace(precision=level))
            if "openvino" in best and level in ("int8", "bf16"):
                made.append(best["openvino"].replace(precision=level))
        ready = [each for each in made if self._prepare(each)]
        rivals = [best[name] for name in dict.fromkeys(each.backend for each in ready)]
        self._halving([*rivals, *ready])
        best_now = self._best()
        fast = [
            each
            for each in ready
            if self._timed(each) and not self._accurate(each)
            and (each.backend, each.precision) != ("openvino", "bf16")  # of the whole model alone
            and (best_now is None or self._better(self.found[each.key], best_now))
        ]  # fmt: skip
        fast.sort(key=lambda each: self.objective.value(self.found[each.key]))
        for each in ready:
            held = self.found[each.key]
            if self._timed(each) and each not in fast and not self._accurate(each):
                self._put(each, reason=f"{held.reason}; and not faster than what is allowed")
        return fast[:2]

    def _groups(self, levels: Sequence[Candidate]) -> None:
        for whole in levels:
            level = whole.precision
            if self.left < GROUPS_SHARE * self.budget.seconds:
                left = max(0.0, self.left)
                self.notes.append(f"{level} for a part of the groups: not tried, {left:.0f} s left")
                continue
            self._say(f"sensitivities of groups at {level}")
            divergence = self.journal.do(
                "sensitivities", level, lambda level=level: self.engine.sensitivities(level)
            )
            self.sensitivities[level] = divergence
            if not divergence:
                self.notes.append(f"{level} for a part of the groups: no sensitivities")
                continue
            saved = self.journal.do(
                "savings", level, lambda level=level: self.engine.savings(level)
            )
            gain = {
                name: max(saved.get(name, 0.0), 1e-9) / max(harm, 1e-12)
                for name, harm in divergence.items()
            }
            order = sorted(gain, key=lambda name: (-gain[name], name))
            self._bisect(whole, order)

    def part(self, whole: Candidate, kept: Sequence[str], names: Sequence[str]) -> Candidate:
        """Return ``whole`` with all groups but ``kept`` in float32."""
        rest = tuple((name, "f32") for name in sorted(names) if name not in kept)
        return whole.replace(groups=rest)

    def _bisect(self, whole: Candidate, order: Sequence[str]) -> None:
        """Find how many groups, in order, may have the level; then add others while it holds."""

        def holds(kept: Sequence[str]) -> bool | None:
            each = self.part(whole, kept, order)
            if not self._prepare(each):
                return None
            return self._accurate(each)

        low, high, stopped = 0, len(order), False
        while high - low > 1 and not stopped:
            middle = (low + high) // 2
            found = holds(order[:middle])
            stopped = found is None
            low, high = (middle, high) if found else (low, middle)
        kept = list(order[:low])
        for name in order[low + 1 :]:
            if stopped or self.left < 0.35 * self.budget.seconds:
                break
            found = holds([*kept, name])
            stopped = found is None
            kept += [name] if found else []
        made = [
            each for each in self._candidates() if each.groups and each.precision == whole.precision
        ]
        ready = [each for each in made if self.found[each.key].status == MEASURED]
        best = self._best()
        rivals = [Candidate.from_json(best.candidate)] if best is not None else []
        accurate = [each for each in ready if self._accurate(each) and not self._timed(each)]
        rest = [each for each in ready if not self._accurate(each) and not self._timed(each)]
        for each in rest:
            self._reject(each, self.found[each.key].reason)
        self._halving([*rivals, *[each for each in accurate if each not in rivals]])

    def _options(self) -> None:
        """Try compiler options and donation on the best candidate, then what won together."""
        best = self._best()
        own = [each for each in self._candidates() if each.backend == "xla"]
        start = self._first_best([each for each in own if self.allowed(self.found[each.key])])
        if best is None or start is None:
            return
        behind = self.objective.value(self.found[start.key]) / self.objective.value(best)
        if behind > NEAR:
            self.notes.append(
                f"compiler options are XLA's, and its best is {behind:.1f} times behind: not tried"
            )
            return
        made = [start.replace(options=(each,)) for each in self.space["options"]]
        names = tuple(self.engine.facts.get("donate", ()))
        if self.space["donate"] and names:
            made.append(start.replace(donate=names))
        ready = [each for each in made if self._prepare(each)]
        if not ready:
            return
        self._halving([start, *ready])
        won = [
            each
            for each in ready
            if self._timed(each) and self._accurate(each)
            and self._better(self.found[each.key], self.found[start.key])
        ]  # fmt: skip
        if len(won) < 2:
            return
        options = tuple(pair for each in won for pair in each.options)
        donate = next((each.donate for each in won if each.donate), ())
        product = start.replace(options=options, donate=donate)
        if self._prepare(product):
            self._time([start, product], RUNGS[-1])

    def _final(self) -> int | None:
        """Time the front longer, judge it on all data, and choose."""
        listed = list(self.found)
        known = list(self.found.values())
        allowed = [i for i, each in enumerate(known) if self.allowed(each)]
        order = sorted(allowed, key=lambda i: self.objective.value(known[i]))[:FINALISTS]
        front = [i for i in pareto(known) if i in allowed][:FINALISTS]
        chosen = sorted(list(dict.fromkeys([0, *order, *front]))[: FINALISTS + 2])
        finalists = [Candidate.from_json(known[i].candidate) for i in chosen]
        if not self.engine.facts.get("judged_all", True):
            finalists = [each for each in finalists if self._judge(each, full=True)]
        expected = sum(self._expected_s(each) for each in finalists)
        room = max(2.0, min(0.15 * self.budget.seconds, self.left - 2))
        calls = max(5, min(FINAL_CALLS, int(room / expected) if expected else FINAL_CALLS))
        for each in finalists:
            self._put(each, times_ms=())  # only these were measured side by side
        self._say(f"timing {len(finalists)} finalists")
        what = [[each.to_json() for each in finalists], calls, "final"]
        times = self.journal.do("time", what, lambda: self.engine.time(finalists, calls))
        for each in finalists:
            self._put(each, times_ms=tuple(times[each.key]))
        for each in self.found.values():
            if self.allowed(each) or each.reason or each.status != MEASURED:
                continue
            self._put(Candidate.from_json(each.candidate), reason=self.objective.violated(each))
        fits = [each for each in finalists if self.allowed(self.found[each.key])]
        best = self._first_best(fits)
        return None if best is None else listed.index(best.key)
