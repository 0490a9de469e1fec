"""Conversion, compilation and steady state of whole models, against torch in the same run.

    python benchmarks/convert.py [--only GLOB] [--batches 1 8] [--repeats 25]

For each model: seconds of ``torch.export`` and of our own conversion, of tracing and lowering,
of compiling, and the steady state at each batch size of torch eager, ``torch.compile`` and
(where it is installed and takes the model) torchax, interleaved. Weights are random, float32,
no_grad; every side uses all cores and the same inputs; results are held against torch first.
Results are written after every model, beside those of models that were measured before.
"""

import contextlib
import fnmatch
import json
import pathlib
import sys
import time
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np
import torch

import jaxinfer as ji
from benchmarks import common


def vision(name, **options):
    """A timm model, and its images."""
    from tests.conftest import define_torchvision_operators

    folder = str(pathlib.Path(sys.prefix) / "vision")
    if folder not in sys.path:
        sys.path.append(folder)
    define_torchvision_operators()
    import timm

    return timm.create_model(name, **options), lambda batch: (torch.randn(batch, 3, 224, 224),)


def bert(length, **sizes):
    """A BERT encoder; MiniLM is one of 6 layers and 384 channels."""
    import transformers

    config = transformers.BertConfig(**sizes)
    module = transformers.BertModel(config)
    return module, lambda batch: (torch.randint(0, 30000, (batch, length)),)


def whisper():
    """Whisper-tiny: 30 seconds of sound and 8 tokens."""
    import transformers

    config = transformers.WhisperConfig(
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
    )
    config.use_cache = False

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = transformers.WhisperModel(config)

        def forward(self, features, tokens):
            return self.model(features, decoder_input_ids=tokens).last_hidden_state

    return Logits(), lambda batch: (
        torch.randn(batch, 80, 3000),
        torch.randint(0, 50000, (batch, 8)),
    )


def llama():
    """A Llama of 100 million parameters, 64 tokens."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=640,
        intermediate_size=1728,
        num_hidden_layers=12,
        num_attention_heads=10,
        num_key_value_heads=10,
        use_cache=False,
    )
    module = transformers.LlamaForCausalLM(config)
    return module, lambda batch: (torch.randint(0, 32000, (batch, 64)),)


def lstm():
    """Two layers of 256, 64 steps."""

    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(128, 256, 2, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    return Outputs(), lambda batch: (torch.randn(batch, 64, 128),)


MODELS = {
    "resnet50": lambda: vision("resnet50"),
    "mobilenetv3_large": lambda: vision("mobilenetv3_large_100"),
    "convnext_tiny": lambda: vision("convnext_tiny"),
    "efficientnet_b0": lambda: vision("efficientnet_b0"),
    "vit_base_16": lambda: vision("vit_base_patch16_224"),
    "swin_tiny": lambda: vision("swin_tiny_patch4_window7_224"),
    "minilm": lambda: bert(
        128,
        hidden_size=384,
        num_hidden_layers=6,
        intermediate_size=1536,
        num_attention_heads=12,
    ),
    "bert_base": lambda: bert(128),
    "whisper_tiny": whisper,
    "llama_100m": llama,
    "lstm": lstm,
}


def first(value):
    """The first array of an output."""
    if isinstance(value, (torch.Tensor, jax.Array)):
        return value
    return first(next(iter(value.values())) if hasattr(value, "values") else value[0])


def measure(name, batches, repeats, sides):
    """Return everything that is known of a model, batch by batch."""
    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    module = module.eval()
    found = {"parameters": sum(p.numel() for p in module.parameters())}
    for batch in batches:
        found[f"batch {batch}"] = at_batch(module, inputs(batch), repeats, sides)
    return found


def at_batch(module, args, repeats, sides):
    """Convert and time at one batch size, static: what every side compiles for."""
    start = time.perf_counter()
    with torch.no_grad():
        program = torch.export.export(module, args, strict=False)
    exported = time.perf_counter()
    model = ji.from_torch(program)
    converted = time.perf_counter()
    arrays = [jax.numpy.asarray(to_numpy(arg)) for arg in args]
    apply = jax.jit(model.apply)
    begun = time.perf_counter()
    lowered = apply.lower(model.params, *arrays)
    traced = time.perf_counter()
    compiled = lowered.compile()
    built = time.perf_counter()
    with torch.no_grad():
        want = first(module(*args)).numpy()
    got = np.asarray(first(compiled(model.params, *arrays)))
    error = float(np.abs(got - want).max() / np.abs(want).max())
    assert error < 1e-3, f"wrong by {error} of the largest output"
    calls = {"jaxinfer": lambda: jax.block_until_ready(compiled(model.params, *arrays))}

    def eager():
        with torch.no_grad():
            module(*args)

    calls["torch eager"] = eager
    notes = {}
    for side, make in {"torch.compile": torch_compiled, "torchax": torchax_call}.items():
        if side not in sides:
            continue
        begin = time.perf_counter()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                calls[side] = make(module, program, args)
                calls[side]()
        except Exception as error_:
            calls.pop(side, None)
            notes[side] = f"{type(error_).__name__}: {str(error_).splitlines()[0][:200]}"
        else:
            notes[f"{side}_first_call_s"] = round(time.perf_counter() - begin, 2)
    steady = common.interleave(calls, repeats=repeats)
    ours = steady["jaxinfer"]["median_ms"]
    return {
        "nodes": len(model.program.graph.nodes),
        "layout_permutes": len(model.program.layout_permutes),
        "export_s": round(exported - start, 2),
        "convert_s": round(converted - exported, 2),
        "trace_and_lower_s": round(traced - begun, 2),
        "compile_s": round(built - traced, 2),
        "largest_error_relative_to_largest_output": error,
        "times_torch_eager": round(steady["torch eager"]["median_ms"] / ours, 2),
        **notes,
        "steady": steady,
    }


def to_numpy(tensor):
    """Return a tensor as users of JAX without 64-bit types have it."""
    array = tensor.numpy()
    return array.astype("int32") if array.dtype == np.int64 else array


def torch_compiled(module, program, args):
    """torch.compile with its default back end (needs a C++ compiler)."""
    compiled = torch.compile(module)

    def call():
        with torch.no_grad():
            compiled(*args)

    return call


def torchax_call(module, program, args):
    """torchax by torch.export, jitted."""
    from torchax.export import exported_program_to_jax

    weights, fn = exported_program_to_jax(program)
    jitted = jax.jit(fn)
    arrays = tuple(jax.numpy.asarray(to_numpy(arg)) for arg in args)
    return lambda: jax.block_until_ready(jitted(weights, arrays))


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--sides", nargs="*", default=["torch.compile", "torchax"])
    options = parser.parse_args()
    path = options.out or common.RESULTS / "convert.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    for name in fnmatch.filter(MODELS, options.only):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[name] = measure(name, options.batches, options.repeats, options.sides)
        results[name]["measured"] = common.environment()
        print(name, summary(results[name]), flush=True)
        common.write("convert", results, path, quiet=True)


def summary(found):
    """One line a batch: milliseconds of each side."""
    return {
        batch: {side: t["median_ms"] for side, t in data["steady"].items()}
        | {key: data[key] for key in ("export_s", "convert_s", "trace_and_lower_s", "compile_s")}
        for batch, data in found.items()
        if isinstance(data, dict) and "steady" in data
    }


if __name__ == "__main__":
    main()
