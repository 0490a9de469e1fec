"""Files of an export: all of them are written aside first, then put in their places, or none.

    m.stablehlo = jax.export's bytes | JSON trailer | its SHA-256 | u64: its length | MARK

``jax.export`` reads from the front and ignores what follows. The trailer holds the SHA-256 of the
bytes before it and that of the weights' file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxinfer.core.errors import ArtefactError, CheckpointError, InputError, listing
from jaxinfer.io import _json
from jaxinfer.io._directory import sha256, sync, write_bytes
from jaxinfer.io._safetensors import SafetensorsFile, write

SUFFIX = ".stablehlo"
MARK = b"JAXINFER-EXPORT1"
SCHEMA = 1
MAX_TRAILER = 1 << 28
_TAIL = 32 + 8 + len(MARK)


def tail_of(text: bytes) -> bytes:
    """Return what follows a trailer: its digest, its length, and the mark."""
    return hashlib.sha256(text).digest() + len(text).to_bytes(8, "little") + MARK


@dataclasses.dataclass
class Trailer:
    """What is kept behind a serialized export.

    Attributes:
      component: which function of the model it is.
      signature, outputs: JSON of the inputs and of the structure of the outputs.
      order: for each leaf of the result the output that it is; None for a None.
      x64: whether it computes in 64 bits.
      key_impl: of the random key that it takes; None: it takes none.
      platforms: for which it was lowered.
      sha256: of the bytes before the trailer.
      weights: name and SHA-256 of the file of weights; None: there are none, or they are inside.
      jax, date: the version that exported, and when.
    """

    component: str
    signature: Any
    outputs: Any
    order: list[int | None]
    x64: bool
    key_impl: str | None
    platforms: list[str]
    sha256: str = ""
    weights: dict[str, str] | None = None
    jax: str = ""
    date: str = ""

    def facts(self) -> dict[str, Any]:
        """Return what a user may want to know of it."""
        names = ("component", "platforms", "x64", "jax", "date", "sha256")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Targets:
    """Where everything goes: a file for each function, and one of weights (or None)."""

    functions: Mapping[str, Path]
    weights: Path | None

    def all(self) -> list[Path]:
        """Return every path, the weights first."""
        return [*([self.weights] if self.weights else []), *self.functions.values()]

    def check(self, overwrite: bool) -> None:
        """Raise ArtefactError if a path is taken, or cannot be written to; all at once."""
        parent = next(iter(self.functions.values())).parent
        if not parent.is_dir():
            raise ArtefactError(f"the directory {parent} does not exist; make it first")
        faults = []
        for path in self.all():
            if path.is_dir():
                faults.append(f"{path}: is a directory")
            elif os.path.lexists(path) and not overwrite:
                faults.append(f"{path}: exists already")
        if faults:
            advice = "Choose another path, or overwrite them (overwrite=True, --overwrite)."
            raise ArtefactError(listing("not exported:", faults, advice))


def paths_of(path: Any, components: list[str], has_params: bool, weights: str) -> Targets:
    """Return the paths of an export to ``path``.

    Raises:
      InputError: it does not end in ``.stablehlo``.
    """
    target = Path(os.path.realpath(path))
    if target.suffix != SUFFIX or not target.stem:
        raise InputError(f"{path}: required a path that ends in {SUFFIX}")
    beside = target.with_suffix(".safetensors") if has_params and weights == "beside" else None
    if components == ["model"]:
        return Targets({"model": target}, beside)
    return Targets({n: target.with_suffix(f".{n}{SUFFIX}") for n in components}, beside)


def write_all(
    targets: Targets,
    data: Mapping[str, bytes],
    trailers: Mapping[str, Trailer],
    arrays: Mapping[str, Any],
    overwrite: bool,
) -> dict[str, int]:
    """Write the weights and every function; returns the bytes of each file by path.

    Raises:
      ArtefactError: nothing was written, and the files that were there still are.
    """
    aside = {path: _beside(path, "tmp") for path in targets.all()}
    try:
        weights: dict[str, str] | None = None
        if targets.weights is not None:
            digest = write(aside[targets.weights], arrays)
            weights = {"file": targets.weights.name, "sha256": digest}
        for name, path in targets.functions.items():
            trailer = trailers[name]
            trailer.sha256, trailer.weights = hashlib.sha256(data[name]).hexdigest(), weights
            trailer.jax, trailer.date = jax.__version__, time.strftime("%Y-%m-%d", time.gmtime())
            text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(trailer)}).encode()
            write_bytes(aside[path], data[name] + text + tail_of(text))
        sizes = {str(path): os.path.getsize(file) for path, file in aside.items()}
        _swap(aside, overwrite)
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, ArtefactError):
            raise
        shown = getattr(error, "strerror", None) or error
        first = next(iter(targets.functions.values()))
        raise ArtefactError(f"{first}: not written: {shown}; nothing was left behind") from error
    finally:
        for file in aside.values():
            file.unlink(missing_ok=True)
    return sizes


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.{kind}")


def _swap(aside: Mapping[Path, Path], overwrite: bool) -> None:
    """Put every file in its place; what was there is moved away, and back on failure."""
    old: dict[Path, Path] = {}
    placed: list[Path] = []
    try:
        for path, file in aside.items():
            if overwrite and os.path.lexists(path):
                old[path] = _beside(path, "old")
                os.rename(path, old[path])
            elif os.path.lexists(path):
                raise ArtefactError(f"{path} was made by another process meanwhile")
            os.rename(file, path)
            placed.append(path)
        sync(next(iter(aside)).parent)
    except BaseException:  # also KeyboardInterrupt: the old ones must survive
        for path in placed:
            path.unlink(missing_ok=True)
        for path, file in old.items():
            with contextlib.suppress(FileNotFoundError):
                os.rename(file, path)
        raise
    for file in old.values():
        file.unlink(missing_ok=True)


def read(path: Path, check: bool) -> tuple[bytes, Trailer, Mapping[str, Any], Path]:
    """Return the serialized export, its trailer, the weights by name, and the path.

    Raises:
      ArtefactError: missing, cut short, changed, or with other weights.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtefactError(_not_there(path, error)) from error
    data, trailer = _parsed(path, raw)
    if hashlib.sha256(data).hexdigest() != trailer.sha256:
        raise ArtefactError(f"{path}: damaged: its SHA-256 is not what was written; export again")
    if trailer.weights is None:
        return data, trailer, {}, path
    file = path.with_name(trailer.weights["file"])
    if not file.is_file():
        raise ArtefactError(f"{path}: its weights are missing: {file}")
    if check and sha256(file) != trailer.weights["sha256"]:
        raise ArtefactError(
            f"{file}: not the weights that {path.name} was written with (SHA-256); the file was "
            "damaged, or replaced by another export"
        )
    try:
        held = SafetensorsFile(file)
        return data, trailer, {name: held[name] for name in held}, path
    except CheckpointError as error:
        raise ArtefactError(f"{path}: its weights: {error}") from error


def _not_there(path: Path, error: OSError) -> str:
    parts = sorted(path.parent.glob(f"{path.stem}.*{SUFFIX}")) if path.parent.is_dir() else []
    if not path.exists() and parts:
        names = ", ".join(part.name for part in parts)
        return f"{path}: no such file; this model was exported as several functions: {names}"
    return f"{path}: cannot be read: {error.strerror or error}"


def _parsed(path: Path, raw: bytes) -> tuple[bytes, Trailer]:
    if len(raw) < _TAIL or not raw.endswith(MARK):
        raise ArtefactError(
            f"{path}: cut short, or not written by jaxinfer export ({len(raw)} bytes, without its "
            "mark at the end); jax.export.deserialize reads what jax.export alone has written"
        )
    length = int.from_bytes(raw[32 - _TAIL : -len(MARK)], "little")
    start = len(raw) - _TAIL - length
    try:
        if length > MAX_TRAILER or start < 0:
            raise ValueError(f"a trailer of {length} bytes in a file of {len(raw)}")
        text = raw[start:-_TAIL]
        if raw[-_TAIL:] != tail_of(text):
            raise ValueError("other bytes than were written (SHA-256)")
        fields = _json.parse(text)
        if not isinstance(fields, dict):
            raise ValueError("required an object")
        schema = fields.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r}; this version of jaxinfer reads {SCHEMA}")
        trailer = Trailer(**fields)
        _check(trailer)
    except (ValueError, TypeError) as error:
        raise ArtefactError(f"{path}: damaged: its trailer: {error}") from error
    return raw[:start], trailer


def _check(trailer: Trailer) -> None:
    """Raise ValueError if a field is not of its kind."""
    kinds = {"component": str, "x64": bool, "sha256": str, "jax": str, "date": str,
             "platforms": list, "order": list}  # fmt: skip
    wrong = [name for name, kind in kinds.items() if not isinstance(getattr(trailer, name), kind)]
    if "order" not in wrong and not all(n is None or type(n) is int for n in trailer.order):
        wrong.append("order")
    if trailer.key_impl is not None and not isinstance(trailer.key_impl, str):
        wrong.append("key_impl")
    held = trailer.weights
    if held is not None and not (
        isinstance(held, dict)
        and set(held) == {"file", "sha256"}
        and all(isinstance(value, str) for value in held.values())
        and held["file"] == os.path.basename(held["file"])
    ):
        wrong.append("weights")
    if wrong:
        raise ValueError(f"malformed: {', '.join(wrong)}")
