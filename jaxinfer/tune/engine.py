"""The engine of a search: candidates are really built, run on data, compared and timed.

Executables are kept while their weights take less than a quarter of the memory, the least recently
used go first; one that is needed again is built again. What a search that goes on from a journal
has to do again is not counted with its budget.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.compile._memory import DeviceMemoryError
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError, JaxinferError
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.trace import trace
from jaxinfer.transforms._arrange_trace import layer_loops
from jaxinfer.tune.bounds import bound_ms
from jaxinfer.tune.build import Built, build, transformed
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.data import Dataset, run_all
from jaxinfer.tune.device import DeviceProfile
from jaxinfer.tune.groups import Group, group_of
from jaxinfer.tune.journal import Journal
from jaxinfer.tune.layers import product_times
from jaxinfer.tune.metrics import Judge
from jaxinfer.tune.sensitivity import sensitivities
from jaxinfer.tune.timing import interleave

WORKLOAD = 8  # calls with different data that are timed in turn
SENSITIVITY_SAMPLES = 32
SWITCHED = 2.0  # times the model's own time: what a program with switches takes, about
SHARE = 0.05  # of the budget, for one table of sensitivities or of savings
QUICK = 40  # parts of the budget that one pass over the data that judge may take
_BUILD_ERRORS = (
    JaxinferError, DeviceMemoryError, MemoryError, ValueError, TypeError, NotImplementedError,
    RuntimeError, OverflowError,
)  # fmt: skip


@dataclasses.dataclass
class ModelEngine:
    """Builds and measures candidates of one model.

    Attributes:
      model: the model as it came.
      groups: of its layers.
      calibration, judging: its data.
      judge_of: makes a Judge of the first n calls of the judging data.
      device: the micro-benchmark.
      journal: of the search.
      seconds: of the budget.
      baseline: key of the candidate that is never timed less than others.
      facts: what the model has.
    """

    model: Model
    groups: Sequence[Group]
    calibration: Dataset
    judging: Dataset
    judge_of: Callable[[int], Judge]
    device: DeviceProfile
    journal: Journal
    seconds: float
    baseline: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    _pool: collections.OrderedDict[str, Built] = dataclasses.field(
        default_factory=collections.OrderedDict
    )
    _quick: int = 0
    _sample_s: float = 0.0
    _made: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self._quick = len(self.judging.calls)
        self.facts = {**facts_of(self.model, self.judging), **self.facts, "judged_all": True}

    # building

    def build(self, candidate: Candidate) -> dict[str, Any]:
        """Compile a candidate; what fails is returned as ``{"failed": why}``."""
        if candidate.calibrated and not self.calibration.calls:
            return {"failed": "it needs calibration data, and one sample is kept for judging"}
        try:
            built = self._build(candidate)
        except _BUILD_ERRORS as error:
            return {"failed": one_line(error)}
        return {
            "compile_s": round(built.compile_s, 4),
            "first_call_ms": round(built.first_call_ms, 4),
            "peak_bytes": built.peak_bytes,
            "weight_bytes": built.weight_bytes,
            "notes": list(built.notes),
        }

    def _build(self, candidate: Candidate) -> Built:
        calibration = self.calibration if self.calibration.calls else None
        built = build(self.model, candidate, self.groups, self.judging, calibration)
        self._pool[candidate.key] = built
        self._made.add(candidate.key)
        self._evict(candidate.key)
        return built

    def built(self, candidate: Candidate) -> Built:
        """Return a candidate compiled, again if it is not held any more."""
        if candidate.key not in self._pool:
            start = time.perf_counter()
            self._build(candidate)
            if candidate.key in self._made:
                self.journal.leave_out(time.perf_counter() - start)
        self._pool.move_to_end(candidate.key)
        return self._pool[candidate.key]

    def _evict(self, keep: str) -> None:
        def held() -> int:
            return sum(each.weight_bytes or 0 for each in self._pool.values())

        while len(self._pool) > 2 and held() > _memory() / 4:
            first = next(key for key in self._pool if key != keep)
            del self._pool[first]

    # judging

    def _data(self, candidate: Candidate, calls: int) -> Dataset:
        chosen = dataclasses.replace(self.judging, calls=self.judging.calls[:calls])
        if candidate.batch and candidate.batch != self.judging.batch:
            return chosen.rebatch(candidate.batch)
        return chosen

    def judge(self, candidate: Candidate, full: bool) -> dict[str, Any]:
        """Run a candidate on data and compare it with the reference."""
        calls = len(self.judging.calls) if full else self._quick
        flat = self.built(candidate).executable.flat
        try:
            judge = self.judge_of(calls)
            start = time.perf_counter()
            outputs = run_all(flat, self._data(candidate, calls))
            seconds = time.perf_counter() - start
            if candidate.batch and candidate.batch != self.judging.batch:
                outputs = regrouped(outputs, [call.size for call in self.judging.calls[:calls]])
            score = judge.score(outputs)
        except _BUILD_ERRORS as error:
            return {"failed": one_line(error)}
        return {
            "metric": _number(score.metric),
            "drop": _number(score.drop),
            "similarity": {name: _number(value) for name, value in score.similarity.items()},
            "run_s": seconds,
        }

    def learn(self, run_s: float) -> None:
        """Choose how many calls judge during the search, from the time that all of them take."""
        calls = len(self.judging.calls)
        self._sample_s = run_s / max(1, self.judging.size)
        share = self.seconds / QUICK / max(run_s, 1e-9)
        self._quick = calls if share >= 1 else max(1, min(calls, round(calls * share)))
        self.facts["judged_all"] = self._quick == calls

    # timing

    def time(self, candidates: Sequence[Candidate], calls: int) -> dict[str, list[float]]:
        """Time candidates in turn on calls of the judging data, from host arrays to results."""
        sides: dict[str, Callable[[int], Any]] = {}
        weights: dict[str, float] = {}
        for each in candidates:
            flat = self.built(each).executable.flat
            load = [call.arrays for call in self._data(each, len(self.judging.calls)).calls]
            load = load[:WORKLOAD] if self.judging.uniform else load[: 2 * WORKLOAD]
            sides[each.key] = lambda i, flat=flat, load=load: flat(load[i % len(load)])
            weights[each.key] = each.batch or self.facts["batch"]
        kept = frozenset(key for key in sides if key == self.baseline)
        return interleave(sides, calls, weights=weights, keep=kept)

    # what is known without running

    def bound(self, candidate: Candidate) -> float | None:
        """Return milliseconds that no call of a candidate can beat; None if that is not known."""
        batch = candidate.batch if candidate.batch != self.judging.batch else 0
        data = self.judging.rebatch(batch) if batch else self.judging
        found = bound_ms(self.model, candidate, self.groups, data.calls[0].arrays, self.device)
        return None if found is None else float(found)

    def profile(self, candidate: Candidate) -> dict[str, float] | None:
        """Return milliseconds of each group by OpenVINO's counters; None for other back-ends."""
        if candidate.backend != "openvino":
            return None
        from jaxinfer.compile.openvino.profile import product_times as counted

        (entry, *_) = self.built(candidate).executable._entries
        data = self._data(candidate, 1)
        function = entry.code.function  # pyright: ignore[reportFunctionMemberAccess]
        try:
            times = counted(function, data.calls[0].arrays)
        except (RuntimeError, InputError):
            return None  # sizes of another bucket, or no counters
        found: dict[str, float] = {}
        for name, milliseconds in times.items():
            groups = {group_of(path, self.groups) for path in function._built.products[name]}
            for group in groups - {None}:
                assert group is not None
                found[group] = found.get(group, 0.0) + milliseconds / len(groups)
        return found

    def same(self, candidate: Candidate) -> bool:
        """Whether a candidate computes what the model as it came does, equation by equation."""
        try:
            made = transformed(self.model, candidate, self.groups, None)
        except _BUILD_ERRORS:
            return False  # building it says why
        return self._text(made) == self._text(self.model)

    def _text(self, model: Model) -> str:
        """Return a model's jaxpr at the data's shapes, without addresses."""
        arrays = iter(self.judging.calls[0].arrays)
        example = [next(arrays) if spec.is_array else spec.value for spec in model.inputs]
        with x64_scope(x64_of(model.program)):
            (traced,) = trace(model, example)
        return re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))

    def sensitivities(self, level: str) -> dict[str, float]:
        """Return the divergence of each group alone at a level, on the calibration data."""
        if not self.calibration.calls:
            return {}
        data = self.calibration.take(self._sensitivity_samples())
        plain = level if level != "int8" else "W8A8-static"
        found = sensitivities(self.model, data, self.groups, plain)
        return {name: _number(value) for name, value in found.items()}

    def _sensitivity_samples(self) -> int:
        """Return how many samples run once for each group in a small share of the budget."""
        each_s = SWITCHED * self._sample_s * (len(self.groups) + 1)
        fit = int(SHARE * self.seconds / each_s) if each_s > 0 else SENSITIVITY_SAMPLES
        batch = max(1, self.calibration.batch)
        fit = fit - fit % batch if fit >= batch else fit  # whole calls
        return max(1, min(SENSITIVITY_SAMPLES, fit))

    def savings(self, level: str) -> dict[str, float]:
        """Return the milliseconds that each group may save at a level."""
        plain = level if level != "int8" else "W8A8"
        times = product_times(
            self.model, self.groups, self.judging.calls[0].arrays, plain, SHARE * self.seconds
        )
        return {name: float(value) for name, value in times.items()}


def facts_of(model: Model, data: Dataset) -> dict[str, Any]:
    """Return what a model has, from one trace: what a space need not try, is not tried."""
    arrays = iter(data.calls[0].arrays)
    example = [next(arrays) if spec.is_array else spec.value for spec in model.inputs]
    with x64_scope(x64_of(model.program)):
        (traced,) = trace(model, example)
        loops = layer_loops(traced.jaxpr, len(traced.paths))
    names: set[str] = set()
    _primitives(traced.jaxpr, names)
    graph = getattr(model.program, "graph", None)
    attention = any("attention" in node.op for node in getattr(graph, "nodes", ()))
    given = [
        (spec.path, array.shape, array.dtype)
        for spec, array in zip(
            [s for s in model.inputs if s.is_array], data.calls[0].arrays, strict=True
        )
    ]
    outs = {(tuple(v.aval.shape), np.dtype(v.aval.dtype)) for v in traced.jaxpr.outvars}
    donate = [path for path, shape, dtype in given if (tuple(shape), np.dtype(dtype)) in outs]
    return {
        "convolutions": "conv_general_dilated" in names,
        "attention": attention,
        "scans": bool(loops),
        "batch": data.batch,
        "donate": donate,
    }


def _primitives(jaxpr: Any, names: set[str]) -> None:
    from jaxinfer.core._compat import subjaxprs

    for eqn in jaxpr.eqns:
        names.add(eqn.primitive.name)
        for inner in subjaxprs(eqn.params):
            _primitives(getattr(inner, "jaxpr", inner), names)


def regrouped(
    outputs: Sequence[Sequence[np.ndarray]], sizes: Sequence[int]
) -> list[list[np.ndarray]]:
    """Return results of calls as those of calls of other sizes, in the same order of samples."""
    joined = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
    ends = np.cumsum(sizes)
    return [[out[end - n : end] for out in joined] for n, end in zip(sizes, ends, strict=True)]


def one_line(error: BaseException) -> str:
    """Return an exception as one line for a table."""
    text = " ".join(str(error).split())[:300]
    own = isinstance(error, JaxinferError)
    return text if own else f"{type(error).__name__}: {text}"


def _number(value: Any) -> float:
    return float(value)


def _memory() -> float:
    """Return the bytes that executables share with everything else on the device."""
    stats: Mapping[str, Any] | None = None
    device = jax.devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats()
    if stats and stats.get("bytes_limit"):
        return float(stats["bytes_limit"])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return 8e9
