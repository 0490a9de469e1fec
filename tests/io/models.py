"""Models made by hand for the tests of saving and loading; no torch."""

import contextlib

import jax.numpy as jnp
import numpy as np

from jaxinfer.core.model import Model
from jaxinfer.core.ops import OPS, add_rule
from jaxinfer.core.program import FunctionProgram, signature_of
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF
from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result
from jaxinfer_converters.program import GraphProgram

OP = "iotest.affine.default"


@contextlib.contextmanager
def rule():
    """``affine(x, w, b) = x @ w + b``, registered for a while only."""
    add_rule(OP, replace=True)(lambda x, w, b: x @ w + b)
    try:
        yield
    finally:
        if OP in OPS:
            OPS.unregister(OP)


def graph_model(dtype="float32", d=3, f=5, seed=0) -> Model:
    """x[batch, d] -> x @ w + b, with b a constant of the program."""
    graph = Graph(
        (
            Input("p_w", "parameter", "layer.w", Aval((d, f), dtype)),
            Input("c_b", "constant", "b", Aval((f,), "float32")),
            Input("x", "input", "0", Aval(("batch", d), "float32")),
        ),
        (Node("y", OP, (Ref("x"), Ref("p_w"), Ref("c_b")), path="layer", source="m.py:1"),),
        (Result("output", Ref("y")),),
    )
    leaf = LeafSpec("x", ("batch", d), "float32")
    signature = Signature(("x",), 1, (LEAF,), (leaf,), {"batch": (1, None)})
    program = GraphProgram(graph, signature, LEAF, {"b": np.arange(f, dtype=np.float32)})
    w = np.random.default_rng(seed).normal(size=(d, f)).astype(np.float32)
    return Model(program, {"layer.w": jnp.asarray(w, dtype)}, (), {"source": "a test"})


def function_model() -> Model:
    """A Python function over a nested tree of parameters."""

    def fn(params, x):
        first, second = params["layers"]
        return {"y": x @ first["w"] + second.astype(x.dtype), "scale": (params["scale"] * 2,)}

    params = {
        "layers": [{"w": jnp.arange(6.0).reshape(3, 2)}, jnp.ones(2, jnp.bfloat16)],
        "scale": jnp.float32(3),
    }
    return Model(FunctionProgram(fn, signature_of((jnp.ones((4, 3)),))), params)
