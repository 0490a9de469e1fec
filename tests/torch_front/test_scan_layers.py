"""scan_layers=True: the same results from one scanned block; what cannot be scanned is said."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer_converters.torch.huggingface import parameters_on_meta
from tests.conftest import randomize
from tests.slow.architectures import decoder, text_dynamic, tokens

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}


def both(module, args=(), kwargs=None, dynamic=None):
    """Convert with and without; assert that all three sides agree; return the scanned model."""
    randomize(module).eval()
    plain = ji.from_torch(module, args, kwargs, dynamic)
    scanned = ji.from_torch(module, args, kwargs, dynamic, scan_layers=True)
    with torch.no_grad():
        want = jax.tree.leaves(jax.tree.map(
            lambda x: x.numpy(), _flat(module(*args, **(kwargs or {})))
        ))  # fmt: skip
    kwargs = {k: v for k, v in (kwargs or {}).items() if isinstance(v, torch.Tensor)}
    for got in (plain(*args, **kwargs), scanned(*args, **kwargs)):
        for g, w in zip(jax.tree.leaves(_flat(got)), want, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-4 * np.abs(w).max())
    return scanned


def _flat(value):
    return list(value.values()) if hasattr(value, "keys") else value


def runs(model):
    found = model.provenance["scan_layers"]["scanned"]
    return [(item["path"], item["blocks"], item["modules"]) for item in found]


def bert(**changes):
    from transformers import BertConfig, BertModel

    names = ("input_ids", "attention_mask")
    config = BertConfig(vocab_size=100, intermediate_size=64, **SMALL, **changes)
    return BertModel(config), tokens(*names, vocabulary=100)(2)[1], text_dynamic(*names)


@pytest.mark.slow
def test_bert():
    module, kwargs, dynamic = bert()
    model = both(module, (), kwargs, dynamic)
    assert runs(model) == [("encoder.layer", 4, 1)]
    name = "encoder.layer.*.attention.self.query.weight"
    want = [layer.attention.self.query.weight.T for layer in module.encoder.layer]
    np.testing.assert_array_equal(model.params[name], torch.stack(want).detach().numpy())
    assert not any("layer.0" in name for name in model.params)
    longer = tokens("input_ids", "attention_mask", length=31, vocabulary=100)(5)[1]
    with torch.no_grad():
        want = module(**longer).last_hidden_state
    np.testing.assert_allclose(model(**longer)[0], want.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_all_hidden_states_come_out():
    module, kwargs, dynamic = bert(output_hidden_states=True)
    model = both(module, (), kwargs, dynamic)
    assert runs(model) == [("encoder.layer", 4, 1)]
    assert len(model(**kwargs).hidden_states) == 5


@pytest.mark.parametrize(
    ("family", "changes", "path", "modules"),
    [
        ("Llama", {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}, "model.layers", 1),
        ("GPT2", {"n_embd": 32, "n_layer": 4, "n_head": 4}, "transformer.h", 1),
        (
            "Gemma3Text",
            {
                **SMALL, "num_hidden_layers": 6, "intermediate_size": 64, "head_dim": 8,
                "num_key_value_heads": 2, "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 3,
            },
            "model.layers",
            2,
        ),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_decoders(family, changes, path, modules):
    if family == "Gemma3Text":
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        module = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=1000, **changes))
        kwargs = {**tokens("input_ids", length=16)(2)[1], "use_cache": False}
        dynamic = text_dynamic("input_ids")
    else:
        module, inputs, dynamic = decoder(family, **changes)()
        kwargs = inputs(2)[1]
    model = both(module, (), kwargs, dynamic)
    blocks = 3 if modules == 2 else 4
    assert runs(model) == [(path, blocks, modules)]
    if modules == 2:
        assert f"{path}.0:5:2.mlp.gate_proj.weight" in model.params
        assert f"{path}.1:6:2.mlp.gate_proj.weight" in model.params


@pytest.mark.slow
def test_vit():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(image_size=16, patch_size=8, intermediate_size=64, **SMALL)
    model = both(ViTModel(config), (torch.randn(2, 3, 16, 16),), None, ({0: "batch"},))
    assert len(runs(model)) == 1
    assert runs(model)[0][1] == 4


class Block(nn.Module):
    """A residual block: convolution, batch norm, ReLU in place."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.down = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return torch.relu_(self.bn(self.conv(x)) + self.down(x))


def test_stages_of_a_resnet():
    stages = [
        nn.Sequential(Block(c // 2, c, 2), *(Block(c, c, 1) for _ in range(n)))
        for c, n in ((6, 2), (12, 4), (24, 3))
    ]
    module = nn.Sequential(*stages)
    model = both(module, (torch.randn(2, 3, 16, 16),), None, ({0: "batch"},))
    assert sorted(runs(model)) == [("1", 4, 1), ("2", 3, 1)]
    assert model.params["1.1:5.bn.running_var"].shape == (4, 12)
    assert model.params["1.0.bn.running_var"].shape == (12,)


class Stack(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x)) + 1
        return x


class Cached(Stack):
    """Each layer reads an input of its own, and returns its new value."""

    def forward(self, x, caches):
        new = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x = torch.tanh(layer(x)) + cache
            new.append(cache + x)
        return x, new


def declined(module, *args):
    model = both(module, args)
    assert model.provenance["scan_layers"]["scanned"] == []
    return " ".join(model.provenance["scan_layers"]["declined"])


def test_what_is_declined_is_said():
    x, equal = torch.randn(2, 3), [nn.Linear(3, 3) for _ in range(4)]
    sizes = (3, 5, 7, 9)
    growing = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    why = "layers: the first blocks differ: aten.linear.default against aten.linear.default"
    assert why in declined(Stack(growing), x)
    tied = Stack(equal)
    tied.head = nn.Linear(3, 3)
    tied.head.weight = tied.layers[1].weight
    assert "weight is tied to another parameter" in declined(tied, x)
    caches = [torch.randn(2, 3) for _ in range(4)]
    why = "layers: each block reads a value of its own that is no parameter (caches_0, caches_1,"
    assert why in declined(Cached(equal), x, caches)


def test_a_block_that_is_not_equal_ends_the_run():
    layers = [nn.Linear(4, 4, bias=i != 3) for i in range(9)]
    model = both(Stack(layers), (torch.randn(2, 4),))
    assert sorted(runs(model)) == [("layers", 3, 1), ("layers", 5, 1)]
    assert model.params["layers.0:3.weight"].shape == (3, 4, 4)
    assert model.params["layers.4:9.weight"].shape == (5, 4, 4)
    assert model.params["layers.3.weight"].shape == (4, 4)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        kept = []
        for layer in self.layers:
            x = torch.dropout(layer(x) * 0 + 1, 0.5, True)
            kept.append(x)
        return kept


def test_random_numbers_differ_from_layer_to_layer():
    model = ji.from_torch(Noisy(), (torch.ones(64, 4),), scan_layers=True)
    assert runs(model) == [("layers", 3, 1)]
    masks = [np.asarray(y) > 0 for y in model(jnp.ones((64, 4)), rng_key=jax.random.key(3))]
    for index, mask in enumerate(masks):
        assert 0.35 < mask.mean() < 0.65  # 256 draws: 0.5 +- 0.03
        assert not any((mask == other).all() for other in masks[index + 1 :])
    again = model(jnp.ones((64, 4)), rng_key=jax.random.key(3))
    np.testing.assert_array_equal(masks[2], np.asarray(again[2]) > 0)


def test_save_and_load(tmp_path):
    module, kwargs, dynamic = bert()
    model = ji.from_torch(module.eval(), (), kwargs, dynamic, scan_layers=True)
    model.save(tmp_path / "out")
    again = ji.load(tmp_path / "out")
    assert again.params.keys() == model.params.keys()
    np.testing.assert_array_equal(again(**kwargs)[0], model(**kwargs)[0])
    assert runs(again) == runs(model)


@pytest.mark.slow
def test_weights_of_a_checkpoint_are_stacked(tmp_path):
    module, kwargs, dynamic = bert()
    module = randomize(module).eval()
    module.save_pretrained(tmp_path)
    with parameters_on_meta():
        empty = type(module)(module.config).eval()
    model = ji.from_torch(empty, (), kwargs, dynamic, weights=tmp_path, scan_layers=True)
    want = ji.from_torch(module, (), kwargs, dynamic, scan_layers=True)
    for name, value in want.params.items():
        np.testing.assert_array_equal(model.params[name], value)


def test_gradients():
    module = Stack([nn.Linear(4, 4) for _ in range(4)])
    x = torch.randn(2, 4)
    model = ji.from_torch(module.eval(), (x,), scan_layers=True)
    grads = jax.grad(lambda p: model.apply(p, jnp.asarray(x.numpy())).sum())(model.params)
    module(x).sum().backward()
    got = ji.to_state_dict(model, grads)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(got[name], parameter.grad, rtol=1e-4, atol=1e-5)
