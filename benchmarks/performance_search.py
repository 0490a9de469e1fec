"""The searches of docs/performance.md: what is searched, kept, and checked when killed.

``benchmarks/performance.py`` runs this in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

if __name__ == "__main__":  # not this folder, in which ``import openvino`` finds another file
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

OUT = pathlib.Path(__file__).parents[1] / "out" / "performance"
LOSSLESS = 1e-5
"""Largest drop, in the metric's unit, of what is called lossless."""


class Tuning(NamedTuple):
    """A search, and which of its candidates is meant.

    Attributes:
      name: of the folder that is saved.
      space: keywords of ``Space``.
      lossless: whether the drop is at most ``LOSSLESS``, or what the metric allows.
      share: of the budget.
      must: a level that the candidate has to have; "": what the search chose.
    """

    name: str
    space: Mapping[str, Any]
    lossless: bool = False
    share: float = 1.0
    must: str = ""


TUNINGS = {
    "cpu": (Tuning("lossless", {"precision": ()}, True, 0.6), Tuning("tuned", {})),
    "gpu": (
        Tuning("lossless", {"precision": ()}, True, 0.6),
        Tuning("bf16", {"precision": ("bf16",), "groups": False}, must="bf16"),
        Tuning("fp8", {"precision": ("bf16", "bf16+FP8"), "groups": False}, must="bf16+FP8"),
    ),
}


def converted(name: str) -> pathlib.Path:
    """Return the directory of a model, converted now if it is not there."""
    import jaxinfer as ji
    from benchmarks import performance_models as models
    from jaxinfer.core.frontend import Options
    from jaxinfer_converters.torch.sources import FRONT_END

    path = OUT / name / "model"
    if not (path / "model.json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = FRONT_END.open(models.CASES[name].source, Options()).convert(None)
        ji.save(model, path)
    return path


def dataset(model: Any, arrays: Mapping[str, Any], batch: int) -> Any:
    """Return data in calls of one size."""
    from jaxinfer.tune.data import read

    return read(model, [dict(arrays)]).rebatch(batch)


def search(name: str, batch: int, device: str, budget: float, folder: pathlib.Path) -> None:
    """Search, save each tuning in ``folder``, and write what was found to ``search.json``."""
    import jax

    import jaxinfer as ji
    from benchmarks import performance_models as models

    _require(device, jax.default_backend())
    case, found = models.CASES[name], {}
    data = models.data(name)
    model = ji.load(converted(name))
    journal = folder / "search.jsonl"
    for tuning in TUNINGS[device]:
        started = time.perf_counter()
        plan = optimized(
            model, case, dataset(model, data["search"], batch), journal, tuning, budget
        )
        seconds = time.perf_counter() - started
        place = _chosen(plan, tuning)
        if place is None:
            found[tuning.name] = {"missing": f"no candidate with {tuning.must} is allowed"}
            continue
        tuned = plan.model if place == plan.results.chosen else plan.candidate(place)
        tuned.save(folder / tuning.name, overwrite=True)
        held = plan.results.measurements[place]
        found[tuning.name] = {
            "candidate": dict(held.candidate),
            "label": held.label,
            "test_metric": metric_of(tuned.executable.flat, model, case, data["test"], batch),
            "measurement": _short(held),
            "baseline": _short(plan.results.measurements[plan.results.baseline]),
            "layers": plan.results.to_json()["layers"] if place == plan.results.chosen else [],
            "verdict": plan.results.verdict,
            "seconds": {**plan.results.seconds, "whole": round(seconds, 1)},
            "tried": _tried(plan.results),
            "device": _device(plan.results.device),
            "notes": list(plan.results.notes),
        }
        print(f"{name} batch {batch} {tuning.name}: {plan.results.verdict}", flush=True)
    write(folder / "search.json", found)


def replay(name: str, batch: int, device: str, like: int, folder: pathlib.Path) -> None:
    """Make again at this batch size what was found at another, and write it to ``search.json``."""
    import jax

    import jaxinfer as ji
    from benchmarks import performance_models as models
    from jaxinfer.tune.device import profile
    from jaxinfer.tune.tuned import apply_recipe

    _require(device, jax.default_backend())
    case, data, found = models.CASES[name], models.data(name), {}
    model, source = ji.load(converted(name)), folder.parent / f"{device}-{like}"
    measured = profile()
    known = json.loads((source / "search.json").read_text())
    for tuning, each in known.items():
        if "missing" in each:
            found[tuning] = each
            continue
        started = time.perf_counter()
        calls = dataset(model, data["search"], batch)
        tuned = apply_recipe(source / tuning, model, calls, metric=case.metric, check=False)
        tuned.save(folder / tuning, overwrite=True)
        base = {"p50_ms": each["baseline"]["p50_ms"] * batch / like}  # to choose repeats
        found[tuning] = {
            "like": like,
            "candidate": each["candidate"],
            "label": each["label"],
            "test_metric": metric_of(tuned.executable.flat, model, case, data["test"], batch),
            "baseline": base,
            "layers": _layers(model, tuned.recipe, calls.calls[0].arrays, measured),
            "device": _device(measured.to_json()),
            "seconds": {"whole": round(time.perf_counter() - started, 1)},
            "notes": list(tuned.notes),
        }
        print(f"{name} batch {batch} {tuning}: {each['label']} as at batch {like}", flush=True)
    write(folder / "search.json", found)


def _layers(model: Any, recipe: Any, arrays: Any, measured: Any) -> list[dict[str, Any]]:
    import dataclasses

    from jaxinfer.tune.groups import find_groups
    from jaxinfer.tune.layers import layers

    groups = find_groups(model, arrays)
    return [
        dataclasses.asdict(each)
        for each in layers(model, recipe.candidate, groups, arrays, measured)
    ]


def optimized(
    model: Any, case: Any, data: Any, journal: pathlib.Path, tuning: Tuning, budget: float
) -> Any:
    """Run one search, going on from the journal."""
    from jaxinfer.tune.budget import Budget
    from jaxinfer.tune.optimize import optimize
    from jaxinfer.tune.space import Space

    return optimize(
        model,
        data,
        metric=case.metric,
        max_drop=LOSSLESS if tuning.lossless else case.max_drop,
        budget=Budget(seconds=budget * tuning.share),
        space=Space(**tuning.space),
        cache=journal,
        resume=True,
    )


def _chosen(plan: Any, tuning: Tuning) -> int | None:
    """Return the place of the candidate that is meant: the fastest allowed of its level."""
    if not tuning.must:
        return plan.results.chosen
    held = plan.results.measurements
    fits = [
        i
        for i, each in enumerate(held)
        if each.candidate.get("precision", "f32") == tuning.must
        and each.status == "measured" and not each.reason and each.p50_ms
    ]  # fmt: skip
    return min(fits, key=lambda i: held[i].p50_ms, default=None)


def metric_of(flat: Any, model: Any, case: Any, test: Mapping[str, Any], batch: int) -> float:
    """Return the metric of an executable on the held-out data."""
    import numpy as np

    from jaxinfer.tune.data import run_all

    calls = run_all(flat, dataset(model, test, batch))
    return case.metric([np.concatenate([call[0] for call in calls])], test)


def _short(held: Any) -> dict[str, Any]:
    found = held.to_json()
    return {
        **{name: value for name, value in found.items() if name not in ("times_ms", "candidate")},
        **{name: getattr(held, name) for name in ("p50_ms", "p99_ms", "spread_ms")},
        "calls": len(held.times_ms),
    }


def _device(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return of the micro-benchmark what the page and its readers use."""
    rates = {
        kind: {name: max(shapes.values()) for name, shapes in of.items()}
        for kind, of in found.get("rates", {}).items()
    }
    names = ("dispatch_us", "bandwidth", "cache_bytes", "openvino", "load", "kind")
    return {"flops_per_s": rates, **{name: found[name] for name in names if name in found}}


def _tried(results: Any) -> list[dict[str, Any]]:
    """Return every candidate in a line."""
    return [
        {
            "label": each.label,
            "status": each.status,
            "p50_ms": None if each.p50_ms is None else round(each.p50_ms, 4),
            "drop": each.drop,
            "reason": each.reason[:200],
        }
        for each in results.measurements
    ]


def _require(device: str, backend: str) -> None:
    if (backend == "cpu") != (device == "cpu"):
        raise SystemExit(f"--device {device}: JAX computes on {backend} here")


def one_search(name: str, batch: int, budget: float, folder: pathlib.Path) -> None:
    """Run the search ``tuned`` alone, and write its recipe and its seconds."""
    import jaxinfer as ji
    from benchmarks import performance_models as models
    from jaxinfer.tune.candidate import Candidate

    case, tuning = models.CASES[name], TUNINGS["cpu"][-1]
    model = ji.load(converted(name))
    data = dataset(model, models.data(name)["search"], batch)
    started = time.perf_counter()
    plan = optimized(model, case, data, folder / "search.jsonl", tuning, budget)
    found = {
        "seconds": round(time.perf_counter() - started, 2),
        "recipe": plan.recipe.to_json(),
        "label": plan.recipe.candidate.label,
        "verdict": plan.results.verdict,
        "p50_ms": {
            Candidate.from_json(each.candidate).key: each.p50_ms
            for each in plan.results.measurements
            if each.p50_ms is not None
        },
    }
    write(folder / "one.json", found)


def search_check(budget: float, most: int, seed: int) -> dict[str, Any]:
    """Return how long a search of 120 s takes, and what killing it at random moments changes.

    Args:
      budget: of the search, seconds.
      most: times that it is killed.
      seed: of the moments.
    """
    name, batch = "minilm", 8
    from benchmarks import performance_models as models
    from jaxinfer.tune.candidate import Candidate

    models.data(name)
    converted(name)
    moments = random.Random(seed)

    def run(folder: pathlib.Path, after: float | None = None) -> dict[str, Any] | None:
        """Run a search; kill it after so many seconds."""
        started = time.perf_counter()
        command = [*search_command(name, batch, "cpu", budget, folder), "--one"]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        if process.returncode:
            raise SystemExit(f"the search ended with {process.returncode}")
        found = json.loads((folder / "one.json").read_text())
        return {**found, "process_s": round(time.perf_counter() - started, 2)}

    with tempfile.TemporaryDirectory() as scratch:
        whole, parts = pathlib.Path(scratch) / "whole", pathlib.Path(scratch) / "parts"
        whole.mkdir()
        parts.mkdir()
        first = run(whole)
        assert first is not None
        kills, done = [], None
        while done is None and len(kills) < most:
            after = round(moments.uniform(8, 0.7 * budget), 1)
            done = run(parts, after)
            if done is None:
                lines = (parts / "search.jsonl").read_text().count("\n") if (
                    parts / "search.jsonl"
                ).exists() else 0  # fmt: skip
                kills.append({"after_s": after, "journal_lines": lines})
                print(f"killed after {after} s, {lines} lines", flush=True)
        last = done or run(parts)
        again = run(parts)  # every step is in the journal: nothing is measured
    assert last is not None
    assert again is not None
    same = lambda a, b: _decided(a["recipe"]) == _decided(b["recipe"])
    keys = [Candidate.from_json(each["recipe"]["candidate"]).key for each in (first, last)]
    times = [last["p50_ms"].get(key) for key in keys]  # by the numbers of the killed search
    return {
        "model": name,
        "batch": batch,
        "budget_s": budget,
        "limit_s": 150 if budget == 120 else None,
        "optimize_s": first["seconds"],
        "process_s": first["process_s"],
        "kills": kills,
        "uninterrupted": {"label": first["label"], "verdict": first["verdict"]},
        "killed": {"label": last["label"], "verdict": last["verdict"]},
        "replayed": {"label": again["label"], "process_s": again["process_s"]},
        "same_as_uninterrupted": first["recipe"]["candidate"] == last["recipe"]["candidate"],
        "apart": times[0] / times[1] - 1 if all(times) else None,
        "same_as_replayed": same(last, again),
    }


def _decided(recipe: Mapping[str, Any]) -> str:
    """Return a recipe without what says where and when it was made."""
    return json.dumps({k: v for k, v in recipe.items() if k != "environment"}, sort_keys=True)


def write(path: pathlib.Path, data: Any) -> None:
    """Write JSON, lists of numbers on one line."""
    text = json.dumps(data, indent=1)
    flat: Callable[[re.Match[str]], str] = lambda found: re.sub(r"\s+", " ", found[0])
    text = re.sub(r"\[[\s\d.,eE+-]*\]", flat, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def search_command(
    name: str, batch: int, device: str, budget: float, folder: pathlib.Path, like: int = 0
) -> list[str]:
    """Return the command that runs the searches, or what replaces them, in its own process."""
    return [
        sys.executable, __file__, name, str(batch), "--device", device, "--budget", str(budget),
        "--folder", str(folder), *(("--like", str(like)) if like else ()),
    ]  # fmt: skip


def main() -> None:
    """Run the searches of one model and batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of a search")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--one", action="store_true", help="the search `tuned` alone")
    parser.add_argument("--like", type=int, help="no search: what was found at this batch size")
    options = parser.parse_args()
    if options.like:
        replay(options.model, options.batch, options.device, options.like, options.folder)
    elif options.one:
        one_search(options.model, options.batch, options.budget, options.folder)
    else:
        search(options.model, options.batch, options.device, options.budget, options.folder)


if __name__ == "__main__":
    main()
