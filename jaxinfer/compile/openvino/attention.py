"""softmax(q k^T scale + mask) v as one operator, found where its last product is built.

Masks by selection become a term that is added, so that OpenVINO runs the whole as one kernel
(it does so for sums only): scores that a mask takes out are at -inf, as they were. The form
that gives zeros for a row in which nothing is left (PyTorch's) has the lowest float32 there
instead, which absorbs every score, and the row is multiplied by 0 afterwards:

    softmax(s) v = 0 where max(s) = -inf      any(mask) * (softmax(s + (mask ? 0 : lowest)) v)

Queries that are folded into groups (grouped-query attention) are left as they stand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxinfer.compile.openvino.graph import Graph
from jaxinfer.compile.openvino.patterns import NEVER, args, kind, pairs, same, scalar, values

LOWEST = np.finfo(np.float32).min


class Scores(NamedTuple):
    """What a softmax is taken of: product * scale, where ``masks``, plus ``terms``.

    Attributes:
      product: q k^T.
      scale: a number.
      masks: truths: those that keep a score.
      terms: what is added.
      least: what a score is that is taken out.
    """

    product: Any
    scale: float
    masks: tuple[Any, ...] = ()
    terms: tuple[Any, ...] = ()
    least: float = -np.inf


def attention(graph: Graph, weights: Any, value: Any) -> tuple[Any, tuple[int, ...]] | None:
    """Return the operator for ``weights @ value`` and the order of its axes, or None.

    Args:
      graph: that is built.
      weights: f32[.., t, s].
      value: f32[.., s, e].
    """
    inner, guarded = _softmax_of(weights)
    found = _scores(inner) if inner is not None else None
    if found is None or (guarded and found.least != -np.inf):
        return None
    attributes = found.product.get_node().get_attributes()
    query, key = args(found.product)
    rank = len(query.shape)
    if attributes["transpose_a"] or not rank == len(key.shape) == len(value.shape) >= 3:
        return None
    if any(len(each.shape) != rank for each in (*found.masks, *found.terms)):
        return None
    op = graph.op
    if not attributes["transpose_b"]:
        order = [*range(rank - 2), rank - 1, rank - 2]
        key = op.transpose(key, graph.ints(order)).output(0)
    if list(query.shape)[:-2] != list(value.shape)[:-2]:
        return None
    mask, keep = _mask(graph, found, guarded)
    scale = op.constant(np.float32(found.scale))
    made = op.scaled_dot_product_attention(query, key, value, mask, scale).output(0)
    axes = tuple(range(rank))
    if keep is None:
        return made, axes
    # the heads are joined next: a product before their transpose would keep it from being fused
    axes = (*axes[:-3], rank - 2, rank - 3, rank - 1) if rank > 3 else axes
    made, keep = (_ordered(graph, each, axes) for each in (made, keep))
    return op.multiply(made, keep).output(0), axes


def _ordered(graph: Graph, out: Any, axes: tuple[int, ...]) -> Any:
    if axes == tuple(range(len(axes))):
        return out
    return graph.op.transpose(out, graph.ints(axes)).output(0)


def _softmax_of(weights: Any) -> tuple[Any, bool]:
    """Return what it is the softmax of along the last axis, and whether empty rows give zeros."""
    guard = None
    if kind(weights) == "Select":
        guard, zero, weights = args(weights)
        if scalar(zero) != 0.0:
            return None, False
    if kind(weights) != "Softmax":
        return None, False
    axis = int(weights.get_node().get_attributes()["axis"])
    if axis % len(weights.shape) != len(weights.shape) - 1:
        return None, False
    (inner,) = args(weights)
    if guard is None:
        return inner, False
    if kind(inner) != "Select":
        return None, False
    again, zero, inner = args(inner)
    if scalar(zero) != 0.0 or not same(again, guard):
        return None, False
    for top, least in pairs(guard, "Equal"):
        if scalar(least) == -np.inf and kind(top) == "ReduceMax" and same(args(top)[0], inner):
            axes = values(args(top)[1])
            if axes is not None and axes.tolist() in ([axis], axis):
                return inner, True
    return None, False


def _scores(out: Any, depth: int = 6) -> Scores | None:
    if not depth:
        return None
    if kind(out) == "MatMul":
        return Scores(out, 1.0)
    if kind(out) == "Multiply":
        for inner, factor in pairs(out, "Multiply"):
            number, found = scalar(factor), _scores(inner, depth - 1)
            if number is not None and found is not None and not (found.masks or found.terms):
                return found._replace(scale=found.scale * number)
    if kind(out) == "Divide":
        inner, factor = args(out)
        number, found = scalar(factor), _scores(inner, depth - 1)
        if number and found is not None and not (found.masks or found.terms):
            return found._replace(scale=found.scale / number)
    if kind(out) == "Select":
        which, inner, least = args(out)
        number = scalar(least)
        found = _scores(inner, depth - 1) if number is not None and number <= NEVER else None
        if found is not None and (not found.masks or found.least == number):
            return found._replace(masks=(*found.masks, which), least=number)
    for inner, term in pairs(out, "Add"):
        if found := _scores(inner, depth - 1):
            return found._replace(terms=(*found.terms, term))
    return None


def _mask(graph: Graph, found: Scores, guarded: bool) -> tuple[Any, Any]:
    """Return what is added to the scores, and 0 for rows in which nothing is left (or None)."""
    if not found.masks and not found.terms:
        return graph.op.constant(np.float32(0)), None
    made_of = [(o.get_node().get_name(), o.get_index()) for o in (*found.masks, *found.terms)]
    key = ("mask", guarded, found.least, len(found.masks), *made_of)
    if key not in graph._made:
        graph._made[key] = _masked(graph, found, guarded)
    return graph._made[key]


def _masked(graph: Graph, found: Scores, guarded: bool) -> tuple[Any, Any]:
    op, last = graph.op, len(found.product.shape) - 1
    number = lambda value: op.constant(np.float32(value))
    total = keeps = None
    for each in found.masks:
        keeps = each if keeps is None else op.logical_and(keeps, each).output(0)
    for each in found.terms:
        total = each if total is None else op.add(total, each).output(0)
    if total is not None and guarded:
        real = op.greater(total, number(-np.inf)).output(0)
        keeps = real if keeps is None else op.logical_and(keeps, real).output(0)
        total = op.maximum(total, number(LOWEST)).output(0)
    if keeps is None:
        return total, None
    least = number(LOWEST if guarded else found.least)
    if total is None:
        added = op.select(keeps, number(0), least).output(0)
    else:
        added = op.select(keeps, total, least).output(0)
    if not guarded:
        return added, None
    fixed = values(keeps)
    if fixed is not None and fixed.any(-1).all():
        return added, None
    some = op.reduce_logical_or(keeps, graph.ints([last]), True)
    return added, op.convert(some, "f32").output(0)
