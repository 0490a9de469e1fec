"""optimize: one call finds the fastest arrangement of a model that is accurate enough.

    data -> what calibrates | what judges
    model -> float32 reference (two compilations that agree) -> candidates -> recipe and model

The steps are ``search.py``; what is tried, ``space.py``. Every step is a line of a journal, if a
file is given, so a search that was killed goes on where it was (``resume=True``), and decides as
it would have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer._version import __version__
from jaxinfer.compile._key import environment
from jaxinfer.core.errors import InputError, InputTypeError, listing
from jaxinfer.core.model import Model
from jaxinfer.tune._recipe_prints import prints_of
from jaxinfer.tune._search_state import Progress
from jaxinfer.tune.budget import Budget
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.data import Dataset, read, split
from jaxinfer.tune.device import DeviceProfile, profile
from jaxinfer.tune.dry_run import DryRun, dry_run_of
from jaxinfer.tune.engine import ModelEngine
from jaxinfer.tune.groups import find_groups
from jaxinfer.tune.journal import Journal, holds_steps
from jaxinfer.tune.layers import layers
from jaxinfer.tune.measurement import Measurement
from jaxinfer.tune.metrics import Judge
from jaxinfer.tune.objective import Objective
from jaxinfer.tune.plan import Plan, UnmetError, unmet, verdict_of
from jaxinfer.tune.recipe import Recipe
from jaxinfer.tune.recipe import environment as versions
from jaxinfer.tune.reference import Reference, reference
from jaxinfer.tune.results import Layer, Results, pareto
from jaxinfer.tune.search import Search
from jaxinfer.tune.space import Space, base_of, choices
from jaxinfer.tune.tuned import TunedModel, tuned_of

CALIBRATION = 0.5
"""Share of the data that calibrates; it never judges."""
LAYERS_S = 10.0


def optimize(
    model: Model,
    data: Any,
    *,
    objective: str | Callable[[Measurement], float] = "latency",
    metric: str | Callable[..., Any] | None = None,
    max_drop: float = 0.01,
    drop: str = "absolute",
    constraints: Mapping[str, float] | None = None,
    budget: Budget | None = None,
    space: Space | None = None,
    seed: int = 0,
    cache: Any = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Find the fastest arrangement of a model whose metric stays within a drop.

    Args:
      model: of one function, with known inputs; float32 (others are their own reference).
      data: an iterable of batches, each as a call takes it (a tuple, a dict by name, or the one
        input); what a batch holds beyond the inputs goes to the metric (labels). Half of the
        samples calibrate, the others judge.
      objective: ``latency`` (median ms of a call), ``p99``, ``throughput`` (samples per second,
        the number of samples in a call is chosen too), ``memory`` (peak bytes of a device), or a
        function of a ``Measurement`` to make small.
      metric: ``metric(outputs, batch) -> float``, higher is better, over all samples that judge; or
        similarity to the float32 outputs: ``cosine`` (the default), ``max``, ``top1``, ``kl``.
      max_drop: how much lower the metric may be than that of the float32 reference.
      drop: ``absolute`` or ``relative`` to the reference's metric.
      constraints: ``p50_ms``, ``p99_ms``, ``peak_bytes``, ``weight_bytes``, ``compile_s``,
        ``first_call_ms`` at most; ``throughput`` at least.
      budget: seconds and programs; by default 300 s.
      space: what may be tried; by default what is usual on the platform, without pruning.
      seed: of the split of the data.
      cache: a file for the journal, ``search.jsonl``; None: it is not kept.
      resume: go on from that file; steps that fit (the same program, weights, data, jaxlib, device)
        are not done again.
      progress: called as ``progress(stage, candidate, best_ms, seconds_left)``.

    Returns:
      A Plan: ``plan.model``, ``plan.recipe``, ``plan.table()``, ``plan.report(path)``. Cost: the
      budget; afterwards the chosen arrangement is compiled again if it is not held any more.

    Raises:
      InputError, InputTypeError: arguments, data or a metric that cannot be used; all at once where
        they are known at once.
      DisagreementError: two compilations of the model do not agree.
      BudgetError: it does not last for the reference and the baseline; how much would.
      UnmetError: nothing meets ``max_drop`` and the constraints; the best reachable.
      ArtefactError: the journal cannot be used.

    Example::

        plan = ji.optimize(model, batches, metric=accuracy, max_drop=0.005)
        plan.recipe.save("recipe.json")
    """
    asked = _asked(objective, constraints, max_drop, budget, space)
    notes: list[str] = []
    journal_path = _journal_path(cache, resume)
    started = time.perf_counter()
    dataset = data if isinstance(data, Dataset) else read(model, data)
    calibration, judging = split(dataset, seed, CALIBRATION)
    notes += [*dataset.notes, *([ONE_SAMPLE] if not calibration.size else [])]
    found = choices(asked.space, notes)
    base, found = base_of(found, judging, model, asked.objective.of)
    prints = prints_of(model)
    context = {
        "program": [prints.program, prints.weights],
        "data": [digest(calibration), digest(judging)],
        "environment": environment(),
        "jaxinfer": __version__,
        "drop": drop,
        "metric": _name(metric),
    }
    journal = Journal(journal_path, resume=resume, context=context)
    judges = _Judges(model, judging, metric, drop, seed, journal)
    journal.leave_out(started - time.perf_counter())  # reading the data counts
    facts = journal.do("reference", base.to_json(), judges.facts)
    device = DeviceProfile.from_json(journal.do("device", None, lambda: profile().to_json()))
    groups = find_groups(model, judging.calls[0].arrays)
    engine = ModelEngine(
        model,
        groups,
        calibration,
        judging,
        judges,
        device,
        journal,
        asked.budget.seconds,
        base.key,
    )
    search = Search(
        engine, journal, found, asked.objective, asked.budget, float(max_drop), progress,
        notes=notes, base=base,
    )  # fmt: skip
    search.seconds["reference"] = journal.spent
    chosen = search.run()
    held = list(search.found.values())
    notes += [*facts["notes"], *judges.notes]
    results = Results(
        model=repr(model),
        objective=asked.objective.name,
        metric=facts["name"],
        reference=facts["metric"],
        max_drop=float(max_drop),
        drop_kind=drop,
        constraints=dict(asked.objective.constraints),
        measurements=held,
        baseline=0,
        chosen=chosen,
        front=pareto(held),
        device=device.to_json(),
        environment=versions(),
        notes=list(dict.fromkeys(notes)),
    )
    if chosen is None:
        text = unmet(asked.objective, held, float(max_drop))
        results = dataclasses.replace(results, seconds=_rounded(search.seconds), verdict=text)
        raise UnmetError(text, results)
    best = Candidate.from_json(held[chosen].candidate)
    rows = search._stage(
        "layers", lambda: _layers(engine, best, held, search.sensitivities, journal, notes)
    )
    results = dataclasses.replace(
        results,
        layers=rows,
        seconds=_rounded(search.seconds),
        notes=list(dict.fromkeys(notes)),
        verdict=verdict_of(asked.objective, held, chosen, drop),
    )

    def make(candidate: Candidate, measured: Measurement) -> TunedModel:
        built = engine.built(candidate)
        recipe = Recipe(
            candidate,
            prints,
            built.shapes,
            {group.name: group.paths for group in groups},
            seed=seed,
            split=CALIBRATION,
            metric=facts["name"],
            drop_kind=drop,
            max_drop=float(max_drop),
            reference=facts["metric"],
            measured=_figures(measured),
            environment=versions(candidate),
            notes=tuple(measured.notes),
        )
        return tuned_of(built, recipe)

    model_made = make(best, held[chosen])
    assert model_made.recipe is not None
    return Plan(results, model_made.recipe, model_made, make)


def _figures(held: Measurement) -> dict[str, Any]:
    """Return what a recipe keeps of a measurement."""
    names = (
        *("p50_ms", "p99_ms", "throughput", "batch", "peak_bytes", "weight_bytes"),
        *("compile_s", "first_call_ms", "metric", "drop"),
    )
    return {name: getattr(held, name) for name in names if getattr(held, name) is not None}


ONE_SAMPLE = "the data hold one sample: it judges, and what needs calibration was not tried"


def dry_run(
    model: Model,
    data: Any,
    *,
    objective: str | Callable[[Measurement], float] = "latency",
    max_drop: float = 0.01,
    constraints: Mapping[str, float] | None = None,
    budget: Budget | None = None,
    space: Space | None = None,
    seed: int = 0,
) -> DryRun:
    """Return what ``optimize`` would try first, and about what that takes; nothing is timed.

    Args:
      model, data, objective, max_drop, constraints, budget, space, seed: as for ``optimize``.

    Raises:
      InputError, InputTypeError: as ``optimize``.
    """
    asked = _asked(objective, constraints, max_drop, budget, space)
    notes: list[str] = []
    dataset = data if isinstance(data, Dataset) else read(model, data)
    calibration, judging = split(dataset, seed, CALIBRATION)
    notes += [*dataset.notes, *([ONE_SAMPLE] if not calibration.size else [])]
    found = choices(asked.space, notes)
    base, found = base_of(found, judging, model, asked.objective.of)
    groups = find_groups(model, judging.calls[0].arrays)
    return dry_run_of(model, found, base, judging, groups, asked.budget, notes, calibration.size)


@dataclasses.dataclass(frozen=True)
class _Asked:
    objective: Objective
    budget: Budget
    space: Space


def _asked(objective: Any, constraints: Any, max_drop: Any, budget: Any, space: Any) -> _Asked:
    """Check the arguments that need neither model nor data, all at once."""
    problems: list[str] = []
    made = Objective()
    if constraints is not None and not isinstance(constraints, Mapping):
        problems.append(f"constraints: required a dict, got {type(constraints).__name__}")
        constraints = None
    try:
        made = Objective(objective, dict(constraints or {}))
    except InputError as error:
        problems += str(error).splitlines()[1:]
    number = isinstance(max_drop, (int, float)) and not isinstance(max_drop, bool)
    if not number or math.isnan(max_drop):
        problems.append(f"max_drop: required a number, got {max_drop!r}")
    if budget is not None and not isinstance(budget, Budget):
        problems.append(f"budget: required a ji.Budget, got {type(budget).__name__}")
    if space is not None and not isinstance(space, Space):
        problems.append(f"space: required a ji.Space, got {type(space).__name__}")
    if problems:
        raise InputError(listing("optimize:", [each.strip() for each in problems]))
    return _Asked(made, budget or Budget(), space or Space())


def _journal_path(cache: Any, resume: bool) -> Path | None:
    if cache is None:
        if resume:
            raise InputError("optimize: resume=True needs cache=, the file to go on from")
        return None
    if not isinstance(cache, (str, Path)):
        raise InputTypeError(f"cache: required a path, got {type(cache).__name__}")
    path = Path(cache)
    if holds_steps(path) and not resume:
        raise InputError(f"cache: {path} exists: pass resume=True to go on from it, or remove it")
    return path


class _Judges:
    """Makes the reference once, when it is needed, and judges of the first n calls."""

    def __init__(
        self, model: Model, data: Dataset, metric: Any, drop: str, seed: int, journal: Journal
    ):
        self._model, self._data, self._journal = model, data, journal
        self._settings = (metric, drop, seed)
        self._reference: Reference | None = None
        self._judges: dict[int, Judge] = {}
        self._fresh = False
        self.notes: list[str] = []

    def facts(self) -> dict[str, Any]:
        """Return what the journal keeps of the reference."""
        self._fresh = True
        judge = self(len(self._data.calls))
        assert self._reference is not None
        return {
            "name": judge.name,
            "metric": judge.reference,
            "agreement": self._reference.agreement,
            "notes": list(self._reference.notes),
        }

    def __call__(self, calls: int) -> Judge:
        if calls in self._judges:
            return self._judges[calls]
        start = time.perf_counter()
        if self._reference is None:
            self._reference = reference(self._model, self._data)
        data = dataclasses.replace(self._data, calls=self._data.calls[:calls])
        metric, drop, seed = self._settings
        outputs = self._reference.outputs[:calls]
        self._judges[calls] = Judge(self._model, data, outputs, metric, drop, seed)
        if not self._fresh:  # a search that goes on: the journal has the seconds already
            self._journal.leave_out(time.perf_counter() - start)
        return self._judges[calls]


def _layers(
    engine: ModelEngine,
    best: Candidate,
    held: Sequence[Measurement],
    sensitivities: Mapping[str, Mapping[str, float]],
    journal: Journal,
    notes: list[str],
) -> list[Layer]:
    """Return the table of layers of what was chosen."""
    level = next((each for each in best.levels if each != "f32"), "") or _fastest_level(held)
    known = sensitivities.get(level)
    if level and known is None:
        known = journal.do("sensitivities", level, lambda: engine.sensitivities(level))

    def work() -> dict[str, Any]:
        arrays = engine.judging.calls[0].arrays
        said: list[str] = []
        found = layers(
            engine.model, best, engine.groups, arrays, engine.device, known,
            level=level, seconds=min(LAYERS_S, 0.05 * engine.seconds), note=said.append,
            profile=engine.profile(best),
        )  # fmt: skip
        return {"rows": [dataclasses.asdict(each) for each in found], "notes": said}

    found = journal.do("layers", best.to_json(), work)
    notes += found["notes"]
    return [Layer(**each) for each in found["rows"]]


def _fastest_level(held: Sequence[Measurement]) -> str:
    """Return the lower precision that was fastest for the whole model; "" if none was timed."""
    levels = [
        (each.p50_ms, str(each.candidate["precision"]))
        for each in held
        if each.p50_ms is not None and "precision" in each.candidate
    ]
    return min(levels)[1] if levels else ""


def digest(data: Dataset) -> str:
    """Return a digest of the arrays of a data set."""
    found = hashlib.sha256()
    for call in data.calls:
        for array in call.arrays:
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
        for name, value in sorted(call.extras.items()):
            found.update(name.encode())
            found.update(np.asarray(value).tobytes())
    return found.hexdigest()[:32]


def _name(metric: Any) -> str:
    """Return what a journal knows a metric by: its name, and a digest of its own code."""
    if metric is None or isinstance(metric, str):
        return metric or "cosine"
    module, name = getattr(metric, "__module__", ""), getattr(metric, "__qualname__", "")
    code = getattr(metric, "__code__", None)
    if code is None:
        return f"{module}.{name or type(metric).__qualname__}"
    return f"{module}.{name} {hashlib.sha256(_code(code)).hexdigest()[:16]}"


def _code(code: types.CodeType) -> bytes:
    """Return the bytes of a function's code, with those of the functions inside it."""
    inner = [_code(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    consts = [
        repr(sorted(map(repr, x)) if isinstance(x, frozenset) else x)
        for x in code.co_consts
        if not isinstance(x, types.CodeType)
    ]
    return b"".join([code.co_code, repr((consts, code.co_names)).encode(), *inner])


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
