"""Attention all at once, or head by head: which is faster.

    python benchmarks/attention.py [--cases GLOB] [--repeats 25]

Queries, keys and values of one length, float32, no mask: all scores at once, the blocks that
the rule takes on CPUs once the scores are many (``aten/_heads.py``), and torch eager, which has
a kernel of its own. Results are held against torch first.
"""

import fnmatch
import functools
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import common
from jaxinfer_converters.aten import _heads, attention

# name: batch, heads, length, width of a head
CASES = {
    "ViT-B/16 1 x 197": (1, 12, 197, 64),
    "ViT-B/16 8 x 197": (8, 12, 197, 64),
    "ViT-B/16 32 x 197": (32, 12, 197, 64),
    "BERT 1 x 512": (1, 12, 512, 64),
    "BERT 3 x 512": (3, 12, 512, 64),
    "BERT 8 x 512": (8, 12, 512, 64),
    "Whisper-tiny 1 x 1500": (1, 6, 1500, 64),
    "Whisper-tiny 8 x 1500": (8, 6, 1500, 64),
    "Llama 1 x 4096": (1, 16, 4096, 64),
}


def measure(sizes, repeats):
    batch, heads, length, width = sizes
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(batch, heads, length, width)).astype("float32") for _ in range(3)]
    q, k, v = map(jnp.asarray, arrays)
    dense = functools.partial(attention._attend, causal=False, scale=None)
    blocks = functools.partial(_heads.by_blocks, dense)
    tensors = [torch.from_numpy(x) for x in arrays]
    eager = lambda: torch.nn.functional.scaled_dot_product_attention(*tensors)
    want, sides = eager().numpy(), {}
    for name, fn in {"all at once": dense, "by blocks": blocks}.items():
        jitted = jax.jit(lambda q, k, v, fn=fn: fn(q, k, v, None))
        assert np.abs(np.asarray(jitted(q, k, v)) - want).max() < 1e-4, name
        sides[name] = lambda jitted=jitted: jax.block_until_ready(jitted(q, k, v))
    steady = common.interleave({**sides, "torch eager": eager}, repeats=repeats)
    return {"taken": "by blocks" if _heads.large(q, k) else "all at once",
            "scores_MiB": round(4 * math.prod((batch, heads, length, length)) / 2**20, 1),
            **steady}  # fmt: skip


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--cases", default="*", help="a pattern of names")
    options = parser.parse_args()
    results = {}
    for name in fnmatch.filter(CASES, options.cases):
        results[name] = found = measure(CASES[name], options.repeats)
        times = {k: v["median_ms"] for k, v in found.items() if isinstance(v, dict)}
        print(name, found["taken"], times, flush=True)
        common.write("attention", results, options.out, quiet=True)


if __name__ == "__main__":
    main()
