"""Constants that functions close over become parameters; the function stays what it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.core.hoist import hoist_constants
from tests.laws.programs import PROGRAMS

TABLE = np.linspace(-1, 1, 77, dtype=np.float32).reshape(7, 11)


def model_of(name, batch=3):
    row = PROGRAMS[name]
    return ji.from_function(row.fn, row.params(), row.inputs(batch)), row


@pytest.mark.parametrize("name", ["closed_over", "closed_over_in_jit"])
def test_the_function_stays(name):
    model, row = model_of(name)
    hoisted = hoist_constants(model)
    assert [tuple(v.shape) for k, v in hoisted.params.items() if k.startswith("consts.")] == list(
        row.constants
    )
    for batch in (2, 5):
        x = row.inputs(batch)
        want = row.fn(row.params(), *x)
        for fn in (hoisted.apply, jax.jit(hoisted.apply)):
            # the same equations on the same values: sums may be taken in another order
            np.testing.assert_allclose(fn(hoisted.params, *x), want, rtol=0, atol=1e-5)
    (x,) = row.inputs(2)
    slope = jax.grad(lambda x: hoisted.apply(hoisted.params, x).sum())(x)
    np.testing.assert_allclose(
        slope, jax.grad(lambda x: row.fn(row.params(), x).sum())(x), atol=1e-5
    )
    stacked = jnp.stack([x, x])
    mapped = jax.vmap(lambda x: hoisted.apply(hoisted.params, x))(stacked)
    np.testing.assert_allclose(mapped[0], row.fn(row.params(), x), rtol=0, atol=1e-5)


def test_the_closed_over_array_is_not_read_any_more():
    model, row = model_of("closed_over")
    hoisted = hoist_constants(model)
    zeros = {**hoisted.params, "consts.0": jnp.zeros((7, 11))}
    assert not np.any(hoisted.apply(zeros, *row.inputs(2)))
    text = jax.jit(hoisted.apply).lower(hoisted.params, *row.inputs(2)).as_text()
    assert "dense<" not in text.replace("dense<0", "")


def test_small_ones_stay_and_equal_ones_are_one():
    def fn(params, x):
        del params
        return (x @ TABLE) @ jnp.asarray(TABLE.T) + np.ones(7, np.float32)

    model = ji.from_function(fn, {}, (jnp.ones((2, 7)),))
    assert list(hoist_constants(model).params) == ["consts.0", "consts.1"]
    assert hoist_constants(model, min_size=78) is model
    assert len(hoist_constants(model, min_size=7).params) == 3
    twice = ji.from_function(lambda p, x: x @ TABLE + jnp.tanh(x) @ TABLE, {}, (jnp.ones((2, 7)),))
    assert list(hoist_constants(twice).params) == ["consts.0"]


def test_what_is_refused():
    model, _ = model_of("closed_over")
    with pytest.raises(InputError, match="before all transforms"):
        hoist_constants(ji.quantize("W8A16")(model))
    named = ji.from_function(
        lambda p, x: x @ TABLE + p["consts.0"], {"consts.0": jnp.ones(11)}, (jnp.ones((2, 7)),)
    )
    with pytest.raises(InputError, match=r"called consts\.0 already"):
        hoist_constants(named)

    def by_shape(params, x):
        return x @ TABLE if x.shape[0] == 2 else (x @ TABLE) @ TABLE.T.copy()

    changing = hoist_constants(ji.from_function(by_shape, {}, (jnp.ones((2, 7)),)))
    with pytest.raises(InputError, match="holds other constants"):
        changing.apply(changing.params, jnp.ones((3, 7)))


def test_a_quantized_function_says_what_it_closes_over():
    model, _ = model_of("closed_over")
    small = ji.quantize("W8A16")(model)
    (entry,) = small.audit()["quantize"].of("blocked")
    assert "float32[7, 11]" in entry.path
    assert "hoist_constants" in entry.why
    with pytest.raises(InputError, match="closed over by the function"):
        ji.quantize("W8A16", strict=True)(model)
    assert not ji.quantize("W8A16")(hoist_constants(model)).audit()["quantize"].of("blocked")
