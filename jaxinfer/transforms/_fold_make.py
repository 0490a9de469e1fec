"""Making the plan of a fold, from traces of a function at one or more sizes of its inputs.

Compositions come first, then maps by channel, then merging, then what is still computed of
parameters alone. An entry that another trace does not have is refused (a number in it, or its
shape, depends on the sizes of the inputs), and the plan is made again without it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.core._compat import source_line, subjaxprs
from jaxinfer.numerics.folding import worth_composing
from jaxinfer.transforms._fold_match import (
    Found,
    Key,
    Matched,
    Place,
    alike,
    follower,
    key_of,
    match,
    merge_axes,
)
from jaxinfer.transforms._fold_params import jobs, specs
from jaxinfer.transforms._fold_plan import Computed, Group, Plan, Spec
from jaxinfer.transforms._fold_rewrite import build
from jaxinfer.transforms._fold_sites import Op, Site, saves

SMALL = 1 << 16
"""Bytes below which a computed value may be larger than the parameters that it is made of."""

Left = dict[str, tuple[str, str, str]]
"""Status, why a parameter was left, and the line in the way, by path."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to do: merge, compose; and whether sizes must follow from those of parameters."""

    merge: bool = True
    compose: bool = True
    pinned: bool = True


def make(traces: Sequence[Found], frozen: Sequence[str], options: Options) -> tuple[Plan, Left]:
    """Return the plan that fits all traces, and why other parameters were left.

    Args:
      traces: of one function; the plan is made of the first.
      frozen: parameters that are taken as inputs.
      options: what to do.
    """
    refused: dict[Key, str] = {}
    while True:
        maker = _Maker(traces[0], options, refused)
        plan = maker.plan(frozen)
        matches = [match(found, plan) for found in traces]
        missing = [key for matched in matches[1:] for key in matched.problems]
        assert not matches[0].problems, matches[0].problems
        if not missing:
            break
        refused |= dict.fromkeys(missing, "depends on the sizes of the inputs")
    read: set[str] = set(frozen)
    for found, matched in zip(traces, matches, strict=True):
        steps = build(found, matched)
        reads = steps.reads
        read |= {name for name, value in steps.leaves.items() if value in reads}
    return dataclasses.replace(plan, leaves=_leaves(traces[0], matches[0], plan, read)), maker.left


def _leaves(found: Found, matched: Matched, plan: Plan, read: set[str]) -> dict[str, Spec]:
    """Return the parameters after the fold; a new one stands behind the first it is made of."""
    made = {
        name: (tuple(aval.shape), str(aval.dtype))
        for name, aval in specs(found, jobs(found, matched)).items()
    }
    behind: dict[str, list[str]] = {}
    for name, path in origins(plan).items():
        if name not in plan.params and name in made:
            behind.setdefault(path, []).append(name)
    leaves: dict[str, Spec] = {}
    for path, spec in plan.params.items():
        if path in read:
            leaves[path] = spec
        leaves |= {name: made[name] for name in behind.get(path, ())}
    return leaves


def origins(plan: Plan) -> dict[str, str]:
    """Return, for each new parameter, the first one that it is made of."""
    found = {entry.name: entry.paths[0] for entry in plan.computed}
    for group in plan.groups:
        first = group.members[0].kernel
        first = found.get(first, first)
        for name in (group.name, group.bias):
            if name is not None:
                found.setdefault(name, first)
        for member in group.members:
            if member.bias is not None:
                found.setdefault(member.bias, found.get(member.kernel, member.kernel))
    return found


class _Maker:
    """Makes one plan of one trace."""

    def __init__(self, found: Found, options: Options, refused: Mapping[Key, str]):
        self.found, self.flat, self.options, self.refused = found, found.flat, options, refused
        self.names = set(found.inputs)
        self.paths = {value: path for path, value in found.inputs.items()}
        self.computed: dict[int, Computed] = {}
        self.named: dict[int, str] = {}
        self.left: Left = {}
        self.taken: set[int] = set()

    def plan(self, frozen: Sequence[str]) -> Plan:
        """Return the plan, without its leaves."""
        usable = [site for site in self.found.sites.found if self._kernel(site) is not None]
        places: list[Place] = []
        if self.options.compose:
            places += self._compositions(usable)
        rest = [site for site in usable if site.node not in self.taken]
        if self.options.merge:
            places += self._merged(rest)
        rest = [site for site in rest if site.node not in self.taken and saves(site.chain)]
        places += filter(None, map(self._affine, rest))
        kernels = {site.source for place in places for site in place.sites}
        self.computed = {core: e for core, e in self.computed.items() if core in kernels}
        self._rest(places)
        self._near_misses()
        shapes = {
            path: (self.flat.shape(value), str(self.flat.avals[value].dtype))
            for path, value in self.found.inputs.items()
        }
        entries = tuple(self.computed[core] for core in sorted(self.computed))
        groups = tuple(place.group for place in places)
        return Plan(shapes, tuple(frozen), entries, groups)

    # Names.

    def _new(self, *candidates: str) -> str:
        """Return the first name that is free, or the last with a number."""
        last = candidates[-1]
        numbered = (f"{last}{number}" for number in itertools.count(2))
        name = next(n for n in itertools.chain(candidates, numbered) if n not in self.names)
        self.names.add(name)
        return name

    def _kernel(self, site: Site) -> str | None:
        """Return the name of a site's kernel; None if it is computed and may not be stored."""
        if site.source in self.paths:
            return self.paths[site.source]
        entry = self._entry(site.source)
        return None if entry is None else entry.name

    # Values of parameters alone.

    def _entry(self, core: int) -> Computed | None:
        """Return the entry of a computed value, or None, with the reason noted."""
        if core in self.computed:
            return self.computed[core]
        entry = self.found.entry(core, "")
        why = self.refused.get(key_of(entry)) or self._too_large(core)
        if not why and self.options.pinned and not self.found.values.of[core].pinned:
            why = "its size may be that of an input"
        if why:
            self._leave(entry.paths, "unfit", f"{_text(entry)}: {why}", self.flat.producer[core])
            return None
        if core not in self.named:
            self.named[core] = self._new(joined(entry.paths))
        self.computed[core] = dataclasses.replace(entry, name=self.named[core])
        return self.computed[core]

    def _too_large(self, core: int) -> str:
        mask = self.found.values.of[core].paths
        sources = [self.found.inputs[path] for path in self.found.values.names(mask)]
        before = sum(self._bytes(value) for value in sources)
        after = self._bytes(core)
        if after <= max(before, SMALL):
            return ""
        return f"it is larger than what it is made of: {before:,} -> {after:,} bytes"

    def _bytes(self, value: int) -> int:
        return math.prod(self.flat.shape(value)) * np.dtype(self.flat.avals[value].dtype).itemsize

    def _rest(self, places: list[Place]) -> None:
        """Store what is still computed of parameters alone once groups are in place."""
        cores = {entry.name: core for core, entry in self.computed.items()}
        steps = build(self.found, Matched(cores, places, {}))
        known = self.found.values.of
        read: dict[int, None] = {}
        for step in steps.steps:
            if step.fn is not None or not step.outputs or step.outputs[0] not in known:
                read |= dict.fromkeys(step.inputs)
        read |= dict.fromkeys(steps.outputs)
        for core in dict.fromkeys(self.found.cores(read)):
            self._entry(core)

    # Products.

    def _affine(self, site: Site) -> Place | None:
        name = self._kernel(site)
        assert name is not None
        bias = self._bias(site, site.chain, name) if _adds(site.chain) else None
        member = self.found.member(site, site.chain, name, bias)
        return self._accept(Group("affine", (member,), name), (site,), (site.chain,))

    def _accept(
        self, group: Group, sites: tuple[Site, ...], ops: tuple[tuple[Op, ...], ...]
    ) -> Place | None:
        if why := self.refused.get(key_of(group)):
            for member, site in zip(group.members, sites, strict=True):
                self._leave([member.kernel], "unfit", f"{group.kind}: {why}", site.node)
            return None
        self.taken |= {site.node for site in sites}
        return Place(group, sites, ops)

    def _bias(self, site: Site, ops: Sequence[Op], kernel: str) -> str:
        """Return the path of a bias that the new one can take the place of, or a new name."""
        sizes = self.flat.shape(self.flat.nodes[site.node].inputs[site.side])
        shape = tuple(sizes[axis] for axis in site.outputs)
        for op in ops:
            if op.kind == "add" and op.operand is not None and len(shape) == 1:
                value = self._alone(op.operand)
                if value in self.paths and self.flat.shape(value) == shape:
                    return self.paths[value]
        parent = kernel.rpartition(".")[0]
        return self._new(f"{parent}.bias" if parent else f"{kernel}.bias", f"{kernel}.bias")

    def _alone(self, value: int) -> int:
        """Return what a value is a rearrangement of, if nothing else reads it; else -1."""
        core = self.found.values.of[value].core
        while len(self.flat.consumers[value]) == 1:
            if value == core:
                return core
            (value,) = self.flat.nodes[self.flat.producer[value]].inputs[:1]
        return -1

    def _merged(self, usable: Sequence[Site]) -> list[Place]:
        groups: dict[Any, list[Site]] = {}
        for site in usable:
            if self.flat.nodes[site.node].name == "dot_general":
                groups.setdefault(alike(self.found, site), []).append(site)
        several = [tuple(members) for members in groups.values() if len(members) > 1]
        return [place for place in map(self._merge, several) if place is not None]

    def _merge(self, members: tuple[Site, ...]) -> Place | None:
        axes = merge_axes(self.found, members)
        if not axes:
            return None
        kernels = [self._kernel(site) or "" for site in members]
        chains = [site.chain for site in members]
        whole = all(
            _adds(ops)
            and self.flat.avals[ops[-1].output].dtype
            == self.flat.avals[self.flat.nodes[site.node].outputs[0]].dtype
            for site, ops in zip(members, chains, strict=True)
        )
        if not whole:
            chains = [ops if saves(ops) else () for ops in chains]
        biases = [
            self._bias(site, ops, kernel) if _adds(ops) and not whole else None
            for site, ops, kernel in zip(members, chains, kernels, strict=True)
        ]
        entries = tuple(map(self.found.member, members, chains, kernels, biases))
        group = Group("merge", entries, "", None, axes[0])
        if key_of(group) not in self.refused:
            paths = [path for entry in entries for path in entry.paths]
            bias = self._new(_bias_name(kernels, paths)) if whole else None
            group = dataclasses.replace(group, name=self._new(joined(kernels)), bias=bias)
        return self._accept(group, members, tuple(chains))

    def _compositions(self, usable: Sequence[Site]) -> list[Place]:
        places, known = [], {site.node for site in usable}
        for site in usable:
            group = [site]
            while site.node not in self.taken:
                after = follower(self.found, group[-1])
                if after is None or after.node not in known | self.taken:
                    break
                (k, _), (m, n) = self._sizes(group[0]), self._sizes(after)
                if after.node in self.taken or not worth_composing(1, k, m, n):
                    break
                group.append(after)
            if len(group) > 1 and (place := self._composed(tuple(group))):
                places.append(place)
        return places

    def _composed(self, members: tuple[Site, ...]) -> Place | None:
        first, last = [site.chain for site in members[:-1]], members[-1].chain
        adds = any(map(_adds, first))
        chains = (*first, last if adds or saves(last) else ())
        adds = adds or _adds(chains[-1])
        kernels = [self._kernel(site) or "" for site in members]
        entries = tuple(
            self.found.member(site, ops, kernel, None)
            for site, ops, kernel in zip(members, chains, kernels, strict=True)
        )
        group = Group("compose", entries, "")
        if key_of(group) not in self.refused:
            bias = self._bias(members[-1], chains[-1], kernels[-1]) if adds else None
            group = dataclasses.replace(group, name=self._new(joined(kernels)), bias=bias)
        return self._accept(group, members, chains)

    def _sizes(self, site: Site) -> tuple[int, int]:
        """Return inputs and outputs of a dense kernel."""
        shape = self.flat.shape(self.flat.nodes[site.node].inputs[1])
        return shape[1 - site.outputs[0]], shape[site.outputs[0]]

    # What was left.

    def _leave(self, paths: Sequence[str], status: str, why: str, node: int) -> None:
        line = source_line(self.flat.nodes[node].eqn)
        for path in paths:
            self.left.setdefault(path, (status, why, line))

    def _near_misses(self) -> None:
        known = self.found.values
        for missed in self.found.sites.missed:
            paths = known.names(known.of[missed.source].paths)
            self._leave(paths, "blocked", f"scaling by channel: {missed.why}", missed.node)
        for index, node in enumerate(self.flat.nodes):
            if node.outputs and node.outputs[0] in known.of:
                continue
            inside = subjaxprs(node.eqn.params)
            if not inside or node.name in _SCALAR or index in self.found.site_at:
                continue
            for value in node.inputs:
                if value in known.of:
                    paths = known.names(known.of[value].paths)
                    self._leave(
                        paths, "blocked", f"inside {node.name}: fold does not enter it", index
                    )


_SCALAR = (
    "reduce",
    "reduce_window",
    "scatter",
    "scatter-add",
    "scatter_add",
    "scatter_mul",
    "sort",
)
"""Equations whose jaxprs are of scalars: nothing to fold inside."""


def _adds(ops: Sequence[Op]) -> bool:
    return any(op.kind in ("add", "sub", "rsub") for op in ops)


def _text(entry: Computed) -> str:
    return f"{entry.dtype}{list(entry.shape)} computed of {', '.join(entry.paths)}"


def joined(paths: Sequence[str]) -> str:
    """Return one name for several parameters.

    >>> joined(["h.0.query.weight", "h.0.key.weight"])
    'h.0.query&key.weight'
    >>> joined(["bn.weight", "bn.running_var"]), joined(["w"]), joined(["q", "k"])
    ('bn.weight&running_var', 'w.folded', 'q&k')
    """
    paths = list(dict.fromkeys(paths))
    if len(paths) == 1:
        return f"{paths[0]}.folded"
    if len(paths) > 6:
        return f"{paths[0]}&{len(paths) - 1}_others"
    parts = [path.split(".") for path in paths]
    shortest = min(map(len, parts)) - 1
    head = _common([each[:shortest] for each in parts])
    tail = _common([each[len(head) + 1 :][::-1] for each in parts])[::-1]
    middle = [".".join(each[len(head) : len(each) - len(tail)]) for each in parts]
    return ".".join([*head, "&".join(middle), *tail])


def _common(parts: Sequence[Sequence[str]]) -> list[str]:
    found = []
    for each in zip(*parts, strict=False):
        if len(set(each)) > 1:
            break
        found.append(each[0])
    return found


def _bias_name(kernels: Sequence[str], paths: Sequence[str]) -> str:
    """Return a name for the bias of merged layers: of theirs, if each has one."""
    if len(set(paths)) == len(kernels):
        parents = {kernel.rpartition(".")[0]: None for kernel in kernels}
        by_parent = {path.rpartition(".")[0]: path for path in paths}
        if set(parents) == set(by_parent):
            return joined([by_parent[parent] for parent in parents])
        return joined(list(paths))
    return f"{joined(list(kernels))}.bias"
