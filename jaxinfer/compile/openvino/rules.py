"""OpenVINO rules of elementwise primitives and of reductions.

Each computes what JAX does on finite float32, int32 and bool operands. Where OpenVINO's own
operator does not (a logarithm of 1 + x near zero, a conversion out of range), it is composed.
NaN is not guaranteed to come through ``max``, ``min``, ``clamp`` and ``argmax``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino import patterns
from jaxinfer.compile.openvino.graph import (
    Graph,
    Operand,
    Refused,
    Value,
    float_dtype,
    is_const,
    rule,
)
from jaxinfer.compile.openvino.moving import dtype_of, f32, reshaped

LOG2 = float(np.log(2.0))


# One operand.


def _unary(name: str, operator: str, ints: bool = False) -> None:
    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        if not ints:
            _need_float(eqn)
        return graph.elementwise(getattr(graph.op, operator), values)

    rule(name)(apply)


def _need_float(eqn: Any) -> None:
    if not float_dtype(eqn.invars[0].aval.dtype):
        raise Refused(f"of {dtype_of(eqn)}: computed for floats only")


for _name, _operator in {
    "floor": "floor",
    "ceil": "ceiling",
    "exp": "exp",
    "log": "log",
    "tanh": "tanh",
    "sin": "sin",
    "cos": "cos",
    "tan": "tan",
    "asin": "asin",
    "acos": "acos",
    "atan": "atan",
    "asinh": "asinh",
    "acosh": "acosh",
    "sqrt": "sqrt",
    "logistic": "sigmoid",
    "is_finite": "is_finite",
}.items():
    _unary(_name, _operator)


def _composed(name: str, ints: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Register a rule that composes operators of the operand: ``fn(op, x)``."""

    def register(fn: Callable[..., Any]) -> Any:
        def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
            if not ints:
                _need_float(eqn)
            return graph.elementwise(lambda *outs: fn(graph.op, *outs), values)

        rule(name)(apply)
        return fn

    return register


@_composed("neg", ints=True)
def _neg(op: Any, x: Any) -> Any:
    return op.negative(x)


@_composed("abs", ints=True)
def _abs(op: Any, x: Any) -> Any:
    return op.maximum(x, op.negative(x))


@rule("sign")
def _sign(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    op = graph.op
    if float_dtype(eqn.invars[0].aval.dtype):
        return graph.elementwise(op.sign, values)
    return graph.elementwise(lambda x: op.convert(op.sign(op.convert(x, "f32")), "i32"), values)


@_composed("square", ints=True)
def _square(op: Any, x: Any) -> Any:
    return op.multiply(x, x)


@_composed("rsqrt")
def _rsqrt(op: Any, x: Any) -> Any:
    return op.divide(f32(op, 1), op.sqrt(x))


@_composed("exp2")
def _exp2(op: Any, x: Any) -> Any:
    return op.power(f32(op, 2), x)


@_composed("cbrt")
def _cbrt(op: Any, x: Any) -> Any:
    return op.multiply(op.sign(x), op.power(op.abs(x), f32(op, 1 / 3)))


@_composed("log1p")
def _log1p(op: Any, x: Any) -> Any:
    """2 artanh(x / (2 + x)) by its series for \\|x\\| < 1/4, else log(1 + x)."""
    z = op.divide(x, op.add(x, f32(op, 2)))
    square = op.multiply(z, z)
    total = f32(op, 1 / 11)
    for power in (9, 7, 5, 3, 1):
        total = op.add(op.multiply(total, square), f32(op, 1 / power))
    near = op.multiply(op.multiply(f32(op, 2), z), total)
    return op.select(op.less(op.abs(x), f32(op, 0.25)), near, op.log(op.add(x, f32(op, 1))))


@_composed("expm1")
def _expm1(op: Any, x: Any) -> Any:
    """Its Taylor series for \\|x\\| < 1/2, else exp(x) - 1."""
    total = f32(op, 1 / 39916800)
    for divisor in (3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1):
        total = op.add(op.multiply(total, x), f32(op, 1 / divisor))
    near = op.multiply(total, x)
    return op.select(op.less(op.abs(x), f32(op, 0.5)), near, op.subtract(op.exp(x), f32(op, 1)))


@_composed("sinh")
def _sinh(op: Any, x: Any) -> Any:
    """(e - 1/e) / 2 with e = exp(x), by the halved exponent; its series for \\|x\\| < 1."""
    square = op.multiply(x, x)
    total = f32(op, 1 / 39916800)
    for divisor in (362880, 5040, 120, 6, 1):
        total = op.add(op.multiply(total, square), f32(op, 1 / divisor))
    half = op.exp(op.subtract(op.abs(x), f32(op, LOG2)))  # exp(|x|)/2 without overflow
    far = op.multiply(op.sign(x), op.subtract(half, op.divide(f32(op, 0.25), half)))
    return op.select(op.less(op.abs(x), f32(op, 1)), op.multiply(total, x), far)


@_composed("cosh")
def _cosh(op: Any, x: Any) -> Any:
    half = op.exp(op.subtract(op.abs(x), f32(op, LOG2)))
    return op.add(half, op.divide(f32(op, 0.25), half))


@_composed("atanh")
def _atanh(op: Any, x: Any) -> Any:
    """log1p(2 x / (1 - x)) / 2."""
    ratio = op.divide(op.multiply(f32(op, 2), x), op.subtract(f32(op, 1), x))
    return op.multiply(f32(op, 0.5), _log1p(op, ratio))


@_composed("erf")
def _erf(op: Any, x: Any) -> Any:
    return op.erf(x)


@_composed("erfc")
def _erfc(op: Any, x: Any) -> Any:
    """1 - erf(x): an absolute error of 1e-7, so nothing of it is left for x > 4."""
    return op.subtract(f32(op, 1), op.erf(x))


@rule("round")
def _round(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    _need_float(eqn)
    to_even = int(eqn.params["rounding_method"]) == 1
    mode = "half_to_even" if to_even else "half_away_from_zero"
    return graph.elementwise(lambda x: graph.op.round(x, mode), values)


@rule("integer_pow")
def _integer_pow(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    exponent = eqn.params["y"]
    if exponent < 0:
        _need_float(eqn)

    def apply(x: Any) -> Any:
        op, left, total = graph.op, abs(exponent), None
        while left:
            if left & 1:
                total = x if total is None else op.multiply(total, x)
            left >>= 1
            x = op.multiply(x, x) if left else x
        if total is None:
            return op.add(op.multiply(x, f32(op, 0)), f32(op, 1))
        return op.divide(f32(op, 1), total) if exponent < 0 else total

    if exponent == 0:
        aval = eqn.outvars[0].aval
        return np.ones(aval.shape, aval.dtype)
    return graph.elementwise(apply, values)


@rule("not")
def _not(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    if dtype_of(eqn) == "bool":
        return graph.elementwise(graph.op.logical_not, values)
    return graph.elementwise(graph.op.bitwise_not, values)


# Two operands.


def _binary(name: str, operator: str) -> None:
    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        if dtype_of(eqn) == "bool":
            raise Refused("of bool: computed for floats and int32 only")
        return graph.elementwise(getattr(graph.op, operator), values)

    rule(name)(apply)


for _name, _operator in {"add": "add", "add_any": "add", "sub": "subtract"}.items():
    _binary(_name, _operator)


def _recognised(name: str, operator: str, *found: Callable[..., Any]) -> None:
    """Register a rule that asks first what the result is: ``found(op, x, y)`` or None."""

    def of_floats(op: Any, x: Any, y: Any) -> Any:
        made = next((m for fn in found if (m := fn(op, x, y)) is not None), None)
        return getattr(op, operator)(x, y) if made is None else made

    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        if dtype_of(eqn) == "bool":
            raise Refused("of bool: computed for floats and int32 only")
        if name == "div":
            _need_float(eqn)  # integers are divided in float32
        if not float_dtype(eqn.invars[0].aval.dtype):
            return graph.elementwise(getattr(graph.op, operator), values)
        return graph.elementwise(lambda x, y: of_floats(graph.op, x, y), values)

    rule(name)(apply)


_recognised("mul", "multiply", patterns.normalized, patterns.gelu)
_recognised("div", "divide", patterns.mean, patterns.softmax, patterns.normalized_by)
_recognised("max", "maximum", patterns.at_least)
_recognised("min", "minimum", patterns.at_most)


def _comparison(name: str, operator: str) -> None:
    """Integers are compared in float32: so their difference from the larger is, with zero."""

    def of_ints(op: Any, x: Any, y: Any) -> Any:
        zero = op.constant(np.int32(0))
        if name in ("eq", "ne"):
            return getattr(op, operator)(op.subtract(x, y), zero)
        one = x if name in ("lt", "ge") else y
        below = op.subtract(op.maximum(x, y), one)  # 0 unless ``one`` is the smaller
        return (op.not_equal if name in ("lt", "gt") else op.equal)(below, zero)

    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        if dtype_of(eqn) == "bool" and name not in ("eq", "ne"):
            raise Refused("of bool: computed for floats and int32 only")
        if dtype_of(eqn) == "int32":
            return graph.elementwise(lambda x, y: of_ints(graph.op, x, y), values)
        if name in ("gt", "ge"):  # OpenVINO's greater is true of NaN, its less is not
            values = values[::-1]
        return graph.elementwise(getattr(graph.op, operator), values)

    rule(name)(apply)


for _name, _operator in {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "less",
    "ge": "less_equal",
}.items():
    _comparison(_name, _operator)


@rule("pow")
def _pow(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    _need_float(eqn)
    base, exponent = values
    if not float_dtype(eqn.invars[1].aval.dtype):
        exponent = (
            np.asarray(exponent, np.float32)
            if is_const(exponent)
            else graph.elementwise(lambda y: graph.op.convert(y, "f32"), [exponent])
        )
    return graph.elementwise(graph.op.power, [base, exponent])


def _logical(name: str) -> None:
    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        kind = "logical" if dtype_of(eqn) == "bool" else "bitwise"
        return graph.elementwise(getattr(graph.op, f"{kind}_{name}"), values)

    rule(name)(apply)


for _name in ("and", "or", "xor"):
    _logical(_name)


@rule("clamp")
def _clamp(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    op = graph.op

    def apply(low: Any, x: Any, high: Any) -> Any:
        made = patterns.clamped(op, x, patterns.scalar(low), patterns.scalar(high))
        return op.minimum(op.maximum(x, low), high) if made is None else made

    if not float_dtype(eqn.invars[1].aval.dtype):
        return graph.elementwise(lambda a, x, b: op.minimum(op.maximum(x, a), b), values)
    return graph.elementwise(apply, values)


@rule("select_n", moves=True)
def _select_n(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    which, *cases = values
    if dtype_of(eqn) == "bool":
        return graph.elementwise(lambda p, no, yes: graph.select(p, yes, no), [which, *cases])

    def apply(index: Any, *outs: Any) -> Any:
        chosen = outs[-1]
        for number in reversed(range(len(outs) - 1)):
            is_it = graph.op.equal(index, graph.ints(number))
            chosen = graph.select(is_it, outs[number], chosen)
        return chosen

    return graph.elementwise(apply, values)


# Reductions.


def _reduction(name: str, operator: str, kinds: str) -> None:
    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        dtype = np.dtype(eqn.invars[0].aval.dtype)
        kind = "f" if float_dtype(dtype) else dtype.kind
        if kind not in kinds:
            raise Refused(f"of {dtype.name}: not computed exactly")
        (x,) = values
        shape = tuple(eqn.outvars[0].aval.shape)
        axes = tuple(eqn.params["axes"])
        if not axes:
            return x
        if x.perm is None:
            places, perm = list(axes), None
        else:
            places = [x.perm.index(axis) for axis in axes]
            left = [axis for axis in x.perm if axis not in axes]
            kept = sorted(left)
            perm = tuple(kept.index(axis) for axis in left)
            perm = None if perm == tuple(sorted(perm)) else perm
        out = graph.full(x, x.perm)
        if kind == "i":
            return Value(_of_ints(graph, out, places, name), shape, perm)
        out = getattr(graph.op, operator)(out, graph.ints(places), False)
        return Value(out.output(0), shape, perm)

    rule(name)(apply)


for _name, _operator, _kinds in (
    ("reduce_sum", "reduce_sum", "fi"),
    ("reduce_max", "reduce_max", "fi"),
    ("reduce_min", "reduce_min", "fi"),
    ("reduce_prod", "reduce_prod", "f"),
    ("reduce_and", "reduce_logical_and", "b"),
    ("reduce_or", "reduce_logical_or", "b"),
):
    _reduction(_name, _operator, _kinds)


def _of_ints(graph: Graph, out: Any, axes: Sequence[int], name: str) -> Any:
    """Reduce integers, axis by axis: OpenVINO's own reductions of them are in float32.

    A sum is the last running sum; the largest is the first in order.
    """
    op = graph.op
    for axis in sorted(axes, reverse=True):
        if name == "reduce_sum":
            last = graph.ints(list(out.shape)[axis] - 1)
            running = op.cum_sum(out, graph.ints(axis), False, False)
            out = op.gather(running, last, graph.ints(axis)).output(0)
        else:
            first, _ = topk(graph, out, 1, axis, name.removeprefix("reduce_"))
            sizes = [n for at, n in enumerate(out.shape) if at != axis]
            out = reshaped(graph, first, sizes).out
    return out


def _arg(name: str, mode: str) -> None:
    def apply(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
        (axis,) = eqn.params["axes"]
        if str(eqn.params["index_dtype"]) != "int32":
            raise Refused(f"with indices of {eqn.params['index_dtype']}: int32 is taken")
        _, places = topk(graph, graph.full(values[0]), 1, axis, mode)
        return reshaped(graph, places, eqn.outvars[0].aval.shape)

    rule(name)(apply)


def topk(graph: Graph, out: Any, count: int, axis: int, mode: str) -> tuple[Any, Any]:
    """Return the first ``count`` values in order and their places; of equal ones the first."""
    node = graph.op.topk(
        out, graph.op.constant(np.int32(count)), axis, mode, "value", "i32", stable=True
    )
    return node.output(0), node.output(1)


_arg("argmax", "max")
_arg("argmin", "min")


@rule("cumsum")
def _cumsum(graph: Graph, eqn: Any, values: Sequence[Operand]) -> Operand:
    (x,) = values
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]
    out = graph.op.cum_sum(graph.full(x), graph.ints(axis), False, bool(reverse))
    return Value(out.output(0), x.shape)


@rule("sort")
def _sort(graph: Graph, eqn: Any, values: Sequence[Operand]) -> list[Operand]:
    axis = eqn.params["dimension"]
    if eqn.params["num_keys"] != 1:
        raise Refused(f"by {eqn.params['num_keys']} keys: one is taken")
    if dtype_of(eqn) == "bool":
        raise Refused("of bool: sort it as int32")
    outs = [graph.full(value) for value in values]
    shape = tuple(eqn.invars[0].aval.shape)
    ordered, places = topk(graph, outs[0], shape[axis], axis, "min")
    rest = [graph.op.gather_elements(out, places, axis).output(0) for out in outs[1:]]
    return [Value(out, shape) for out in (ordered, *rest)]


@rule("top_k")
def _top_k(graph: Graph, eqn: Any, values: Sequence[Operand]) -> list[Operand]:
    axis = eqn.params.get("axis", -1) % len(eqn.invars[0].aval.shape)
    if not all(str(var.aval.dtype) in ("float32", "int32") for var in eqn.outvars):
        raise Refused("with values or indices of another dtype than float32 and int32")
    outs = topk(graph, graph.full(values[0]), eqn.params["k"], axis, "max")
    return [Value(o, tuple(v.aval.shape)) for o, v in zip(outs, eqn.outvars, strict=True)]
