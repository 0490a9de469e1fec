"""Which values of a graph hold images, and which operators run channels-last.

From the convolutions, whose channels are axis 1, the place of the channels is followed through
the graph in both directions, as far as the marks know the operators. What is left is a choice
of two for each operator, which the minimum cut makes: an operator that forbids another order
has its operands as torch had them, convolutions have them channels last, and a value that is
wanted both ways costs its bytes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from jaxinfer.core import dtypes
from jaxinfer.core.ops import OPS
from jaxinfer.core.symbols import evaluate
from jaxinfer_converters.graph import Aval, Graph, Node, Ref, refs
from jaxinfer_converters.layout.axes import CHANNELS, Order, Shape, Track, between, moves, order
from jaxinfer_converters.layout.cut import FIRST, LAST, Edge, Vertex, minimum_cut
from jaxinfer_converters.layout.marks import Call, Mark, Unfit
from jaxinfer_converters.layout.table import MARKS

_SAMPLES = ((12, 20, 28, 36, 44), (30, 42, 66, 78, 102))  # symbolic sizes to hold views against
_SWEEPS = 50


@dataclasses.dataclass(frozen=True)
class Plan:
    """What ``rewrite`` carries out.

    Attributes:
      graph: the graph it is for.
      calls: nodes that a mark fits.
      tracks: where the channels of values are; by value (``name``, or ``name:i`` of several).
      last: for each node in ``calls`` and each free input, whether it is channels-last.
      images: inputs and results of the interface that are to be channels-last (NHWC).
      lists: nodes whose value is a list, of which ``getitem`` takes.
    """

    graph: Graph
    calls: Mapping[str, tuple[Mark, Call]]
    tracks: Mapping[str, Track]
    last: Mapping[str, bool]
    images: Collection[str] = ()
    lists: Collection[str] = ()

    def keys(self, node: Node) -> list[str]:
        """Return the keys of a node's values."""
        return value_keys(node, self.lists)

    def order(self, value: str, rank: int, last: bool) -> Order:
        """Return how a value is stored in one layout."""
        return order(self.tracks.get(value), rank, last)


def value_key(ref: str, nodes: Mapping[str, Node]) -> str:
    """Return the value behind a reference: ``split:1`` for ``getitem(split, 1)``."""
    node = nodes.get(ref)
    if node is None or node.op != "operator.getitem" or not isinstance(node.args[0], Ref):
        return ref
    return f"{node.args[0].name}:{node.args[1]}"


def value_keys(node: Node, lists: Collection[str]) -> list[str]:
    """Return the keys of a node's values: its name, or ``name:i`` for each of several."""
    several = len(node.avals) > 1 or node.name in lists
    return [f"{node.name}:{i}" for i in range(len(node.avals))] if several else [node.name]


def plan(graph: Graph, *, fixed: Collection[str] = (), nhwc: bool = False) -> Plan | None:
    """Choose layouts; None if the graph has no convolution.

    Args:
      fixed: names of inputs that must be stored as they are.
      nhwc: images of the interface are channels-last.
    """
    if not any(node.op in MARKS and MARKS[node.op].needs for node in graph.nodes):
        return None
    reader = Reader(graph)
    calls, tracks = reader.follow()
    images: set[str] = set()
    if nhwc:
        ends = {item.name for item in graph.inputs if item.kind == "input"}
        ends |= set(refs([result.value for result in graph.results]))
        images = {
            name
            for name in ends
            if tracks.get(reader.key(name)) == CHANNELS and len(reader.shape(name) or ()) == 4
        }
    free = {item.name for item in graph.inputs if item.kind != "input"} - set(fixed)
    found = Plan(graph, calls, tracks, {}, images, reader.lists)
    chosen = minimum_cut(_edges(reader, found, free))
    last = {str(name): choice for name, choice in chosen.items()}
    last |= {name: True for name, (mark, _) in calls.items() if mark.needs}
    return dataclasses.replace(found, last=last)


class Reader:
    """Shapes at sample sizes, and the places of the channels."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.lists = {
            node.args[0].name
            for node in graph.nodes
            if node.op == "operator.getitem" and isinstance(node.args[0], Ref)
        }
        avals: dict[str, Aval | None] = {item.name: item.aval for item in graph.inputs}
        for node in graph.nodes:
            avals[node.name] = node.avals[0] if len(node.avals) == 1 else None
        self.avals = avals
        dims = {d for a in avals.values() if a for d in a.shape if isinstance(d, str)}
        symbols = sorted({name for dim in dims for name in re.findall(r"[A-Za-z_]\w*", dim)})
        self.sizes = [
            {name: sample[i % len(sample)] for i, name in enumerate(symbols)}
            for sample in _SAMPLES[: 2 if symbols else 1]
        ]
        self.shapes = [
            {
                name: shape
                for name, aval in avals.items()
                if (shape := _shape(aval, sizes)) is not None
            }
            for sizes in self.sizes
        ]

    def key(self, ref: str) -> str:
        """Return the value behind a reference."""
        return value_key(ref, self.nodes)

    def shape(self, ref: str) -> Shape | None:
        """Return a value's shape at the first sample."""
        return self.shapes[0].get(ref)

    def call(self, node: Node) -> tuple[Mark, Call] | None:
        """Return the node's mark, unless its rule is the user's own."""
        mark = MARKS.get(node.op)
        rule = OPS.get(node.op)
        if mark is None or not getattr(rule, "__module__", "").startswith("jaxinfer_converters."):
            return None
        results = [[_shape(aval, sizes) for aval in node.avals] for sizes in self.sizes]
        if any(shape is None for shapes in results for shape in shapes):
            return None
        known = [[shape for shape in shapes if shape is not None] for shapes in results]
        named = refs((node.args, node.kwargs))
        if any(self.avals.get(name) and name not in self.shapes[0] for name in named):
            return None
        return mark, Call(node, self.shapes, known)

    def follow(self) -> tuple[dict[str, tuple[Mark, Call]], dict[str, Track]]:
        """Return the calls that fit, and the place of the channels in every value."""
        calls = {n.name: found for n in self.graph.nodes if (found := self.call(n))}
        tracks: dict[str, Track] = {}
        for name, (mark, call) in list(calls.items()):
            if not mark.needs:
                continue
            try:
                mark.forward(call, CHANNELS)
                for carrier in mark.carriers(call):
                    tracks.setdefault(self.key(carrier), CHANNELS)
            except Unfit:
                del calls[name]
        for _ in range(_SWEEPS):
            before = len(tracks)
            for name in calls:
                self._step(*calls[name], tracks)
            for name in reversed(calls):
                self._step(*calls[name], tracks)
            if len(tracks) == before:
                break
        fitting = {name: found for name, found in calls.items() if self._fits(*found, tracks)}
        return fitting, tracks

    def _step(self, mark: Mark, call: Call, tracks: dict[str, Track]) -> None:
        """Learn from one call, forwards or backwards."""
        try:
            carriers = [self.key(name) for name in mark.carriers(call)]
            results = value_keys(call.node, self.lists)
            track = next((tracks[key] for key in carriers if key in tracks), None)
            if track is None and call.results[0] and results[0] in tracks:
                track = mark.backward(call, tracks[results[0]])
            if track is None:
                return
            found = mark.forward(call, track)
        except Unfit:
            return
        for key in carriers:
            tracks.setdefault(key, track)
        for key, result in zip(results, found, strict=False):
            if result is not None:
                tracks.setdefault(key, result)

    def _fits(self, mark: Mark, call: Call, tracks: Mapping[str, Track]) -> bool:
        """Return whether the call agrees with what is known of all its values."""
        try:
            known = {tracks.get(self.key(name)) for name in mark.carriers(call)}
            (track,) = known
            if track is None:
                return False
            if mark.reads:
                return True
            found = mark.forward(call, track)
            have = [tracks.get(key) for key in value_keys(call.node, self.lists)]
            for last in (False, True):
                ranks = [len(shape) for shape in call.results[0]]
                give = [order(t, rank, last) for t, rank in zip(found, ranks, strict=True)]
                rank = call.rank(mark.carriers(call)[0])
                mark.rewrite(call, order(track, rank, last), give)
            return list(found) == have
        except (Unfit, ValueError):
            return False


def _shape(aval: Aval | None, sizes: Mapping[str, int]) -> Shape | None:
    if aval is None:
        return None
    shape = tuple(evaluate(dim, sizes) for dim in aval.shape)
    return None if None in shape else shape  # pyright: ignore[reportReturnType]


def _edges(reader: Reader, found: Plan, free: Collection[str]) -> Iterator[Edge]:
    """Yield an edge for every value that the two layouts store in different orders."""
    users: dict[str, list[Vertex]] = {}

    def vertex(name: str) -> Vertex:
        return LAST if found.calls[name][0].needs else name

    def as_torch(ref: str) -> Sequence[Vertex]:
        """Return the vertex of whoever has or needs the value in torch's own order."""
        rank = len(reader.shape(ref) or ())
        plain = tuple(range(rank))
        first, last = (found.order(reader.key(ref), rank, choice) for choice in (False, True))
        if first == last:
            return []
        return [FIRST] if first == plain else [LAST] if last == plain else []

    for node in reader.graph.nodes:
        mark, call = found.calls.get(node.name, (None, None))
        carriers = mark.carriers(call) if mark and call else ()
        for ref in refs((node.args, node.kwargs)):
            if node.op == "operator.getitem" or (mark and mark.reads):
                continue
            ends = [vertex(node.name)] if ref in carriers else as_torch(ref)
            users.setdefault(reader.key(ref), []).extend(ends)
    for result in reader.graph.results:
        for ref in refs(result.value):
            ends = [LAST] if ref in found.images else as_torch(ref)
            users.setdefault(reader.key(ref), []).extend(ends)
    producers: dict[str, Sequence[Vertex]] = {}
    for item in reader.graph.inputs:
        ends = [item.name] if item.name in free else as_torch(item.name)
        producers[item.name] = [LAST] if item.name in found.images else ends
    for node in reader.graph.nodes:
        maker = reader.key(node.name).split(":")[0]
        producers[node.name] = [vertex(maker)] if maker in found.calls else as_torch(node.name)
    for ref, ends in producers.items():
        aval, shape, key = reader.avals.get(ref), reader.shape(ref), reader.key(ref)
        if aval is None or shape is None or key not in found.tracks or not ends:
            continue
        first, last = (found.order(key, len(shape), choice) for choice in (False, True))
        size = math.prod(shape) * dtypes.dtype_of(aval.dtype).itemsize
        cost = 1 + size if moves(between(first, last), [shape[a] for a in first]) else 0
        yield Edge(ends[0], users.get(key, []), cost)
