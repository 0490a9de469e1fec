"""Gradients with respect to every parameter, in training and in evaluation, against autograd.

Two leaves agree if max|g - g'| <= 1e-4 * max|g'|: relative to the leaf's largest gradient, because
an element that is a sum of cancelling terms has no digits of its own. A key's bias adds the same
to every score of a row, and softmax takes it away again: its gradient is zero but for rounding, and
is held against that of the key's weight.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxinfer as ji
from tests.conftest import randomize

LIMIT = 1e-4
pytestmark = pytest.mark.slow


def loss_gradients(module, model, inputs, weights):
    """Gradients of Σ weights * output of torch and of JAX, and torch's and JAX's new state."""
    out = module(**inputs)
    out = out if isinstance(out, torch.Tensor) else out.pooler_output
    module.zero_grad()
    (out * weights).sum().backward()
    arrays = {name: jnp.asarray(value.numpy()) for name, value in inputs.items()}
    names = {name for name, _ in module.named_parameters()}
    trained = {name: value for name, value in model.params.items() if name in names}
    rest = {name: value for name, value in model.params.items() if name not in names}

    @jax.jit
    def loss(trained):
        out = model.apply({**trained, **rest}, **arrays)
        out, state = out if model.program.mutates else (out, {})
        out = out if hasattr(out, "shape") else out.pooler_output
        return (out * weights.numpy()).sum(), state

    gradients, state = jax.grad(loss, has_aux=True)(trained)
    return {name: p.grad.numpy() for name, p in module.named_parameters()}, gradients, state


def worst(model, wanted, got):
    """Return max|g - g'| / max|g'| over leaves, and the leaf."""
    assert set(got) == set(wanted)
    errors = []
    for name, gradient in ji.to_state_dict(model, got).items():
        want = wanted[name]
        like = name.replace("key.bias", "key.weight")
        errors.append((float(np.abs(gradient - want).max() / np.abs(wanted[like]).max()), name))
    return max(errors)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_resnet18(training, timm):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    module = randomize(torchvision.models.resnet18(num_classes=10)).train(training)
    x = torch.randn(4, 3, 64, 64)
    model = ji.from_torch(module, (x,))
    before = {name: value.clone() for name, value in module.named_buffers()}
    wanted, got, state = loss_gradients(module, model, {"x": x}, torch.randn(4, 10))
    error, name = worst(model, wanted, got)
    print(f"resnet18 {error:.1e} at {name}")
    assert error <= LIMIT, f"{name}: {error:.2e}"
    assert len(state) == (60 if training else 0)
    for name, value in state.items():
        want = dict(module.named_buffers())[name]
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)
        assert not torch.equal(want, before[name])


def test_bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=101,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    inputs = {
        "input_ids": torch.randint(0, 101, (3, 17)),
        "attention_mask": (torch.arange(17) < torch.tensor([[17], [11], [5]])).long(),
    }
    for training in (True, False):
        module = randomize(transformers.BertModel(config)).train(training)
        model = ji.from_torch(module, (), inputs)
        wanted, got, state = loss_gradients(module, model, inputs, torch.randn(3, 48))
        assert not state
        error, name = worst(model, wanted, got)
        assert error <= LIMIT, f"{name}: {error:.2e}"
