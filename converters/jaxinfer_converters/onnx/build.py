"""Builds a Graph of an ONNX graph: what is known before the data, and what is an array.

ONNX computes shapes with tensors: ``Reshape(x, Concat(Shape(y)[0], -1))``. Here every value is
one of

* **known**: a small constant; operators on known values are evaluated at once;
* **static**: computed from known values and from the shapes of others (``Shape``, ``Size``);
  it becomes ``onnx.host.*`` nodes, which numpy evaluates while JAX traces, at any size;
* **array**: everything else, computed by JAX.

A static value that an array operator reads is handed over by ``onnx.to_array``; an array where
an operator needs a static one (a shape that depends on data) is an error that names the
graph's inputs it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from jaxinfer.core import dtypes
from jaxinfer.core.errors import ConversionError
from jaxinfer.core.ops import OPS
from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result, Sub
from jaxinfer_converters.onnx.call import Call, read_call
from jaxinfer_converters.onnx.known import DynamicValueError, Info, Model
from jaxinfer_converters.onnx.read import dtype_name

SMALL = 1024
"""Values up to which a constant is known, and written into the graph."""

CONSTANT_BYTES = 1 << 20
"""Bytes up to which a tensor that is no parameter is a constant of the program."""

STRUCTURAL = frozenset(("Shape", "Size", "SequenceLength", "OptionalHasElement"))
"""Operators whose result is static whatever their input is."""

SEVERAL = frozenset(("DynamicQuantizeLinear", "GRU", "LSTM", "RNN", "TopK"))
"""Operators whose rules return several values, also where only the first is asked for."""

Lowering = Callable[["Builder", Call], Any]
LOWER: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Register how an ONNX operator becomes nodes; ``fn(b, n)`` returns a Ref or a list."""

    def add(fn: Lowering) -> Lowering:
        for name in names:
            assert name not in LOWER, name
            LOWER[name] = fn
        return fn

    return add


def with_static(*places: int) -> Lowering:
    """Lower to the rule of the same name, with the inputs at these places static."""

    def lower(b: Builder, n: Call) -> Ref:
        args = [
            (b.host(name) if place in places else b.array(name)) if name else None
            for place, name in enumerate(n.inputs)
        ]
        return b.emit(n.op if "." in n.op else f"onnx.{n.op}", *args, **plain(n.attrs))

    return lower


class Builder:
    """Builds one graph, or a subgraph that reads values of the one around it."""

    def __init__(self, model: Model, parent: Builder | None = None):
        self.model = model
        self.parent = parent
        self.nodes: list[Node] = []
        self.inputs: list[Input] = []
        self.subgraphs: dict[str, Graph] = {}
        self.captured: list[tuple[str, str]] = []
        self._names: set[str] = set()
        self._avals: dict[str, Aval] = {}
        self._arrays: dict[str, Ref] = {}
        self._hosts: dict[str, Ref] = {}
        self._known: dict[str, np.ndarray] = {}
        self._static: dict[str, Call] = {}
        self._alias: dict[str, str] = {}
        self._label = ""
        self._output = ""

    # What a value is.

    def info(self, name: str) -> Info:
        """Return what is known of a value's type."""
        return self.model.infos.get(name) or Info(None)

    def value(self, name: str) -> np.ndarray | None:
        """Return a known value, else None."""
        name = self._alias.get(name, name)
        if name in self._known:
            return self._known[name]
        if self._defines(name) or self.parent is None:
            return None
        return self.parent.value(name)

    def is_static(self, name: str) -> bool:
        """Return whether a value is known before the data."""
        name = self._alias.get(name, name)
        if name in self._known or name in self._static or name in self._hosts:
            return True
        if name in self._arrays or self.parent is None:
            return False
        return self.parent.is_static(name)

    def _defines(self, name: str) -> bool:
        return any(name in table for table in (self._arrays, self._static, self._hosts))

    # What a lowering asks for.

    def array(self, name: str) -> Ref:
        """Return a value as an array (or a list of arrays, for sequences)."""
        name = self._alias.get(name, name)
        if name in self._arrays:
            return self._arrays[name]
        if name in self._static:
            call = self._static[name]
            rank = self.info(name).rank
            if call.op in STRUCTURAL or rank is None or rank <= 1:
                self._arrays[name] = self._to_array(name)
            else:
                self._bind(call, self._lower(call))
        elif name in self._known or name in self._hosts:
            self._arrays[name] = self._to_array(name)
        elif self.parent is None:
            self._arrays[name] = self._weight(name)
        elif self.value(name) is not None:
            self._known[name] = self.parent.value(name)  # pyright: ignore
            return self.array(name)
        else:
            self._arrays[name] = self._capture("array", name)
        return self._arrays[name]

    def host(self, name: str) -> Ref:
        """Return a static value, as numpy has it while JAX traces.

        Raises:
          DynamicValueError: it depends on the data.
        """
        name = self._alias.get(name, name)
        if name in self._hosts:
            return self._hosts[name]
        if (value := self.value(name)) is not None:
            self._hosts[name] = self._constant(value, name)
        elif name in self._static:
            self._emit_host(self._static[name])
        elif not self._defines(name) and self.parent is not None:
            if not self.parent.is_static(name) and not self._small_weight(name):
                raise self._dynamic(name)
            self._hosts[name] = self._capture("host", name)
        elif self._small_weight(name):
            self._hosts[name] = self._constant(self.read(self.model.weights[name]), name)
        else:
            raise self._dynamic(name)
        return self._hosts[name]

    def either(self, name: str) -> Ref:
        """Return a value as numpy has it if it is static, else as an array."""
        return self.host(name) if self.is_static(name) else self.array(name)

    def optional(self, name: str) -> Ref | None:
        """Return an array, or None for an input that is left out."""
        return self.array(name) if name else None

    def optional_host(self, name: str) -> Ref | None:
        """Return a static value, or None for an input that is left out."""
        return self.host(name) if name else None

    def known(self, name: str) -> np.ndarray | None:
        """Return a value if it can be had at conversion: known, or a small weight."""
        value = self.value(name)
        if value is None and not self.is_static(name) and self._small_weight(name):
            return self.read(self.model.weights[name])
        return value

    def emit(self, op: str, *args: Any, **kwargs: Any) -> Ref:
        """Add a node; None among keywords is left out."""
        name = self._fresh(self._output or op.split(".")[1])
        given = {key: value for key, value in kwargs.items() if value is not None}
        self.nodes.append(Node(name, op, args, given, path=self._label))
        return Ref(name)

    def item(self, values: Ref, index: int) -> Ref:
        """Return one result of a node with several."""
        return self.emit("operator.getitem", values, index)

    @property
    def values(self) -> Mapping[str, Ref]:
        """The array of each ONNX value that has one."""
        return self._arrays

    def read(self, tensor: onnx.TensorProto) -> np.ndarray:
        """Return a tensor's values."""
        return self.model.file.read(tensor)

    # How a graph is filled.

    def add_input(self, name: str, aval: Aval | None = None, *, static: bool = False) -> None:
        """Add the graph's next input."""
        ref = Ref(self._fresh(name))
        self.inputs.append(Input(ref.name, "input", str(len(self.inputs)), aval))
        if aval is not None:
            self._avals[name] = aval
        (self._hosts if static else self._arrays)[name] = ref

    def add_sequence(self, name: str, avals: Sequence[Aval]) -> None:
        """Add inputs for the tensors of a sequence."""
        items = []
        for index, aval in enumerate(avals):
            self.add_input(f"{name}.{index}", aval)
            items.append(self._arrays[f"{name}.{index}"])
        self._arrays[name] = self.emit("onnx.SequenceConstruct", *items)

    def add_none(self, name: str) -> None:
        """Add an optional input that is left out; it takes the place of a leaf."""
        self.add_input(name)

    def add_known(self, name: str, value: np.ndarray) -> None:
        """Add a constant."""
        self._known[name] = value

    def add_tensor(self, name: str, tensor: onnx.TensorProto) -> None:
        """Add an initializer: small integers, bools and scalars are known, the rest weights."""
        size = int(np.prod(tensor.dims, dtype=np.int64))
        inexact = tensor.data_type in _INEXACT
        if size <= SMALL and not (inexact and tensor.dims):
            self._known[name] = self.read(tensor)
        else:
            self.model.weights[name] = tensor

    def add_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Add nodes in order."""
        for node in nodes:
            self._label = node.name or f"{node.op_type} {next(filter(None, node.output), '')}"
            call = read_call(node, self.model.opsets, self.read, lambda n: self.info(n).dtype)
            self._known.update(call.constants)
            self.add(call)

    def add(self, call: Call) -> None:
        """Add an operator: evaluated, kept for when it is asked for, or lowered."""
        self._label = call.name
        self.model.producers.update(dict.fromkeys(call.outputs, call))
        if call.op == "Constant":
            self._add_constant(call)
        elif call.op == "Identity" and self.is_static(call.inputs[0]):
            self.alias(call.outputs[0], call.inputs[0])
        elif self._on_host(call) and not self._fold(call):
            self._static.update({name: call for name in call.outputs if name})
        elif not self._on_host(call):
            self._bind(call, self._lower(call))

    def alias(self, name: str, other: str) -> None:
        """Let ``name`` stand for a value that exists."""
        self._alias[name] = self._alias.get(other, other)

    def graph(self, outputs: Sequence[str]) -> Graph:
        """Return the graph built so far, with these results."""
        results = tuple(Result("output", self.array(name)) for name in outputs)
        return Graph(tuple(self.inputs), tuple(self.nodes), results, dict(self.subgraphs))

    def subgraph(self, graph: onnx.GraphProto, static: Sequence[str] = ()) -> tuple[Sub, list[Ref]]:
        """Build a subgraph; returns it and the values of this graph that it reads besides.

        Args:
          static: names of its own inputs that are static.
        """
        inner = Builder(self.model, self)
        for item in graph.input:
            inner.add_input(item.name, static=item.name in static)
        for tensor in graph.initializer:
            inner.add_tensor(tensor.name, tensor)
        inner.add_nodes(graph.node)
        built = inner.graph([item.name for item in graph.output])
        name = self._fresh(graph.name or "body")
        self.subgraphs[name] = built
        label, operands = self._label, []
        for how, outer in inner.captured:
            operands.append(self.host(outer) if how == "host" else self.array(outer))
        self._label = label
        return Sub(name), operands

    # Private.

    def _fresh(self, name: str) -> str:
        fresh, number = name, 1
        while fresh in self._names:
            fresh, number = f"{name}.{number}", number + 1
        self._names.add(fresh)
        return fresh

    def _on_host(self, call: Call) -> bool:
        if call.op in STRUCTURAL:
            return True
        given = [name for name in call.inputs if name]
        return f"onnx.host.{call.op}" in OPS and all(map(self.is_static, given))

    def _fold(self, call: Call) -> bool:
        """Evaluate a call on known values; large results are left to be arrays."""
        values = [self.value(name) if name else None for name in call.inputs]
        if call.op in ("Shape", "Size") and call.inputs[0] in self._avals:
            shape = self._avals[call.inputs[0]].shape
            sizes = [size for size in shape if isinstance(size, int)]
            if len(sizes) == len(shape):
                values = [np.broadcast_to(np.zeros(()), sizes)]  # only its shape is looked at
        missing = any(v is None for v, name in zip(values, call.inputs, strict=True) if name)
        if missing or call.op in ("SequenceLength", "OptionalHasElement"):
            return False
        if call.op == "ConstantOfShape" and np.prod(values[0], dtype=float) > SMALL:  # pyright: ignore
            return False
        out = OPS[f"onnx.host.{call.op}"](*values, **plain(call.attrs))
        outs = out if isinstance(out, list) else [out]
        if any(np.size(item) > SMALL for item in outs):
            return False
        self._known.update({n: v for n, v in zip(call.outputs, outs, strict=False) if n})
        return True

    def _add_constant(self, call: Call) -> None:
        name, ((key, value),) = call.outputs[0], tuple(call.attrs.items())
        if key.startswith("value_string"):
            raise ConversionError(f"{call.name}: a constant of strings; JAX has none")
        kind = {"value_float": "float32", "value_floats": "float32"}.get(key, "int64")
        array = value if key == "value" else np.asarray(value, kind)
        if array.dtype.kind in "OU":
            raise ConversionError(f"{call.name}: a constant of strings; JAX has none")
        if array.size <= SMALL:
            self._known[name] = array
        else:
            self.model.weights[name] = onnx.numpy_helper.from_array(array, name)

    def _lower(self, call: Call) -> Any:
        label, output = self._label, self._output
        self._label, self._output = call.name, next(filter(None, call.outputs), "")
        try:
            if call.op in LOWER:
                return LOWER[call.op](self, call)
            args = [self.optional(name) for name in call.inputs]
            space = "onnx" if "." not in call.op else ""
            return self.emit(".".join(filter(None, (space, call.op))), *args, **plain(call.attrs))
        finally:
            self._label, self._output = label, output

    def _bind(self, call: Call, out: Any) -> None:
        if isinstance(out, Ref) and (len(call.outputs) > 1 or call.op in SEVERAL):
            out = [self.item(out, i) if n else None for i, n in enumerate(call.outputs)]
        outs = out if isinstance(out, list) else [out]
        for name, ref in zip(call.outputs, outs, strict=False):
            if name and ref is not None:
                self._arrays[name] = ref

    def _emit_host(self, call: Call) -> None:
        label, output = self._label, self._output
        self._label, self._output = call.name, f"{next(filter(None, call.outputs))}.host"
        structural = call.op in STRUCTURAL
        read = self.either if structural else self.host
        args = [read(name) if name else None for name in call.inputs]
        out = self.emit(f"onnx.host.{call.op}", *args, **plain(call.attrs))
        several = len(call.outputs) > 1
        for index, name in enumerate(call.outputs):
            if name:
                self._hosts[name] = self.item(out, index) if several else out
        self._label, self._output = label, output

    def _constant(self, value: np.ndarray, name: str) -> Ref:
        dtype = value.dtype.name
        if dtype not in dtypes.NAMES:
            raise ConversionError(f"{name}: a constant of dtype {dtype}, which JAX lacks")
        flat = value.reshape(-1)
        if dtype not in _NATIVE:
            flat = flat.astype(np.float64 if dtypes.kind(value.dtype) == "float" else np.int64)
        output, self._output = self._output, name
        ref = self.emit("onnx.constant", flat.tolist(), list(value.shape), dtype)
        self._output = output
        return ref

    def _weight(self, name: str) -> Ref:
        tensor = self.model.weights.get(name)
        if tensor is None:
            raise ConversionError(f"{self._label}: reads {name!r}, which nothing computes")
        kind = "constant"
        if tensor.data_type in _INEXACT:
            kind = "parameter"
        aval = _tensor_aval(tensor)
        size = int(np.prod(tensor.dims, dtype=np.int64)) * dtypes.dtype_of(aval.dtype).itemsize
        if kind == "constant" and size > CONSTANT_BYTES:
            kind = "buffer"
        ref = Ref(self._fresh(name))
        self.inputs.append(Input(ref.name, kind, name, aval))
        return ref

    def _to_array(self, name: str) -> Ref:
        value, output = self.host(name), self._output
        self._output = name
        ref = self.emit("onnx.to_array", value)
        self._output = output
        return ref

    def _small_weight(self, name: str) -> bool:
        tensor = self.model.weights.get(name)
        return tensor is not None and bool(np.prod(tensor.dims, dtype=np.int64) <= SMALL)

    def _capture(self, how: str, name: str) -> Ref:
        ref = Ref(self._fresh(name))
        self.inputs.append(Input(ref.name, "input", str(len(self.inputs))))
        self.captured.append((how, name))
        return ref

    def _dynamic(self, name: str) -> DynamicValueError:
        roots, seen, front = [], set(), [name]
        while front:
            value = front.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in self.model.user:
                roots.append(value)
            call = self.model.producers.get(value)
            if call is not None and call.op not in STRUCTURAL:
                front += [*filter(None, call.inputs), *_reads(call)]
        comes = f"comes from the data ({', '.join(roots)})" if roots else "depends on the data"
        advice = "; ".join(f"fixed={{{root!r}: value}}" for root in roots[:1]) or "a fixed size"
        return DynamicValueError(
            f"{self._label}: needs {name!r} before it runs, because a shape or an axis depends "
            f"on it, but it {comes}. JAX compiles for fixed shapes: convert with {advice}, or "
            "make it a constant of the model",
            roots,
        )


def _reads(call: Call) -> list[str]:
    """Return the values that the subgraphs of a call read."""
    graphs = [value for value in call.attrs.values() if isinstance(value, onnx.GraphProto)]
    found: list[str] = []
    while graphs:
        for node in graphs.pop().node:
            found += filter(None, node.input)
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    return found


def item_node(values: Ref, index: int, number: int) -> Node:
    """Return a node for one tensor of a sequence."""
    return Node(f"{values.name}.item{number}", "operator.getitem", (values, index))


_INEXACT = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "COMPLEX64", "COMPLEX128")
)
_NATIVE = frozenset(
    ("bool", "float32", "float64", "float16", "complex64", "complex128")
    + tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
)


def _tensor_aval(tensor: onnx.TensorProto) -> Aval:
    return Aval(tuple(tensor.dims), dtype_name(tensor.data_type, tensor.name))


def plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as a node can hold them: tensors of one value as value and dtype."""
    plain: dict[str, Any] = {}
    for key, value in attrs.items():
        if isinstance(value, np.ndarray):
            if value.size != 1:
                plain[key] = value.tolist()
                continue
            plain[key] = (
                value.reshape(()).astype(np.float64).item()
                if value.dtype.name not in (_NATIVE)
                else value.reshape(()).item()
            )
            plain[f"{key}_dtype"] = value.dtype.name
        elif isinstance(value, onnx.GraphProto):
            raise ConversionError(f"attribute {key!r}: a graph, of an operator without a rule")
        else:
            plain[key] = value
    return plain
