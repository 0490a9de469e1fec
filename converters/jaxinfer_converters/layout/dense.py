"""Weights of dense and recurrent layers, stored as they are multiplied: [in, out].

torch keeps them [out, in] and multiplies by the transpose. XLA on CPUs packs such an operand
slowly: for 2 to 32 rows ``x @ w.T`` takes 1.4 to 10 times as long as ``x @ w`` (8 rows, 640 by
32000: 23 and 3 ms on 2 cores), for hundreds 1 to 1.6 times, and for one row they are equal
(``benchmarks/dense_layouts.py``). A weight that anything else reads, too, stays as it is: a
tied embedding, say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from jaxinfer.core.ops import OPS
from jaxinfer_converters.graph import Aval, Graph, Node, Ref, refs

_LAYERS = {
    "aten.linear.default",
    *(f"aten.{name}.input" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")),
    *(f"aten.{name}_cell.default" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")),
}


def transposed_weights(graph: Graph, fixed: Collection[str] = ()) -> Graph:
    """Return the graph with its dense weights stored [in, out], where nothing else reads them.

    A transpose of a weight, which is what torch decomposes ``linear`` to, becomes its name.

    Args:
      fixed: names of inputs that must be stored as they are.
    """
    avals = {item.name: item.aval for item in graph.inputs}
    weights = {node.name: names for node in graph.nodes if (names := list(_weights(node, avals)))}
    held = {
        item.name for item in graph.inputs if item.kind == "input" or item.perm or item.parts
    } | {*fixed}
    for node in graph.nodes:
        others = list(refs((node.args, node.kwargs)))
        for name in weights.get(node.name, ()):
            others.remove(name)
        held |= {*others}
    held |= {name for result in graph.results for name in refs(result.value)}
    while True:  # the weights of one layer are stored alike
        more = {n for names in weights.values() if held & {*names} for n in names} - held
        if not more:
            break
        held |= more
    changed = {name: names for name, names in weights.items() if not held & {*names}}
    stored = {name for names in changed.values() for name in names}
    inputs = []
    for item in graph.inputs:
        if item.name in stored and item.aval is not None:
            aval = Aval(item.aval.shape[::-1], item.aval.dtype)
            item = dataclasses.replace(item, aval=aval, perm=(1, 0))
        inputs.append(item)
    nodes = [_rewritten(node) if node.name in changed else node for node in graph.nodes]
    return dataclasses.replace(graph, inputs=tuple(inputs), nodes=tuple(nodes))


def _rewritten(node: Node) -> Node:
    """Return the node for weights that are transposed already."""
    if node.op in _LAYERS:
        return dataclasses.replace(node, kwargs={**node.kwargs, "transposed": True})
    return dataclasses.replace(node, op="aten.alias.default", args=node.args[:1], kwargs={})


def _weights(node: Node, avals: dict[str, Aval | None]) -> Iterator[str]:
    """Yield the inputs that a node wants [in, out]; none if one of its weights is no input."""
    rule = OPS.get(node.op)
    if not getattr(rule, "__module__", "").startswith("jaxinfer_converters."):
        return  # the user's own rule knows torch's order
    if node.op == "aten.linear.default":
        found = [node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")]
    elif node.op in _LAYERS:
        found = node.args[2] if node.op.endswith(".input") else node.args[2:4]
    else:
        found = node.args[:1] if _transposes(node) else ()
    named = [value.name for value in found if isinstance(value, Ref)]
    shapes = {name: aval.shape for name in named if (aval := avals.get(name)) is not None}
    matrices = [name for name in named if name not in shapes or len(shapes[name]) == 2]
    if all(name in shapes for name in matrices):
        yield from matrices


def _transposes(node: Node) -> bool:
    """Whether a node swaps the axes of a matrix."""
    if node.op in ("aten.t.default", "aten.mT.default", "aten.numpy_T.default"):
        return True
    if node.op == "aten.permute.default":
        return [dim % 2 for dim in node.args[1]] == [1, 0]
    dims = node.args[1:] if node.op == "aten.transpose.int" else ()
    return len(dims) == 2 and sorted(dim % 2 for dim in dims) == [0, 1]
