"""Every architecture of the README's table through the transforms; and their memory."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

import jaxinfer as ji
from jaxinfer.core.array_types import is_array_type
from tests.conftest import randomize
from tests.slow.architectures import ARCHITECTURES

pytestmark = pytest.mark.slow

TRANSFORMS = {
    # relative errors of whole outputs, |y - f|_2 / |f|_2, on random weights: measured, with a
    # factor of 2 to 3; a wrong scale or axis gives 0.3 and more
    "fold": (lambda: ji.fold(), 1e-4),
    "cast": (lambda: ji.cast("bf16"), 0.1),
    "W8A16": (lambda: ji.quantize("W8A16"), 0.15),
    "W8A8": (lambda: ji.quantize("W8A8"), 0.25),
    "chain": (lambda: ji.chain(ji.fold(), ji.cast("bf16"), ji.quantize("W8A16")), 0.2),
}


def outputs(model, args, kwargs):
    leaves = jax.tree.leaves(model(*args, **kwargs), is_leaf=lambda x: isinstance(x, ji.Output))
    arrays = []
    for leaf in leaves:
        held = leaf.values() if isinstance(leaf, ji.Output) else [leaf]
        arrays += jax.tree.leaves(list(held))
    floats = [a for a in arrays if jax.numpy.issubdtype(a.dtype, np.floating)]
    return [np.asarray(a, np.float64).ravel() for a in floats]


@pytest.mark.filterwarnings("default")  # the model packages warn about their own future
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name, request):
    if hasattr(ARCHITECTURES[name], "needs_timm"):
        request.getfixturevalue("timm")
    torch.manual_seed(0)
    module, inputs, dynamic = ARCHITECTURES[name]()
    randomize(module)
    args, kwargs = inputs(2)
    model = ji.from_torch(module, args, kwargs, dynamic)
    want = np.concatenate(outputs(model, args, kwargs))
    found = {}
    for label, (make, bound) in TRANSFORMS.items():
        small = make()(model)
        for audit in small.audit():
            for entry in audit:
                assert entry.why or entry.status in ("changed", "unused"), entry
        got = np.concatenate(outputs(small, args, kwargs))
        found[label] = (np.linalg.norm(got - want) / np.linalg.norm(want), bound)
        if label.startswith("W8"):
            leaves = jax.tree.leaves(small.params, is_leaf=is_array_type)
            assert any(map(is_array_type, leaves))
            assert small.nbytes < 0.9 * model.nbytes
    print(name, {label: f"{error:.1e}" for label, (error, _) in found.items()})
    assert all(error < bound for error, bound in found.values()), found


MEASURE = """
import jax, jax.numpy as jnp, numpy as np, sys
import jaxinfer as ji

def resident():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024

def model(layers, size):
    generator = np.random.default_rng(0)
    params = {f"layers.{i}.weight": jnp.asarray(generator.standard_normal((size, size), np.float32))
              for i in range(layers)}
    def fn(p, x):
        for w in p.values():
            x = jnp.tanh(x @ w)
        return x
    return ji.from_function(fn, params, (jnp.ones((2, size)),))

scheme = sys.argv[1]
ji.quantize(scheme)(model(1, 64))  # what the libraries allocate once
big = model(32, 2048)
before, _ = resident()
small = ji.quantize(scheme)(big)
jax.block_until_ready(small.params)
_, peak = resident()
print((peak - before) / big.nbytes, small.nbytes / big.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("scheme", ["W8A16", "W4A16"])
def test_quantizing_goes_leaf_by_leaf(scheme):
    """Beyond the old parameters: the new ones, and a few copies of one of 32 leaves."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, scheme], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peak, small = map(float, done.stdout.split())
    print(f"{scheme}: peak {peak:.2f}x the weights beyond them, result {small:.2f}x")
    assert peak <= small + 8 / 32
