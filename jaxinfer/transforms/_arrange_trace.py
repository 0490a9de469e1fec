"""The interpreter of ``arrange``: convolutions in another layout, loops over layers unrolled.

A loop over layers is a ``scan`` that slices something made of parameters alone. A recurrence over
time, which slices data, is no such loop and stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxinfer.core._bodies import Body, bodies
from jaxinfer.core._compat import source_line
from jaxinfer.core.array_types import materialize
from jaxinfer.core.interpret import ENTERING, Equation, Interpreter
from jaxinfer.core.provenance import Address
from jaxinfer.transforms._arrange_layout import (
    MOVERS,
    Moved,
    convolve,
    is_arranged,
    is_image,
    is_sharded,
)

_INLINED = ("jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")


class Done(NamedTuple):
    """What was done with one equation.

    Attributes:
      kind: ``convolution`` or ``loop``.
      address: of the equation.
      status: as in an audit.
      why: in words.
      source: line of the user's code.
    """

    kind: str
    address: Address
    status: str
    why: str
    source: str


class Arranger(Interpreter):
    """Evaluates a trace in a layout, with loops over layers unrolled.

    Args:
      layout: "" for none.
      unroll: whether to.
      params: how many of the first inputs are parameters.

    Attributes:
      done: what was done with each convolution and loop that it came to.
      sliced: for each loop over layers, the parameters that it slices, by their places.
    """

    def __init__(self, layout: str, unroll: bool, params: int):
        super().__init__(self._rule, self._enters)
        self.layout, self.unroll, self.params = layout, unroll, params
        self.done: list[Done] = []
        self.sliced: Mapping[Address, frozenset[int]] = {}
        self.entering = {**ENTERING, "jit": _jit, "scan": _scan}
        self._convolves: dict[int, bool] = {}

    def run(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], address: Address = ()
    ) -> list[Any]:
        """Evaluate a jaxpr; of the outermost, the loops over layers are found first."""
        if not address and self.unroll:
            self.sliced = layer_loops(jaxpr, self.params)
        return super().run(jaxpr, consts, args, address)

    def _enters(self, equation: Equation) -> bool:
        if self.layout and self._has_images(equation.eqn):
            return True
        own = equation.address
        return any(loop[: len(own)] == own for loop in self.sliced)

    def _has_images(self, eqn: Any) -> bool:
        known = self._convolves.get(id(eqn))
        if known is None:
            known = any(
                eqn.primitive.name == "conv_general_dilated" or self._has_images(eqn)
                for body in bodies(eqn)
                for eqn in body.jaxpr.eqns
            )
            self._convolves[id(eqn)] = known
        return known

    def _equation(self, equation: Equation, values: Sequence[Any]) -> Sequence[Any]:
        inlined = equation.name in _INLINED
        if not inlined and bodies(equation.eqn):
            values = list(map(materialize, values))  # a loop would slice what is stored
        return super()._equation(equation, values)

    def _rule(self, equation: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if self.layout and equation.name == "conv_general_dilated":
            return self._convolution(equation, values)
        if any(isinstance(value, Moved) for value in values) and equation.name in MOVERS:
            return MOVERS[equation.name](equation, values)
        return None

    def _convolution(self, equation: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if not is_image(equation.eqn):
            dims = len(equation.eqn.invars[0].aval.shape) - 2
            self._say("convolution", equation, "unfit", f"a convolution over {dims} dimensions")
            return None
        if is_arranged(equation.eqn, self.layout):
            self._say("convolution", equation, "unfit", f"{self.layout} already")
            return None
        self._say("convolution", equation, "changed", f"convolution in {self.layout}")
        return convolve(equation, values, self.layout)

    def _say(self, kind: str, equation: Equation, status: str, why: str) -> None:
        source = source_line(equation.eqn)
        self.done.append(Done(kind, equation.address, status, why, source))


def _jit(
    arranger: Any, equation: Equation, inside: Sequence[Body], values: Sequence[Any]
) -> Sequence[Any]:
    """Inline; where a sharding is demanded of a result, it is demanded of the whole array."""
    wanted = equation.params["out_shardings"]
    if is_sharded(equation.params["in_shardings"]):
        values = list(map(materialize, values))
    if not is_sharded(wanted):
        return ENTERING["jit"](arranger, equation, inside, values)
    outs = arranger.body(equation, 0, inside[0])(*values)
    return [
        lax.with_sharding_constraint(out, each) if isinstance(each, jax.sharding.Sharding) else out
        for out, each in zip(outs, wanted, strict=True)
    ]


def _scan(
    arranger: Any, equation: Equation, inside: Sequence[Body], values: Sequence[Any]
) -> Sequence[Any]:
    """Unroll it if it is a loop over layers."""
    length = max(1, equation.params["length"])
    if equation.address in arranger.sliced:
        if int(equation.params["unroll"]) >= length:
            arranger._say("loop", equation, "unfit", f"a loop of {length}, unrolled already")
        else:
            arranger._say("loop", equation, "changed", f"a loop of {length} layers, unrolled")
            eqn = equation.eqn.replace(params={**equation.params, "unroll": length})
            equation = equation._replace(eqn=eqn)
    return ENTERING["scan"](arranger, equation, inside, values)


_Made = frozenset[int] | None
"""Parameters that a value is made of; None if of anything else as well."""


def layer_loops(jaxpr: Any, params: int) -> dict[Address, frozenset[int]]:
    """Return the scans that slice what is made of parameters alone, and of which.

    Args:
      jaxpr: of a function.
      params: how many of its first inputs are parameters.
    """
    found: dict[Address, frozenset[int]] = {}
    inputs: list[_Made] = [frozenset([i]) if i < params else None for i in range(len(jaxpr.invars))]
    _walk(jaxpr, inputs, (), found)
    return found


def _walk(
    jaxpr: Any, inputs: Sequence[_Made], address: Address, found: dict[Address, frozenset[int]]
) -> list[_Made]:
    none: frozenset[int] = frozenset()
    made: dict[Any, _Made] = dict.fromkeys(jaxpr.constvars, none)
    made |= zip(jaxpr.invars, inputs, strict=True)

    def read(var: Any) -> _Made:
        return none if hasattr(var, "val") else made[var]

    for index, eqn in enumerate(jaxpr.eqns):
        values, own = [read(var) for var in eqn.invars], (*address, index)
        outs: list[_Made] = [_joined(values)] * len(eqn.outvars)
        for number, body in enumerate(bodies(eqn)):
            given = [None if at is None else values[at] for at in body.operands]
            if eqn.primitive.name == "scan":
                pairs = zip(given, body.sliced, strict=True)
                sliced = frozenset().union(*(v for v, cut in pairs if cut and v))
                if sliced:
                    found[own] = sliced
            results = _walk(body.jaxpr, given, (*own, number), found)
            for result, at in zip(results, body.results, strict=True):
                if at is not None:
                    outs[at] = _joined([outs[at], result])
        made |= zip(eqn.outvars, outs, strict=True)
    return [read(var) for var in jaxpr.outvars]


def _joined(values: Sequence[_Made]) -> _Made:
    if any(value is None for value in values):
        return None
    return frozenset().union(*(value for value in values if value is not None))
