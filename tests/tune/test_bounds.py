"""Bounds by hand, on a device with round numbers; what may not run must not count."""

import jax
import jax.numpy as jnp
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.tune.bounds import MARGIN, bound_ms, margin, rate_ratio
from jaxinfer.tune.candidate import LEVELS, Candidate
from jaxinfer.tune.groups import find_groups
from tests.tune.test_device import handmade

HIGHEST = jax.lax.Precision.HIGHEST
RATES = {
    "matmul": {
        "float32": {"a": 1e9, "b": 1e9}, "bfloat16": {"a": 2e9, "b": 0.5e9},
        "int8": {"a": 4e9, "b": 2e9}, "float8_e4m3fn": {"a": 0.25e9},
        "float32_default": {"a": 10e9},
    },
    "convolution": {"float32": {"c": 1e9}, "int8": {"c": 3e9}},
    "matvec": {"float32": {"v": 1e8}, "int8": {"v": 1e7}},
    "levels": {"W8A16": {"a": 0.9e9}, "W8A8": {"a": 1.5e9}, "W4A16": {"a": 0.5e9}},
}  # fmt: skip
DEVICE = handmade(rates=RATES, bandwidth=1e9, cache_bytes=0, load=0.0)
FAST = handmade(rates=RATES, bandwidth=0.0, load=0.0)  # no memory to wait for


def mlp(rows=4, precision=HIGHEST):
    params = {"a": {"w": jnp.ones((10, 20))}, "b": {"w": jnp.ones((20, 5))}}

    def fn(p, x):
        x = jnp.tanh(jnp.dot(x, p["a"]["w"], precision=precision))
        return jnp.dot(x, p["b"]["w"], precision=precision)

    x = jnp.ones((rows, 10))
    model = ji.from_function(fn, params, (x,))
    return model, find_groups(model, [x]), [x]


A, B = 2 * 4 * 10 * 20, 2 * 4 * 20 * 5  # FLOPs


def ms(seconds):
    return pytest.approx(1e3 * seconds / MARGIN, rel=1e-9)


def test_compute_is_the_sum_over_groups_at_their_rates():
    model, groups, x = mlp()
    assert bound_ms(model, Candidate(), groups, x, FAST) == ms((A + B) / 1e9)
    assert bound_ms(model, Candidate(precision="bf16"), groups, x, FAST) == ms((A + B) / 2e9)
    mixed = Candidate(precision="W8A8", groups=(("b", "f32"),))
    assert bound_ms(model, mixed, groups, x, FAST) == ms(A / 4e9 + B / 1e9)
    assert bound_ms(model, Candidate(precision="bf16+W8A8"), groups, x, FAST) == ms((A + B) / 4e9)


def test_weights_alone_compute_in_the_base_dtype():
    model, groups, x = mlp()
    for level, rate in (("W8A16", 1e9), ("W4A16", 1e9), ("bf16+W8A16", 2e9)):
        found = bound_ms(model, Candidate(precision=level), groups, x, FAST)
        assert found == ms((A + B) / rate)


def test_the_batch_is_that_of_the_call():
    model, groups, _ = mlp()
    eight = bound_ms(model, Candidate(batch=8), groups, [jnp.ones((8, 10))], FAST)
    assert eight == ms(2 * (A + B) / 1e9)
    assert bound_ms(model, Candidate(batch=8), groups, {"x": (8, 10)}, FAST) == eight


def test_memory_counts_weights_at_their_width_beyond_the_caches():
    model, groups, x = mlp()
    slow = handmade(rates={"matmul": {d: {"a": 1e15} for d in RATES["matmul"]}}, bandwidth=1e6,
                    cache_bytes=0, load=0.0)  # fmt: skip
    inputs = 4 * 40
    for level, width in (("f32", 4), ("bf16", 2), ("W8A16", 1), ("W4A16", 0.5), ("f16", None)):
        found = bound_ms(model, Candidate(precision=level), groups, x, slow)
        want = None if width is None else ms((300 * width + inputs) / 1e6)
        assert found == want
    cached = handmade(rates=slow.rates, bandwidth=1e6, cache_bytes=1000, load=0.0)
    assert bound_ms(model, Candidate(), groups, x, cached) == ms((1200 + inputs - 1000) / 1e6)


def test_a_busy_machine_may_have_hidden_more():
    assert margin(handmade(load=1.0)) == MARGIN
    assert margin(handmade(load=6.0)) == 3 * MARGIN
    assert margin(handmade(load=None)) == MARGIN


def test_devices_share_the_work():
    model, groups, x = mlp()
    four = bound_ms(model, Candidate(mesh="data=2,model=2"), groups, x, FAST)
    assert four == ms((A + B) / 4e9)


def test_what_was_not_measured_has_no_bound():
    model, groups, x = mlp()
    assert bound_ms(model, Candidate(precision="f16"), groups, x, FAST) is None
    assert bound_ms(model, Candidate(backend="openvino"), groups, x, FAST) is None
    with_it = handmade(rates={"openvino": {"float32": {"a": 2e9}, "int8": {"a": 8e9}}},
                       bandwidth=0.0, load=0.0)  # fmt: skip
    own = Candidate(backend="openvino", precision="int8")
    assert bound_ms(model, own, groups, x, with_it) == ms((A + B) / 8e9)
    assert bound_ms(model, own, groups[:1], x, with_it) == ms((A + B) / 8e9)  # NNCF takes all


def test_products_that_ask_for_less_than_float32_may_be_faster():
    model, groups, x = mlp(precision=None)
    assert bound_ms(model, Candidate(), groups, x, FAST) == ms((A + B) / 10e9)


def test_attention_belongs_to_no_group_and_computes_in_the_base_dtype():
    params = {"w": jnp.ones((8, 8))}

    def fn(p, x):
        q = jnp.dot(x, p["w"], precision=HIGHEST)
        return jnp.einsum("td,sd->ts", q, jnp.tanh(x), precision=HIGHEST)

    x = jnp.ones((6, 8))
    model = ji.from_function(fn, params, (x,))
    groups = find_groups(model, [x])
    own, scores = 2 * 6 * 8 * 8, 2 * 6 * 6 * 8
    for level, fast, base in (("f32", 1e9, 1e9), ("W8A8", 4e9, 1e9), ("bf16+W8A8", 4e9, 2e9)):
        found = bound_ms(model, Candidate(precision=level), groups, [x], FAST)
        assert found == ms(own / fast + scores / base)


def test_fused_attention_may_skip_what_is_masked():
    fn = lambda p, x: jnp.dot(jnp.dot(x, p["w"], precision=HIGHEST), jnp.tanh(x).T)
    x = jnp.ones((6, 8))
    model = ji.from_function(fn, {"w": jnp.ones((8, 8))}, (x,))
    found = bound_ms(model, Candidate(attention="cudnn"), find_groups(model, [x]), [x], FAST)
    assert found == ms(2 * 6 * 8 * 8 / 1e9)


def test_what_may_not_run_does_not_count():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    dot = lambda x, w: jnp.dot(x, w, precision=HIGHEST)

    def branch(p, x, flag):
        return jax.lax.cond(flag, lambda: dot(x, p["a"]), lambda: x)

    def loop(p, x, n):
        return jax.lax.fori_loop(0, n, lambda _, y: jnp.tanh(dot(y, p["a"])), x)

    def chain(p, x):
        return dot(dot(x, p["a"]) + 1, p["b"])

    def of_weights(p, x):
        return dot(x, jnp.tanh(dot(p["a"], p["b"])))

    x = jnp.ones((4, 8))
    one = 2 * 4 * 8 * 8

    def bound(fn, *args, fold=False):
        model = ji.from_function(fn, params, args)
        groups = find_groups(model, args)
        return bound_ms(model, Candidate(fold=fold), groups, args, FAST)

    assert bound(branch, x, jnp.asarray(True)) == 0
    assert bound(loop, x, jnp.asarray(3)) == 0
    assert bound(chain, x) == ms(2 * one / 1e9)
    assert bound(chain, x, fold=True) == 0  # folding may make one product of both
    dead = lambda p, x: (dot(x, p["a"]), dot(jnp.tanh(x), p["b"]))[0]
    twice = lambda p, x: jnp.tanh(dot(x, p["a"])) + jnp.sin(dot(x, p["a"]))
    assert bound(dead, x) == ms(one / 1e9)
    assert bound(twice, x) == ms(one / 1e9)
    assert bound(of_weights, x) == ms((one + 2 * 8**3) / 1e9)
    assert bound(of_weights, x, fold=True) == ms(one / 1e9)  # computed once


def test_a_model_that_is_half_precision_already_computes_in_it():
    params = {"w": jnp.ones((8, 8), jnp.bfloat16)}
    x = jnp.ones((4, 8), jnp.bfloat16)
    model = ji.from_function(lambda p, x: x @ p["w"], params, (x,))
    assert bound_ms(model, Candidate(), find_groups(model, [x]), [x], FAST) == ms(512 / 2e9)


def test_rate_ratio_is_that_of_the_best_rates():
    want = {
        "f32": 1.0,
        "bf16": 2.0,
        "f16": None,
        "W8A16": 0.9,  # decoded and multiplied
        "W8A8": 4.0,
        "W8A8-static": 4.0,
        "W4A16": 0.5,
        "FP8": 0.25,
        "int8": None,
        "bf16+W8A16": 1.8,
        "bf16+W8A8": 4.0,
        "f16+W8A16": None,
    }
    assert {level: rate_ratio(level, DEVICE) for level in want} == pytest.approx(want)
    for level in LEVELS:
        rate_ratio(level, DEVICE)  # every level is known
    with_it = handmade(rates={**RATES, "openvino": {"int8": {"a": 6e9}}})
    assert rate_ratio("int8", with_it) == 6.0
    with pytest.raises(InputError, match="precision 'bf61': no such level; known: bf16"):
        rate_ratio("bf61", DEVICE)
