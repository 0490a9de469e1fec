"""Sensitivities against really quantizing one group; one program; nothing else is switched."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves
from jaxinfer.core.trace import trace
from jaxinfer.numerics.formats import format_of
from jaxinfer.tune import sensitivity
from jaxinfer.tune._layers_levels import read_level
from jaxinfer.tune._switch import PRODUCTS, Switch, _fake, decisions, level_weights, switched
from jaxinfer.tune.data import read
from jaxinfer.tune.groups import find_groups
from jaxinfer.tune.sensitivity import divergence, sensitivities

RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    drawn = RNG.normal(size=shape) * scale / math.sqrt(shape[-2] if len(shape) > 1 else 1)
    return jnp.asarray(drawn.astype(np.float32))


PARAMS = {
    "table": normal(20, 48),
    "conv.w": normal(3, 4, 8),  # taps, channels in and out
    "stack.w": normal(3, 64, 64),
    "up.w": normal(64, 96),
    "gain": jnp.full(96, 1.5),
    "down.w": normal(96, 5),
}


def network(p, ids, x):
    """A gather, a convolution, a scan over stacked layers, a product within jit, and another."""
    rows = p["table"][ids]
    seen = jax.lax.conv_general_dilated(
        x, p["conv.w"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    x = jnp.concatenate([rows, jnp.tanh(seen).reshape(len(x), -1)], -1)
    x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, p["stack.w"])
    x = jax.jit(lambda x, w: jnp.tanh(x @ w))(x, p["up.w"]) * p["gain"]
    return x @ p["down.w"]


def batches():
    draw = np.random.default_rng(1)
    return [
        (draw.integers(0, 20, 6).astype(np.int32), draw.normal(size=(6, 2, 4)).astype(np.float32))
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def case():
    model = ji.from_function(network, PARAMS, batches()[0])
    data = read(model, batches(), check=False)
    return model, data, find_groups(model, data)


def really(model, data, group, transform):
    """Return the divergence of a model with one group really transformed."""
    want = [[np.asarray(model(*call.arrays))] for call in data.calls]
    changed = transform("|".join(map(re.escape, group.paths)))
    return divergence([[np.asarray(changed(*call.arrays))] for call in data.calls], want)


def quantized(model, scheme):
    def transform(pattern):
        return ji.quantize(scheme, rules=[ji.rule(pattern), ji.rule(".*", ignore=True)])(model)

    return transform


# The same codes and scales, summed in another order: measured 1e-4 of the divergence at most.
@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("W8A8", ("conv", "stack")),
        ("FP8", ("down",)),
        pytest.param("W8A8", ("table", "up", "down"), marks=pytest.mark.slow),
        pytest.param("FP8", ("table", "conv", "stack", "up"), marks=pytest.mark.slow),
        pytest.param("W8A16", ("table", "conv", "stack", "up", "down"), marks=pytest.mark.slow),
        pytest.param("W4A16", ("table", "stack", "up", "down"), marks=pytest.mark.slow),
    ],
)
def test_it_is_what_quantizing_the_group_does(case, level, names):
    model, data, every = case
    groups = [group for group in every if group.name in names]
    found = sensitivities(model, data, groups, level)
    assert list(found) == list(names)
    for group in groups:
        real = really(model, data, group, quantized(model, level))
        assert found[group.name] == pytest.approx(real, rel=2e-3), group.name
        assert real > 1e-4


@pytest.mark.slow
def test_static_scales_are_of_each_call(case):
    """Calibration on all calls has other scales than each call: measured within 15 %."""
    model, data, groups = case
    found = sensitivities(model, data, groups[3:4], "W8A8-static")

    def transform(pattern):
        rules = [ji.rule(pattern), ji.rule(".*", ignore=True)]
        return ji.quantize("W8A8", rules=rules, activation="static")(model, data.batches())

    real = really(model, data, groups[3], transform)
    assert found["up"] == pytest.approx(real, rel=0.3)


def test_casts_round_operands_and_result(case):
    """By hand for the last product, after which nothing is done to the result."""
    model, data, groups = case
    found = sensitivities(model, data, groups[4:], "bf16")["down"]

    def rounded(params, ids, x):
        half = lambda value: value.astype(jnp.bfloat16)
        y = network({**params, "down.w": jnp.eye(96)}, ids, x)
        out = jnp.dot(half(y), half(params["down.w"]), preferred_element_type=jnp.float32)
        return half(out).astype(jnp.float32)

    want, got = (
        [[np.asarray(jax.jit(fn)(PARAMS, *call.arrays))] for call in data.calls]
        for fn in (network, rounded)
    )
    assert found == pytest.approx(divergence(got, want), rel=0.02)
    assert 1e-4 < found < 2**-7


@pytest.mark.slow
def test_halves_cost_less_than_eight_bits_and_those_less_than_four(case):
    model, data, groups = case
    group = groups[3:4]
    at = {
        level: sensitivities(model, data, group, level)["up"]
        for level in ("f32", "f16", "bf16", "W8A16", "W4A16")
    }
    assert at["f32"] == 0
    assert at["f16"] < at["bf16"] < at["W4A16"]
    assert at["W8A16"] < at["W4A16"]


def test_one_program_serves_all_groups(case, monkeypatch):
    model, data, groups = case
    made = []

    def watched(*args):
        switch, fn = switched(*args)
        made.append(fn)
        return switch, fn

    monkeypatch.setattr(sensitivity, "switched", watched)
    told = []
    sensitivities(model, data, groups, "W8A8", lambda *args: told.append(args))
    assert len(made) == 1
    assert made[0]._cache_size() == 1
    assert told == [(group.name, n, 5) for n, group in enumerate(groups)]


def test_flags_switch_one_group_and_no_other(case):
    """With every flag off the program is the model; with one, it is not."""
    model, data, groups = case
    named, level = leaves(model.params), read_level("W8A8")
    (traced,) = trace(model, data.calls[0].arrays)
    decided = decisions(named, traced, [p for g in groups for p in g.paths], level)
    places = {path: n for n, group in enumerate(groups) for path in group.paths}
    sites = {
        site.address: (site, places[site.path])
        for site in traced.uses.sites
        if site.primitive in PRODUCTS
    }
    _, fn = switched(traced, sites, level, decided)
    params, inputs = list(named.values()), list(data.calls[0].arrays)
    run = lambda flags: np.asarray(fn(np.asarray(flags, np.float32), params, inputs)[0])
    off = run([0, 0, 0, 0, 0])
    want = np.asarray(jax.jit(network)(PARAMS, *inputs))
    np.testing.assert_allclose(off, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(run([1, 0, 0, 0, 0]), off)  # a gather has no other operand
    for place in (1, 2, 3, 4):
        flags = np.zeros(5)
        flags[place] = 1
        assert (run(flags) != off).any(), groups[place].name


def test_what_cannot_be_quantized_is_not_sensitive():
    params = {"w": normal(64, 64), "odd": normal(64, 64)}
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ jnp.sin(p["odd"]) @ p["odd"]
    x = np.ones((3, 64), np.float32)
    model = ji.from_function(fn, params, (x,))
    groups = find_groups(model, [x])
    found = sensitivities(model, read(model, [x], check=False), groups, "W8A16")
    assert found["odd"] == 0  # blocked: something else needs its values
    assert found["w"] > 1e-4


def test_a_model_quantized_already_stays_as_it_is(case):
    model, data, groups = case
    small = ji.quantize("W8A16")(model)
    assert set(sensitivities(small, data, groups, "W8A16").values()) == {0.0}


def test_weights_of_one_group_only_are_made(case):
    model, data, _ = case
    named, level = leaves(model.params), read_level("bf16+W8A8")
    (traced,) = trace(model, data.calls[0].arrays)
    decided = decisions(named, traced, ["up.w"], level)
    made = level_weights({"up.w": named["up.w"]}, level, decided)
    half = named["up.w"].astype(jnp.bfloat16)
    step = np.abs(np.asarray(half, np.float32)).max(0) / 127
    assert list(made) == ["up.w"]
    assert made["up.w"].dtype == jnp.float32
    # half a step of int8, and a rounding to bfloat16 on each side
    off = np.abs(np.asarray(made["up.w"]) - np.asarray(named["up.w"]))
    assert (off <= step / 2 + 2 * 2**-9 * np.abs(np.asarray(named["up.w"])).max()).all()


@pytest.mark.slow
def test_padding_rows_do_not_count(case):
    """Seven samples in calls of six: the second call is filled, which must change nothing."""
    model, _, groups = case
    ids, x = (np.concatenate(both)[:7] for both in zip(*batches(), strict=True))
    filled = read(model, [(ids[:6], x[:6]), (ids[6:], x[6:])], check=False)
    assert [call.size for call in filled.calls] == [6, 1]
    whole = read(model, [(ids, x)], check=False)
    got, want = (sensitivities(model, each, groups[3:4], "W8A8") for each in (filled, whole))
    assert got["up"] == pytest.approx(want["up"], rel=1e-3)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "bfloat16", "float16"])
def test_rounding_survives_the_compiler(dtype):
    """XLA may take conversions to a narrower float and back for superfluous; these must stay."""
    x = normal(5, 64)
    if dtype == "float8_e4m3fn":
        got = jax.jit(lambda x: _fake(x, format_of(dtype), (1,), False))(x)
        scale = np.abs(np.asarray(x)).max(1, keepdims=True) / 448
        want = (np.asarray(x) / scale).astype(jnp.float8_e4m3fn).astype(np.float32) * scale
        # a value in the middle of two codes may go either way by the division's rounding
        close = np.isclose(np.asarray(got), want, rtol=1e-5)
        assert close.mean() > 0.98
    else:
        switch = Switch({}, read_level({"bfloat16": "bf16", "float16": "f16"}[dtype]), {})
        got = jax.jit(switch._rounded)(x)
        np.testing.assert_array_equal(got, np.asarray(x).astype(dtype).astype(np.float32))
    assert (np.asarray(got) != np.asarray(x)).mean() > 0.9


def test_divergence():
    pair = lambda got, want: ([[np.asarray(got)]], [[np.asarray(want)]])
    assert divergence(*pair([3.0, 4.5], [3.0, 4.0])) == pytest.approx(0.1)
    assert divergence(*pair([1.0, np.nan], [1.0, 2.0])) == math.inf
    assert divergence(*pair([1.0, -np.inf], [1.0, -np.inf])) == 0  # infinite in both
    assert divergence(*pair([1.0, np.inf], [1.0, -np.inf])) == math.inf
    assert divergence(*pair([0.0], [0.0])) == 0
    assert divergence(*pair([1, 2, 3, 5], [1, 2, 3, 4])) == 0.25  # integers: the share
    # the worst output counts, whatever the size of the others
    got, want = [[np.array([1000.0]), np.array([1.5])]], [[np.array([1000.0]), np.array([1.0])]]
    assert divergence(got, want) == 0.5


def test_bad_input(case):
    model, data, groups = case
    with pytest.raises(InputError, match="no such level; known: W8A8"):
        sensitivities(model, data, groups, "W8A9")
    with pytest.raises(InputError, match="holds no call"):
        sensitivities(model, data.pick([]), groups, "W8A8")
