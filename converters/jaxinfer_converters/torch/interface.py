"""Changes to what a captured program takes and returns; what it computes stays.

``without_sizes`` drops outputs that are no arrays, ``without_copies`` a second copy of a state
that is returned twice, ``fixed`` takes the scalars of an argument into the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

from jaxinfer.core.errors import ConversionError
from jaxinfer.core.signature import Signature
from jaxinfer.core.structure import Structure
from jaxinfer.core.symbols import Dim
from jaxinfer_converters.graph import DType, Graph, Node, Ref, Result
from jaxinfer_converters.torch.capture import Captured


def without_sizes(captured: Captured) -> tuple[Captured, dict[int, Dim]]:
    """Drop outputs that are sizes (a cache notes the batch size), and return what they were.

    Returns:
      The program, and the size by its place among the outputs: a number or an expression.
    """
    avals = {item.name: item.aval for item in captured.graph.inputs}
    avals |= {node.name: node.avals[0] for node in captured.graph.nodes if node.avals}
    outputs = [r for r in captured.graph.results if r.kind == "output"]
    sizes: dict[int, Dim] = {}
    for place, result in enumerate(outputs):
        node = captured.graph.producers.get(getattr(result.value, "name", ""))
        if node is None or node.op != "aten.sym_size.int":
            continue
        source, axis = node.args
        if (aval := avals.get(source.name)) is not None:
            sizes[place] = aval.shape[axis]
    if not sizes:
        return captured, sizes
    kept = [r for place, r in enumerate(outputs) if place not in sizes]
    changed = [r for r in captured.graph.results if r.kind != "output"]
    graph = dataclasses.replace(captured.graph, results=(*kept, *changed))
    structure = _pruned(captured.outputs, iter(range(len(outputs))), sizes)
    outputs_now = structure or Structure("tuple")
    return dataclasses.replace(captured, graph=graph, outputs=outputs_now), sizes


def _pruned(item: Structure, places: Iterator[int], drop: Collection[int]) -> Structure | None:
    if item.kind == "leaf":
        return None if next(places) in drop else item
    children = [_pruned(child, places, drop) for child in item.children]
    kept = [place for place, child in enumerate(children) if child is not None]
    keys = tuple(item.keys[place] for place in kept) if item.keys else ()
    return dataclasses.replace(item, children=tuple(c for c in children if c), keys=keys)


def without_copies(captured: Captured) -> Captured:
    """Drop the new value of a changed input where it is an output already.

    A cache is written in place and returned as well: one of the two is enough, and a second
    would keep a donated buffer from being reused.
    """
    given = {
        r.value.name
        for r in captured.graph.results
        if r.kind == "output" and isinstance(r.value, Ref)
    }
    results: list[Result] = [
        r
        for r in captured.graph.results
        if not (r.kind == "input" and isinstance(r.value, Ref) and r.value.name in given)
    ]
    graph = dataclasses.replace(captured.graph, results=tuple(results))
    return dataclasses.replace(captured, graph=graph)


def fixed(captured: Captured, argument: str, values: Sequence[int]) -> Captured:
    """Make the scalars of an argument part of the graph, and take the argument away.

    Args:
      argument: the name of the argument (``past_key_values`` of a prefill: an empty cache).
      values: an integer for each of its leaves.

    Raises:
      ConversionError: a leaf of the argument is no scalar.
    """
    span = _span(captured.signature, argument)
    leaves = captured.signature.leaves[span.start : span.stop]
    if wrong := [str(leaf) for leaf in leaves if leaf.shape or not leaf.is_array]:
        raise ConversionError(
            f"{argument}: required an empty cache, which holds only counters; got "
            + "; ".join(wrong[:5])
        )
    numbers = dict(zip(span, values, strict=True))
    made = []
    for item in captured.graph.inputs:
        if item.kind == "input" and int(item.target) in numbers and item.aval is not None:
            kind = {"dtype": DType(item.aval.dtype)}
            number = numbers[int(item.target)]
            made.append(Node(item.name, "aten.full.default", ([], number), kind, (item.aval,)))
    return _without(captured, argument, made)


def _span(signature: Signature, argument: str) -> range:
    """Return the positions of an argument's leaves."""
    at = signature.names.index(argument)
    counts = [len(structure.paths()) for structure in signature.structures]
    return range(sum(counts[:at]), sum(counts[: at + 1]))


def _without(captured: Captured, argument: str, made: Sequence[Node]) -> Captured:
    """Take an argument away; ``made`` stand for those of its leaves that are read."""
    signature, graph = captured.signature, captured.graph
    at, span = signature.names.index(argument), _span(signature, argument)
    inputs = []
    for item in graph.inputs:
        place = int(item.target) if item.kind == "input" else -1
        if place >= span.stop:
            item = dataclasses.replace(item, target=str(place - len(span)))
        if place not in span:
            inputs.append(item)
    paths = {signature.leaves[place].path for place in span}
    results = [r for r in graph.results if not (r.kind == "input" and r.target in paths)]
    return dataclasses.replace(
        captured,
        graph=Graph(tuple(inputs), (*made, *graph.nodes), tuple(results), graph.subgraphs),
        signature=dataclasses.replace(
            signature,
            names=(*signature.names[:at], *signature.names[at + 1 :]),
            positional=signature.positional - (at < signature.positional),
            structures=(*signature.structures[:at], *signature.structures[at + 1 :]),
            leaves=(*signature.leaves[: span.start], *signature.leaves[span.stop :]),
        ),
    )
