"""Numbers read from tensors of constants are known at conversion; others stay errors."""

import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer.core.errors import ConversionError
from tests.conftest import assert_parity


class Columns(nn.Module):
    """Reads a number of a table's rows from the largest position, as axial embeddings do."""

    def __init__(self, positions):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))
        self.positions = positions

    def forward(self, x):
        largest = self.positions(x).max().item()
        torch._check(largest >= 0)
        torch._check(largest < 9)
        rows = self.table[: (largest + 2) // 2]
        return rows.sum(0) * x.sum() + largest, torch.arange(largest + 1) * 2


def counted(x):
    return torch.arange(x.shape[1]).unsqueeze(0).expand(x.shape[0], -1)


def test_a_number_read_from_constants_is_a_number():
    module, x = Columns(counted).eval(), torch.randn(2, 7)
    model = ji.from_torch(module, (x,))
    assert_parity(model, module, (x,))
    assert np.asarray(model(x)[1]).shape == (7,)


def test_a_known_number_may_be_returned():
    class Returned(nn.Module):
        def forward(self, x):
            count, mean = counted(x).max().item(), torch.arange(3.0).mean().item()
            return x * count * mean, count, mean

    module, x = Returned(), torch.randn(2, 7)
    model = ji.from_torch(module, (x,))
    np.testing.assert_allclose(model(x)[0], module(x)[0].numpy(), rtol=1e-6)
    assert (int(model(x)[1]), float(model(x)[2])) == module(x)[1:]


def test_a_written_tensor_is_not_taken_for_what_it_was():
    def written(x):
        positions = counted(x).clone()
        seen = positions.view(-1)
        positions.add_(1)
        return seen

    module, x = Columns(written).eval(), torch.randn(2, 7)
    assert_parity(ji.from_torch(module, (x,)), module, (x,))


@pytest.mark.parametrize(
    "positions",
    [lambda x: x.long().abs() % 7, lambda x: torch.randint(3, 8, (x.shape[1],))],
    ids=["input", "chance"],
)
def test_a_number_of_the_data_stays_an_error(positions):
    with pytest.raises(ConversionError, match="depend on the data"):
        ji.from_torch(Columns(positions).eval(), (torch.randn(2, 7),))


class Strided(nn.Module):
    """Pads to a whole number of windows, with sizes kept in buffers, as audio codecs do."""

    def __init__(self, persistent):
        super().__init__()
        self.register_buffer("stride", torch.tensor(4), persistent=persistent)
        self.kernel = torch.tensor(6)

    def forward(self, x):
        windows = torch.ceil((x.shape[-1] - self.kernel) / self.stride + 1).to(torch.int64) - 1
        extra = windows * self.stride + self.kernel - x.shape[-1]
        return nn.functional.pad(x, (0, extra), "constant", 0.5)


def test_numbers_of_buffers_that_no_checkpoint_holds():
    module, x = Strided(persistent=False).eval(), torch.randn(2, 15)
    model = ji.from_torch(module, (x,))
    assert_parity(model, module, (x,))
    assert model(x).shape == (2, 18)


def test_numbers_that_follow_from_numbers():
    """The second layer's length is what the first one's numbers make it."""
    module = nn.Sequential(*(Strided(persistent=False) for _ in range(3))).eval()
    module[1].kernel, module[2].stride = torch.tensor(11), torch.tensor(5)
    x = torch.randn(2, 15)
    model = ji.from_torch(module, (x,))
    assert_parity(model, module, (x,))


def test_a_buffer_of_the_checkpoint_is_data():
    with pytest.raises(ConversionError, match="depend on the data"):
        ji.from_torch(Strided(persistent=True).eval(), (torch.randn(2, 15),))


def test_a_buffer_that_is_written_is_data():
    class Counting(Strided):
        def forward(self, x):
            y = super().forward(x)
            self.stride.add_(1)
            return y

    with pytest.raises(ConversionError, match="depend on the data"):
        ji.from_torch(Counting(persistent=False).eval(), (torch.randn(2, 15),))
