"""Sources and models without torch: a graph made by hand, numpy as its original."""

import jax.numpy as jnp
import numpy as np

from jaxinfer.core.frontend import Source
from jaxinfer.core.model import Model
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF, Structure
from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result
from jaxinfer_converters.program import GraphProgram

WEIGHT = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
LABEL = "Fake from the tests"


def graph_model(inputs, nodes, outputs, params=None, symbols=None, changes=()) -> Model:
    """A model of a graph.

    inputs: name to (shape, dtype); nodes: (name, op, args, aval or None), a string argument
    that names an input, a node or a parameter is a reference; outputs: path to value;
    changes: (buffer, value) pairs.
    """
    params = params or {}
    known = {*inputs, *params, *(node[0] for node in nodes)}
    ref = lambda value: Ref(value) if isinstance(value, str) and value in known else value
    graph = Graph(
        (
            *(
                Input(name, "parameter", name, Aval(value.shape, value.dtype.name))
                for name, value in params.items()
            ),
            *(
                Input(name, "input", str(index), Aval(*spec))
                for index, (name, spec) in enumerate(inputs.items())
            ),
        ),
        tuple(
            Node(name, op, tuple(map(ref, args)), avals=(aval,) if aval else ())
            for name, op, args, aval in nodes
        ),
        (
            *(Result("output", ref(value)) for value in outputs.values()),
            *(Result("buffer", ref(value), name) for name, value in changes),
        ),
    )
    graph.verify()
    signature = Signature(
        tuple(inputs),
        len(inputs),
        (LEAF,) * len(inputs),
        tuple(LeafSpec(name, *spec) for name, spec in inputs.items()),
        symbols or {},
    )
    structure = Structure("dict", (LEAF,) * len(outputs), tuple(outputs))
    return Model(GraphProgram(graph, signature, structure), params)


def model() -> Model:
    """logits = tanh(x @ W.T) + b; count = mask.sum(0). x: f32[batch, 5], 1 <= batch <= 9."""
    return graph_model(
        {"x": (("batch", 5), "float32"), "mask": (("batch", 4), "int32")},
        [
            ("linear", "aten.linear.default", ("x", "head.weight"), None),
            ("tanh", "aten.tanh.default", ("linear",), None),
            ("add", "aten.add.Tensor", ("tanh", "head.bias"), Aval(("batch", 3), "float32")),
            ("sum", "aten.sum.dim_IntList", ("mask", [0]), Aval((4,), "int64")),
        ],
        {"logits": "add", "count": "sum"},
        {"head.weight": jnp.asarray(WEIGHT), "head.bias": jnp.arange(3.0)},
        {"batch": (1, 9)},
    )


def sampler() -> Model:
    """output = x + standard normal noise."""
    return graph_model(
        {"x": ((3,), "float32")},
        [
            ("noise", "aten.randn_like.default", ("x",), None),
            ("add", "aten.add.Tensor", ("x", "noise"), None),
        ],
        {"noisy": "add"},
    )


def examples(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 5)).astype(np.float32)
    return (x, rng.integers(0, 9, (2, 4)).astype(np.int32)), {}


def reference(args, kwargs, state=()):
    x, mask = args
    return [np.tanh(x @ WEIGHT.T) + np.arange(3.0, dtype=np.float32), mask.sum(0)]


def wrong_reference(args, kwargs, state=()):
    logits, count = reference(args, kwargs)
    return [logits + np.float32(0.5) * (np.arange(3) == 2).astype(np.float32), count]


def convert(progress):
    for done in range(2):
        progress(f"head.{done}", done, 2)
    return model().replace(
        provenance={"source": LABEL, "tied": {"a.weight": "head.weight"}, "notes": ["a late note"]}
    )


def source(**changes):
    parts = {
        "label": LABEL,
        "convert": convert,
        "examples": examples,
        "reference": reference,
        "notes": ("random weights (seed 0)",),
    }
    return Source(**(parts | changes))
