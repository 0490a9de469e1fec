"""Calibration statistics in a file: bit for bit, and nothing of a damaged one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import ArtefactError

METHODS = ("absmax", "moving_average", "percentile")


def model():
    params = {"a": jnp.ones((3, 5, 5)), "b.w": jnp.ones((5, 2))}

    def fn(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["a"])
        return x @ p["b.w"]

    return ji.from_function(fn, params, (jnp.ones((2, 5)),))


def batches():
    generator = np.random.default_rng(0)
    return [generator.standard_normal((4, 5)).astype("f4") for _ in range(3)]


@pytest.mark.parametrize(
    "method", [m if m == "absmax" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_statistics_come_back_and_serve(method, tmp_path):
    stats = ji.calibrate(model(), batches(), methods=method)
    file = tmp_path / "stats.safetensors"
    ji.save_calibration(stats, file)
    back = ji.load_calibration(file)
    assert list(back) == list(stats)
    assert back["a"].low.shape == (3, 1)  # a range for each layer
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), stats, back)
    assert all(jax.tree.leaves(same))
    settings = {"activation": "static", "calibration": method}
    small = ji.quantize("W8A8", stats=back, **settings)(model())
    want = ji.quantize("W8A8", **settings)(model(), batches())
    assert (small(batches()[0]) == want(batches()[0])).all()
    with pytest.raises(ArtefactError, match="exists already"):
        ji.save_calibration(stats, file)
    ji.save_calibration(stats, file, overwrite=True)
    assert sorted(tmp_path.iterdir()) == [file]


def test_bad_files(tmp_path):
    file = tmp_path / "stats.safetensors"
    with pytest.raises(ArtefactError, match="not a file of calibration"):
        ji.load_calibration(file)
    ji.save_calibration(ji.calibrate(model(), batches()), file)
    whole = file.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(ArtefactError, match="not a file of calibration"):
            ji.load_calibration(file)
    for old, new in ((b"RangeStats", b"NoSuchKind"), (b"a|low", b"a|wol")):
        file.write_bytes(whole.replace(old, new))
        with pytest.raises(ArtefactError, match=r"unknown kind|lacks low"):
            ji.load_calibration(file)
    model().save(tmp_path / "m")
    with pytest.raises(ArtefactError, match="not a file of calibration"):
        ji.load_calibration(tmp_path / "m" / "params.safetensors")


def test_what_is_no_statistic(tmp_path):
    with pytest.raises(ArtefactError, match="w: a dict"):
        ji.save_calibration({"w": {}}, tmp_path / "x")
    assert not list(tmp_path.iterdir())
