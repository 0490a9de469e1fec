"""Recipe: an arrangement that was found, as plain JSON, and what it takes to make it again.

    recipe.json   format, version, the candidate, the groups' paths, shapes; digests of the program
                  and of the weights; seed and share that chose the calibration data; the metric,
                  what was measured, the environment

``apply_recipe`` makes the model again without a search: the same transforms, the same
calibration samples, a compilation on this machine.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxinfer._version import __version__
from jaxinfer.core.errors import ArtefactError, InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.io import _json
from jaxinfer.tune._recipe_check import FIELDS, faults_of
from jaxinfer.tune._recipe_prints import Prints, differences, prints_of
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.groups import Group

FORMAT = "jaxinfer-recipe"
VERSION = 1
FILE = "recipe.json"
MAX_BYTES = 64 << 20

_REQUIRED = ("candidate", "groups", "shapes", "program", "weights", "program_of", "params")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An arrangement, and what it takes to make it again.

    Attributes:
      candidate: the arrangement.
      groups: paths of the parameters of each group of layers, by its name.
      shapes: of the array inputs, by path; names for bucketed dimensions.
      prints: what the model is known by.
      seed, split: seed of the draw, and share of the samples, that chose the calibration data.
      metric: its name; ``drop_kind``: ``absolute`` or ``relative``.
      max_drop: the drop that was allowed; None: any.
      reference: the metric of the model as it came.
      measured: figures of this arrangement (``metric``, ``drop``, ``p50_ms`` ...), plain data.
      environment: versions and device (``environment()``).
      notes: fallbacks and the like.
    """

    candidate: Candidate
    prints: Prints
    shapes: Mapping[str, tuple[int | str, ...]]
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    seed: int = 0
    split: float = 0.5
    metric: str = "cosine"
    drop_kind: str = "absolute"
    max_drop: float | None = None
    reference: float | None = None
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def group_list(self) -> list[Group]:
        """The groups as ``find_groups`` gives them, without FLOPs."""
        return [Group(name, tuple(paths), 0) for name, paths in self.groups.items()]

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        prints = self.prints
        data = {
            "format": FORMAT,
            "version": VERSION,
            "candidate": self.candidate.to_json(),
            "groups": {name: list(paths) for name, paths in self.groups.items()},
            "shapes": {path: list(shape) for path, shape in self.shapes.items()},
            "program": prints.program,
            "program_of": prints.of,
            "weights": prints.weights,
            "inputs": list(prints.inputs),
            "params": dict(prints.params),
            **{
                name: getattr(self, name)
                for name in ("seed", "split", "metric", "drop_kind", "max_drop", "reference")
            },
            "measured": dict(self.measured),
            "environment": dict(self.environment),
            "notes": list(self.notes),
        }
        if faults := faults_of({n: v for n, v in data.items() if n in FIELDS}, _REQUIRED):
            raise InputError(listing("recipe: cannot be written:", faults))
        return data

    @classmethod
    def from_json(cls, data: Any) -> Recipe:
        """Rebuild a recipe.

        Raises:
          ArtefactError: everything that is wrong with it, at once.
        """
        return _from_json(data, "recipe")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, aside and then renamed; a file that is there is replaced.

        Raises:
          ArtefactError: the path is a directory, or cannot be written; nothing is left.
        """
        target = Path(path)
        if target.is_dir():
            raise ArtefactError(f"{target} is a directory; give the path of a file, {FILE} say")
        aside = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.tmp")
        try:
            with open(aside, "wb") as file:
                file.write(self.encoded())
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
        except OSError as error:
            raise ArtefactError(f"{target}: not written: {error.strerror or error}") from error
        finally:
            aside.unlink(missing_ok=True)

    def encoded(self) -> bytes:
        """Return the bytes of its file."""
        return (json.dumps(self.to_json(), indent=1) + "\n").encode()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a file that ``save`` has written, or the ``recipe.json`` of a model directory.

        Raises:
          ArtefactError: no such file, damaged, of a newer version; all faults at once.
        """
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        try:
            data = _json.read(file, max_bytes=MAX_BYTES)
        except FileNotFoundError as error:
            raise ArtefactError(f"{file}: no such file") from error
        except OSError as error:
            raise ArtefactError(f"{file}: {error.strerror or error}") from error
        except ValueError as error:
            raise ArtefactError(f"{file}: not a recipe: {error}") from error
        return _from_json(data, str(file))

    def __str__(self) -> str:
        return self.candidate.label


def _from_json(data: Any, what: str) -> Recipe:
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise ArtefactError(f"{what}: not a recipe: 'format' is not {FORMAT!r}")
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise ArtefactError(f"{what}: 'version' must be a number from 1, got {str(version)[:80]!r}")
    if version > VERSION:
        raise ArtefactError(
            f"{what}: written by a newer jaxinfer (version {version}), this one reads up to "
            f"{VERSION}: upgrade jaxinfer"
        )
    fields = {name: value for name, value in data.items() if name not in ("format", "version")}
    if faults := faults_of(fields, _REQUIRED):
        raise ArtefactError(_json.report(f"{what}: cannot be used:", faults))
    prints = Prints(
        fields["program"],
        fields["weights"],
        fields["program_of"],
        tuple(fields.get("inputs", ())),
        dict(fields["params"]),
    )
    kept = ("seed", "split", "metric", "drop_kind", "max_drop", "reference", "measured")
    return Recipe(
        Candidate.from_json(fields["candidate"]),
        prints,
        {path: tuple(shape) for path, shape in fields["shapes"].items()},
        {name: tuple(paths) for name, paths in fields["groups"].items()},
        notes=tuple(fields.get("notes", ())),
        environment=dict(fields.get("environment", {})),
        **{name: fields[name] for name in kept if name in fields},
    )


def fingerprint(model: Model) -> str:
    """Return what a model is known by: digests of its program and of its weights.

    >>> import jax.numpy as jnp, jaxinfer as ji
    >>> models = [ji.from_function(jnp.dot, jnp.full(2, x), (jnp.ones(2),)) for x in (1.0, 2.0)]
    >>> one, two = (fingerprint(model).split("-") for model in models)
    >>> one[0] == two[0], one[1] == two[1]
    (True, False)
    """
    found = prints_of(model)
    return f"{found.program}-{found.weights}"


def environment(candidate: Candidate | None = None) -> dict[str, Any]:
    """Return what the figures of a recipe depend on: versions, device, processors.

    Args:
      candidate: that of the recipe; the packages of its back-end are among the versions.
    """
    device = jax.devices()[0]
    packages = ["numpy"]
    if candidate is not None and candidate.backend == "openvino":
        packages += ["openvino", "nncf"]
    versions = {"jaxinfer": __version__, "jax": jax.__version__, "jaxlib": _version("jaxlib")}
    return {
        **versions,
        **{name: _version(name) for name in packages if _version(name)},
        "python": platform.python_version(),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "machine": platform.machine(),
        "processors": os.cpu_count() or 0,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def make_recipe(
    model: Model,
    candidate: Candidate,
    groups: Sequence[Group],
    shapes: Mapping[str, Sequence[int | str]],
    *,
    prints: Prints | None = None,
    **known: Any,
) -> Recipe:
    """Return the recipe of a candidate for a model.

    Args:
      model: as it came.
      candidate: the arrangement.
      groups: of ``find_groups``; kept if the candidate has levels of its own for any.
      shapes: that it is compiled for (``Built.shapes``).
      prints: of the model, where they are known already (a pass over its weights).
      known: other fields of a ``Recipe``: seed, split, metric, measured ...
    """
    kept = groups if candidate.groups else ()
    return Recipe(
        candidate,
        prints or prints_of(model),
        {path: tuple(shape) for path, shape in shapes.items()},
        {group.name: tuple(group.paths) for group in kept},
        environment=known.pop("environment", None) or environment(candidate),
        **known,
    )


def require_same_program(recipe: Recipe, model: Model) -> list[str]:
    """Return notes if the weights are others, or the program cannot be compared.

    Raises:
      InputError: the recipe is of another program; what differs.
    """
    got, want = prints_of(model), recipe.prints
    if found := differences(want, got):
        advice = "Search again for this model (ji.optimize), or give the model of the recipe."
        raise InputError(listing("the recipe is of another model:", found, advice))
    notes = []
    if got.of != want.of:
        notes.append(
            f"the program was compared by its inputs and parameters alone: its text is of "
            f"{want.of}, here of {got.of}"
        )
    if got.weights != want.weights:
        notes.append("the weights are others than those that the recipe was found with")
    return notes


def changes_of(recipe: Recipe) -> list[str]:
    """Return notes of what is not as it was where the recipe was found: device and versions."""
    now, notes = environment(recipe.candidate), []
    for name, was in recipe.environment.items():
        if name in now and now[name] != was:
            notes.append(f"{name}: the recipe is of {was}, here it is {now[name]}")
    return notes
