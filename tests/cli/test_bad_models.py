"""Models that cannot be converted, on the command line: exit code 1, one message, no traceback."""

import sys

import numpy as np
import pytest

pytest.importorskip("torch")

MODULE = """
import torch
from torch import nn


class Of(nn.Module):
    def __init__(self, function, **buffers):
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.function(self, x)


log = torch.library.custom_op(
    "jaxinfer_cli::log", lambda x: None, mutates_args=(), schema="(Tensor x) -> ()"
)
log.register_fake(lambda x: None)

X = torch.arange(6.0)


class Mask(nn.Module):
    def forward(self, x):
        return x[x > 0]


def mask():
    return Mask(), (X,)


def branch():
    return Of(lambda self, x: x + 1 if x.sum() > 0 else x - 1), (X,)


def fixed():
    return Of(lambda self, x: x.reshape(6) + 1), (X,), None, ({0: torch.export.Dim("n", max=99)},)


def numpy():
    return Of(lambda self, x: torch.from_numpy(x.detach().numpy())), (X,)


def logs():
    return Of(lambda self, x: log(x) or x + 1), (X,)


def large():
    return Of(lambda self, x: x + self.table, table=torch.tensor([2**40])), (X.long(),)


def quantized():
    weight = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    return Of(lambda self, x: x + self.weight.dequantize(), weight=weight), (X,)


def prints():
    return Of(lambda self, x: print("here") or x + 1), (X,)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "bad_models_of_cli.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "bad_models_of_cli"
    sys.modules.pop("bad_models_of_cli", None)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "options", "texts"),
    [
        ("mask", (), ["x[x > 0]", "torch.topk of the mask"]),
        ("branch", (), ["if x.sum() > 0", "torch.cond"]),
        ("numpy", (), ["x.detach().numpy()", "torch.library.custom_op"]),
        ("logs", (), ["jaxinfer_cli.log.default", "jax.debug.callback"]),
        ("large", (), ["table: int64 value 1099511627776 does not fit int32", "--x64"]),
        ("quantized", (), ["weight: qint8[6]", "Convert the float model"]),
    ],
)
def test_refused(cli, place, tmp_path, name, options, texts):
    result = cli("convert", f"{place}:{name}", "-o", "out", *options)
    assert result.code == 1
    assert result.err.startswith("error: ") or "\nerror: " in result.err
    assert "Traceback" not in result.err
    assert "bug in jaxinfer" not in result.err
    for text in texts:
        assert text in result.err
    assert not (tmp_path / "out").exists()


def test_a_size_that_the_module_fixes_is_made_static_and_the_line_noted(cli, place):
    result = cli("convert", f"{place}:fixed", "-o", "out", "--json")
    assert result.code == 0
    assert result.json["inputs"] == ["x: float32[6]"]
    (note,) = result.json["notes"]
    assert "fixes a size that was to be dynamic" in note
    assert "axis 0 of x must be 6: " in note
    assert "x.reshape(6) + 1" in note


def test_prints_of_forward_do_not_reach_stdout(cli, place):
    result = cli("convert", f"{place}:prints", "-o", "out", "--json", "--no-verify")
    assert result.code == 0
    assert result.json["effects"] == ["forward prints, and the converted model does not"]
    assert "here" in result.err


def test_x64_is_kept_for_run(cli, place, tmp_path):
    assert cli("convert", f"{place}:large", "-o", "out", "--x64").code == 0
    np.savez(tmp_path / "in.npz", x=np.full(6, 2**40))
    result = cli("run", "out", "in.npz", "-o", "got.npz")
    assert result.code == 0, result.err
    (got,) = np.load(tmp_path / "got.npz").values()
    assert got.dtype == np.int64
    assert got.tolist() == [2**41] * 6
