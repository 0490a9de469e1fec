"""Masks where they belong, of exact sparsity, along the right axes; and every bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.core.audit import Audit
from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.core.leaves import leaves, map_leaves
from jaxinfer.core.selectors import rule
from jaxinfer.core.transform import TRANSFORMS, chain
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.sparse import Compressed
from jaxinfer.transforms.prune import finalize, masks, prune, with_sparsity
from tests.laws.programs import PROGRAMS


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def of(fn, params, *inputs):
    return ji.from_function(fn, params, inputs)


def mlp(seed=0):
    params = {
        "table": normal(11, 8, seed=seed),
        "first": {"w": normal(8, 12, seed=seed + 1), "b": normal(12, seed=seed + 2)},
        "second": {"w": normal(5, 12, seed=seed + 3), "b": normal(5, seed=seed + 4)},
        "gain": normal(3, 8, seed=seed + 5),
        "mixed": normal(5, 4, seed=seed + 6),
        "unused": normal(2, 2),
        "steps": jnp.zeros((2, 2), jnp.int32),
    }

    def fn(p, ids):
        x = p["table"][ids] * p["gain"]
        x = jnp.tanh(x @ p["first"]["w"] + p["first"]["b"])
        x = x @ p["second"]["w"].T + p["second"]["b"] + p["steps"].sum()
        return x @ p["mixed"] + jnp.tanh(p["mixed"]).sum()

    return of(fn, params, jnp.array([[0, 3, 10]]))


def zeros(mask):
    return mask.size - int(mask.sum())


def statuses(model):
    return {entry.path: entry.status for entry in model.audit()["prune"]}


def assert_pruned_function(model, pruned, *inputs):
    """The pruned model is the function of the weights with zeros."""
    written = map_leaves(
        lambda path, leaf: leaf.materialize() if isinstance(leaf, Masked) else leaf, pruned.params
    )
    got, want = jax.jit(pruned.apply)(pruned.params, *inputs), model.apply(written, *inputs)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, got, want)


def test_what_is_pruned_and_what_is_not():
    model = mlp()
    pruned = prune()(model)
    assert statuses(pruned) == {
        "table": "unfit",  # an embedding
        "first.w": "changed",
        "first.b": "unfit",
        "second.w": "changed",
        "second.b": "unfit",
        "gain": "blocked",
        "mixed": "blocked",
        "unused": "unused",
        "steps": "unfit",
    }
    entries = {entry.path: entry for entry in pruned.audit()["prune"]}
    assert "anywhere=True" in entries["table"].why
    assert "embedding" in entries["table"].why
    assert "tanh" in entries["mixed"].why
    assert "test_prune.py" in entries["mixed"].source
    assert (entries["first.w"].before, entries["first.w"].after) == (384, 480)
    assert entries["first.w"].why == "unstructured, 50.00 % zero"
    assert_pruned_function(model, pruned, jnp.array([[0, 3, 10]]))
    assert isinstance(leaves(model.params)["first.w"], jax.Array), "the model given stays dense"
    with pytest.raises(InputError, match=r"prune: blocked:\n.*gain.*mul.*\n.*mixed.*tanh"):
        prune(strict=True)(model)
    json.dumps(dict(pruned.provenance))


def test_anywhere_prunes_all_of_them_and_is_right():
    model = mlp()
    rules = [rule("table|gain|mixed", anywhere=True), rule(".*w", ignore=True)]
    pruned = prune(rules=rules, sparsity=0.25)(model)
    assert set(masks(pruned)) == {"table", "gain", "mixed"}
    assert_pruned_function(model, pruned, jnp.array([[0, 3, 10]]))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.999])
def test_sparsity_is_exact_with_ties(sparsity):
    w = jnp.ones((7, 11))
    pruned = prune(sparsity=sparsity)(of(lambda w, x: x @ w, w, jnp.ones((2, 7))))
    mask = masks(pruned)["value"]
    assert zeros(mask) == round(sparsity * 77)
    kept = np.asarray(mask).ravel()
    assert kept[: kept.sum()].all(), "of equals the earlier are kept"


def grouped_counts(mask, axis, m=4):
    mask = np.moveaxis(np.asarray(mask), axis, -1)
    return mask.reshape(*mask.shape[:-1], -1, m).sum(-1)


def conv(numbers):
    return lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def scanned(w, x):
    return lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, w)[0]


NM = {
    "x @ w": (lambda w, x: x @ w, (8, 5), (3, 8), 0),
    "x @ w.T": (lambda w, x: x @ w.T, (5, 8), (3, 8), 1),
    "hwio": (conv(("NHWC", "HWIO", "NHWC")), (3, 3, 8, 6), (2, 4, 5, 8), 2),
    "oihw": (conv(("NCHW", "OIHW", "NCHW")), (6, 8, 3, 3), (2, 8, 4, 5), 1),
    "scan": (scanned, (3, 8, 8), (2, 8), 1),
    "vmap": (lambda w, x: jax.vmap(jnp.dot, (0, 0))(x, w), (3, 8, 5), (3, 2, 8), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", NM)
def test_nm_runs_along_the_contracting_axis(name):
    fn, shape, inputs, axis = NM[name]
    model = of(fn, normal(*shape), normal(*inputs, seed=1))
    pruned = prune(pattern="2:4")(model)
    mask = masks(pruned)["value"]
    assert (grouped_counts(mask, axis) == 2).all()
    assert all(
        not (grouped_counts(mask, other) == 2).all()
        for other in range(len(shape))
        if other != axis and shape[other] % 4 == 0
    ), "and along no other"
    (entry,) = pruned.audit()["prune"]
    assert entry.why == f"2:4 along axis {axis}, 50.00 % zero"
    assert_pruned_function(model, pruned, normal(*inputs, seed=1))
    small = finalize(pruned, compress=True)
    assert isinstance(small.params, Compressed)
    assert small.params.nbytes < model.params.nbytes
    np.testing.assert_array_equal(small.params.materialize(), pruned.params.materialize())
    if name in ("x @ w.T", "oihw", "scan"):
        x = normal(*inputs, seed=1)
        np.testing.assert_allclose(small(x), pruned(x), rtol=1e-6, atol=1e-6)


def test_nm_where_products_disagree_and_where_the_rule_says_the_axis():
    model = of(lambda w, x: jnp.tanh(x @ w) @ w.T, normal(8, 4), jnp.ones((2, 8)))
    (entry,) = prune(pattern="2:4")(model).audit()["prune"]
    assert (entry.status, "[0], [1]" in entry.why) == ("blocked", True)
    with pytest.raises(InputError, match="different axes"):
        prune(pattern="2:4", strict=True)(model)
    pruned = prune(pattern="2:4", rules=[rule(".*", axis=-1)])(model)
    assert (grouped_counts(masks(pruned)["value"], 1) == 2).all()
    with pytest.raises(InputError, match="value: axis=2, required one of its 2 axes"):
        prune(pattern="2:4", rules=[rule(".*", axis=2)])(model)


def test_channels_and_blocks():
    model = of(lambda w, x: jnp.einsum("btd,dnh->btnh", x, w), normal(8, 3, 5), normal(2, 3, 8))
    mask = np.asarray(masks(prune(pattern="channel", sparsity=0.4)(model))["value"])
    assert (mask == mask[:1]).all()
    assert mask[0].sum() == 9
    mask = np.asarray(masks(prune(pattern="block:3x5", sparsity=0.5)(model))["value"])
    assert (mask == mask[:, :1, :1]).all()
    assert mask[:, 0, 0].sum() == 4
    (entry,) = prune(pattern="block:2x2x2x2")(model).audit()["prune"]
    assert (entry.status, entry.why) == ("blocked", "it has 3 axes, a block 4")
    vector = of(lambda w, x: x @ w, normal(8), normal(2, 8))
    assert "no output channels" in prune(pattern="channel")(vector).audit()["prune"].entries[0].why


def test_global_and_erk_meet_the_total():
    model = mlp()
    scale = lambda path, leaf: leaf * 5 if path == "first.w" else leaf
    model = model.replace(params=map_leaves(scale, model.params))
    found = masks(prune(sparsity=0.3, scope="global")(model))
    assert zeros(found["first.w"]) + zeros(found["second.w"]) == round(0.3 * (96 + 60))
    assert zeros(found["first.w"]) < zeros(found["second.w"])
    found = masks(prune(sparsity=0.6, distribution="erk")(model))
    assert zeros(found["first.w"]) + zeros(found["second.w"]) == round(0.6 * (96 + 60))
    assert zeros(found["first.w"]) / 96 > zeros(found["second.w"]) / 60


def test_random_depends_on_key_and_path_alone():
    model = mlp()
    one, same = masks(prune("random", key=3)(model)), masks(prune("random", key=3)(model))
    other = masks(prune("random", key=jax.random.key(4))(model))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert (one["first.w"] != other["first.w"]).any()
    alone = masks(prune("random", key=3, rules=[rule("first.w", ignore=True)])(model))
    np.testing.assert_array_equal(alone["second.w"], one["second.w"])
    with pytest.raises(InputError, match="requires key="):
        prune(rules=[rule(".*", method="random")])


def test_scores_of_the_user():
    model = mlp()
    scores = {path: -jnp.abs(leaf) for path, leaf in leaves(model.params).items() if "w" in path}
    found = masks(prune("scores", scores=scores)(model))
    keep = jnp.abs(leaves(model.params)["first.w"]) < 0.6
    assert (found["first.w"] & keep).sum() > (found["first.w"] & ~keep).sum()
    tree = jax.tree.map(lambda leaf: -jnp.abs(leaf), model.params)
    jax.tree.map(np.testing.assert_array_equal, masks(prune("scores", scores=tree)(model)), found)
    bad = {"first.x": scores["first.w"], "second.w": jnp.ones((5, 11))}
    with pytest.raises(InputError, match=r"first.w: no scores; near: first.x\n.*\(5, 11\)"):
        prune("scores", scores=bad)(model)
    with pytest.raises(InputError, match=r"first.w: 96 of 96 scores are NaN"):
        prune("scores", scores={**scores, "first.w": scores["first.w"] * jnp.nan})(model)
    with pytest.raises(InputError, match="requires scores="):
        prune("scores")(model)


def test_rules_have_their_own_settings():
    rules = [rule("first.*", pattern="2:4"), rule("second.w", sparsity=0.9), rule(".*")]
    found = masks(prune(sparsity=0.2, rules=rules)(mlp()))
    assert (grouped_counts(found["first.w"], 0) == 2).all()
    assert zeros(found["second.w"]) == round(0.9 * 60)
    rules = [rule("first.*", pattern="unstructured")]
    found = masks(prune(pattern="1:4", rules=rules)(mlp()))
    assert zeros(found["first.w"]) == 48
    assert zeros(found["second.w"]) == 45


BAD = {
    "method": ({"method": "magnitud"}, "did you mean 'magnitude'"),
    "pattern": ({"pattern": "unstructred"}, "did you mean 'unstructured'"),
    "nm": ({"pattern": "5:4"}, "required 1 <= n <= m"),
    "nm sparsity": ({"pattern": "2:4", "sparsity": 0.8}, "2:4 is a sparsity of 0.5, got"),
    "block": ({"pattern": "block:0x4"}, "sizes of at least 1"),
    "scope": ({"scope": "globally"}, "did you mean 'global'"),
    "distribution": ({"distribution": "erq"}, "did you mean 'erk'"),
    "one": ({"sparsity": 1.0}, r"required a number in \[0, 1\), got 1.0"),
    "negative": ({"sparsity": -0.1}, r"got -0.1"),
    "bool": ({"sparsity": True}, "got True"),
    "nan": ({"sparsity": float("nan")}, "got nan"),
    "contradiction": ({"scope": "global", "distribution": "erk"}, "leave one of them out"),
    "global pattern": ({"scope": "global", "pattern": "2:4"}, "is for pattern 'unstructured'"),
    "rule": ({"rules": [rule("a", sparsity=2)]}, r"rule 1 \('a'\): sparsity"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_words(name):
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        prune(**options)


def test_all_bad_words_at_once_and_bad_rules():
    with pytest.raises(InputError, match=r"method(.|\n)*sparsity(.|\n)*scope(.|\n)*rule 1"):
        prune("x", sparsity=3, scope="y", rules=[rule("a", pattern="z")])
    with pytest.raises(InputError, match="unknown setting 'sparsty'; known: sparsity"):
        prune(rules=[rule(".*", sparsty=0.3)])(mlp())
    with pytest.raises(InputError, match="matches no path"):
        prune(rules=[rule("frist.w", ignore=True)])(mlp())


def test_nan_weights_are_named():
    model = mlp()
    spoil = lambda path, leaf: leaf.at[0, :2].set(jnp.nan) if path == "second.w" else leaf
    model = model.replace(params=map_leaves(spoil, model.params))
    with pytest.raises(InputError, match=r"second\.w: 2 of 60 weights are NaN"):
        prune()(model)
    prune(rules=[rule("second.w", ignore=True)])(model)


def test_state_is_the_masks_and_update_is_deterministic():
    model, transform = mlp(), prune(sparsity=0.7)
    state = transform.init(model)
    assert set(state) == {"first.w", "second.w"}
    pruned = transform.update(model, state)
    jax.tree.map(np.testing.assert_array_equal, masks(pruned), state)
    same = transform(model)
    jax.tree.map(np.testing.assert_array_equal, pruned.params, same.params)
    assert pruned.provenance == same.provenance
    with pytest.raises(InputError, match=r"other parameters.*first\.w"):
        transform.update(model, {"second.w": state["second.w"]})
    with pytest.raises(InputError, match="required the weight's shape"):
        transform.update(model, {**state, "first.w": state["second.w"]})
    with pytest.raises(InputTypeError, match="required bool"):
        transform.update(model, {**state, "first.w": state["first.w"] * 1})


def test_stages():
    assert TRANSFORMS["prune"] is prune
    assert prune().stage == "prune"
    with pytest.raises(InputError, match="been through it already"):
        prune()(prune()(mlp()))
    with pytest.raises(InputError, match="been through it already"):
        chain(prune(), prune())


def test_with_sparsity_is_nested_and_keeps_proportions():
    model = mlp()
    rules = [rule("second.w", sparsity=0.25), rule(".*")]
    pruned = prune(sparsity=0.5, rules=rules)(model)
    more = with_sparsity(pruned, 0.8)
    first, then = masks(pruned), masks(more)
    assert not any((then[path] & ~first[path]).any() for path in first)
    assert zeros(then["first.w"]) == round(0.8 * 96)
    assert zeros(then["second.w"]) == round(0.4 * 60)
    less = masks(with_sparsity(more, 0.1))
    jax.tree.map(np.testing.assert_array_equal, less, masks(prune(sparsity=0.1, rules=[
        rule("second.w", sparsity=0.05), rule(".*")])(model)))  # fmt: skip
    assert isinstance(more.audit()["with_sparsity"], Audit)
    whole = with_sparsity(prune("random", key=7, scope="global")(model), 0.6)
    jax.tree.map(
        np.testing.assert_array_equal,
        masks(whole),
        masks(prune("random", key=7, scope="global", sparsity=0.6)(model)),
    )
    for bad in (1.0, -0.5, True):
        with pytest.raises(InputError, match=r"in \[0, 1\)"):
            with_sparsity(pruned, bad)
    with pytest.raises(InputError, match=r"required a model of ji\.prune"):
        with_sparsity(model, 0.5)
    with pytest.raises(InputError, match="every masked parameter is n:m"):
        with_sparsity(prune(pattern="2:4")(model), 0.5)
    own = prune("scores", scores=jax.tree.map(jnp.abs, model.params))(model)
    with pytest.raises(InputError, match="scores were yours"):
        with_sparsity(own, 0.5)


def test_finalize_writes_the_zeros():
    model = mlp()
    pruned = prune(rules=[rule("first.w", pattern="2:4"), rule(".*")])(model)
    plain = finalize(pruned)
    assert not masks(plain)
    assert leaves(plain.params)["first.w"].dtype == jnp.float32
    assert int((leaves(plain.params)["first.w"] == 0).sum()) == 48
    ids = jnp.array([[0, 3, 10]])
    np.testing.assert_array_equal(plain(ids), pruned(ids))
    small = finalize(pruned, compress=True)
    assert isinstance(leaves(small.params)["first.w"], Compressed)
    assert isinstance(leaves(small.params)["second.w"], jax.Array)
    np.testing.assert_array_equal(small(ids), pruned(ids))
    why = {entry.path: entry.why for entry in small.audit()["finalize"]}
    assert why["first.w"] == "2:4 compressed along axis 0"
    assert "not compressed: the pattern is not n:m" in why["second.w"]
    with pytest.raises(InputError, match="no masked parameter"):
        finalize(plain)


def test_components_are_pruned_together():
    from jaxinfer.core.multi import MultiProgram

    fns = {"prefill": lambda p, x: x @ p["a"], "decode": lambda p, x: (x @ p["a"]) @ p["b"]}
    params = {"a": normal(8, 4), "b": normal(4, 4, seed=1)}
    programs = {name: of(fn, params, jnp.ones((2, 8))).program for name, fn in fns.items()}
    model = ji.Model(MultiProgram(programs), params)
    pruned = prune(pattern="2:4")(model)
    assert statuses(pruned) == {"a": "changed", "b": "changed"}
    for name, part in pruned.components.items():
        assert_pruned_function(model.components[name], part, normal(2, 8, seed=2))


@pytest.mark.parametrize("name", ["both_ways", "conv_turned", "linen_scan", "heads_split"])
def test_programs(name):
    program = PROGRAMS[name]
    inputs = program.inputs(3, 0)
    model = of(program.fn, program.params(0), *inputs)
    pruned = prune(sparsity=0.4)(model)
    for entry in pruned.audit()["prune"]:
        uses = {use.primitive for use in program.weights[entry.path]}
        assert (entry.status == "changed") == (
            program.verdict(entry.path) == "site" and uses != {"gather"}
        )
    assert_pruned_function(model, pruned, *inputs)
