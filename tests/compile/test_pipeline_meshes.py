"""Stages on meshes of their own: weights split within a stage, pipelining between stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxinfer as ji
from jaxinfer.compile.guard import no_compile
from jaxinfer.compile.pipeline import pipeline
from jaxinfer.core.errors import InputError

WIDTH, HIDDEN = 8, 12


def mlp(p, x):
    for i in range(4):
        x = x + jnp.tanh(x @ p[f"{i}.up"]) @ p[f"{i}.down"]
    return x


def model_of():
    rng = np.random.default_rng(0)
    shapes = {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    params = {
        f"{i}.{name}": jnp.asarray(rng.standard_normal(shape) / 3, jnp.float32)
        for i in range(4)
        for name, shape in shapes.items()
    }
    return ji.from_function(mlp, params, (jnp.ones((2, WIDTH)),))


def meshes(*groups):
    return [Mesh(np.array([jax.devices()[i] for i in ids]), ("model",)) for ids in groups]


X = np.random.default_rng(1).standard_normal((7, WIDTH)).astype(np.float32)
SIZES = [("batch", WIDTH)]


@pytest.mark.parametrize("scheme", [None, pytest.param("W8A16", marks=pytest.mark.slow)])
def test_stages_on_meshes_give_what_the_model_gives(scheme):
    model = model_of()
    if scheme:
        model = ji.quantize(scheme)(model)
    groups = meshes((0, 1), (2, 3))
    pipe = pipeline(model, SIZES, stages=2, microbatch=2, devices=groups)
    want = np.asarray(model(X))
    with no_compile():
        got = pipe(X)
    # float32; a shard's partial sums are added in another order: a few eps of the largest
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    rows = pipe.report().stages
    assert [row.device for row in rows] == ["cpu:0,1", "cpu:2,3"]
    if not scheme:
        assert [row.bytes_per_device * 2 for row in rows] == [row.param_bytes for row in rows]
    assert all(row.bytes_per_device < row.param_bytes for row in rows)
    assert got.devices() == set(jax.devices()[2:4])


def test_lists_of_devices_are_meshes():
    devices = jax.devices()
    given = [devices[4:6], tuple(devices[6:8])]
    pipe = pipeline(model_of(), SIZES, stages=2, microbatch=3, devices=given)
    np.testing.assert_allclose(pipe(X), model_of()(X), rtol=0, atol=1e-5)
    assert pipe.report().stages[1].device == "cpu:6,7"
    assert len(pipe.schedule(X, repeats=1).cells) == 6


def test_sharding_by_rules():
    rules = [(r"0\.up", (None, "model"))]
    pipe = pipeline(
        model_of(),
        SIZES,
        stages=2,
        microbatch=2,
        devices=meshes((0, 1), (2, 3)),
        sharding=rules,
    )
    first, second = pipe.report().stages
    assert first.param_bytes - first.bytes_per_device == WIDTH * HIDDEN * 4 // 2
    assert second.param_bytes == second.bytes_per_device


def test_a_split_scan_on_meshes():
    def fn(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])[0]

    layers = np.random.default_rng(0).standard_normal((6, WIDTH, WIDTH)) / 3
    model = ji.from_function(fn, {"layers": jnp.asarray(layers, jnp.float32)}, (X,))
    pipe = pipeline(
        model,
        SIZES,
        stages=2,
        microbatch=2,
        devices=meshes((0, 1), (2, 3)),
        sharding=[("layers", (None, None, "model"))],
    )
    assert pipe.report().splits
    assert [row.bytes_per_device for row in pipe.report().stages] == [3 * WIDTH * WIDTH * 2] * 2
    np.testing.assert_allclose(pipe(X), model(X), rtol=0, atol=1e-5)


def test_meshes_that_do_not_fit():
    devices = jax.devices()
    cases = [
        (meshes((0, 1), (2, 3, 4)), "need the same axes.*\n.*'model': 2.*\n.*'model': 3"),
        ([meshes((0, 1))[0], devices[3]], "need the same axes"),
        (meshes((0, 1), (1, 2)), "share CpuDevice.id=1"),
        ([[devices[0]], []], r"or list of such; got:\n  \[\]"),
        ([[devices[0]], ["cpu:1"]], r"got:\n  \['cpu:1'\]"),
        (meshes((0, 1)), "2 stages need 2 devices, got 1"),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=message):
            pipeline(model_of(), SIZES, stages=2, microbatch=2, devices=given)
    with pytest.raises(InputError, match="sharding is for stages on meshes"):
        pipeline(model_of(), SIZES, stages=2, microbatch=2, sharding="tensor")
