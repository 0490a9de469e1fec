"""Numbers that an exported program reads from tensors made of constants alone.

``torch.arange(7).max().item()`` is a number of its own for torch.export, which never looks at
values; here it is 6, and the sizes that follow from it are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node as FxNode
from torch.fx.node import map_arg

READS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
LARGEST = 1 << 20
"""Elements of the tensors that are computed to know a number."""


class Known:
    """The numbers of a program that follow from constants, and the symbols that stand for them.

    Attributes:
      numbers: nodes that read a number, and that number.
      symbols: values of torch's symbols by name (``u0``); ``settle`` adds to them.
    """

    def __init__(self, program: ExportedProgram | None):
        self.numbers = known_numbers(program) if program else {}
        self.symbols: dict[str, Any] = {
            str(node.meta["val"].node.expr): value for node, value in self.numbers.items()
        }

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
        if not any(self._of(value.node.expr) for value in numbers):
            return
        try:
            made = _call(node, self._like)
        except (TypeError, RuntimeError):  # a size of an input is not known, or data decides
            return
        want = node.meta["val"]
        pairs = zip(want, made, strict=True) if isinstance(want, (tuple, list)) else [(want, made)]
        for old, new in pairs:
            for size, known in zip(old.shape, new.shape, strict=True):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self.symbols[str(size.node.expr)] = known

    def _like(self, node: FxNode) -> Any:
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            return int(self.exact(value.node.expr))
        if isinstance(value, torch.Tensor):
            shape = [d if isinstance(d, int) else int(self.exact(d.node.expr)) for d in value.shape]
            return torch.empty(shape, dtype=value.dtype, device="meta")
        return value


def known_numbers(program: ExportedProgram) -> Mapping[FxNode, int | float | bool]:
    """Return the numbers read from tensors that depend on no input, weight, or chance.

    The program must be functional: a tensor that is written to is not what its node says.
    """
    found: dict[FxNode, Any] = {}
    values: dict[FxNode, Any] = {}
    for node in program.graph.nodes:
        if node.target in READS and _compute(node, values):
            found[node] = values[node]
    return found


def _compute(node: FxNode, values: dict[FxNode, Any]) -> bool:
    """Compute a node after all it depends on; returns False, with nothing run, if it cannot."""
    order: list[FxNode] = []
    seen, stack = set(values), [node]
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        if not _is_fixed(top):
            return False
        seen.add(top)
        order.append(top)
        stack += top.all_input_nodes
    order.sort()  # as they stand in the graph
    with torch.no_grad():
        for item in order:
            values[item] = _call(item, values.__getitem__)
    return True


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
