"""Models that cannot be converted, and calls that do not fit: one clear error each."""

import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer.core.errors import ConversionError, InputError, InputTypeError, MissingRulesError


def custom_op(name):
    op = torch.library.custom_op(f"jaxinfer_bad::{name}", lambda x: x.clone(), mutates_args=(),
                                 schema="(Tensor x) -> Tensor")  # fmt: skip
    op.register_fake(torch.empty_like)
    return op


def test_all_missing_operators_at_once_with_counts_path_line_and_how_to_register():
    first, second = custom_op("first"), custom_op("clonee")

    class Block(nn.Module):
        def forward(self, x):
            return first(x) + first(x * 2) + second(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return self.block(x)

    with pytest.raises(MissingRulesError) as error:
        ji.from_torch(Model(), (torch.randn(3),))
    text = str(error.value)
    assert "2 operators of this model have no rule" in text
    assert "jaxinfer_bad.first.default: 2 times, first in block" in text
    assert "jaxinfer_bad.clonee.default: 1 times" in text
    assert "test_bad_models.py" in text
    assert "first(x)" in text
    assert "@jaxinfer.register('jaxinfer_bad.first.default')" in text


def test_missing_operators_are_found_before_any_weight_is_read():
    op = custom_op("third")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return op(self.linear(x))

    with pytest.raises(MissingRulesError, match="third"):
        ji.from_torch(Model().to("meta"), (torch.randn(2, 3),), weights="/there/is/no/such/file")


class Mask(nn.Module):
    def forward(self, x):
        return x[x > 0]


class Nonzero(nn.Module):
    def forward(self, x):
        return x.nonzero()


class Branch(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Count(nn.Module):
    def forward(self, x):
        n = int(x.sum())
        return x[:n] if n > 3 else x


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (Mask(), "x[x > 0]"),
        (Nonzero(), "x.nonzero()"),
        (Branch(), "if x.sum() > 0"),
        (Count(), "n = int(x.sum())"),
    ],
)
def test_data_dependence_names_the_line_and_what_to_do(module, line, capfd):
    with pytest.raises(ConversionError) as error:
        ji.from_torch(module, (torch.randn(5),))
    text = str(error.value)
    assert "depend" in text
    assert "test_bad_models.py" in text
    assert line in text
    assert "torch.where" in text
    assert capfd.readouterr().err == ""


def test_flatten_linear_mismatch_names_the_layer_and_both_sizes(capfd):
    module = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10), nn.Softmax(dim=1),
    )  # fmt: skip
    with pytest.raises(ConversionError) as error:
        ji.from_torch(module, (torch.randn(1, 3, 224, 224),))
    text = str(error.value)
    assert "layer '10' (Linear(in_features=256" in text
    assert "200,704 features and wants 256" in text
    assert capfd.readouterr().err == ""


def test_convolution_mismatch_names_the_channels():
    with pytest.raises(ConversionError, match=r"layer '0'.*gets 4 channels and wants 3"):
        ji.from_torch(nn.Sequential(nn.Conv2d(3, 8, 3)), (torch.randn(1, 4, 8, 8),))


def test_a_module_that_fails_by_itself():
    class Model(nn.Module):
        def forward(self, x):
            return x @ torch.ones(7, 2)

    with pytest.raises(ConversionError, match="itself"):
        ji.from_torch(Model(), (torch.randn(2, 3),))


def test_not_a_module():
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module.*from_function"):
        ji.from_torch(lambda x: x, (torch.randn(2),))


@pytest.fixture(scope="module")
def model():
    class Two(nn.Module):
        def forward(self, x, ids):
            return x + ids[:, None]

    return ji.from_torch(
        Two(), (torch.randn(2, 3), torch.tensor([1, 2])), None, ({0: "batch"}, {0: "batch"})
    )


X, IDS = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("args", "kwargs", "kind", "texts"),
    [
        ((X[:, :2], IDS), {}, InputError, ["x: float32[batch, 3]: axis 1 must be 3", "[4, 2]"]),
        ((X[0], IDS), {}, InputError, ["got rank 1"]),
        ((X, IDS[:3]), {}, InputError, ["ids", "axis 0 must be 4 (batch = 4 from x)", "[3]"]),
        ((X.astype(np.float64), IDS), {}, InputTypeError, ["got float64", "astype('float32')"]),
        ((X, X[:, 0]), {}, InputTypeError, ["ids: int64[batch]: got float32"]),
        ((X, IDS, X), {}, InputError, ["at most 2 inputs, got 3"]),
        ((X,), {}, InputError, ["ids: missing (ids: int64[batch])"]),
        ((X,), {"idz": IDS}, InputError, ["idz: no such input", "ids: missing"]),
        ((X, IDS), {"x": X}, InputError, ["x: given by position and by name"]),
        (({"a": X}, IDS), {}, InputError, ["x: required an array, got dict with ['a']"]),
        (("words", IDS), {}, InputTypeError, ["x: required an array, got str"]),
        ((np.array(["a"]), IDS), {}, InputTypeError, ["dtype <U1"]),
        ((np.array([None, X], dtype=object), IDS), {}, InputTypeError, ["dtype object"]),
    ],
)
def test_calls_that_do_not_fit(model, args, kwargs, kind, texts):
    with pytest.raises(kind) as error:
        model(*args, **kwargs)
    for text in texts:
        assert text in str(error.value)


def test_all_problems_of_a_call_at_once(model):
    with pytest.raises(InputError) as error:
        model(X[:, :2], IDS.astype(np.float32)[:3])
    assert "axis 1 must be 3" in str(error.value)
    assert "axis 0 must be 4" in str(error.value)
    assert "got float32" in str(error.value)


def test_wrong_structure():
    class Nested(nn.Module):
        def forward(self, batch):
            return batch["a"] + batch["b"]

    x = torch.randn(2)
    nested = ji.from_torch(Nested(), ({"a": x, "b": x},))
    with pytest.raises(InputError, match=r"required dict with \['a', 'b'\], got dict with \['a'\]"):
        nested({"a": x})
    with pytest.raises(InputError, match="got list of 2"):
        nested([x, x])


def test_fixed_arguments_cannot_change():
    class Flag(nn.Module):
        def forward(self, x, flip=False):
            return -x if flip else x

    fixed = ji.from_torch(Flag(), (torch.randn(2), True))
    np.testing.assert_array_equal(fixed(np.ones(2, np.float32)), [-1, -1])
    with pytest.raises(InputError, match="flip: fixed to True at conversion, got False"):
        fixed(np.ones(2, np.float32), False)
