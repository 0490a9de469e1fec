"""The table of layers: every group once, times where they were taken, and what was left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.tune import _layers_times
from jaxinfer.tune import layers as layers_module
from jaxinfer.tune._layers_levels import read_level
from jaxinfer.tune._layers_products import products_of
from jaxinfer.tune._layers_times import _function, group_times
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.groups import find_groups
from jaxinfer.tune.layers import GroupTimes, layers, product_times
from jaxinfer.tune.results import Layer
from tests.tune.test_device import handmade

HIGHEST = jax.lax.Precision.HIGHEST
PARAMS = {
    "table": jnp.ones((6, 10)),
    "stack": jnp.ones((3, 10, 10)),
    "up": jnp.full((10, 20), 0.1),
    "head": jnp.full((20, 10), 0.1),
    "last": jnp.full((10, 20), 0.1),
}


def network(p, ids):
    dot = lambda x, w: jnp.dot(x, w, precision=HIGHEST)
    x = p["table"][ids]
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(dot(x, w)), None), x, p["stack"])
    return dot(jnp.tanh(dot(jnp.tanh(dot(x, p["up"])), p["head"])), p["last"])


IDS = np.zeros(4, np.int32)
RATES = {"matmul": {"float32": {"a": 1e9}, "int8": {"a": 4e9}}}
DEVICE = handmade(rates=RATES, load=0.0)


@pytest.fixture(scope="module")
def case():
    model = ji.from_function(network, PARAMS, (IDS,))
    return model, find_groups(model, [IDS])


def test_every_group_has_a_row(case):
    model, groups = case
    candidate = Candidate(precision="W8A8", groups=(("head", "f32"),))
    made = layers(model, candidate, groups, [IDS], DEVICE, {"up": 0.25}, level="W8A8")
    assert [each.name for each in made] == ["table", "stack", "up", "head", "last"]
    by_name = {each.name: each for each in made}
    assert [each.precision for each in made] == ["W8A8", "W8A8", "W8A8", "f32", "W8A8"]
    assert [each.parameters for each in made] == [60, 300, 200, 200, 200]
    assert by_name["stack"].flops == 3 * 2 * 4 * 100
    assert by_name["up"].sensitivity == 0.25
    assert by_name["up"].sensitivity_level == "W8A8"
    assert by_name["head"].sensitivity is None
    # the roofline at each group's own rate, without a margin
    assert by_name["up"].bound_ms == pytest.approx(1e3 * 2 * 4 * 200 / 4e9)
    assert by_name["head"].bound_ms == pytest.approx(1e3 * 2 * 4 * 200 / 1e9)
    assert by_name["table"] == Layer("table", 60, 0, "W8A8")  # only gathered
    timed = [each for each in made if each.time_ms is not None]
    assert len(timed) == 4
    assert sum(each.time_share for each in timed) == pytest.approx(1)
    for each in timed:
        assert each.time_ms > 0
        assert each.achieved == pytest.approx(each.bound_ms / each.time_ms)


def test_equal_products_are_compiled_once(case, monkeypatch):
    model, groups = case
    made = []

    class Call:
        best = 2e-3

        def __init__(self, product, level):
            made.append((product.path, level.scheme))

        def time(self):
            pass

    monkeypatch.setattr(_layers_times, "_Call", Call)
    found = group_times(model, groups, [IDS], {g.name: ("f32", "W8A8") for g in groups})
    # last is as up, so both come first; each at both levels
    assert made == [(p, s) for p in ("up", "stack", "head") for s in ("", "W8A8")]
    assert found.ms["stack"] == {"f32": 6.0, "W8A8": 6.0}  # three trips
    assert found.ms["up"] == found.ms["last"] == {"f32": 2.0, "W8A8": 2.0}
    assert found.ms["table"] == {"f32": None, "W8A8": None}
    assert found.notes == []


def test_what_is_not_reached_has_no_time_and_is_said(case):
    model, groups = case
    said = []
    made = layers(model, Candidate(), groups, [IDS], DEVICE, seconds=0.0, note=said.append)
    assert all(each.time_ms is None and each.time_share is None for each in made)
    assert said == ["3 products were not timed: 0 s were over"]


def test_what_fails_is_said_and_the_rest_goes_on(case, monkeypatch):
    model, groups = case
    real = _layers_times._function

    def fails(product, level):
        if product.path == "head":
            raise RuntimeError("no kernel")
        return real(product, level)

    monkeypatch.setattr(_layers_times, "_function", fails)
    found = group_times(model, groups, [IDS], {g.name: ("f32",) for g in groups}, seconds=5)
    assert found.ms["head"]["f32"] is None
    assert found.ms["up"]["f32"] > 0
    (note,) = found.notes
    assert note == "not timed: dot_general [4, 20] x [20, 10] at f32: RuntimeError: no kernel"


def test_openvino_is_not_timed_alone(case):
    model, groups = case
    said = []
    candidate = Candidate(backend="openvino", precision="int8")
    made = layers(model, candidate, groups, [IDS], DEVICE, note=said.append)
    assert all(each.time_ms is None for each in made)
    assert said == ["layers are not timed alone by openvino"]


@pytest.mark.parametrize(
    ("level", "dtypes"),
    [
        ("f32", ("float32", "float32", "float32")),
        ("bf16", ("bfloat16", "bfloat16", "bfloat16")),
        ("W8A16", ("float32", "QTensor", "float32")),
        ("W8A8", ("float32", "ActQTensor", "float32")),
        ("W8A8-static", ("float32", "ActQTensor", "float32")),
        ("W4A16", ("float32", "QTensor", "float32")),
        ("bf16+W8A8", ("bfloat16", "ActQTensor", "bfloat16")),
    ],
)
def test_a_product_is_timed_as_a_model_of_that_level_computes_it(case, level, dtypes):
    model, _ = case
    product = next(p for p in products_of(model, [IDS]).all if p.path == "head")
    fn, given = _function(product, read_level(level))
    name = lambda v: type(v).__name__ if hasattr(v, "materialize") else v.dtype.name
    (out,) = fn(*given)
    assert (*map(name, given), out.dtype.name) == dtypes
    x, w = (np.asarray(getattr(v, "materialize", lambda v=v: v)(), np.float64) for v in given)
    want = x @ w
    # halves round the result to 2**-9; int8 activations are off by 1/254 of the largest of 20
    tol = {"f32": 1e-6, "W8A16": 1e-6, "W4A16": 1e-6}.get(level, 0.03)
    assert np.abs(np.asarray(out, np.float64) - want).max() < tol * np.abs(want).max()


def test_products_with_batch_axes_and_convolutions_are_timed():
    params = {"k": jnp.ones((3, 2, 4)), "m": jnp.ones((3, 4, 5))}

    def fn(p, x):
        x = jax.lax.conv_general_dilated(
            x, p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jnp.einsum("btc,bco->bto", x, p["m"])

    x = np.ones((3, 6, 2), np.float32)
    model = ji.from_function(fn, params, (x,))
    groups = find_groups(model, [x])
    found = group_times(model, groups, [x], {g.name: ("bf16", "W8A8") for g in groups})
    assert found.notes == []
    assert all(ms > 0 for each in found.ms.values() for ms in each.values())


def test_savings_of_what_was_not_timed_follow_the_flops(case, monkeypatch):
    model, groups = case

    def times(*args, **kwargs):
        ms = {
            "table": {"f32": None, "W8A8": None},
            "stack": {"f32": None, "W8A8": 1.0},
            "up": {"f32": 5.0, "W8A8": 2.0},
            "head": {"f32": 2.0, "W8A8": 3.0},
            "last": {"f32": None, "W8A8": None},
        }
        return GroupTimes(ms, [])

    monkeypatch.setattr(layers_module, "group_times", times)
    saved = product_times(model, groups, [IDS], "W8A8")
    # up and head: 2 ms for 3200 FLOPs
    assert saved == pytest.approx(
        {"table": 0.0, "stack": 1.5, "up": 3.0, "head": -1.0, "last": 1.0}
    )
