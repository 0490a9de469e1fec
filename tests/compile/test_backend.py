"""The OpenVINO back-end behind the same interface: buckets, checks, refusal and fallback, files."""

import concurrent.futures
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.guard import no_compile
from jaxinfer.compile.openvino import function as _openvino
from jaxinfer.compile.store import load_executable
from jaxinfer.core.errors import InputError, MissingExtraError
from tests.compile import models
from tests.compile.models import TOL, D

pytestmark = pytest.mark.skipif(bool(_openvino.available()), reason="OpenVINO is not installed")
needs_nncf = pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="needs nncf")
SHAPE = {"x": ("batch", D)}


def test_any_batch(tmp_path):
    exe = ji.compile(models.mlp_model(), SHAPE, buckets={"batch": [2, 5]}, backend="openvino")
    assert [bucket.backend for bucket in exe.report()] == ["openvino"] * 2
    assert all(bucket.check["because"][0] == "back-end openvino" for bucket in exe.report())
    assert all(bucket.check["error"] < 1e-5 for bucket in exe.report())
    exe.save(tmp_path / "exe")
    for made in (exe, load_executable(tmp_path / "exe")):
        for n in (1, 2, 4, 5):
            x = models.rows(n, D)
            out = made(x)
            y, total = models.mlp_reference(models.weights(), x)
            assert isinstance(out["y"], jax.Array)
            np.testing.assert_allclose(out["y"], y, atol=TOL)
            np.testing.assert_allclose(out["sum"], total, atol=TOL)
            assert out["none"] is None
    assert exe.nbytes == models.mlp_model().nbytes == load_executable(tmp_path / "exe").nbytes


def test_masks():
    exe = ji.compile(
        models.pooled_model(), {"x": (2, "t", D)}, buckets={"t": [5]}, backend="openvino"
    )
    x = models.rows(2, 3, D)
    w = np.asarray(models.weights()["in"]["w"], np.float64)
    np.testing.assert_allclose(exe(x), x.astype(np.float64).mean(1) @ w, atol=TOL)


def spectral():
    fn = lambda p, x: jnp.linalg.eigvalsh(p * x.T @ x)
    return ji.from_function(fn, jnp.float32(2), (jnp.ones((2, D)),))


def test_what_it_cannot_take_is_refused_by_name():
    with pytest.raises(_openvino.OpenVINOUnsupported) as found:
        ji.compile(spectral(), backend="openvino")
    assert found.value.missing
    assert "eigh" in str(found.value)


def test_or_falls_back_as_asked_and_says_so():
    exe = ji.compile(spectral(), backend="openvino", fallback="xla")
    report = exe.report()
    assert [bucket.backend for bucket in report] == ["xla"]
    assert "compiled with XLA (fallback='xla'), not OpenVINO" in report.notes[0]
    x = models.rows(2, D)
    np.testing.assert_allclose(exe(x), spectral()(x), rtol=1e-5, atol=1e-6)


def test_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(_openvino, "available", lambda: "pip install 'jaxinfer[openvino]'")
    with pytest.raises(MissingExtraError, match="jaxinfer"):
        ji.compile(models.mlp_model(), backend="openvino")
    report = ji.compile(models.mlp_model(), backend="openvino", fallback="xla").report()
    assert "pip install" in report.notes[0]


def test_its_options():
    exe = ji.compile(
        models.mlp_model(),
        backend="openvino",
        compiler_options={"threads": 1, "PERFORMANCE_HINT": "THROUGHPUT"},
    )
    assert exe(models.rows(2, D))["y"].shape == (2, D)
    with pytest.raises(InputError, match="NO_SUCH"):
        ji.compile(models.mlp_model(), backend="openvino", compiler_options={"NO_SUCH": 1})


def test_a_damaged_file_is_an_error(tmp_path):
    from jaxinfer.core.errors import ArtefactError

    ji.compile(models.mlp_model(), backend="openvino").save(tmp_path / "exe")
    path = tmp_path / "exe" / "bucket-000.openvino" / "model.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="other bytes than were written"):
        load_executable(tmp_path / "exe")


# int8 with products that stay float32.


def two_layers():
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape) / 8, jnp.float32)
        for name, shape in {
            "in.weight": (64, 96),
            "out.weight": (96, 32),
            "out.bias": (32,),
        }.items()
    }

    def fn(p, x):
        return jax.nn.relu(x @ p["in.weight"]) @ p["out.weight"] + p["out.bias"]

    model = ji.from_function(fn, params, (jnp.ones((8, 64)),))
    batches = [rng.normal(size=(8, 64)).astype(np.float32) for _ in range(3)]
    return model, batches


def products(exe):
    return exe._entries[0].code.function.report()["int8"]["products"]


@needs_nncf
def test_products_of_named_parameters_stay_float32():
    model, batches = two_layers()
    make = lambda model=model, **options: ji.compile(
        model, backend="openvino", compiler_options={"quantize": batches, **options}
    )
    x, want = batches[0], np.asarray(model(batches[0]))
    error = lambda exe: float(np.abs(exe(x) - want).max() / np.abs(want).max())
    whole, half, none = make(), make(ignore=["out.weight"]), make(ignore=list(model.params))
    assert products(whole) == {"int8": ["in.weight", "out.weight"], "float32": []}
    assert products(half) == {"int8": ["in.weight"], "float32": ["out.weight"]}
    assert products(none) == {"int8": [], "float32": ["in.weight", "out.weight"]}
    # half of the roundings, then none
    assert error(none) < 1e-6 < error(half) < error(whole) < 0.05
    notes = half.report().buckets[0].notes
    assert "1 of 2 products" in notes[1]
    assert notes[2] == "float32 as asked: out.weight"


@needs_nncf
def test_quantized_weights_are_named_after_their_parameter():
    """What the weight is stored as does not matter: its parts have the parameter's path."""
    model, batches = two_layers()
    exe = ji.compile(
        ji.quantize("W8A16")(model),
        backend="openvino",
        compiler_options={"quantize": batches, "ignore": ["in.weight"]},
    )
    assert products(exe) == {"int8": ["out.weight"], "float32": ["in.weight"]}


@needs_nncf
def test_options_of_int8_that_do_not_fit():
    model, batches = two_layers()
    make = lambda **options: ji.compile(model, backend="openvino", compiler_options=options)
    with pytest.raises(InputError, match=r"(?s)in.wieght: did you mean in.weight.*\n  x\n"):
        make(quantize=batches, ignore=["in.wieght", "x", "out.weight"])
    with pytest.raises(InputError, match="ignore, preset: of quantize, which is not given"):
        make(preset="mixed", ignore=["in.weight"])
    with pytest.raises(InputError, match=r"(?s)transformer: .*ignore: .*smooth_quant: .*got 7"):
        make(quantize=batches, transformer="yes", ignore="in.weight", smooth_quant=7)


# Calls.


def wide():
    """A model with a small and a large result (above what a request keeps memory for)."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 512)) / 8, jnp.float32)
    fn = lambda p, x: (jnp.tanh(x @ p), (x * 2).mean(-1), x)
    return ji.from_function(fn, w, (jnp.ones((48, 64)),))


def test_results_are_new_arrays_and_inputs_may_change_afterwards():
    exe = ji.compile(wide(), backend="openvino")
    x = np.random.default_rng(1).normal(size=(48, 64)).astype(np.float32)
    want = [np.array(out) for out in wide()(x)]
    first = exe(x)
    kept = x.copy()
    x[:] = 7
    second = exe(x)
    assert all(isinstance(out, jax.Array) for out in (*first, *second))
    for got, expected in zip(first, want, strict=True):
        np.testing.assert_allclose(got, expected, atol=TOL)
    np.testing.assert_array_equal(first[2], kept)
    np.testing.assert_allclose(second[1], 14, rtol=1e-6)


def test_calls_at_the_same_time():
    exe, model = ji.compile(wide(), backend="openvino"), wide()
    inputs = [
        np.random.default_rng(seed).normal(size=(48, 64)).astype(np.float32) for seed in range(24)
    ]
    want = [[np.array(out) for out in model(x)] for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda x: exe(x), inputs * 2), want * 2, strict=True):
            for g, w in zip(got, expected, strict=True):
                np.testing.assert_allclose(g, w, atol=TOL)


def test_calls_compile_nothing():
    exe = ji.compile(wide(), backend="openvino", warm_up=False, check=False)
    with no_compile():
        assert exe(np.ones((48, 64), np.float32))[1].shape == (48,)
