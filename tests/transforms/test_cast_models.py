"""cast: models of other kinds, their JSON, on disk and back."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.program import FunctionProgram
from jaxinfer.core.selectors import rule
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF
from jaxinfer.io.artefact import REWRITES
from jaxinfer.transforms.cast import CastRewrite, Policy, cast
from tests.laws.programs import PROGRAMS
from tests.transforms.casting import UNIT, cast_of, dtypes, error, linear, normal, products


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_json():
    half = cast("params=bf16,compute=f16,output=f32", rules=[rule("v", compute="f32")])(linear())
    (rewrite,) = half.rewrites
    again = REWRITES["cast"].from_json(rewrite.to_json())
    assert again == rewrite
    assert hash(again) == hash(rewrite)
    copy = half.replace(rewrites=(again,))
    x = normal(2, 3)
    assert (np.asarray(copy(x)) == np.asarray(half(x))).all()


@pytest.mark.parametrize(
    "change",
    [
        {"declared": []},
        {"declared": {"w": "int8"}},
        {"computes": {"w": "float33"}},
        {"policy": {"params": "bf17"}},
        {"policy": {"parms": "bf16"}},
    ],
)
def test_malformed_json(change):
    (rewrite,) = cast("bf16")(linear()).rewrites
    with pytest.raises((ValueError, TypeError)):
        CastRewrite.from_json({**rewrite.to_json(), **change})


def save_and_load(model, path):
    model.save(path)
    return ji.load(path)


def test_a_function_is_saved_and_loaded(tmp_path):
    half, x = cast_of("attention"), PROGRAMS["attention"].inputs(2)
    again = save_and_load(half, tmp_path / "half")
    assert set(dtypes(again.params)) == {"bfloat16"}
    assert (np.asarray(again(*x)) == np.asarray(half(*x))).all()
    assert str(again.audit()["cast"]) == str(half.audit()["cast"])
    with pytest.raises(InputError, match="cast: this model has been through it already"):
        cast("bf16")(again)


def test_a_program_is_saved_with_its_rewrite(tmp_path):
    """StableHLO takes its parameters as it was exported: what is in it cannot be cast."""
    stored = save_and_load(linear(), tmp_path / "stored")
    half, x = cast("bf16", strict=True)(stored), normal(2, 3)
    assert all("takes it in float32" in entry.why for entry in half.audit()["cast"])
    again = save_and_load(half, tmp_path / "half")
    assert again.rewrites == half.rewrites
    assert again.provenance["cast"] == half.provenance["cast"]
    assert (np.asarray(again(x)) == np.asarray(half(x))).all()
    assert error(half(x), stored(x)) < 3 * UNIT["bf16"]


def test_components():
    signature = Signature(("x",), 1, (LEAF,), (LeafSpec("x", (2, 3), "float32"),))
    first = FunctionProgram(lambda p, x: x @ p["w"], signature)
    second = FunctionProgram(lambda p, x: jnp.tanh(x) @ p["w"] @ p["v"], signature)
    params = {"w": normal(3, 5), "v": normal(5, 4)}
    model = Model(MultiProgram({"first": first, "second": second}), params)
    half = cast("bf16", rules=[rule("v", compute="f32")])(model)
    x = normal(2, 3)
    for name, count in (("first", 1), ("second", 2)):
        one = half.components[name]
        assert sum(products(one, x).values()) == count
        assert error(one(x), model.components[name](x)) < 4 * UNIT["bf16"]
    with pytest.raises(InputError, match="calibration data for a model of several components"):
        cast("f16")(model, [x])


def test_without_example_inputs():
    model = ji.from_function(lambda p, x: x @ p["w"], {"w": normal(3, 5)})
    half = cast("bf16", rules=[rule("w", compute="f32")])(model)
    assert products(half, normal(2, 3)) == {"float32*float32": 1}


def test_a_random_key_passes_through():
    def run(params, leaves, key):
        return [leaves[0] @ params["w"] + jax.random.normal(key, (2, 5))]

    half = CastRewrite(Policy("bf16"), (("w", "float32"),)).apply(run)
    w, x, key = normal(3, 5), normal(2, 3), jax.random.key(1)
    got = half({"w": w.astype("bfloat16")}, [x], key)
    assert error(got, run({"w": w}, [x], key)) < 3 * UNIT["bf16"]
