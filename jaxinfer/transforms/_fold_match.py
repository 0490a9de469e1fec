"""A function that is traced, and where the entries of a plan are in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from jaxinfer.transforms._fold_flat import Flat, flatten
from jaxinfer.transforms._fold_plan import Computed, Group, Member, Plan
from jaxinfer.transforms._fold_sites import Op, Site, Sites, sites
from jaxinfer.transforms._fold_values import Values

Key = tuple[str, ...]
"""Names an entry of a plan in whatever trace."""


@dataclasses.dataclass
class Found:
    """A flat function, analysed.

    Attributes:
      flat: the function; its first inputs are the parameters.
      values: what parameters alone decide.
    """

    flat: Flat
    values: Values

    @functools.cached_property
    def sites(self) -> Sites:
        """The products by parameters."""
        return sites(self.flat, self.values)

    @functools.cached_property
    def site_of(self) -> dict[int, Site]:
        """The sites by their source, which has no other use."""
        return {site.source: site for site in self.sites.found}

    @functools.cached_property
    def site_at(self) -> dict[int, Site]:
        """The sites by the indices of their equations."""
        return {site.node: site for site in self.sites.found}

    @functools.cached_property
    def inputs(self) -> dict[str, int]:
        """The parameters by path."""
        return dict(zip(self.values.paths, self.flat.inputs, strict=False))

    @functools.cached_property
    def frontier(self) -> list[int]:
        """Values computed of parameters alone that the rest of the function reads, in order."""
        found: dict[int, None] = {}
        of = self.values.of
        for node in self.flat.nodes:
            if node.outputs and node.outputs[0] in of:
                continue
            found |= dict.fromkeys(self.cores(node.inputs))
        found |= dict.fromkeys(self.cores(self.flat.outputs))
        return sorted(found, key=lambda core: (self.flat.producer[core], core))

    def cores(self, values: Iterable[int]) -> list[int]:
        """Return the computed cores of those of some values that parameters decide."""
        known = [self.values.of[value] for value in values if value in self.values.of]
        return [each.core for each in known if each.paths and each.core in self.flat.producer]

    @functools.cached_property
    def ordinals(self) -> dict[int, int]:
        """The place of each value of the frontier among those that look the same."""
        counts: dict[Any, int] = {}
        found = {}
        for core in self.frontier:
            key = self._looks(core)
            found[core] = counts.get(key, 0)
            counts[key] = found[core] + 1
        return found

    @functools.cached_property
    def by_looks(self) -> dict[Any, int]:
        """The values of the frontier by paths, shape, dtype and ordinal."""
        return {(*self._looks(core), number): core for core, number in self.ordinals.items()}

    def _looks(self, core: int) -> tuple[Any, ...]:
        aval = self.flat.avals[core]
        return self.values.of[core].paths, tuple(aval.shape), str(aval.dtype)

    def entry(self, core: int, name: str) -> Computed:
        """Return the entry of a computed value."""
        value, aval = self.values.of[core], self.flat.avals[core]
        paths = tuple(self.values.names(value.paths))
        facts = self.values.digest(value.facts)
        ordinal = self.ordinals[core]
        return Computed(name, paths, tuple(aval.shape), str(aval.dtype), ordinal, facts)

    def member(self, site: Site, ops: Sequence[Op], kernel: str, bias: str | None) -> Member:
        """Return the entry of a product and the equations behind it."""
        paths, facts = self.operands(ops)
        names = tuple(self.values.names(paths))
        return Member(kernel, tuple(op.kind for op in ops), names, self.values.digest(facts), bias)

    def operands(self, ops: Sequence[Op]) -> tuple[int, int]:
        """Return the sets of paths and facts of the operands of equations."""
        paths = facts = 0
        for op in ops:
            if op.operand is not None:
                value = self.values.of[op.operand]
                paths, facts = paths | value.paths, facts | value.facts
        return paths, facts


def analyse(jaxpr: Any, consts: Sequence[Any], paths: Sequence[str], frozen: Collection[str]):
    """Return a trace whose first inputs are the parameters, analysed."""
    flat = flatten(jaxpr, consts)
    return Found(flat, Values(flat, paths, frozen))


class Place(NamedTuple):
    """Where a group is: its sites, and the equations of each that are folded."""

    group: Group
    sites: tuple[Site, ...]
    ops: tuple[tuple[Op, ...], ...]


class Matched(NamedTuple):
    """A plan in a trace.

    Attributes:
      cores: the value that each computed entry is, by name.
      places: where the groups are.
      problems: why an entry is not there, by its key.
    """

    cores: dict[str, int]
    places: list[Place]
    problems: dict[Key, str]


def key_of(entry: Computed | Group) -> Key:
    """Return the key of an entry."""
    if isinstance(entry, Computed):
        return ("computed", *entry.paths, str(entry.shape), entry.dtype, str(entry.ordinal))
    return (entry.kind, *(member.kernel for member in entry.members))


def match(found: Found, plan: Plan) -> Matched:
    """Find the entries of a plan in a trace."""
    matched = Matched({}, [], {})
    bits = {path: 1 << index for index, path in enumerate(found.values.paths)}
    for entry in plan.computed:
        mask = sum(bits.get(path, 0) for path in set(entry.paths))
        core = found.by_looks.get((mask, entry.shape, entry.dtype, entry.ordinal))
        made_of = ", ".join(entry.paths)
        if core is None:
            matched.problems[key_of(entry)] = (
                f"{entry.name}: no value {entry.dtype}{list(entry.shape)} is computed of {made_of}"
            )
        elif found.values.digest(found.values.of[core].facts) != entry.facts:
            matched.problems[key_of(entry)] = (
                f"{entry.name}: computed of {made_of} with other numbers"
            )
        else:
            matched.cores[entry.name] = core
    for group in plan.groups:
        place = _place(found, matched, group)
        if isinstance(place, str):
            matched.problems[key_of(group)] = place
        else:
            matched.places.append(place)
    return matched


def _place(found: Found, matched: Matched, group: Group) -> Place | str:
    places, chains = [], []
    for member in group.members:
        source = matched.cores.get(member.kernel, found.inputs.get(member.kernel))
        site = None if source is None else found.site_of.get(source)
        if site is None:
            return f"{member.kernel}: it is not the kernel of one product, read once"
        ops = site.chain[: len(member.ops)]
        here = found.member(site, ops, member.kernel, member.bias)
        if here != member:
            wanted, got = (
                f"{', '.join(m.ops) or 'nothing'} by {', '.join(m.paths) or 'numbers'}"
                for m in (member, here)
            )
            other = "with other numbers" if wanted == got else f"got {got}"
            return f"{member.kernel}: required {wanted} after its product, {other}"
        places.append(site)
        chains.append(ops)
    place = Place(group, tuple(places), tuple(chains))
    return fault(found, place) or place


def fault(found: Found, place: Place) -> str:
    """Return why the sites of a group cannot be changed together; empty if they can."""
    checks = {"merge": _merge_fault, "compose": _compose_fault}
    check = checks.get(place.group.kind)
    return check(found, place) if check else ""


def alike(found: Found, site: Site) -> tuple[Any, ...]:
    """Return what is equal for products that can be merged."""
    node = found.flat.nodes[site.node]
    params = {name: str(value) for name, value in node.eqn.params.items()}
    data = node.inputs[1 - site.side]
    dtypes = (str(found.flat.avals[value].dtype) for value in (node.inputs[site.side], site.source))
    return (data, site.side, node.name, tuple(sorted(params.items())), *dtypes)


def _merge_fault(found: Found, place: Place) -> str:
    group = place.group
    if any(found.flat.nodes[site.node].name != "dot_general" for site in place.sites):
        return f"{group.title}: they are no matrix products"
    if len({alike(found, site) for site in place.sites}) > 1:
        return f"{group.title}: they are no products of one input"
    axis = merge_axes(found, place.sites)
    if group.axis not in axis:
        return f"{group.title}: their kernels differ in other axes than {group.axis}"
    return ""


def merge_axes(found: Found, members: Sequence[Site]) -> list[int]:
    """Return the output axes along which kernels can be put side by side."""
    nodes = [found.flat.nodes[site.node] for site in members]
    _, batch = nodes[0].eqn.params.get("dimension_numbers", ((), ((0,), ())))
    if nodes[0].name != "dot_general" or any(batch):
        return []
    shapes = [
        found.flat.shape(node.inputs[site.side]) for node, site in zip(nodes, members, strict=True)
    ]
    axes = []
    for axis in members[0].outputs:
        if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) == 1:
            axes.append(axis)
    return axes


def _compose_fault(found: Found, place: Place) -> str:
    for before, ops, after in zip(place.sites, place.ops, place.sites[1:], strict=False):
        if len(ops) != len(before.chain) or follower(found, before) is not after:
            return f"{place.group.title}: they do not follow each other with nothing between"
    return ""


def follower(found: Found, site: Site) -> Site | None:
    """Return the dense layer that reads a dense layer's output, with nothing between."""
    flat = found.flat
    readers = flat.consumers[site.end]
    if len(readers) != 1 or not site.straight:
        return None
    after = found.site_at.get(readers[0])
    if after is None or not (_is_dense(found, site) and _is_dense(found, after)):
        return None
    data = flat.nodes[after.node].inputs[1 - after.side]
    return after if data == site.end else None


def _is_dense(found: Found, site: Site) -> bool:
    """Whether a product is of the last axis of x by a kernel of two axes, on the right."""
    node = found.flat.nodes[site.node]
    if node.name != "dot_general" or site.side != 1:
        return False
    (left, right), batch = node.eqn.params["dimension_numbers"]
    rank, kernel = (len(found.flat.shape(value)) for value in node.inputs)
    return tuple(left) == (rank - 1,) and kernel == 2 and len(right) == 1 and not any(batch)
