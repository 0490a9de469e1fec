"""Numbers that an exported program reads from tensors made of constants alone.

``torch.arange(7).max().item()`` is a number of its own for torch.export, which never looks at
values; here it is 6, and the sizes that follow from it are fixed. Constants are also tensors
that forward closes over, and buffers that no checkpoint holds and nothing writes to: audio
codecs keep the strides of their layers in such buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node as FxNode
from torch.fx.node import map_arg

from jaxinfer_converters.torch.export import is_placeholder

READS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
LARGEST = 1 << 20
"""Elements of the tensors that are computed to know a number."""


class Known:
    """The numbers of a program that follow from constants, and the symbols that stand for them.

    The program must be functional: a tensor that is written to is not what its node says.

    Attributes:
      numbers: nodes that read a number, and that number.
      symbols: values of torch's symbols by name (``u0``); ``settle`` adds to them.
    """

    def __init__(self, program: ExportedProgram | None):
        self.numbers: dict[FxNode, int | float | bool] = {}
        self.symbols: dict[str, Any] = {}
        self._values: dict[FxNode, Any] = _constants(program) if program else {}
        for node in program.graph.nodes if program else ():
            if node.target not in READS:
                self.settle(node)
            elif self._compute(node):
                self.numbers[node] = self._values[node]
                self.symbols[str(node.meta["val"].node.expr)] = self._values[node]

    def exact(self, expr: Any) -> Any:
        """Return an expression of torch's symbols with the known ones replaced."""
        return expr.subs({s: self.symbols[s.name] for s in self._of(expr)})

    def _of(self, expr: Any) -> set[Any]:
        return {s for s in expr.free_symbols if s.name in self.symbols}

    def settle(self, node: FxNode) -> None:
        """Learn the symbols of a result whose sizes follow from known numbers.

        torch.export makes a new symbol for the size of ``w[:n]``; with n and the shape of w
        known, the operator itself says on the meta device what it is.
        """
        inputs = [item.meta.get("val") for item in node.all_input_nodes]
        numbers = [value for value in inputs if isinstance(value, torch.SymInt)]
        want = node.meta.get("val")
        outs = list(want) if isinstance(want, (tuple, list)) else [want]
        if not any(self._of(value.node.expr) for value in numbers) or not any(
            isinstance(out, torch.Tensor) and any(map(self._is_new, out.shape)) for out in outs
        ):
            return
        try:
            made = _call(node, self._like)
        except (TypeError, RuntimeError):  # a size of an input is not known, or data decides
            return
        results = made if isinstance(want, (tuple, list)) else [made]
        for old, new in zip(outs, results, strict=True):
            if isinstance(old, torch.Tensor):
                for size, known in zip(old.shape, new.shape, strict=True):
                    if isinstance(size, torch.SymInt) and self._is_new(size):
                        self.symbols[str(size.node.expr)] = known

    def _is_new(self, size: Any) -> bool:
        """Whether a size is a symbol of its own that is not known."""
        if not isinstance(size, torch.SymInt):
            return False
        return size.node.expr.is_Symbol and str(size.node.expr) not in self.symbols

    def _like(self, node: FxNode) -> Any:
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            return int(self.exact(value.node.expr))
        if isinstance(value, torch.Tensor):
            shape = [d if isinstance(d, int) else int(self.exact(d.node.expr)) for d in value.shape]
            return torch.empty(shape, dtype=value.dtype, device="meta")
        return value

    def _compute(self, node: FxNode) -> bool:
        """Compute a node after all it depends on; False, with nothing run, if it cannot."""
        order: list[FxNode] = []
        sizes: dict[FxNode, int] = {}
        seen, stack = set(self._values), [node]
        while stack:
            top = stack.pop()
            if top in seen:
                continue
            seen.add(top)
            size = top.meta.get("val")
            if isinstance(size, torch.SymInt) and self._settled(size):
                sizes[top] = int(self.exact(size.node.expr))
                continue
            if not _is_fixed(top):
                return False
            order.append(top)
            stack += top.all_input_nodes
        self._values |= sizes
        order.sort()  # as they stand in the graph
        with torch.no_grad():
            for item in order:
                self._values[item] = _call(item, self._values.__getitem__)
        return True

    def _settled(self, size: torch.SymInt) -> bool:
        return {s.name for s in size.node.expr.free_symbols} <= set(self.symbols)


def _constants(program: ExportedProgram) -> dict[FxNode, Any]:
    """Return the placeholders that are always the same small tensor."""
    signature = program.graph_signature
    written = {*signature.buffers_to_mutate.values()}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    found = {}
    for node, entry in zip(placeholders, signature.input_specs, strict=True):
        lifted = entry.kind == InputKind.CONSTANT_TENSOR
        buffer = entry.kind == InputKind.BUFFER and not entry.persistent
        value = program.constants.get(entry.target or "") if lifted or buffer else None
        if not isinstance(value, torch.Tensor) or entry.target in written:
            continue
        if not is_placeholder(value) and value.numel() <= LARGEST:
            found[node] = value
    return found


def _call(node: FxNode, value: Callable[[FxNode], Any]) -> Any:
    args: Any = map_arg(node.args, value)
    kwargs: Any = map_arg(node.kwargs, value)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _is_fixed(node: FxNode) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    chance = torch.Tag.nondeterministic_seeded in target.tags or "empty" in target.name()
    outs = node.meta.get("val")
    outs = outs if isinstance(outs, (tuple, list)) else (outs,)
    sizes = [tuple(out.shape) for out in outs if isinstance(out, torch.Tensor)]
    small = all(isinstance(d, int) for size in sizes for d in size)
    small = small and all(math.prod(size) <= LARGEST for size in sizes)
    return small and not chance and not target._schema.is_mutable
