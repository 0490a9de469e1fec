"""Several programs over one set of parameters: call, save, load, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF
from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result
from jaxinfer_converters.program import GraphProgram

VECTOR = Aval((3,), "float32")


def program(op, *names, aval=VECTOR, constant=None):
    """x op name for each parameter named, and op the constant."""
    inputs = [Input(f"p{i}", "parameter", name, aval) for i, name in enumerate(names)]
    if constant is not None:
        inputs.append(Input("c", "constant", "c", VECTOR))
    nodes, last = [], "x"
    for number, item in enumerate(inputs):
        nodes.append(Node(f"y{number}", op, (Ref(last), Ref(item.name)), {}, (VECTOR,)))
        last = f"y{number}"
    graph = Graph(
        (*inputs, Input("x", "input", "0", VECTOR)),
        tuple(nodes),
        (Result("output", Ref(last)),),
    )
    signature = Signature(("x",), 1, (LEAF,), (LeafSpec("x", (3,), "float32"),))
    constants = {} if constant is None else {"c": np.full(3, constant, np.float32)}
    return GraphProgram(graph, signature, LEAF, constants)


@pytest.fixture
def model():
    parts = {
        "prefill": program("aten.add.Tensor", "w", "only", constant=10),
        "decode": program("aten.mul.Tensor", "w", constant=100),
    }
    params = {"w": jnp.arange(3.0), "only": jnp.ones(3)}
    return ji.Model(MultiProgram(parts, {"max_cache_len": 7}), params)


def check(model):
    x = np.ones(3, np.float32)
    np.testing.assert_array_equal(model.components["prefill"](x), [12, 13, 14])
    np.testing.assert_array_equal(model.components["decode"](x), [0, 100, 200])
    assert model.program.settings == {"max_cache_len": 7}


def test_each_component_reads_its_own_constants_and_shares_parameters(model):
    check(model)
    assert list(model.components["decode"].params) == ["w"]
    assert model.components["decode"].params["w"] is model.params["w"]
    assert model.components["decode"] is model.components["decode"]  # so jit keeps its traces


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model")
    check(ji.load(tmp_path / "model"))
    other = model.replace(params={**model.params, "more": jnp.ones(2)})
    other.save(tmp_path / "other")
    with pytest.raises(ArtefactError, match="more: not read by the program"):
        ji.load(tmp_path / "other")


def test_the_model_itself_cannot_be_called(model):
    with pytest.raises(InputError, match=r"model\.components\['prefill'\]"):
        model(np.ones(3, np.float32))


def test_any_other_model_is_its_own_component():
    one = ji.from_function(lambda p, x: p * x, jnp.float32(2), (jnp.ones(3),))
    assert one.components == {"model": one}


def test_what_is_refused(model):
    with pytest.raises(ValueError, match="Bad name"):
        MultiProgram({"Bad name": model.program})
    with pytest.raises(ValueError, match="components"):
        MultiProgram({})
    parts = {
        "a": program("aten.add.Tensor", "w"),
        "b": program("aten.add.Tensor", "w", aval=Aval((1,), "float32")),
    }
    with pytest.raises(ValueError, match=r"w: b reads float32\[1\], another float32\[3\]"):
        _ = MultiProgram(parts).param_specs
    nested = {"programs": {"a": {"kind": "multi"}}, "settings": {}}
    with pytest.raises(ValueError, match="has components itself"):
        MultiProgram.from_json(nested, {}, lambda name: b"")
