"""One graph serves every size it declares; a size outside is an error naming the constraint."""

import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from tests.conftest import assert_parity, randomize


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return randomize(layer).eval()


def test_batch_and_sequence_sizes():
    module = encoder()
    model = ji.from_torch(
        module, (torch.randn(2, 5, 16),), dynamic_shapes=({0: "batch", 1: "sequence"},)
    )
    assert model.inputs[0].shape == ("batch", "sequence", 16)
    for batch, sequence in ((1, 1), (3, 7), (8, 2), (1, 30)):
        assert_parity(model, module, (torch.randn(batch, sequence, 16),))


def test_one_name_alone_means_axis_zero():
    module = nn.Bilinear(3, 4, 5)
    model = ji.from_torch(module, (torch.randn(2, 3), torch.randn(2, 4)), dynamic_shapes="batch")
    assert [leaf.shape for leaf in model.inputs] == [("batch", 3), ("batch", 4)]
    assert_parity(model, module, (torch.randn(6, 3), torch.randn(6, 4)))
    with pytest.raises(ValueError, match=r"input2.*axis 0 must be 6 \(batch = 6 from input1\)"):
        model(np.zeros((6, 3), np.float32), np.zeros((5, 4), np.float32))


def test_auto_makes_dynamic_what_the_module_allows():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x)

    model = ji.from_torch(Model(), (torch.randn(2, 5, 4),), dynamic_shapes="auto")
    batch, sequence, features = model.inputs[0].shape
    assert isinstance(batch, str)
    assert isinstance(sequence, str)
    assert features == 4


def test_size_outside_the_range_names_the_constraint():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(12, 4)

        def forward(self, x):
            return x + self.table.weight[: x.shape[1]]

    model = ji.from_torch(
        Positions(), (torch.randn(2, 5, 4),), dynamic_shapes={"x": {0: "batch", 1: "seq"}}
    )
    assert model.signature.symbols["seq"][1] == 12
    assert model(np.zeros((3, 12, 4), np.float32)).shape == (3, 12, 4)
    with pytest.raises(ValueError, match=r"seq = 13 is outside .*seq <= 12"):
        model(np.zeros((3, 13, 4), np.float32))


def test_declared_ranges_are_kept():
    batch = torch.export.Dim("batch", min=3, max=9)
    model = ji.from_torch(nn.Linear(2, 2), (torch.randn(4, 2),), dynamic_shapes=({0: batch},))
    assert model.signature.symbols == {"batch": (3, 9)}
    with pytest.raises(ValueError, match="3 <= batch <= 9"):
        model(np.zeros((2, 2), np.float32))


def test_derived_sizes_are_checked():
    class Halves(nn.Module):
        def forward(self, x, y):
            return x.reshape(-1, 2, 3).sum(1) + y

    half = torch.export.Dim("half", min=2, max=64)
    model = ji.from_torch(
        Halves(), (torch.randn(8, 3), torch.randn(4, 3)), None, ({0: 2 * half}, {0: half})
    )
    assert_parity(model, Halves(), (torch.randn(10, 3), torch.randn(5, 3)))
    with pytest.raises(ValueError, match="axis 0 must be 10"):
        model(np.zeros((12, 3), np.float32), np.zeros((5, 3), np.float32))


def test_a_fixed_size_declared_dynamic_is_an_error():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(4, -1) + torch.ones(4, 3)

    with pytest.raises(ji.JaxinferError, match=r"fixes a size that dynamic_shapes declares"):
        ji.from_torch(Fixed(), (torch.randn(4, 3),), dynamic_shapes=({0: "batch"},))
    with pytest.raises(ji.JaxinferError, match="names z"):
        ji.from_torch(Fixed(), (torch.randn(4, 3),), dynamic_shapes={"z": {0: "batch"}})
