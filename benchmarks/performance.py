"""Tuned models against their peers: what docs/performance.md is made of.

    python benchmarks/performance.py --train
    python benchmarks/performance.py minilm resnet50 --batch 1 8 32
    python benchmarks/performance.py --search-check
    python benchmarks/performance.py --device gpu            (batches 1, 32, 256; bf16 and FP8)
    python benchmarks/performance_page.py

For each model and batch size: the model is converted (once); two searches share a journal, one
within float32 (*lossless*), one with the drop that the metric allows (*tuned*); both results are
saved, and timed beside the model as converted and the peers, each in a process of its own, in turn
(``jaxinfer.tune.bench``). Metrics are of held-out data that no search and no calibration has
seen. Each model and batch size is a file of ``results/performance``; what has one is not measured
again without ``--again``. Models, journals and data are in ``out/performance``.

Run it on a quiet machine: the load average is in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import common

ROOT = pathlib.Path(__file__).parents[1]
OUT = ROOT / "out" / "performance"
RESULTS = common.RESULTS / "performance"
MODELS = ("minilm", "resnet50", "vit_b16", "digits", "language_model")
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
PEERS = {
    "cpu": (
        *("torch", "torch-compile", "torch-compile-max-autotune"),
        *("onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8"),
    ),
    "gpu": (
        *("torch", "torch-bf16", "torch-compile-bf16", "torch-compile-max-autotune-bf16"),
        "torch-compile-max-autotune",
    ),
}
JUDGED = {
    "cpu": ("torch", "onnxruntime-int8", "openvino-int8"),
    "gpu": ("torch", "torch-bf16", "torch-compile-max-autotune-bf16"),
}
"""Peers whose metric is taken on the held-out data; others are held against torch in float32."""
BATCHES = {"cpu": (1, 8, 32), "gpu": (1, 32, 256)}
SLOW = "torch-compile-max-autotune"


# Models and searches.


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
            "device": dict(plan.results.device),
            "notes": list(plan.results.notes),
        }
        print(f"{name} batch {batch} {tuning.name}: {plan.results.verdict}", flush=True)
    write(folder / "search.json", found)


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


# Peers.


def _sides(name: str, wanted: Sequence[str], data: pathlib.Path, scratch: pathlib.Path, batch: int):
    """Return the sides of peers at one batch size, and the arrays that they are timed on."""
    import jaxinfer as ji
    from benchmarks import performance_models as models
    from jaxinfer.tune.bench._inputs import draw
    from jaxinfer.tune.bench._model import _calibration
    from jaxinfer.tune.bench._peers import origin, peer_side

    folder = converted(name)
    model = ji.load(folder)
    drawn = draw(model, [batch], {}, data, 0)
    settings = {"model_dir": str(folder.absolute()), "options": {"seed": 0}}
    settings |= _calibration(scratch, drawn.calibration)
    start = origin(models.CASES[name].source, {})
    return {each: peer_side(each, start, settings) for each in wanted}, drawn.calls


def judge(name: str, device: str) -> dict[str, Any]:
    """Return the metric of the peers that round, on the held-out data; keeps it in a file.

    int8 is calibrated on all data of the search.
    """
    import dataclasses

    import numpy as np

    from benchmarks import performance_models as models
    from jaxinfer.tune.bench import bench
    from jaxinfer.tune.bench._arrays import read_arrays

    path = OUT / name / f"judged-{device}.json"
    if path.exists():
        return json.loads(path.read_text())
    case, data = models.CASES[name], models.data(name)
    size = len(data["test"][case.inputs[0]])
    with tempfile.TemporaryDirectory() as scratch:
        both = pathlib.Path(scratch) / "both.npz"  # the first call is run, the others calibrate
        parts = {k: np.concatenate([data["test"][k], data["search"][k]]) for k in case.inputs}
        np.savez(both, **parts)  # pyright: ignore
        sides, calls = _sides(name, JUDGED[device], both, pathlib.Path(scratch), size)
        kept = {
            each: dataclasses.replace(
                side,
                factory="benchmarks.performance_sides:open_kept",
                settings={
                    **side.settings, "inner": side.factory, "keep": f"{scratch}/{each}.npz"
                },
            )
            for each, side in sides.items()
        }  # fmt: skip
        result = bench(kept, calls, repeats=1, block=1, progress=_say)
        found: dict[str, Any] = {}
        for row in result.rows:
            entry: dict[str, Any] = {"status": row.status, "reason": row.reason}
            if row.measured:
                outputs = read_arrays(pathlib.Path(f"{scratch}/{row.side}.npz"))
                entry["metric"] = case.metric(outputs, data["test"])
                entry["cosine"] = row.cosine
                entry["notes"] = list(row.notes)
            found[row.side] = entry
    write(path, found)
    return found


def timed(
    name: str, batch: int, device: str, folder: pathlib.Path, repeats: int, block: int,
    skip: Sequence[str], sides: Sequence[str] | None,
) -> Any:  # fmt: skip
    """Return the benchmark of the model as converted, its tunings, and the peers."""
    from benchmarks import performance_models as models
    from jaxinfer.tune.bench import bench_model

    models.data(name)
    against = [each for each in PEERS[device] if each not in skip]
    if sides is not None:
        against = [each for each in against if each in sides]
    tuned = [folder / each.name for each in TUNINGS[device]]
    return bench_model(
        converted(name),
        against,
        source=models.CASES[name].source,
        batches=(batch,),
        data=OUT / f"{name}-search.npz",
        repeats=repeats,
        block=block,
        tuned=[each for each in tuned if (each / "model.json").exists()],
        progress=_say,
    )


def _say(side: str, step: str, batch: int | None) -> None:
    if not step.startswith("time"):
        print(f"  {side}: {step}", flush=True)


def measure(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return all that is known of a model at a batch size."""
    from benchmarks import performance_models as models
    from benchmarks import performance_train as training

    case, device = models.CASES[name], options.device
    folder = OUT / name / f"{device}-{batch}"
    folder.mkdir(parents=True, exist_ok=True)
    found_path = folder / "search.json"
    if options.again or not found_path.exists():
        if options.again:
            shutil.rmtree(folder)
            folder.mkdir()
        _child(name, batch, device, options.budget, folder, "--only-search")
    found = json.loads(found_path.read_text())
    judged = judge(name, device)
    repeats, block = _counts(found, options.side_seconds)
    skip = options.skip if batch not in options.autotune else [
        each for each in options.skip if not each.startswith(SLOW)
    ]  # fmt: skip
    if options.autotune and batch not in options.autotune:
        skip = [*skip, *(each for each in PEERS[device] if each.startswith(SLOW))]
    result = timed(
        name, batch, device, folder, options.repeats or repeats, block, skip, options.sides
    )
    return {
        "model": name,
        "title": case.title,
        "batch": batch,
        "device": device,
        "metric": {
            "measures": case.measures,
            "max_drop": case.max_drop,
            "allowed": case.allowed,
            "lossless": LOSSLESS,
            "reference": judged["torch"].get("metric"),
            "samples": case.samples[1],
        },
        "budget_s": options.budget,
        "training": training.reached(name) if name in training.TRAINED else None,
        "tunings": found,
        "judged": judged,
        "bench": result.to_json(),
    }


def _counts(found: Mapping[str, Any], seconds: float) -> tuple[int, int]:
    """Return repeats and calls in a block, from the baseline's time."""
    base = next(each["baseline"]["p50_ms"] for each in found.values() if "baseline" in each)
    repeats = max(5, min(100, round(seconds * 1e3 / base)))
    return (repeats, 20) if repeats == 100 else (repeats, 5)


def _child(
    name: str, batch: int, device: str, budget: float, folder: pathlib.Path, flag: str
) -> None:
    """Search in a process of its own, so that nothing of it is left when sides are timed."""
    subprocess.run(_command(name, batch, device, budget, folder, flag), check=True)


def _command(
    name: str, batch: int, device: str, budget: float, folder: pathlib.Path, flag: str
) -> list[str]:
    return [
        sys.executable, __file__, name, "--batch", str(batch), "--device", device,
        "--budget", str(budget), "--folder", str(folder), flag,
    ]  # fmt: skip


# The search itself.


def one_search(name: str, batch: int, budget: float, folder: pathlib.Path) -> None:
    """Run the search ``tuned`` alone, and write its recipe and its seconds."""
    import jaxinfer as ji
    from benchmarks import performance_models as models

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
    }
    write(folder / "one.json", found)


def search_check(options: argparse.Namespace) -> dict[str, Any]:
    """Return how long a search of 120 s takes, and what killing it at random moments changes."""
    name, batch, budget = "minilm", 8, options.budget
    from benchmarks import performance_models as models

    models.data(name)
    converted(name)
    moments = random.Random(options.seed)

    def run(folder: pathlib.Path, after: float | None = None) -> dict[str, Any] | None:
        """Run a search; kill it after so many seconds."""
        started = time.perf_counter()
        command = _command(name, batch, "cpu", budget, folder, "--one-search")
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
        while done is None and len(kills) < options.kills:
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
        "same_as_replayed": same(last, again),
    }


def _decided(recipe: Mapping[str, Any]) -> str:
    """Return a recipe without what says where and when it was made."""
    return json.dumps({k: v for k, v in recipe.items() if k != "environment"}, sort_keys=True)


# The command.


def write(path: pathlib.Path, data: Any) -> None:
    """Write JSON, lists of numbers on one line."""
    text = json.dumps(data, indent=1)
    flat: Callable[[re.Match[str]], str] = lambda found: re.sub(r"\s+", " ", found[0])
    text = re.sub(r"\[[\s\d.,eE+-]*\]", flat, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def report(device: str, name: str, results: Any) -> None:
    """Write a file of results with its environment."""
    environment = common.environment()
    data = {"benchmark": "performance", "environment": environment, "results": results}
    write(RESULTS / f"{device}-{name}.json", data)


def train() -> None:
    """Train the two models, and make the data and the directories of all."""
    from benchmarks import performance_models as models
    from benchmarks import performance_train as training

    for name, (_, make) in training.TRAINED.items():
        print(name, json.dumps(make()), flush=True)
        shutil.rmtree(OUT / name, ignore_errors=True)  # made of other weights
    for name in MODELS:
        models.data(name)
        print(f"converted: {converted(name).relative_to(ROOT)}", flush=True)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--batch", nargs="*", type=int, help="default: 1 8 32; on GPUs 1 32 256")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--budget", type=float, help="seconds of a search (60; 120 in the check)")
    parser.add_argument("--repeats", type=int, help="timed calls of a side")
    parser.add_argument("--side-seconds", type=float, default=5.0, help="else: calls in about ...")
    parser.add_argument("--sides", nargs="*", help="only these peers")
    parser.add_argument("--skip", nargs="*", default=[], help="not these peers")
    parser.add_argument(
        "--autotune", nargs="*", type=int, default=[], metavar="BATCH",
        help="max-autotune at these batch sizes alone",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="also what has results")
    parser.add_argument("--train", action="store_true", help="train, convert, and stop")
    parser.add_argument("--search-check", action="store_true", help="120 s, and killed searches")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of killing")
    for hidden in ("--only-search", "--one-search"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [each for each in options.models if each not in MODELS]:
        parser.error(f"no such model: {', '.join(unknown)}; there are: {', '.join(MODELS)}")
    options.budget = options.budget or (120.0 if options.search_check else 60.0)
    if options.train:
        train()
        return
    if options.search_check:
        report(options.device, "search", search_check(options))
        return
    names, sizes = options.models or MODELS, options.batch or BATCHES[options.device]
    if options.only_search:
        search(names[0], sizes[0], options.device, options.budget, options.folder)
        return
    if options.one_search:
        one_search(names[0], sizes[0], options.budget, options.folder)
        return
    for name in names:
        for batch in sizes:
            if (RESULTS / f"{options.device}-{name}-{batch}.json").exists() and not options.again:
                print(f"{name} batch {batch}: has results (--again measures anew)", flush=True)
                continue
            started = time.perf_counter()
            results = measure(name, batch, options)
            report(options.device, f"{name}-{batch}", results)
            for row in results["bench"]["rows"]:
                print(f"  {row['side']}: {row['status']} {row['median_ms']} ms {row['reason']}")
            print(f"{name} batch {batch}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
