"""``to_state_dict``: what a conversion did to the order of weights, undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from tests.conftest import randomize


class Net(nn.Module):
    """Every kind of weight that is stored in another order, and a tied one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.up = nn.ConvTranspose1d(6, 4, 2, stride=2)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.up(self.norm(self.conv(self.embed(ids).mT))).mT
        x = self.rnn(x)[0]
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_everything_comes_back(scan_layers):
    module, ids = randomize(Net()).eval(), torch.randint(0, 11, (2, 6))
    model = ji.from_torch(module, (ids,), scan_layers=scan_layers)
    assert ("layers.*.weight" in model.params) == scan_layers
    got, want = ji.to_state_dict(model), module.state_dict()
    assert set(want) - set(got) == {"norm.num_batches_tracked"}
    for name, value in got.items():
        np.testing.assert_array_equal(value, want[name].numpy())
    changed = any(value.shape != want[k].shape for k, value in model.params.items() if k in want)
    assert changed, "nothing was stored in another order"


def test_back_to_torch_after_a_step():
    module, ids = randomize(Net()).eval(), torch.randint(0, 11, (2, 6))
    model = ji.from_torch(module, (ids,), scan_layers=True)
    params = jax.tree.map(lambda x: x * 1.5, model.params)
    state = {k: torch.tensor(np.asarray(v)) for k, v in ji.to_state_dict(model, params).items()}
    module.load_state_dict(state, strict=False)
    got = model.apply(params, jnp.asarray(ids.numpy(), "int32"))
    np.testing.assert_allclose(got, module(ids).detach(), rtol=1e-4, atol=1e-4)


def test_a_part_and_gradients():
    module, x = nn.Linear(4, 3), torch.randn(2, 4)
    model = ji.from_torch(module, (x,))
    assert list(ji.to_state_dict(model, {"weight": model.params["weight"]})) == ["weight"]
    grads = jax.grad(lambda p: model.apply(p, x.numpy()).sum())(model.params)
    module(x).sum().backward()
    got = ji.to_state_dict(model, grads)["weight"]
    np.testing.assert_allclose(got, module.weight.grad, rtol=1e-5, atol=1e-5)


def test_loaded_models_know_it_too(tmp_path):
    module = nn.Linear(4, 3)
    ji.save(ji.from_torch(module, (torch.randn(2, 4),)), tmp_path / "m")
    got = ji.to_state_dict(ji.load(tmp_path / "m"))["weight"]
    np.testing.assert_array_equal(got, module.weight.detach())


def test_what_it_cannot_do():
    model = ji.from_torch(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(ji.JaxinferError, match="no 'wieght'"):
        ji.to_state_dict(model, {"wieght": np.ones(3)})
    plain = ji.from_function(lambda p, x: p * x, jnp.ones(3), (jnp.ones(3),))
    with pytest.raises(ji.JaxinferError, match="no checkpoint"):
        ji.to_state_dict(plain)
