"""Calibration statistics in a safetensors file, for other settings and another day.

Tensors are called ``<parameter>|<field>`` (``fc.weight|low``, ``fc.weight|count.high``); the kind
of each parameter's statistics is in the file's metadata. All of it or nothing is written.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinfer.core.errors import ArtefactError, CheckpointError, listing
from jaxinfer.io._safetensors import SafetensorsFile, write
from jaxinfer.numerics._histogram import Count
from jaxinfer.numerics.calibration import HistogramStats, MovingStats, RangeStats

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (RangeStats, MovingStats, HistogramStats)}
_KEY = "jaxinfer.calibration"


def save_calibration(
    stats: Mapping[str, Any], path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write the statistics of ``jaxinfer.calibrate``; they come back bit for bit.

    Args:
      stats: {parameter: statistics}.
      path: the file.
      overwrite: replace a file that is there; it stays if writing fails.

    Raises:
      ArtefactError: the path is taken, cannot be written, or ``stats`` are none.
    """
    target = Path(path)
    problems = [f"{name}: a {type(s).__name__}" for name, s in stats.items()
                if type(s).__name__ not in KINDS or "|" in name]  # fmt: skip
    if problems:
        raise ArtefactError(listing("calibration: no statistics of a parameter:", problems))
    if os.path.lexists(target) and not overwrite:
        raise ArtefactError(f"{target} exists already; choose another path or pass overwrite=True")
    tensors = {
        f"{name}|{field}": np.asarray(value)
        for name, each in stats.items()
        for field, value in _fields(each)
    }
    kinds = {name: type(each).__name__ for name, each in stats.items()}
    aside = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        write(aside, tensors, metadata={_KEY: json.dumps(kinds)})
        os.replace(aside, target)
    except OSError as error:
        raise ArtefactError(f"{target}: not written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def _fields(stats: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in stats._asdict().items():
        if isinstance(value, Count):
            found += [(f"{name}.high", value.high), (f"{name}.low", value.low)]
        else:
            found.append((name, value))
    return found


def load_calibration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what ``save_calibration`` has written.

    Raises:
      ArtefactError: no such file, damaged, or not of calibration; every fault.
    """
    try:
        held = SafetensorsFile(Path(path))
        kinds = json.loads(held.metadata[_KEY])
        if not isinstance(kinds, dict):
            raise ValueError("kinds: required an object")
    except (CheckpointError, OSError, LookupError, ValueError) as error:
        raise ArtefactError(f"{path}: not a file of calibration statistics: {error}") from error
    faults: list[str] = []
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        if kind not in KINDS:
            faults.append(f"{name}: unknown kind {str(kind)[:80]!r}; known: {', '.join(KINDS)}")
            continue
        try:
            found[name] = _rebuild(KINDS[kind], name, held)
        except (LookupError, CheckpointError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ArtefactError(listing(f"{path}: not a file of calibration statistics:", faults))
    return found


def _rebuild(kind: Any, name: str, held: Any) -> Any:
    def array(field: str) -> Any:
        key = f"{name}|{field}"
        if key not in held:
            raise LookupError(f"lacks {field}")
        return jnp.array(held[key], copy=True)

    counts = ("count", "nonfinite", "bins")
    return kind(
        **{
            field: Count(array(f"{field}.high"), array(f"{field}.low"))
            if field in counts
            else array(field)
            for field in kind._fields
        }
    )
