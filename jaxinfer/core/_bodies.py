"""The jaxprs inside an equation, and which operands their inputs are.

    jit, closed_call, remat, custom_jvp_call, custom_vjp_call, shard_map: input i is operand i
    scan: constants are operands, the carry is nobody's, xs are operands without their axis 0
    while: constants of the condition and of the body; the carry is nobody's
    cond: the inputs of every branch are the operands after the index

A primitive that is not in the table is opaque: it is evaluated as it stands, never entered.
``custom_linear_solve``, ``pallas_call`` and calls of foreign code are such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxinfer.core._compat import inner, scan_counts


class Body(NamedTuple):
    """A jaxpr inside an equation.

    Attributes:
      jaxpr, consts: the jaxpr, and the values of its constants.
      operands: for each input, the operand that it is; None for a value that a loop carries.
      sliced: whether each input is an operand without its first axis.
      results: for each output, the result of the equation that it is; None if it is not one
        as it stands (carried, stacked, a condition).
    """

    jaxpr: Any
    consts: Sequence[Any]
    operands: tuple[int | None, ...]
    sliced: tuple[bool, ...]
    results: tuple[int | None, ...]


def _whole(jaxpr: Any, operands: Sequence[int | None], results: bool = True) -> Body:
    jaxpr, consts = inner(jaxpr)
    outs = tuple(range(len(jaxpr.outvars))) if results else (None,) * len(jaxpr.outvars)
    return Body(jaxpr, consts, tuple(operands), (False,) * len(operands), outs)


def _call(name: str) -> Callable[[Any], list[Body]]:
    return lambda eqn: [_whole(eqn.params[name], range(len(eqn.invars)))]


def _scan(eqn: Any) -> list[Body]:
    consts, carry = scan_counts(eqn.params)
    count = len(eqn.invars)
    operands = [None if consts <= i < consts + carry else i for i in range(count)]
    body = _whole(eqn.params["jaxpr"], operands, results=False)
    return [body._replace(sliced=tuple(i >= consts + carry for i in range(count)))]


def _while(eqn: Any) -> list[Body]:
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carried = [None] * (len(eqn.invars) - first - second)
    return [
        _whole(eqn.params["cond_jaxpr"], [*range(first), *carried], results=False),
        _whole(eqn.params["body_jaxpr"], [*range(first, first + second), *carried], results=False),
    ]


def _cond(eqn: Any) -> list[Body]:
    return [_whole(branch, range(1, len(eqn.invars))) for branch in eqn.params["branches"]]


BODIES: dict[str, Callable[[Any], list[Body]]] = {
    "jit": _call("jaxpr"),
    "closed_call": _call("call_jaxpr"),
    "core_call": _call("call_jaxpr"),
    "remat2": _call("jaxpr"),
    "checkpoint": _call("jaxpr"),
    "custom_jvp_call": _call("call_jaxpr"),
    "custom_vjp_call": _call("call_jaxpr"),
    "shard_map": _call("jaxpr"),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


def bodies(eqn: Any) -> list[Body]:
    """Return the jaxprs inside an equation that may be entered; none for an opaque one."""
    found = BODIES.get(eqn.primitive.name)
    return found(eqn) if found else []
