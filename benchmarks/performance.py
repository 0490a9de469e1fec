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
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

if __name__ == "__main__":  # not this folder, in which ``import openvino`` finds another file
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

from benchmarks import common
from benchmarks.performance_search import (
    LOSSLESS,
    OUT,
    TUNINGS,
    converted,
    search_check,
    search_command,
    write,
)

RESULTS = common.RESULTS / "performance"
MODELS = ("minilm", "resnet50", "vit_b16", "digits", "language_model")
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
    import numpy as np

    from benchmarks import performance_models as models
    from jaxinfer.tune.bench import bench

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
                with np.load(f"{scratch}/{row.side}.npz") as outputs:
                    entry["metric"] = case.metric([outputs["arr_0"]], data["test"])
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
    tuned = [each for each in tuned if (each / "model.json").exists()]
    result = bench_model(
        converted(name),
        against,
        source=models.CASES[name].source,
        batches=(batch,),
        data=OUT / f"{name}-search.npz",
        repeats=repeats,
        block=block,
        tuned=tuned,
        progress=_say,
    )
    names = {"jaxinfer-tuned": f"jaxinfer-tuned:{tuned[0].name}"} if len(tuned) == 1 else {}
    rows = [row.replace(side=names.get(row.side, row.side)) for row in result.rows]
    return dataclasses.replace(result, rows=rows)


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
        command = search_command(name, batch, device, options.budget, folder, options.like)
        subprocess.run(command, check=True)  # of it nothing is left when sides are timed
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
        "budget_s": None if options.like else options.budget,
        "training": training.reached(name) if name in training.TRAINED else None,
        "tunings": found,
        "judged": judged,
        "bench": result.to_json(),
    }


def _counts(found: Mapping[str, Any], seconds: float) -> tuple[int, int]:
    """Return repeats and calls in a block, from the baseline's time: two turns at least."""
    base = next(each["baseline"]["p50_ms"] for each in found.values() if "baseline" in each)
    repeats = max(4, min(100, round(seconds * 1e3 / base)))
    return repeats, 20 if repeats == 100 else 5 if repeats >= 15 else 2


# The command.


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
        print(f"converted: {converted(name).relative_to(OUT)}", flush=True)


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
    parser.add_argument(
        "--like", type=int, default=0, metavar="BATCH",
        help="no search: apply the recipes that were found at this batch size",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="also what has results")
    parser.add_argument("--train", action="store_true", help="train, convert, and stop")
    parser.add_argument("--search-check", action="store_true", help="120 s, and killed searches")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of killing")
    options = parser.parse_args()
    if unknown := [each for each in options.models if each not in MODELS]:
        parser.error(f"no such model: {', '.join(unknown)}; there are: {', '.join(MODELS)}")
    options.budget = options.budget or (120.0 if options.search_check else 60.0)
    if options.train:
        train()
        return
    if options.search_check:
        report(options.device, "search", search_check(options.budget, options.kills, options.seed))
        return
    names, sizes = options.models or MODELS, options.batch or BATCHES[options.device]
    failed: list[str] = []
    for name in names:
        for batch in sizes:
            if (RESULTS / f"{options.device}-{name}-{batch}.json").exists() and not options.again:
                print(f"{name} batch {batch}: has results (--again measures anew)", flush=True)
                continue
            started = time.perf_counter()
            try:
                results = measure(name, batch, options)
            except subprocess.CalledProcessError:
                failed.append(f"{name} batch {batch}")
                continue
            report(options.device, f"{name}-{batch}", results)
            for row in results["bench"]["rows"]:
                print(f"  {row['side']}: {row['status']} {row['median_ms']} ms {row['reason']}")
            print(f"{name} batch {batch}: {time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"the search failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
