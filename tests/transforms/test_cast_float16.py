"""cast to float16: what overflows is found, with its line and its batch."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.core.selectors import rule
from jaxinfer.transforms.cast import cast
from tests.transforms.casting import UNIT, dtypes, error, linear, normal


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def layered(p, x):
    y = jnp.tanh(x) @ p["w"]
    z, _ = lax.scan(lambda c, v: (jnp.tanh(c @ v), None), y, p["v"])
    return (x @ p["u"]) * 1e-3 + z


def overflowing():
    params = {"w": normal(3, 5), "v": normal(2, 5, 5), "u": normal(3, 5) + 300}
    return ji.from_function(layered, params, (normal(2, 3),))


def test_overflow_is_found():
    batches = [jnp.ones((2, 3)), jnp.full((2, 3), 100.0), jnp.full((4, 3), 1000.0)]
    half = cast("f16")(overflowing(), batches)
    (found,) = half.provenance["cast"]["overflow"]
    assert (found["primitive"], found["what"]) == ("dot_general", "result")
    assert (found["batch"], found["batches"]) == (2, 2)
    assert found["parameters"] == ["u"]
    want = np.abs(np.asarray(batches[2], "f8") @ np.asarray(overflowing().params["u"], "f8")).max()
    assert found["largest"] == pytest.approx(want, rel=1e-5)
    assert "test_cast_float16.py" in found["source"]
    assert "(layered)" in found["source"]
    entry = next(e for e in half.audit()["cast"] if e.path == "u")
    assert "dot_general result: up to 9.0" in entry.why.replace("8.9", "9.0")
    assert entry.source == found["source"]
    assert not np.isfinite(np.asarray(half(batches[2]))).all(), "the finding is true"
    with pytest.raises(InputError, match=r"overflows on the calibration data:\n.*dot_general"):
        cast("f16", strict=True)(overflowing(), batches)


def test_overflow_is_not_found_where_there_is_none():
    batches = [jnp.ones((2, 3)), jnp.full((2, 3), 1000.0)]
    half = cast("f16", strict=True)(overflowing(), batches[:1])
    assert half.provenance["cast"]["overflow"] == []
    kept = cast("f16", rules=[rule("u", compute="f32")], strict=True)(overflowing(), batches)
    assert error(kept(batches[1]), overflowing()(batches[1])) < 5 * UNIT["f16"]
    assert cast("bf16", strict=True)(overflowing(), batches)(batches[1]).dtype == "float32"


@pytest.mark.parametrize(
    ("fn", "primitive", "what"),
    [
        (lambda p, x: (x * 1e5) @ p["w"], "dot_general", "operand 0"),
        (lambda p, x: x @ p["w"] * 1e4 * 1e4, "mul", "result"),
        (lambda p, x: lax.fori_loop(0, 9, lambda i, x: x @ p["w"], x), "dot_general", "result"),
        (lambda p, x: lax.cond(x[0, 0] > 0, lambda: x @ p["w"] * 4e4, lambda: x), "mul", "result"),
    ],
)
def test_overflow_within(fn, primitive, what):
    model = ji.from_function(fn, {"w": jnp.full((3, 3), 3.0)}, (jnp.ones((2, 3)),))
    found = cast("f16").init(model, [(jnp.ones((2, 3)),)])["overflow"]
    assert (primitive, what) in {(one["primitive"], one["what"]) for one in found}


def test_output_overflow():
    model = linear(lambda p, x: x @ p["w"] * 1e6, w=normal(3, 5))
    transform = cast("params=bf16,compute=bf16,output=f16")
    (found,) = transform.init(model, [normal(2, 3)])["overflow"]
    assert (found["primitive"], found["what"]) == ("output", "0")


def test_weights_that_do_not_fit_stay():
    params = {"w": normal(3, 5) * 1e5, "v": normal(5, 4) * jnp.array([1, 1e-8, 1, 1])}
    fn = lambda p, x: jnp.tanh(x @ p["w"] * 1e-5) @ p["v"]
    model = linear(fn, **params)
    half = cast("f16")(model)
    assert dtypes(half.params) == ["float16", "float32"]
    by_path = {entry.path: entry for entry in half.audit()["cast"]}
    assert by_path["w"].status == "blocked"
    assert "overflow float16" in by_path["w"].why
    assert "of 20 values become 0" in by_path["v"].why
    assert error(half(normal(2, 3)), model(normal(2, 3))) < 4 * UNIT["f16"]
    with pytest.raises(InputError, match=r"w: \d+ values, up to"):
        cast("f16", strict=True)(model)
    largest = jnp.full((3, 5), jnp.finfo("float32").min)
    assert cast("bf16").init(linear(**params | {"w": largest}))["parameters"]["w"]["overflow"] == 15


def test_bad_data():
    with pytest.raises(InputError, match="at most one iterable of batches, got 2"):
        cast("f16")(linear(), [normal(2, 3)], [normal(2, 3)])
    for policy in ("f16", "bf16"):
        with pytest.raises(InputError, match="the calibration data hold no batch"):
            cast(policy)(linear(), [])


def test_state_is_a_plain_pytree_and_update_is_deterministic():
    model = overflowing()
    transform = cast("f16")
    state = transform.init(model, [jnp.full((2, 3), 1000.0)])
    assert all(isinstance(leaf, (str, int, float)) for leaf in jax.tree.leaves(state))
    one, two = transform.update(model, state), transform.update(model, state)
    assert one.rewrites == two.rewrites
    assert one.provenance == two.provenance
    assert model.rewrites == ()
    assert dtypes(model.params) == ["float32"] * 3
