"""Follows padding through the same jaxpr at several sizes, and says what each equation needs.

The traces are read side by side. Equation by equation they must be the same program: what
differs is a size, a number with a formula, or a refusal. The state of every value (``_pad_axes``)
follows from those of the operands by the primitive's rule, and is held against the shapes of
every trace: an axis whose size moves without a reason is a refusal as well.

The result is an ``Action`` by the address of each equation that must not run as it is, the
formula of each number, and every problem. Equations whose results nobody needs are left alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.compile._pad_axes import (
    Axis,
    Factor,
    Refusal,
    State,
    any_padded,
    canonical,
    is_padded,
    is_uniform,
    join,
    prefix,
    show,
    varied,
    wholes,
)
from jaxinfer.compile._pad_sizes import Length, Number, Observed
from jaxinfer.core._bodies import Body, bodies
from jaxinfer.core._compat import scan_counts, scope_of, source_line

Address = tuple[int, ...]
INLINE = (
    "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"
)  # fmt: skip
"""Primitives whose body is evaluated once, on the operands."""


@dataclasses.dataclass(frozen=True)
class Mask:
    """Padding of one axis of an operand, to be replaced by a fill (see ``_pad_run.filled``)."""

    operand: int
    axis: int
    factors: Axis
    fill: Any


@dataclasses.dataclass(frozen=True)
class Action:
    """What to do in place of an equation.

    Attributes:
      masks: padding to be replaced in its operands first.
      compute: ``compute(run, equation, values)`` in place of the equation, or None.
      notes: what was done, for people.
      needs: the symbols that it reads.
    """

    masks: tuple[Mask, ...]
    compute: Any
    notes: tuple[str, ...]
    needs: frozenset[str]
    name: str
    source: str


@dataclasses.dataclass
class Findings:
    """What a walk found.

    Attributes:
      actions: by address.
      numbers: formulas of literal operands, by address and operand.
      constants: formulas of scalar constants, by the identity of their value.
      entered: addresses of equations with jaxprs inside that must be evaluated anew.
      problems: by address (and a number, where there are several).
      least: for each symbol the smallest real size for which the traced program is the function.
    """

    actions: dict[Address, Action] = dataclasses.field(default_factory=dict)
    numbers: dict[Address, dict[int, Length | Number]] = dataclasses.field(default_factory=dict)
    constants: dict[int, tuple[Any, Length | Number]] = dataclasses.field(default_factory=dict)
    entered: set[Address] = dataclasses.field(default_factory=set)
    problems: dict[Any, str] = dataclasses.field(default_factory=dict)
    least: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: dict[Address, str] = dataclasses.field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """The symbols whose real size is read at run time."""
        found = frozenset().union(*(action.needs for action in self.actions.values()))
        formulas = [f for by in self.numbers.values() for f in by.values()]
        formulas += [formula for _, formula in self.constants.values()]
        return found.union(*map(symbols_of, formulas)) if formulas else found


def where(eqn: Any) -> str:
    """Return the source line of an equation, and the module that it belongs to if that is known."""
    scope = scope_of(eqn)
    return f"{source_line(eqn)} in {scope}" if scope else source_line(eqn)


def symbols_of(formula: Any) -> frozenset[str]:
    """Return the symbols that a length, number or axis depends on."""
    if isinstance(formula, Length):
        return frozenset(formula.symbols)
    if isinstance(formula, Number):
        return frozenset(name for name, _ in formula.powers)
    found = [factor.length.symbols for factor in formula if factor.length is not None]
    return frozenset(name for names in found for name in names)


class Site:
    """One equation in all traces, as its rule sees it."""

    def __init__(self, walker: Walker, eqns: Sequence[Any], ins: Sequence[State], address: Address):
        self.walker, self.eqns, self.ins, self.address = walker, eqns, list(ins), address
        self.eqn = eqns[0]
        self.name = self.eqn.primitive.name
        self.params = self.eqn.params
        self.masks: list[Mask] = []
        self.notes: list[str] = []
        self.reads: set[str] = set()
        self.compute: Any = None

    def param(self, name: str) -> list[Any]:
        """Return a parameter in every trace."""
        return [eqn.params[name] for eqn in self.eqns]

    def shape(self, operand: int = 0) -> tuple[int, ...]:
        """Return the shape of an operand."""
        return self.eqn.invars[operand].aval.shape

    def shapes_out(self, result: int = 0) -> list[tuple[int, ...]]:
        """Return the shape of a result in every trace."""
        return [eqn.outvars[result].aval.shape for eqn in self.eqns]

    def out_axes(self, result: int = 0, *, uniform: bool = False) -> State:
        """Return the state of a result of which every axis is a prefix, from its shapes."""
        return self.walker.axes(self.shapes_out(result), uniform=uniform)

    def length(self, values: Sequence[int], what: str) -> int | Length:
        """Return an integer of every trace as a function of the sizes."""
        found = self.walker.observed.length(values)
        if found is None:
            raise Refusal(f"{what} is no linear function of the sizes ({_series(values)})")
        return found

    def mask(self, operand: int, axis: int, fill: Any) -> None:
        """Have the padding of an operand's axis replaced, if it has any."""
        factors = self.ins[operand][axis]
        if is_padded(factors):
            self.masks.append(Mask(operand, axis, factors, fill))
            self.note(f"axis {axis} of operand {operand} ({show(factors)}) <- {_fill(fill)}")

    def note(self, text: str) -> None:
        """Record what is done."""
        self.notes.append(text)

    def replace(self, compute: Callable[..., Sequence[Any]], note: str, *reads: Any) -> None:
        """Have the equation computed in another way, reading the lengths given."""
        self.compute = compute
        self.note(note)
        for formula in reads:
            if not isinstance(formula, int) and formula is not None:
                self.reads |= symbols_of(formula)

    def need_whole(self, operand: int, axes: Sequence[int] | None = None, why: str = "") -> None:
        """Refuse padding on some axes of an operand (default: on any).

        Raises:
          Refusal: one is padded.
        """
        state = self.ins[operand]
        for axis in range(len(state)) if axes is None else axes:
            if is_padded(state[axis]):
                raise Refusal(why or f"axis {axis} of operand {operand} is padded")

    def need_prefix(self, operand: int, axis: int) -> Length | None:
        """Return the real length of an axis, None if it is whole.

        Raises:
          Refusal: its real part is not its beginning.
        """
        factors = self.ins[operand][axis]
        if not is_padded(factors):
            return None
        length = prefix(factors)
        if length is None:
            raise Refusal(f"the real part of axis {axis} is not its beginning: {show(factors)}")
        return length

    def action(self) -> Action | None:
        """Return what the rule asked for."""
        if not self.masks and self.compute is None:
            return None
        reads = frozenset(self.reads).union(*(symbols_of(mask.factors) for mask in self.masks))
        masks, notes = tuple(self.masks), tuple(self.notes)
        return Action(masks, self.compute, notes, reads, self.name, where(self.eqn))


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
                              f"({_series(sizes)})")  # fmt: skip
            real = None if isinstance(length, int) else length
            state.append(canonical([Factor(sizes[0], real, uniform)]))
        return tuple(state)

    def check(self, state: State, shapes: Sequence[Sequence[int]]) -> None:
        """Hold a state against the shapes of all traces, and record the least sizes.

        Raises:
          Refusal: they do not agree.
        """
        if len(state) != len(shapes[0]):
            raise Refusal("the rank of the result is not what the rule found")
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

        needed, _ = _needed(base, live)
        for index, eqn in enumerate(base.eqns):
            here = (*address, index)
            eqns = [jaxpr.eqns[index] if index < len(jaxpr.eqns) else None for jaxpr in jaxprs]
            if index not in needed:
                env |= dict.fromkeys(eqn.outvars)
                continue
            if fault := self._unlike(eqns):
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
            if live[place] and values[0] is not None and not _all_same(values):
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
        self.forget(address)
        if any(state is None for state in ins):
            return [None] * len(eqn.outvars)
        known = [state for state in ins if state is not None]
        site = Site(self, eqns, known, address)
        try:
            self._literals(site)
            inside = bodies(eqn)
            if inside:
                each = [bodies(one) for one in eqns]
                outs = CONTROL[site.name if site.name in CONTROL else "inline"](site, each, live)
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
        """Drop what was found at an address and within it: it is walked again."""
        found = self.found
        for table in (found.actions, found.numbers, found.problems):
            for key in [key for key in table if key[: len(address)] == address]:
                del table[key]
        found.entered = {key for key in found.entered if key[: len(address)] != address}

    def _literals(self, site: Site) -> None:
        for operand, vars_ in enumerate(zip(*(eqn.invars for eqn in site.eqns), strict=True)):
            if not hasattr(vars_[0], "val"):
                continue
            values = [var.val for var in vars_]
            if not _all_same(values):
                formula = self._formula(values, vars_[0].aval.dtype, "a number in it")
                self.found.numbers.setdefault(site.address, {})[operand] = formula
                self.enter(site.address)

    def _formula(self, values: Sequence[Any], dtype: Any, what: str) -> Length | Number:
        series = _series(values)
        if np.issubdtype(dtype, np.integer) and np.ndim(values[0]) == 0:
            found = self.observed.length([int(v) for v in values])
            if isinstance(found, Length):
                return found
        elif np.ndim(values[0]) == 0 and np.dtype(dtype).kind in "fV":
            found = self.observed.number(values, dtype)
            if found is not None:
                return found
        raise Refusal(
            f"{what} changes with the size ({series}), by no formula that is known "
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
            if base.ndim == 0 and not _all_same(arrays):
                formula = self._formula(arrays, base.dtype, "its value")
                self.found.constants[id(base)] = (base, formula)
                self.enter(address[:-2])
                return state
            for array in arrays[1:]:
                common = tuple(slice(min(a, b)) for a, b in zip(array.shape, arrays[0].shape,
                                                                strict=True))  # fmt: skip
                if not _all_same([array[common], arrays[0][common]]):
                    raise Refusal(
                        "its values change with the size, and are not the beginning of those of "
                        "a larger size"
                    )
        except Refusal as error:
            shown = f"{getattr(base, 'dtype', type(base).__name__)}{list(shapes[0])}"
            self.found.problems[address] = f"a constant {shown} of the function: {error}"
            return None
        return state

    def _unlike(self, eqns: Sequence[Any]) -> str:
        """Return how the traces differ in an equation where they must not, or nothing."""
        base = eqns[0]
        for at, eqn in zip(self.observed.sizes, eqns, strict=True):
            if eqn is None:
                return f"it is not there at {sizes_text(at)}"
            other = eqn.primitive.name
            if other != base.primitive.name:
                return f"at {sizes_text(at)} there is {other} in its place ({where(eqn)})"
            if len(eqn.invars) != len(base.invars) or len(eqn.outvars) != len(base.outvars):
                return f"at {sizes_text(at)} it has another number of operands"
            pairs = zip((*base.invars, *base.outvars), (*eqn.invars, *eqn.outvars), strict=True)
            for a, b in pairs:
                if hasattr(a, "val") != hasattr(b, "val"):
                    return f"at {sizes_text(at)} a number stands where a value is computed"
                if getattr(a.aval, "dtype", None) != getattr(b.aval, "dtype", None):
                    return f"at {sizes_text(at)} it has other dtypes"
                if len(getattr(a.aval, "shape", ())) != len(getattr(b.aval, "shape", ())):
                    return f"at {sizes_text(at)} it has other ranks"
            inside = [bodies(base), bodies(eqn)]
            if len(inside[0]) != len(inside[1]):
                return f"at {sizes_text(at)} it has another number of branches"
            may = self.moving.get(base.primitive.name, ())
            for key, value in base.params.items():
                if key in may or (inside[0] and (key not in _FIXED)):
                    continue
                if not _equal(value, eqn.params.get(key)):
                    return f"its {key} is {value}, and {eqn.params.get(key)} at {sizes_text(at)}"
        return ""

    def _problem(self, address: Address, eqn: Any, why: str) -> None:
        self.found.problems[address] = f"{eqn.primitive.name} at {where(eqn)}: {why}"


_FIXED = ("reverse", "unroll", "num_consts", "num_carry", "cond_nconsts", "body_nconsts")
"""Parameters of equations with jaxprs inside that must be the same."""


def unknown(site: Site) -> list[State]:
    """Take an equation without a rule as it is, if no padding touches it.

    Raises:
      Refusal: it does.
    """
    outs = [site.out_axes(number) for number in range(len(site.eqn.outvars))]
    for operand, state in enumerate(site.ins):
        for axis, factors in enumerate(state):
            if is_padded(factors):
                raise Refusal(
                    f"axis {axis} of operand {operand} is padded ({show(factors)}), and there is "
                    "no rule for what the primitive would make of it"
                )
    if any(map(any_padded, outs)):
        raise Refusal("the shape of its result changes with the size, and there is no rule for it")
    return outs


# -- equations with jaxprs inside ----------------------------------------------------------


def _inline(site: Site, each: Any, live: Sequence[bool]) -> list[State | None]:
    return site.walker.inside(site, 0, each, site.ins, live)


def _cond(site: Site, each: Any, live: Any) -> list[State | None]:
    walker, outs = site.walker, None
    for number in range(len(each[0])):
        found = walker.inside(site, number, each, site.ins[1:])
        outs = found if outs is None else [_join(a, b) for a, b in zip(outs, found, strict=True)]
    return outs or []


def _join(a: State | None, b: State | None) -> State | None:
    if a is None or b is None:
        return None
    return tuple(join(x, y) for x, y in zip(a, b, strict=True))


def _carried(
    site: Site, init: list[State | None], step: Callable[[list[State | None]], list[State | None]]
) -> list[State | None]:
    """Return the states of a loop's carry: they hold before and after every step."""
    state = list(init)
    for _ in range(8):
        after = [_join(a, b) for a, b in zip(state, step(state), strict=True)]
        if after == state or any(one is None for one in after):
            return after
        state = after
    raise Refusal("the padding of what the loop carries does not settle")


def _while(site: Site, each: Any, live: Any) -> list[State | None]:
    first, second = site.params["cond_nconsts"], site.params["body_nconsts"]
    of_cond, of_body = site.ins[:first], site.ins[first : first + second]
    walker = site.walker
    carry = _carried(
        site,
        list(site.ins[first + second :]),
        lambda state: walker.inside(site, 1, each, [*of_body, *state]),
    )
    walker.inside(site, 0, each, [*of_cond, *carry])
    return carry


def _scan(site: Site, each: Any, live: Any) -> list[State | None]:
    consts, carried = scan_counts(site.params)
    walker, ins = site.walker, site.ins
    xs = ins[consts + carried :]
    length = site.length(site.param("length"), "its number of steps")
    along = canonical(
        [Factor(site.params["length"], length if isinstance(length, Length) else None)]
    )
    for number, state in enumerate(xs):
        if varied(state[0]) != along and not is_uniform(state[0]):
            raise Refusal(f"it steps over {show(state[0])} (operand {consts + carried + number})")
    slices = [state[1:] for state in xs]
    outs: list[State | None] = []

    def step(state: list[State | None]) -> list[State | None]:
        outs[:] = walker.inside(site, 0, each, [*ins[:consts], *state, *slices])
        return outs[:carried]

    carry = _carried(site, list(ins[consts : consts + carried]), step)
    if isinstance(length, Length) and carried:
        site.replace(KeepCarry(length), f"steps from {length} on keep what is carried", length)
    return [*carry, *(None if y is None else (along, *y) for y in outs[carried:])]


@dataclasses.dataclass(frozen=True)
class KeepCarry:
    """Marks a scan whose steps from a real length on keep what is carried."""

    length: Length


def _shard_map(site: Site, each: Any, live: Any) -> list[State | None]:
    return list(unknown(site))


CONTROL: dict[str, Callable[..., list[State | None]]] = {
    "inline": _inline,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "shard_map": _shard_map,
}


# -- which equations are needed ------------------------------------------------------------


def _needed(jaxpr: Any, live: Sequence[bool]) -> tuple[dict[int, list[bool]], list[bool]]:
    """Return the equations that the wanted results depend on, with their own wanted results.

    And which of the jaxpr's inputs they depend on.
    """
    wanted = {
        var for var, on in zip(jaxpr.outvars, live, strict=True) if on and not hasattr(var, "val")
    }
    needed: dict[int, list[bool]] = {}
    for index in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn = jaxpr.eqns[index]
        outs = [var in wanted for var in eqn.outvars]
        if not any(outs) and not eqn.effects:
            continue
        needed[index] = outs
        reads = [True] * len(eqn.invars)
        if eqn.primitive.name in INLINE and not eqn.effects:
            (body,) = bodies(eqn)
            reads = _needed(body.jaxpr, outs)[1]
        wanted |= {
            var for var, on in zip(eqn.invars, reads, strict=True) if on and not hasattr(var, "val")
        }
    return needed, [var in wanted for var in jaxpr.invars]


# -- comparing -----------------------------------------------------------------------------


def _all_same(values: Sequence[Any]) -> bool:
    first = np.asarray(values[0])
    return all(
        np.shape(value) == first.shape
        and np.array_equal(np.asarray(value), first, equal_nan=_nan(first))
        for value in values[1:]
    )


def _nan(array: np.ndarray) -> bool:
    return array.dtype.kind in "fc"


def _equal(a: Any, b: Any) -> bool:
    if hasattr(a, "eqns") or hasattr(a, "jaxpr"):
        return str(a) == str(b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return _all_same([a, b])
    try:
        return a is b or bool(a == b) or callable(a)
    except Exception:
        return False


def _series(values: Sequence[Any]) -> str:
    return ", ".join(str(v)[:12] for v in values)


def sizes_text(at: Mapping[str, int]) -> str:
    """Describe sizes."""
    return ", ".join(f"{name} = {size}" for name, size in at.items())


def _fill(fill: Any) -> str:
    return f"operand {fill[1]}" if isinstance(fill, tuple) else str(fill)
