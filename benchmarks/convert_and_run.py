"""Convert + first call, and steady state, against torch eager in the same run.

    python benchmarks/convert_and_run.py [--models minilm resnet50] [--repeats 20]

MiniLM has its real weights; ResNet-50 is timm's architecture with random ones (times do not
depend on them). Both sides use all cores, float32, the same inputs, torch in no_grad mode.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np
import torch

import jaxinfer as ji
from benchmarks import common


def minilm(batch, length):
    import transformers

    transformers.utils.logging.disable_progress_bar()
    module = transformers.BertModel.from_pretrained(str(common.minilm())).eval()
    names = ("input_ids", "attention_mask")
    kwargs = {
        "input_ids": torch.randint(0, 30000, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
    }
    dynamic = {name: {0: "batch", 1: "length"} for name in names}
    return module, (), kwargs, dynamic


def resnet50(batch, size):
    from tests.conftest import define_torchvision_operators

    vision = pathlib.Path(sys.prefix) / "vision"
    if vision.is_dir():
        sys.path.append(str(vision))
        define_torchvision_operators()
    import timm

    module = timm.create_model("resnet50").eval()
    return module, (torch.randn(batch, 3, size, size),), {}, ({0: "batch"},)


CASES = {
    "minilm 8x128": lambda: minilm(8, 128),
    "minilm 1x16": lambda: minilm(2, 16),
    "resnet50 1x224": lambda: resnet50(2, 224),
    "resnet50 8x224": lambda: resnet50(8, 224),
}
SINGLE = {"minilm 1x16", "resnet50 1x224"}  # converted at 2 (dynamic), run at 1


def first(value):
    return jax.tree.map(lambda x: x[:1], value)


def measure(name, repeats):
    torch.manual_seed(0)
    module, args, kwargs, dynamic = CASES[name]()
    start = time.perf_counter()
    model = ji.from_torch(module, args, kwargs, dynamic)
    converted = time.perf_counter()
    if name in SINGLE:
        args, kwargs = tuple(a[:1] for a in args), {k: v[:1] for k, v in kwargs.items()}
    jax_args = tuple(jax.numpy.asarray(a.numpy()) for a in args)
    jax_kwargs = {k: jax.numpy.asarray(v.numpy().astype("int32")) for k, v in kwargs.items()}
    begun = time.perf_counter()
    got = jax.block_until_ready(model(*jax_args, **jax_kwargs))
    called = time.perf_counter()
    with torch.no_grad():
        want = module(*args, **kwargs)
    want = want[0] if not isinstance(want, torch.Tensor) else want
    got = got[0] if not isinstance(got, jax.Array) else got
    error = float(np.abs(np.asarray(got) - want.numpy()).max() / np.abs(want.numpy()).max())
    apply = jax.jit(model.apply)

    def eager():
        with torch.no_grad():
            module(*args, **kwargs)

    steady = common.interleave(
        {
            "torch eager": eager,
            "jaxinfer model(x)": lambda: jax.block_until_ready(model(*jax_args, **jax_kwargs)),
            "jaxinfer jit(apply)": lambda: jax.block_until_ready(
                apply(model.params, *jax_args, **jax_kwargs)
            ),
        },
        repeats=repeats,
    )
    return {
        "convert_s": round(converted - start, 2),
        "first_call_s": round(called - begun, 2),
        "largest_error_relative_to_largest_output": error,
        "torch_threads": torch.get_num_threads(),
        "steady": steady,
    }


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    results = {name: measure(name, options.repeats) for name in options.cases}
    common.write("convert_and_run", results, options.out)


if __name__ == "__main__":
    main()
