"""Recurrent layers against torch eager, and where a step's time goes.

    python benchmarks/recurrent.py [--batches 1 8 32] [--repeats 25]

Two layers of 256 over 64 steps of 128, converted, against torch eager. ``product alone`` scans
as many steps of nothing but the product with the recurrent weight, as it is stored: what the
layer cannot go below without another product.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxinfer as ji
from benchmarks import common

INPUTS, HIDDEN, STEPS, LAYERS = 128, 256, 64, 2
KINDS = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Outputs(torch.nn.Module):
    """The outputs of all steps."""

    def __init__(self, kind):
        super().__init__()
        self.layer = getattr(torch.nn, kind)(INPUTS, HIDDEN, LAYERS, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


def product_alone(gates, batch):
    """Return h <- (h @ w)[:, :hidden], as often as the layers have steps."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(HIDDEN, gates * HIDDEN)), jnp.float32)
    h = jnp.ones((batch, HIDDEN), jnp.float32)

    def step(h, _):
        return (h @ w)[:, :HIDDEN] * 1e-3, None

    scan = jax.jit(lambda h: jax.lax.scan(step, h, None, length=STEPS * LAYERS)[0])
    return lambda: jax.block_until_ready(scan(h))


def measure(kind, batch, repeats):
    torch.manual_seed(0)
    module, x = Outputs(kind).eval(), torch.randn(batch, STEPS, INPUTS)
    model = ji.from_torch(module, (x,))
    apply, array = jax.jit(model.apply), jnp.asarray(x.numpy())

    def eager():
        with torch.no_grad():
            return module(x)

    ours = lambda: jax.block_until_ready(apply(model.params, array))
    error = float(np.abs(np.asarray(ours()) - eager().numpy()).max())
    assert error < 1e-4, error
    sides = {"jaxinfer": ours, "torch eager": eager}
    sides["product alone"] = product_alone(KINDS[kind], batch)
    return common.interleave(sides, repeats=repeats)


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    options = parser.parse_args()
    results = {}
    for kind in KINDS:
        for batch in options.batches:
            name = f"{kind} batch {batch}"
            results[name] = measure(kind, batch, options.repeats)
            print(name, {side: t["median_ms"] for side, t in results[name].items()}, flush=True)
    common.write("recurrent", results, options.out, quiet=True)


if __name__ == "__main__":
    main()
