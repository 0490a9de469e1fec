"""1.35 billion parameters in bfloat16 into the shards of eight devices, in 1.2x their bytes."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from jaxinfer.cli._launch import launch
from jaxinfer.cli._launch_env import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status"),
]
ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 1.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("big")
    python("write", path / "model")
    yield path / "model"
    shutil.rmtree(path)


def python(*args, devices=8):
    done = subprocess.run(
        [sys.executable, "-m", "tests.slow.llama", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def report(found):
    ratio = found["peak"] / found["held"]
    print(
        f"process {found['process']}: {found['count'] / 1e9:.3f} G parameters, shards of "
        f"{found['held'] / 1e9:.3f} GB in {found['seconds']:.1f} s; peak {ratio:.3f}x "
        f"(allocated {found['anonymous'] / found['held']:.3f}x, "
        f"mapped {found['file'] / 1e6:.0f} MB)"
    )
    return ratio


def test_one_process(folder):
    """Loaded, and run once over the mesh."""
    assert len(list(folder.glob("params-*.safetensors"))) == 5
    found = json.loads(python("load", folder, "run"))
    assert report(found) <= LIMIT
    assert found["count"] > 1.3e9
    assert found["held"] >= found["bytes"]  # norms are on every device
    assert found["read"] == found["bytes"]  # and are read once
    assert found["shape"] == [2, 8, 32000]
    assert found["finite"]
    assert 0.5 < found["deviation"] < 2  # a normed vector times columns of variance 1/d
    assert found["devices"] == 8
    print(f"one forward of 2 x 8 tokens, compiled: {found['run seconds']:.1f} s")


def test_two_processes(folder, tmp_path, monkeypatch):
    """Each reads and holds half."""
    out = io.BytesIO()
    monkeypatch.chdir(ROOT)
    argv = [sys.executable, "-m", "tests.slow.llama", "load", str(folder), "unverified"]
    launch(argv, Settings(2, 4, timeout=600), out=out, err=io.BytesIO())
    lines = [line[4:] for line in out.getvalue().decode().splitlines() if line[4:].startswith("{")]
    found = [json.loads(line) for line in lines]
    assert sorted(item["process"] for item in found) == [0, 1]
    for item in found:
        assert report(item) <= LIMIT
        assert item["held"] < 0.51 * item["bytes"]
        assert item["read"] < 0.51 * item["bytes"]
