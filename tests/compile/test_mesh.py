"""Executables over meshes: the numbers of one device, weights in shards, files that come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxinfer as ji
from jaxinfer.compile.store import StaleExecutableWarning, load_executable
from jaxinfer.core.errors import ArtefactError, InputError
from tests.compile import models

DIM, HIDDEN = 32, 64
SHAPE = {"x": ("batch", DIM)}
TOL = 2e-5  # float32 sums of 64 terms in another order, of values of about 10


@pytest.fixture(scope="module")
def model():
    return models.mlp_model(d=DIM, f=HIDDEN)


def held(exe, model):
    """Return the share of the weights that one device holds."""
    report = exe.report()
    assert report.param_bytes == model.nbytes
    return report.param_bytes_per_device / report.param_bytes


@pytest.mark.parametrize("mesh", [{"model": 8}, {"data": 2, "model": 4}, "data=4,model=2"])
def test_the_numbers_of_one_device(model, mesh):
    how = "data+tensor" if "data" in mesh else "tensor"
    exe = ji.compile(model, SHAPE, buckets={"batch": [1, 8]}, mesh=mesh, sharding=how)
    size = exe._frame.plan.mesh.shape["model"]
    assert held(exe, model) < 1.15 / size  # the bias is whole
    for bucket in exe.report():
        assert bucket.check["error"] < TOL
        assert bucket.check["because"] == ["8 devices"]
        assert sum(count for _, _, count in bucket.collectives) > 0
    with ji.no_compile():
        for n in (1, 3, 8):
            x = models.rows(n, DIM)
            y, _ = models.mlp_reference(models.weights(d=DIM, f=HIDDEN), x)
            np.testing.assert_allclose(exe(x)["y"], y, atol=TOL * np.abs(y).max())
    if "data" in exe._frame.plan.mesh.shape:
        assert any("is not split" in note for note in exe.report()[0].notes)  # a batch of 1


def test_quantized_weights_follow(model):
    small = ji.quantize("W8A16")(model)
    exe = ji.compile(small, SHAPE, buckets={"batch": [4]}, mesh={"model": 4}, sharding="tensor")
    assert held(exe, small) < 1.4 / 4  # scales along the contracted axis are whole
    x = models.rows(3, DIM)
    want = small(x)["y"]
    np.testing.assert_allclose(exe(x)["y"], want, atol=TOL * float(jnp.abs(want).max()))


def test_auto_and_rules(model):
    exe = ji.compile(model, SHAPE, buckets={"batch": [8]}, mesh={"data": 2, "model": 4})
    assert exe.report().strategy
    rules = {r"in\.w": P(None, "model"), r"out\.w": P("model", None)}
    exe = ji.compile(model, SHAPE, buckets={"batch": [8]}, mesh={"model": 8}, sharding=rules)
    assert exe._frame.plan.params["in.w"].spec == P(None, "model")
    x = models.rows(8, DIM)
    y, _ = models.mlp_reference(models.weights(d=DIM, f=HIDDEN), x)
    np.testing.assert_allclose(exe(x)["y"], y, atol=TOL * np.abs(y).max())


def test_saved_and_loaded_over_a_mesh(model, tmp_path):
    exe = ji.compile(
        model, SHAPE, buckets={"batch": [8]}, mesh={"data": 2, "model": 4}, sharding="tensor"
    )
    exe.save(tmp_path / "exe")
    x = models.rows(5, DIM)
    with ji.no_compile():
        again = load_executable(tmp_path / "exe")
        np.testing.assert_array_equal(again(x)["y"], exe(x)["y"])
    assert again.report().strategy == exe.report().strategy
    assert held(again, model) == held(exe, model)
    index = tmp_path / "exe" / "executable.json"
    text = index.read_text()
    index.write_text(text.replace('"jaxlib":"', '"jaxlib":"9'))
    with pytest.warns(StaleExecutableWarning):
        stale = load_executable(tmp_path / "exe")
    np.testing.assert_allclose(stale(x)["y"], exe(x)["y"], atol=TOL * 30)
    index.write_text(text.replace('"devices":[0,', '"devices":[99,'))
    with pytest.raises(ArtefactError, match=r"runs on 8 devices .*, here are 8"):
        load_executable(tmp_path / "exe")


def test_weights_that_came_in_shards(model):
    plan = ji.partition(model, ji.make_mesh({"model": 8}), "tensor")
    placed = plan.place(model)
    exe = ji.compile(placed, SHAPE, buckets={"batch": [2]}, mesh=plan.mesh, sharding=plan)
    assert "the parameters came in shards" in exe.report()[0].check["result"]
    x = models.rows(2, DIM)
    y, _ = models.mlp_reference(models.weights(d=DIM, f=HIDDEN), x)
    np.testing.assert_allclose(exe(x)["y"], y, atol=TOL * np.abs(y).max())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"mesh": {"model": 16}}, "16"),
        ({"mesh": {"model": 8}, "sharding": {"in.w": P("modle")}}, "modle"),
        ({"mesh": {"model": 3}, "sharding": {"in.w": P("model")}}, "in.w"),
        ({"mesh": {"model": 8}, "sharding": "columns"}, "columns"),
    ],
)
def test_what_cannot_be_sharded(model, given, text):
    with pytest.raises(InputError, match=text):
        ji.compile(model, SHAPE, buckets={"batch": [8]}, **given)


def test_donation_over_a_mesh():
    fn = lambda p, x, cache: (x @ p, cache + 1)
    model = ji.from_function(fn, jnp.eye(DIM), (jnp.ones((8, DIM)), jnp.ones((8, 5))))
    exe = ji.compile(model, mesh={"data": 8}, sharding="data", donate="x1")
    assert exe.report()[0].aliased_bytes == 5 * 4  # of one device
    cache = jax.device_put(jnp.ones((8, 5)), exe._entries[0].shardings[1])
    exe(models.rows(8, DIM), cache)
    assert cache.is_deleted()
