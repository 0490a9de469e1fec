"""Models that need 64 bits: refused by operator and value, or computed so with x64=True."""

import json

import jax
import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer.core.errors import ArtefactError, ConversionError, InputError


class Mix(nn.Module):
    """A step of Knuth's 64-bit linear congruential generator, and float64 arithmetic."""

    def __init__(self):
        super().__init__()
        self.register_buffer("add", torch.tensor([2**40, 1, 5]))
        self.linear = nn.Linear(3, 2).double()

    def forward(self, x):
        return x * 6364136223846793005 + self.add, self.linear(x.double()).exp()


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.tensor([2**40, 1]))

    def forward(self, x):
        return x + self.table


X = torch.tensor([11, 12, 13])


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    module = Mix().eval()
    return module, ji.from_torch(module, (X,), x64=True)


def assert_same(model, module, x=X):
    with torch.no_grad():
        integers, floats = module(x)
    got_integers, got_floats = model(x)
    assert (got_integers.dtype, got_floats.dtype) == (np.int64, np.float64)
    np.testing.assert_array_equal(got_integers, integers.numpy())
    np.testing.assert_allclose(got_floats, floats.numpy(), rtol=1e-14)  # far below float32's 6e-8


def test_without_it_operator_line_and_value_are_named(pair):
    with pytest.raises(ValueError, match=r"aten\.mul\.Tensor") as error:
        ji.from_torch(pair[0], (X,))
    text = str(error.value)
    assert "the number 6364136223846793005 does not fit int32" in text
    assert "x64=True in ji.from_torch, --x64" in text
    assert "test_x64.py" in text


def test_without_it_a_buffer_and_its_value_are_named():
    with pytest.raises(ConversionError, match=r"table: int64 value 1099511627776.*x64=True"):
        ji.from_torch(Large(), (X[:2],))


def test_64_bits_are_computed_while_jax_has_them_off(pair):
    module, model = pair
    assert not jax.config.read("jax_enable_x64")
    assert_same(model, module)
    assert model.params["linear.weight"].dtype == np.float64
    assert "narrowed" not in model.provenance
    assert jax.numpy.ones(3).dtype == np.float32  # nothing else has changed


def test_inputs_beyond_32_bits(pair):
    module, model = pair
    assert_same(model, module, X + 2**40)


def test_apply_demands_that_64_bits_are_on(pair):
    module, model = pair
    with pytest.raises(InputError, match=r"with jax\.enable_x64\(True\)"):
        jax.jit(model.apply)(model.params, X.numpy())
    with jax.enable_x64(True):
        got = jax.jit(model.apply)(model.params, X.numpy())
    np.testing.assert_array_equal(got[0], module(X)[0])


def test_it_is_kept_on_disk(pair, tmp_path):
    module, model = pair
    model.save(tmp_path / "model")
    assert_same(ji.load(tmp_path / "model"), module)
    file = tmp_path / "model" / "model.json"
    data = json.loads(file.read_text())
    data["program"]["x64"] = "yes"
    file.write_text(json.dumps(data))
    with pytest.raises(ArtefactError, match="x64: required true or false"):
        ji.load(tmp_path / "model")


def test_models_without_it_say_nothing_of_it():
    model = ji.from_torch(nn.Linear(3, 2), (torch.randn(2, 3),))
    assert "x64" not in model.program.to_json()
