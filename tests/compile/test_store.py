"""Saved executables: nothing compiled on load; every check before anything is deserialized."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile import _key, _native, aot, store
from jaxinfer.compile.build import compile
from jaxinfer.compile.guard import no_compile
from jaxinfer.compile.store import StaleExecutableWarning, load_executable
from jaxinfer.core.errors import ArtefactError
from tests.compile import models
from tests.compile.models import D


def build():
    return compile(models.mlp_model(), {"x": ("batch", D)}, buckets={"batch": [2, 7]})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "exe"
    build().save(path)
    return path


@pytest.fixture
def saved(original, tmp_path):
    return shutil.copytree(original, tmp_path / "exe")


def edit(path, change):
    index = path / store.INDEX
    data = json.loads(index.read_text())
    change(data)
    index.write_text(json.dumps(data))


def test_a_loaded_executable_compiles_nothing(saved):
    x = models.rows(3, D)
    with no_compile(), warnings.catch_warnings():
        warnings.simplefilter("error")
        exe = load_executable(saved)
        out = exe(x)
    y, total = models.mlp_reference(models.weights(), x)
    np.testing.assert_allclose(out["y"], y, atol=models.TOL)
    np.testing.assert_allclose(out["sum"], total, atol=models.TOL)
    assert out["none"] is None
    report = exe.report()
    assert [bucket.origin for bucket in report] == ["loaded", "loaded"]
    assert report[1].flops == build().report()[1].flops
    exe.warm_up()


def test_a_new_process_compiles_nothing(saved):
    """By the compile log: jax_log_compiles names every program that is compiled."""
    code = """
        import logging, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        import jax, numpy as np
        jax.config.update("jax_log_compiles", True)
        from jaxinfer.compile.store import load_executable
        exe = load_executable(sys.argv[1])
        print("RESULT", exe(np.ones((3, 3), np.float32))["y"].tolist())
        if len(sys.argv) > 2:
            print(jax.jit(lambda x: x * 3)(2.0))
    """
    run = lambda *args: subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        check=True,
    )
    done = run(saved)
    assert "RESULT" in done.stdout
    assert "Compiling" not in done.stdout
    assert "cpu_aot_loader" not in done.stderr  # XLA's false alarm is not shown
    assert "Compiling" in run(saved, "also").stdout  # the log would have said it
    got = json.loads(done.stdout.split("RESULT")[1])
    want = models.mlp_reference(models.weights(), np.ones((3, D), np.float32))[0]
    np.testing.assert_allclose(got, want, atol=models.TOL)


def test_saved_again(saved, tmp_path):
    load_executable(saved).save(tmp_path / "copy")
    x = models.rows(5, D)
    exe = load_executable(tmp_path / "copy")
    np.testing.assert_array_equal(exe(x)["y"], load_executable(saved)(x)["y"])
    assert (tmp_path / "copy" / "bucket-000.stablehlo").is_file()


def test_array_types_donation_and_64_bits(tmp_path):
    model = ji.quantize("W8A16")(models.mlp_model(d=32, f=64))
    exe = compile(model, {"x": ("batch", 32)}, buckets={"batch": [3]})
    exe.save(tmp_path / "quantized")
    x = models.rows(2, 32)
    again = load_executable(tmp_path / "quantized")
    np.testing.assert_array_equal(again(x)["y"], exe(x)["y"])
    assert again.nbytes == model.nbytes
    add = ji.from_function(lambda p, x, c: (x * p, c + x), 2.0, (jnp.ones(D), jnp.ones(D)))
    compile(add, donate="x1").save(tmp_path / "donating")
    cache = jnp.ones(D)
    _, new = load_executable(tmp_path / "donating")(jnp.ones(D), cache)
    assert cache.is_deleted()
    np.testing.assert_array_equal(new, np.full(D, 2))


def test_no_parameters_and_no_inputs(tmp_path):
    model = ji.from_function(lambda p, x: x + 1, {}, (jnp.ones(D),))
    compile(model).save(tmp_path / "bare")
    np.testing.assert_array_equal(load_executable(tmp_path / "bare")(np.zeros(D, "f4")), np.ones(D))


def stale(data):
    data["key"]["jaxlib"] = "0.0.1"


def test_stale_code_is_compiled_again_and_said(saved):
    edit(saved, stale)
    with pytest.warns(StaleExecutableWarning, match=r"compiled with 0.0.1, here is"):
        exe = load_executable(saved)
    assert all("compiled again: jaxlib" in bucket.origin for bucket in exe.report())
    x = models.rows(3, D)
    want = models.mlp_reference(models.weights(), x)[0]
    with no_compile():
        np.testing.assert_allclose(exe(x)["y"], want, atol=models.TOL)


def test_stale_code_with_strict(saved):
    edit(saved, stale)
    with pytest.raises(ArtefactError, match=r"another environment \(strict=True\)"):
        load_executable(saved, strict=True)


def test_stale_code_without_stablehlo(saved):
    def change(data):
        stale(data)
        for name in [n for n in data["files"] if n.endswith(".stablehlo")]:
            del data["files"][name]

    edit(saved, change)
    with pytest.raises(ArtefactError, match="no StableHLO to compile it from"):
        load_executable(saved)


def test_damaged_code_is_never_unpickled(saved, monkeypatch):
    code = saved / "bucket-000.bin"
    data = bytearray(code.read_bytes())
    data[50] ^= 1
    code.write_bytes(data)
    loaded = []
    load = _native.load
    monkeypatch.setattr(_native, "load", lambda d, *rest: loaded.append(d) or load(d, *rest))
    with pytest.warns(StaleExecutableWarning, match="other bytes than were written"):
        exe = load_executable(saved)
    assert bytes(data) not in loaded
    assert len(loaded) == 1  # the other bucket
    np.testing.assert_allclose(
        exe(models.rows(2, D))["y"],
        models.mlp_reference(models.weights(), models.rows(2, D))[0],
        atol=models.TOL,
    )
    with pytest.raises(ArtefactError, match=r"bucket-000\.bin: other bytes"):
        load_executable(saved, strict=True)


def test_truncated_and_missing_code(saved):
    code = saved / "bucket-001.bin"
    code.write_bytes(code.read_bytes()[:-1])
    (saved / "bucket-000.bin").unlink()
    with pytest.warns(StaleExecutableWarning) as found:
        load_executable(saved)
    text = str(found[0].message)
    assert "bucket-000.bin: missing" in text
    assert "bytes, got" in text


def test_code_that_passes_the_checks_but_does_not_load(saved):
    import hashlib

    foreign = b"not a pickle of an executable"
    (saved / "bucket-000.bin").write_bytes(foreign)
    about = {"length": len(foreign), "sha256": hashlib.sha256(foreign).hexdigest()}
    edit(saved, lambda data: data["files"].update({"bucket-000.bin": about}))
    with pytest.warns(StaleExecutableWarning, match="the code does not load"):
        load_executable(saved)
    with pytest.raises(ArtefactError, match="the code does not load"):
        load_executable(saved, strict=True)


def test_damaged_parameters_are_always_an_error(saved):
    params = saved / "params.safetensors"
    data = bytearray(params.read_bytes())
    data[-1] ^= 1
    params.write_bytes(data)
    (saved / "bucket-000.stablehlo").unlink()
    with pytest.raises(ArtefactError) as found:
        load_executable(saved)
    assert "params.safetensors: other bytes" in str(found.value)
    assert "bucket-000.stablehlo: missing" in str(found.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(format="other"), "not the index of a saved executable"),
        (lambda d: d.update(schema=99), "schema '99', this version reads 1"),
        (lambda d: d.pop("entries"), "malformed: KeyError"),
        (lambda d: d.update(entries=3), "malformed"),
        (lambda d: d["entries"][0].update(sizes=None), "malformed"),
        (lambda d: d["entries"][0].update(file="../else"), "no length and digest of"),
        (lambda d: d["files"].pop("bucket-001.bin"), "no length and digest of"),
        (lambda d: d["entries"][0]["report"].update(more=1), "malformed"),
        (lambda d: d["names"].append("w2"), "parameters that are missing"),
        (lambda d: d.update(results={"kind": "tuple", "items": ["*"] * 9}), None),
        (lambda d: d["files"].update({"../x": {"length": 1, "sha256": ""}}), "not a file name"),
    ],
)
def test_hostile_indexes(saved, change, text):
    edit(saved, change)
    if text is None:  # found when results are given their structure
        with pytest.raises(ValueError, match="not a structure of 2 results"):
            load_executable(saved)(models.rows(2, D))
        return
    with pytest.raises(ArtefactError, match=text):
        load_executable(saved)


def test_no_executable(tmp_path, saved):
    with pytest.raises(ArtefactError, match="is no saved executable"):
        load_executable(tmp_path / "none")
    (saved / store.INDEX).write_text("{")
    with pytest.raises(ArtefactError, match=r"executable\.json"):
        load_executable(saved)


def test_nothing_is_lost_or_left(saved, tmp_path, monkeypatch):
    exe = load_executable(saved)
    with pytest.raises(ArtefactError, match="exists already"):
        exe.save(saved)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_leaves", full)
    with pytest.raises(ArtefactError, match="No space left"):
        exe.save(saved, overwrite=True)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert os.listdir(tmp_path) == ["exe"]


def test_a_platform_that_gives_no_code_away(tmp_path, monkeypatch):
    monkeypatch.setattr(_native.serialize_executable, "serialize", _raise)
    exe = build()
    with pytest.raises(ArtefactError, match="the platform does not give its code away"):
        exe.save(tmp_path / "exe")
    assert os.listdir(tmp_path) == []


def _raise(*_):
    raise ValueError("Compilation does not support serialization")


def test_ji_load_never_takes_an_executable(saved):
    with pytest.raises(ArtefactError):
        ji.load(saved)


def test_the_key_names_what_code_depends_on():
    key = _key.environment()
    assert key["jaxlib"] == __import__("jaxlib").__version__
    assert key["device_kind"] == jax.devices()[0].device_kind
    assert _key.differences(key, {**key, "flags": {"XLA_FLAGS": "--a"}}) == [
        "flags: it was compiled with none, here is {'XLA_FLAGS': '--a'}"
    ]


def test_code_that_cannot_be_exported_is_saved_and_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("a custom call")

    monkeypatch.setattr(aot, "exported", refuse)
    with pytest.warns(UserWarning, match=r"(?s)saved without StableHLO.*batch=2: none: NotImpl"):
        build().save(tmp_path / "exe")
    assert load_executable(tmp_path / "exe")(models.rows(2, D))["y"].shape == (2, D)
