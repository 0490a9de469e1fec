"""Groups: by use, never by shape; by block, as fine as the number allows; of folded names too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.core.flops import count
from jaxinfer.core.leaves import leaves
from jaxinfer.core.trace import trace
from jaxinfer.tune._layers_products import example_of, products_of
from jaxinfer.tune.groups import Group, find_groups, group_of

D = 8


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def block(seed):
    names = ("q", "k", "v", "out")
    linear = lambda n: {"weight": normal(D, D, seed=seed + n), "bias": jnp.zeros(D)}
    return {
        "attn": {name: linear(n) for n, name in enumerate(names)},
        "mlp": {"up": {"weight": normal(D, 2 * D)}, "down": {"weight": normal(2 * D, D)}},
        "norm": {"scale": jnp.ones(D)},
    }


def transformer(count_):
    params = {
        "embed": {"weight": normal(11, D)},
        "layers": {str(n): block(n) for n in range(count_)},
        "head": {"weight": normal(D, 3)},
    }

    def fn(p, ids):
        x = p["embed"]["weight"][ids]
        for n in range(count_):
            layer = p["layers"][str(n)]
            at = {k: x @ v["weight"] + v["bias"] for k, v in layer["attn"].items() if k != "out"}
            mixed = jax.nn.softmax(at["q"] @ at["k"].swapaxes(-1, -2)) @ at["v"]
            x = x + mixed @ layer["attn"]["out"]["weight"] + layer["attn"]["out"]["bias"]
            x = x * layer["norm"]["scale"]
            x = x + jnp.tanh(x @ layer["mlp"]["up"]["weight"]) @ layer["mlp"]["down"]["weight"]
        return x @ p["head"]["weight"]

    ids = jnp.zeros((2, 5), jnp.int32)
    return ji.from_function(fn, params, (ids,)), [ids]


def test_blocks_are_as_fine_as_the_number_allows():
    model, arrays = transformer(3)
    finest = [g.name for g in find_groups(model, arrays)]
    one = ["attn", "attn.out", "mlp.up", "mlp.down"]
    assert finest == [
        "embed",
        *(f"layers.{n}.{name}" for n in range(3) for name in one),
        "head",
    ]
    by_part = [g.name for g in find_groups(model, arrays, most=9)]
    assert by_part == [
        "embed", *(f"layers.{n}.{name}" for n in range(3) for name in ("attn", "mlp")), "head",
    ]  # fmt: skip
    assert [g.name for g in find_groups(model, arrays, most=5)] == [
        "embed", "layers.0", "layers.1", "layers.2", "head",
    ]  # fmt: skip


def test_neighbours_are_joined_where_a_cut_would_be_too_coarse():
    model, arrays = transformer(6)
    names = [g.name for g in find_groups(model, arrays, most=5)]
    assert names == ["embed", "layers.0..1", "layers.2..3", "layers.4..5", "head"]
    (everything,) = find_groups(model, arrays, most=1)
    assert everything.name == "all"
    assert len(everything.paths) == 6 * 6 + 2


def test_every_parameter_of_a_product_is_in_one_group_and_flops_add_up():
    model, arrays = transformer(3)
    for most in (1, 2, 3, 5, 8, 13, 24):
        groups = find_groups(model, arrays, most)
        assert len(groups) <= most
        paths = [path for group in groups for path in group.paths]
        assert len(paths) == len(set(paths))
        assert set(paths) == {p for p in leaves(model.params) if p.endswith(".weight")}
        products = [p for p in products_of(model, arrays).all if p.site is not None]
        assert sum(g.flops for g in groups) == sum(p.flops for p in products)
    dots = count(trace(model, example_of(model, arrays))[0].jaxpr).by_primitive["dot_general"]
    assert sum(p.flops for p in products_of(model, arrays).all) == dots
    # 2 * 10 rows, by hand: q, k, v, out of 8 x 8, up and down of 8 x 16, three layers; the head
    assert sum(g.flops for g in groups) == 2 * 10 * (3 * (4 * 64 + 2 * 128) + 24)


def test_flops_follow_the_shapes_of_the_call():
    params = {"w": normal(7, 3)}
    model = ji.from_function(lambda p, x: x @ p["w"], params, (normal(2, 7),))
    (group,) = find_groups(model, [jax.ShapeDtypeStruct((5, 7), "float32")])
    assert group == Group("w", ("w",), 2 * 5 * 7 * 3)
    assert find_groups(model, {"x": (5, 7)}) == [group]


def test_scan_counts_its_trips_and_a_stack_is_one_parameter():
    params = {"layer.*.w": normal(5, D, D), "out.w": normal(D, 2)}

    def fn(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layer.*.w"])
        return x @ p["out.w"]

    x = normal(3, D)
    groups = find_groups(ji.from_function(fn, params, (x,)), [x])
    assert groups == [
        Group("layer.*", ("layer.*.w",), 5 * 2 * 3 * D * D),
        Group("out", ("out.w",), 2 * 3 * D * 2),
    ]


def test_branches_count_the_dearest_and_are_never_certain():
    params = {"a": normal(D, D), "b": normal(D, 2 * D)}

    def fn(p, x, flag):
        wide = lambda: jnp.tanh(x @ p["b"]).sum(1)
        return jax.lax.cond(flag, wide, lambda: jnp.tanh(x @ p["a"]).sum(1))

    args = (normal(3, D), jnp.asarray(True))
    model = ji.from_function(fn, params, args)
    assert {g.name: g.flops for g in find_groups(model, args)} == {"a&b": 2 * 3 * D * 2 * D}
    assert not any(p.certain for p in products_of(model, args).all)


def test_what_no_product_uses_and_integers_are_in_no_group():
    params = {"w": normal(D, D), "gain": jnp.ones(D), "table": jnp.arange(4), "rows": normal(4, D)}
    fn = lambda p, i: (p["rows"][p["table"][i]] * p["gain"]) @ p["w"]
    i = jnp.zeros(3, jnp.int32)
    groups = find_groups(ji.from_function(fn, params, (i,)), [i])
    assert [(g.name, g.flops) for g in groups] == [("rows", 0), ("w", 2 * 3 * D * D)]


def test_array_types_are_grouped_as_what_they_stand_for():
    model = ji.from_function(lambda p, x: x @ p["w"], {"w": normal(64, 3)}, (normal(2, 64),))
    small = ji.quantize("W8A16")(model)
    assert type(small.params["w"]).__name__ == "QTensor"
    assert find_groups(small, {"x": (2, 64)}) == find_groups(model, {"x": (2, 64)})


def test_tied_weights_are_in_the_group_of_their_first_use():
    params = {"embed": normal(11, D), "w": normal(D, D)}
    fn = lambda p, i: jnp.tanh(p["embed"][i] @ p["w"]) @ p["embed"].T
    i = jnp.zeros(3, jnp.int32)
    groups = find_groups(ji.from_function(fn, params, (i,)), [i])
    assert groups[0] == Group("embed", ("embed",), 2 * 3 * D * 11)


def test_folded_parameters_belong_to_the_group_of_their_parts():
    model, arrays = transformer(2)
    folded = ji.fold()(model)
    joined = [path for path in leaves(folded.params) if "&" in path and "bias" not in path]
    assert len(joined) == 2
    for most in (24, 6, 4):
        groups = find_groups(model, arrays, most)
        for n, path in enumerate(joined):
            assert group_of(path, groups) == group_of(f"layers.{n}.attn.q.weight", groups)


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("a.x.weight", "a"),
        ("a.x.weight.folded", "a"),
        ("a.x&y.weight", "a"),
        ("a.x&y&z.weight", "a"),
        ("a.x.weight&y.weight", "a"),
        ("a.x&z.weight.folded", "a"),
        ("a.x.bias", "a"),
        ("a.norm.scale", "a"),
        ("a.x&b.u.weight", None),  # its parts are in different groups
        ("b.u.bias", "b.u"),
        ("b.norm.scale", None),  # which group of b?
        ("norm.scale", None),
        ("a.x&unknown.weight", None),
        ("a.x.weight&6_others", None),
    ],
)
def test_group_of(path, want):
    paths = ("a.x.weight", "a.y.weight", "a.z.weight")
    groups = [
        Group("a", paths, 1),
        Group("b.u", ("b.u.weight",), 1),
        Group("b.v", ("b.v.weight",), 1),
    ]
    assert group_of(path, groups) == want


def test_bad_input():
    model, arrays = transformer(1)
    with pytest.raises(InputError, match="most: required a whole number from 1 on, got 0"):
        find_groups(model, arrays, most=0)
    with pytest.raises(InputError, match="required 1 arrays, got 2"):
        find_groups(model, arrays * 2)
    with pytest.raises(InputError, match="required the inputs x, got y"):
        find_groups(model, {"y": (2, 5)})
