"""One equation in all traces as its rule sees it, and what the rule asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jaxinfer.compile.padding.axes import (
    Axis,
    Refusal,
    State,
    any_padded,
    is_padded,
    join,
    prefix,
    show,
    varied,
)
from jaxinfer.compile.padding.same import series, where
from jaxinfer.compile.padding.sizes import Length, Number, Observed

Address = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Mask:
    """Padding of one axis of an operand, to be replaced by a fill (see ``run.filled``)."""

    operand: int
    axis: int
    factors: Axis
    fill: Any


@dataclasses.dataclass(frozen=True)
class Move:
    """An operand's axis whose real places are to be rearranged, in their order."""

    operand: int
    axis: int
    before: Axis
    after: Axis


@dataclasses.dataclass(frozen=True)
class Action:
    """What to do in place of an equation.

    Attributes:
      moves: axes of its operands to be rearranged first.
      masks: padding to be replaced in its operands then.
      compute: ``compute(run, equation, values)`` in place of the equation, or None.
      notes: what was done, for people.
      needs: the symbols that it reads.
    """

    moves: tuple[Move, ...]
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


def symbols_of(formula: Any) -> frozenset[str]:
    """Return the symbols that a length, number or axis depends on."""
    if isinstance(formula, Length):
        return frozenset(formula.symbols)
    if isinstance(formula, Number):
        return frozenset(name for name, _ in formula.powers)
    found = [factor.length.symbols for factor in formula if factor.length is not None]
    return frozenset(name for names in found for name in names)


class Walks(Protocol):
    """What a site needs of the walk around it."""

    observed: Observed
    around: list[Any]

    def axes(self, shapes: Sequence[Sequence[int]], *, uniform: bool = False) -> State:
        """Return the state of a value whose real part is a box at its beginning."""
        ...

    def at_least(self, length: Length | int | None, value: int) -> None:
        """Record that a length must be at least a value."""
        ...

    def forget(self, address: Address) -> None:
        """Drop what was found within an equation: it is walked again."""
        ...

    def inside(
        self,
        site: Site,
        number: int,
        each: Sequence[Any],
        states: Sequence[State | None],
        live: Sequence[bool] | None = None,
    ) -> list[State | None]:
        """Walk one of the bodies of an equation."""
        ...


class Site:
    """One equation in all traces, as its rule sees it."""

    def __init__(self, walker: Walks, eqns: Sequence[Any], ins: Sequence[State], address: Address):
        self.walker, self.eqns, self.ins, self.address = walker, eqns, list(ins), address
        self.eqn = eqns[0]
        self.name = self.eqn.primitive.name
        self.params = self.eqn.params
        self.masks: list[Mask] = []
        self.moves: list[Move] = []
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
            raise Refusal(f"{what} is no linear function of the sizes ({series(values)})")
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

    def replace(self, compute: Any, note: str, *reads: Any) -> None:
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

        Merged axes whose real places lie apart are moved together first.

        Raises:
          Refusal: the length is no function of the sizes that is known.
        """
        factors = self.ins[operand][axis]
        if not is_padded(factors):
            return None
        if prefix(factors) is None:
            sizes = [(eqn.invars[operand].aval.shape[axis],) for eqn in self.eqns]
            self.move(operand, axis, self.walker.axes(sizes)[0])
        return prefix(self.ins[operand][axis])

    def move(self, operand: int, axis: int, after: Axis) -> None:
        """Have the real places of an operand's axis rearranged, in their order.

        Raises:
          Refusal: there are not as many of them.
        """
        state = list(self.ins[operand])
        before, after = state[axis], varied(after)
        if any(_count(before, at) != _count(after, at) for at in self.walker.observed.sizes):
            raise Refusal(
                f"its operands are padded in different places: {show(after)} and {show(before)}"
            )
        self.moves.append(Move(operand, axis, before, after))
        self.note(f"axis {axis} of operand {operand}: {show(before)} as {show(after)}")
        state[axis] = after
        self.ins[operand] = tuple(state)

    def joined(self, *places: tuple[int, int]) -> Axis:
        """Return the one axis that axes of operands (operand, axis) are, moved where they differ.

        Raises:
          Refusal: they have not as many real places.
        """
        found: Axis | None = None
        for operand, axis in places:
            mine = self.ins[operand][axis]
            try:
                found = mine if found is None else join(found, mine)
            except Refusal:
                assert found is not None
                self.move(operand, axis, found)
        return found or ()

    def action(self) -> Action | None:
        """Return what the rule asked for."""
        if not self.masks and not self.moves and self.compute is None:
            return None
        axes = [mask.factors for mask in self.masks]
        axes += [each for move in self.moves for each in (move.before, move.after)]
        reads = frozenset(self.reads).union(*map(symbols_of, axes))
        lists = tuple(self.moves), tuple(self.masks)
        source = where(self.eqn, self.walker.around)
        return Action(*lists, self.compute, tuple(self.notes), reads, self.name, source)


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


def _fill(fill: Any) -> str:
    return f"operand {fill[1]}" if isinstance(fill, tuple) else str(fill)


def _count(axis: Axis, at: Mapping[str, int]) -> int:
    return math.prod(factor.length.at(at) if factor.length else factor.size for factor in axis)
