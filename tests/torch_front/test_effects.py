"""What forward does besides computing is recorded, or refused; never dropped in silence."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer.core.errors import ConversionError
from tests.conftest import assert_parity

X = torch.randn(3)


def effects(module, *args):
    model = ji.from_torch(module, args or (X,))
    return model, list(model.provenance.get("effects", ()))


class Prints(nn.Module):
    def forward(self, x):
        print("shape:", x.shape)
        return x + 1


def test_prints_are_noted_and_stay_out_of_stdout(capsys):
    model, found = effects(Prints())
    assert found == ["forward prints, and the converted model does not"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "shape:" in err
    model(X)
    assert capsys.readouterr().out == ""


class Seeds(nn.Module):
    def forward(self, x):
        torch.manual_seed(3)
        return x + torch.randn(3)


def test_a_seed_set_in_forward_is_noted_and_torch_keeps_its_own():
    torch.manual_seed(7)
    want = torch.rand(2)
    torch.manual_seed(7)
    _, found = effects(Seeds())
    assert len(found) == 1
    assert "seeds torch's generator" in found[0]
    assert "rng_key" in found[0]
    torch.testing.assert_close(torch.rand(2), want, rtol=0, atol=0)


class Draws(nn.Module):
    def forward(self, x):
        return x + random.random() + np.random.rand()


def test_numbers_of_other_generators_are_fixed_and_noted():
    model, found = effects(Draws())
    assert [text.split(":")[0] for text in found] == [
        "forward draws from Python's random",
        "forward draws from numpy.random",
    ]
    np.testing.assert_array_equal(model(X), model(X))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)


def test_a_counter_is_noted():
    _, found = effects(Counts())
    assert found == [
        "forward changes self.inner.calls (0 to 1): the converted model computes with what it was "
        "at conversion"
    ]


class Keeps(nn.Module):
    def forward(self, x):
        self.last = x * 2
        return self.last + 1


def test_a_tensor_kept_on_the_module_is_noted():
    model, found = effects(Keeps())
    assert found == ["self.last: assigned in forward, and not by the converted model"]
    assert_parity(model, Keeps(), (X,))


def test_modules_without_effects_have_no_note():
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.ReLU())
    model, found = effects(module.train(), torch.randn(2, 3))
    assert model.program.random
    assert found == []


def test_recurrent_layers_have_no_note():
    model, found = effects(nn.LSTM(3, 4, num_layers=2), torch.randn(5, 2, 3))
    assert len(model.params) == 8
    assert found == []


def test_other_warnings_of_forward_come_through():
    class Warns(nn.Module):
        def forward(self, x):
            import warnings

            warnings.warn("the user's own", UserWarning, stacklevel=1)
            return x + 1

    with pytest.raises(ConversionError, match="the user's own"):  # warnings are errors here
        ji.from_torch(Warns(), (X,))


@pytest.fixture(scope="module")
def log():
    op = torch.library.custom_op(
        "jaxinfer_effects::log", lambda x: None, mutates_args=(), schema="(Tensor x) -> ()"
    )
    op.register_fake(lambda x: None)
    return op


def test_operators_that_return_nothing_are_refused_with_their_lines(log):
    class Logs(nn.Module):
        def forward(self, x):
            log(x)
            return nn.functional.interpolate(x[None, None], scale_factor=2.0)

    with pytest.raises(ConversionError) as error:
        ji.from_torch(Logs(), (X,))
    text = str(error.value)
    assert "jaxinfer_effects.log.default: " in text
    assert "test_effects.py" in text
    assert "log(x)" in text
    assert "jax.debug.callback" in text


class Numpy(nn.Module):
    def forward(self, x):
        return x + torch.from_numpy(x.detach().numpy() * 2)


def test_numpy_in_forward_is_refused_with_its_line_and_the_cure():
    with pytest.raises(ConversionError) as error:
        ji.from_torch(nn.Sequential(nn.Identity(), Numpy()), (X,))
    text = str(error.value)
    assert "layer '1' (Numpy)" in text
    assert "x.detach().numpy() * 2" in text
    assert "torch.library.custom_op" in text
