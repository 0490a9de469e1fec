"""Rules: what they match, what they give, and everything that is wrong with them at once."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.sharding import make_mesh, partition
from jaxinfer.sharding.rules import apply_rules, axes_for, resolve, role_of, rules_of


@pytest.fixture(scope="module")
def mesh():
    return make_mesh("data=2,model=4")


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


LEAVES = {"a.query.weight": shape(12, 8), "a.query.bias": shape(8), "out.weight": shape(8, 12)}


def test_specs_by_pattern(mesh):
    rules = rules_of({r"query\.weight$": (None, "model"), "^out": P("model"), "bias": None})
    found = apply_rules(LEAVES, rules, mesh)
    assert found.specs == {
        "a.query.weight": P(None, "model"),
        "out.weight": P("model"),
        "a.query.bias": P(),
    }
    assert found.why["out.weight"] == "rule '^out'"
    assert found.notes == []


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (("model", None), P("model")),
        (["model", ""], P("model")),
        ("model", P("model")),
        ("-, model", P(None, "model")),
        ((None, ("data", "model")), P(None, ("data", "model"))),
        ([[], ["data", "model"]], P(None, ("data", "model"))),
        (P(None, "data"), P(None, "data")),
        ((), P()),
        ((None, None, None), P()),
        (("embed", "heads"), P(None, "model")),
        (("mlp", "batch"), P("model", "data")),
        (("experts", "vocab"), P(None, "model")),  # the mesh has no expert axis
    ],
)
def test_ways_to_write_a_spec(mesh, spec, want):
    found = apply_rules({"w": shape(8, 8)}, rules_of([("w", spec)]), mesh)
    assert found.specs == {"w": want}


def test_logical_axes_may_be_changed(mesh):
    (one, unknown) = resolve(("embed",), mesh, {"embed": "data"})
    assert (one, unknown) == ([("data",)], [])
    assert resolve(("embed",), mesh, {"embed": ("data", "tensor")})[0] == [("data", "model")]


def test_equal_specs_do_not_conflict(mesh):
    rules = rules_of([("query", ("model",)), ("weight", ("model", None))])
    assert apply_rules({"query.weight": shape(8, 8)}, rules, mesh).specs == {
        "query.weight": P("model")
    }


def test_every_problem_at_once(mesh):
    rules = rules_of(
        [
            ("query", ("model",)),
            ("weight", (None, "data")),
            ("bias", ("nowhere",)),
            ("odd", ("model",)),
            ("twice", ("data", "data")),
            ("deep", (None, None, "data")),
        ]
    )
    leaves = {**LEAVES, "odd": shape(6), "twice": shape(4, 4), "deep": shape(4, 4)}
    with pytest.raises(InputError) as caught:
        apply_rules(leaves, rules, mesh)
    text = str(caught.value)
    for part in (
        "a.query.weight: rules conflict: 'query' gives (model), 'weight' gives (None, data)",
        "rule 'bias': no axis 'nowhere'; the mesh has data=2, model=4, logical axes are batch",
        "odd [6]: axis 0 of size 6 does not divide over model=4 (rule 'odd')",
        "twice [4, 4]: mesh axis 'data' is used 2 times",
        "deep [4, 4]: has 2 axes, the spec (None, None, data) has 3",
    ):
        assert part in text


def test_sizes_over_two_axes_are_named(mesh):
    with pytest.raises(InputError, match=r"w \[4\]: axis 0 of size 4 .* over data=2 x model=4"):
        apply_rules({"w": shape(4)}, rules_of([("w", (("data", "model"),))]), mesh)


def test_a_rule_that_matches_nothing_is_reported(mesh):
    found = apply_rules(LEAVES, rules_of([("quary", ("model",)), ("^inputs.y", ())]), mesh)
    assert found.notes == [
        "rule 'quary' matches no parameter",
        "rule '^inputs.y' matches no input",
    ]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([("(", ())], "'(' is no regular expression"),
        ([(3, ())], "3 is no regular expression"),
        ([("w", 3)], "rule 0 ('w'): a spec is a tuple, a PartitionSpec or names, got 3"),
        ([("w", (3,))], "an entry is a name, a tuple of names or None, got 3"),
        (["w"], "rule 0: required (pattern, spec), got 'w'"),
    ],
)
def test_rules_that_cannot_be_read(given, text):
    with pytest.raises(InputError) as caught:
        rules_of(given)
    assert text in str(caught.value)


def test_roles_by_name(mesh):
    assert [role_of(n) for n in ("dp", "TP", "zero", "ep", "sp", "x")] == [
        *("data", "tensor", "fsdp", "expert", "sequence", "")
    ]
    assert axes_for(mesh, "tensor") == ("model",)


def test_a_plan_by_rules(mesh):
    model = ji.from_function(
        lambda p, x: x @ p["w"] + p["b"],
        {"w": jnp.ones((8, 12)), "b": jnp.ones(12)},
        (jnp.ones((4, 8)),),
    )
    plan = partition(model, mesh, {"w": (None, "model"), "lost": ("data",)})
    assert plan.strategy == "rules"
    assert plan.params == {"w": P(None, "model"), "b": P()}
    assert plan.inputs == (P("data"),)
    assert plan.notes == ("rule 'lost' matches no parameter",)
    assert {row.path: row.why for row in plan.rows} == {
        "w": "rule 'w'",
        "b": "whole: no rule matches",
        "inputs.x": "axis 0 is the batch",
    }
    plan = partition(model, mesh, [("^inputs.x$", (None, "model")), ("w", ("model",))])
    assert plan.inputs == (P(None, "model"),)
    assert plan.rows[-1].why == "rule '^inputs.x$'"
