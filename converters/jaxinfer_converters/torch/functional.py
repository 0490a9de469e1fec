"""Whether an exported program needs torch's decompositions, and the writes it has to itself.

``run_decompositions`` traces the whole program twice (32 s for 3,000 nodes, 550 s for 10,000
on 2 busy cores, torch 2.13), which is wasted where every operator has a rule and nothing
writes. A write in place ``y = relu_(x)`` is the functional ``y = relu(x)``, with y for x from
there on, if nothing else can see the storage of x: no input, no view of it made before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._C import DispatchKey
from torch.export import ExportedProgram
from torch.fx import Node

from jaxinfer.core.ops import OPS
from jaxinfer_converters.torch.names import functional_name, op_name

Writes = Mapping[Node, tuple[Node, ...]]
"""Each call in place, with the earlier nodes whose value it replaces."""

_FRESH = frozenset(
    f"aten.{name}"
    for name in (
        *("conv1d.default", "conv2d.default", "conv2d.padding", "conv3d.default"),
        *("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input"),
        *("linear.default", "batch_norm.default", "layer_norm.default", "group_norm.default"),
        *("max_pool2d.default", "adaptive_avg_pool2d.default", "sym_size.int"),
    )
)
"""Composite operators whose result is always a tensor of its own (others may return a view)."""

_UNSAID_VIEWS = frozenset(("aten._unsafe_view.default", "aten.lift.default"))
"""Operators whose result may be a view although their schema does not say so."""

_DROPOUT = frozenset(
    f"aten.{name}dropout.default" for name in ("", "feature_", "alpha_", "feature_alpha_")
)

_STATISTICS = tuple(
    f"aten.{name}.default" for name in ("batch_norm", "instance_norm", "native_batch_norm")
)
"""Operators that write running statistics (argument 3) in training (argument 5), unsaid."""


def as_it_stands(program: ExportedProgram) -> Writes | None:
    """Return the program's writes if its nodes need no decomposition, else None."""
    writes = []
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
            return None  # control flow: subgraphs
        if _mutates(node.target):
            writes.append(node)
        elif op_name(node.target) not in OPS or _writes_statistics(node):
            return None
    return _private(program.graph, writes)


def _private(graph: torch.fx.Graph, writes: list[Node]) -> Writes | None:
    """Return each write with what it replaces, or None if one can be seen from elsewhere."""
    if not all(map(_has_functional_form, writes)):
        return None
    written = set(writes)
    found: dict[Node, tuple[Node, ...]] = {}
    root: dict[Node, Node] = {}  # of a node that is another's tensor itself
    members: dict[Node, list[Node]] = {}  # by root
    last: dict[Node, int] = {}
    for index, node in enumerate(graph.nodes):
        source = node.args[0] if node.args else None
        if isinstance(source, Node) and (node in written or _is_input_itself(node)):
            root[node] = root.get(source, source)
            known = members.setdefault(root[node], [root[node]])
            if node in written:
                found[node] = tuple(known)
                last[root[node]] = index
            known.append(node)
    for first in last:
        if first.op != "call_function" or not _is_fresh(first):
            return None
    for index, node in enumerate(graph.nodes):
        for value in node.all_input_nodes:
            early = index < last.get(root.get(value) or value, 0)
            if early and node not in root and not _is_fresh(node):
                return None  # may be a view, and the write would show in it
    return found


def _is_input_itself(node: Node) -> bool:
    """Whether a call returns its first argument: dropout in eval mode (argument 2: train)."""
    return str(node.target) in _DROPOUT and not node.args[2]


def _has_functional_form(node: Node) -> bool:
    """Whether a call writes to its first argument alone, and a rule computes the same value."""
    schema = getattr(node.target, "_schema", None)
    name = functional_name(node.target)
    if schema is None or name == op_name(node.target) or name not in OPS:
        return False  # a custom operator's rule returns outputs, and then what it writes
    written = [arg.alias_info is not None and arg.alias_info.is_write for arg in schema.arguments]
    tensors = [x.meta.get("val") for x in node.all_input_nodes]
    types = {x.dtype for x in tensors if isinstance(x, torch.Tensor)}
    return written[0] and not any(written[1:]) and len(types) == 1  # no promotion


def _is_fresh(node: Node) -> bool:
    """Whether a call's result certainly shares no storage with its arguments."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        return False
    if op.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
        return str(op) in _FRESH
    returns = op._schema.returns
    one = len(returns) == 1 and str(returns[0].type) == "Tensor" and returns[0].alias_info is None
    return one and str(op) not in _UNSAID_VIEWS


def _mutates(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _writes_statistics(node: Node) -> bool:
    if str(node.target) not in _STATISTICS:
        return False
    return node.args[3] is not None and bool(node.args[5])
