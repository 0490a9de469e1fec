"""Quantized modules and tensors are refused, each by name, with what to convert instead."""

import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer.core.errors import ConversionError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def refusal(module, *args):
    with pytest.raises(ConversionError) as error:
        ji.from_torch(module, args)
    text = str(error.value)
    assert "Convert the float model" in text
    assert "dequantize()" in text
    return text


def test_dynamically_quantized_layers():
    from torch.ao.quantization import quantize_dynamic

    module = quantize_dynamic(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    text = refusal(module, torch.randn(2, 3))
    assert "2 quantized layers or tensors" in text
    assert "layer '0': torch.ao.nn.quantized.dynamic" in text
    assert "layer '2': torch.ao.nn.quantized.dynamic" in text


class Held(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return x @ self.weight.dequantize()


def test_quantized_tensors():
    weight = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8)
    assert "weight: qint8[3, 4]" in refusal(Held(weight), torch.randn(2, 3))


def test_tensor_subclasses():
    from torch.testing._internal.two_tensor import TwoTensor

    module = nn.Sequential(nn.Linear(3, 4))
    module[0].weight = nn.Parameter(TwoTensor(torch.randn(4, 3), torch.randn(4, 3)))
    text = refusal(module, torch.randn(2, 3))
    assert "0.weight: a tensor subclass, torch.testing._internal.two_tensor.TwoTensor" in text


def test_float_modules_beside_them_convert():
    from torch.ao.quantization import DeQuantStub, QuantStub

    module = nn.Sequential(QuantStub(), nn.Linear(3, 4), DeQuantStub())
    assert ji.from_torch(module, (torch.randn(2, 3),)).params
