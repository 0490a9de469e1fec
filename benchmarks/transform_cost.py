"""What transforms cost and save: bytes on disk and as arguments, and the time to plan and trace.

    python benchmarks/transform_cost.py [--cases bytes plan bert] [--largest 10000] [--repeats 5]

bytes   MiniLM after each scheme, at 1 x 24 tokens: the weights' file; the arguments of the compiled
        executable less its inputs (``memory_analysis()``, not ``nbytes``); temporaries; floating
        arguments of the shape of a quantized weight; and quantized weights of which the compiled
        program makes a whole floating copy, that is, of which some instruction outside of a fusion
        yields a floating array of the weight's sizes.
plan    a chain of ``x = tanh(x @ w + b)`` of 10^2, 10^3 and 10^4 equations under W8A16: tracing the
        function, planning (a trace and where the parameters go), ``init`` and ``update`` (which
        quantize), and tracing the rewritten function. Nothing is compiled but what quantizes.
bert    planning of BERT-base, random weights, by ``from_torch``.
"""

import collections
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common

TOKENS = 24
SIZES = (100, 1000, 10000)
BERT_SECONDS = 2.0
FLOATS = ("f64", "f32", "bf16", "f16")


# Bytes.


def schemes():
    """Return the transforms by name."""
    from benchmarks import accuracy

    made = {"float32": None}
    return made | {name: make for name, make in accuracy.cases().items() if "static" not in name}


def shapes_of(text):
    """Return (type, sizes) of every array type in a piece of HLO."""
    found = re.findall(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]", text)
    return [(kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in found]


def computations(hlo):
    """Return the instructions of each computation by name; that of the entry is ``ENTRY``."""
    found, name = {}, None
    for line in hlo.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+)[^=]*\{$", line)
        if head and not line.startswith(" "):
            name = "ENTRY" if head[1] else head[2]
            found[name] = []
        elif line.startswith("}"):
            name = None
        elif name and " = " in line:
            found[name].append(line.strip())
    return found


def copies(hlo, weights):
    """Return the sizes of weights of which a floating array is an argument, and is made.

    Args:
      hlo: text of the optimized module.
      weights: sizes of the quantized weights, each once for each weight.

    Returns:
      How many weights' sizes are those of a floating argument, and of a floating result of an
      instruction outside of fusions, at most as many as there are weights of those sizes.
    """
    parts = computations(hlo)
    fused = set(re.findall(r"fusion\(.*calls=%?([\w.\-]+)", hlo))
    fused |= set(re.findall(r"to_apply=%?([\w.\-]+)", hlo)) - set(
        re.findall(r" call\(.*to_apply=%?([\w.\-]+)", hlo)
    )
    arguments, made = collections.Counter(), collections.Counter()
    for name, lines in parts.items():
        if name in fused:
            continue
        for line in lines:
            result, _, rest = line.partition(" = ")[2].partition(" ")
            operation = rest.split("(")[0]
            if line.partition(" = ")[2].startswith("("):
                continue  # a tuple: its parts are results of other instructions
            keys = {tuple(sorted(s)) for kind, s in shapes_of(result) if kind in FLOATS}
            if operation == "parameter" and name == "ENTRY":
                arguments.update(keys)
            elif operation not in (
                "parameter",
                "get-tuple-element",
                "bitcast",
                "constant",
                "tuple",
            ):
                made.update(keys)
    wanted = collections.Counter(tuple(sorted(sizes)) for sizes in weights)
    count = lambda found: sum(min(found[sizes], n) for sizes, n in wanted.items())
    return count(arguments), count(made)


def measure_bytes(model, make):
    """Return the bytes of a model after a transform."""
    from jaxinfer.core.array_types import is_array_type
    from jaxinfer.core.leaves import leaves

    changed = model if make is None else make()(model)
    with tempfile.TemporaryDirectory() as folder:
        changed.save(pathlib.Path(folder) / "model")
        files = pathlib.Path(folder).rglob("*.safetensors")
        disk = sum(path.stat().st_size for path in files)
    ids = np.ones((1, TOKENS), np.int32)
    start = time.perf_counter()
    lowered = jax.jit(changed.apply).lower(changed.params, input_ids=ids, attention_mask=ids)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    quantized = [
        leaf.shape
        for leaf in leaves(changed.params).values()
        if is_array_type(leaf) and len(leaf.shape) > 1
    ]
    arguments, made = copies(compiled.as_text(), quantized)
    return {
        "disk": disk,
        "nbytes": changed.nbytes,
        "arguments": int(memory.argument_size_in_bytes) - 2 * ids.nbytes,
        "temporaries": int(memory.temp_size_in_bytes),
        "quantized_weights": len(quantized),
        "float_arguments_of_their_shape": arguments,
        "float_copies_made": made,
        "trace_and_compile_s": round(seconds, 1),
    }


# Time.


def chain(equations, width=16):
    """Return a function of so many equations (4 a layer), its parameters and its input."""
    generator = np.random.default_rng(0)
    layers = equations // 4
    normal = lambda *shape: jnp.asarray(generator.standard_normal(shape) / 4, jnp.float32)
    params = {f"layers.{i}.w": normal(width, width) for i in range(layers)}
    params |= {f"layers.{i}.b": normal(width) for i in range(layers)}

    def fn(params, x):
        for i in range(layers):
            x = jnp.tanh(x @ params[f"layers.{i}.w"] + params[f"layers.{i}.b"])
        return x

    return fn, params, jnp.ones((4, width))


class Seconds(NamedTuple):
    """Of the clock, and of all the process's threads: on a quiet machine the first is no more."""

    clock: float
    processor: float


def seconds_of(call):
    """Return the seconds of a call, and its value."""
    clock, processor = time.perf_counter(), time.process_time()
    value = call()
    if not hasattr(value, "jaxpr"):
        jax.block_until_ready(value)
    return Seconds(time.perf_counter() - clock, time.process_time() - processor), value


def medians(values, digits=4):
    """Return the medians of a list of ``Seconds``."""
    return {
        "processor": round(statistics.median(v.processor for v in values), digits),
        "clock": round(statistics.median(v.clock for v in values), digits),
    }


def planned(model):
    """Trace a model and find where its parameters go: what every plan begins with."""
    from jaxinfer.core.trace import trace

    return [each.uses for each in trace(model)]


def measure_plan(equations, repeats):
    """Return the seconds of each stage, medians; functions are made anew: no trace is cached."""
    import jaxinfer as ji

    times = collections.defaultdict(list)
    count = 0
    for _ in range(repeats):
        fn, params, x = chain(equations)
        jax.block_until_ready(params)
        model = ji.from_function(fn, params, (x,))
        seconds, traced = seconds_of(lambda fn=fn, p=params, x=x: jax.jit(fn).trace(p, x))
        count = len(traced.jaxpr.eqns)
        times["trace"].append(seconds)
        transform = ji.quantize("W8A16")
        plan = lambda fn=fn, p=params, x=x: planned(ji.from_function(_copy(fn), p, (x,)))
        times["plan"].append(seconds_of(plan)[0])
        seconds, state = seconds_of(lambda t=transform, m=model: t.init(m))
        times["init"].append(seconds)
        seconds, changed = seconds_of(lambda t=transform, m=model, s=state: t.update(m, s).params)
        times["update"].append(seconds)
        changed = transform.update(model, state)
        run = lambda m=changed, x=x: jax.jit(m.apply).trace(m.params, x)
        times["trace rewritten"].append(seconds_of(run)[0])
    return {
        "equations": count,
        "repeats": repeats,
        **{name: medians(values) for name, values in times.items()},
    }


def _copy(fn):
    return lambda *args: fn(*args)


def measure_bert():
    """Return the seconds to plan BERT-base."""
    import torch
    import transformers

    import jaxinfer as ji

    module = transformers.BertModel(transformers.BertConfig()).eval()
    ids = torch.ones(2, 8, dtype=torch.long)
    model = ji.from_torch(
        module, (), {"input_ids": ids, "attention_mask": ids}, {"input_ids": {0: "batch", 1: "s"}}
        | {"attention_mask": {0: "batch", 1: "s"}},
    )  # fmt: skip
    del module
    plans = [seconds_of(lambda: planned(model.replace()))[0] for _ in range(5)]
    transform = ji.quantize("W8A16")
    init, state = seconds_of(lambda: transform.init(model))
    again, _ = seconds_of(lambda: transform.init(model.replace()))
    update, _ = seconds_of(lambda: transform.update(model, state).params)
    return {
        "values": sum(int(np.prod(leaf.shape)) for leaf in model.params.values()),
        "leaves": len(model.params),
        "plan": medians(plans, 3),
        "first plan": medians(plans[:1], 3),
        "init": medians([init], 3),
        "init again": medians([again], 3),
        "update": medians([update], 3),
        "expected_at_most_s": BERT_SECONDS,
    }


STAGES = ("trace", "plan", "init", "update", "trace rewritten")


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.set_defaults(repeats=5)
    parser.add_argument("--cases", nargs="*", default=["plan", "bert", "bytes"])
    parser.add_argument("--largest", type=int, default=max(SIZES))
    parser.add_argument("--one", type=int, help="time this chain here, print JSON (internal)")
    options = parser.parse_args()
    if options.one:
        measure_plan(20, 1)  # imports, and what quantizes 16 x 16
        repeats = options.repeats if options.one <= 1000 else min(3, options.repeats)
        print(json.dumps(measure_plan(options.one, repeats)))
        return
    path = options.out or common.RESULTS / "transform_cost.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    if "plan" in options.cases:
        rows = {}
        for size in (n for n in SIZES if n <= options.largest):
            command = [sys.executable, "-W", "ignore", __file__, "--one", str(size)]
            command += ["--repeats", str(options.repeats)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{size}: {done.stderr[-2000:]}")
            rows[str(size)] = json.loads(done.stdout.strip().splitlines()[-1])
            print(size, rows[str(size)], flush=True)
        results["plan"] = rows
        ends = [rows[key] for key in (min(rows, key=int), max(rows, key=int))]
        span = math.log(ends[1]["equations"] / ends[0]["equations"]) if len(rows) > 1 else 1
        results["exponents"] = {
            stage: round(
                math.log(ends[1][stage]["processor"] / ends[0][stage]["processor"]) / span, 2
            )
            for stage in STAGES
        }
        print(results["exponents"])
        common.write("transform_cost", results, path, quiet=True)
    if "bert" in options.cases:
        results["bert"] = measure_bert()
        print(results["bert"], flush=True)
        common.write("transform_cost", results, path, quiet=True)
    if "bytes" in options.cases:
        from benchmarks import accuracy

        model, results["bytes"] = accuracy.converted(), {}
        for name, make in schemes().items():
            results["bytes"][name] = measure_bytes(model, make)
            print(name, results["bytes"][name], flush=True)
            common.write("transform_cost", results, path, quiet=True)


if __name__ == "__main__":
    main()
