"""Weights from checkpoints: streamed under their own names; misfits are errors, all at once."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jaxinfer as ji
from jaxinfer.core.errors import CheckpointError, ConversionError
from tests.conftest import assert_parity, randomize


def build():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).eval()


@pytest.fixture
def module():
    return randomize(build())


@pytest.fixture
def checkpoint(tmp_path, module):
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_module_on_the_meta_device_takes_its_weights_from_the_checkpoint(module, checkpoint):
    with torch.device("meta"):
        empty = build()
    x = torch.randn(4, 3)
    model = ji.from_torch(empty, (x,), weights=checkpoint)
    assert_parity(model, module, (x,))
    assert all(p.is_meta for p in empty.parameters())  # the user's module is as it was


def test_a_fake_module_takes_its_weights_from_the_checkpoint(module, checkpoint):
    with torch._subclasses.FakeTensorMode():
        fake = build()
    x = torch.randn(4, 3)
    assert_parity(ji.from_torch(fake, (x,), weights=checkpoint), module, (x,))


def test_meta_without_weights_lists_every_tensor():
    with torch.device("meta"):
        empty = build()
    with pytest.raises(ConversionError) as error:
        ji.from_torch(empty, (torch.randn(4, 3),))
    for name in ("0.weight", "1.running_mean", "2.bias"):
        assert f"{name}: has no values" in str(error.value)


def test_missing_extra_and_misshapen_keys_at_once(module, tmp_path):
    state = module.state_dict()
    state["0.wieght"] = state.pop("0.weight")
    state["2.bias"] = torch.zeros(7)
    del state["1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as error:
        ji.from_torch(build(), (torch.randn(4, 3),), weights=tmp_path / "w.safetensors")
    text = str(error.value)
    assert "0.weight: required float32[5, 3], missing; near: 0.wieght" in text
    assert "1.weight: required float32[5], missing" in text
    assert "2.bias: required float32[2], got float32[7]" in text
    assert "0.wieght: float32[5, 3] is not read" in text


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_pth_files_through_weights_only(module, tmp_path, wrap):
    torch.save(wrap(module.state_dict()), tmp_path / "w.pth")
    x = torch.randn(4, 3)
    assert_parity(ji.from_torch(build(), (x,), weights=tmp_path / "w.pth"), module, (x,))


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("code from a checkpoint was run",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_holds_code_is_refused(tmp_path, zipped):
    path = tmp_path / "w.pth"
    torch.save({"w": Hostile()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="refused: it holds Python objects"):
        ji.from_torch(build(), (torch.randn(4, 3),), weights=path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"PK\x03\x04" + b"\0" * 50])
def test_damaged_pth_files(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        ji.from_torch(build(), (torch.randn(4, 3),), weights=path)


def test_exported_archives_that_hold_code_are_refused(tmp_path, module):
    from jaxinfer_converters.torch.readers import refuse_code

    good = tmp_path / "good.pt2"
    torch.export.save(torch.export.export(module, (torch.randn(4, 3),)), good)
    refuse_code(good)
    bad = tmp_path / "bad.pt2"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, pickle.dumps(Hostile()) if "sample_inputs" in name else data)
    with pytest.raises(CheckpointError, match="refused"):
        refuse_code(bad)
    (tmp_path / "cut.pt2").write_bytes(good.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"not a readable \.pt2"):
        refuse_code(tmp_path / "cut.pt2")


def test_mixed_dtypes_are_cast_and_recorded(module, tmp_path):
    state = module.state_dict()
    state["0.weight"] = state["0.weight"].to(torch.bfloat16)
    state["2.weight"] = state["2.weight"].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "w.safetensors")
    x = torch.randn(4, 3)
    model = ji.from_torch(build(), (x,), weights=tmp_path / "w.safetensors")
    casts = {tuple(record) for record in model.provenance["cast"]}
    assert ("0.weight", "bfloat16", "float32") in casts
    assert ("2.weight", "float8_e4m3fn", "float32") in casts
    want = state["2.weight"].float().numpy()
    np.testing.assert_array_equal(ji.to_state_dict(model)["2.weight"], want)


def test_nan_weights_are_said(module, tmp_path):
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    model = ji.from_torch(build(), (torch.randn(4, 3),), weights=tmp_path / "w.safetensors")
    assert model.provenance["nonfinite"] == ["0.weight: 1 NaN of 15 values"]
