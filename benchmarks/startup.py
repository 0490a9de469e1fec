"""What importing jaxinfer adds to importing jax, and load + first result of MiniLM without torch.

    python benchmarks/startup.py [--repeats 9]

Each measurement is a fresh process; torch cannot be imported in the second one.
"""

import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import common

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
LOAD = """
import sys, time
for name in ("torch", "transformers"):
    sys.modules[name] = None  # importing it raises
start = time.perf_counter()
import jax, numpy as np, jaxinfer as ji
imported = time.perf_counter()
model = ji.load(sys.argv[1])
loaded = time.perf_counter()
ids = np.arange(16).reshape(1, 16)
jax.block_until_ready(model(ids, np.ones_like(ids)))
done = time.perf_counter()
print(imported - start, loaded - imported, done - loaded, done - start)
"""


def run(code, *args):
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    return [float(x) for x in done.stdout.split()]


def main():
    options = common.parser(__doc__.splitlines()[0]).parse_args()
    jax_ms, both_ms = [], []
    for _ in range(options.repeats):
        jax_ms += [1e3 * x for x in run(IMPORT.format("jax"))]
        both_ms += [1e3 * x for x in run(IMPORT.format("jaxinfer"))]
    added = common.spread(both_ms)["median_ms"] - common.spread(jax_ms)["median_ms"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "minilm"
        script = [sys.executable, "-m", "jaxinfer.cli"]
        subprocess.run(
            [*script, "convert", str(common.minilm()), "-o", str(path)],
            check=True, capture_output=True,
        )  # fmt: skip
        rows = [run(LOAD, str(path)) for _ in range(max(3, options.repeats // 3))]
    names = ("import_s", "load_s", "first_result_s", "whole_s")
    load = {name: common.spread([1e3 * row[i] for row in rows]) for i, name in enumerate(names)}
    results = {
        "import jax": common.spread(jax_ms),
        "import jaxinfer (jax included)": common.spread(both_ms),
        "added by jaxinfer_ms": round(added, 1),
        "load a saved MiniLM and get the first result, without torch": load,
    }
    common.write("startup", results, options.out)


if __name__ == "__main__":
    main()
