"""What a conversion costs beside torch's own work: near-linear in the nodes, 10^2 to 10^4.

    python benchmarks/conversion_cost.py [--cases chain-100 llama-24] [--largest 10000]

Torch's own work is ``torch.export`` and, for programs that need it, ``run_decompositions``.
Ours is the rest: reading the graph, layouts, the rehearsal, weights (small here), and jit's
trace and lowering of the model; compilation by XLA is not counted. Each case runs in a process
of its own, so that nothing is warm. "expected" is the issue's bound where there is one.
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common

BOUNDS = {"resnet50": 3.0, "llama-15": 10.0}


def chain(nodes):
    """Linear, ReLU, Linear, ReLU ... of 8 features."""
    import torch
    from torch import nn

    layers = [nn.Linear(8, 8) if i % 2 == 0 else nn.ReLU() for i in range(nodes)]
    return nn.Sequential(*layers).eval(), (torch.randn(4, 8),), {}, ({0: "batch"},)


def llama(layers):
    """A small Llama of so many layers (about 70 nodes each), batch and length dynamic."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    kwargs = {"input_ids": torch.ones(2, 8, dtype=torch.long), "use_cache": False}
    dynamic = {"input_ids": {0: "batch", 1: "length"}}
    return LlamaForCausalLM(config).eval(), (), kwargs, dynamic


def timm_model(name):
    import torch

    sys.path.append(str(Path(sys.prefix) / "vision"))
    from tests.conftest import define_torchvision_operators

    define_torchvision_operators()
    import timm

    module = timm.create_model(name).eval()
    size = module.default_cfg.get("input_size", (3, 224, 224))
    return module, (torch.randn(2, *size),), {}, ({0: "batch"},)


def build(case):
    kind, _, number = case.partition("-")
    if kind in ("chain", "llama"):
        return {"chain": chain, "llama": llama}[kind](int(number))
    return timm_model(case)


def measure(case):
    """Return seconds of each stage of one case."""
    import jax
    import torch

    import jaxinfer as ji
    from jaxinfer_converters.torch.convert import _captured
    from jaxinfer_converters.torch.export import export
    from jaxinfer_converters.torch.functional import as_it_stands

    ji.from_torch(torch.nn.Linear(2, 2), (torch.ones(2, 2),))  # what imports cost once
    module, args, kwargs, dynamic = build(case)
    seconds = {}

    def clock(stage, call):
        start = time.perf_counter()
        value = call()
        seconds[stage] = round(time.perf_counter() - start, 3)
        return value

    program = clock("torch.export", lambda: export(module, args, kwargs, dynamic))
    stands = as_it_stands(program) is not None
    clock("read" if stands else "decompose and read", lambda: _captured(program, None))
    model = clock("convert", lambda: ji.from_torch(program))
    inputs = [
        jax.ShapeDtypeStruct(x.shape, "int32" if x.dtype == torch.long else "float32")
        for x in (*args, *kwargs.values())
        if isinstance(x, torch.Tensor)
    ]
    traced = clock("trace", lambda: jax.jit(model.apply).trace(model.params, *inputs))
    clock("lower", traced.lower)
    ours = seconds["convert"] + seconds["trace"] + seconds["lower"]
    if not stands:
        ours -= seconds["decompose and read"]
    return {
        "nodes": len(model.program.graph.nodes),
        "decomposed": not stands,
        "seconds": seconds,
        "ours_s": round(ours, 3),
    }


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*")
    parser.add_argument("--largest", type=int, default=10000, help="nodes of the longest chain")
    parser.add_argument("--one", help="measure this case here and print JSON (used internally)")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    sizes = [n for n in (100, 300, 1000, 3000, 10000) if n <= options.largest]
    cases = options.cases or [
        *(f"chain-{n}" for n in sizes), "llama-3", "llama-15", "llama-45", "resnet50",
    ]  # fmt: skip
    results = {}
    for case in cases:
        command = [sys.executable, "-W", "ignore", __file__, "--one", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case}: {done.stderr[-2000:]}")
        results[case] = json.loads(done.stdout.strip().splitlines()[-1])
        if bound := BOUNDS.get(case):
            results[case]["expected_at_most_s"] = bound
        print(case, results[case], flush=True)
    chains = {r["nodes"]: r["ours_s"] for c, r in results.items() if c.startswith("chain")}
    if len(chains) > 1:
        low, high = min(chains), max(chains)
        slope = math.log(chains[high] / chains[low]) / math.log(high / low)
        results["exponent of nodes, shortest to longest chain"] = round(slope, 2)
    common.write("conversion_cost", results, options.out)


if __name__ == "__main__":
    main()
