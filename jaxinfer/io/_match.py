"""Holding a checkpoint against the weights that a model wants: every misfit at once."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import CheckpointError
from jaxinfer.io import _json
from jaxinfer.io._safetensors import Spec

_HINTS = 20  # near names are looked for this often; the search takes time with each


class Weights(Protocol):
    """What ``match`` needs of a checkpoint: names, specs and files, no data."""

    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def spec(self, name: str) -> Spec:
        """Return shape and dtype name of a weight."""
        ...


@dataclasses.dataclass
class Report:
    """What was done to a checkpoint's weights.

    Attributes:
      casts: ``(name, dtype in the file, dtype of the model)``.
      warnings: one line for each weight with NaN or infinite values.
    """

    casts: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def nonfinite(name: str, array: np.ndarray) -> str:
    """Return how many values of an array are NaN or infinite, or an empty string."""
    if dtypes.kind(array.dtype) not in ("float", "complex"):
        return ""
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaN
        nans, infinite = int(np.isnan(array).sum()), 0
        if array.dtype.name not in ("float8_e8m0fnu", "float4_e2m1fn"):  # these have no infinity
            infinite = int(np.isinf(array).sum())
    if not nans and not infinite:
        return ""
    parts = [f"{nans} NaN"] * bool(nans) + [f"{infinite} infinite"] * bool(infinite)
    return f"{name}: {' and '.join(parts)} of {array.size} values"


def match(
    checkpoint: Weights,
    wanted: Mapping[str, tuple[Sequence[int], str]],
    *,
    allow_unread: Iterable[str] = (),
) -> Report:
    """Hold a checkpoint against the weights that a model wants; reads no data.

    A float weight may come in another float dtype: that is recorded, not an error.

    Args:
      checkpoint: what ``open_checkpoint`` returned.
      wanted: name to shape and dtype name.
      allow_unread: names, or patterns such as ``*.position_ids``, that may stay unread.

    Returns:
      A report whose ``casts`` say which weights will be converted.

    Raises:
      CheckpointError: missing, unread and wrong weights, all of them, with near names.
    """
    allowed = tuple(allow_unread)
    extra = [n for n in checkpoint if n not in wanted and not _allowed(n, allowed)]
    missing = [n for n in wanted if n not in checkpoint]
    report, faults = Report(), []
    for number, name in enumerate(missing):
        near = _near(name, extra) if number < _HINTS else []
        hint = f"; near: {', '.join(near)}" if near else ""
        faults.append(f"{name}: required {_text(*wanted[name])}, missing{hint}")
    for name, (shape, dtype) in wanted.items():
        if name not in checkpoint:
            continue
        got = checkpoint.spec(name)
        kinds = {dtypes.kind(dtypes.dtype_of(item)) for item in (dtype, got[1])}
        if tuple(shape) != got[0] or (dtype != got[1] and kinds != {"float"}):
            faults.append(f"{name}: required {_text(shape, dtype)}, got {_text(*got)}")
        elif dtype != got[1]:
            report.casts.append((name, got[1], dtype))
    faults += [f"{n}: {_text(*checkpoint.spec(n))} is not read by the model" for n in extra]
    if faults:
        where = ", ".join(str(path) for path in checkpoint.files[:3])
        title = f"{len(faults)} weights do not fit the model ({where}):"
        raise CheckpointError(_json.report(title, faults, _prefix(missing, extra), len(faults)))
    return report


def _allowed(name: str, patterns: Sequence[str]) -> bool:
    return any(name == p or fnmatch.fnmatchcase(name, p) for p in patterns)


def _near(name: str, names: Sequence[str]) -> list[str]:
    """Return names that differ by a prefix, else names that look alike."""
    nested = [n for n in names if n.endswith("." + name) or name.endswith("." + n)]
    return (nested or difflib.get_close_matches(name, names[:2000], n=3, cutoff=0.75))[:3]


def _prefix(missing: Sequence[str], extra: Sequence[str]) -> str:
    """Say so if all missing names are there under one prefix, or without one."""
    have = set(extra)
    for name in extra if missing else ():
        if name.endswith("." + missing[0]):
            prefix = name.removesuffix(missing[0])
            if all(prefix + other in have for other in missing):
                return f"All missing names are there with the prefix {prefix!r}."
        if missing[0].endswith("." + name):
            prefix = missing[0].removesuffix(name)
            if all(m.startswith(prefix) and m.removeprefix(prefix) in have for m in missing):
                return f"All missing names are there without the prefix {prefix!r}."
    return ""


def _text(shape: Sequence[int], dtype: str) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"
