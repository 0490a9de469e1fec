"""Grouped queries: keys and values go to the attention as they are, not repeated.

Models repeat K and V to the number of query heads before they attend,

    [b, k, s, h] -> [b, k, 1, s, h] -> [b, k, g, s, h] -> [b, k·g, s, h],

which writes g copies of the cache in every step. The attention rule takes k heads for k·g
queries (``enable_gqa``; Ainslie et al., GQA, 2023, https://arxiv.org/abs/2305.13245), so the
copies are taken out of the graph. Only ``scaled_dot_product_attention`` is looked at; an
attention that is written out with matmuls keeps its copies.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxinfer_converters.graph import Aval, Graph, Node, Ref, refs

ATTENTION = "aten.scaled_dot_product_attention.default"
_VIEWS = ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
_COPIES = ("aten.clone.default", "aten.slice.Tensor", "aten.alias.default")


def keep_groups(graph: Graph) -> Graph:
    """Return the graph with repeated keys and values replaced by what was repeated."""
    avals = {item.name: item.aval for item in graph.inputs}
    avals |= {node.name: node.avals[0] for node in graph.nodes if node.avals}
    nodes, chains = [], set()
    for node in graph.nodes:
        found = _grouped(graph, node, avals) if node.op == ATTENTION else None
        if found is not None:
            node, chain = found
            chains |= chain
        nodes.append(node)
    if not chains:
        return graph
    read = set(refs([result.value for result in graph.results]))
    kept = []
    for node in reversed(nodes):
        if node.name in read or node.name not in chains:
            kept.append(node)
            read |= set(refs((node.args, node.kwargs)))
    return dataclasses.replace(graph, nodes=tuple(reversed(kept)))


def _grouped(
    graph: Graph, node: Node, avals: dict[str, Aval | None]
) -> tuple[Node, set[str]] | None:
    """Return an attention with unrepeated keys and values, and the nodes that repeated them."""
    query, key, value = node.args[:3]
    sources = [_unrepeated(graph, item, avals) for item in (key, value)]
    if None in sources or node.kwargs.get("enable_gqa"):
        return None
    (key, first), (value, second) = [source for source in sources if source is not None]
    shapes = [avals[item.name] for item in (query, key, value)]
    if any(aval is None or len(aval.shape) != 4 for aval in shapes):
        return None
    heads, own, others = (aval.shape[1] for aval in shapes if aval is not None)
    if not isinstance(heads, int) or not isinstance(own, int) or own != others or heads % own:
        return None
    args = (query, key, value, *node.args[3:])
    kwargs = {**node.kwargs, "enable_gqa": True}
    return dataclasses.replace(node, args=args, kwargs=kwargs), first | second


def _unrepeated(
    graph: Graph, value: Any, avals: dict[str, Aval | None]
) -> tuple[Ref, set[str]] | None:
    """Return what a value is a repetition of along its heads, and the nodes in between.

    The view must join [b, k, g, s, h] to [b, k·g, s, h], and nothing but copies, slices that
    take everything, and one repetition of a new axis 2 may stand before it.
    """
    node = graph.producers.get(value.name) if isinstance(value, Ref) else None
    if node is None or node.op not in _VIEWS:
        return None
    joined, chain, wide = avals.get(node.name), {node.name}, None
    while True:
        source = node.args[0]
        node = graph.producers.get(source.name) if isinstance(source, Ref) else None
        if node is None or (aval := avals.get(node.name)) is None or len(aval.shape) != 5:
            return None
        chain.add(node.name)
        before = avals.get(node.args[0].name)
        wide = wide or aval
        if node.op == "aten.unsqueeze.default" and before is not None:
            break
        if before is None or not (
            (node.op in _COPIES and before == aval)
            or (node.op == "aten.expand.default" and _widens(before, aval))
        ):
            return None
    batch, heads, groups, length, width = wide.shape
    if node.args[1] not in (2, -3) or joined is None:
        return None
    if not isinstance(heads, int) or not isinstance(groups, int):
        return None
    fits = joined.shape == (batch, heads * groups, length, width)
    return (node.args[0], chain) if fits and before.shape == (batch, heads, length, width) else None


def _widens(before: Aval, after: Aval) -> bool:
    """Whether an expansion leaves all axes but a new axis 2 as they are."""
    return before.shape[:2] == after.shape[:2] and before.shape[3:] == after.shape[3:]
