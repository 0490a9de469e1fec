"""``jaxinfer export``: the file is what ji.load_export reads; usage errors leave nothing."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer.cli
from jaxinfer.compile.export import load_export
from tests.cli import fakes


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setitem(jaxinfer.cli._COMMANDS, "export", "Export.")


def test_export(cli, model_dir):
    result = cli("export", model_dir, "-o", "m.stablehlo", "--dynamic", "batch")
    assert result.code == 0, result.err
    for part in ("cpu, cuda, tpu", "x: float32[batch, 5]", "open sizes", "m.safetensors", "beside"):
        assert part in result.out
    x, mask = np.ones((3, 5), np.float32), np.ones((3, 4), np.int32)
    got, want = load_export("m.stablehlo")(x, mask), fakes.model()(x, mask)
    np.testing.assert_array_equal(got["logits"], want["logits"])


def test_export_json(cli, model_dir):
    options = (
        "--to",
        "stablehlo",
        "--platforms",
        "cpu",
        "--size",
        "batch=3",
        "--weights",
        "inside",
    )
    data = cli("export", model_dir, "-o", "m.stablehlo", *options, "--json").json
    assert data["platforms"] == ["cpu"]
    assert data["inputs"]["model"] == ["x: float32[3, 5]", "mask: int32[3, 4]"]
    assert [os.path.basename(path) for path in data["files"]] == ["m.stablehlo"]
    assert list(data["files"].values()) == [os.path.getsize("m.stablehlo")]
    assert data["weights"] == "inside"
    assert data["jax"] == jax.__version__
    again = cli("export", model_dir, "-o", "m.stablehlo", *options)
    assert again.code == 1
    assert "--overwrite" in again.err
    assert cli("export", model_dir, "-o", "m.stablehlo", *options, "--overwrite").code == 0


def test_shapes_by_input(cli, model_dir):
    options = ("--input", "x=rows,5", "--dynamic", "rows")
    assert cli("export", model_dir, "-o", "m.stablehlo", *options).code == 0
    loaded = load_export("m.stablehlo")
    assert str(loaded.inputs[0]) == "x: float32[rows, 5]"
    assert loaded(jnp.ones((2, 5)), np.ones((2, 4), np.int32))["logits"].shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--size", "batch"), 2, "required DIM=N"),
        (("--size", "batch=two"), 2, "required DIM=N"),
        (("--size", "batch=2", "--size", "batch=3"), 2, "given twice"),
        (("--to", "onnx"), 2, "stablehlo"),
        ((), 1, "batch: has no size"),
        (("--dynamic", "seq", "--platforms", "gpu"), 1, "'gpu': unknown"),
        (("--dynamic", "batch", "-o", "m.bin"), 1, "ends in .stablehlo"),
    ],
)
def test_wrong_usage(cli, model_dir, tmp_path, options, code, message):
    result = cli("export", model_dir, "-o", "m.stablehlo", *options)
    assert result.code == code
    assert message in result.err
    assert sorted(os.listdir(tmp_path)) == ["model"]
