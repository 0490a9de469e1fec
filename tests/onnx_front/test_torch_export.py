"""Files that torch.onnx.export writes, against torch: both exporters, at sizes of their own."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

import jaxinfer as ji  # noqa: E402
from tests.conftest import randomize  # noqa: E402


def check(tmp_path, module, args, names, axes, other, *, dynamo):
    """Export, convert, and compare at the exported and at other sizes."""
    module = randomize(module.eval())
    path = tmp_path / "model.onnx"
    dynamic = (
        {"dynamic_shapes": tuple(axes)}
        if dynamo
        else {"dynamic_axes": dict(zip(names, axes, strict=True))}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its exporters
        torch.onnx.export(
            module, args, path, dynamo=dynamo, input_names=names, verbose=False, **dynamic
        )
    model = ji.from_onnx(path)
    for inputs in (args, other):
        with torch.no_grad():
            want = module(*inputs).numpy()
        got = np.asarray(model(*inputs))
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    return model


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(7, 11, batch_first=True, bidirectional=True)
        self.out = torch.nn.Linear(22, 5)

    def forward(self, x):
        return self.out(self.lstm(x)[0])


def test_lstm(tmp_path):
    x, other = torch.randn(3, 13, 7), torch.randn(5, 13, 7)
    model = check(tmp_path, Tagger(), (x,), ["x"], [{0: "batch"}], (other,), dynamo=False)
    assert "onnx.LSTM" in {node.op for node in model.program.graph.nodes}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.out = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        x = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
        return self.out(x.mean((2, 3)))


@pytest.mark.parametrize("dynamo", [False, True])
def test_convolutions(tmp_path, dynamo):
    x, other = torch.randn(2, 3, 16, 16), torch.randn(5, 3, 16, 16)
    check(tmp_path, Net(), (x,), ["x"], [{0: "batch"}], (other,), dynamo=dynamo)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_resnet18(tmp_path, timm, dynamo):
    torchvision = pytest.importorskip("torchvision")
    x, other = torch.randn(2, 3, 64, 64), torch.randn(5, 3, 64, 64)
    module = torchvision.models.resnet18()
    model = check(tmp_path, module, (x,), ["x"], [{0: "batch"}], (other,), dynamo=dynamo)
    assert "aten.convolution.default" in {node.op for node in model.program.graph.nodes}
    assert len(model.program.layout_permutes) <= 1  # the images, once


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_bert(tmp_path, dynamo):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip

    def inputs(batch, length):
        ids = torch.randint(0, 97, (batch, length))
        ends = torch.tensor([length, length - 2] * batch)[:batch]
        return ids, (torch.arange(length)[None] < ends[:, None]).long()

    axes = [{0: "batch", 1: "seq"}, {0: "batch", 1: "seq"}]
    module = Encoder(transformers.BertModel(config))
    model = check(
        tmp_path, module, inputs(2, 9), ["ids", "mask"], axes, inputs(3, 14), dynamo=dynamo
    )
    assert "model.embeddings.word_embeddings.weight" in model.params


class Decoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids).logits


@pytest.mark.slow
def test_llama(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, use_cache=False,
    )  # fmt: skip
    module = Decoder(transformers.LlamaForCausalLM(config))
    ids, other = torch.randint(0, 97, (2, 9)), torch.randint(0, 97, (3, 12))
    axes = [{0: "batch", 1: "seq"}]
    check(tmp_path, module, (ids,), ["ids"], axes, (other,), dynamo=True)
