"""Compile time and steady state of deep transformers, with and without ``scan_layers``.

    python benchmarks/scan_layers.py [--layers 12 24 48] [--width 256] [--repeats 20]

A Llama of random weights, float32, batch 1 x 64 tokens. Both are converted from one module;
trace, lower and compile are timed once each, the one after the other, with fresh functions.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import torch

import jaxinfer as ji
from benchmarks import common


def llama(layers, width):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=width * 11 // 4,
        num_hidden_layers=layers, num_attention_heads=width // 64 or 1,
        num_key_value_heads=max(1, width // 128),
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def measure(layers, width, repeats):
    module = llama(layers, width)
    ids = torch.randint(0, 1000, (2, 64))
    kwargs = {"input_ids": ids, "use_cache": False}
    dynamic = {"input_ids": {0: "batch", 1: "length"}}
    tokens = jax.numpy.asarray(ids[:1].numpy().astype("int32"))
    found, sides, outputs = {}, {}, {}
    for name, scanned in (("plain", False), ("scan_layers", True)):
        start = time.perf_counter()
        model = ji.from_torch(module, (), kwargs, dynamic, scan_layers=scanned)
        times = {"convert_s": time.perf_counter() - start}
        start = time.perf_counter()
        lowered = jax.jit(model.apply).lower(model.params, tokens)
        times["trace_and_lower_s"] = time.perf_counter() - start
        start = time.perf_counter()
        compiled = lowered.compile()
        times["compile_s"] = time.perf_counter() - start
        call = lambda compiled=compiled, model=model: jax.block_until_ready(
            compiled(model.params, tokens)
        )
        outputs[name] = np.asarray(call()[0])
        sides[name] = call
        found[name] = {key: round(value, 3) for key, value in times.items()}
        if scanned:
            found[name]["scanned"] = model.provenance["scan_layers"]["scanned"]
    for name, steady in common.interleave(sides, repeats=repeats).items():
        found[name]["steady"] = steady
    scale = np.abs(outputs["plain"]).max()
    found["largest_difference_relative_to_largest_output"] = float(
        np.abs(outputs["plain"] - outputs["scan_layers"]).max() / scale
    )
    return found


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="*", type=int, default=[12, 24, 48])
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    results = {
        f"llama {layers} x {options.width}": measure(layers, options.width, options.repeats)
        for layers in options.layers
    }
    common.write("scan_layers", results, options.out)


if __name__ == "__main__":
    main()
