"""Programs that need no decomposition: what is written in place becomes functional, safely."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer_converters.torch.export import export
from jaxinfer_converters.torch.functional import as_it_stands


class Fn(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn
        self.lin = nn.Linear(3, 3)

    def forward(self, x):
        return self.fn(self.lin(x), x)


def twice(y, x):
    """Two writes to one tensor, under two names; both names are returned."""
    z = y.relu_()
    before = y * 2
    z.add_(x).mul_(3)
    return y, z, before


def one_after_the_other(y, x):
    """A write to a tensor that another write read before."""
    z = torch.tanh(x)
    z.add_(y)
    y.mul_(2)
    return z, y


def view_after(y, x):
    y.add_(x)
    return y.view(-1), y


def view_before(y, x):
    view = y[0]
    y.add_(x)
    return view, y


def part(y, x):
    y[0] = x[1]
    return y


def same_before(y, x):
    """Dropout in eval mode gives its input itself."""
    same = nn.functional.dropout(y, training=False)
    y.add_(x)
    return same, y


def other_dtype(y, x):
    half = y.half()
    return half.add_(x)


def to_the_input(y, x):
    x.add_(1)
    return y + x


def unused(y, x):
    torch.cumsum(y, 0)
    return y


SAFE = (twice, one_after_the_other, view_after, same_before, unused)
UNSAFE = (view_before, part, other_dtype, to_the_input)


@pytest.mark.parametrize("fn", SAFE + UNSAFE)
def test_writes(fn):
    module, x = Fn(fn).eval(), torch.randn(2, 3)
    stands = as_it_stands(export(module, (x,), None, None)) is not None
    assert stands == (fn in SAFE)
    model = ji.from_torch(module, (x,))
    with torch.no_grad():
        want = module(x.clone())
    got = model(x)
    if fn is to_the_input:
        got, _ = got
    got, want = jax.tree.leaves(got), want if isinstance(want, tuple) else (want,)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(
            g, w.numpy(), rtol=2e-3 if fn is other_dtype else 1e-5, atol=1e-6
        )
    ops = {node.op for node in model.program.graph.nodes}  # pyright: ignore
    assert not any(op.split(".")[1].endswith("_") for op in ops)
    assert "aten.cumsum.default" not in ops


def test_statistics_in_training_need_the_decomposition():
    module, x = nn.BatchNorm1d(3), torch.randn(4, 3)
    assert as_it_stands(export(module.eval(), (x,), None, None)) == {}
    assert as_it_stands(export(module.train(), (x,), None, None)) is None


def test_the_usual_networks_need_none():
    block = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2), nn.Softmax(-1),
    ).eval()  # fmt: skip
    writes = as_it_stands(export(block, (torch.randn(2, 3, 8, 8),), None, ({0: "batch"},)))
    assert writes is not None
    assert len(writes) == 2
