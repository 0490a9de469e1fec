"""Where a stage runs: one device, or a mesh of its own over which its weights are split.

On a mesh the parameters lie as ``sharding.partition`` plans for the whole model on a mesh of
that shape (quantized parts follow their weight); inputs, boundary values and results are whole
on every device of it, and XLA computes from the weights' shards: tensor parallelism within a
stage, pipelining between them. A slice of a parameter (a scan that was split) keeps the split of
every axis that still divides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxinfer.compile.stages.inputs import Inputs
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.sharding.partition import partition


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a stage runs.

    Attributes:
      devices: one, or those of its mesh.
      whole: the sharding of inputs, boundary values and results.
      specs: on a mesh, the spec of each part of the parameters; one that is not there is whole.
    """

    devices: tuple[Any, ...]
    whole: Sharding
    specs: Mapping[str, PartitionSpec] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """``cpu:3``, or ``cpu:4,5`` for a mesh."""
        ids = ",".join(str(device.id) for device in self.devices)
        return f"{self.devices[0].platform}:{ids}"

    def sharding(self, part: str, shape: Sequence[int]) -> Sharding:
        """Return the sharding of a part of the parameters, or of a slice of it."""
        if not isinstance(self.whole, NamedSharding) or part not in self.specs:
            return self.whole
        mesh = self.whole.mesh
        entries: list[Any] = []
        for size, entry in zip(shape, self.specs[part], strict=False):
            names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
            shards = int(np.prod([mesh.shape[name] for name in names]))
            entries.append(entry if size % shards == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*entries))

    def apart(self, others: Sequence[Place]) -> bool:
        """Return whether no other stage runs on any of its devices."""
        return not any(set(self.devices) & set(other.devices) for other in others)


def choose_places(
    model: Model,
    inputs: Inputs,
    microbatch: int,
    stages: int,
    devices: Sequence[Any] | None,
    sharding: Any,
) -> list[Place]:
    """Return a place for each stage.

    Raises:
      InputError: ``stages`` is no number of stages, too few devices, something that is no
        device of this process and no mesh of such, meshes of different axes, or meshes that
        share a device; a plan that does not fit.
    """
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise InputError(f"pipeline: stages must be an integer of 1 or more, got {stages!r}")
    given = _default(stages) if devices is None else list(devices)
    given = [_mesh(item) if isinstance(item, (list, tuple)) and item else item for item in given]
    known = [device for name in _platforms() for device in jax.local_devices(backend=name)]
    wrong = [
        repr(item)
        for item in given
        if any(d not in known for d in (item.devices.flat if isinstance(item, Mesh) else [item]))
    ]
    if wrong:
        title = (
            "pipeline: a stage runs on a device of this process, or a mesh or list of such; got:"
        )
        raise InputError(listing(title, wrong))
    if len(given) != stages:
        raise InputError(f"pipeline: {stages} stages need {stages} devices, got {len(given)}")
    meshes = [item for item in given if isinstance(item, Mesh)]
    if not meshes:
        if sharding is not None:
            raise InputError(
                "pipeline: sharding is for stages on meshes: give devices as meshes or lists"
            )
        return [Place((device,), SingleDeviceSharding(device)) for device in given]
    _check_meshes(given, meshes)
    with x64_scope(x64_of(model.program)):
        structs = inputs.structs(microbatch)
        plan = partition(model, meshes[0], sharding or "tensor", inputs=structs)
    specs = {name: own.spec for name, own in plan.param_shardings(model.params).items()}
    return [
        Place(tuple(mesh.devices.flat), NamedSharding(mesh, PartitionSpec()), specs)
        for mesh in meshes
    ]


def _default(stages: int) -> list[Any]:
    there = jax.local_devices()
    if len(there) < stages:
        raise InputError(
            f"pipeline: {stages} stages need {stages} devices, there are {len(there)} "
            f"({there[0].platform}); use fewer stages, name devices (the same one may stand "
            "several times), or on CPU set jax_num_cpu_devices before the first use of JAX"
        )
    return there[:stages]


def _mesh(devices: Sequence[Any]) -> Any:
    """Return a mesh with the one axis ``model``; what holds no devices as it is."""
    if not all(isinstance(device, jax.Device) for device in devices):
        return devices
    grid = np.empty(len(devices), object)
    grid[:] = list(devices)
    return Mesh(grid, ("model",))


def _check_meshes(given: Sequence[Any], meshes: Sequence[Mesh]) -> None:
    axes = [dict(mesh.shape) for mesh in meshes]
    if len(meshes) != len(given) or any(other != axes[0] for other in axes):
        shown = [str(dict(i.shape)) if isinstance(i, Mesh) else repr(i) for i in given]
        raise InputError(listing("pipeline: the stages' meshes need the same axes; got:", shown))
    devices = [device for mesh in meshes for device in mesh.devices.flat]
    twice = sorted({repr(device) for device in devices if devices.count(device) > 1})
    if twice:
        raise InputError(f"pipeline: meshes of several stages share {', '.join(twice)}")


def _platforms() -> list[str]:
    default = jax.default_backend()
    return ["cpu"] if default == "cpu" else ["cpu", default]
