"""Follows padding through the same jaxpr at several sizes, and says what each equation needs.

The traces are read side by side. Equation by equation they must be the same program: what
differs is a size, a number with a formula, or a refusal. The state of every value (``axes``)
follows from those of the operands by the primitive's rule, and is held against the shapes of
every trace: an axis whose size moves without a reason is a refusal as well.

The result is an ``Action`` by the address of each equation that must not run as it is, the
formula of each number, and every problem. Equations whose results nobody needs are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.padding.axes import Factor, Refusal, State, canonical, show, wholes
from jaxinfer.compile.padding.control import CONTROL
from jaxinfer.compile.padding.same import all_same, needed_of, series, unlike, where
from jaxinfer.compile.padding.site import Address, Findings, Site, unknown
from jaxinfer.compile.padding.sizes import Length, Number, Observed
from jaxinfer.core._bodies import Body, bodies

Rule = Callable[[Site], Sequence[State]]


class Walker:
    """Reads traces of one function side by side.

    Args:
      observed: the sizes of the traces.
      rules: by primitive, the states of the results from a site.
      moving: by primitive, the parameters that may differ between the traces.
    """

    def __init__(
        self,
        observed: Observed,
        rules: Mapping[str, Rule],
        moving: Mapping[str, Sequence[str]],
    ):
        self.observed, self.rules, self.moving = observed, rules, moving
        self.found = Findings()
        self.around: list[Any] = []

    # -- states ---------------------------------------------------------------------------

    def axes(self, shapes: Sequence[Sequence[int]], *, uniform: bool = False) -> State:
        """Return the state of a value whose real part is a box at its beginning.

        Raises:
          Refusal: a size is no linear function of the sizes.
        """
        state = []
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            length = self.observed.length(sizes)
            if length is None:
                raise Refusal(f"the size of axis {axis} is no linear function of the sizes "
                              f"({series(sizes)})")  # fmt: skip
            if isinstance(length, Length) and length.scale < 0:
                raise Refusal(
                    f"axis {axis} is {length} long: longer at real sizes than at the bucket's"
                )
            real = None if isinstance(length, int) else length
            state.append(canonical([Factor(sizes[0], real, uniform)]))
        return tuple(state)

    def check(self, state: State, shapes: Sequence[Sequence[int]]) -> None:
        """Hold a state against the shapes of all traces, and record the least sizes.

        Raises:
          Refusal: they do not agree.
        """
        for axis, (factors, sizes) in enumerate(zip(state, zip(*shapes, strict=True), strict=True)):
            for at, size in zip(self.observed.sizes, sizes, strict=True):
                got = math.prod(f.length.at(at) if f.length else f.size for f in factors)
                if got != size:
                    raise Refusal(
                        f"axis {axis} of its result is {show(factors)}, but {size} long at {at}"
                    )
            for factor in factors:
                self.at_least(factor.length, 0)

    def at_least(self, length: Length | int | None, value: int) -> None:
        """Record that a length must be at least a value: smaller real sizes are refused."""
        if isinstance(length, Length) and len(length.symbols) == 1 and length.scale > 0:
            (symbol,) = length.symbols
            least = -((length.offset - value) // length.scale)
            self.found.least[symbol] = max(self.found.least.get(symbol, 0), least)

    # -- walking --------------------------------------------------------------------------

    def walk(
        self,
        jaxprs: Sequence[Any],
        consts: Sequence[Sequence[Any]],
        states: Sequence[State | None],
        address: Address = (),
        live: Sequence[bool] | None = None,
    ) -> list[State | None]:
        """Return the states of a jaxpr's results; None where a problem was found on the way."""
        base = jaxprs[0]
        live = [True] * len(base.outvars) if live is None else live
        env: dict[Any, State | None] = dict(zip(base.invars, states, strict=True))
        for number, var in enumerate(base.constvars):
            each = [values[number] if number < len(values) else None for values in consts]
            env[var] = self._constant(each, (*address, -1, number))

        def read(var: Any) -> State | None:
            return wholes(var.aval.shape) if hasattr(var, "val") else env[var]

        needed, _ = needed_of(base, live)
        for index, eqn in enumerate(base.eqns):
            here = (*address, index)
            eqns = [jaxpr.eqns[index] if index < len(jaxpr.eqns) else None for jaxpr in jaxprs]
            if index not in needed:
                env |= dict.fromkeys(eqn.outvars)
                continue
            if fault := unlike(eqns, self.observed.sizes, self.moving.get(eqn.primitive.name, ())):
                self._problem(here, eqn, fault)
                return [None] * len(base.outvars)
            outs = self._equation(eqns, [read(var) for var in eqn.invars], here, needed[index])
            env |= zip(eqn.outvars, outs, strict=True)
        if any(len(jaxpr.eqns) != len(base.eqns) for jaxpr in jaxprs):
            longer = max(jaxprs, key=lambda jaxpr: len(jaxpr.eqns))
            extra = longer.eqns[min(len(jaxpr.eqns) for jaxpr in jaxprs)]
            self._problem((*address, len(base.eqns)), extra, "it is there at some sizes only")
            return [None] * len(base.outvars)
        outs = []
        for place, var in enumerate(base.outvars):
            values = [getattr(jaxpr.outvars[place], "val", None) for jaxpr in jaxprs]
            state = read(var)
            if live[place] and values[0] is not None and not all_same(values):
                try:
                    formula = self._formula(values, base.outvars[place].aval.dtype, "a result")
                    self.found.numbers.setdefault((*address, len(base.eqns)), {})[place] = formula
                    if address:
                        raise Refusal("the result of an inner function is a number that changes")
                except Refusal as error:
                    self.found.problems[(*address, "out", place)] = f"result {place}: {error}"
                    state = None
            outs.append(state)
        return outs

    def _equation(
        self, eqns: Sequence[Any], ins: Sequence[State | None], address: Address, live: Any
    ) -> Sequence[State | None]:
        eqn = eqns[0]
        if any(state is None for state in ins):
            return [None] * len(eqn.outvars)
        known = [state for state in ins if state is not None]
        site = Site(self, eqns, known, address)
        try:
            self._literals(site)
            inside = bodies(eqn)
            if inside:
                each = [bodies(one) for one in eqns]
                self.around.append(eqn)
                try:
                    outs = CONTROL.get(site.name, CONTROL["inline"])(site, each, live)
                finally:
                    self.around.pop()
            else:
                rule = self.rules.get(site.name, unknown)
                outs = list(rule(site))
                for number, state in enumerate(outs):
                    self.check(state, site.shapes_out(number))
            if (action := site.action()) is not None:
                self.found.actions[address] = action
                self.enter(address)
        except Refusal as error:
            self._problem(address, eqn, str(error))
            return [None] * len(eqn.outvars)
        return outs

    def inside(
        self,
        site: Site,
        number: int,
        each: Sequence[Sequence[Body]],
        states: Sequence[State | None],
        live: Sequence[bool] | None = None,
    ) -> list[State | None]:
        """Walk one of the bodies of an equation."""
        mine = [found[number] for found in each]
        address = (*site.address, number)
        return self.walk([b.jaxpr for b in mine], [b.consts for b in mine], states, address, live)

    def enter(self, address: Address) -> None:
        """Record that the equations around an address are evaluated anew."""
        self.found.entered |= {address[:end] for end in range(1, len(address) + 1, 2)}

    def forget(self, address: Address) -> None:
        """Drop what was found within an equation: it is walked again."""
        found, size = self.found, len(address)
        within = lambda key: len(key) > size and key[:size] == address
        for table in (found.actions, found.numbers, found.problems):
            for key in list(filter(within, table)):
                del table[key]
        found.entered = {key for key in found.entered if not within(key)}

    def _literals(self, site: Site) -> None:
        for operand, vars_ in enumerate(zip(*(eqn.invars for eqn in site.eqns), strict=True)):
            if not hasattr(vars_[0], "val"):
                continue
            values = [var.val for var in vars_]
            if not all_same(values):
                formula = self._formula(values, vars_[0].aval.dtype, "a number in it")
                self.found.numbers.setdefault(site.address, {})[operand] = formula
                self.enter(site.address)

    def _formula(self, values: Sequence[Any], dtype: Any, what: str) -> Length | Number:
        shown = series(values)
        if np.issubdtype(dtype, np.integer) and np.ndim(values[0]) == 0:
            found = self.observed.length([int(v) for v in values])
            if isinstance(found, Length):
                return found
        elif np.ndim(values[0]) == 0 and np.dtype(dtype).kind in "fV":
            found = self.observed.number(values, dtype)
            if found is not None:
                return found
        raise Refusal(
            f"{what} changes with the size ({shown}), by no formula that is known "
            "(multiples, powers and logarithms of sizes)"
        )

    def _constant(self, values: Sequence[Any], address: Address) -> State | None:
        """Return the state of an array that the function closes over."""
        base = values[0]
        shapes = [np.shape(value) for value in values]
        try:
            if any(len(shape) != len(shapes[0]) for shape in shapes):
                raise Refusal("its rank changes with the size")
            if not hasattr(base, "dtype"):
                return ()
            state = self.axes(shapes)
            if all(value is base for value in values):
                return state
            if str(base.dtype).startswith("key"):
                return state
            arrays = [np.asarray(value) for value in values]
            if base.ndim == 0 and not all_same(arrays):
                formula = self._formula(arrays, base.dtype, "its value")
                self.found.constants[id(base)] = (base, formula)
                self.enter(address[:-2])
                return state
            for array in arrays[1:]:
                common = tuple(slice(min(a, b)) for a, b in zip(array.shape, arrays[0].shape,
                                                                strict=True))  # fmt: skip
                if not all_same([array[common], arrays[0][common]]):
                    raise Refusal(
                        "its values change with the size, and are not the beginning of those of "
                        "a larger size"
                    )
        except Refusal as error:
            shown = f"{getattr(base, 'dtype', type(base).__name__)}{list(shapes[0])}"
            self.found.problems[address] = f"a constant {shown} of the function: {error}"
            return None
        return state

    def _problem(self, address: Address, eqn: Any, why: str) -> None:
        self.found.problems[address] = f"{eqn.primitive.name} at {where(eqn, self.around)}: {why}"
