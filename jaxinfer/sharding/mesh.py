"""Meshes: devices in a grid whose axes have names.

    make_mesh({"data": 2, "model": 4})      a grid of 2 x 4 devices
    make_mesh("data=2,model=4")             the same, for command lines
    make_mesh(mesh)                         a ``jax.sharding.Mesh``, as it is

Devices are laid out by ``jax.make_mesh``, which puts the last axes on the nearest devices (of a
torus, of a host). Axes have type ``Auto``: XLA decides how what is between inputs and outputs
is sharded. ``jax.make_mesh`` alone gives ``Explicit`` axes, under which types carry shardings
and an ambiguous product is an error; a mesh of that kind comes back as one of ``Auto``.

Source: https://docs.jax.dev/en/latest/notebooks/Distributed_arrays_and_automatic_parallelization.html
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxinfer.core.errors import InputError, listing

_TIMEOUT_SECONDS = 60


def make_mesh(spec: Mapping[str, int] | str | Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with ``Auto`` axes.

    Args:
      spec: sizes by axis name, in order; or the same as text; or a mesh.
      devices: to use; by default the first of ``jax.devices()``, all processes' devices
        together. A mesh has its own.

    Returns:
      The mesh. In several processes each must have devices in it (``check_mesh``).

    Raises:
      InputError: no axes, a size below 1, a name that is none or comes twice, or more devices
        than there are; all problems at once.

    Example:
      >>> dict(make_mesh("data=1").shape)
      {'data': 1}
    """
    if isinstance(spec, Mesh):
        if devices is not None:
            raise InputError("devices: a mesh has its own; give sizes by axis name, or no devices")
        return _auto(spec)
    sizes = sizes_of(spec)
    have = list(jax.devices() if devices is None else devices)
    need = math.prod(sizes.values())
    if need > len(have):
        raise InputError(_too_large(sizes, need, have))
    given = {} if devices is None and need == len(have) else {"devices": have[:need]}
    shape, names = tuple(sizes.values()), tuple(sizes)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(sizes), **given)


def sizes_of(spec: Mapping[str, int] | str) -> dict[str, int]:
    """Return the sizes by axis name that a mesh would have; touches no device.

    Raises:
      InputError: no axes, a size below 1, a name that is none or comes twice; all at once.

    >>> sizes_of("data=2, model=4")
    {'data': 2, 'model': 4}
    """
    pairs = _pairs(spec) if isinstance(spec, str) else list(spec.items())
    problems = [fault for fault in (_fault(name, size) for name, size in pairs) if fault]
    names = [name for name, _ in pairs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [f"axis {name!r}: is there {names.count(name)} times" for name in twice]
    if not pairs:
        problems.append("no axes: required one at least, for example {'data': 8}")
    if problems:
        raise InputError(listing(f"mesh {spec!r} cannot be made:", problems))
    return {name: int(size) for name, size in pairs}


def _pairs(text: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, size = (piece.strip() for piece in part.partition("="))
        pairs.append((name, int(size) if size.lstrip("-").isdigit() else size or None))
    return pairs


def _fault(name: Any, size: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        return f"axis {name!r}: required a name of letters, digits and underscores"
    if isinstance(size, bool) or not hasattr(size, "__index__") or int(size) < 1:
        return f"axis {name!r}: required a size of 1 or more, got {size!r} (write {name}=2)"
    return ""


def _too_large(sizes: Mapping[str, int], need: int, have: Sequence[Any]) -> str:
    grid = " x ".join(f"{name}={size}" for name, size in sizes.items())
    kind = have[0].platform if have else "no"
    message = f"mesh {grid} needs {need} devices, there are {len(have)} ({kind})"
    if kind == "cpu":
        message += (
            f"; for {need} CPU devices call jax.config.update('jax_num_cpu_devices', {need}) "
            "before the first use of JAX"
        )
    return message


def _auto(mesh: Mesh) -> Mesh:
    if not mesh.axis_names:
        raise InputError("mesh: has no axes; required one at least, for example {'data': 8}")
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def describe(mesh: Mesh) -> dict[str, Any]:
    """Return what a mesh is as plain data: its axes and the devices in their order.

    >>> describe(make_mesh({"data": 1}))["axes"]
    {'data': 1}
    """
    return {
        "axes": {name: int(size) for name, size in mesh.shape.items()},
        "devices": [int(device.id) for device in mesh.devices.flat],
        "kind": str(mesh.devices.flat[0].device_kind),
    }


def check_mesh(mesh: Mesh, *, timeout: int = _TIMEOUT_SECONDS) -> None:
    """Raise if processes have different meshes, or a process has no device in it.

    Every process must call it, as often as the others. Programs of several processes run in
    lockstep: with meshes that differ they would wait for each other for ever. The meshes are
    compared through the key-value store of ``jax.distributed``, without a computation, so a
    difference cannot hang it; a process that never comes is named after ``timeout`` seconds.

    Args:
      mesh: this process's.
      timeout: seconds to wait for the others.

    Raises:
      InputError: who differs, and how.
    """
    if jax.process_count() == 1:
        return
    mine, rank = describe(mesh), jax.process_index()
    owners = sorted({device.process_index for device in mesh.devices.flat})
    every = _exchange(json.dumps(mine, sort_keys=True), timeout)
    problems = []
    for process, text in enumerate(every):
        if text is None:
            problems.append(f"process {process}: did not come within {timeout} s")
            continue
        other = json.loads(text)
        for key, what in (("axes", "axes"), ("devices", "devices"), ("kind", "device kind")):
            if other[key] != mine[key]:
                problems.append(
                    f"process {process}: {what} {other[key]}, process {rank} has {mine[key]}"
                )
                break
    if problems:
        raise InputError(
            listing(
                f"the mesh differs between processes (seen by process {rank}):",
                problems,
                "Every process must make the same mesh, from jax.devices() and the same sizes.",
            )
        )
    idle = [process for process in range(jax.process_count()) if process not in owners]
    if idle:
        raise InputError(
            f"mesh {dict(mesh.shape)}: processes {idle} have no device in it; a mesh must have "
            f"devices of all {jax.process_count()} processes ({len(jax.devices())} devices)"
        )


_calls: dict[str, int] = {}


def _exchange(text: str, timeout: int) -> list[str | None]:
    """Return every process's text, by process; None for one that did not give any in time."""
    from jaxinfer.core._compat import distributed_client

    client = distributed_client()
    _calls["mesh"] = _calls.get("mesh", 0) + 1
    key = f"jaxinfer/mesh/{_calls['mesh']}"
    client.key_value_set(f"{key}/{jax.process_index()}", text)
    found: list[str | None] = []
    ends = time.monotonic() + timeout
    for process in range(jax.process_count()):
        left = max(int(1000 * (ends - time.monotonic())), 1)
        try:
            found.append(client.blocking_key_value_get(f"{key}/{process}", left))
        except jax.errors.JaxRuntimeError:
            found.append(None)
    return found


def fingerprint(mesh: Mesh) -> str:
    """Return a short hash of axes, device order and kind."""
    return hashlib.sha256(json.dumps(describe(mesh), sort_keys=True).encode()).hexdigest()[:16]
