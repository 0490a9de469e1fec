"""Shardings by the names of arrays: whatever form they are given in, held against the shapes.

``resolve`` reports what is missing, extra, without devices, or does not divide, all at once and
before an array is read or moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxinfer.core.errors import InputError, listing


def resolve(
    shardings: Any, avals: Mapping[str, Any], params: Any = None
) -> dict[str, jax.sharding.Sharding]:
    """Return the sharding of each array by its name, once every one is known to fit.

    Args:
      shardings: a Sharding for all, a mapping or a function by name, or a plan (an object with
        ``param_shardings(params)``).
      avals: shape and dtype of each array by name (of an array type by its parts' names).
      params: what a plan is asked about; None: ``avals``.

    Raises:
      InputError: names without a sharding and shardings without a name, shardings without
        devices, devices that are not here, axes that do not divide; all with leaf and sizes.
    """
    if hasattr(shardings, "param_shardings"):
        shardings = shardings.param_shardings(dict(avals) if params is None else params)
    faults: list[str] = []
    if isinstance(shardings, jax.sharding.Sharding):
        given: dict[str, Any] = dict.fromkeys(avals, shardings)
    elif isinstance(shardings, Mapping):
        given = dict(shardings)
    elif callable(shardings):
        given = {name: shardings(name) for name in avals}
    else:
        raise InputError(
            "shardings: required a Sharding, a mapping or a function from the parameter's name "
            f"to one, or a plan; got {type(shardings).__name__}"
        )
    known: dict[str, set[Any]] = {}
    for name, aval in avals.items():
        label = f"{name}: {aval.dtype.name}[{', '.join(map(str, aval.shape))}]"
        if name not in given:
            faults.append(f"{label} has no sharding")
        elif not isinstance(given[name], jax.sharding.Sharding):
            got = type(given[name]).__name__
            faults.append(f"{label}: required a jax.sharding.Sharding, got {got}")
        else:
            faults += [f"{label}: {fault}" for fault in _faults(given[name], aval.shape, known)]
    faults += [f"{name}: a sharding, but no such parameter" for name in given if name not in avals]
    if faults:
        raise InputError(listing(f"shardings: {len(faults)} do not fit the parameters:", faults))
    return given


def _faults(sharding: Any, shape: Sequence[int], known: dict[str, set[Any]]) -> list[str]:
    """Return what is wrong with a sharding for an array of this shape."""
    spec, mesh = getattr(sharding, "spec", None), getattr(sharding, "mesh", None)
    if isinstance(mesh, jax.sharding.AbstractMesh):
        return [f"the mesh {dict(mesh.shape)} is abstract: it has no devices to place shards on"]
    found: list[str] = []
    absent = []
    for device in sharding.device_set:
        if device.platform not in known:
            try:
                known[device.platform] = set(jax.devices(device.platform))
            except RuntimeError:
                known[device.platform] = set()
        if device not in known[device.platform]:
            absent.append(device)
    if absent:
        first = min(absent, key=lambda device: device.id)
        found.append(
            f"{len(absent)} of its {len(sharding.device_set)} devices do not exist here "
            f"({first}, ...); {first.platform} has {len(known[first.platform])}"
        )
    if spec is not None and mesh is not None:
        if len(spec) > len(shape):
            found.append(f"{spec} has {len(spec)} entries for {len(shape)} axes")
        for axis, (size, names) in enumerate(zip(shape, spec, strict=False)):
            names = names if isinstance(names, tuple) else (names,)
            names = tuple(name for name in names if isinstance(name, str))
            parts = math.prod(mesh.shape[name] for name in names)
            if size % parts:
                sizes = ", ".join(f"{name}={mesh.shape[name]}" for name in names)
                found.append(f"axis {axis} of size {size} does not divide by {parts} ({sizes})")
    if not found:
        try:
            sharding.shard_shape(tuple(shape))
        except (ValueError, IndexError) as error:
            found.append(f"{sharding}: {error}")
    return found


def held_bytes(sharding: jax.sharding.Sharding, aval: Any) -> int:
    """Return the bytes of the distinct slices of an array that this process's devices hold."""
    indices = sharding.addressable_devices_indices_map(tuple(aval.shape)).values()
    slices = {index_key(index) for index in indices if index is not None}
    return len(slices) * math.prod(sharding.shard_shape(tuple(aval.shape))) * aval.dtype.itemsize


def index_key(index: Sequence[slice]) -> tuple[tuple[int | None, int | None], ...]:
    return tuple((part.start, part.stop) for part in index)
