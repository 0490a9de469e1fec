"""A dense layer's weight stored [out, in], as torch has it, or [in, out]: which is faster.

    python benchmarks/dense_layouts.py [--cases GLOB] [--repeats 25]

Times of ``x @ w.T`` and ``x @ w`` for jitted functions with the weight as an argument, float32,
interleaved, and of ``torch.nn.functional.linear``; results are held against each other first.
"""

import fnmatch
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import common

LAYERS = {
    "768 to 768": (768, 768),
    "768 to 3072 (BERT)": (768, 3072),
    "3072 to 768 (BERT)": (3072, 768),
    "640 to 32000 (vocabulary)": (640, 32000),
    "2048 to 1000 (classes)": (2048, 1000),
}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)


def measure(inputs, outputs, rows, repeats):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, inputs)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(outputs, inputs)), jnp.float32)
    kernel = jnp.array(w.T)
    by_rows = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    plain = jax.jit(lambda x, w: x @ w)
    tx, tw = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(w))
    want = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    for got in (by_rows(x, w), plain(x, kernel)):
        assert np.abs(np.asarray(got) - want).max() < 1e-4 * np.abs(want).max()
    sides = {
        "[out, in]": lambda: jax.block_until_ready(by_rows(x, w)),
        "[in, out]": lambda: jax.block_until_ready(plain(x, kernel)),
        "torch eager": lambda: torch.nn.functional.linear(tx, tw),
    }
    return common.interleave(sides, repeats=repeats)


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--cases", default="*", help="a pattern of names")
    options = parser.parse_args()
    results = {}
    for name in fnmatch.filter(LAYERS, options.cases):
        for rows in ROWS:
            key = f"{rows} x {name}"
            results[key] = measure(*LAYERS[name], rows, options.repeats)
            print(key, {side: t["median_ms"] for side, t in results[key].items()}, flush=True)
            common.write("dense_layouts", results, options.out, quiet=True)


if __name__ == "__main__":
    main()
