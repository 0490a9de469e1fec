"""Repeated blocks of a graph become one ``higher_order.scan`` over stacked parameters.

A transformer of 48 equal layers is traced, lowered and compiled as one layer, run 48 times.
Module paths (``layers.0``, ``layers.1``) say where a block may begin; what is scanned is
proved to be equal: the same operators, numbers and shapes, the same pattern of references.
With b[g] the block number g, each value that the blocks read from outside is one of

    carry     what b[g - 1] computes and b[g] reads; it keeps its shape and dtype
    constant  one value that all blocks read (masks, rotary tables)
    stacked   a parameter or buffer of its own in each block; the stack has one more first axis

A stack's key in ``params`` is the path with ``*`` for the number
(``encoder.layer.*.output.dense.weight``), or the numbers as a slice (``layers.1:12:2.weight``)
where others of that name stay outside. What is read later than by the next block
(``output_hidden_states``) comes out of the scan stacked. Random numbers differ from block to block:
the scan folds its step into the key, so they are not those of the same model unscanned.

Not scanned, and said so: blocks of differing operators or shapes, tied parameters, inputs of
the user's for each block (a cache), fewer than ``FEWEST`` in a row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result, Sub, refs

FEWEST = 3
"""Equal blocks in a row from which they are scanned."""

PERIODS = (1, 2, 3, 4, 6)
"""Modules that may make up one block: layers that alternate have period 2."""

_END = 1 << 60


class Run(NamedTuple):
    """``count`` equal blocks of ``length`` nodes from ``start``, each of ``period`` modules."""

    path: str
    start: int
    length: int
    count: int
    period: int

    @property
    def end(self) -> int:
        """Where the nodes after the last block begin."""
        return self.start + self.length * self.count

    def blocks(self) -> range:
        """Return where each block begins."""
        return range(self.start, self.end, self.length)


class Declined(Exception):
    """Why equal blocks cannot be scanned."""


def scan_layers(graph: Graph, *, tied: Collection[str] = ()) -> tuple[Graph, dict[str, Any]]:
    """Scan the repeated blocks of a graph; cost: near-linear in its nodes.

    Args:
      tied: names of tensors that have several names, which cannot be stacked.

    Returns:
      The graph, and notes (JSON): ``scanned``: path, number of blocks, modules and nodes in
      each; ``declined``: why others were not.
    """
    scanned: list[dict[str, Any]] = []
    while True:
        facts = _Facts(graph, frozenset(tied))
        runs, differing = _runs(facts)
        declined: dict[str, str] = {}
        for run in (part for whole in runs for part in _parts(whole)):
            try:
                graph = _rewritten(facts, run)
            except Declined as why:
                declined.setdefault(run.path, str(why))
                continue
            scanned.append({
                "path": run.path, "blocks": run.count, "modules": run.period, "nodes": run.length
            })  # fmt: skip
            break
        else:
            return graph, _notes(scanned, declined, differing)


def _notes(
    scanned: list[dict[str, Any]], declined: dict[str, str], differing: dict[str, str]
) -> dict[str, Any]:
    """Return what was scanned, and why not: of blocks that differ, the outermost only."""
    outer = [path for path in differing if not any(_within(path, other) for other in differing)]
    reasons = {path: differing[path] for path in outer} | declined
    done = [item["path"] for item in scanned]
    left = {path: why for path, why in reasons.items() if path not in done}
    notes: dict[str, Any] = {"scanned": scanned}
    if left:
        notes["declined"] = [f"{path or 'the module'}: {why}" for path, why in left.items()]
    return notes


def _within(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith(f"{other}."))


def _parts(run: Run) -> Iterator[Run]:
    """Yield a run, and what is left of it without its first or its last block."""
    yield run
    if run.count > FEWEST:
        yield run._replace(start=run.start + run.length, count=run.count - 1)
        yield run._replace(count=run.count - 1)


class _Facts:
    """What is looked up of a graph again and again."""

    def __init__(self, graph: Graph, tied: frozenset[str]):
        self.graph = graph
        self.tied = tied
        self.inputs = {item.name: item for item in graph.inputs}
        self.place = {node.name: index for index, node in enumerate(graph.nodes)}
        self.users: dict[str, list[int]] = {}
        for index, node in enumerate(graph.nodes):
            for name in refs((node.args, node.kwargs)):
                self.users.setdefault(name, []).append(index)
        for name in refs([result.value for result in graph.results]):
            self.users.setdefault(name, []).append(_END)
        self.targets = Counter(_pattern(item.target) for item in graph.inputs)
        self._forms: dict[tuple[int, int], tuple[list[Any], list[str]]] = {}

    def aval(self, name: str) -> Aval | None:
        if name in self.inputs:
            return self.inputs[name].aval
        avals = self.graph.nodes[self.place[name]].avals
        return avals[0] if len(avals) == 1 else None

    def form(self, start: int, length: int) -> tuple[list[Any], list[str]]:
        """Return a block without its names, and the values from outside in order of use."""
        key = (start, length)
        if key not in self._forms:
            outside: dict[str, int] = {}
            form = [
                self._node_form(node, start, outside)
                for node in self.graph.nodes[start : start + length]
            ]
            self._forms[key] = form, list(outside)
        return self._forms[key]

    def _node_form(self, node: Node, start: int, outside: dict[str, int]) -> Any:
        def known(value: Any) -> Any:
            if isinstance(value, Ref):
                place = self.place.get(value.name, -1)
                if place >= start:
                    return ("inside", place - start)
                return ("outside", outside.setdefault(value.name, len(outside)))
            if isinstance(value, (list, tuple)):
                return tuple(known(item) for item in value)
            if isinstance(value, Mapping):
                return tuple((key, known(item)) for key, item in value.items())
            if isinstance(value, Sub):
                return ("subgraph", node.name)  # its own: never equal
            return (type(value).__name__, repr(value))  # True is not 1, and NaN is NaN

        return node.op, known(node.args), known(node.kwargs), node.avals


def _runs(facts: _Facts) -> tuple[list[Run], dict[str, str]]:
    """Return candidate runs, the one that saves most nodes first, and where there are none."""
    found: list[Run] = []
    differing: dict[str, str] = {}
    for path, starts in _starts(facts.graph.nodes).items():
        if len(starts) < FEWEST:
            continue
        here = [run for period in PERIODS for run in _equal(facts, path, starts, period)]
        if not here:
            differing[path] = _difference(facts, starts)
        found += here
    found.sort(key=lambda run: (-run.length * (run.count - 1), run.period, run.start))
    return found, differing


def _starts(nodes: Sequence[Node]) -> dict[str, list[int]]:
    """Return where the modules ``path.0``, ``path.1``, ... begin, by path."""
    starts: dict[str, list[int]] = {}
    current: dict[str, str] = {}
    for index, node in enumerate(nodes):
        for path, number in _numbers(node.path):
            if current.get(path) != number:
                current[path] = number
                starts.setdefault(path, []).append(index)
    return starts


def _numbers(path: str) -> Iterator[tuple[str, str]]:
    """Yield the numbered modules of a path: ``a.0.b.1`` gives ("a", "0") and ("a.0.b", "1")."""
    for match in re.finditer(r"(?:^|\.)(\d+)(?=\.|$)", path):
        yield path[: match.start()], match[1]


def _equal(facts: _Facts, path: str, starts: Sequence[int], period: int) -> Iterator[Run]:
    """Yield maximal runs of equal blocks of ``period`` modules each."""
    for offset in range(period):
        ends = starts[offset::period]
        first = 0
        while first + FEWEST <= len(ends):
            start, length = ends[first], ends[first + 1] - ends[first]
            form = facts.form(start, length)[0]
            count = 1
            while (
                first + count < len(ends)
                and ends[first + count] == start + count * length
                and start + (count + 1) * length <= len(facts.graph.nodes)
                and facts.form(start + count * length, length)[0] == form
            ):
                count += 1
            if count >= FEWEST:
                yield Run(path, start, length, count, period)
            first += count


def _difference(facts: _Facts, starts: Sequence[int]) -> str:
    """Say in what the first two blocks differ."""
    first, second = starts[0], starts[1]
    length = second - first
    one, other = (facts.form(start, length)[0] for start in (first, second))
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            left, right = facts.graph.nodes[first + index], facts.graph.nodes[second + index]
            what = "" if left.op != right.op else " (its arguments or shapes)"
            read = [facts.inputs.get(name) for node in (left, right) for name in refs(node.args)]
            tied = sorted({item.target for item in read if item and item.target in facts.tied})
            what += "".join(f"; {name} is tied to another parameter" for name in tied)
            return f"the first blocks differ: {left.op} against {right.op}{what}"
    return f"fewer than {FEWEST} equal blocks in a row"


def _rewritten(facts: _Facts, run: Run) -> Graph:
    """Return the graph with a run of blocks as one scan.

    Raises:
      Declined: why that cannot be.
    """
    graph, block = facts.graph, facts.graph.nodes[run.start : run.start + run.length]
    outside = [facts.form(start, run.length)[1] for start in run.blocks()]
    carry: dict[int, int] = {}  # slot -> the place in a block of what the next one reads
    constants: list[int] = []
    stacks: dict[int, Input] = {}
    for slot, names in enumerate(zip(*outside, strict=True)):
        if len(set(names)) == 1:
            constants.append(slot)
        elif (place := _carried(facts, run, names)) is not None:
            carry[slot] = place
        else:
            stacks[slot] = _stacked(facts, run, names)
    if not stacks:
        raise Declined("the blocks have no parameters of their own")
    later = _read_later(facts, run)
    carried = list(carry.values())
    final = {(run.count - 1, place) for place in carried}
    ys = sorted({place for number, place in later - final})
    avals = [_array(block[place]) for place in (*carried, *ys)]
    name = _fresh(f"scan_{run.path}", graph)
    first = outside[0]
    body = Graph(
        tuple(
            Input(first[slot], "input", str(index), facts.aval(first[slot]))
            for index, slot in enumerate((*carry, *stacks, *constants))
        ),
        block,
        tuple(Result("output", Ref(block[place].name)) for place in (*carried, *ys)),
    )
    args = (
        Sub(name),
        [Ref(first[slot]) for slot in carry],
        [Ref(item.name) for item in stacks.values()],
        [Ref(first[slot]) for slot in constants],
    )
    stacked = [Aval((run.count, *aval.shape), aval.dtype) for aval in avals[len(carry) :]]
    made = [*avals[: len(carry)], *stacked]
    after = [Node(name, "higher_order.scan", args, avals=tuple(made), path=run.path)]

    def take(given: str, op: str, *args: Any, aval: Aval) -> None:
        after.append(Node(given, op, args, avals=(aval,), path=run.path))

    for number in range(len(carry), len(made)):
        take(f"{name}_{number}", "operator.getitem", Ref(name), number, aval=made[number])
    for number, place in sorted(later):
        old = graph.nodes[run.start + number * run.length + place]
        if (number, place) in final:
            index = carried.index(place)
            take(old.name, "operator.getitem", Ref(name), index, aval=_array(old))
        else:
            stack = Ref(f"{name}_{len(carry) + ys.index(place)}")
            take(old.name, "aten.select.int", stack, 0, number, aval=_array(old))
    gone = {names[slot]: slot for names in outside for slot in stacks}
    inputs = [
        stacks[gone[item.name]] if item.name in gone else item
        for item in graph.inputs
        if item.name not in gone or item.name == first[gone[item.name]]
    ]
    nodes = (*graph.nodes[: run.start], *after, *graph.nodes[run.end :])
    scanned = Graph(tuple(inputs), nodes, graph.results, {**graph.subgraphs, name: body})
    scanned.verify()
    return scanned


def _array(node: Node) -> Aval:
    """Return the shape and dtype of what a block hands on.

    Raises:
      Declined: it is a number or a list.
    """
    if len(node.avals) != 1 or node.avals[0] is None:
        raise Declined(f"{node.op} hands on a number or a list, which a scan cannot carry")
    return node.avals[0]


def _carried(facts: _Facts, run: Run, names: Sequence[str]) -> int | None:
    """Return the place in block g - 1 of what block g reads, or None if it is no carry."""
    places = {
        facts.place.get(name, -1) - start
        for name, start in zip(names[1:], run.blocks(), strict=False)
    }
    place = places.pop()
    if places or not 0 <= place < run.length:
        return None
    first, last = facts.aval(names[0]), facts.aval(names[1])
    if first != last:
        raise Declined(f"what a block hands on changes from {first} to {last}")
    return place


def _stacked(facts: _Facts, run: Run, names: Sequence[str]) -> Input:
    """Return the input that holds one parameter of every block."""
    items = [facts.inputs.get(name) for name in names]
    if None in items or any(item is not None and item.kind == "input" for item in items):
        some = ", ".join(names[:2])
        raise Declined(f"each block reads a value of its own that is no parameter ({some}, ...)")
    found = [item for item in items if item is not None]
    first = found[0]
    for item, start in zip(found, run.blocks(), strict=True):
        if item.target in facts.tied:
            raise Declined(f"{item.target} is tied to another parameter")
        if item.parts or (item.aval, item.perm, item.kind) != (first.aval, first.perm, first.kind):
            raise Declined(f"{item.target} is {item.aval}, {first.target} is {first.aval}")
        if any(not start <= user < start + run.length for user in facts.users[item.name]):
            raise Declined(f"{item.target} is read outside its block too")
    if len(set(names)) != len(names) or first.aval is None:
        raise Declined(f"some blocks share {first.target}, others do not")
    targets = tuple(item.target for item in found)
    aval = Aval((len(found), *first.aval.shape), first.aval.dtype)
    name = _fresh(f"{first.name}_stack", facts.graph)
    return Input(name, first.kind, _key(facts, targets), aval, first.perm, targets)


def _key(facts: _Facts, targets: Sequence[str]) -> str:
    """Return the key of a stack: the common path with ``*`` or a slice for what differs."""
    split = [target.split(".") for target in targets]
    if len({len(parts) for parts in split}) != 1:
        raise Declined(f"the names {targets[0]} and {targets[-1]} are no series")
    columns = list(zip(*split, strict=True))
    varying = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) != 1 or not all(part.isdigit() for part in columns[varying[0]]):
        raise Declined(f"the names {targets[0]} and {targets[-1]} are no series")
    numbers = [int(part) for part in columns[varying[0]]]
    whole = numbers == sorted(numbers) and facts.targets[_pattern(targets[0])] == len(targets)
    parts = list(split[0])
    parts[varying[0]] = "*" if whole else _slice(numbers)
    return ".".join(parts)


def _slice(numbers: Sequence[int]) -> str:
    """Write numbers as Python's slice, or one by one.

    >>> _slice([1, 3, 5]), _slice([0, 1, 2]), _slice([0, 1, 3])
    ('1:6:2', '0:3', '0,1,3')
    """
    step = numbers[1] - numbers[0]
    if step < 1 or list(range(numbers[0], numbers[-1] + 1, step)) != list(numbers):
        return ",".join(map(str, numbers))
    text = f"{numbers[0]}:{numbers[-1] + 1}"
    return text if step == 1 else f"{text}:{step}"


def _pattern(target: str) -> str:
    """Return a name with ``*`` for every number."""
    return ".".join("*" if part.isdigit() else part for part in target.split("."))


def _read_later(facts: _Facts, run: Run) -> set[tuple[int, int]]:
    """Return (block, place) of what is read after the run."""
    return {
        divmod(index - run.start, run.length)
        for index in range(run.start, run.end)
        if any(user >= run.end for user in facts.users.get(facts.graph.nodes[index].name, ()))
    }


def _fresh(name: str, graph: Graph) -> str:
    """Return a name that no value and no subgraph has."""
    taken = {item.name for item in (*graph.inputs, *graph.nodes)} | set(graph.subgraphs)
    plain = made = re.sub(r"\W", "_", name)
    number = 0
    while made in taken:
        number += 1
        made = f"{plain}_of_{number}"
    return made
