"""Times of products by OpenVINO's own counters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji

pytest.importorskip("openvino")


def network(params, x):
    x = jax.nn.relu(x @ params["a"]["w"] + params["a"]["b"])
    return jnp.tanh(x @ params["c"]["w"])


def test_every_product_has_a_time():
    from jaxinfer.compile.openvino.profile import product_times

    draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    params = {"a": {"w": draw(64, 512), "b": draw(512)}, "c": {"w": draw(512, 8)}}
    model = ji.from_function(network, params, (jnp.ones((256, 64)),))
    executable = ji.compile(model, backend="openvino")
    function = executable._entries[0].code.function
    x = np.ones((256, 64), np.float32)
    before = np.asarray(executable(x))
    times = product_times(function, [x], calls=3)
    assert set(times) == {"a.w", "c.w"}
    assert all(milliseconds > 0 for milliseconds in times.values())
    assert np.array_equal(np.asarray(executable(x)), before)  # the copy alone was renamed


def test_a_program_without_products_has_none():
    from jaxinfer.compile.openvino.profile import product_times

    model = ji.from_function(lambda p, x: x + p, jnp.ones(3), (jnp.ones((2, 3)),))
    function = ji.compile(model, backend="openvino")._entries[0].code.function
    assert product_times(function, [np.ones((2, 3), np.float32)]) == {}
