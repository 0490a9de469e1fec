"""bench: several sides on the same inputs, in turn, each in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxinfer.core.errors import InputError, listing
from jaxinfer.tune.bench._environment import environment
from jaxinfer.tune.bench._process import (
    Process,
    SideFailed,
    import_path,
    machine_busy_s,
    side_environment,
    usable_cpus,
)
from jaxinfer.tune.bench._worker import read_arrays, write_arrays
from jaxinfer.tune.bench.result import (
    FAILED,
    MISSING,
    SKIPPED,
    WRONG,
    BenchResult,
    Row,
    difference,
    with_ratios,
)
from jaxinfer.tune.bench.side import Side

Progress = Callable[[str, str, "int | None"], None]
TRACED = 5  # calls in a profile


def bench(
    sides: Mapping[str, Side],
    inputs: Mapping[int, Sequence[np.ndarray]] | Sequence[np.ndarray],
    *,
    label: str = "",
    reference: Sequence[str] = (),
    repeats: int = 25,
    block: int = 5,
    threads: int | None = None,
    seed: int = 0,
    timeout_s: float = 900.0,
    sizes: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
    profile: str | os.PathLike[str] | None = None,
    profiled: Sequence[str] = (),
    progress: Progress | None = None,
) -> BenchResult:
    """Time several sides on the same inputs, interleaved, each in a process of its own.

    For every batch size each side is started, opened, compiled and called once, one after the
    other; then they take turns in blocks of ``block`` calls after an untimed one, in an order that
    rotates. A side's process is paused between its turns, so that only one computes at a time.
    A call takes numpy arrays on the host, and is over when its results are there (on the host, or
    finished on the device). A side that raises, crashes, is killed or does not answer in time
    becomes a row with the reason, and the others go on.

    Args:
      sides: by name, in the order of the rows. A side that is ``missing`` or ``skipped`` becomes
        a row that says so.
      inputs: the array inputs, by batch size (samples in a call); or arrays alone, for inputs
        without one.
      label: what is run, in words.
      reference: sides whose outputs the others are compared with: the first of them that runs;
        by default the first side.
      repeats: timed calls of each side; ``block`` of them in a turn.
      threads: of every side; by default as many as this process may use processors. With fewer,
        the sides may use only so many processors (Linux), so that XLA's number is the same too.
      seed: passed to the sides.
      timeout_s: for each step of a side (opening, compiling, a block of calls).
      sizes, notes: for the result.
      profile: a folder for traces of the sides ``profiled``, of calls after the timed ones.
      progress: called as ``progress(side, step, batch)``.

    Returns:
      The rows, and what was found of the machine. Cost: all models in memory at once, each in
      its own process; nothing is kept from one batch size to the next.

    Raises:
      InputError: settings that do not fit, all at once.
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {None: list(inputs)}
    cpus = usable_cpus()
    _check(sides, given, repeats, block, threads, timeout_s, len(cpus), profiled)
    threads = threads or len(cpus)
    plan = _Plan(
        dict(sides), tuple(reference) or tuple(sides)[:1], repeats, block, threads,
        cpus[:threads] if threads < len(cpus) else [], seed, timeout_s,
        Path(profile) if profile is not None else None, tuple(profiled),
        progress or (lambda *_: None),
    )  # fmt: skip
    before = environment(())
    rows: list[Row] = []
    chosen: dict[str, None] = {}
    versions: dict[str, str] = {}
    said = list(notes)
    for batch, arrays in given.items():
        with tempfile.TemporaryDirectory(prefix="jaxinfer-bench-") as folder:
            turn = _Batch(plan, batch, Path(folder))
            rows += turn.measure(arrays)
        chosen |= {turn.reference: None} if turn.reference else {}
        versions |= turn.versions
        said += turn.notes
    if plan.cpus:
        said.append(f"{threads} of {len(cpus)} processors were used, by every side the same")
    after = environment(())
    found = {**before, "load_average_after": after["load_average"]}
    found["versions"] = {**before["versions"], **versions}
    peers = [name for name, side in sides.items() if side.peer]
    return BenchResult(
        label, with_ratios(rows, peers), ", ".join(chosen), dict(sizes or {}), repeats, block,
        seed, threads, found, tuple(dict.fromkeys(said)), tuple(plan.profiles()),
    )  # fmt: skip


class _Plan(NamedTuple):
    sides: dict[str, Side]
    references: tuple[str, ...]
    repeats: int
    block: int
    threads: int
    cpus: list[int]
    seed: int
    timeout: float
    profile: Path | None
    profiled: tuple[str, ...]
    progress: Progress

    def profiles(self) -> list[str]:
        """Return the files that hold traces."""
        if self.profile is None:
            return []
        files = sorted(path for path in self.profile.rglob("*") if path.is_file())
        return [str(path) for path in files if path.stat().st_size]


def _check(
    sides: Mapping[str, Side],
    inputs: Mapping[Any, Any],
    repeats: Any,
    block: Any,
    threads: Any,
    timeout: float,
    cpus: int,
    profiled: Sequence[str],
) -> None:
    problems = [] if sides else ["sides: none"]
    if not inputs:
        problems.append("inputs: none")
    for name, value in (("repeats", repeats), ("block", block)):
        if not _counts(value):
            problems.append(f"{name}: required an integer from 1 on, got {value!r}")
    if threads is not None and not (_counts(threads) and threads <= cpus):
        problems.append(
            f"threads: required 1 to {cpus}, the processors that this process may use, "
            f"got {threads!r}"
        )
    problems += [f"batch: required 1 or more, got {batch!r}" for batch in inputs
                 if batch is not None and not _counts(batch)]  # fmt: skip
    if not timeout > 0:
        problems.append(f"timeout_s: required a number above 0, got {timeout!r}")
    problems += [f"profiled: no side {name!r}" for name in profiled if name not in sides]
    if problems:
        raise InputError(listing("bench:", problems))


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclasses.dataclass
class _Running:
    """A side that is ready to be timed."""

    process: Process
    row: Row
    outputs: Path
    times: list[float] = dataclasses.field(default_factory=list)
    cores: list[float] = dataclasses.field(default_factory=list)
    others: list[float] = dataclasses.field(default_factory=list)


class _Batch:
    """All sides at one batch size."""

    def __init__(self, plan: _Plan, batch: int | None, folder: Path):
        self._plan, self._batch, self._folder = plan, batch, folder
        self._device = ""
        self.reference = ""
        self.versions: dict[str, str] = {}
        self.notes: list[str] = []

    def measure(self, arrays: Sequence[np.ndarray]) -> list[Row]:
        """Return a row for each side."""
        plan = self._plan
        inputs = self._folder / "inputs.npz"
        write_arrays(inputs, arrays)
        rows: dict[str, Row] = {}
        ready: dict[str, _Running] = {}
        with contextlib.ExitStack() as stack:
            for place, (name, side) in enumerate(plan.sides.items()):
                made = self._start(name, side, place, inputs, stack)
                if isinstance(made, Row):
                    rows[name] = made
                else:
                    ready[name] = made
            self._take_turns(ready, rows)
            self._finish(ready, rows)
            rows |= self._compared(ready)
        return [rows[name] for name in plan.sides]

    def _start(
        self, name: str, side: Side, place: int, inputs: Path, stack: contextlib.ExitStack
    ) -> _Running | Row:
        """Return a side that has been called once, or the row that says why there is none."""
        plan = self._plan
        row = Row(name, self._batch, precision=side.precision)
        if side.missing or side.skipped:
            status = MISSING if side.missing else SKIPPED
            return row.replace(status=status, reason=side.missing or side.skipped)
        scratch = self._folder / str(place)
        scratch.mkdir()
        environ = side_environment(plan.threads, side.environment, scratch)
        settings = {
            **side.settings, "threads": plan.threads, "seed": plan.seed, "device": self._device,
            "scratch": str(scratch), "batch": self._batch,
        }  # fmt: skip
        try:
            process = Process(scratch / "log.txt", environ)
        except OSError as error:
            return row.replace(status=FAILED, reason=f"no process could be started: {error}")
        stack.callback(process.end)
        outputs = scratch / "outputs.npz"
        try:
            plan.progress(name, "open", self._batch)
            opened = process.ask(
                "open", plan.timeout, factory=side.factory, settings=settings,
                path=list(import_path()), cpus=plan.cpus,
            )  # fmt: skip
            row = self._with_facts(row, opened["facts"])
            row = row.replace(load_s=opened["load_s"], base_mb=opened["base_mb"] or None)
            plan.progress(name, "compile", self._batch)
            made = process.ask("prepare", plan.timeout, inputs=str(inputs), outputs=str(outputs))
        except SideFailed as error:
            process.end()
            return row.replace(status=FAILED, reason=str(error))
        row = self._with_facts(row, made["facts"])
        if not side.peer and not self._device:
            self._device = row.device
        row = row.replace(
            compile_s=made["compile_s"], first_call_ms=made["first_call_ms"],
            notes=(*row.notes, *made["notes"]),
        )  # fmt: skip
        return _Running(process, row, outputs)

    def _with_facts(self, row: Row, facts: Mapping[str, Any]) -> Row:
        self.versions |= facts.get("versions", {})
        return row.replace(
            precision=facts.get("precision", row.precision),
            device=facts.get("device", row.device),
            notes=tuple(facts.get("notes", row.notes)),
        )

    def _take_turns(self, ready: dict[str, _Running], rows: dict[str, Row]) -> None:
        """Run all blocks; sides that fail go to ``rows``."""
        plan = self._plan
        left, turn = plan.repeats, 0
        while left > 0 and ready:
            calls = min(plan.block, left)
            names = list(ready)
            shift = turn % len(names)
            for name in (*names[shift:], *names[:shift]):
                plan.progress(
                    name, f"time {plan.repeats - left + calls}/{plan.repeats}", self._batch
                )
                side = ready[name]
                try:
                    self._block(side, calls)
                except SideFailed as error:
                    reason = f"after {len(side.times)} timed calls: {error}"
                    rows[name] = side.row.replace(status=FAILED, reason=reason)
                    side.process.end()
                    del ready[name]
            left, turn = left - calls, turn + 1

    def _block(self, side: _Running, calls: int) -> None:
        started, before = time.perf_counter(), machine_busy_s()
        answer = side.process.ask("run", self._plan.timeout, calls=calls)
        seconds, after = time.perf_counter() - started, machine_busy_s()
        side.times += answer["times_ms"]
        if answer["wall_s"] > 0:
            side.cores.append(answer["cpu_s"] / answer["wall_s"])
        if before is not None and after is not None and seconds >= 0.2:  # it counts in 10 ms
            side.others.append(max(0.0, (after - before - answer["all_cpu_s"]) / seconds))

    def _finish(self, ready: dict[str, _Running], rows: dict[str, Row]) -> None:
        """Fill in memory and times, and write the traces."""
        plan = self._plan
        for name, side in list(ready.items()):
            try:
                memory = side.process.ask("memory", plan.timeout)["peak_mb"]
            except SideFailed as error:
                rows[name] = side.row.replace(status=FAILED, reason=str(error))
                del ready[name]
                continue
            middle = lambda values: statistics.median(values) if values else None
            side.row = side.row.replace(
                times_ms=tuple(side.times), peak_mb=memory, cores=middle(side.cores),
                others=middle(side.others),
            )  # fmt: skip
            if plan.profile is not None and name in plan.profiled:
                self._trace(name, side, plan.profile)

    def _trace(self, name: str, side: _Running, profile: Path) -> None:
        plan = self._plan
        plan.progress(name, "profile", self._batch)
        folder = profile / (name if self._batch is None else f"{name}-batch-{self._batch}")
        before = {path for path in folder.rglob("*") if path.is_file()}
        problem = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            side.process.ask(
                "trace",
                plan.timeout,
                folder=str(folder.absolute()),
                calls=min(TRACED, plan.repeats),
            )
        except (SideFailed, OSError) as error:
            problem = str(error)
        new = {path for path in folder.rglob("*") if path.is_file()} - before
        for suffix in (".xplane.pb", "perfetto_trace.json.gz"):
            if not problem and not any(
                path.name.endswith(suffix) and path.stat().st_size for path in new
            ):
                problem = f"the profiler wrote no {suffix}"
        if problem:
            side.row = side.row.replace(notes=(*side.row.notes, f"no profile: {problem}"))

    def _compared(self, ready: Mapping[str, _Running]) -> dict[str, Row]:
        """Return the rows of the sides that ran, held against the reference."""
        names = [name for name in (*self._plan.references, *ready) if name in ready]
        if not names:
            return {}
        self.reference = names[0]
        want = read_arrays(ready[self.reference].outputs)
        rows = {}
        for name, side in ready.items():
            error, cosine, fault = difference(want, read_arrays(side.outputs))
            wrong = side.row.precision == "f32" and not error <= WRONG
            notes = (*side.row.notes, *([f"outputs differ: {fault}"] if fault else []))
            rows[name] = side.row.replace(error=error, cosine=cosine, wrong=wrong, notes=notes)
        return rows
