"""Specs of a strategy, from the dimensions of a program.

    data      the batch of the inputs over a mesh axis
    sequence  the sequence of the inputs
    expert    dimensions that number experts: groups of ragged products, batch axes of products
              with a parameter, rows that a gather picks from a stack of matrices
    tensor    dimensions inside the program: hidden units, heads, vocabulary. What makes such a
              dimension is split by columns, what sums over it by rows, biases along it follow;
              one all-reduce after the rows
    fsdp      of every leaf the largest axis that divides; XLA gathers it for use

Tensor: a dimension may be split over p devices if p divides it, all leaves along it fit, and it
is no batch, sequence, scan or expert axis. Dimensions that meet in one value (the axes of a
matrix, of an activation) exclude each other. Those are chosen that communicate least
(``_choose``, ``_auto_flow``). For a transformer that is the hidden units and the heads of each
layer, and the vocabulary: columns then rows, the residual stream whole. Source: M. Shoeybi et
al., Megatron-LM, 2019, https://arxiv.org/abs/1909.08053.

What is left (12 heads over 8 devices, a vocabulary that does not divide) is split along an axis
that products sum over, for a gather along what it does not pick from, for a convolution along
its output channels: legal wherever the size divides, at the price of an all-reduce or a gather
of the activation. What is small stays whole: the smallest leaves, as long as together they
are at most 3 % of a device's share; and with ``tensor``, vectors that follow nothing.

Source for fsdp: S. Rajbhandari et al., ZeRO, 2020, https://arxiv.org/abs/1910.02054; for
experts: D. Lepikhin et al., GShard, 2021, https://arxiv.org/abs/2006.16668.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh, PartitionSpec

from jaxinfer.core.array_types import nbytes
from jaxinfer.sharding import _score, _specs
from jaxinfer.sharding._auto_dimensions import Dimension
from jaxinfer.sharding._auto_factors import Factor, lead
from jaxinfer.sharding._auto_read import InputAxis, Reading

STRATEGIES = ("data", "fsdp", "tensor", "expert", "sequence")
SMALL = 0.03
"""Share of a device's bytes that may be whole leaves."""


@dataclasses.dataclass
class Layout:
    """Specs under construction.

    Attributes:
      entries: for each leaf, for each axis the mesh axes that split it.
      inputs: for each component, for each array input, for each axis the same.
      why: reason for each leaf; ``input_why`` for each input.
      notes: what could not be done.
      gathered, closed: what XLA is told inside (``_pins``).
    """

    reading: Reading
    mesh: Mesh
    entries: dict[str, list[tuple[str, ...]]]
    inputs: list[list[list[tuple[str, ...]]]]
    why: dict[str, str] = dataclasses.field(default_factory=dict)
    input_why: dict[tuple[int, int], list[str]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    gathered: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    closed: list[str] = dataclasses.field(default_factory=list)

    @property
    def splits(self) -> bool:
        """Whether anything is split."""
        inputs = [entry for component in self.inputs for entry in component]
        return any(any(entry) for entry in (*self.entries.values(), *inputs))

    @property
    def specs(self) -> dict[str, PartitionSpec]:
        """Spec by leaf path."""
        return {path: _specs.trimmed(entry) for path, entry in self.entries.items()}

    def input_specs(self, component: int = 0) -> tuple[PartitionSpec, ...]:
        """Spec of each array input of a component."""
        return tuple(map(_specs.trimmed, self.inputs[component]))

    def fits(self, path: str, axis: int, names: Sequence[str]) -> bool:
        """Return whether a leaf, all its parts, can be split along an axis as well."""
        if axis in self.reading.windows(path):
            return False
        entry = [*self.entries[path]]
        entry[axis] = (*entry[axis], *names)
        leaf = self.reading.leaves[path]
        return not _specs.faults(path, leaf, entry, self.mesh)

    def split(self, path: str, axis: int, names: Sequence[str], why: str) -> None:
        """Split a leaf along an axis."""
        self.entries[path][axis] = (*self.entries[path][axis], *names)
        self.why[path] = f"{self.why[path]}; {why}" if path in self.why else why

    def uses(self, path: str, names: Sequence[str]) -> bool:
        """Return whether a leaf is split over any of some mesh axes."""
        return any(name in entry for entry in self.entries[path] for name in names)


def lay_out(reading: Reading, mesh: Mesh, roles: Mapping[str, Sequence[str]]) -> Layout:
    """Return the specs of a strategy.

    Args:
      reading: the model.
      mesh: the mesh.
      roles: mesh axes by strategy; those of ``STRATEGIES`` that are not there are not used.
    """
    layout = Layout(
        reading,
        mesh,
        {path: [()] * len(leaf.shape) for path, leaf in reading.leaves.items()},
        [
            [[()] * len(v.shape) for v in reading.arrays(number)]
            for number in range(len(reading.components))
        ],
    )
    if names := roles.get("expert"):
        _experts(layout, names)
    if names := roles.get("tensor"):
        _tensor(layout, names)
    if names := roles.get("fsdp"):
        _fsdp(layout, names)
    for strategy, axes in (("data", reading.batch), ("sequence", reading.sequence)):
        if names := roles.get(strategy):
            _inputs(layout, strategy, axes, names)
    for path in reading.leaves:
        layout.why.setdefault(path, _whole(layout, path, roles))
    return layout


def _count(mesh: Mesh, names: Sequence[str]) -> int:
    return math.prod(mesh.shape[name] for name in names)


def _over(mesh: Mesh, names: Sequence[str]) -> str:
    return " x ".join(f"{name}={mesh.shape[name]}" for name in names)


def _legal(layout: Layout, dimension: Dimension, names: Sequence[str]) -> bool:
    if dimension.size % _count(layout.mesh, names):
        return False
    return all(
        layout.uses(path, names) or layout.fits(path, axis, names)
        for path, axis in _once(dimension.params)
    )


def _once(params: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return one axis for each leaf: where a dimension leads two, the last."""
    return list({path: (path, axis) for path, axis in params}.values())


def _split_all(layout: Layout, factor: Factor, names: Sequence[str], kind: str) -> None:
    """Split every leaf, and every input, along a dimension."""
    dimension = layout.reading.dimensions[factor]
    for path, axis in _once(dimension.params):
        if not layout.uses(path, names):
            layout.split(path, axis, names, _reason(layout, dimension, path, axis, kind))
    _split_inputs(layout, dimension, names, kind)


def _split_inputs(layout: Layout, dimension: Dimension, names: Sequence[str], kind: str) -> None:
    for component, index, axis in dimension.inputs:
        place = layout.inputs[component][index]
        size = layout.reading.arrays(component)[index].shape[axis]
        count = _count(layout.mesh, (*place[axis], *names))
        if size % count == 0 and not any(name in entry for entry in place for name in names):
            place[axis] = (*place[axis], *names)
            why = layout.input_why.setdefault((component, index), [])
            why.append(f"axis {axis} is the {kind} of the parameters")


def follow(layout: Layout, params: Mapping[str, PartitionSpec]) -> None:
    """Split inputs along the dimensions that given specs split (a cache along its heads).

    Not along what is gathered for use, nor where a split must not spread.
    """
    reading = layout.reading
    for path, spec in params.items():
        if path in layout.closed or path not in reading.leaves:
            continue
        for axis, entry in enumerate(spec):
            names = [n for n in _specs.axes_of(entry) if n not in layout.gathered.get(path, ())]
            factor = reading.leading(path, axis) if names else None
            if factor is not None:
                _split_inputs(layout, reading.dimensions[factor], names, "dimension")


def _reason(layout: Layout, dimension: Dimension, path: str, axis: int, kind: str) -> str:
    reading = layout.reading
    what = f"axis {axis}, {dimension.size} {kind}"
    if kind == "experts":
        return f"experts: {what}"
    if path in dimension.summed:
        makers = [
            p for p, _ in dimension.params if p not in dimension.summed and p in reading.sites
        ]
        of = f" made by {_few(makers)}" if makers else ""
        return f"rows: sums over {what}{of}, then all-reduce"
    if any(axis in site.indexed for site in reading.sites.get(path, ())):
        return f"rows are picked along {what}, then all-reduce"
    if path in reading.sites:
        users = [p for p in dimension.summed if p != path]
        to = f" that {_few(sorted(users))} sums over" if users else ", which stays split"
        return f"columns: makes {what}{to}"
    makers = [p for p, _ in dimension.params if p in reading.sites and p not in dimension.summed]
    return f"follows {_few(makers)} along {what}" if makers else f"lies along {what}"


def _few(paths: Sequence[str]) -> str:
    paths = list(dict.fromkeys(paths))
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _experts(layout: Layout, names: Sequence[str]) -> None:
    found = [
        factor
        for factor, dimension in layout.reading.dimensions.items()
        if "experts" in dimension.kinds and dimension.params
    ]
    if not found:
        layout.notes.append("expert: the program has no experts")
    for factor in sorted(found, key=lambda factor: factor.number):
        dimension = layout.reading.dimensions[factor]
        if _legal(layout, dimension, names):
            _split_all(layout, factor, names, "experts")
        else:
            of = dimension.params[0][0]
            layout.notes.append(
                f"expert: {dimension.size} experts of {of} do not divide over "
                f"{_over(layout.mesh, names)}"
            )


def _tensor(layout: Layout, names: Sequence[str]) -> None:
    reading, mesh = layout.reading, layout.mesh
    outside = {
        lead(reading.flow.inputs[place.component][place.index][place.axis])
        for place in (*reading.batch, *reading.sequence)
    }
    ranked: list[tuple[float, int, Factor]] = []
    for factor, dimension in reading.dimensions.items():
        paths = [path for path, _ in dimension.params if not layout.uses(path, names)]
        weight = reading.bytes(paths)
        if factor in outside or {"scan", "experts"} & dimension.kinds or not weight:
            continue
        if not any(path in reading.sites for path in paths):
            continue  # no product runs along it: nothing would be computed in parts
        if _legal(layout, dimension, names):
            ranked.append((dimension.wire / weight, factor.number, factor))
    alone = _alone(layout, names, _count(mesh, names))
    for factor in _choose(reading, [factor for *_, factor in sorted(ranked)], alone):
        _split_all(layout, factor, names, _kind(reading.dimensions[factor]))
    _rest(layout, names, _count(mesh, names))


def _alone(layout: Layout, names: Sequence[str], count: int) -> dict[str, float]:
    """Return what each leaf would communicate if it had to be split by itself.

    Not gathered if it can be helped: that every device computes the same is no split.
    """
    reading = layout.reading
    found = {}
    for path in _candidates(layout, names, count):
        reduced, gathered = _by_itself(reading, path)
        found[path] = reduced if math.isfinite(reduced) else gathered
    return found


def _choose(reading: Reading, ranked: Sequence[Factor], alone: Mapping[str, float]) -> list[Factor]:
    """Return dimensions that exclude each other nowhere and communicate little.

    cost = bytes of the dimensions chosen + bytes of the leaves left, each split by itself

    Greedy in the order given, each taken if it lowers the cost; then each that was left out is
    tried in place of those that exclude it, as long as that lowers the cost, or covers more
    leaves at the same.
    """
    dimensions = reading.dimensions
    leaves = {f: {path for path, _ in dimensions[f].params if path in alone} for f in ranked}

    def cost(chosen: Sequence[Factor]) -> tuple[float, int]:
        covered = set[str]().union(*(leaves[f] for f in chosen))
        left = sum(own for path, own in alone.items() if path not in covered)
        return left + sum(dimensions[f].wire for f in chosen), -len(covered)

    def filled(chosen: Sequence[Factor]) -> list[Factor]:
        found = list(chosen)
        covered = set[str]().union(*(leaves[f] for f in found))
        excluded = set[Factor](found).union(*(dimensions[f].apart for f in found))
        for f in ranked:
            saved = sum(alone[path] for path in leaves[f] - covered)
            if f not in excluded and dimensions[f].wire < saved:
                found.append(f)
                covered |= leaves[f]
                excluded |= {f, *dimensions[f].apart}
        return found

    chosen = filled([])
    best = cost(chosen)
    for f in ranked:
        if f not in chosen and leaves[f]:
            other = filled([f, *(g for g in chosen if g not in dimensions[f].apart)])
            if cost(other) < best:
                chosen, best = other, cost(other)
    return sorted(chosen, key=lambda factor: factor.number)


def _kind(dimension: Dimension) -> str:
    for kind in ("heads", "vocabulary"):
        if kind in dimension.kinds:
            return {"heads": "heads", "vocabulary": "rows"}[kind]
    return "units"


def _rest(layout: Layout, names: Sequence[str], count: int) -> None:
    """Split what no dimension splits, but for what is small."""
    reading = layout.reading
    for path in _candidates(layout, names, count):
        for axis, why in _fallbacks(reading, path):
            if layout.fits(path, axis, names) and reading.leaves[path].shape[axis] > 1:
                text = f"{_hindered(layout, path, names)}: {why}"
                reduced, gathered = _by_itself(reading, path)
                if gathered < reduced:
                    text = (
                        f"{_hindered(layout, path, names)}: axis {axis} of "
                        f"{reading.leaves[path].shape[axis]}, gathered for use"
                    )
                    layout.gathered[path] = tuple(names)
                else:
                    layout.closed.append(path)
                layout.split(path, axis, names, text)
                break
        else:
            layout.why.setdefault(path, f"whole: no axis divides over {_over(layout.mesh, names)}")


def _candidates(layout: Layout, names: Sequence[str], count: int) -> list[str]:
    """Return the leaves that are to be split: not yet, no vectors by themselves, not small."""
    reading = layout.reading
    left = [
        path
        for path, leaf in reading.leaves.items()
        if not layout.uses(path, names)
        and (path in reading.sites or len(leaf.shape) > 1 + reading.stacked(path))
    ]
    return _large(reading, left, count)


def _by_itself(reading: Reading, path: str) -> tuple[float, float]:
    """Return bytes communicated for a leaf that is split by itself: as it lies, or gathered.

    As it lies its results are reduced (or gathered, if it sums over nothing); gathered, every
    device computes the whole products, whose FLOPs count as in ``_score``.
    """
    uses = [p for found in reading.flow.products for p in found.values() if p.path == path]
    if not uses:
        return math.inf, float(nbytes(reading.leaves[path]))
    summed = any(site.contracting for site in reading.sites.get(path, ()))
    results = sum(use.bytes for use in uses) * (2 if summed else 1)
    weights = nbytes(reading.leaves[path]) * len(uses)
    extra = sum(reading.flops(path)) / _score.INTENSITY / _score.LINK
    return float(results), weights + extra


def _large(reading: Reading, paths: Sequence[str], count: int) -> list[str]:
    """Return all but the smallest leaves, which together are a small share of a device's."""
    budget = SMALL * reading.total / count
    kept: set[str] = set()
    for path in sorted(paths, key=lambda path: (nbytes(reading.leaves[path]), path)):
        budget -= nbytes(reading.leaves[path])
        if budget < 0:
            break
        kept.add(path)
    return [path for path in paths if path not in kept]


def _fallbacks(reading: Reading, path: str) -> list[tuple[int, str]]:
    """Return the axes along which a leaf can be split by itself, the best first."""
    shape = reading.leaves[path].shape
    found: list[tuple[int, str]] = []
    sites = reading.sites.get(path, ())
    scanned = {0} if reading.stacked(path) else set()
    for site in sites:
        summed, picked = site.contracting, site.indexed
        free = [a for a in site.seen if a not in (*summed, *picked)]
        groups = [
            (summed, "sums over axis {0} of {1}, then all-reduce"),
            (free, "makes axis {0} of {1}, gathered where it is used"),
            (picked, "rows are picked along axis {0} of {1}, then all-reduce"),
        ]
        if site.primitive in ("gather", "conv_general_dilated"):
            groups[0], groups[1] = groups[1], groups[0]
        for axes, why in groups:
            largest = sorted((a for a in axes if a in site.seen), key=lambda a: (-shape[a], a))
            found += [(a, why.format(a, shape[a])) for a in largest]
    rest = sorted((a for a in range(len(shape)) if a not in scanned), key=lambda a: (-shape[a], a))
    found += [(a, f"axis {a} of {shape[a]} is its largest that divides") for a in rest]
    return found


def _hindered(layout: Layout, path: str, names: Sequence[str]) -> str:
    """Return why no dimension of a leaf was split."""
    count, over = _count(layout.mesh, names), _over(layout.mesh, names)
    for axis in range(len(layout.reading.leaves[path].shape)):
        factor = layout.reading.leading(path, axis)
        dimension = layout.reading.dimensions.get(factor) if factor else None
        if dimension and {"heads", "vocabulary"} & dimension.kinds and dimension.size % count:
            return f"{dimension.size} {_kind(dimension)} do not divide over {over}"
    return "no dimension of it is split"


def _fsdp(layout: Layout, names: Sequence[str]) -> None:
    reading, count = layout.reading, _count(layout.mesh, names)
    over = _over(layout.mesh, names)
    for path in _large(reading, list(reading.leaves), count):
        shape = reading.leaves[path].shape
        sites = reading.sites.get(path, ())
        scanned = reading.stacked(path)
        order = sorted(
            range(len(shape)),
            key=lambda a: (bool(layout.entries[path][a]), scanned and a == 0, -shape[a], a),
        )
        for axis in order:
            if shape[axis] > 1 and layout.fits(path, axis, names):
                how = "gathered for use"
                if sites and all(site.primitive == "gather" for site in sites):
                    how = "what is picked is gathered"
                    layout.closed.append(path)
                else:
                    layout.gathered[path] = (*layout.gathered.get(path, ()), *names)
                layout.split(path, axis, names, f"fsdp: axis {axis} of {shape[axis]}, {how}")
                break
        else:
            layout.why.setdefault(path, f"whole: no axis of {list(shape)} divides over {over}")


def _inputs(layout: Layout, strategy: str, axes: Sequence[InputAxis], names: Sequence[str]) -> None:
    reading, over = layout.reading, _over(layout.mesh, names)
    if not axes:
        layout.notes.append(f"{strategy}: no input has a {_word(strategy)} axis")
    for place in axes:
        size = reading.arrays(place.component)[place.index].shape[place.axis]
        entry = layout.inputs[place.component][place.index]
        own = tuple(n for n in names if not any(n in each for each in entry))
        whole = _count(layout.mesh, (*entry[place.axis], *own))
        name = reading.names[place.component][place.index]
        why = layout.input_why.setdefault((place.component, place.index), [])
        if not own or size % whole:
            text = f"axis {place.axis} of size {size} does not divide over {over}"
            layout.notes.append(f"{strategy}: inputs.{name}: {text}: whole at these sizes")
            why.append(text)
            continue
        entry[place.axis] = (*entry[place.axis], *own)
        why.append(f"axis {place.axis} is the {_word(strategy)}")


def _word(strategy: str) -> str:
    return {"data": "batch", "sequence": "sequence"}[strategy]


def _whole(layout: Layout, path: str, roles: Mapping[str, Sequence[str]]) -> str:
    if not {"tensor", "fsdp"} & set(roles):
        return f"whole: {'+'.join(roles) or 'one device'} splits no parameter of this kind"
    kinds = {obstacle.primitive for obstacle in layout.reading.obstacles.get(path, ())}
    used = f" (used by {', '.join(sorted(kinds))})" if kinds else ""
    return f"whole: small, or along no dimension that is split{used}"
