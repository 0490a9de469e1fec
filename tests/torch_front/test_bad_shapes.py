"""Sizes that the module fixes, and shapes that depend on values: every line, with its cure."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import jaxinfer as ji
from jaxinfer.core.errors import ConversionError, InputError
from tests.conftest import assert_parity


def refusal(module, args, dynamic_shapes=None):
    with pytest.raises(ConversionError) as error:
        ji.from_torch(module, args, dynamic_shapes=dynamic_shapes)
    return str(error.value)


class Several(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            x = x + 1
        n = int(x.max())
        kept = x[x > 0.5]
        if kept.numel() > 3:
            kept = kept * 2
        return kept, x[:n], torch.nonzero(x)


def test_all_lines_at_once_each_with_the_cure_of_its_operator(capfd):
    text = refusal(Several(), (torch.arange(9.0),))
    lines = {line.split(": ")[1]: line for line in text.splitlines()[1:-1]}
    assert "torch.cond" in lines["if x.sum() > 0"]
    assert "keep the number a tensor" in lines["n = int(x.max())"]
    assert "torch.topk of the mask" in lines["kept = x[x > 0.5] (aten.index.Tensor)"]
    assert "torch.cond" in lines["if kept.numel() > 3"]
    nonzero = "return kept, x[:n], torch.nonzero(x) (aten.nonzero.default)"
    assert "torch.nonzero_static" in lines[nonzero]
    assert all("test_bad_shapes.py:" in line for line in lines.values())
    assert list(lines) == sorted(lines, key=lambda key: int(lines[key].split(":")[1]))
    assert capfd.readouterr().err == ""


def test_without_weights_the_first_line_is_named():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3, device="meta")

        def forward(self, x):
            y = self.linear(x)
            return y if y.sum() > 0 else -y

    text = refusal(Part(), (torch.randn(2, 3),))
    assert "return y if y.sum() > 0 else -y" in text


class Repeats(nn.Module):
    def forward(self, x, counts):
        return torch.repeat_interleave(x, counts), torch.unique(x), torch.bincount(counts)


def test_operators_of_data_dependent_shape_that_export():
    text = refusal(Repeats(), (torch.randn(3), torch.tensor([1, 2, 3])))
    for op, cure in (
        ("aten.repeat_interleave.self_Tensor", "pass output_size"),
        ("aten._unique2.default", "pad to a fixed number"),
        ("aten.bincount.default", "fixed number of bins"),
    ):
        (line,) = (line for line in text.splitlines() if op in line)
        assert cure in line
        assert "return torch.repeat_interleave(x, counts)" in line


def test_nms_names_fixed_k():
    from jaxinfer_converters.aten._data_dependent import cure

    assert "fixed number k of boxes" in cure("torchvision.nms.default")
    assert "padding" in cure("some.other.op")


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 3))

    def forward(self, x, y):
        x = x * 2
        return x + self.table, y.reshape(5, -1)


def test_a_specialized_size_names_constraint_and_line(capfd):
    text = refusal(
        Positions(), (torch.randn(6, 3), torch.randn(5, 4)), ({0: "batch"}, {0: "length"})
    )
    assert "refused dynamic_shapes (batch, length)" in text
    assert "axis 0 of x must be 6: " in text
    assert "axis 0 of y must be 5: " in text
    assert text.count("test_bad_shapes.py") == 2
    assert "return x + self.table, y.reshape(5, -1)" in text
    assert "torch suggests batch = 6; length = 5" in text
    assert "dynamic_shapes='auto'" in text
    assert capfd.readouterr().err == ""


class Limited(nn.Module):
    def forward(self, x):
        if x.shape[0] > 5:
            x = x * 2
        return x


def test_a_range_that_does_not_hold_names_the_branch():
    text = refusal(Limited(), (torch.randn(6, 3),), ({0: Dim("batch", min=2, max=10)},))
    assert "required (axis 0 of x) > 5: " in text
    assert "if x.shape[0] > 5" in text
    assert "Dim('batch', min=6, max=10)" in text


class Fours(nn.Module):
    def forward(self, x):
        return x.reshape(4, -1).sum(1)


def test_a_size_that_must_be_a_multiple():
    model = ji.from_torch(Fours(), (torch.randn(8, 3),), dynamic_shapes=({0: "batch"},))
    assert str(model.inputs[0]) == "x: float32[4*x_0_unit, 3]"
    for size in (4, 12):
        assert_parity(model, Fours(), (torch.randn(size, 3),))
    with pytest.raises(InputError, match=r"axis 0 must be 12 \(4\*x_0_unit\), got shape \[13, 3\]"):
        model(np.zeros((13, 3), np.float32))
