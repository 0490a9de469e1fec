"""Quantize: settings and rules, what is refused, and what is said of every parameter."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.array_types import is_array_type, nbytes
from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.transforms import quantize as module
from jaxinfer.transforms.quantize import Plan, QuantizeState, quantize
from jaxinfer.transforms.schemes import SCHEMES


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def fn(params, x, ids):
    """Two products, a bias, a table of rows, and a matrix that is added."""
    h = jnp.tanh(x @ params["up.weight"].T + params["up.bias"] + params["table"][ids])
    return h @ params["down.weight"] + params["shift"]


def model_of(seed=0):
    shapes = {"up.weight": (24, 16), "up.bias": (24,), "table": (9, 24), "down.weight": (24, 10),
              "shift": (3, 10)}  # fmt: skip
    params = {name: normal(shape, seed + i) for i, (name, shape) in enumerate(shapes.items())}
    params |= {"step": jnp.arange(3), "old": normal((4, 4))}
    return ji.from_function(fn, params, (normal((3, 16), 9), jnp.array([0, 8, 3])))


def of(model):
    return {entry.path: entry for entry in model.audit()["quantize"]}


def types(model):
    return {path: leaf for path, leaf in leaves(model.params).items() if is_array_type(leaf)}


def test_every_parameter_has_an_entry_and_a_reason():
    model = model_of()
    small = quantize()(model)
    entries = of(small)
    assert {path: entry.status for path, entry in entries.items()} == {
        "up.weight": "changed", "up.bias": "unfit", "table": "changed", "down.weight": "changed",
        "shift": "blocked", "step": "unfit", "old": "unused",
    }  # fmt: skip
    assert entries["up.weight"].why == "W8A16: int8, scale along 1"
    assert entries["down.weight"].why == "W8A16: int8, scale along 0"
    assert entries["table"].why == "W8A16: int8, scale along 1, gathered"
    assert entries["up.bias"].why == "a vector, used by add"
    assert entries["shift"].why == "needed as an array by add"
    assert "test_quantize.py" in entries["shift"].source
    assert entries["step"].why == "int32, not a float"
    assert set(types(small)) == {"up.weight", "table", "down.weight"}
    for path, leaf in leaves(small.params).items():
        assert entries[path].after == nbytes(leaf)
        assert entries[path].status == "changed" or leaf is model.params[path]


def test_errors_are_at_most_half_a_step():
    model = model_of()
    for scheme in ("W8A16", "W4A16"):
        for path, q in types(quantize(scheme, group=8)(model)).items():
            error = np.abs(np.asarray(q.materialize()) - np.asarray(model.params[path]))
            step = q.scale
            for axis, (count, size) in enumerate(zip(step.shape, q.stored, strict=True)):
                step = np.repeat(step, size // count, axis)
            assert (error <= step * (0.5 + 2**-15)).all()


def test_the_first_rule_that_matches_decides():
    rules = [
        ji.rule(r"table", ignore=True),
        ji.rule(r"up\..*", scheme="W4A16", group=4),
        ji.rule(r".*\.weight", scheme="W8A8"),
    ]
    small = quantize(rules=rules)(model_of())
    made = types(small)
    assert set(made) == {"up.weight", "down.weight"}
    assert of(small)["table"].status == "ignored"
    assert made["up.weight"].format == "int4"
    assert made["up.weight"].scale.shape == (24, 4)
    assert isinstance(made["down.weight"], ActQTensor)
    with pytest.raises(InputError, match="rules that decide no parameter"):
        quantize(rules=[ji.rule("nowhere")])(model_of())


def test_a_group_that_does_not_divide_is_padded_and_said():
    small = quantize("W4A16", group=7)(model_of())
    q = types(small)["up.weight"]
    assert q.scale.shape == (24, 3)
    assert q.shape == (24, 16)
    assert q.stored == (24, 21)
    assert "groups of 7, axis 1 padded from 16 to 21" in of(small)["up.weight"].why
    assert of(small)["up.weight"].after == q.nbytes


def test_granularity_tensor():
    made = types(quantize(granularity="tensor")(model_of()))
    assert made["up.weight"].scale.shape == (1, 1)
    stack = ji.from_function(
        lambda p, x: jax.lax.scan(lambda h, w: (h @ w, None), x, p)[0],
        normal((3, 8, 8)), (normal((2, 8)),),
    )  # fmt: skip
    assert quantize(granularity="tensor")(stack).params.scale.shape == (3, 1, 1)


def test_least_squares_and_zero_points():
    model = model_of()
    skewed = model.replace(params=model.params | {"up.weight": normal((24, 16)) ** 3 + 2})

    def error(**settings):
        q = types(quantize("W4A16", group=0, **settings)(skewed))["up.weight"]
        return float(jnp.square(q.materialize() - skewed.params["up.weight"]).sum())

    assert error(scales="mse") < error()
    assert error(symmetric=False) < error()
    assert error(symmetric=False, scales="mse") <= error(symmetric=False)
    q = types(quantize("W8A16", symmetric=False)(skewed))["up.weight"]
    assert (q.format, q.zero_point.shape) == ("uint8", (24, 1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes(scheme):
    model = model_of()
    small = quantize(scheme, group=8 if SCHEMES[scheme].group else None)(model)
    made, spec = types(small), SCHEMES[scheme]
    for path, leaf in made.items():
        acts = bool(spec.activations) and path != "table"
        assert isinstance(leaf, ActQTensor if acts else QTensor)
        assert getattr(leaf, "weight", leaf).format == spec.weights
        assert not acts or leaf.activation == spec.activations
    assert small.nbytes < model.nbytes
    x, ids = normal((3, 16), 9), jnp.array([0, 8, 3])
    want = np.asarray(model(x, ids))
    # measured: 0.5 % (int8), 3 % (e4m3), 12 % (4 bits); doubled
    noise = 0.25 if "4" in spec.weights[:4] else 0.06 if scheme == "FP8" else 0.02
    np.testing.assert_allclose(small(x, ids), want, rtol=0, atol=noise * np.abs(want).max())


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"scheme": "w8a16"}, "did you mean W8A16"),
        ({"scheme": "W8A15"}, "unknown scheme 'W8A15'.*W8A16"),
        ({"scheme": "W8A16", "group": -1}, "group: required a whole number"),
        ({"scheme": "W8A16", "group": 2.5}, "group: required a whole number"),
        ({"symmetric": 1}, "symmetric: required true or false"),
        ({"scheme": "NF4", "symmetric": False}, "nf4 has no zero point"),
        ({"scheme": "FP8", "symmetric": False}, "has no zero point"),
        ({"granularity": "tensors"}, "did you mean 'tensor'"),
        ({"scheme": "W4A16", "granularity": "tensor"}, "group=0 takes the scheme's groups away"),
        ({"scales": "msee"}, "did you mean 'mse'"),
        ({"activation": "static"}, "W8A16 leaves activations as they are"),
        ({"calibration": "absmx"}, "absmax"),
        ({"scheme": "W8A8", "calibration": "percentile", "options": {"percent": 0}}, "percent"),
        ({"rules": [ji.rule("x", scheme="W9")]}, "rule 'x'.*unknown scheme 'W9'"),
        ({"rules": [ji.rule("x", group=-1), ji.rule("y", scales="q")]}, "(?s)rule 'x'.*rule 'y'"),
    ],
)
def test_settings_that_cannot_be(settings, word):
    with pytest.raises(InputError, match=word):
        quantize(**settings)


def test_an_unknown_setting_of_a_rule():
    with pytest.raises(InputError, match="unknown setting 'goup'; known: group"):
        quantize(rules=[ji.rule("table", goup=4)])(model_of())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(bad):
    model = model_of()
    broken = {path: model.params[path].at[0, 1].set(bad) for path in ("up.weight", "table")}
    model = model.replace(params=model.params | broken)
    with pytest.raises(InputError) as error:
        quantize()(model)
    assert "up.weight: 1 of 384 values are not finite" in str(error.value)
    assert "table: 1 of 216" in str(error.value)
    assert "down.weight" not in str(error.value)
    small = quantize(rules=[ji.rule("up.weight|table", ignore=True)])(model)
    assert set(types(small)) == {"down.weight"}


def test_twice_is_refused():
    small = quantize()(model_of())
    with pytest.raises(InputError, match="quantize: this model has been through it already"):
        quantize("W4A16")(small)
    with pytest.raises(InputError, match="has been through it already"):
        quantize("W4A16").init(small)


def test_a_plan_of_another_model_is_refused():
    state = quantize().init(model_of())
    other = model_of()
    other = other.replace(params={**other.params, "table": normal((9, 25)), "new": normal((2, 2))})
    with pytest.raises(InputError) as error:
        quantize().update(other, state)
    assert "table: planned for (9, 24), got (9, 25)" in str(error.value)
    assert "new: not in the plan" in str(error.value)
    less = other.replace(params={k: v for k, v in other.params.items() if k != "old"})
    with pytest.raises(InputError, match="old: not among the model's parameters"):
        quantize().update(less, state)


def test_a_plan_is_plain_data():
    rules = [ji.rule("up.*", scheme="W4A8", group=4), ji.rule("table", ignore=True)]
    model, transform = model_of(), quantize("W8A8", rules=rules)
    state = transform.init(model)
    back = Plan.from_json(json.loads(json.dumps(state.plan.to_json())))
    assert back == state.plan
    one, two = transform.update(model, state), transform.update(model, QuantizeState(back, {}))
    assert jax.tree.structure(one.params) == jax.tree.structure(two.params)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert one.audit() == two.audit()
    assert jax.tree.leaves(state) == []


def test_strict():
    with pytest.raises(InputError, match=r"shift: needed as an array by add .*test_quantize\.py"):
        quantize(strict=True)(model_of())
    assert types(quantize(strict=True, rules=[ji.rule("shift", ignore=True)])(model_of()))


def test_dequantize_where_an_array_is_needed():
    model = model_of()
    small = quantize(dequantize=True)(model)
    assert "decoded for add" in of(small)["shift"].why
    assert isinstance(small.params["shift"], QTensor)
    assert of(small)["up.bias"].status == "unfit"
    plain = {k: getattr(v, "materialize", lambda v=v: v)() for k, v in small.params.items()}
    args = normal((3, 16), 9), jnp.array([0, 8, 3])
    # the same sums in another order
    np.testing.assert_allclose(small(*args), fn(plain, *args), rtol=0, atol=1e-5)


def test_what_would_not_be_smaller_stays():
    params = {"w": normal((1, 5)), "v": normal((5, 8), 1)}
    model = ji.from_function(lambda p, x: x @ p["w"] @ p["v"], params, (normal((2, 1)),))
    small = quantize()(model)
    assert of(small)["w"].status == "unfit"
    assert of(small)["w"].why == "would take 25 bytes, now 20"
    assert small.params["w"] is params["w"]


def test_float8_and_quantized_leaves_are_unfit():
    w = normal((8, 8)).astype("float8_e4m3fn")
    model = ji.from_function(lambda w, x: x @ w.astype(jnp.float32), w, (normal((2, 8)),))
    assert "float8_e4m3fn already" in of(quantize()(model))["value"].why
    whole = quantize()(ji.from_function(jnp.dot, normal((8, 8)), (normal((8,)),)))
    again = ji.from_function(lambda w, x: jnp.dot(x, w), whole.params, (normal((8,)),))
    assert of(quantize("W4A16")(again))["value"].why == "quantized already"


def test_embeddings_keep_activations():
    table = normal((32, 16))
    model = ji.from_function(lambda w, ids: w[ids], table, (jnp.arange(4),))
    for scheme in ("W8A8", "W4A8", "FP8"):
        small = quantize(scheme)(model)
        leaf = small.params
        assert isinstance(leaf, QTensor)
        assert "gathered" in of(small)["value"].why
        assert "activations" not in of(small)["value"].why
        got, want = small(jnp.array([31, 0])), leaf.materialize()[jnp.array([31, 0])]
        np.testing.assert_array_equal(got, want)


def test_both_dtypes_stand_for_what_they_were():
    for dtype in (jnp.bfloat16, jnp.float16):
        w, x = normal((16, 8), dtype=dtype), normal((3, 16), 1, dtype)
        small = quantize()(ji.from_function(lambda w, x: x @ w, w, (x,)))
        assert small.params.dtype == dtype
        assert small(x).dtype == dtype


def test_static_activations_need_data():
    model = ji.from_function(lambda w, x: x @ w, normal((8, 8)), (normal((2, 8)),))
    with pytest.raises(InputError, match="required one iterable of batches behind the model"):
        quantize("W8A8", activation="static")(model)


def test_a_model_without_example_inputs_needs_a_batch():
    model = ji.from_function(lambda p, x: x @ p, normal((8, 8)))
    with pytest.raises(InputError, match="made without example inputs"):
        quantize()(model)
    assert isinstance(quantize()(model, [normal((2, 8))]).params, QTensor)


def test_leaves_are_replaced_one_at_a_time(monkeypatch):
    """``quantize_leaf`` sees one leaf after the other; the model given stays as it was."""
    seen, model = [], model_of()
    whole = module.quantize_leaf

    def watch(leaf, decision):
        seen.append(decision.path)
        return whole(leaf, decision)

    monkeypatch.setattr(module, "quantize_leaf", watch)
    before = dict(model.params)
    quantize()(model)
    assert seen == ["up.weight", "table", "down.weight"]
    assert all(model.params[path] is leaf for path, leaf in before.items())


def test_it_traces_with_abstract_parameters():
    """``update`` is a pure function of the parameters: it can be jitted, or traced."""
    model, transform = model_of(), quantize("W4A16", group=8)
    state = transform.init(model)
    run = lambda params: transform.update(model.replace(params=params), state).params
    shapes = jax.eval_shape(run, model.params)
    made = transform.update(model, state).params
    assert jax.tree.structure(shapes) == jax.tree.structure(made)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(run)(model.params), made)
