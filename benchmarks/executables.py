"""Executables against jit: cold and warm start, the cost of a call, padding, and no compilation.

    python benchmarks/executables.py [--cases GLOB] [--repeats 5] [--sentences 512]

start      fresh processes, from `import jax` done to the first result of MiniLM: the model is
           loaded and jitted, compiled ahead of time (one bucket), or a saved executable is loaded;
           the compile log counts what is compiled
calls      one call of a small function, jitted and as an executable, with 4 and with 200 leaves of
           parameters; inputs on the device and numpy; in turn, blocking
padding    512 real sentences one by one: buckets of length chosen for their histogram against
           powers of two and against one bucket; the share of padded tokens, and the time for all
compiles   1,000 calls of MiniLM at random sizes after warm-up, under the guard
"""

import fnmatch
import json
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
from benchmarks.accuracy import sentences

START = """
import logging, sys, time
log = []
class Count(logging.Handler):
    def emit(self, record):
        if "Finished XLA compilation" in record.getMessage():
            log.append(record)
logging.getLogger("jax").addHandler(Count())
logging.getLogger("jax").propagate = False
import jax, numpy as np
jax.config.update("jax_log_compiles", True)
start = time.perf_counter()
import jaxinfer as ji
imported = time.perf_counter()
how, path, batch, seq = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ids = np.ones((batch, seq), np.int32)
if how == "warm":
    run = ji.load_executable(path)
else:
    run = ji.load(path)
    if how == "ahead of time":
        shape = {"input_ids": (batch, seq), "attention_mask": (batch, seq)}
        run = ji.compile(run, shape, check=False)
ready = time.perf_counter()
jax.block_until_ready(jax.tree.leaves(run(input_ids=ids, attention_mask=ids)))
done = time.perf_counter()
import json
print(json.dumps([imported - start, ready - imported, done - ready, done - start, len(log)]))
"""


def minilm(folder):
    path = pathlib.Path(folder) / "minilm"
    words = [sys.executable, "-m", "jaxinfer.cli", "convert", str(common.minilm()), "-o", str(path)]
    subprocess.run(words, check=True, capture_output=True)
    return path


def start(model_path, folder, repeats):
    batch, seq = 8, 128
    shape = {"input_ids": (batch, seq), "attention_mask": (batch, seq)}
    exe_path = pathlib.Path(folder) / "exe"
    ji.compile(ji.load(model_path), shape).save(exe_path)
    sides = {
        "jit": ("jit", model_path),
        "compile": ("ahead of time", model_path),
        "load_executable": ("warm", exe_path),
    }
    rows = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (how, path) in sides.items():
            words = [sys.executable, "-c", START, how, str(path), str(batch), str(seq)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            rows[name].append(json.loads(done.stdout))
    parts = ("import_jaxinfer", "ready", "first_call", "beyond_import_jax")
    return {
        name: {
            **{part: common.spread([1e3 * row[i] for row in each]) for i, part in enumerate(parts)},
            "programs_compiled": sorted({row[4] for row in each}),
        }
        for name, each in rows.items()
    }


def calls(count, repeats):
    params = {f"layer.{i}.weight": jnp.ones((64, 64)) * 0.01 for i in range(count)}

    def fn(p, x):
        for number, w in enumerate(p.values()):
            x = jnp.tanh(x @ w) if number < 4 else x + w[0]
        return x

    x, host = jnp.ones((4, 64)), np.ones((4, 64), np.float32)
    model = ji.from_function(fn, params, (x,))
    exe, jitted = ji.compile(model), jax.jit(fn)
    padded = ji.compile(model, {"x": ("batch", 64)}, buckets={"batch": [8]})
    sides = {
        "jit": lambda: jitted(params, x).block_until_ready(),
        "executable": lambda: exe(x).block_until_ready(),
        "jit, numpy": lambda: jitted(params, host).block_until_ready(),
        "executable, numpy": lambda: exe(host).block_until_ready(),
        "executable, numpy padded from 4 to 8": lambda: padded(host).block_until_ready(),
        "Model.__call__": lambda: model(x).block_until_ready(),
    }
    times = {name: [] for name in sides}
    rng = np.random.default_rng(0)
    for _ in range(20 * repeats):
        for name in rng.permutation(list(sides)):  # in another order each time
            call = sides[name]
            call()
            for _ in range(50):
                start = time.perf_counter()
                call()
                times[name].append(1e6 * (time.perf_counter() - start))
    found = {}
    for name, each in times.items():
        low, median, high = np.percentile(each, [25, 50, 75])
        found[name] = {"median_us": round(median, 1), "p25_us": round(low, 1)}
        found[name] |= {"p75_us": round(high, 1), "calls": len(each)}
    for name in ("", ", numpy"):
        ratio = found[f"executable{name}"]["median_us"] / found[f"jit{name}"]["median_us"]
        found[f"executable / jit{name}"] = round(ratio, 3)
    return found


def lengths(count):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(common.minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids[:512] for encoding in tokenizer.encode_batch(sentences(count))]


def padding(model, count, repeats):
    rows = lengths(count)
    sizes = [len(row) for row in rows]
    longest = max(sizes)
    powers = [size for size in (8, 16, 32, 64, 128, 256, 512) if size < 2 * longest]
    sides = {"one bucket": [longest], "powers of two": powers}
    for number in (2, 4, 8):
        sides[f"chosen, {number}"] = ji.choose_buckets(sizes, number)
    results = {"sentences": count, "tokens": sum(sizes), "longest": longest}
    runs, sample = {}, rows[:64]
    for name, buckets in sides.items():
        used = sum(next(b for b in buckets if b >= n) for n in sizes)
        begun = time.perf_counter()
        exe = ji.compile(
            model,
            {"input_ids": (1, "seq"), "attention_mask": (1, "seq")},
            buckets={"seq": buckets},
            check=False,
        )
        results[name] = {
            "buckets": list(buckets),
            "padded_share": round(1 - sum(sizes) / used, 4),
            "build_s": round(time.perf_counter() - begun, 2),
        }

        def run(exe=exe):
            for row in sample:
                ids = np.asarray([row], np.int32)
                jax.block_until_ready(jax.tree.leaves(exe(ids, np.ones_like(ids))))

        runs[name] = run
    for name, times in common.interleave(runs, repeats=repeats, block=1).items():
        results[name][f"{len(sample)}_sentences"] = times
    return results


def compiles(model):
    from jaxinfer.compile import guard

    exe = ji.compile(
        model,
        {"input_ids": ("batch", "seq"), "attention_mask": ("batch", "seq")},
        buckets={"batch": [1, 4], "seq": [16, 32]},
        check=False,
    )
    rng, seen = np.random.default_rng(0), set()
    guard.listen()
    before = guard.compiled
    with ji.no_compile():
        for _ in range(1000):
            shape = (int(rng.integers(1, 5)), int(rng.integers(1, 33)))
            seen.add(shape)
            ids = np.ones(shape, np.int32)
            jax.block_until_ready(jax.tree.leaves(exe(ids, ids)))
    return {"calls": 1000, "shapes": len(seen), "compiled": guard.compiled - before}


def main():
    made = common.parser(__doc__.splitlines()[0])
    made.set_defaults(repeats=5)
    made.add_argument("--cases", default="*", help="a pattern of names")
    made.add_argument("--sentences", type=int, default=512)
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = minilm(folder)
        model = ji.load(path)
        cases = {
            "start": lambda: start(path, folder, options.repeats),
            "calls": lambda: {f"{n} leaves": calls(n, options.repeats) for n in (4, 200)},
            "padding": lambda: padding(model, options.sentences, options.repeats),
            "compiles": lambda: compiles(model),
        }
        results = {}
        for name in fnmatch.filter(cases, options.cases):
            results[name] = cases[name]()
            print(name, json.dumps(results[name], indent=1), flush=True)
    common.write("executables", results, options.out, quiet=True)


if __name__ == "__main__":
    main()
