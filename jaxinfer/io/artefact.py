"""Model directories: save and load, with nothing half-written and nothing half-checked.

    model.json             schema, program, rewrites, names with shapes and dtypes of the
                           parameters, their structure and array types, provenance with the
                           SHA-256 of every file
    params.safetensors     above ``SHARD_BYTES`` params-00001-of-0000N.safetensors and
                           params.safetensors.index.json, as Hugging Face names them
    constants.safetensors  arrays that belong to the program, if any
    exports/               opaque files of the program (StableHLO), if any

An array type (``QTensor``) is stored by its parts, ``w.qvalue`` and ``w.scale``; see
``_array_types``.

Nothing is pickled and nothing in a directory is executed or imported; the one look-up by name
is that of the program kind among the installed entry points. The checksums find damaged and
swapped files, not a forger, who can write his own.

A program that was converted with ``x64=True`` says so in ``model.json``, and computes in 64 bits
wherever it is loaded. Other 64-bit parameters, saved under x64, load with x64 off if every value
fits the 32-bit dtype exactly; else loading says to turn x64 on.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxinfer.core.errors import ArtefactError, MissingExtraError
from jaxinfer.core.model import Model
from jaxinfer.core.parts import split
from jaxinfer.core.program import FunctionProgram
from jaxinfer.core.rewrites import REWRITES as REWRITES
from jaxinfer.io import _json, _tree
from jaxinfer.io._directory import check_target as _check_target
from jaxinfer.io._directory import replacing, write_bytes
from jaxinfer.io._load import CONSTANTS, FORMAT, INDEX, MODEL, PARAMS, SCHEMA, blob_path, load_model
from jaxinfer.io._safetensors import spec_of, write
from jaxinfer.io.sharded import Progress

SHARD_BYTES = 5_000_000_000
PLATFORMS = ("cpu", "cuda", "tpu")

_HOMES = {
    "arrange": "jaxinfer.transforms.arrange",
    "cast": "jaxinfer.transforms.cast",
    "fold": "jaxinfer.transforms._fold_rewrite",
}
"""Where jaxinfer's own rewrites register, to be imported when an artefact has one."""


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model to a directory, all of it or nothing.

    Leaves are written one at a time, array types by their parts. A model of a Python function is
    exported as StableHLO at the shapes of its example inputs, rewrites included; its parameters
    come back as a flat dict by leaf path.

    Args:
      model: what to save.
      path: the directory to make; the one it stands in must exist.
      overwrite: replace a model directory; the old one stays if anything fails.
      extra_files: more files, content by name (``recipe.json``); ``load`` verifies them as it does
        the others, and reads nothing of them.

    Raises:
      ArtefactError: the path is taken, the model cannot be written as data, or the disk is
        full; the directory is then as it was.
    """
    with replacing(path, overwrite, _is_model) as folder:
        _write(model, folder, extra_files or {})


def check_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise what ``save`` would raise about the path, before any work is done.

    Raises:
      ArtefactError: the path is taken, or there is no directory to make it in.
    """
    _check_target(Path(os.path.realpath(path)), overwrite, _is_model)


def _is_model(folder: Path) -> bool:
    return (folder / MODEL).is_file()


def load(
    path: str | os.PathLike[str],
    *,
    abstract: bool = False,
    shardings: Any = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> Model:
    """Read a model from a directory that ``save`` has written.

    Parameters come back as JAX arrays and array types, bit for bit.

    Args:
      path: the directory.
      abstract: read no weight: the parameters are ``jax.ShapeDtypeStruct``, and array types of
        them. For a plan, a trace or a memory estimate; it cannot be called or saved.
      shardings: where each parameter goes: a plan (``param_shardings``), a
        ``jax.sharding.Sharding`` for all, or a mapping or a function from the array's name
        (``w``, ``w.qvalue``) to one. Each process reads only its slices; see ``io.sharded``.
      verify: hold the weight files against their SHA-256, which reads them whole, in constant
        memory. False: only their lengths, names, shapes and dtypes; the files that were not
        verified are then listed in ``provenance["loaded_unverified"]``. Whatever else is in
        the directory is always verified; with ``abstract`` the weights are not.
      progress: called as ``progress(done_bytes, total_bytes, bytes_per_s, name)``, for the
        checksums (``name`` says so), then for the parameters.

    Raises:
      ArtefactError: not a model directory, of a newer schema, damaged; all faults at once.
      MissingRulesError: nothing is wrong but operators without a rule.
      InputError: shardings that are missing, extra, or do not divide a parameter; all at once,
        before a weight is read.
      MemoryError: the devices cannot hold their shards; at which parameter.
    """
    return load_model(
        Path(path),
        _rewrite_class,
        abstract=abstract,
        shardings=shardings,
        verify=verify,
        progress=progress,
    )


def _rewrite_class(kind: Any) -> Any:
    """Return the class of a rewrite by its kind in a file.

    Raises:
      ValueError: the kind is unknown.
    """
    if isinstance(kind, str) and kind in _HOMES:
        importlib.import_module(_HOMES[kind])
    if not isinstance(kind, str) or kind not in REWRITES:
        known = ", ".join(sorted({*REWRITES, *_HOMES}))
        raise ValueError(f"unknown kind {str(kind)[:80]!r}; known: {known}")
    return REWRITES[kind]


def _write(model: Model, folder: Path, extra_files: Mapping[str, bytes]) -> None:
    leaves, structure = _tree.flatten(model.params)
    arrays, types = split(leaves)
    _tree.require_storable(arrays)
    provenance = dict(model.provenance)
    program, rewrites = model.program, model.rewrites
    if isinstance(program, FunctionProgram):
        program = _export(model, program)
        provenance["exported"] = "StableHLO at fixed shapes: " + "; ".join(map(str, model.inputs))
        if not program.differentiable:
            provenance["exported"] += "; without a derivative: the function has none in reverse"
        rewrites, structure = (), None
    unknown = [rewrite.kind for rewrite in rewrites if rewrite.kind not in REWRITES]
    if unknown:
        raise ArtefactError(f"rewrites that could not be loaded again: {', '.join(unknown)}")
    digests = write_leaves(arrays, folder)
    if program.arrays:
        constants, _ = _tree.flatten(dict(program.arrays))
        _tree.require_storable(constants)
        digests[CONSTANTS] = write(folder / CONSTANTS, constants)
    for name, data in [*program.blobs.items(), *extra_files.items()]:
        file = blob_path(folder, name)
        if name == MODEL or name in digests:
            raise ArtefactError(f"the file {name!r} has the name of another")
        file.parent.mkdir(parents=True, exist_ok=True)
        digests[name] = write_bytes(file, data)
    names = ("jaxinfer", "jax", "jaxlib", "numpy")
    provenance |= {"saved_with": {name: _version(name) for name in names}, "sha256": digests}
    data = {
        "schema": SCHEMA,
        "format": FORMAT,
        "provenance": provenance,
        "program": {"kind": program.kind, **program.to_json()},
        "rewrites": [{"kind": item.kind, "args": item.to_json()} for item in rewrites],
        "structure": None if structure is None else structure.to_json(),
        "params": {name: list(spec_of(array)) for name, array in arrays.items()},
    }
    if types:
        data["array_types"] = types
    try:
        text = json.dumps(data, separators=(",", ":")).encode()
        _json.parse(text)  # what is written must be what load takes
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtefactError(f"the model cannot be written as JSON: {error}") from error
    write_bytes(folder / MODEL, text)  # last: without it, load takes nothing


def _export(model: Model, program: FunctionProgram) -> Any:
    """Return the model's function, rewrites included, as StableHLO."""
    whole = FunctionProgram(model.apply, program.signature)
    try:
        return whole.stablehlo(model.params, PLATFORMS)
    except ImportError as error:
        raise MissingExtraError(f"saving a Python function as StableHLO: {error}") from error
    except Exception as error:  # whatever the user's function raises while it is traced
        failed: dict[str, str] = {}
        for platform in PLATFORMS:
            try:
                whole.stablehlo(model.params, (platform,))
            except Exception as fault:
                failed[platform] = f"{type(fault).__name__}: {fault}"
        faults = [f"{platform}: {text}" for platform, text in failed.items()]
        title = f"the function cannot be exported for {', '.join(failed) or 'all at once'}:"
        raise ArtefactError(_json.report(title, faults or [str(error)])) from error


def write_leaves(leaves: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write the parameters, in shards if they are large; returns SHA-256 by file name."""
    shards: list[list[str]] = [[]]
    filled = total = 0
    for name, leaf in leaves.items():
        size = leaf.size * leaf.dtype.itemsize
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled, total = filled + size, total + size
    digests: dict[str, str] = {}
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"params-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else PARAMS
        digests[file] = write(
            folder / file,
            {name: lambda name=name: _tree.to_host(leaves[name]) for name in names},
            {name: spec_of(leaves[name]) for name in names},
        )
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        digests[INDEX] = write_bytes(folder / INDEX, json.dumps(index).encode())
    return digests


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
