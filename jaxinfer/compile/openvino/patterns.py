"""Operators that stand for several: found while the graph is built, by what they compute.

    reduce_sum(x) / n                                         ReduceMean
    (x - mean(x)) / sqrt(var(x) + eps)                        MVN
    exp(x - max(x)) / sum(exp(x - max(x)))                    Softmax
    x (1 + erf(x / sqrt 2)) / 2, and by tanh                  Gelu
    softmax(q k^T scale + mask) v                             ScaledDotProductAttention
    max(x, 0), max(min(x, b), a)                              Relu, Clamp

OpenVINO runs each as one kernel, and NNCF knows by them what a transformer is sensitive in. The
rules ask here for the operator of what they are about to build; ``None``: there is none, and it
is built as it stands. What is no longer read is left out of the model. Nothing here rounds more
than the composed form does: MVN has its variance in two passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

NEVER = -1e30
"""A score of this or less is masked: in float32 it absorbs any other, its exponential is 0."""


# Looking at a graph.


def kind(out: Any) -> str:
    """Return the type of the operator that an output comes from."""
    return out.get_node().get_type_name()


def args(out: Any) -> list[Any]:
    """Return the outputs that it was made of."""
    node = out.get_node()
    return [node.input_value(i) for i in range(node.get_input_size())]


def same(x: Any, y: Any) -> bool:
    """Return whether two outputs are the same."""
    return x.get_index() == y.get_index() and x.get_node().get_name() == y.get_node().get_name()


def values(out: Any) -> np.ndarray | None:
    """Return the value of a constant; None if it is none."""
    return np.asarray(out.get_node().data) if kind(out) == "Constant" else None


def scalar(out: Any) -> float | None:
    """Return the value of a constant that is the same everywhere; None if it is none."""
    found = values(out)
    if found is None or not 0 < found.size <= 4096 or (found != found.flat[0]).any():
        return None
    return float(found.flat[0])


def _is(out: Any, value: float) -> bool:
    found = scalar(out)
    return found is not None and abs(found - value) <= 1e-6 * abs(value)


def _shape(out: Any) -> list[int]:
    return [int(size) for size in out.shape]


def _factors(out: Any, depth: int = 4) -> tuple[float, list[Any]]:
    """Return a product's constant factor, and its other factors."""
    found = scalar(out)
    if found is not None:
        return found, []
    if kind(out) == "Negative":
        factor, rest = _factors(args(out)[0], depth)
        return -factor, rest
    if kind(out) != "Multiply" or not depth:
        return 1.0, [out]
    (a, left), (b, right) = (_factors(each, depth - 1) for each in args(out))
    return a * b, [*left, *right]


def pairs(out: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the operands of an operator in both orders."""
    if kind(out) == name:
        a, b = args(out)
        yield a, b
        yield b, a


# Reductions and normalization.


def keeping(op: Any, out: Any, sizes: Sequence[int]) -> Any:
    """Return a reduction again with its axes in size 1, if that is what ``sizes`` are."""
    if kind(out) not in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean"):
        return None
    x, axes = args(out)
    numbers = values(axes)
    if out.get_node().get_attributes()["keep_dims"] or numbers is None:
        return None
    at = {int(n) for n in numbers.flat}
    if [1 if i in at else size for i, size in enumerate(_shape(x))] != list(sizes):
        return None
    name = {"ReduceSum": "sum", "ReduceMax": "max", "ReduceMin": "min", "ReduceMean": "mean"}
    return getattr(op, f"reduce_{name[kind(out)]}")(x, axes, True).output(0)


def mean(op: Any, x: Any, y: Any) -> Any:
    """Return the mean that a sum divided by the number of its terms is."""
    if kind(x) != "ReduceSum" or (count := scalar(y)) is None:
        return None
    whole, axes = args(x)
    numbers, sizes = values(axes), _shape(whole)
    if numbers is None or math.prod(sizes[int(n)] for n in numbers.flat) != count:
        return None
    return op.reduce_mean(whole, axes, x.get_node().get_attributes()["keep_dims"]).output(0)


def _is_mean(out: Any, x: Any, axes: set[int]) -> bool:
    return kind(out) == "ReduceMean" and same(args(out)[0], x) and _axes(args(out)[1]) == axes


def _axes(out: Any) -> set[int]:
    found = values(out)
    return set() if found is None else {int(n) for n in found.flat}


def _is_variance(out: Any, x: Any, average: Any, axes: set[int]) -> bool:
    """Return whether it is mean((x - mean)^2), or mean(x^2) - mean^2 held to 0."""
    if kind(out) == "Reshape":  # to the shape with axes of size 1, as it is added to eps
        out = args(out)[0]
    if kind(out) == "ReduceMean":
        inner = args(out)[0]
        if _axes(args(out)[1]) != axes or kind(inner) != "Multiply":
            return False
        a, b = args(inner)
        return same(a, b) and _is_difference(a, x, average)
    if kind(out) == "Relu":
        out = args(out)[0]
    if kind(out) != "Subtract":
        return False
    square, squared = args(out)
    if kind(square) != "ReduceMean" or _axes(args(square)[1]) != axes:
        return False
    root = _root(squared)
    return _is_square(args(square)[0], x) and root is not None and _is_mean(root, x, axes)


def _root(out: Any) -> Any:
    """Return x of x x, or of \\|x\\| \\|x\\|; None for another product."""
    if kind(out) != "Multiply":
        return None
    a, b = (_magnitude(each) for each in args(out))
    return a if same(a, b) else None


def _is_square(out: Any, x: Any) -> bool:
    root = _root(out)
    return root is not None and same(root, x)


def _magnitude(out: Any) -> Any:
    """Return x of max(x, -x)."""
    for x, y in pairs(out, "Maximum"):
        if kind(y) == "Negative" and same(args(y)[0], x):
            return x
    return out


def _is_difference(out: Any, x: Any, average: Any) -> bool:
    if kind(out) != "Subtract":
        return False
    a, b = args(out)
    return same(a, x) and same(b, average)


def normalized_by(op: Any, x: Any, y: Any) -> Any:
    """Return MVN for (x - mean) / sqrt(var + eps)."""
    return normalized(op, x, y, divide=True)


def normalized(op: Any, x: Any, y: Any, divide: bool = False) -> Any:
    """Return MVN for (x - mean) times 1 / sqrt(var + eps), or by a weight times that."""
    for centred, factor in ((x, y),) if divide else ((x, y), (y, x)):
        if kind(centred) != "Subtract":
            continue
        if divide:
            weight, root = None, factor
        else:
            weight, inverse = _weight(factor)
            if kind(inverse) != "Divide" or not _is(args(inverse)[0], 1.0):
                continue
            root = args(inverse)[1]
        if kind(root) != "Sqrt":
            continue
        inner, average = args(centred)
        if kind(average) != "ReduceMean" or not same(args(average)[0], inner):
            continue
        axes = _axes(args(average)[1])
        for variance, epsilon in pairs(args(root)[0], "Add"):
            eps = scalar(epsilon)
            if eps is not None and eps > 0 and _is_variance(variance, inner, average, axes):
                made = op.mvn(inner, args(average)[1], True, eps, "INSIDE_SQRT").output(0)
                return made if weight is None else op.multiply(made, weight).output(0)
    return None


def _weight(out: Any) -> tuple[Any, Any]:
    """Return a constant factor, or None, and the rest."""
    for inverse, weight in pairs(out, "Multiply"):
        if values(weight) is not None:
            return weight, inverse
    return None, out


# Activations.


def at_least(op: Any, x: Any, y: Any) -> Any:
    """Return max(x, y) for a y that is -inf, or 0, everywhere."""
    for one, low in ((x, y), (y, x)):
        number = scalar(low)
        if number == -np.inf:
            return one
        if number == 0.0 and not _of_matmul(one):
            return op.relu(one).output(0)
    return None


def _of_matmul(out: Any) -> bool:
    """Return whether a MatMul is next to an activation: such is neither Relu nor Clamp here.

    Int8 layers of up to 256 values with one of these between them are one kernel in OpenVINO
    2026.4.1, and its results are wrong (memory that was never written); they are right with
    Maximum, and with Minimum as long as its bound is no scalar (else it is made a Clamp).
    """
    while kind(out) in ("Add", "Multiply", "Subtract", "Divide", "Reshape", "Transpose"):
        x, y = args(out)
        out = y if values(x) is not None else x
    return kind(out) == "MatMul"


def at_most(op: Any, x: Any, y: Any) -> Any:
    """Return min(x, y) for a y that is inf, or that is the upper end of a range."""
    for one, high in ((x, y), (y, x)):
        number = scalar(high)
        if number == np.inf:
            return one
        if kind(one) == "Relu":
            return clamped(op, args(one)[0], 0.0, number)
        for inner, low in pairs(one, "Maximum"):
            if (made := clamped(op, inner, scalar(low), number)) is not None:
                return made
    return None


def clamped(op: Any, x: Any, low: float | None, high: float | None) -> Any:
    """Return min(max(x, low), high) as one operator."""
    if low is None or high is None or not -np.inf < low <= high < np.inf:
        return None
    if _of_matmul(x):
        bound = np.full([1] * (len(x.shape) - 1) + _shape(x)[-1:], high, np.float32)
        return op.minimum(op.maximum(x, np.float32(low)), op.constant(bound)).output(0)
    return op.clamp(x, low, high).output(0)


def softmax(op: Any, x: Any, y: Any) -> Any:
    """Return the softmax that exp(x - max(x)) divided by its sum is."""
    if kind(x) != "Exp" or kind(y) != "ReduceSum":
        return None
    total, axes = args(y)
    numbers = values(axes)
    if not same(total, x) or numbers is None or numbers.size != 1:
        return None
    shifted = args(x)[0]
    if kind(shifted) != "Subtract" or not y.get_node().get_attributes()["keep_dims"]:
        return None
    inner, top = args(shifted)
    if kind(top) != "ReduceMax" or not top.get_node().get_attributes()["keep_dims"]:
        return None
    of, along = args(top)
    if not same(of, inner) or _axes(along) != _axes(axes):
        return None
    return op.softmax(inner, int(numbers.flat[0])).output(0)


def gelu(op: Any, x: Any, y: Any) -> Any:
    """Return Gelu for a product that is x (1 + erf(x / sqrt 2)) / 2, or the form by tanh."""
    (a, left), (b, right) = _factors(x), _factors(y)
    factor, others = a * b, [*left, *right]
    if abs(factor - 0.5) > 1e-6 or len(others) != 2:
        return None
    for inner, gate in (others, others[::-1]):
        if (mode := _gate(inner, gate)) is not None:
            return op.gelu(inner, mode).output(0)
    return None


def _gate(x: Any, gate: Any) -> str | None:
    for one, curve in pairs(gate, "Add"):
        if not _is(one, 1.0) or kind(curve) not in ("Erf", "Tanh"):
            continue
        scale, rest = _factors(args(curve)[0])
        if kind(curve) == "Erf" and _scaled(scale, rest, x, math.sqrt(0.5)):
            return "erf"
        if kind(curve) == "Tanh" and len(rest) == 1 and _is_cubic(rest[0], x):
            return "tanh" if abs(scale - math.sqrt(2 / math.pi)) < 1e-6 else None
    if kind(gate) == "Subtract":  # erfc(-x / sqrt 2)
        one, curve = args(gate)
        if _is(one, 1.0) and kind(curve) == "Erf":
            scale, rest = _factors(args(curve)[0])
            return "erf" if _scaled(scale, rest, x, -math.sqrt(0.5)) else None
    return None


def _scaled(factor: float, rest: Sequence[Any], x: Any, want: float) -> bool:
    return len(rest) == 1 and same(rest[0], x) and abs(factor - want) < 1e-6


def _is_cubic(out: Any, x: Any) -> bool:
    """Return whether it is x + 0.044715 x^3."""
    for first, cube in pairs(out, "Add"):
        scale, rest = _factors(cube)
        if same(first, x) and abs(scale - 0.044715) < 1e-7:
            return len(rest) == 3 and all(same(each, x) for each in rest)
    return False
