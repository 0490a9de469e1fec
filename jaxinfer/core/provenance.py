"""Where the parameters of a function go: the sites that multiply by them, and what is in the way.

A parameter is followed from the inputs of a jaxpr through equations that only rearrange it
(``LAYOUT``) and into the jaxprs inside others, as (path, for each axis: the axes of the
parameter that it is made of). Where it meets a matrix product, a convolution or a gather there
is a ``Site``; every other consumer is an ``Obstacle``. Nothing is guessed by shape, nothing is
computed; the cost is linear in the equations.

A loop's carry is opaque: a parameter that is carried ends at the loop. Two parameters that are
joined (``a * g``, ``concatenate``, a product of two parameters) end there as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.core._bodies import Body, bodies
from jaxinfer.core._compat import source_line

Axes = frozenset[int]
Address = tuple[int, ...]
"""Where an equation is: its index, then (index of the body, index in it) for each level."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """A value that is a rearranged parameter.

    Attributes:
      path: of the parameter.
      axes: for each axis of the value, the parameter's axes that it runs along (empty: none).
      scans: the scans that slice it, outermost first.
    """

    path: str
    axes: tuple[Axes, ...]
    scans: tuple[Address, ...] = ()


@dataclasses.dataclass(frozen=True)
class Site:
    """An equation that multiplies by a parameter, or takes rows of it.

    Attributes:
      path: of the parameter.
      ordinal: its how-many-eth site this is, in program order.
      primitive: ``dot_general``, ``conv_general_dilated``, ``ragged_dot_general`` or ``gather``.
      side: which operand of the equation the parameter is.
      contracting: axes of the parameter that are summed over (for a gather: none).
      indexed: axes of the parameter that a gather picks from, or a ragged product groups by.
      address: where the equation is in this trace.
      source: line of the user's code.
      scans: the scans around it that slice the parameter (stacked layers), outermost first.
      seen: axes of the parameter that the operand runs along; the others are sliced away.
      windows: axes of a convolution's kernel that are its window, not its channels.
    """

    path: str
    ordinal: int
    primitive: str
    side: int
    contracting: tuple[int, ...]
    indexed: tuple[int, ...]
    address: Address
    source: str
    scans: tuple[Address, ...] = ()
    seen: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """An equation that needs a parameter's values in some other way (``output``: a result).

    Attributes:
      path: of the parameter.
      primitive, address, source: of the equation.
      alternative: whether it is one of several ways to compute something, chosen by platform.
    """

    path: str
    primitive: str
    address: Address
    source: str
    alternative: bool = False


@dataclasses.dataclass(frozen=True)
class Uses:
    """All uses of the parameters of a jaxpr, in program order."""

    sites: tuple[Site, ...]
    obstacles: tuple[Obstacle, ...]


def uses(jaxpr: Any, origins: Sequence[Origin | None]) -> Uses:
    """Return where the parameters among the inputs of a jaxpr go.

    Args:
      jaxpr: of any function.
      origins: for each input, the parameter that it is.
    """
    walker = _Walker()
    for origin in walker.walk(jaxpr, list(origins), ()):
        if origin is not None:
            walker.obstacles.append(Obstacle(origin.path, "output", (), ""))
    return Uses(tuple(walker.sites), tuple(walker.obstacles))


def uses_of(jaxpr: Any, paths: Sequence[str]) -> Uses:
    """Return where the parameters go that are the first inputs of a jaxpr, in order."""
    inputs = jaxpr.invars
    origins: list[Origin | None] = [
        parameter(path, len(var.aval.shape)) for path, var in zip(paths, inputs, strict=False)
    ]
    return uses(jaxpr, [*origins, *[None] * (len(inputs) - len(origins))])


def parameter(path: str, rank: int) -> Origin:
    """Return the origin of a parameter as it is."""
    return Origin(path, tuple(frozenset({axis}) for axis in range(rank)))


class _Walker:
    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.obstacles: list[Obstacle] = []
        self.counts: dict[str, int] = {}
        self.by_platform = 0  # how many branches by platform it is in

    def walk(
        self, jaxpr: Any, origins: Sequence[Origin | None], address: Address
    ) -> list[Origin | None]:
        """Follow the parameters through a jaxpr; returns what its outputs are."""
        env: dict[Any, Origin] = {}
        for var, origin in zip(jaxpr.invars, origins, strict=True):
            if origin is not None:
                env[var] = origin

        def read(var: Any) -> Origin | None:
            return None if hasattr(var, "val") else env.get(var)

        for index, eqn in enumerate(jaxpr.eqns):
            found = [read(var) for var in eqn.invars]
            if not any(found):
                continue
            outs = self._equation(eqn, found, (*address, index))
            env |= {v: out for v, out in zip(eqn.outvars, outs, strict=False) if out is not None}
        return [read(var) for var in jaxpr.outvars]

    def _equation(
        self, eqn: Any, found: Sequence[Origin | None], address: Address
    ) -> Sequence[Origin | None]:
        name = eqn.primitive.name
        if inside := bodies(eqn):
            return self._enter(eqn, inside, found, address)
        held = [side for side, origin in enumerate(found) if origin is not None]
        if name in SITES and len(held) == 1:
            (side,) = held
            axes = SITES[name](eqn, side)
            origin = found[side]
            if axes is not None and origin is not None:
                self._site(eqn, origin, side, axes, address)
                return ()
        if name in LAYOUT and held == [0]:
            (origin, *_) = found
            assert origin is not None
            moved = LAYOUT[name](eqn, origin.axes)
            if moved is not None:
                return [dataclasses.replace(origin, axes=moved)] * len(eqn.outvars)
        for side in held:
            self._obstacle(found[side], name, eqn, address)
        return ()

    def _site(
        self,
        eqn: Any,
        origin: Origin,
        side: int,
        axes: tuple[Sequence[int], Sequence[int]],
        address: Address,
    ) -> None:
        contracting, indexed = (
            tuple(sorted({axis for at in group for axis in origin.axes[at]})) for group in axes
        )
        ordinal = self.counts.get(origin.path, 0)
        self.counts[origin.path] = ordinal + 1
        name, source = eqn.primitive.name, source_line(eqn)
        seen = tuple(sorted(frozenset[int]().union(*origin.axes)))
        taps = eqn.params["dimension_numbers"].rhs_spec[2:] if name in WINDOWED else ()
        windows = tuple(sorted({axis for at in taps for axis in origin.axes[at]}))
        self.sites.append(
            Site(
                *(origin.path, ordinal, name, side, contracting, indexed, address, source),
                *(origin.scans, seen, windows),
            )
        )

    def _obstacle(self, origin: Origin | None, name: str, eqn: Any, address: Address) -> None:
        if origin is not None:
            line, alternative = source_line(eqn), bool(self.by_platform)
            self.obstacles.append(Obstacle(origin.path, name, address, line, alternative))

    def _enter(
        self,
        eqn: Any,
        inside: Sequence[Body],
        found: Sequence[Origin | None],
        address: Address,
    ) -> Sequence[Origin | None]:
        entered = {operand for body in inside for operand in body.operands}
        for operand, origin in enumerate(found):
            if operand not in entered:  # carried, or the index of a branch
                self._obstacle(origin, f"{eqn.primitive.name} (carried)", eqn, address)
        outs = []
        by_platform = eqn.params.get("branches_platforms") is not None
        for number, body in enumerate(inside):
            given = []
            for operand, sliced in zip(body.operands, body.sliced, strict=True):
                origin = None if operand is None else found[operand]
                if origin is not None and sliced:
                    scans = (*origin.scans, address)
                    origin = Origin(origin.path, origin.axes[1:], scans)
                given.append(origin)
            self.by_platform += by_platform
            out = self.walk(body.jaxpr, given, (*address, number))
            self.by_platform -= by_platform
            results: list[Origin | None] = [None] * len(eqn.outvars)
            for origin, result in zip(out, body.results, strict=True):
                if result is not None:
                    results[result] = origin
                else:
                    self._obstacle(origin, f"{eqn.primitive.name} (result)", eqn, address)
            outs.append(results)
        joined = [one[0] if len(set(one)) == 1 else None for one in zip(*outs, strict=True)]
        for one, together in zip(zip(*outs, strict=True), joined, strict=True):
            if together is None:
                for origin in set(one):
                    self._obstacle(origin, f"{eqn.primitive.name} (result)", eqn, address)
        return joined


# Layout: equation, axes of the operand -> axes of the result, or None where they are mixed.


def _transpose(eqn: Any, axes: tuple[Axes, ...]) -> tuple[Axes, ...]:
    return tuple(axes[axis] for axis in eqn.params["permutation"])


def _squeeze(eqn: Any, axes: tuple[Axes, ...]) -> tuple[Axes, ...]:
    gone = eqn.params["dimensions"]
    return tuple(a for axis, a in enumerate(axes) if axis not in gone)


def _broadcast(eqn: Any, axes: tuple[Axes, ...]) -> tuple[Axes, ...] | None:
    (operand, *sizes) = eqn.invars
    if sizes:  # symbolic sizes are operands
        return None
    shape, where = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    found = [frozenset[int]()] * len(shape)
    for axis, at in enumerate(where):
        if operand.aval.shape[axis] == shape[at]:
            found[at] = axes[axis]
        elif operand.aval.shape[axis] != 1:
            return None
    return tuple(found)


def _reshape(eqn: Any, axes: tuple[Axes, ...]) -> tuple[Axes, ...] | None:
    """Merge and split axes: every group of axes becomes a group of the same product."""
    if eqn.params.get("dimensions") is not None or len(eqn.invars) > 1:
        return None
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if 0 in before:
        return None
    found: list[Axes] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        first = i
        i, j, group = i + 1, j + 1, 1
        while left != right:
            if not isinstance(left, int) or not isinstance(right, int):
                return None
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif right < left and j < len(after):
                right, j, group = right * after[j], j + 1, group + 1
            else:
                return None
        group_of = range(first, min(i, len(before)))
        merged = frozenset[int]().union(*(axes[axis] for axis in group_of if before[axis] != 1))
        found += [merged if size != 1 else frozenset() for size in after[j - group : j]]
        i, j = min(i, len(before)), min(j, len(after))
    return tuple(found)


def _same(eqn: Any, axes: tuple[Axes, ...]) -> tuple[Axes, ...]:
    del eqn
    return axes


def _convert(eqn: Any, axes: tuple[Axes, ...]) -> tuple[Axes, ...] | None:
    kinds = (eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype)
    return axes if all(kind.kind in "fV" for kind in kinds) else None


LAYOUT = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "convert_element_type": _convert,
    "slice": _same,
    "dynamic_slice": _same,
    "rev": _same,
    "split": _same,
    "stop_gradient": _same,
    "copy": _same,
    "sharding_constraint": _same,
    "reshard": _same,
    "pvary": _same,
    "pcast": _same,
}


# Sites: equation, side -> (contracting axes, indexed axes) of that operand, or None.


def _dot(eqn: Any, side: int) -> tuple[Sequence[int], Sequence[int]] | None:
    contracting, _ = eqn.params["dimension_numbers"]
    return (contracting[side], ()) if side < 2 else None


def _ragged(eqn: Any, side: int) -> tuple[Sequence[int], Sequence[int]] | None:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    if side != 1 or not numbers.rhs_group_dimensions:
        return None
    contracting, _ = numbers.dot_dimension_numbers
    return contracting[1], numbers.rhs_group_dimensions


def _conv(eqn: Any, side: int) -> tuple[Sequence[int], Sequence[int]] | None:
    if side != 1 or eqn.params["batch_group_count"] > 1:
        return None
    return eqn.params["dimension_numbers"].rhs_spec[1:], ()


def _gather(eqn: Any, side: int) -> tuple[Sequence[int], Sequence[int]] | None:
    numbers = eqn.params["dimension_numbers"]
    return ((), numbers.start_index_map) if side == 0 else None


WINDOWED = ("conv_general_dilated",)
SITES = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged,
    "conv_general_dilated": _conv,
    "gather": _gather,
}


def by_path(found: Uses) -> Mapping[str, tuple[list[Site], list[Obstacle]]]:
    """Return sites and obstacles of each parameter that has any."""
    grouped: dict[str, tuple[list[Site], list[Obstacle]]] = {}
    for site in found.sites:
        grouped.setdefault(site.path, ([], []))[0].append(site)
    for obstacle in found.obstacles:
        grouped.setdefault(obstacle.path, ([], []))[1].append(obstacle)
    return grouped
