"""PartitionSpecs of leaves: checked against a mesh, and carried over to the parts of array types.

    spec[i] = the mesh axes over which axis i of a leaf is split; their sizes multiply to its shards

A part of an array type (codes, scales, a mask) has the rank of the weight and is split where the
weight is, except along axes where it has size 1 (one scale for all). A part of another rank is
kept whole. Every split axis of every part must divide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh, PartitionSpec

from jaxinfer.core.array_types import nbytes
from jaxinfer.core.parts import split


def axes_of(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes of one entry of a spec.

    >>> axes_of(None), axes_of("model"), axes_of(("data", "model"))
    ((), ('model',), ('data', 'model'))
    """
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def shards(entry: Any, mesh: Mesh) -> int:
    """Return into how many an axis is split by an entry."""
    return math.prod(mesh.shape[name] for name in axes_of(entry))


def spread(spec: Sequence[Any] | PartitionSpec, mesh: Mesh) -> int:
    """Return into how many shards a spec splits an array."""
    return math.prod(shards(entry, mesh) for entry in spec)


def trimmed(entries: Sequence[Any]) -> PartitionSpec:
    """Return a spec without the entries at its end that split nothing.

    >>> tuple(trimmed([None, ("model",), None]))
    (None, 'model')
    """
    flat = [axes_of(entry) for entry in entries]
    while flat and not flat[-1]:
        flat.pop()
    return PartitionSpec(*(_entry(names) for names in flat))


def _entry(names: tuple[str, ...]) -> Any:
    return None if not names else names[0] if len(names) == 1 else names


def parts_of(path: str, leaf: Any) -> dict[str, Any]:
    """Return the arrays of a leaf by part name, as ``core.parts.split`` names them."""
    return split({path: leaf})[0]


def part_specs(path: str, leaf: Any, spec: PartitionSpec) -> dict[str, PartitionSpec]:
    """Return the spec of every part of a leaf."""
    found = {}
    for name, part in parts_of(path, leaf).items():
        if len(part.shape) != len(leaf.shape):
            found[name] = PartitionSpec()
            continue
        entries = [*spec, *[None] * (len(part.shape) - len(spec))]
        pairs = zip(part.shape, leaf.shape, entries, strict=True)
        found[name] = trimmed([None if size == 1 != whole else e for size, whole, e in pairs])
    return found


def faults(path: str, leaf: Any, spec: Sequence[Any] | PartitionSpec, mesh: Mesh) -> list[str]:
    """Return what is wrong with a spec for a leaf, each naming the leaf, the axis and sizes."""
    shape = tuple(leaf.shape)
    of = f"{path} {list(shape)}"
    named = [name for entry in spec for name in axes_of(entry)]
    found = []
    for name in dict.fromkeys(named):
        if name not in mesh.shape:
            found.append(f"{of}: no mesh axis {name!r}; the mesh has {_axes(mesh)}")
        if named.count(name) > 1:
            found.append(
                f"{of}: mesh axis {name!r} is used {named.count(name)} times in {_t(spec)}"
            )
    if len(spec) > len(shape):
        found.append(f"{of}: has {len(shape)} axes, the spec {_t(spec)} has {len(spec)}")
    if found:
        return found
    for name, part_spec in part_specs(path, leaf, PartitionSpec(*spec)).items():
        part = parts_of(path, leaf)[name]
        for axis, (size, entry) in enumerate(zip(part.shape, part_spec, strict=False)):
            count = shards(entry, mesh)
            if size % count:
                over = " x ".join(f"{n}={mesh.shape[n]}" for n in axes_of(entry))
                whose = of if name == path else f"{of}: its part {name} {list(part.shape)}"
                found.append(f"{whose}: axis {axis} of size {size} does not divide over {over}")
    return found


def _axes(mesh: Mesh) -> str:
    return ", ".join(f"{name}={size}" for name, size in mesh.shape.items())


def _t(spec: Sequence[Any] | PartitionSpec) -> str:
    return f"({', '.join(str(_entry(axes_of(entry))) for entry in spec)})"


def bytes_per_device(path: str, leaf: Any, spec: PartitionSpec, mesh: Mesh) -> int:
    """Return the bytes of a leaf's parts on one device."""
    specs = part_specs(path, leaf, spec)
    total = 0
    for name, part in parts_of(path, leaf).items():
        total += nbytes(part) // spread(specs[name], mesh)
    return total


def total_bytes(leaves: Mapping[str, Any]) -> int:
    """Return the bytes of all leaves, unsharded."""
    return sum(map(nbytes, leaves.values()))


def to_lists(spec: PartitionSpec) -> list[Any]:
    """Return a spec as JSON."""
    return [list(entry) if isinstance(entry, tuple) else entry for entry in spec]


def from_lists(data: Sequence[Any]) -> PartitionSpec:
    """Inverse of ``to_lists``."""
    return PartitionSpec(*(tuple(entry) if isinstance(entry, list) else entry for entry in data))
