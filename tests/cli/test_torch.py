"""The commands on a real torch module; convert, and what needs no torch, as processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.head = nn.Linear(7, 3, bias=False)

    def forward(self, x):
        h = self.body(x)
        return {"logits": self.head(h), "hidden": h}


def make():
    torch.manual_seed(0)
    return Net().eval()


def other():
    torch.manual_seed(1)
    return Net().eval()


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.deep = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))

    def forward(self, x):
        for layer in self.deep:
            x = layer(x) + x
        return x


def deep():
    return Deep().eval()


def image():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch")
    (path / "nets.py").write_text(MODULE)
    return path


def call(place, *args, without_torch=False):
    command = [sys.executable, "-m", "jaxinfer.cli", *map(str, args)]
    if without_torch:
        code = (
            "import sys\n"
            "class Refuse:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] == 'torch': raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Refuse())\n"
            "from jaxinfer.cli import main\n"
            "main(sys.argv[1:])"
        )
        command = [sys.executable, "-c", code, *map(str, args)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=place, env=environment, check=False
    )


@pytest.fixture
def here(cli, place, monkeypatch):
    """Run a command in this process, in the directory of the modules."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    return cli


@pytest.fixture(scope="module")
def converted(place):
    spec = "float32[batch=4,5]"
    done = call(place, "convert", "nets:make", "-o", "net", "--input", spec, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_convert(converted):
    assert converted["parameters"]["leaves"] == 3
    assert converted["parameters"]["values"] == 5 * 7 + 7 + 7 * 3
    assert converted["inputs"] == ["x: float32[batch, 5]"]
    assert converted["parity"]["ok"]
    assert converted["parity"]["compared"]
    assert converted["parity"]["max_abs"] < 1e-5
    assert converted["operators"]["nodes"] >= 3


def test_inspect_without_torch(place, converted):
    done = call(place, "inspect", "net", "--size", "batch=8", "--json", without_torch=True)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["cost"]["by_primitive"]["dot_general"] == 2 * 8 * (5 * 7 + 7 * 3)
    assert data["cost"]["transcendentals"] == 8 * 7
    assert data["outputs"] == ["logits: float32[batch, 3]", "hidden: float32[batch, 7]"]
    assert {leaf["name"] for leaf in data["leaves"]} == {
        "body.0.weight",
        "body.0.bias",
        "head.weight",
    }


def test_inspect_for_people(here, converted):
    shown = here("inspect", "net").out
    for text in ("aten.linear.default", "cost at batch=", "head  (1 leaves, 84 B)"):
        assert text in shown


def test_scan_layers(here, place):
    made = here("convert", "nets:deep", "-o", "deep", "--scan-layers", "--input", "float32[2,5]")
    assert made.code == 0, made.err
    assert "deep: 4 blocks of 2 calls" in made.out
    shown = here("inspect", "deep").out
    for text in ("deep: 4 blocks of 2 calls", "higher_order.scan", "float32[4, 5, 5]"):
        assert text in shown


def test_nhwc_is_compared_with_the_original_too(here, place):
    shape = ("--input", "float32[batch=2,3,12,10]")
    made = here("convert", "nets:image", "-o", "nhwc", "--layout", "NHWC", *shape)
    assert made.code == 0, made.err
    assert "float32[batch, 12, 10, 3]" in here("inspect", "nhwc").out
    again = here("verify", "nhwc", "--against", "nets:image", *shape, "--seed", "5")
    assert again.code == 1  # other random weights: a comparison that can fail
    assert "TOO LARGE" in again.out


def test_verify(here, converted):
    result = here("verify", "net", "--against", "nets:make", "--input", "float32[batch=3,5]")
    assert result.code == 0, result.err
    other = here("verify", "net", "--against", "nets:other", "--input", "float32[3,5]")
    assert other.code == 1
    assert "TOO LARGE" in other.out


def test_run_without_torch(place, converted):
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    np.savez(place / "in.npz", x=x)
    done = call(place, "run", "net", "in.npz", "-o", "out.npz", without_torch=True)
    assert done.returncode == 0, done.stderr
    with np.load(place / "out.npz", allow_pickle=False) as got:
        assert got["logits"].shape == (6, 3)
        assert got["hidden"].shape == (6, 7)
    np.savez(place / "bad.npz", x=x[:, :4])
    bad = call(place, "run", "net", "bad.npz", "-o", "bad_out.npz", without_torch=True)
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[-1].startswith("The model takes: x: float32[batch, 5]")
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("source", ["nets:nothing", "no_module_here:make", "missing.pt2"])
def test_bad_sources(here, place, source):
    result = here("convert", source, "-o", "bad", "--input", "float32[2,5]")
    assert result.code == 1
    assert "error: " in result.err
    assert "bug" not in result.err
    assert not (place / "bad").exists()
