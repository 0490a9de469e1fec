"""Graph: a framework-free, JSON-able picture of an exported program.

Nodes name their operator by overload (``aten.add.Tensor``), and keep the module path and the
source line they came from. Values are references to earlier nodes, numbers, strings, dtypes,
lists, or names of subgraphs (control flow). A graph is verified before it is lowered.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxinfer.core import dtypes
from jaxinfer.core.symbols import Dim

INPUT_KINDS = ("parameter", "buffer", "constant", "input")
OUTPUT_KINDS = ("output", "buffer", "input")


@dataclasses.dataclass(frozen=True)
class Ref:
    """A reference to the value of an input or an earlier node."""

    name: str


@dataclasses.dataclass(frozen=True)
class DType:
    """A dtype as an argument."""

    name: str


@dataclasses.dataclass(frozen=True)
class Sub:
    """A subgraph as an argument (a branch or a loop body)."""

    name: str


@dataclasses.dataclass(frozen=True)
class Aval:
    """Shape (integers and symbolic expressions) and dtype of a value."""

    shape: tuple[Dim, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Input:
    """A graph input: a parameter, buffer or constant (``target``: its name), or the leaf of
    the user's inputs with number ``target``.

    Attributes:
      aval: shape and dtype as the graph reads it, and as it is stored.
      perm: the order in which the checkpoint's axes are stored (a convolution kernel that was
        transposed once, at conversion), or the axes of an input come; empty: as they are.
      parts: the checkpoint's names whose tensors are stored stacked along a new first axis
        (repeated layers); empty: ``target`` alone.
    """

    name: str
    kind: str
    target: str
    aval: Aval | None = None
    perm: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """The checkpoint's names that this input is made of."""
        return self.parts or (self.target,)

    def source_aval(self) -> Aval | None:
        """Return what each of ``sources`` is in the checkpoint, before ``perm``."""
        if self.aval is None or not (self.perm or self.parts):
            return self.aval
        shape = self.aval.shape[1:] if self.parts else self.aval.shape
        if self.perm:
            shape = tuple(shape[self.perm.index(axis)] for axis in range(len(shape)))
        return Aval(shape, self.aval.dtype)


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator call."""

    name: str
    op: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    avals: tuple[Aval | None, ...] = ()
    path: str = ""
    source: str = ""

    def where(self) -> str:
        """Return ``in encoder.layer.0 (Linear), modeling.py:12: code`` as far as known."""
        return ", ".join(filter(None, (f"in {self.path}" if self.path else "", self.source)))


@dataclasses.dataclass(frozen=True)
class Result:
    """A graph output: the user's (``output``), or the new value of a buffer or an input.

    Attributes:
      perm: the order in which its axes come back (images that are wanted channels-last);
        empty: as the module returns them.
    """

    kind: str
    value: Any
    target: str = ""
    perm: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Graph:
    """Inputs, nodes in order, results, and subgraphs by name."""

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    results: tuple[Result, ...]
    subgraphs: Mapping[str, Graph] = dataclasses.field(default_factory=dict)

    def walk(self) -> Iterator[Node]:
        """Yield every node, also those of subgraphs."""
        yield from self.nodes
        for subgraph in self.subgraphs.values():
            yield from subgraph.walk()

    @functools.cached_property
    def last_uses(self) -> Mapping[str, tuple[str, ...]]:
        """Values that are read for the last time by each node, so that they can be dropped."""
        last = {name: n.name for n in self.nodes for name in refs((n.args, n.kwargs))}
        kept = set(refs([result.value for result in self.results]))
        by_node: dict[str, list[str]] = {}
        for name, node in last.items():
            if name not in kept:
                by_node.setdefault(node, []).append(name)
        return {node: tuple(names) for node, names in by_node.items()}

    @functools.cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that gives each value (inputs have none)."""
        return {node.name: node for node in self.nodes}

    def counts_up(self, value: Any) -> bool:
        """Whether a value is a + 0, a + 1, .. a + n - 1 for some a, as far as the graph tells:
        an ``arange`` of step 1 to which scalars were added.
        """
        node = self.producers.get(value.name) if isinstance(value, Ref) else None
        if node is None:
            return False
        if node.op == "aten.arange.start_step":
            return (node.args[2] if len(node.args) > 2 else node.kwargs.get("step", 1)) == 1
        if node.op in ("aten.arange.default", "aten.arange.start"):
            return True
        if node.op in ("aten.add.Tensor", "aten.add.Scalar") and not node.kwargs:
            first, second = node.args[:2]
            return (self.counts_up(first) and self._is_scalar(second)) or (
                self.counts_up(second) and self._is_scalar(first)
            )
        return False

    def _is_scalar(self, value: Any) -> bool:
        if not isinstance(value, Ref):
            return isinstance(value, int)
        item = self.producers.get(value.name)
        if item is not None:
            return len(item.avals) == 1 and item.avals[0] is not None and not item.avals[0].shape
        avals = [i.aval for i in self.inputs if i.name == value.name]
        return len(avals) == 1 and avals[0] is not None and not avals[0].shape

    def verify(self) -> None:
        """Check that names are unique and defined before use, and subgraphs exist.

        Raises:
          ValueError: with every fault found.
        """
        faults: list[str] = []
        known: set[str] = set()
        for item in (*self.inputs, *self.nodes):
            if isinstance(item, Node):
                for value in _flat((item.args, item.kwargs)):
                    if isinstance(value, Ref) and value.name not in known:
                        faults.append(f"{item.name}: reads {value.name!r} before it is defined")
                    if isinstance(value, Sub) and value.name not in self.subgraphs:
                        faults.append(f"{item.name}: unknown subgraph {value.name!r}")
            elif item.kind not in INPUT_KINDS:
                faults.append(f"{item.name}: unknown input kind {item.kind!r}")
            if item.name in known:
                faults.append(f"{item.name}: defined twice")
            known.add(item.name)
        for result in self.results:
            if result.kind not in OUTPUT_KINDS:
                faults.append(f"unknown result kind {result.kind!r}")
            if isinstance(result.value, Ref) and result.value.name not in known:
                faults.append(f"result {result.value.name!r} is not defined")
        for name, subgraph in self.subgraphs.items():
            try:
                subgraph.verify()
            except ValueError as error:
                faults.append(f"subgraph {name}: {error}")
        if faults:
            raise ValueError("the graph is not well formed: " + "; ".join(faults[:20]))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object (finite numbers only; see ``encode``)."""
        return {
            "inputs": [_input_json(item) for item in self.inputs],
            "nodes": [_node_json(node) for node in self.nodes],
            "results": [
                [r.kind, encode(r.value), r.target, *([list(r.perm)] if r.perm else ())]
                for r in self.results
            ],
            "subgraphs": {name: graph.to_json() for name, graph in self.subgraphs.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graph:
        """Rebuild and verify a graph.

        Raises:
          ValueError, KeyError, TypeError: the data is not what ``to_json`` writes.
        """
        graph = cls(
            tuple(_input(item) for item in data["inputs"]),
            tuple(_node(item) for item in data["nodes"]),
            tuple(
                Result(kind, decode(value), target, *(tuple(map(int, p)) for p in perm))
                for kind, value, target, *perm in data["results"]
            ),
            {name: cls.from_json(item) for name, item in data["subgraphs"].items()},
        )
        graph.verify()
        return graph


def refs(value: Any) -> Iterator[str]:
    """Yield the names that an argument refers to."""
    return (item.name for item in _flat(value) if isinstance(item, Ref))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flat(item)
    else:
        yield value


def encode(value: Any) -> Any:
    """Return an argument as JSON; numbers that JSON lacks and references become objects.

    >>> encode([Ref("x"), float("-inf"), 2, DType("int64")])
    [{'ref': 'x'}, {'float': '-inf'}, 2, {'dtype': 'int64'}]
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, DType):
        return {"dtype": value.name}
    if isinstance(value, Sub):
        return {"graph": value.name}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    raise TypeError(f"cannot write a {type(value).__name__} argument as JSON: {value!r}")


def decode(value: Any) -> Any:
    """Inverse of ``encode`` (lists come back as lists)."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((key, inner),) = value.items()
    if key == "ref":
        return Ref(str(inner))
    if key == "dtype":
        dtypes.dtype_of(inner)
        return DType(inner)
    if key == "graph":
        return Sub(str(inner))
    if key == "float":
        return float(inner)
    if key == "complex":
        real, imag = (decode(part) for part in inner)
        return complex(real, imag)
    raise ValueError(f"unknown argument kind {key!r}")


def _aval_json(aval: Aval) -> list[Any]:
    return [list(aval.shape), aval.dtype]


def _aval(data: Sequence[Any]) -> Aval:
    dtypes.dtype_of(data[1])
    return Aval(tuple(data[0]), data[1])


def _input_json(item: Input) -> list[Any]:
    data: list[Any] = [item.name, item.kind, item.target]
    data.append(None if item.aval is None else _aval_json(item.aval))
    if item.perm or item.parts:
        data.append({"perm": list(item.perm), "parts": list(item.parts)})
    return data


def _input(data: Sequence[Any]) -> Input:
    name, kind, target, aval, *stored = data
    how = stored[0] if stored else {"perm": (), "parts": ()}
    item = Input(
        str(name),
        str(kind),
        str(target),
        None if aval is None else _aval(aval),
        tuple(int(axis) for axis in how["perm"]),
        tuple(str(part) for part in how["parts"]),
    )
    rank = 0 if item.aval is None else len(item.aval.shape) - bool(item.parts)
    if item.perm and sorted(item.perm) != list(range(rank)):
        raise ValueError(f"{name}: perm {list(item.perm)} is no order of {rank} axes")
    return item


def _node_json(node: Node) -> dict[str, Any]:
    data: dict[str, Any] = {"name": node.name, "op": node.op, "args": encode(node.args)}
    if node.kwargs:
        data["kwargs"] = {key: encode(value) for key, value in node.kwargs.items()}
    if node.avals:
        data["out"] = [None if aval is None else _aval_json(aval) for aval in node.avals]
    if node.path:
        data["path"] = node.path
    if node.source:
        data["source"] = node.source
    return data


def _node(data: Mapping[str, Any]) -> Node:
    return Node(
        str(data["name"]),
        str(data["op"]),
        tuple(decode(data["args"])),
        {key: decode(value) for key, value in data.get("kwargs", {}).items()},
        tuple(None if item is None else _aval(item) for item in data.get("out", ())),
        str(data.get("path", "")),
        str(data.get("source", "")),
    )
