"""Efficiency of pipelines at k = 2, 4, 8 stages and m micro-batches, on eight CPU devices.

    python benchmarks/pipeline.py [--cases waiting recurrent minilm] [--repeats 5] [--svg FILE]

waiting   eight layers that each wait 20 ms (``time.sleep`` in a callback) and compute next to
          nothing: what the scheduler itself loses, whatever the number of cores. One device
          needs m * 160 ms.
recurrent eight layers that each multiply 8 rows by a 48 x 48 matrix 2000 times, one after the
          other: such small products run on one core, so that as many devices as there are
          cores can compute at once.
minilm    MiniLM (6 layers, float32), micro-batches of 4 x 128 tokens. One device has all cores
          (XLA uses them for every product); k devices share them, so that beyond the number of
          cores nothing can be gained, and each stage's own speed is lost. The baseline is the
          same model on one device: ``k1``, one executable a micro-batch, one after the other;
          ``whole``, the whole batch in one executable.

    speedup     = time of k1 / time of k stages                at best k m / (m + k - 1)
    efficiency  = speedup / k                                  at best m / (m + k - 1)
    bubble      = 1 - busy / (k * makespan), of one stamped run (``Pipeline.schedule``)

All sides of a case are timed in turn; times are of calls, transfers and joining included.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer as ji
from benchmarks import common
from jaxinfer.compile.pipeline import pipeline

STAGES = (2, 4, 8)
WAIT = 0.02
LAYERS = 8


def wait(x):
    time.sleep(WAIT)
    return np.asarray(x)


def waiting_model():
    def fn(p, x):
        for i in range(LAYERS):
            x = jnp.tanh(x @ p[f"layers.{i}.w"])
            x = jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return x

    rng = np.random.default_rng(0)
    params = {
        f"layers.{i}.w": jnp.asarray(rng.standard_normal((16, 16)) / 4, jnp.float32)
        for i in range(LAYERS)
    }
    return ji.from_function(fn, params, (jnp.ones((1, 16)),))


def waiting(repeats, svg):
    model, found = waiting_model(), {}
    pipes = {
        k: pipeline(model, [("batch", 16)], stages=k, microbatch=1,
                    boundaries=[rf"layers\.{LAYERS // k * i}\." for i in range(1, k)])
        for k in (1, *STAGES)
    }  # fmt: skip
    for m in (4, 8, 16, 32):
        batch = np.random.default_rng(m).standard_normal((m, 16)).astype(np.float32)
        found[f"m = {m}"] = compare(pipes, (batch,), m, repeats, {})
    if svg is not None:
        m = 12
        batch = np.ones((m, 16), np.float32)
        schedule = pipes[4].schedule(batch, repeats=1)
        schedule.svg(svg)
        print(schedule.text())
    return {"wait_ms_per_layer": WAIT * 1e3, "layers": LAYERS, **found}


def recurrent(repeats, svg):
    del svg
    width, steps, rows = 48, 2000, 8

    def fn(p, x):
        for i in range(LAYERS):
            w = p[f"layers.{i}.w"]
            x = jax.lax.fori_loop(0, steps, lambda _, x, w=w: jnp.tanh(x @ w), x)
        return x

    rng = np.random.default_rng(0)
    params = {
        f"layers.{i}.w": jnp.asarray(rng.standard_normal((width, width)) / 5, jnp.float32)
        for i in range(LAYERS)
    }
    model = ji.from_function(fn, params, (jnp.ones((rows, width)),))
    pipes = {k: pipeline(model, [("batch", width)], stages=k, microbatch=rows)
             for k in (1, *STAGES)}  # fmt: skip
    found = {"stages": {f"k{k}": stages_of(pipes[k]) for k in STAGES}}
    for m in (8, 32):
        batch = rng.standard_normal((m * rows, width)).astype(np.float32)
        found[f"m = {m}"] = compare(pipes, (batch,), m, repeats, {})
    return found


def compare(pipes, inputs, m, repeats, others):
    """Time all pipelines on one batch, in turn, with the figures of a stamped run."""
    sides = {f"k{k}": lambda pipe=pipe: jax.block_until_ready(pipe(*inputs))
             for k, pipe in pipes.items()}  # fmt: skip
    found = common.interleave(sides | others, repeats=repeats, block=1)
    one = found["k1"]["median_ms"]
    for k in STAGES:
        schedule = pipes[k].schedule(*inputs, repeats=1)
        speedup = one / found[f"k{k}"]["median_ms"]
        found[f"k{k}"] |= {
            "speedup": round(speedup, 3),
            "speedup_at_best": round(k * m / (m + k - 1), 3),
            "efficiency": round(speedup / k, 3),
            "bubble": round(schedule.bubble, 3),
            "bubble_ideal": round(schedule.ideal, 3),
            "bubble_attainable": round(schedule.attainable, 3),
            "alone_ms": [round(seconds * 1e3, 2) for seconds in schedule.alone],
        }
    return found


def minilm(repeats, svg):
    del svg
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "minilm"
        command = [sys.executable, "-m", "jaxinfer.cli", "convert", str(common.minilm())]
        subprocess.run([*command, "-o", str(path)], check=True, capture_output=True)
        model = ji.load(path)
    rows, length = 4, 128
    names = [leaf.path for leaf in model.inputs if leaf.is_array]
    shapes = dict.fromkeys(names, ("batch", length))
    started = time.perf_counter()
    pipes = {k: pipeline(model, shapes, stages=k, microbatch=rows) for k in (1, *STAGES)}
    found = {
        "tokens_per_row": length,
        "rows_per_microbatch": rows,
        "build_all_s": round(time.perf_counter() - started, 1),
        "stages": {f"k{k}": stages_of(pipes[k]) for k in STAGES},
    }
    rng = np.random.default_rng(0)
    for m in (4, 16):
        draw = {name: rng.integers(0, 2, (m * rows, length)).astype(np.int32) for name in names}
        draw["input_ids"] = rng.integers(0, 30000, (m * rows, length)).astype(np.int32)
        draw["attention_mask"] = np.ones((m * rows, length), np.int32)
        inputs = tuple(draw[name] for name in names)
        whole = lambda inputs=inputs: jax.block_until_ready(jax.tree.leaves(model(*inputs)))
        want, gaps = jax.tree.leaves(model(*inputs)), {}
        for k in STAGES:
            got = jax.tree.leaves(pipes[k](*inputs))
            gaps[f"k{k}"] = max(
                float(np.abs(np.asarray(g) - np.asarray(w)).max() / np.abs(np.asarray(w)).max())
                for g, w in zip(got, want, strict=True)
            )
        found[f"m = {m}"] = compare(pipes, inputs, m, repeats, {"whole": whole})
        found[f"m = {m}"]["largest_difference_relative_to_largest_output"] = gaps
    return found


def stages_of(pipe):
    report = pipe.report()
    return {
        "balance": round(report.balance, 3),
        "gflops": [round(row.flops / 1e9, 3) for row in report.stages],
        "param_mb": [round(row.param_bytes / 1e6, 2) for row in report.stages],
        "sent_mb": [round(row.bytes_out / 1e6, 3) for row in report.stages],
        "compile_s": [round(row.compile_s, 1) for row in report.stages],
        "tied": list(report.tied),
    }


CASES = {"waiting": waiting, "recurrent": recurrent, "minilm": minilm}


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--svg", type=pathlib.Path, help="write the waiting case's schedule")
    parser.set_defaults(repeats=5)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device
    before = [round(x, 2) for x in os.getloadavg()]
    results = {name: CASES[name](options.repeats, options.svg) for name in options.cases}
    results = {"devices": len(jax.devices()), "load_average_before": before, **results}
    common.write("pipeline", results, options.out)


if __name__ == "__main__":
    main()
