"""Arrays between processes: an .npz file, with the dtypes that numpy cannot name beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxinfer.core.arrays import aligned
from jaxinfer.core.dtypes import dtype_of


def write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write arrays in order; dtypes of ml_dtypes as their bits."""
    plain = {f"a{place}": _bits(np.asarray(array)) for place, array in enumerate(arrays)}
    names = json.dumps([np.asarray(array).dtype.name for array in arrays])
    np.savez(path, allow_pickle=False, **plain, dtypes=np.asarray(names))


def read_arrays(path: Path) -> list[np.ndarray]:
    """Read what ``write_arrays`` wrote, into memory that is aligned as XLA wants it."""
    with np.load(path, allow_pickle=False) as archive:
        names = json.loads(str(archive["dtypes"]))
        found = []
        for place, name in enumerate(names):
            array = archive[f"a{place}"].view(dtype_of(name))
            buffer = aligned(array.shape, array.dtype)
            np.copyto(buffer, array)
            found.append(buffer)
    return found


def _bits(array: np.ndarray) -> np.ndarray:
    if array.dtype.type.__module__ != "ml_dtypes":
        return array
    return np.ascontiguousarray(array).view({1: np.uint8, 2: np.uint16}[array.dtype.itemsize])
