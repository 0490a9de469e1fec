"""numpy's .npz archives as weights: specs without reading the data, arrays when asked for.

Never unpickles. An archive of .npy members: https://numpy.org/doc/stable/reference/generated/
numpy.lib.format.html. numpy writes bfloat16 and float8 as anonymous bytes (``|V2``), so those
are refused here rather than guessed.
"""

from __future__ import annotations

import math
import os
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import CheckpointError
from jaxinfer.io import _json
from jaxinfer.io._safetensors import Spec

_FAULTS = (
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,  # an encrypted member, an unknown compression, recursion
    OSError,
    EOFError,
    SyntaxError,
    MemoryError,
    UserWarning,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class NpzFile(Mapping[str, np.ndarray]):
    """A .npz archive: names to arrays, read when asked for.

    Raises:
      CheckpointError: not an archive of arrays of numbers; all faults.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._specs: dict[str, Spec] = {}
        faults: list[str] = []
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    self._add(archive, member, faults)
        except _FAULTS as error:
            if not self.path.exists():
                raise CheckpointError(f"{self.path}: no such file") from error
            raise CheckpointError(f"{self.path} is not a .npz archive: {error}") from error
        if faults:
            raise CheckpointError(_json.report(f"{self.path} is damaged:", faults))

    def _add(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, faults: list[str]) -> None:
        name = member.filename.removesuffix(".npy")
        try:
            with archive.open(member) as file:
                shape, dtype = _npy_header(file)
                left = member.file_size - file.tell()
        except _FAULTS as error:
            faults.append(f"{name[:200]!r}: {error}")
            return
        if dtype.hasobject:
            faults.append(f"{name[:200]!r}: holds Python objects (a pickle), which are refused")
        elif dtype.name not in dtypes.NAMES:
            faults.append(f"{name[:200]!r}: dtype {dtype} is not an array of numbers")
        elif math.prod(shape) * dtype.itemsize != left:
            faults.append(f"{name[:200]!r}: {dtype.name}{list(shape)} does not take {left} bytes")
        elif name in self._specs:
            faults.append(f"{name[:200]!r}: given twice")
        else:
            self._specs[name] = (tuple(shape), dtype.name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def spec(self, name: str) -> Spec:
        """Return shape and dtype name of an array."""
        return self._specs[name]

    def read(self, name: str) -> np.ndarray:
        """Return an array, in this machine's byte order.

        Raises:
          CheckpointError: the member is damaged.
        """
        dtype = dtypes.dtype_of(self._specs[name][1])
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return archive[name].astype(dtype, copy=False)
        except _FAULTS as error:
            raise CheckpointError(f"{self.path}: {name}: cannot be read: {error}") from error

    def release(self, name: str) -> None:
        """Do nothing: arrays are copies."""


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"unknown .npy version {version}")
    # version 3 is version 2 with names in UTF-8, which only structured dtypes have
    reader = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        reader = np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape, _, dtype = reader(file)
    return shape, dtype
