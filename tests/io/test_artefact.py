"""Saving and loading models: bit for bit, with and without shards, and over what is there."""

import json
import os
import stat
import subprocess
import sys
import threading

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram, signature_of
from jaxinfer.io import artefact
from jaxinfer.io.artefact import load, save

from .models import function_model, graph_model, rule

X = jnp.asarray(np.random.default_rng(1).normal(size=(7, 3)), jnp.float32)


@pytest.fixture(autouse=True)
def _rule():
    with rule():
        yield


@pytest.fixture
def exporting(monkeypatch):
    """Serialized exports; where flatbuffers is not installed, kept in this process instead."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        kept = {}

        def serialize(exported, vjp_order=0):
            kept[key] = exported if (key := str(len(kept)).encode()) else None
            return bytearray(key)

        monkeypatch.setattr(jax.export.Exported, "serialize", serialize)
        monkeypatch.setattr(jax.export, "deserialize", lambda data: kept[bytes(data)])


def holds(path):
    return sorted(
        os.path.relpath(os.path.join(d, f), path) for d, _, fs in os.walk(path) for f in fs
    )


def siblings(path):
    return sorted(os.listdir(os.path.dirname(path)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_model_comes_back(tmp_path, dtype):
    model = graph_model(dtype)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    assert holds(tmp_path / "m") == ["constants.safetensors", "model.json", "params.safetensors"]
    assert siblings(tmp_path / "m") == ["m"]
    assert list(again.params) == ["layer.w"]
    assert isinstance(again.params["layer.w"], jax.Array)
    assert again.params["layer.w"].dtype == model.params["layer.w"].dtype
    assert np.asarray(again.params["layer.w"]).tobytes() == (
        np.asarray(model.params["layer.w"]).tobytes()
    )
    np.testing.assert_array_equal(again(X), model(X))
    assert again.provenance["source"] == "a test"
    assert set(again.provenance["saved_with"]) == {"jaxinfer", "jax", "jaxlib", "numpy"}
    assert set(again.provenance["sha256"]) == {"constants.safetensors", "params.safetensors"}
    assert again.program.graph == model.program.graph
    assert safetensors.numpy.load_file(tmp_path / "m" / "constants.safetensors").keys() == {"b"}


def test_saving_what_was_loaded_gives_the_same_files(tmp_path):
    save(graph_model(), tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    for name in holds(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_python_function_comes_back_as_stablehlo(tmp_path, exporting):
    model = function_model()
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert "exports/program.stablehlo" in holds(tmp_path / "m")
    assert again.program.kind == "stablehlo"
    assert set(again.params) == {"layers.0.w", "layers.1", "scale"}
    assert again.params["layers.1"].dtype == jnp.bfloat16
    assert again.provenance["exported"] == "StableHLO at fixed shapes: x: float32[4, 3]"
    x = jnp.ones((4, 3))
    want, got = model(x), again(x)
    assert jax.tree.structure(want) == jax.tree.structure(got)
    jax.tree.map(np.testing.assert_array_equal, want, got)
    save(again, tmp_path / "m", overwrite=True)
    jax.tree.map(np.testing.assert_array_equal, want, load(tmp_path / "m")(x))


class Doubled:
    """A rewrite that doubles the outputs."""

    kind = "iotest.times"

    def __init__(self, by=2):
        self.by = by

    def apply(self, run):
        return lambda params, leaves, key: jax.tree.map(
            lambda y: y * self.by, run(params, leaves, key)
        )

    def to_json(self):
        return {"by": self.by}

    @classmethod
    def from_json(cls, data):
        return cls(int(data["by"]))


def test_rewrites_are_stored_and_applied_again(tmp_path, monkeypatch):
    model = graph_model().replace(rewrites=(Doubled(3),))
    with pytest.raises(ArtefactError, match=r"could not be loaded again: iotest\.times"):
        save(model, tmp_path / "m")
    monkeypatch.setitem(artefact.REWRITES._rules, Doubled.kind, Doubled)
    save(model, tmp_path / "m")
    np.testing.assert_array_equal(load(tmp_path / "m")(X), graph_model()(X) * 3)


def test_rewrites_of_a_function_go_into_the_export(tmp_path, exporting):
    model = function_model().replace(rewrites=(Doubled(),))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.rewrites == ()
    x = jnp.ones((4, 3))
    jax.tree.map(np.testing.assert_array_equal, model(x), again(x))


def test_a_platform_that_fails_to_lower_is_named(tmp_path, monkeypatch):
    whole = FunctionProgram.stablehlo

    def stablehlo(self, params, platforms):
        if "tpu" in platforms:
            raise NotImplementedError("no rule for this primitive on tpu")
        return whole(self, params, platforms)

    monkeypatch.setattr(FunctionProgram, "stablehlo", stablehlo)
    monkeypatch.setattr(artefact, "PLATFORMS", ("tpu",))
    with pytest.raises(ArtefactError, match=r"(?s)exported for tpu:.*tpu: NotImplementedError: no"):
        save(function_model(), tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_function_that_fails_is_reported(tmp_path):
    def broken(params, x):
        raise ZeroDivisionError("mine")

    model = Model(FunctionProgram(broken, signature_of((X,))), {"a": X})
    with pytest.raises(ArtefactError, match="cpu: ZeroDivisionError: mine"):
        save(model, tmp_path / "m")
    assert os.listdir(tmp_path) == []


class Plain:
    """A program kind whose parameters are any tree: returns them."""

    kind = "iotest"
    signature = signature_of(())
    fixed, random, arrays, blobs = False, False, {}, {}

    def run(self, params, leaves, rng_key=None):
        return params

    def finish(self, flat):
        return flat

    def to_json(self):
        return {"note": "é"}

    @classmethod
    def from_json(cls, data, arrays, blobs):
        made = cls()
        made.data, made.arrays, made.read = data, arrays, blobs
        return made


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr("jaxinfer.io._load.program_kind", {"iotest": Plain}.__getitem__)


def bits(name, shape):
    from .test_safetensors import random_bits

    return random_bits(name, shape)


NAMES = "bool uint8 int8 int16 uint16 int32 uint32 float16 bfloat16 float32 complex64 "
NAMES += "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn"


@pytest.mark.usefixtures("plain")
def test_trees_and_all_dtypes_bit_for_bit(tmp_path):
    params = {
        "by dtype": {name: bits(name, (3, 4)) for name in NAMES.split()},
        "list": [jnp.zeros((0, 3)), (jnp.float32(1), np.float16(2)), {}, ()],
        "a.b": {1: X},
    }
    save(Model(Plain(), params), tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.program.data == {"note": "é"}
    assert jax.tree.structure(again.params) == jax.tree.structure(params)
    for want, got in zip(jax.tree.leaves(params), jax.tree.leaves(again.params), strict=True):
        assert isinstance(got, jax.Array)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("params", [{}, [], X, {"b": X, "a": X}, {"é": X, "": X}])
def test_small_trees(tmp_path, params):
    save(Model(Plain(), params), tmp_path / "m")
    again = load(tmp_path / "m").params
    assert jax.tree.structure(again) == jax.tree.structure(params)
    if isinstance(params, dict):
        assert list(again) == list(params)  # a flat dict keeps its order


@pytest.mark.usefixtures("plain")
def test_what_cannot_be_saved_is_listed(tmp_path):
    params = {
        "key": jax.random.key(0),
        "int4": np.zeros(2, ml_dtypes.int4),
        "wide": np.zeros(2, np.complex128),
        "number": 3.0,
        "text": np.array("x"),
        "__metadata__": X,
        "\ud800": X,
        "good": X,
    }
    with pytest.raises(ArtefactError) as caught:
        save(Model(Plain(), params), tmp_path / "m")
    text = str(caught.value)
    for name in params.keys() - {"good", "\ud800"}:
        assert f"  {name}: " in text
    assert text.count("not a name that safetensors can hold") == 2
    assert "good" not in text
    for bad in ({"a": None, "b": X}, {"a": {1: X, "1": X}}, {"a": {"b": X}, "a.b": X}):
        with pytest.raises(ArtefactError, match="parameters"):
            save(Model(Plain(), bad), tmp_path / "m")
    with pytest.raises(ArtefactError, match="cannot be written as JSON"):
        save(Model(Plain(), {}, provenance={"a": object()}), tmp_path / "m")
    deep = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(ArtefactError, match="nested deeper"):
        save(Model(Plain(), {}, provenance={"a": deep}), tmp_path / "m")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    "name", ["../x", "/x", "a//b", "model.json", "params.safetensors", "a/../b"]
)
def test_a_program_cannot_write_elsewhere(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Plain, "blobs", {name: b"data"})
    with pytest.raises(ArtefactError, match="file "):
        save(Model(Plain(), {}), tmp_path / "m")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("plain")
def test_blobs_and_constants(tmp_path, monkeypatch):
    monkeypatch.setattr(Plain, "blobs", {"exports/a/b.bin": b"data", "empty": b""})
    monkeypatch.setattr(Plain, "arrays", {"c": np.arange(3)})  # 64 bits: not JAX's affair
    save(Model(Plain(), {}), tmp_path / "m")
    program = load(tmp_path / "m").program
    assert program.read("exports/a/b.bin") == b"data"
    assert program.read("empty") == b""
    assert program.arrays["c"].dtype == np.int64
    program.arrays["c"][0] = 1  # a copy, not the file
    with pytest.raises(ArtefactError, match="no checksum"):
        program.read("../m/empty")


@pytest.mark.usefixtures("plain")
def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(artefact, "SHARD_BYTES", 100)
    params = {f"p{i}": jnp.full((8 + i,), i, jnp.float32) for i in range(5)}
    params["big"] = jnp.arange(1000)
    save(Model(Plain(), params), tmp_path / "m")
    names = holds(tmp_path / "m")
    assert "params-00001-of-00004.safetensors" in names
    assert "params-00004-of-00004.safetensors" in names
    assert "params.safetensors" not in names
    index = json.loads((tmp_path / "m" / "params.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in params.values())
    assert set(index["weight_map"]) == set(params)
    again = load(tmp_path / "m").params
    assert list(again) == list(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)

    os.remove(tmp_path / "m" / "params-00002-of-00004.safetensors")
    with pytest.raises(ArtefactError, match=r"file params-00002-of-00004\.safetensors: missing"):
        load(tmp_path / "m")


@pytest.mark.usefixtures("plain")
def test_wide_dtypes_load_narrow_if_they_fit(tmp_path):
    fits = {"i": np.array([2**31 - 1, -5]), "f": np.array([0.5, np.nan, np.inf])}
    save(Model(Plain(), fits), tmp_path / "fits")
    save(
        Model(
            Plain(),
            {
                "i": np.array([2**31]),
                "f": np.array([0.1, 1e300]),
                "u": np.array([2**63], np.uint64),
            },
        ),
        tmp_path / "not",
    )
    again = load(tmp_path / "fits").params
    assert (again["i"].dtype, again["f"].dtype) == (jnp.int32, jnp.float32)
    np.testing.assert_array_equal(again["f"], fits["f"])
    with pytest.raises(
        ArtefactError, match=r"(?s)i: int64 value 2147483648.*f: float64.*u: uint64"
    ):
        load(tmp_path / "not")
    with jax.enable_x64(True):
        again = load(tmp_path / "not").params
        assert again["i"].dtype == jnp.int64
        assert again["f"].tolist() == [0.1, 1e300]


def test_a_path_that_is_taken(tmp_path):
    save(graph_model(), tmp_path / "m")
    before = (tmp_path / "m" / "model.json").read_bytes()
    for refused in (lambda path: save(graph_model(seed=1), path), artefact.check_target):
        with pytest.raises(ArtefactError, match="exists already; choose another path"):
            refused(tmp_path / "m")
    artefact.check_target(tmp_path / "m", overwrite=True)
    artefact.check_target(tmp_path / "new")
    assert (tmp_path / "m" / "model.json").read_bytes() == before
    save(graph_model(seed=1), str(tmp_path / "m"), overwrite=True)
    assert (tmp_path / "m" / "model.json").read_bytes() != before
    np.testing.assert_array_equal(load(tmp_path / "m")(X), graph_model(seed=1)(X))
    assert os.listdir(tmp_path) == ["m"]


def test_only_model_directories_are_overwritten(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("precious")
    for name in ("file", "folder"):
        with pytest.raises(ArtefactError, match="no model directory, so it is not overwritten"):
            save(graph_model(), tmp_path / name, overwrite=True)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    save(graph_model(), tmp_path / "empty", overwrite=True)
    with pytest.raises(ArtefactError, match="does not exist; make it first"):
        save(graph_model(), tmp_path / "none" / "m")
    with pytest.raises(ArtefactError, match="does not exist; make it first"):
        save(graph_model(), tmp_path / "file" / "m")
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "folder"]


def test_a_link_is_followed(tmp_path):
    save(graph_model(), tmp_path / "real")
    os.symlink(tmp_path / "real", tmp_path / "link")
    save(graph_model(seed=2), tmp_path / "link", overwrite=True)
    assert os.path.islink(tmp_path / "link")
    np.testing.assert_array_equal(load(tmp_path / "real")(X), graph_model(seed=2)(X))


def test_others_may_read_what_was_saved(tmp_path):
    mask = os.umask(0o022)
    try:
        save(graph_model(), tmp_path / "m")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(tmp_path / "m").st_mode) == 0o755


@pytest.mark.parametrize("overwrite", [False, True])
def test_concurrent_saves_leave_one_whole_model(tmp_path, overwrite):
    models = [graph_model(seed=seed) for seed in range(6)]
    failed = []

    def run(model):
        try:
            save(model, tmp_path / "m", overwrite=overwrite)
        except ArtefactError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=run, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == (0 if overwrite else 5)
    assert os.listdir(tmp_path) == ["m"]
    got = load(tmp_path / "m")(X)
    assert sum(np.array_equal(got, model(X)) for model in models) == 1


MEMORY = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
from jaxinfer.core.model import Model
from jaxinfer.io import _load, artefact
from tests.io.test_artefact import Plain

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

_load.program_kind = lambda kind: Plain
path, what = sys.argv[1:]
make = jax.jit(lambda i: jnp.full((5_000, 500), i, jnp.float32))  # 10 MB
make(0.0).block_until_ready()
jnp.array(np.zeros(3), copy=True)
if what == "save":
    params = {f"w{i}": make(float(i)).block_until_ready() for i in range(20)}
    start = peak()
    artefact.save(Model(Plain(), params), path)
else:
    start = peak()
    params = artefact.load(path).params
    assert float(params["w7"][3, 4]) == 7
print(peak() - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_saving_and_loading(tmp_path):
    def measure(what):
        command = [sys.executable, "-c", MEMORY, str(tmp_path / "m"), what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    size = 20 * 5_000 * 500 * 4
    assert measure("save") < 0.3 * size  # beyond the model itself
    assert size * 0.9 < measure("load") < 1.3 * size


def test_a_function_over_several_devices_is_called_over_as_many(tmp_path, monkeypatch):
    count = min(4, jax.device_count())
    assert count > 1

    def fn(params, x):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("m",))
        part = jax.sharding.PartitionSpec
        body = lambda x, w: jax.lax.psum(x @ w, "m")
        return jax.shard_map(
            body, mesh=mesh, in_specs=(part(None, "m"), part("m")), out_specs=part()
        )(x, params["w"])

    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(shape, np.float32) for shape in ((8, 3), (2, 8)))
    Model(FunctionProgram(fn, signature_of((x,))), {"w": w}).save(tmp_path / "model")
    back = load(tmp_path / "model")
    np.testing.assert_allclose(np.asarray(back(x)), x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(back(jax.device_put(x))), x @ w, rtol=1e-5, atol=1e-6)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: one)
    with pytest.raises(InputError, match=f"exported for {count} devices, and there are 1"):
        load(tmp_path / "model")(x)
