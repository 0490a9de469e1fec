"""Loading a model directory: every check, every fault at once, then the arrays leaf by leaf."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import (
    ArtefactError,
    CheckpointError,
    InputError,
    JaxinferError,
    MissingExtraError,
)
from jaxinfer.core.model import Model
from jaxinfer.core.parts import join
from jaxinfer.core.program import param_names, program_kind, x64_of
from jaxinfer.core.structure import Structure
from jaxinfer.io import _array_types, _json, _shardings, _tree, sharded
from jaxinfer.io._directory import sha256
from jaxinfer.io._header import CODES, byte_count
from jaxinfer.io._safetensors import Spec
from jaxinfer.io.checkpoint import Checkpoint, open_checkpoint, plain_name

SCHEMA = 1
FORMAT = "jaxinfer"
MODEL = "model.json"
PARAMS = "params.safetensors"
INDEX = PARAMS + ".index.json"
CONSTANTS = "constants.safetensors"

# What rebuilding an object from malformed data raises.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)


def load_model(
    path: Path,
    rewrite_class: Callable[[Any], Any],
    *,
    abstract: bool = False,
    shardings: Any = None,
    verify: bool = True,
    progress: sharded.Progress | None = None,
) -> Model:
    """Check everything in a model directory, then read it.

    Args:
      path: the directory.
      rewrite_class: the class of a rewrite by its kind; raises ValueError for an unknown one.
      abstract, shardings, verify, progress: as ``artefact.load`` takes them.

    Raises:
      ArtefactError: all faults. A single fault of the program is raised as it is.
      InputError: shardings that do not fit, all; or both ``abstract`` and ``shardings``.
    """
    if abstract and shardings is not None:
        raise InputError("load: give abstract=True (shapes to plan with) or shardings, not both")
    data = _read_json(path)
    provenance = data.get("provenance")
    if not isinstance(provenance, dict):
        provenance = {}
    digests = provenance.get("sha256")
    if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
        raise ArtefactError(f"{path / MODEL}: provenance: lacks 'sha256', file names to checksums")
    unread = {n for n in digests if _is_weights(n)} if abstract or not verify else set()
    faults = _check_files(path, digests, unread, progress)
    weights = _open(path / (INDEX if INDEX in digests else PARAMS), digests, faults)
    constants = _open(path / CONSTANTS, digests, faults) if CONSTANTS in digests else {}
    files_are_sound = not faults
    specs, leaves, structure = _layout(data, faults)
    kept = [_rewrite(item, rewrite_class, faults) for item in _list(data, "rewrites", faults)]
    if specs is not None and weights is not None:
        _compare(specs, weights, faults)
    program = None
    if constants is not None and files_are_sound:
        try:
            program = _program(path, data.get("program"), constants, digests)
            with x64_scope(x64_of(program)):
                logical = _array_types.logical(leaves or {}, specs or {}, faults)
            faults += _misfits(program, kept, logical)
        except JaxinferError as error:
            if not faults:
                raise
            faults.append(str(error))
    if faults:
        raise ArtefactError(_json.report(f"{path} cannot be loaded:", faults))
    assert program is not None
    assert specs is not None
    assert leaves is not None
    assert weights is not None
    with x64_scope(x64_of(program)):
        types = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, dict)}
        avals = {
            name: jax.ShapeDtypeStruct(shape, dtypes.canonical(dtype))
            for name, (shape, dtype) in specs.items()
        }
        shapes = _tree.unflatten(join(avals, types), structure)
        if abstract:
            return Model(program, shapes, tuple(kept), provenance)
        if shardings is None:
            arrays = _arrays(path, specs, weights, progress)
        else:
            placed = _shardings.resolve(shardings, avals, shapes)
            try:
                arrays = sharded.read_leaves(weights, avals, placed, progress=progress)
            except CheckpointError as error:
                raise ArtefactError(f"{path} cannot be loaded: {error}") from error
        made = _array_types.rebuilt(leaves, arrays, faults)
    if faults:
        raise ArtefactError(_json.report(f"{path} cannot be loaded:", faults))
    if unread:
        provenance = {**provenance, "loaded_unverified": sorted(unread)}
    return Model(program, _tree.unflatten(made, structure), tuple(kept), provenance)


def _is_weights(name: str) -> bool:
    """Return whether a file of a model directory holds parameters, by the names ``save`` gives."""
    return name.startswith("params") and name.endswith(".safetensors") and "/" not in name


def _read_json(path: Path) -> dict[str, Any]:
    file = path / MODEL
    if not path.exists():
        raise ArtefactError(f"{path}: no such directory")
    if not path.is_dir() or not file.is_file():
        raise ArtefactError(f"{path} is not a jaxinfer model directory: it has no {MODEL}")
    try:
        data = _json.read(file)
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtefactError(f"{file}: not a jaxinfer model: 'format' is not {FORMAT!r}")
    schema = data.get("schema")
    if type(schema) is not int or schema < 1:
        raise ArtefactError(f"{file}: 'schema' must be a number from 1, got {str(schema)[:80]!r}")
    if schema > SCHEMA:
        raise ArtefactError(
            f"{path}: written by a newer jaxinfer (schema {schema}), this one reads up to "
            f"{SCHEMA}: upgrade jaxinfer"
        )
    return data


def blob_path(folder: Path, name: str) -> Path:
    """Return where a program's file is, inside the directory only.

    Raises:
      ArtefactError: the name leads out of the directory.
    """
    parts = name.split("/")
    if not all(plain_name(part) for part in parts):
        raise ArtefactError(f"file {name[:200]!r}: not a path inside the model directory")
    file = folder.joinpath(*parts)
    if not os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep):
        raise ArtefactError(f"file {name[:200]!r}: a link that leads out of the model directory")
    return file


def _check_files(
    path: Path,
    digests: Mapping[str, str],
    unread: Collection[str],
    progress: sharded.Progress | None,
) -> list[str]:
    """Hold each listed file against its checksum, but those of ``unread``; returns the faults."""
    faults: list[str] = []
    files = [path / name for name in digests if name not in unread]
    meter = sharded.Meter(sum(_size(file) for file in files), progress)
    for name, digest in digests.items():
        try:
            file = blob_path(path, name)
            if not file.is_file():
                faults.append(f"file {name}: missing")
                continue
            if name in unread:
                continue
            if (
                got := sha256(file, lambda n, name=name: meter.add(n, f"checksum of {name}"))
            ) != digest:
                faults.append(
                    f"file {name}: damaged, or of another model (SHA-256 {got[:12]}..., "
                    f"{MODEL} says {digest[:12]}...)"
                )
        except ArtefactError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"file {name}: {error}")
    return faults


def _size(file: Path) -> int:
    try:
        return os.path.getsize(file)
    except (OSError, ValueError):
        return 0  # said where it is opened


def _list(data: Mapping[str, Any], key: str, faults: list[str]) -> list[Any]:
    value = data.get(key)
    if isinstance(value, list):
        return value
    faults.append(f"{key}: required a list, got {str(value)[:80]!r}")
    return []


def _layout(
    data: Mapping[str, Any], faults: list[str]
) -> tuple[dict[str, Spec] | None, dict[str, Any] | None, Structure | None]:
    """Return the specs of the arrays, the leaves by path, and the parameters' structure."""
    specs = leaves = structure = None
    try:
        specs = _tree.check_specs(data.get("params"))
        leaves = _array_types.grouped(data.get("array_types"), specs, faults)
        if data.get("structure") is not None:
            structure = Structure.from_json(data["structure"])
            count, names = len(structure.paths()), list(leaves)
            if count != len(names) or param_names(structure.unflatten(iter(names))) != names:
                raise ValueError("structure: its leaves are not the names in params")
    except _MALFORMED as error:
        faults.append(str(error))
    return specs, leaves, structure


def _rewrite(item: Any, rewrite_class: Callable[[Any], Any], faults: list[str]) -> Any:
    try:
        return rewrite_class(item["kind"]).from_json(item["args"])
    except _MALFORMED as error:
        faults.append(f"rewrite {str(item)[:80]}: {type(error).__name__}: {error}")
        return None


def _open(file: Path, digests: Mapping[str, str], faults: list[str]) -> Checkpoint | None:
    """Open weights of which every file has a checksum."""
    try:
        found = open_checkpoint(file)
    except CheckpointError as error:
        if file.exists() or file.name not in digests:  # else said already
            faults.append(f"file {file.name}: {error}")
        return None
    unlisted = [item.name for item in found.files if item.name not in digests]
    faults += [f"file {name}: has no checksum in {MODEL}" for name in unlisted]
    return found


def _compare(specs: Mapping[str, Spec], weights: Checkpoint, faults: list[str]) -> None:
    for name, spec in specs.items():
        if name not in weights:
            faults.append(f"{name}: required {_text(spec)}, not among the weights")
        elif weights.spec(name) != spec:
            faults.append(f"{name}: required {_text(spec)}, got {_text(weights.spec(name))}")
    unknown = [name for name in weights if name not in specs]
    faults += [f"{name}: among the weights, not in {MODEL}" for name in unknown]


def _program(path: Path, data: Any, constants: Any, digests: Mapping[str, str]) -> Any:
    """Rebuild the program.

    Raises:
      JaxinferError: unknown kind, malformed data, operators without a rule.
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str):
        raise ArtefactError(f"program: required an object with a kind, got {str(data)[:80]!r}")

    def blob(name: str) -> bytes:
        if name not in digests:
            raise ArtefactError(f"program: file {name!r} has no checksum in {MODEL}")
        return blob_path(path, name).read_bytes()

    try:
        cls = program_kind(kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArtefactError(f"program: unknown kind {kind[:80]!r}: {error}") from error
    if not isinstance(cls, type) or getattr(cls, "kind", None) != kind:
        raise ArtefactError(f"program: unknown kind {kind[:80]!r}: it is no program")
    arrays = {name: _copy(constants, name) for name in constants}
    rest = {key: value for key, value in data.items() if key != "kind"}
    try:
        return cls.from_json(rest, arrays, blob)  # pyright: ignore[reportAttributeAccessIssue]
    except JaxinferError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"a program of kind {kind!r}: {error}") from error
    except (OSError, *_MALFORMED) as error:
        raise ArtefactError(f"program: malformed: {type(error).__name__}: {error}") from error


def _copy(constants: Any, name: str) -> Any:
    array = constants[name].copy()
    constants.release(name)
    return array


def _misfits(program: Any, rewrites: Sequence[Any], leaves: Mapping[str, Spec | None]) -> list[str]:
    """Hold the leaves against what the program reads: names, shapes, kinds of dtype.

    Args:
      program: with ``param_specs``, if it knows what it reads.
      rewrites: those that have ``param_specs(old)`` say what is read in place of ``old``; None
        for one that is at fault.
      leaves: shape and dtype by path; None for one that is at fault.
    """
    if None in rewrites:
        return []
    try:
        wanted = getattr(program, "param_specs", None)
    except _MALFORMED as error:
        raise ArtefactError(f"program: malformed: {type(error).__name__}: {error}") from error
    if wanted is None:
        return []
    for rewrite in rewrites:
        if not hasattr(rewrite, "param_specs"):
            continue
        try:
            wanted = rewrite.param_specs(wanted)
        except (*_MALFORMED, JaxinferError) as error:
            return [f"rewrite {rewrite.kind}: does not fit the program: {error}"]
    faults: list[str] = []
    for name, aval in wanted.items():
        dtype = aval.dtype if isinstance(aval.dtype, str) else np.dtype(aval.dtype).name
        read = (tuple(aval.shape), dtype)
        if name not in leaves:
            faults.append(f"{name}: the program reads {_text(read)}, not among the parameters")
            continue
        spec = leaves[name]
        if spec is None:
            continue
        kinds = {dtypes.kind(dtypes.dtype_of(item)) for item in (spec[1], dtype)}
        if read[0] != spec[0] or len(kinds) > 1:
            faults.append(f"{name}: the program reads {_text(read)}, params has {_text(spec)}")
    return faults + [f"{name}: not read by the program" for name in leaves if name not in wanted]


def _arrays(
    path: Path,
    specs: Mapping[str, Spec],
    weights: Checkpoint,
    progress: sharded.Progress | None,
) -> dict[str, Any]:
    """Read the parameters as JAX arrays, one at a time."""
    arrays: dict[str, Any] = {}
    faults: list[str] = []
    meter = sharded.Meter(sum(byte_count(s, CODES[d]) for s, d in specs.values()), progress)
    for name in specs:
        try:
            arrays[name] = _tree.to_device(name, weights[name])
            meter.add(byte_count(specs[name][0], CODES[specs[name][1]]), name)
        except (OverflowError, CheckpointError) as error:
            faults.append(str(error))
        weights.release(name)
    if faults:
        raise ArtefactError(_json.report(f"{path} cannot be loaded:", faults))
    return arrays


def _text(spec: Spec) -> str:
    return f"{spec[1]}[{', '.join(map(str, spec[0]))}]"
