"""Products by a parameter, and the affine maps by channel that follow them.

site    y = dot_general(x, k) or conv_general_dilated(x, k), k a parameter (or what is
        computed of parameters alone) that is rearranged, without loss, and used once
chain   y a + b written as any row of mul, div, add, sub, neg by values of parameters and
        constants that vary along the output channels only, each result read once;
        rearrangements between that keep every channel axis whole are passed through
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxinfer.core.provenance import LAYOUT, Axes
from jaxinfer.numerics.folding import Layout
from jaxinfer.transforms._fold_branches import scaled_axes
from jaxinfer.transforms._fold_flat import OUTPUT, Flat, Node
from jaxinfer.transforms._fold_values import Values

Labels = tuple[int | None, ...]
"""For each axis of a value, the output axis of the kernel that it is; None: not a channel."""

_ARITHMETIC = ("mul", "div", "add", "add_any", "sub", "neg")
_BETWEEN = ("transpose", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "copy")
_LOSSLESS = ("transpose", "reshape", "squeeze", "rev", "copy", "convert_element_type")


class Op(NamedTuple):
    """An equation of a chain.

    Attributes:
      node: its index.
      kind: ``mul``, ``div``, ``add``, ``sub``, ``rsub`` (operand - y) or ``neg``.
      passed: the value that it maps.
      operand: the value that it maps it with, if any.
      labels: of both, axis by axis.
      output: the result.
    """

    node: int
    kind: str
    passed: int
    operand: int | None
    labels: Labels
    output: int


class Site(NamedTuple):
    """A product by a parameter.

    Attributes:
      node: index of the equation.
      side: which of its operands is the kernel.
      source: the parameter, or the value computed of parameters.
      steps: indices of the rearrangements between source and equation, in order.
      layout: of the kernel as the equation reads it; all output axes, ascending.
      labels: of the product.
      chain: what follows.
      end: the value after the chain and all that only rearranges it.
      straight: whether nothing is rearranged from the product to there.
    """

    node: int
    side: int
    source: int
    steps: tuple[int, ...]
    layout: Layout
    labels: Labels
    chain: tuple[Op, ...]
    end: int
    straight: bool

    @property
    def outputs(self) -> tuple[int, ...]:
        """Axes of the kernel that are outputs."""
        axes = self.layout.output
        return (axes,) if isinstance(axes, int) else axes


class NearMiss(NamedTuple):
    """A kernel that cannot be changed, though a map follows that would fold: why, and where."""

    source: int
    why: str
    node: int


class Sites(NamedTuple):
    """All sites in order, and what was nearly one."""

    found: tuple[Site, ...]
    missed: tuple[NearMiss, ...]


def sites(flat: Flat, values: Values) -> Sites:
    """Return the products by parameters that may be changed."""
    found, missed = [], []
    for index, node in enumerate(flat.nodes):
        side = _kernel_side(flat, values, node)
        if side is None:
            continue
        layout, labels = _LAYOUTS[node.name](node, side)
        if node.name == "cond" and not any(label is not None for label in labels):
            continue
        source, steps, fault = _source(flat, values, node, side)
        (output,) = node.outputs
        chain, end, straight, stop = _chain(flat, values, output, labels)
        if not jnp.issubdtype(flat.avals[source].dtype, jnp.floating):
            continue
        if fault:
            if saves(chain):
                missed.append(NearMiss(source, fault, index))
            continue
        if stop and not saves(chain):
            missed.append(NearMiss(source, stop, index))
        found.append(Site(index, side, source, steps, layout, labels, chain, end, straight))
    return Sites(tuple(found), tuple(missed))


def saves(chain: tuple[Op, ...]) -> bool:
    """Return whether folding a chain saves arithmetic: one multiplication, or two additions."""
    return any(op.kind not in ("add", "sub") for op in chain) or len(chain) > 1


def _kernel_side(flat: Flat, values: Values, node: Node) -> int | None:
    if node.name not in _LAYOUTS:
        return None
    of = values.of
    held = [side for side, value in enumerate(node.inputs) if value in of and of[value].paths]
    if len(held) != 1 or 0 in flat.shape(node.inputs[held[0]]):
        return None
    if node.name != "cond" and all(value in of for value in node.inputs):
        return None
    if node.name == "conv_general_dilated" and (
        held[0] != 1 or node.eqn.params["batch_group_count"] > 1
    ):
        return None
    return held[0]


def _source(flat: Flat, values: Values, node: Node, side: int) -> tuple[int, tuple[int, ...], str]:
    """Go back from a kernel to what it is a lossless rearrangement of."""
    value, steps, fault = node.inputs[side], [], ""
    core = values.of[value].core
    while True:
        reads = len(flat.consumers[value])
        if reads > 1:
            fault = fault or f"it is read {reads} times"
        if value == core:
            break
        index = flat.producer[value]
        before = flat.nodes[index]
        if not _is_lossless(flat, before):
            fault = fault or f"{before.name} takes a part of it, or repeats it"
        steps.append(index)
        (value,) = before.inputs
    return core, tuple(reversed(steps)), fault


def _is_lossless(flat: Flat, node: Node) -> bool:
    if node.name == "broadcast_in_dim":
        sizes = (flat.shape(value) for value in (node.inputs[0], node.outputs[0]))
        return len({np.prod(shape, dtype=object) for shape in sizes}) == 1
    return node.name in _LOSSLESS


def _dot(node: Node, side: int) -> tuple[Layout, Labels]:
    contracting, batch = node.eqn.params["dimension_numbers"]
    ranks = [len(var.aval.shape) for var in node.eqn.invars]
    free = [
        [a for a in range(ranks[s]) if a not in contracting[s] and a not in batch[s]]
        for s in (0, 1)
    ]
    labels: list[int | None] = list(batch[side])
    for which in (0, 1):
        labels += free[which] if which == side else [None] * len(free[which])
    outputs = tuple(sorted((*batch[side], *free[side])))
    return Layout(outputs, tuple(contracting[side])), tuple(labels)


def _conv(node: Node, side: int) -> tuple[Layout, Labels]:
    del side
    numbers, groups = node.eqn.params["dimension_numbers"], node.eqn.params["feature_group_count"]
    axis = numbers.rhs_spec[0]
    labels: list[int | None] = [None] * len(numbers.out_spec)
    labels[numbers.out_spec[1]] = axis
    return Layout((axis,), (numbers.rhs_spec[1],), groups), tuple(labels)


def _cond(node: Node, side: int) -> tuple[Layout, Labels]:
    ends = scaled_axes(node.eqn, side)
    labels: list[int | None] = [None] * len(node.eqn.outvars[0].aval.shape)
    for axis, end in ends.items():
        labels[end] = axis
    return Layout(tuple(sorted(ends)), ()), tuple(labels)


_LAYOUTS = {"dot_general": _dot, "conv_general_dilated": _conv, "cond": _cond}


def _chain(
    flat: Flat, values: Values, value: int, labels: Labels
) -> tuple[tuple[Op, ...], int, bool, str]:
    """Follow a product: its chain, the last value, whether straight, what ended it too early."""
    found: list[Op] = []
    straight = True
    sizes = {label: flat.shape(value)[axis] for axis, label in enumerate(labels)}
    while True:
        readers = flat.consumers[value]
        if len(readers) != 1 or readers[0] == OUTPUT:
            return tuple(found), value, straight, _shared(flat, values, value, labels)
        node = flat.nodes[readers[0]]
        op = _op(flat, values, readers[0], value, labels)
        moved = None if op else _moved(flat, node, value, labels, sizes)
        if op is not None:
            found.append(op)
        elif moved is not None:
            labels, straight = moved, straight and node.name in ("convert_element_type", "copy")
        else:
            return tuple(found), value, straight, ""
        (value,) = node.outputs


def _shared(flat: Flat, values: Values, value: int, labels: Labels) -> str:
    """Say that a product read several times is multiplied by a parameter at one of them."""
    readers = flat.consumers[value]
    for index in set(readers) - {OUTPUT}:
        op = _op(flat, values, index, value, labels)
        if op is None or op.operand is None or op.kind in ("add", "sub"):
            continue
        if values.of[op.operand].paths:
            return f"its product is read {len(readers)} times, scaled in one of them"
    return ""


def _op(flat: Flat, values: Values, index: int, value: int, labels: Labels) -> Op | None:
    node = flat.nodes[index]
    if node.name not in _ARITHMETIC or flat.shape(node.outputs[0]) != flat.shape(value):
        return None
    (output,) = node.outputs
    if node.name == "neg":
        return Op(index, "neg", value, None, labels, output)
    place = node.inputs.index(value)
    operand = node.inputs[1 - place]
    if operand == value or not varies_along(flat, values, operand, labels):
        return None
    kind = {"add_any": "add"}.get(node.name, node.name)
    if place == 1:
        if kind == "div":
            return None
        kind = {"sub": "rsub"}.get(kind, kind)
    return Op(index, kind, value, operand, labels, output)


def varies_along(flat: Flat, values: Values, operand: int, labels: Labels) -> bool:
    """Return whether a value of parameters alone is one number for each channel, or one."""
    found = values.of.get(operand)
    if found is None or 0 in flat.shape(operand):
        return False
    shape = flat.shape(operand)
    if not shape:
        return True
    return len(shape) == len(labels) and all(
        label is not None or not axes or size == 1
        for label, axes, size in zip(labels, found.axes, shape, strict=True)
    )


def _moved(flat: Flat, node: Node, value: int, labels: Labels, sizes: Any) -> Labels | None:
    """Return the labels after a rearrangement that keeps every channel axis whole."""
    if node.name not in _BETWEEN or node.inputs != (value,):
        return None
    axes: tuple[Axes, ...] = tuple(
        frozenset() if label is None else frozenset({label}) for label in labels
    )
    moved = LAYOUT[node.name](node.eqn, axes)
    if moved is None:
        return None
    found: list[int | None] = []
    for group, size in zip(moved, flat.shape(node.outputs[0]), strict=True):
        label = next(iter(group)) if group else None
        if len(group) > 1 or (label is not None and size != sizes[label]):
            return None
        found.append(label)
    held = [label for label in found if label is not None]
    if sorted(held) != sorted(label for label in labels if label is not None):
        return None
    return tuple(found)
