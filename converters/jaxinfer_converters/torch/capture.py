"""ExportedProgram -> Graph, Signature, output structure and the table of its state.

Nothing here reads a weight: parameters, buffers and constants are named, with their shapes.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)
from torch.fx import GraphModule
from torch.fx import Node as FxNode
from torch.utils import _pytree as pytree

from jaxinfer.core.errors import ConversionError, listing
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF, Structure
from jaxinfer_converters.aten._data_dependent import cure
from jaxinfer_converters.graph import Aval, DType, Graph, Input, Node, Ref, Result, Sub
from jaxinfer_converters.torch.caches import describes_object, object_structure
from jaxinfer_converters.torch.diagnose import source_line, unbacked
from jaxinfer_converters.torch.export import DATA_DEPENDENT_ADVICE
from jaxinfer_converters.torch.known import Known
from jaxinfer_converters.torch.names import (
    declared_names,
    dtype_name,
    functional_name,
    module_path,
    op_name,
)

DROPPED_KWARGS = frozenset(
    ("layout", "device", "pin_memory", "memory_format", "generator", "non_blocking")
)
_NUMBERS = (SymIntArgument, SymFloatArgument, SymBoolArgument)
_INPUT_KINDS = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}


@dataclasses.dataclass(frozen=True)
class Captured:
    """What an exported program is, without its weights.

    Attributes:
      state: kind of each named tensor: ``parameter``, ``buffer``, or ``constant``.
      persistent: buffers that are in the state_dict.
      notes: what was done to the graph, for the model's provenance.
    """

    graph: Graph
    signature: Signature
    outputs: Structure
    state: Mapping[str, str]
    persistent: frozenset[str]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def capture(
    program: ExportedProgram,
    forward: Callable[..., Any] | None = None,
    writes: Mapping[FxNode, Sequence[FxNode]] | None = None,
) -> Captured:
    """Read an exported program, decomposed or (``functional.as_it_stands``) in no need of it.

    Args:
      forward: the module's forward, for the names of positional arguments.
      writes: calls in place that become functional, with the nodes whose value they replace.

    Raises:
      ConversionError: shapes that depend on data (all of them), or a kind of argument,
        output or dtype that has no picture here.
    """
    return _Reader(program, forward, writes or {}).read()


class _Reader:
    def __init__(
        self,
        program: ExportedProgram,
        forward: Callable[..., Any] | None,
        writes: Mapping[FxNode, Sequence[FxNode]],
    ):
        self.program = program
        self.forward = forward
        self.writes = writes
        self.replaced: dict[str, str] = {}  # values that were written to, and their last name
        self.rename: dict[str, str] = {}
        self.data_dependent: dict[str, str] = {}
        self.unbacked: set[str] = set()
        self.known = Known(None if writes else program)

    def read(self) -> Captured:
        program, spec = self.program, self.program.graph_signature
        placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
        self.signature = self._signature(placeholders)
        inputs, position = [], 0
        state: dict[str, str] = {}
        persistent = set()
        for node, entry in zip(placeholders, spec.input_specs, strict=True):
            aval = self.aval(node.meta.get("val"))
            if entry.kind == InputKind.USER_INPUT:
                inputs.append(Input(node.name, "input", str(position), aval))
                position += 1
                continue
            if entry.kind == InputKind.TOKEN:
                continue  # orders effects; see _ordered
            kind = _INPUT_KINDS.get(entry.kind)
            if kind is None or entry.target is None:
                raise ConversionError(f"{node.name}: inputs of kind {entry.kind.name} have no rule")
            state[entry.target] = kind
            if kind == "buffer" and entry.persistent:
                persistent.add(entry.target)
            inputs.append(Input(node.name, kind, entry.target, aval))
        graph = self.graph(program.graph_module, inputs, self._results)
        if self.data_dependent:
            raise ConversionError(
                listing(
                    "shapes or values in this model depend on the data:",
                    list(self.data_dependent.values()),
                    DATA_DEPENDENT_ADVICE,
                )
            )
        return Captured(graph, self.signature, self._outputs(), state, frozenset(persistent))

    def graph(
        self,
        module: GraphModule,
        inputs: Sequence[Input],
        results: Callable[[], list[Result]] | None,
    ) -> Graph:
        """Read the nodes of a module; ``results`` None reads them from its output node."""
        found: list[Result] = []
        live = _live(module)
        nodes: list[Node] = []
        subgraphs: dict[str, Graph] = {}
        values: dict[FxNode, Any] = {}
        inputs = list(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = Ref(node.name)
            elif node.op == "get_attr":
                attribute = _attribute(module, node.target)
                if isinstance(attribute, GraphModule):
                    values[node] = Sub(node.target)
                    subgraphs[node.target] = self.subgraph(attribute)
                else:
                    raise ConversionError(f"{node.name}: attribute {node.target!r} is not lifted")
            elif _ordered(node):
                made = self.node(node, values)
                values[node] = Ref(node.name)
                nodes.append(
                    dataclasses.replace(
                        made, op=made.args[1], args=made.args[2:], avals=made.avals[1:]
                    )
                )
            elif source := _ordered_source(node):
                place, outputs = int(node.args[1]) - 1, len(source.args[1]._schema.returns)
                values[node] = Ref(source.name if outputs == 1 else node.name)
                if place >= 0 and outputs > 1:
                    made = self.node(node, values)
                    nodes.append(dataclasses.replace(made, args=(Ref(source.name), place)))
            elif node.op == "call_function" and node in live:
                values[node] = self.known.numbers.get(node, Ref(node.name))
                nodes.append(self.node(node, values))
                for old in self.writes.get(node, ()):
                    values[old] = Ref(node.name)
                    self.replaced[old.name] = node.name
            elif node.op == "output" and results is None:
                flat = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
                found = [Result("output", self.value(item, values)) for item in flat]
        found = found if results is None else results()
        graph = Graph(tuple(inputs), tuple(nodes), tuple(found), subgraphs)
        graph.verify()
        return graph

    def subgraph(self, module: GraphModule) -> Graph:
        inputs = [
            Input(node.name, "input", str(index), self.aval(node.meta.get("val")))
            for index, node in enumerate(n for n in module.graph.nodes if n.op == "placeholder")
        ]
        return self.graph(module, inputs, None)

    def node(self, node: FxNode, values: Mapping[FxNode, Any]) -> Node:
        op = functional_name(node.target) if node in self.writes else op_name(node.target)
        kwargs = {
            key: self.value(item, values)
            for key, item in node.kwargs.items()
            if key not in DROPPED_KWARGS
        }
        new = unbacked(node.meta.get("val")) - self.unbacked
        if new:
            self.known.settle(node)
            new -= self.known.symbols.keys()
        made = Node(
            node.name,
            op,
            tuple(self.value(item, values) for item in (*node.args, *_written(node))),
            kwargs,
            self.avals(node.meta.get("val")),
            module_path(node),
            source_line(node),
        )
        if new:
            self.unbacked |= new
            self.data_dependent[node.name] = f"{op} {made.where() or made.name}: {cure(op)}"
        return made

    def value(self, item: Any, values: Mapping[FxNode, Any]) -> Any:
        if isinstance(item, FxNode):
            return values[item]
        if isinstance(item, torch.dtype):
            return DType(dtype_name(item))
        if isinstance(item, (torch.device, torch.layout, torch.memory_format)):
            return None
        if item is None or isinstance(item, (bool, int, float, complex, str)):
            return item
        if isinstance(item, torch._ops.OpOverload):
            return op_name(item)
        if isinstance(item, (list, tuple)):
            return [self.value(x, values) for x in item]
        if isinstance(item, Mapping):  # a higher-order operator's options
            return [[str(key), self.value(x, values)] for key, x in item.items()]
        if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise ConversionError(f"a symbolic number {item} stands in the graph without a node")
        raise ConversionError(f"an argument of type {type(item).__name__} has no picture: {item!r}")

    def avals(self, value: Any) -> tuple[Aval | None, ...]:
        if isinstance(value, (tuple, list)):
            return tuple(self.aval(item) for item in value)
        one = self.aval(value)
        return () if one is None else (one,)

    def aval(self, value: Any) -> Aval | None:
        if not isinstance(value, torch.Tensor):
            return None
        return Aval(tuple(self.dim(d) for d in value.shape), dtype_name(value.dtype))

    def dim(self, size: Any) -> int | str:
        if isinstance(size, int):
            return size
        expr = self.known.exact(size.node.expr)
        text = re.sub(r"\b[su]\d+\b", lambda m: self.rename.get(m[0], m[0]), str(expr))
        return int(text) if text.isdigit() else text

    def _signature(self, placeholders: Sequence[FxNode]) -> Signature:
        """Names, structures, leaves and ranges of the user's inputs."""
        in_spec = self.program.call_spec.in_spec
        if in_spec is None:
            raise ConversionError("the exported program does not say how it is called")
        args_spec, kwargs_spec = in_spec.children()
        names = self._argument_names(len(args_spec.children()))
        names += [str(key) for key in kwargs_spec.context or ()]
        children = [*args_spec.children(), *kwargs_spec.children()]
        structures = tuple(structure(child) for child in children)
        paths: list[str] = []
        for name, item in zip(names, structures, strict=True):
            paths += [f"{name}.{p}" if p else name for p in item.paths()]
        specs = self.program.graph_signature.input_specs
        user = [
            (node, spec.arg)
            for node, spec in zip(placeholders, specs, strict=True)
            if spec.kind == InputKind.USER_INPUT
        ]
        self._name_symbols(paths, [node for node, _ in user])
        leaves = []
        for path, (node, arg) in zip(paths, user, strict=True):
            if isinstance(arg, TensorArgument):
                aval = self.aval(node.meta["val"])
                assert aval is not None
                leaves.append(LeafSpec(path, aval.shape, aval.dtype))
            elif isinstance(arg, ConstantArgument):
                leaves.append(LeafSpec(path, value=arg.value))
            elif isinstance(arg, SymIntArgument):
                raise ConversionError(
                    f"{path}: a dynamic integer input; JAX needs it static: pass it as a fixed "
                    "number, or as a tensor"
                )
            else:
                raise ConversionError(f"{path}: an input of kind {type(arg).__name__} has no rule")
        return Signature(
            tuple(names), len(args_spec.children()), structures, tuple(leaves), self._ranges()
        )

    def _argument_names(self, count: int) -> list[str]:
        names: list[str] = []
        if self.forward is not None:
            for parameter in inspect.signature(self.forward).parameters.values():
                if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                    names.append(parameter.name)
        names = names[:count]
        return names + [f"x{i}" for i in range(len(names), count)]

    def _name_symbols(self, paths: Sequence[str], nodes: Sequence[FxNode]) -> None:
        """Give each symbol the user's name for it, or its input's path and axis."""
        declared = declared_names(self.program)
        for path, node in zip(paths, nodes, strict=True):
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                continue
            for axis, size in enumerate(value.shape):
                text = "" if isinstance(size, int) else str(size.node.expr)
                plain = re.sub(r"\W", "_", f"{path}_{axis}")
                for symbol in re.findall(r"\bs\d+\b", text):
                    if symbol in self.rename:
                        continue
                    name = declared.get(text, plain)
                    if symbol != text:  # the size is a multiple of a symbol, or more than it
                        name, plain = f"{name}_unit", f"{plain}_unit"
                    taken = set(self.rename.values())
                    self.rename[symbol] = name if name not in taken else plain

    def _ranges(self) -> dict[str, tuple[int, int | None]]:
        """Ranges of the symbols; torch's lower bound of 2 means that 0 and 1 are untested."""
        ranges: dict[str, tuple[int, int | None]] = {}
        for symbol, bounds in self.program.range_constraints.items():
            name = self.rename.get(str(symbol))
            if name is None:
                continue
            # int_oo and the like are no digits; torch also writes "unbounded" as 2**63 - 1
            low, high = (
                int(str(end)) if str(end).isdigit() else None
                for end in (bounds.lower, bounds.upper)
            )
            low = low or 0
            high = None if high is not None and high >= 2**31 - 1 else high
            ranges[name] = (low if low > 2 else 0, high)
        return ranges

    def _results(self) -> list[Result]:
        """User outputs first, then the new values of buffers and inputs."""
        user, changed = [], []
        for spec in self.program.graph_signature.output_specs:
            arg = spec.arg
            if spec.kind == OutputKind.TOKEN:
                continue
            if isinstance(arg, ConstantArgument):
                value: Any = arg.value
            elif isinstance(arg, (TensorArgument, *_NUMBERS)):
                # a number read from data comes back as an array without axes
                value = Ref(self.replaced.get(arg.name, arg.name))
            else:
                raise ConversionError(f"an output of kind {type(arg).__name__} has no rule")
            if spec.kind == OutputKind.USER_OUTPUT:
                user.append(Result("output", value))
            elif spec.kind == OutputKind.BUFFER_MUTATION:
                changed.append(Result("buffer", value, str(spec.target)))
            elif spec.kind == OutputKind.USER_INPUT_MUTATION:
                changed.append(Result("input", value, self._input_path(str(spec.target))))
            else:
                raise ConversionError(f"an output of kind {spec.kind.name} has no rule")
        return user + changed

    def _input_path(self, placeholder: str) -> str:
        user = [
            spec.arg.name
            for spec in self.program.graph_signature.input_specs
            if spec.kind == InputKind.USER_INPUT
        ]
        return self.signature.leaves[user.index(placeholder)].path

    def _outputs(self) -> Structure:
        out_spec = self.program.call_spec.out_spec
        if out_spec is None:
            raise ConversionError("the exported program does not say what it returns")
        return structure(out_spec)


def structure(spec: pytree.TreeSpec) -> Structure:
    """Turn torch's tree spec into a Structure.

    Raises:
      ConversionError: a container of a kind that cannot be described as data.
    """
    if spec.is_leaf():
        return LEAF
    children = tuple(structure(child) for child in spec.children())
    kind, context = spec.type, spec.context
    if kind in (tuple, torch.Size):
        return Structure("tuple", children)
    if kind is list:
        return Structure("list", children)
    if kind.__name__ in ("dict", "OrderedDict", "immutable_dict"):
        return Structure("dict", children, tuple(context))
    if kind.__name__ == "defaultdict":
        return Structure("dict", children, tuple(context[1]))
    if kind.__name__ == "immutable_list":
        return Structure("list", children)
    if kind.__name__ == "namedtuple" or hasattr(context, "_fields"):
        return Structure("namedtuple", children, tuple(context._fields), context.__name__)
    if kind.__module__ == "torch.return_types":  # torch.topk(...) and the like
        return Structure("namedtuple", children, tuple(kind.__match_args__), kind.__name__)
    if describes_object(context):  # a cache, as transformers' exporters flatten it
        return object_structure(context)
    if isinstance(context, (list, tuple)):
        keys = _field_names(kind, context, len(children))
        if keys is not None:
            return Structure("record", children, keys, kind.__name__)
    raise ConversionError(
        f"{kind.__module__}.{kind.__qualname__} in the module's inputs or outputs is a container "
        "that cannot be described as data; return tuples, lists, dicts or dataclasses"
    )


def _field_names(kind: Any, context: Any, count: int) -> tuple[str, ...] | None:
    """Return the field names of a dataclass or ModelOutput from its tree context."""
    for candidate in (context, *[c for c in context if isinstance(c, (list, tuple))]):
        if len(candidate) == count and all(isinstance(key, str) for key in candidate):
            return tuple(candidate)
    return None


def _ordered(node: FxNode) -> bool:
    """Whether a call is ``with_effects(token, op, *args)``, which gives (token, *op(*args)).

    The tokens keep effects in order; a graph has its nodes in order, and none.
    """
    return node.target is torch.ops.higher_order.with_effects


def _ordered_source(node: FxNode) -> Any:
    """Return the ``with_effects`` call of which a node takes a result, if it does."""
    source = node.args[0] if node.target is operator.getitem else None
    return source if isinstance(source, FxNode) and _ordered(source) else None


def _live(module: GraphModule) -> set[FxNode]:
    """Return the nodes whose value reaches an output, or whose call has an effect (or no value)."""
    live: set[FxNode] = set()
    for node in reversed(module.graph.nodes):
        effect = node.op != "call_function" or node.meta.get("val") is None
        effect = effect or node.is_impure(impure_random=False)
        if effect or not live.isdisjoint(node.users):
            live.add(node)
    return live


def _written(node: FxNode) -> tuple[Any, ...]:
    """Return what the rule of ``auto_functionalized_v2`` needs to know of the schema it calls.

    The names of positional arguments, those of arguments written to, and how many outputs.

    Raises:
      ConversionError: an argument is a strided view of a tensor that is not contiguous.
    """
    if getattr(node.target, "__name__", "") != "auto_functionalized_v2":
        return ()
    called = node.args[0]
    assert isinstance(called, torch._ops.OpOverload)
    bases = cast("list[FxNode]", node.kwargs["_all_bases"])
    strided = any(key.endswith("_storage_offset") for key in node.kwargs)
    if strided and not all(base.meta["val"].is_contiguous() for base in bases):
        raise ConversionError(
            f"{op_name(called)} writes to a view of a tensor that is not contiguous; make that "
            f"tensor contiguous first ({source_line(node)})"
        )
    arguments = called._schema.arguments
    return (
        [item.name for item in arguments if not item.kwarg_only],
        [item.name for item in arguments if item.alias_info and item.alias_info.is_write],
        len(called._schema.returns),
    )


def _attribute(module: torch.nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
