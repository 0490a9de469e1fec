"""Structures round-trip through JSON, keep order, and refuse what they do not describe."""

import copy
import json
import pickle

import jax
import pytest

from jaxinfer.core.structure import LEAF, Output, Structure

NESTED = Structure(
    "dict",
    (
        Structure("tuple", (LEAF, Structure("list", (LEAF,)))),
        Structure("record", (LEAF, LEAF), ("last", "pooled"), "ModelOutput"),
        Structure("namedtuple", (LEAF,), ("x",), "Point"),
    ),
    ("z", "b", "a"),
)


def test_json_round_trip_flatten_and_unflatten():
    again = Structure.from_json(json.loads(json.dumps(NESTED.to_json())))
    assert again == NESTED
    value = again.unflatten(iter(range(5)))
    assert list(value) == ["z", "b", "a"]
    assert value["z"] == (0, [1])
    assert value["b"].pooled == 3
    assert value["a"].x == 4
    problems = []
    assert NESTED.flatten(value, "in", problems) == [0, 1, 2, 3, 4]
    assert not problems
    assert NESTED.paths("in") == ["in.z.0", "in.z.1.0", "in.b.last", "in.b.pooled", "in.a.x"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"z": (0, [1]), "b": None}, "in: required dict with ['z', 'b', 'a'], got dict with"),
        ({"z": (0,), "b": {"last": 1, "pooled": 2}, "a": (1,)}, "in.z: required tuple of 2"),
        ({"z": (0, [1]), "b": 3, "a": (1,)}, "in.b: required ModelOutput"),
        (
            {"z": (0, [[1]]), "b": {"last": 1, "pooled": 2}, "a": (1,)},
            "required an array, got list",
        ),
    ],
)
def test_misfits_name_the_path(value, text):
    problems = []
    NESTED.flatten(value, "in", problems)
    assert any(text in problem for problem in problems), problems


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        {"kind": "class"},
        {"kind": "dict", "children": ["*"], "keys": []},
        {"kind": "tuple", "children": ["*"], "keys": ["a"]},
        {"kind": "dict", "children": ["*"], "keys": [1.5]},
    ],
)
def test_foreign_json_is_refused(data):
    with pytest.raises(ValueError, match=r"not a structure|children|keys"):
        Structure.from_json(data)


def test_output_is_a_read_only_pytree():
    out = Output("Name", ("a", "b"), (1, 2))
    assert (out.a, out["b"], out[1], out[:1], len(out), list(out)) == (1, 2, 2, (1,), 2, ["a", "b"])
    doubled = jax.tree.map(lambda x: 2 * x, out)
    assert doubled.to_tuple() == (2, 4)
    assert repr(doubled) == "Name(a=2, b=4)"
    assert jax.tree_util.tree_structure(out) == jax.tree_util.tree_structure(doubled)
    for again in (copy.deepcopy(out), pickle.loads(pickle.dumps(out))):
        assert again.to_tuple() == (1, 2)
    with pytest.raises(AttributeError, match=r"no field 'c'; it has \['a', 'b'\]"):
        _ = out.c
    with pytest.raises(AttributeError, match="read-only"):
        out.a = 3
    with pytest.raises(KeyError, match="Name has"):
        _ = out["c"]
