"""Keys and values that a graph repeats for grouped queries go to the attention unrepeated."""

import dataclasses

import numpy as np
import pytest

from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result
from jaxinfer_converters.grouped import ATTENTION, keep_groups
from jaxinfer_converters.program import run_graph

SIZES = {"batch": 2}


def node(name, op, shape, *args, **kwargs):
    return Node(name, f"aten.{op}", args, kwargs, (Aval(("batch", *shape), "float32"),))


def repeated(name, *, axis=2, joined=(6, 5, 7)):
    """[b, 3, 5, 7] -> [b, 6, 5, 7]: repeated after each head (axis 2), or whole (axis 1)."""
    one = (3, 1, 5, 7) if axis == 2 else (1, 3, 5, 7)
    wide = (3, 2, 5, 7) if axis == 2 else (2, 3, 5, 7)
    return [
        node(f"{name}1", "unsqueeze.default", one, Ref(name), axis),
        node(f"{name}2", "slice.Tensor", one, Ref(f"{name}1"), 3, 0, 9223372036854775807),
        node(f"{name}3", "expand.default", wide, Ref(f"{name}2"), [2, *wide]),
        node(f"{name}4", "clone.default", wide, Ref(f"{name}3")),
        node(f"{name}5", "_unsafe_view.default", joined, Ref(f"{name}4"), [2, *joined]),
    ]


def graph(key, value, results=("out",)):
    inputs = [
        Input(name, "input", str(place), Aval(("batch", heads, size, 7), "float32"))
        for place, (name, heads, size) in enumerate((("q", 6, 4), ("k", 3, 5), ("v", 3, 5)))
    ]
    out = node("out", "scaled_dot_product_attention.default", (6, 4, 7), Ref("q"), Ref("k5"),
               Ref("v5"), scale=0.5)  # fmt: skip
    assert out.op == ATTENTION
    made = Graph(
        tuple(inputs), (*key, *value, out), tuple(Result("output", Ref(name)) for name in results)
    )
    made.verify()
    return made


def run(made):
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 6, 4, 7), "k": (2, 3, 5, 7), "v": (2, 3, 5, 7)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return run_graph(made, values, SIZES)


def test_the_copies_go_and_the_numbers_stay():
    before = graph(repeated("k"), repeated("v"))
    after = keep_groups(before)
    after.verify()
    assert [n.name for n in after.nodes] == ["out"]
    assert after.nodes[0].args[1:] == (Ref("k"), Ref("v"))
    for want, got in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_copy_that_is_read_elsewhere_stays():
    after = keep_groups(graph(repeated("k"), repeated("v"), results=("out", "k5")))
    after.verify()
    assert [n.name for n in after.nodes] == ["k1", "k2", "k3", "k4", "k5", "out"]


@pytest.mark.parametrize("which", ["axis", "one side", "part of the keys"])
def test_what_is_another_repetition_is_left_alone(which):
    """Heads in the order 0 1 2 0 1 2, only one of the two repeated, a slice that takes less."""
    key, value = repeated("k"), repeated("v")
    if which == "axis":
        key = repeated("k", axis=1)
    elif which == "one side":
        value = [node("v5", "cat.default", (6, 5, 7), [Ref("v"), Ref("v")], 1)]
    else:
        key[1] = dataclasses.replace(key[1], args=(Ref("k1"), 3, 0, 4))
        shorter = (Aval(("batch", 3, 1, 4, 7), "float32"),)
        key[1] = dataclasses.replace(key[1], avals=shorter)
    before = graph(key, value)
    assert keep_groups(before) is before
