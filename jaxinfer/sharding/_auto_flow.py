"""Which axes of a program are one dimension, and what splitting that dimension would communicate.

Every equation of a jaxpr is read once, those of bodies as well: what axes it makes the same
(``_auto_factors``), and what it has to do if one of them is split.

    contract   a product that sums over it:             all-reduce of the result
    reduce     a reduction over it:                     all-reduce of the result
    index      a gather that picks along it:            all-reduce of the result
    break      anything that needs the axis whole:      all-gather of the operand
    output     a result of the program along it:        gathered by who reads it

Bytes are those of whole values (other mesh axes divide them), times the trips of the scans
around. Nothing is guessed by shape: two axes are the same only where an equation says so.

What it does not do: see through loops of unknown length more than once, or through primitives
that it does not know (``custom_call``, kernels): their results are new dimensions, and what
goes in is needed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxinfer.core._bodies import bodies
from jaxinfer.core._compat import scan_counts
from jaxinfer.core.provenance import SITES, Address
from jaxinfer.sharding._auto_factors import Axis, axis, unify
from jaxinfer.sharding._auto_rules import RULES
from jaxinfer.sharding._auto_values import Axes, Use, Value, fresh, same, size_of, whole

OPAQUE = frozenset(
    ("sort", "fft", "shard_map", "custom_call", "pure_callback", "io_callback", "pallas_call")
)


class Product(NamedTuple):
    """An equation that multiplies by a parameter, or picks from one.

    Attributes:
      path: of the parameter.
      side: which operand it is.
      operand, other, result: axes of the parameter, of what it is multiplied with, and of both.
      bytes: of the result, all trips of scans around.
      operand_bytes: of the operand, all trips.
    """

    path: str
    side: int
    operand: Axes
    other: Axes
    result: Axes
    bytes: int
    operand_bytes: int


class Flow:
    """The dimensions of one or more jaxprs over the same parameters.

    Attributes:
      params: axes of each parameter, by path.
      inputs: axes of each array input, for each jaxpr in the order of ``add``.
      uses: what equations do along axes.
      seen: axes and bytes of every value.
      tags: kinds of dimensions, with an axis that they lead.
      products: by where the equation is (``provenance.Address``), for each jaxpr.
    """

    def __init__(self) -> None:
        self.params: dict[str, Axes] = {}
        self.inputs: list[list[Axes]] = []
        self.uses: list[Use] = []
        self.seen: list[tuple[Axes, int]] = []
        self.tags: list[tuple[str, Axis]] = []
        self.products: list[dict[Address, Product]] = []
        self.times = 1

    def add(self, jaxpr: Any, paths: Sequence[str]) -> None:
        """Read a jaxpr whose first inputs are the parameters."""
        given: list[Value] = []
        for path, var in zip(paths, jaxpr.invars, strict=False):
            if path not in self.params:
                self.params[path] = fresh(var)
            given.append(Value(self.params[path], path))
        rest = [Value(fresh(var)) for var in jaxpr.invars[len(paths) :]]
        self.inputs.append([value.axes for value in rest])
        self.products.append({})
        for value, var in zip(self.walk(jaxpr, [*given, *rest], ()), jaxpr.outvars, strict=True):
            for each in value.axes:
                self.use("output", each, var)

    def walk(self, jaxpr: Any, given: Sequence[Value], address: Address) -> list[Value]:
        """Read the equations of a jaxpr; returns what its outputs are."""
        env: dict[Any, Value] = {var: Value(fresh(var)) for var in jaxpr.constvars}
        env |= zip(jaxpr.invars, given, strict=True)

        def read(var: Any) -> Value:
            return Value(fresh(var)) if hasattr(var, "val") else env[var]

        for index, eqn in enumerate(jaxpr.eqns):
            outs = self._equation(eqn, [read(var) for var in eqn.invars], (*address, index))
            for var, out in zip(eqn.outvars, outs, strict=True):
                env[var] = out
                self.seen.append((out.axes, size_of(var) * self.times))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, given: list[Value], address: Address) -> list[Value]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, given, address)
        if name == "while":
            return self._while(eqn, given, address)
        if name != "shard_map" and (inside := bodies(eqn)):
            return self._call(eqn, inside, given, address)
        rule = RULES.get(name)
        outs = rule(self, eqn, given) if rule else self._other(eqn, given)
        if len(outs) != len(eqn.outvars):
            outs = [Value(fresh(var)) for var in eqn.outvars]
        held = [side for side, value in enumerate(given) if value.path]
        if name in SITES and len(held) == 1:
            (side,) = held
            sizes = [size_of(v) * self.times for v in (eqn.outvars[0], eqn.invars[side])]
            of, other = given[side], given[1 - side].axes
            axes = (of.axes, other, outs[0].axes)
            self.products[-1][address] = Product(of.path, side, *axes, *sizes)
        return outs

    def _call(
        self, eqn: Any, inside: Sequence[Any], given: list[Value], address: Address
    ) -> list[Value]:
        outs: list[Value] = []
        for number, body in enumerate(inside):
            values = [given[operand] for operand in body.operands]
            found = self.walk(body.jaxpr, values, (*address, number))
            if not outs:
                outs = found
            else:
                for one, other in zip(outs, found, strict=True):
                    same(one.axes, other.axes)
                outs = [
                    a if a.path == b.path else Value(a.axes)
                    for a, b in zip(outs, found, strict=True)
                ]
        return outs

    def _scan(self, eqn: Any, given: list[Value], address: Address) -> list[Value]:
        consts, carry = scan_counts(eqn.params)
        (body,) = bodies(eqn)
        stacked = given[consts + carry :]
        for value in stacked:
            self.tags.append(("scan", value.axes[0]))
        state = [Value(value.axes) for value in given[consts : consts + carry]]
        sliced = [Value(value.axes[1:], value.path) for value in stacked]
        before, self.times = self.times, self.times * int(eqn.params["length"])
        outs = self.walk(body.jaxpr, [*given[:consts], *state, *sliced], (*address, 0))
        self.times = before
        for start, end in zip(state, outs[:carry], strict=True):
            same(start.axes, end.axes)
        over = axis(eqn.params["length"])
        return [*state, *(Value((over, *value.axes)) for value in outs[carry:])]

    def _while(self, eqn: Any, given: list[Value], address: Address) -> list[Value]:
        first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond, body = bodies(eqn)
        state = [Value(value.axes) for value in given[first + second :]]
        self.walk(cond.jaxpr, [*given[:first], *state], (*address, 0))
        outs = self.walk(body.jaxpr, [*given[first : first + second], *state], (*address, 1))
        for start, end in zip(state, outs, strict=True):
            same(start.axes, end.axes)
        return state

    def _other(self, eqn: Any, given: list[Value]) -> list[Value]:
        """Elementwise if every operand has the result's sizes, or 1, or no axes; else unknown."""
        out = eqn.outvars[0].aval.shape if eqn.outvars else ()
        pairs = [(v.axes, var.aval.shape) for v, var in zip(given, eqn.invars, strict=True)]
        pairs = [(axes, shape) for axes, shape in pairs if shape]
        alike = all(len(shape) == len(out) for _, shape in pairs) and all(
            size in (1, whole) for _, shape in pairs for size, whole in zip(shape, out, strict=True)
        )
        if (
            eqn.primitive.name in OPAQUE
            or not alike
            or not pairs
            or len({var.aval.shape for var in eqn.outvars}) != 1
        ):
            for value, var in zip(given, eqn.invars, strict=True):
                for each in value.axes:
                    self.use("break", each, var)
            return [Value(fresh(var)) for var in eqn.outvars]
        made = []
        for a, size in enumerate(out):
            own = [axes[a] for axes, shape in pairs if shape[a] == size]
            for other in own[1:]:
                unify(own[0], other)
            made.append(own[0] if own else axis(whole(size)))
        return [Value(tuple(made))] * len(eqn.outvars)

    def use(self, kind: str, over: Axis, var: Any, path: str = "") -> None:
        """Record that an equation does something along an axis."""
        self.uses.append(Use(kind, over, size_of(var) * self.times, path))
