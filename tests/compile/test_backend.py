"""The OpenVINO back-end behind the same interface: buckets, checks, refusal and fallback, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.openvino import function as _openvino
from jaxinfer.compile.store import load_executable
from jaxinfer.core.errors import InputError, MissingExtraError
from tests.compile import models
from tests.compile.models import TOL, D

pytestmark = pytest.mark.skipif(bool(_openvino.available()), reason="OpenVINO is not installed")
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
