"""Gradients of converted functions where torch stops them, against torch's autograd."""

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import jaxinfer as ji
from jaxinfer_converters.program import GraphProgram


class Stops(nn.Module):
    """A layer, a parameter and a buffer, with a forward to try."""

    def __init__(self, fn):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("average", torch.zeros(3))
        self.fn = fn

    def forward(self, x):
        return self.fn(self, x)


def detached(m, x):
    h = m.layer(x)
    return h * h.detach()


def data(m, x):
    return m.layer(x) * m.scale.data + x.data


def region(m, x):
    h = m.layer(x)
    with torch.no_grad():
        z = h * 2
        q = z.sin()
    return h * q + z


def integer_results(m, x):
    h = m.layer(x)
    with torch.no_grad():
        z, index = h * 2, h.argmax(1)
    return h[:, index] * z[:, index]


def enabled_within(m, x):
    h = m.layer(x)
    with torch.no_grad():
        y = h * 2
        with torch.enable_grad():
            z = y * h
        q = z + 1
    return y * h + z + q


@torch.no_grad()
def _statistics(x):
    return x.sin(), x.sum()


def decorated(m, x):
    h = m.layer(x)
    sine, total = _statistics(h)
    return sine * h + total


def moving_average(m, x):
    with torch.no_grad():
        m.average.mul_(0.9).add_(x.mean(0) * 0.1)
    return x * m.scale + m.average


def changed_in_place(m, x):
    h = x * m.scale
    with torch.no_grad():
        h.add_(1)
    return h * 2


def in_a_branch(m, x):
    def doubled(x):
        with torch.no_grad():
            y = x * 2
        return y * x

    return torch.cond(x.sum() > -1000, doubled, lambda x: x.sin(), (x * m.scale,))


def branch_within(m, x):
    with torch.no_grad():
        y = m.layer(x)
        limit = torch.where(y > 0, y, y * 2)
    return m.layer(x) * limit


def recomputed(m, x):
    return checkpoint(lambda h: torch.relu(m.layer(h)), x, use_reentrant=False) * m.scale


def recomputed_reentrant(m, x):
    return checkpoint(lambda h: torch.relu(m.layer(h)), x, use_reentrant=True) * m.scale


STOPS = [
    *(detached, data, region, integer_results, enabled_within, decorated, moving_average),
    *(changed_in_place, in_a_branch, branch_within, recomputed, recomputed_reentrant),
]


def gradients(model, params, x):
    """Of the sum of the output with respect to parameters and input."""

    def total(params, x):
        out = model.apply(params, x)
        return (out[0] if model.program.mutates else out).sum()

    return jax.grad(total, argnums=(0, 1))(params, x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of checkpoint
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.cond
@pytest.mark.parametrize("fn", STOPS, ids=lambda fn: fn.__name__)
def test_gradients_stop_where_torch_stops_them(fn):
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    module = Stops(fn).train()
    model = ji.from_torch(module, (x,))
    leaf = x.clone().requires_grad_()
    out = module(leaf)
    out.sum().backward()
    for_params, for_x = gradients(model, model.params, x.numpy())
    for_params = ji.to_state_dict(model, for_params)
    wanted = {name: p.grad for name, p in module.named_parameters() if name in model.params}
    assert any(gradient is not None and gradient.any() for gradient in wanted.values())
    for name, gradient in wanted.items():
        want = np.zeros(for_params[name].shape) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(for_params[name], want, rtol=1e-4, atol=1e-4)
    want = np.zeros(x.shape) if leaf.grad is None else leaf.grad.numpy()
    np.testing.assert_allclose(for_x, want, rtol=1e-4, atol=1e-4)


def test_an_exported_program_keeps_its_regions_and_is_not_changed():
    x = torch.randn(5, 3)
    program = torch.export.export(Stops(region), (x,), strict=False)
    before = str(program.graph)
    with_regions = ji.from_torch(program)
    assert str(program.graph) == before
    assert "wrap_with_set_grad_enabled" in before
    first = gradients(with_regions, with_regions.params, x.numpy())
    model = ji.from_torch(Stops(region), (x,))
    second = gradients(model, with_regions.params, x.numpy())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first, second)
    assert isinstance(model.program, GraphProgram)
    ops = {node.op: node for node in model.program.graph.nodes}
    assert "torch_front/test_gradients.py" in ops["aten.sin.default"].source


class Rounded(torch.autograd.Function):
    """Straight through: the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        with torch.no_grad():
            return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_region_that_never_ends_is_told():
    module = Stops(lambda m, x: Rounded.apply(x) * m.scale * m.layer(x)).train()
    x = torch.randn(5, 3)
    model = ji.from_torch(module, (x,))
    assert "autograd.Function" in model.provenance["no_grad"]
    np.testing.assert_allclose(model(x), module(x).detach(), rtol=1e-5, atol=1e-6)
    assert np.abs(gradients(model, model.params, x.numpy())[0]["layer.weight"]).max() > 0


def test_frozen_parameters_are_named():
    module = Stops(lambda m, x: m.layer(x) * m.scale)
    module.layer.requires_grad_(False)
    model = ji.from_torch(module, (torch.randn(2, 3),))
    assert model.provenance["frozen"] == ["layer.weight", "layer.bias"]
    assert (
        "frozen" not in ji.from_torch(module.requires_grad_(False), (torch.randn(2, 3),)).provenance
    )
