"""Weight-only int8 by qwix and by jaxinfer on the same programs: who quantizes, who says so.

    python benchmarks/qwix_table.py [--qwix-python PATH] [--cases GLOB] [--sides qwix,jaxinfer]

The programs are those of ``qwix_programs.py``. qwix is used as its documentation says
(https://qwix.readthedocs.io, "Post-Training Quantization"): for linen ``quantize_model`` with a
``PtqProvider``, ``jax.eval_shape`` of its ``init`` and ``quantize_params``; for NNX
``quantize_model`` with the inputs. Each program in each of three ways runs in a process of its own:

    float first    the float model has run in the process, as in a notebook
    fresh          nothing has run; the weights come from elsewhere
    without jit    as float first, with ``PtqProvider(disable_jit=True)``

Verdicts are measured:

    quantized        every weight the row is about is int8 among the parameters, the relative error
                     to the float result is between 0 and 5 %, and (W8A16) the result is that of
                     the dequantized weights in float64, within 1e-4 of its largest value
    in part          some of those weights are int8, others float, and nothing says so
    silently float   none is int8, nothing says so, and the result is the float one
    blocked, said    jaxinfer: the audit has the weight with the equation that is in the way, and
                     the result is the float one
    crash            an exception (also one that says what is not supported); its first line
    wrong            anything else

qwix needs an environment of its own, for example
``python -m venv Q && Q/bin/pip install qwix==0.1.8 jax==0.10.1 flax==0.12.8``,
and ``--qwix-python Q/bin/python``.
"""

import fnmatch
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np

from benchmarks import common
from benchmarks.qwix_programs import ROWS, module_of

WAYS = ("float first", "fresh", "without jit")
SECONDS = 120
LARGEST_ERROR = 0.05
LARGEST_DISTANCE = 1e-4
MARK = "RESULT "


# Measures that both sides share.


def flatten(tree, prefix=""):
    """Return the leaves of a nested dict by path."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found = {}
    for key, value in tree.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def replaced(tree, changes, prefix=""):
    """Return a nested dict with the leaves at some paths replaced."""
    if not isinstance(tree, dict):
        return changes.get(prefix, tree)
    return {
        key: replaced(value, changes, f"{prefix}.{key}" if prefix else str(key))
        for key, value in tree.items()
    }


def exact(row, params):
    """Return the result in float64."""
    with jax.enable_x64(True):
        wide = lambda a: jax.numpy.asarray(
            np.asarray(a, np.float64 if np.asarray(a).dtype.kind == "f" else np.asarray(a).dtype)
        )
        made = row.fn(jax.tree.map(wide, params), *map(wide, row.arrays()))
        return np.asarray(made, np.float64)


def relative(got, want):
    """Return |got - want| / |want|, root mean square."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def furthest(got, want):
    """Return max |got - want| / max |want|."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def measured(row, got, dequantized):
    """Return the errors of a result.

    Args:
      row: the program.
      got: the result.
      dequantized: arrays by path in place of the quantized weights.
    """
    params = row.params()
    made = {"error": relative(np.asarray(got, np.float64), exact(row, params))}
    if row.scheme == "W8A16" and dequantized:
        want = exact(row, replaced(params, dequantized))
        made["distance"] = furthest(np.asarray(got, np.float64), want)
    return made


def verdict(row, found):
    """Return what the measures say; ``found`` has ``quantized`` paths, errors, ``said``."""
    wanted = [*row.weights, *(f"constant {i}" for i in range(len(row.constants)))]
    done = [path for path in wanted if path in found["quantized"]]
    said = [path for path in wanted if path in found.get("said", {})]
    right = found["error"] <= LARGEST_ERROR and found.get("distance", 0) <= LARGEST_DISTANCE
    if not right or (done and not found["error"] > 1e-6):
        return "wrong"
    if len(done) == len(wanted):
        return "quantized"
    if set(done) | set(said) == set(wanted):
        return "blocked, said" if not done else "quantized or blocked, said"
    if done:
        return "in part"
    return "silently float" if found["error"] < 1e-5 else "wrong"


def line(error):
    """Return the first line of an exception."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:160].rstrip(": ")


# qwix, in its own process.


def provider(row, way):
    import qwix

    activation = None if row.scheme == "W8A16" else "int8"
    rules = [qwix.QuantizationRule(weight_qtype="int8", act_qtype=activation)]
    if way == "without jit":
        return qwix.PtqProvider(rules, disable_jit=True)
    return qwix.PtqProvider(rules)


def qwix_linen(row, way):
    """Quantize a linen module as documented; return the result and the int8 weights by path."""
    import qwix

    model, params, inputs = module_of(row), row.params(), row.arrays()
    if way != "fresh":
        jax.block_until_ready(model.apply({"params": params}, *inputs))
    ptq = qwix.quantize_model(model, provider(row, way))
    shapes = jax.eval_shape(ptq.init, jax.random.key(0), *inputs)
    quantized = qwix.quantize_params(params, shapes["params"])
    got = ptq.apply({"params": quantized}, *inputs)
    arrays = {k: v.array for k, v in flatten(quantized).items() if hasattr(v, "array")}
    return got, {k: (v.qvalue, v.scale, v.zero_point) for k, v in arrays.items()}


def qwix_nnx(row, way):
    """Quantize an NNX module as documented."""
    import qwix
    from flax import nnx

    model, inputs = module_of(row), row.arrays()
    if way != "fresh":
        jax.block_until_ready(model(*inputs))
    ptq = qwix.quantize_model(model, provider(row, way), *inputs)
    got = ptq(*inputs)
    flat = flatten(nnx.to_pure_dict(nnx.state(ptq, nnx.Param)))
    paths = [k.removesuffix(".array.qvalue") for k in flat if k.endswith(".array.qvalue")]
    parts = ("qvalue", "scale", "zero_point")
    return got, {path: [flat.get(f"{path}.array.{part}") for part in parts] for path in paths}


def qwix_any(row, way):
    """Give qwix what is no Flax module."""
    import qwix

    ptq = qwix.quantize_model(module_of(row), provider(row, way))
    return ptq(*row.arrays()), {}


def worker(name, way):
    """Run one program by qwix and print one line of JSON."""
    from flax import linen, nnx

    row = ROWS[name]
    module = module_of(row)
    kinds = {linen.Module: qwix_linen, nnx.Module: qwix_nnx}
    run = next((run for kind, run in kinds.items() if isinstance(module, kind)), qwix_any)
    versions = {k: importlib.metadata.version(k) for k in ("qwix", "jax", "jaxlib", "flax")}
    try:
        got, arrays = run(row, way)
        got = np.asarray(got)
    except Exception as error:  # whatever the user would see
        last = traceback.extract_tb(error.__traceback__)[-1]
        found = {"verdict": "crash", "why": line(error), "where": last.name}
        print(MARK + json.dumps({**found, "versions": versions}))
        return
    dequantized, shapes = {}, {k: v.shape for k, v in flatten(row.params()).items()}
    for path, (qvalue, scale, zero) in arrays.items():
        assert qvalue.dtype == np.int8, (path, qvalue.dtype)
        values = np.asarray(qvalue, np.float64) - (0 if zero is None else np.asarray(zero))
        dequantized[path] = (values * np.asarray(scale, np.float64)).reshape(shapes[path])
    found = {"quantized": sorted(arrays), **measured(row, got, dequantized)}
    found["verdict"] = verdict(row, found)
    print(MARK + json.dumps({**found, "versions": versions}))


def by_qwix(name, way, python):
    """Return what a new process of an interpreter with qwix measures."""
    command = [python, __file__, "--worker", name, "--way", way]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=env)
    except subprocess.TimeoutExpired:
        return {"verdict": "crash", "why": f"no result within {SECONDS} s"}
    lines = [x for x in done.stdout.splitlines() if x.startswith(MARK)]
    if not lines:
        raise SystemExit(f"{name} ({way}): the harness failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix(MARK))


# jaxinfer.


def by_jaxinfer(name):
    """Quantize a program by jaxinfer; the float function has run in the process.

    Where a weight is blocked, also as its user can ask for it nonetheless: by
    ``dequantize=True``, or by ``hoist_constants`` for what is closed over.
    """
    found = with_settings(name, hoist=False)
    if "blocked" in found["verdict"]:
        asked = {} if ROWS[name].constants else {"dequantize": True}
        again = with_settings(name, hoist=bool(ROWS[name].constants), **asked)
        found["asked"] = {"by": "dequantize=True" if asked else "hoist_constants", **again}
    return found


def with_settings(name, *, hoist, **settings):
    """Return the measures of a program under some settings of ``jaxinfer.quantize``."""
    import jaxinfer as ji
    from jaxinfer.core.array_types import is_array_type
    from jaxinfer.core.leaves import leaves

    row = ROWS[name]
    params, inputs = row.params(), row.arrays()
    jax.block_until_ready(row.fn(params, *inputs))
    try:
        model = ji.from_function(row.fn, params, inputs)
        model = ji.hoist_constants(model) if hoist else model
        model = ji.quantize(row.scheme, **settings)(model)
        got = np.asarray(jax.jit(model.apply)(model.params, *inputs))
    except Exception as error:  # whatever the user would see
        return {"verdict": "crash", "why": line(error)}
    hoisted = [path for path in leaves(model.params) if path not in leaves(params)]
    entries = {entry.path: entry for entry in model.audit()["quantize"]}
    held = [path for path in entries if path.startswith("(constant ")]
    titles = {path: f"constant {i}" for i, path in enumerate([*hoisted, *held])}
    quantized, dequantized = [], {}
    for path, leaf in leaves(model.params).items():
        if is_array_type(leaf):
            codes = getattr(leaf, "weight", leaf).qvalue  # ActQTensor holds a QTensor
            assert codes.dtype == np.int8, (path, codes.dtype)
            quantized.append(path)
            if path not in hoisted:
                dequantized[path] = np.asarray(leaf.materialize(), np.float64)
    claimed = sorted(path for path, entry in entries.items() if entry.status == "changed")
    found = {
        "quantized": sorted(titles.get(path, path) for path in quantized),
        "said": {
            titles.get(path, path): f"{entry.status}: {entry.why}"
            for path, entry in entries.items()
            if entry.status != "changed" and (path in row.weights or path in titles)
        },
        **measured(row, got, {} if hoisted else dequantized),
    }
    found["verdict"] = verdict(row, found) if claimed == sorted(quantized) else "wrong"
    if found["verdict"] in ("wrong", "silently float", "in part"):
        found["why"] = f"claimed {claimed}, quantized {sorted(quantized)}"
    return found


def how():
    """Return command, date and commit: the two sides need not be measured together."""
    found = common.environment()
    return {name: found[name] for name in ("command", "date", "commit", "load_average")}


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--qwix-python", help="an interpreter with qwix (default: this one)")
    parser.add_argument("--cases", default="*", help="a pattern of names")
    parser.add_argument("--sides", default="qwix,jaxinfer", help="which sides to run")
    parser.add_argument("--worker", help="run one program by qwix in this process")
    parser.add_argument("--way", choices=WAYS, default=WAYS[0])
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.way)
        return
    sides = options.sides.split(",")
    python = options.qwix_python or sys.executable
    probe = [python, "-c", "import qwix"]
    if "qwix" in sides and subprocess.run(probe, capture_output=True).returncode:
        raise SystemExit(
            f"{options.qwix_python or 'this interpreter'} cannot import qwix; make an environment "
            "with qwix==0.1.8 and the jax and flax of this one, and give --qwix-python"
        )
    path = options.out or common.RESULTS / "qwix_table.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {"rows": {}}
    results["rows"] = {name: results["rows"].get(name, {}) for name in ROWS}
    if options.qwix_python:  # where it is on this machine is nobody's business
        sys.argv[sys.argv.index(options.qwix_python)] = "PATH"
    for name, row in ROWS.items():
        if not fnmatch.fnmatchcase(name, options.cases):
            continue
        entry = results["rows"][name]
        entry["scheme"], entry["weights"] = row.scheme, list(row.weights)
        if "qwix" in sides:
            start = time.perf_counter()
            entry["qwix"] = {way: by_qwix(name, way, python) for way in WAYS}
            results.setdefault("measured", {})["qwix"] = how()
            for found in entry["qwix"].values():
                results["qwix_versions"] = found.pop("versions", results.get("qwix_versions"))
            seconds = time.perf_counter() - start
            print(f"{name}: {list(entry['qwix'].values())} {seconds:.0f} s", flush=True)
        if "jaxinfer" in sides:
            entry["jaxinfer"] = by_jaxinfer(name)
            results.setdefault("measured", {})["jaxinfer"] = how()
            print(f"{name}: {entry['jaxinfer']}", flush=True)
        common.write("qwix_table", results, path, quiet=True)


if __name__ == "__main__":
    main()
