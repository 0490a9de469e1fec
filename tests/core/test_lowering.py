"""Graphs as data: JSON, verification, and errors that name the node."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import from_function
from jaxinfer.core.errors import MissingRulesError
from jaxinfer.core.model import Model
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF
from jaxinfer_converters.graph import (
    Aval,
    DType,
    Graph,
    Input,
    Node,
    Ref,
    Result,
    Sub,
    decode,
    encode,
)
from jaxinfer_converters.program import GraphProgram, LoweringError

F = lambda *shape: Aval(shape, "float32")


def graph(*nodes, result="y"):
    inputs = (Input("p", "parameter", "scale", F()), Input("x", "input", "0", F("n")))
    return Graph(inputs, nodes, (Result("output", Ref(result)),))


def model(*nodes):
    leaf = LeafSpec("x", ("n",), "float32")
    signature = Signature(("x",), 1, (LEAF,), (leaf,), {"n": (0, None)})
    return Model(GraphProgram(graph(*nodes), signature, LEAF), {"scale": jnp.float32(3)})


MUL = Node(
    "y", "aten.mul.Tensor", (Ref("x"), Ref("p")), {}, (F("n"),), "block.0", "net.py:7: x * s"
)


def test_a_graph_runs_and_survives_json():
    made = model(MUL)
    np.testing.assert_array_equal(made(np.ones(4, np.float32)), [3, 3, 3, 3])
    data = json.loads(json.dumps(made.program.to_json()))
    again = GraphProgram.from_json(data, {}, lambda name: b"")
    assert again.graph == made.program.graph
    out = Model(again, made.params)(np.ones(2, np.float32))
    np.testing.assert_array_equal(out, [3, 3])


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 1.5, "text", 2 + 1j, DType("bfloat16"), Ref("x"), Sub("body"), [1, [Ref("y")]]],
)
def test_arguments_round_trip(value):
    assert decode(json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_json_lacks(value):
    assert repr(decode(json.loads(json.dumps(encode(value), allow_nan=False)))) == repr(value)


@pytest.mark.parametrize("value", [{"odd": 1}, {"dtype": "nope"}])
def test_foreign_arguments_are_refused(value):
    with pytest.raises(ValueError, match=r"unknown"):
        decode(value)


def test_verification_lists_every_fault():
    bad = graph(
        Node("a", "aten.neg.default", (Ref("later"),)),
        Node("a", "higher_order.cond", (Ref("x"), Sub("nobody"))),
        result="missing",
    )
    with pytest.raises(ValueError, match=r"'later'.*'nobody'.*defined twice.*'missing'"):
        bad.verify()


def test_missing_rules_are_listed_on_load():
    odd = Node("y", "mylib.odd.default", (Ref("x"),), {}, (F("n"),), "head", "net.py:9")
    data = model(odd).program.to_json()
    with pytest.raises(MissingRulesError, match=r"mylib\.odd\.default: 1 times, first in head"):
        GraphProgram.from_json(data, {}, lambda name: b"")


def test_a_rule_that_gives_another_shape_is_caught_at_trace_time():
    wrong = Node("y", "aten.sum.default", (Ref("x"),), {}, (F("n"),), "block.0", "net.py:7")
    with pytest.raises(LoweringError, match=r"block\.0, net\.py:7.*torch gives float32\[n\]"):
        model(wrong)(np.ones(4, np.float32))


def test_a_rule_that_fails_names_the_node_and_the_shapes():
    wrong = Node("y", "aten.mm.default", (Ref("x"), Ref("p")), {}, (), "block.1", "net.py:8")
    with pytest.raises(
        LoweringError, match=r"aten\.mm\.default\(float32\[4\], float32\[\]\).*block\.1"
    ):
        model(wrong)(np.ones(4, np.float32))


def test_params_that_lack_a_name():
    made = model(MUL)
    with pytest.raises(KeyError, match="params lacks 'scale'"):
        made.apply({}, jnp.ones(4))


def test_values_are_dropped_after_their_last_use():
    chain = graph(
        Node("a", "aten.neg.default", (Ref("x"),)),
        Node("b", "aten.neg.default", (Ref("a"),)),
        Node("y", "aten.neg.default", (Ref("b"),)),
    )
    assert chain.last_uses == {"a": ("x",), "b": ("a",), "y": ("b",)}


def test_constants_that_are_missing():
    inputs = (Input("c", "constant", "table", F()), Input("x", "input", "0", F("n")))
    add = Node("y", "aten.add.Tensor", (Ref("x"), Ref("c")))
    leaf = LeafSpec("x", ("n",), "float32")
    signature = Signature(("x",), 1, (LEAF,), (leaf,))
    program = GraphProgram(Graph(inputs, (add,), (Result("output", Ref("y")),)), signature, LEAF)
    with pytest.raises(ValueError, match="constants missing from the artefact: table"):
        GraphProgram.from_json(program.to_json(), {}, lambda name: b"")


def test_apply_is_one_function_so_that_jit_keeps_its_trace():
    traces = []

    def fn(params, x):
        traces.append(x.shape)
        return x * params

    made = from_function(fn, jnp.float32(2))
    for _ in range(3):
        jax.jit(made.apply)(made.params, jnp.ones(3))
    assert traces == [(3,)]
    assert made.replace(provenance={}).apply is not made.apply
