"""The arrays of an .npz file as inputs of a model: by name or by place, and cut in batches.

Arrays are named by input path; ``arr_0``, ``arr_1`` ... (what ``numpy.savez`` calls arrays
without a name) are taken in order. Nothing is unpickled. The .npz format has no bfloat16 or
float8: such inputs are read from float32, which holds them exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import InputError, InputTypeError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.signature import LeafSpec

BATCH = 8
"""Samples in a batch, where the model does not say otherwise."""


def input_leaves(
    specs: Sequence[LeafSpec], archive: Mapping[str, np.ndarray], file: str, notes: list[str]
) -> list[Any]:
    """Return a value for each leaf of the inputs.

    Raises:
      InputError: arrays that are missing and arrays that no input takes, all of them.
    """
    wanted = [spec for spec in specs if spec.is_array]
    positional = {f"arr_{index}": spec.path for index, spec in enumerate(wanted)}
    paths = {spec.path for spec in wanted}
    named = {name for name in archive if name in paths}
    by_position = not named and any(name in positional for name in archive)
    source = {
        spec.path: (f"arr_{index}" if by_position else spec.path)
        for index, spec in enumerate(wanted)
    }
    problems = [
        f"missing: {spec}" + (f" (as {source[spec.path]})" if by_position else "")
        for spec in wanted
        if source[spec.path] not in archive
    ]
    unknown = [name for name in archive if name not in source.values()]
    problems += [f"no input is called {name!r}" for name in unknown]
    if problems:
        raise InputError(
            listing(
                f"{file} does not hold the inputs of the model:",
                problems,
                "The model takes: " + ("; ".join(map(str, wanted)) or "no arrays"),
            )
        )
    return [
        _as_stored(spec, archive[source[spec.path]], notes) if spec.is_array else spec.value
        for spec in specs
    ]


def _as_stored(spec: LeafSpec, array: np.ndarray, notes: list[str]) -> np.ndarray:
    """Cast an array to a dtype that .npz lacks, if the input is of one."""
    want = dtypes.dtype_of(spec.dtype)
    stored = storable(want)
    if stored == want or array.dtype != stored:
        return array
    notes.append(f"{spec.path}: {stored.name} rounded to {want.name}")
    return array.astype(want)


def storable(dtype: np.dtype) -> np.dtype:
    """Return the numpy dtype that holds every value of ``dtype``: itself unless ml_dtypes'."""
    if dtype.type.__module__ != "ml_dtypes":
        return dtype
    if dtypes.kind(dtype) == "integer":
        return np.dtype(np.uint8 if dtype.name.startswith("u") else np.int8)
    return np.dtype(np.float32)


def read_batches(model: Model, file: str, size: int | None, notes: list[str]) -> list[Any]:
    """Return batches of a model's inputs, of the samples along axis 0 of a file's arrays.

    Args:
      model: with inputs.
      file: an .npz; inputs of rank 0 are the same in every batch.
      size: samples in a batch, the last one may be smaller; None: what the model is fixed to,
        else 8, or what it takes at most.
      notes: what was cast is appended here.

    Returns:
      Dicts of inputs by name, in the structure that the model takes.

    Raises:
      CheckpointError: no archive, or one that holds pickles.
      InputError: missing and unknown arrays; numbers of samples that differ, none, NaN, or
        batches that do not fit the model; all of one kind at once.
    """
    from jaxinfer.io._npz import NpzFile

    if model.signature.open:
        parts = ", ".join(model.components)
        raise InputError(f"--data: this model has several functions ({parts}), which take none")
    values = input_leaves(model.inputs, NpzFile(file), file, notes)
    count = _samples(model.inputs, values, file)
    size = size or _batch_size(model)
    cuts = [slice(start, start + size) for start in range(0, count, size)]
    batches: list[dict[str, Any]] = []
    for number, cut in enumerate(cuts):
        leaves = [
            value[cut] if spec.is_array and spec.shape else value
            for spec, value in zip(model.inputs, values, strict=True)
        ]
        try:
            model.signature.bind_sizes(leaves, strict=True)
        except (InputError, InputTypeError) as error:
            advice = f"{count} samples in batches of {size}: --batch-size chooses another size"
            raise type(error)(f"{file}: batch {number}: {error}\n{advice}") from error
        batches.append(arguments(model, leaves))
    return batches


def arguments(model: Any, leaves: Sequence[Any]) -> dict[str, Any]:
    """Return the inputs by name, in the structure that the model takes."""
    filled = iter(leaves)
    named = zip(model.signature.names, model.signature.structures, strict=True)
    return {name: structure.unflatten(filled) for name, structure in named}


def _samples(specs: Sequence[LeafSpec], values: Sequence[Any], file: str) -> int:
    """Return the number of samples, once all arrays are known to have as many."""
    counts: dict[str, int] = {}
    problems: list[str] = []
    for spec, value in zip(specs, values, strict=True):
        if not spec.is_array:
            continue
        if spec.shape and not value.ndim:
            problems.append(f"{spec}: got one number, required samples along axis 0")
        elif spec.shape:
            counts[spec.path] = len(value)
            if not len(value):
                problems.append(f"{spec}: holds no sample")
        if dtypes.kind(value.dtype) in ("float", "complex") and (bad := _nan(value)):
            problems.append(f"{spec}: {bad}")
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{path} has {count}" for path, count in counts.items())
        problems.append(f"required as many samples of each input along axis 0; {each}")
    if not counts and not problems:
        problems.append("no input has an axis of samples")
    if problems:
        raise InputError(listing(f"{file} cannot be used as data:", problems))
    return next(iter(counts.values()))


def _nan(value: np.ndarray) -> str:
    nan = np.isnan(value)
    if not nan.any():
        return ""
    first = f", the first in sample {int(np.argwhere(nan)[0][0])}" if value.ndim else ""
    return f"{int(nan.sum())} of {value.size} values are NaN{first}"


def _batch_size(model: Model) -> int:
    size = BATCH
    for spec in model.inputs:
        if not spec.is_array or not spec.shape:
            continue
        dim = spec.shape[0]
        if isinstance(dim, int):
            return max(dim, 1)
        high = model.signature.symbols.get(dim, (1, None))[1]
        size = size if high is None else min(size, max(high, 1))
    return size
