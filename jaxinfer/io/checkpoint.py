"""Checkpoints: weight names to arrays over one file, several, or a directory, read lazily.

Reads safetensors (one file, or shards with an index) and .npz. Never unpickles: .pth, .pt and
.bin files need torch, whose front end passes its own reader (``weights_only=True``) in.

``match`` holds a checkpoint against what a model wants and lists every misfit at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import CheckpointError
from jaxinfer.io import _json
from jaxinfer.io._match import Report, match, nonfinite
from jaxinfer.io._npz import NpzFile
from jaxinfer.io._safetensors import SafetensorsFile, Spec, spec_of

__all__ = ["Checkpoint", "Report", "match", "nonfinite", "open_checkpoint", "plain_name"]

Reader = Callable[[Path], Mapping[str, Any]]

_INDEX = ".index.json"
_TORCH = (".pth", ".pt", ".bin", ".ckpt")
_READERS: dict[str, Reader] = {".safetensors": SafetensorsFile, ".npz": NpzFile}


class Checkpoint(Mapping[str, np.ndarray]):
    """Weight names to numpy arrays, read when asked for; see ``open_checkpoint``.

    Attributes:
      files: the weight files.
      metadata: strings stored in the files.
    """

    def __init__(self, parts: Sequence[tuple[Path, Mapping[str, Any]]]):
        self.files = tuple(path for path, _ in parts)
        self.metadata: dict[str, str] = {}
        self._parts = tuple(part for _, part in parts)
        self._where: dict[str, int] = {}
        faults: list[str] = []
        for number, (path, part) in enumerate(parts):
            self.metadata |= getattr(part, "metadata", {})
            for name in part:
                if name in self._where:
                    first = self.files[self._where[name]].name
                    faults.append(f"{name}: in {first} and again in {path.name}")
                self._where[name] = number
        if faults:
            raise CheckpointError(_json.report("weights are given twice:", faults))

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __getitem__(self, name: str) -> np.ndarray:
        return self._part(name)[name]

    def _part(self, name: str) -> Any:
        return self._parts[self._where[name]]

    def file(self, name: str) -> Path:
        """Return the file that holds a weight."""
        return self.files[self._where[name]]

    def spec(self, name: str) -> Spec:
        """Return shape and dtype name of a weight, without reading it."""
        part = self._part(name)
        return part.spec(name) if hasattr(part, "spec") else spec_of(part[name])

    def release(self, name: str) -> None:
        """Drop a weight's pages from memory, once it has been copied to where it belongs."""
        part = self._part(name)
        if hasattr(part, "release"):
            part.release(name)

    def nonfinite(self, name: str) -> str:
        """Return ``name: 2 NaN and 1 infinite of 12 values``, or an empty string. Reads it."""
        return nonfinite(name, self[name])

    def read(self, name: str, dtype: str, report: Report) -> np.ndarray:
        """Return a weight in ``dtype``; what is odd about its values is added to ``report``.

        Args:
          name: a weight that ``match`` has let through.
          dtype: the model's dtype; another float dtype is converted to.
          report: NaN and infinite values, and values too large for ``dtype``, end here.
        """
        array = self[name]
        before = nonfinite(name, array)
        if before:
            report.warnings.append(before)
        target = dtypes.dtype_of(dtype)
        if array.dtype == target:
            return array
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            cast = array.astype(target)
        if not before and (after := nonfinite(name, cast)):
            report.warnings.append(f"{after} after the cast from {array.dtype.name} to {dtype}")
        return cast


def open_checkpoint(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    readers: Mapping[str, Reader] | None = None,
) -> Checkpoint:
    """Open a weight file, an index of shards, a list of files, or a directory.

    In a directory ``model.safetensors`` comes first, then an index (``*.index.json``), then a
    weight file that is the only one.

    Args:
      path: what to open.
      readers: suffix to a function from the path to a mapping of names to arrays, for formats
        that this package does not read itself: ``{".pth": fn}``.

    Raises:
      CheckpointError: nothing to open, or damaged; all faults of all files.
    """
    table = {**_READERS, **(readers or {})}
    if not isinstance(path, (str, os.PathLike)):
        return _open_all([Path(item) for item in path], table)
    found = Path(path)
    if found.is_dir():
        found = _choose(found, table)
    if found.name.endswith(_INDEX):
        return _open_index(found, table)
    return _open_all([found], table)


def _open_all(paths: Sequence[Path], readers: Mapping[str, Reader]) -> Checkpoint:
    parts: list[tuple[Path, Mapping[str, Any]]] = []
    faults: list[str] = []
    if not paths:
        raise CheckpointError("no weight files are given")
    for path in paths:
        reader = readers.get(path.suffix.lower())
        try:
            if reader is None:
                raise CheckpointError(_cannot_read(path))
            parts.append((path, reader(path)))
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError("\n".join(faults))
    return Checkpoint(parts)


def _cannot_read(path: Path) -> str:
    if not path.exists():
        return f"{path}: no such file"
    if path.suffix.lower() in _TORCH:
        return (
            f"{path}: a {path.suffix} file is a pickle, which only torch may open "
            "(weights_only=True): convert it where torch is installed, or save the state dict "
            "with safetensors.torch.save_file"
        )
    return f"{path}: not a weight file (.safetensors, .safetensors.index.json, .npz)"


def _choose(directory: Path, readers: Mapping[str, Reader]) -> Path:
    """Return the file to open in a directory."""
    try:
        names = sorted(item.name for item in directory.iterdir() if item.is_file())
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error}") from error
    for first in ("model.safetensors", "model.safetensors" + _INDEX):
        if first in names:
            return directory / first
    indexes = [n for n in names if n.endswith(_INDEX)]
    readable = [n for n in indexes if Path(n.removesuffix(_INDEX)).suffix in readers]
    files = [n for n in names if Path(n).suffix.lower() in readers]
    for kind in (
        [n for n in readable if n.endswith(".safetensors" + _INDEX)],
        readable,
        [n for n in files if n.endswith(".safetensors")],
        files,
    ):
        if len(kind) == 1:
            return directory / kind[0]
        if kind:
            raise CheckpointError(
                f"{directory} holds several weight files and no index: {', '.join(kind[:20])}; "
                "name the one you mean, or list them all"
            )
    for name in names:
        if Path(name.removesuffix(_INDEX)).suffix.lower() in _TORCH:
            raise CheckpointError(_cannot_read(directory / name.removesuffix(_INDEX)))
    raise CheckpointError(f"{directory} holds no weight files (*.safetensors, *.npz)")


def _open_index(index: Path, readers: Mapping[str, Reader]) -> Checkpoint:
    """Open the shards that an index names, and hold their names against it."""
    try:
        data = _json.read(index)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index}: {error}") from error
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not all(isinstance(s, str) for s in names.values()):
        raise CheckpointError(f"{index}: required an object 'weight_map' of names to file names")
    shards = sorted(set(names.values()))
    outside = [shard for shard in shards if not plain_name(shard)]
    if outside:
        lines = [f"{shard[:200]!r}" for shard in outside]
        raise CheckpointError(_json.report(f"{index}: not plain file names beside it:", lines))
    checkpoint = _open_all([index.parent / shard for shard in shards], readers) if shards else None
    faults = []
    for name, shard in names.items():
        if checkpoint is None or name not in checkpoint:
            faults.append(f"{name}: the index says {shard}, which lacks it")
        elif checkpoint.file(name).name != shard:
            faults.append(f"{name}: the index says {shard}, it is in {checkpoint.file(name).name}")
    for name in checkpoint or ():
        if name not in names:
            faults.append(f"{name}: in a shard, but not in the index")
    if faults:
        raise CheckpointError(_json.report(f"{index} and its shards do not agree:", faults))
    return checkpoint or Checkpoint([])


def plain_name(name: str) -> bool:
    """Return whether a name is that of a file in the same directory, on any system."""
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")
