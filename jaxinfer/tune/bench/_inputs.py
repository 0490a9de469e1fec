"""The inputs of a benchmark: sizes by batch, random arrays, or the samples of an .npz file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.signature import LeafSpec
from jaxinfer.core.symbols import bound_text, evaluate, is_name

CALIBRATION = 16
"""At most how many batches int8 peers are calibrated on."""


class Drawn(NamedTuple):
    """The inputs to run.

    Attributes:
      calls: array inputs in order, by batch size; None: no axis of samples.
      calibration: batches for int8 peers, by batch size; empty without data.
      sizes: of the other named dimensions.
      notes: what is to be said of them.
    """

    calls: dict[Any, list[np.ndarray]]
    calibration: dict[Any, list[list[np.ndarray]]]
    sizes: dict[str, int]
    notes: list[str]


def require_one_function(model: Model) -> None:
    """Raise InputError for models that cannot be run on one list of arrays and compared."""
    if isinstance(model.program, MultiProgram):
        raise InputError(
            f"bench: this model has several functions ({', '.join(model.components)}), of which "
            "each would be a benchmark; save one and give that"
        )
    if model.signature.open:
        raise InputError("bench: this model was made without example inputs: sizes are not known")
    if model.program.random:
        raise InputError("bench: this model samples random numbers: outputs cannot be compared")
    if not any(leaf.is_array for leaf in model.inputs):
        raise InputError("bench: this model takes no array")


def draw(
    model: Model, batches: Sequence[int], sizes: Mapping[str, int], data: Any, seed: int
) -> Drawn:
    """Return inputs for each batch size: of the data, or random.

    Args:
      model: with the signature.
      batches: samples in a call; a model with a fixed batch runs at that one, and it is said.
      sizes: by name, of the named dimensions other than the batch.
      data: an .npz file with samples along axis 0, or None.
      seed: of random inputs.

    Raises:
      InputError: batches and sizes that do not fit, or are missing; data that does not fit.
    """
    require_one_function(model)
    wrong = [b for b in batches if not isinstance(b, int) or isinstance(b, bool) or b < 1]
    if wrong or not batches:
        shown = ", ".join(map(repr, wrong)) or "none"
        raise InputError(f"bench: batch sizes: required integers from 1 on, got {shown}")
    leaves = [leaf for leaf in model.inputs if leaf.is_array]
    axis, fixed = _batch_axis(leaves)
    notes: list[str] = []
    wanted: list[Any] = list(dict.fromkeys(batches))
    if axis is None:
        wanted = [fixed]
        if fixed is None:
            notes.append("the inputs have no common axis 0 of samples: one call is one sample")
        elif list(batches) != [fixed]:
            notes.append(f"the model's batch is fixed to {fixed}: no other was run")
    _check_sizes(model, leaves, axis, wanted, sizes, with_data=data is not None)
    if data is not None:
        return _of_data(model, wanted, sizes, data, notes)
    calls = {}
    for batch in wanted:
        known = {**sizes, **({axis: batch} if axis else {})}
        rng = np.random.default_rng(seed)
        calls[batch] = [_random(leaf, known, rng) for leaf in leaves]
    integers = [
        leaf.path
        for leaf in leaves
        if dtypes.kind(dtypes.dtype_of(leaf.dtype)) == "integer" and not _is_mask(leaf)
    ]
    if integers:
        notes.append(f"inputs are random; integers are 0 or 1 ({', '.join(integers)})")
    return Drawn(calls, {}, dict(sizes), notes)


def _batch_axis(leaves: Sequence[LeafSpec]) -> tuple[str | None, int | None]:
    """Return the name of axis 0 of the inputs, or the number it is fixed to, or neither."""
    first = [leaf.shape[0] for leaf in leaves if leaf.shape]
    if not first or len(set(first)) != 1:
        return None, None
    if is_name(first[0]):
        return str(first[0]), None
    return None, first[0] if isinstance(first[0], int) else None


def _check_sizes(
    model: Model,
    leaves: Sequence[LeafSpec],
    axis: str | None,
    batches: Sequence[Any],
    sizes: Mapping[str, int],
    *,
    with_data: bool,
) -> None:
    bounds = model.signature.symbols
    names = dict.fromkeys(str(d) for leaf in leaves for d in leaf.shape if is_name(d))
    names = [*names, *(n for n in bounds if n not in names)]
    problems = []
    for name, size in sizes.items():
        if name == axis:
            problems.append(f"{name}: is the batch: --batch chooses it")
        elif name not in names:
            have = ", ".join(n for n in names if n != axis) or "none"
            problems.append(f"{name}: no such size; there are: {have}")
        elif problem := _outside(name, size, bounds):
            problems.append(problem)
    if axis is not None:
        problems += [text for b in batches if (text := _outside(axis, b, bounds))]
    if not with_data:
        problems += [
            f"{name}: has no size: --size {name}=N (it takes "
            f"{bound_text(name, *bounds.get(name, (0, None)))})"
            for name in names
            if name != axis and name not in sizes
        ]
    if problems:
        takes = "; ".join(map(str, leaves))
        raise InputError(listing("bench: sizes do not fit:", problems, f"The model takes: {takes}"))


def _outside(name: str, size: int, bounds: Mapping[str, tuple[int, int | None]]) -> str:
    low, high = bounds.get(name, (0, None))
    if size >= max(low, 1) and (high is None or size <= high):
        return ""
    return f"{name} = {size}: the model takes {bound_text(name, max(low, 1), high)}"


def _is_mask(leaf: LeafSpec) -> bool:
    return leaf.path.endswith("mask")


def _random(leaf: LeafSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """Draw normal floats, integers 0 or 1, fair booleans; masks are all ones."""
    shape = []
    for dim in leaf.shape:
        size = evaluate(dim, sizes)
        if size is None or size < 0:
            raise InputError(f"bench: {leaf}: {dim} is no size at {dict(sizes)}")
        shape.append(size)
    dtype = dtypes.dtype_of(leaf.dtype)
    kind = dtypes.kind(dtype)
    if kind in ("integer", "bool"):
        if _is_mask(leaf):
            return np.ones(shape, dtype)
        return rng.integers(0, 2, shape).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def _of_data(
    model: Model, batches: Sequence[Any], sizes: Mapping[str, int], data: Any, notes: list[str]
) -> Drawn:
    """Take the first samples to run, and the others to calibrate on."""
    from jaxinfer.tune.data import read_npz

    dataset = read_npz(model, data, check=False)
    calls: dict[Any, list[np.ndarray]] = {}
    calibration: dict[Any, list[list[np.ndarray]]] = {}
    if not dataset.sampled:
        notes.append("axis 0 of the data does not count samples: its first call is run as it is")
        batches = [None]
    for batch in batches:
        grouped = dataset if batch is None else dataset.rebatch(batch)
        first, *others = [list(call.arrays) for call in grouped.calls]
        calls[batch], calibration[batch] = first, others[:CALIBRATION]
        if grouped.calls[0].size < (batch or 1):
            notes.append(
                f"batch {batch}: the data hold {grouped.calls[0].size} samples, which were repeated"
            )
    given = {
        name: size
        for arrays in calls.values()
        for name, size in model.signature.bind_sizes(_filled(model, arrays)).items()
    }
    problems = [
        f"{name}: {given[name]} in the data, --size says {size}"
        for name, size in sizes.items()
        if given.get(name, size) != size
    ]
    if problems:
        raise InputError(listing("bench: sizes do not fit the data:", problems))
    axis, _ = _batch_axis([leaf for leaf in model.inputs if leaf.is_array])
    known = {name: size for name, size in given.items() if name != axis}
    return Drawn(calls, calibration, known, notes)


def _filled(model: Model, arrays: Sequence[np.ndarray]) -> list[Any]:
    left = iter(arrays)
    return [next(left) if leaf.is_array else leaf.value for leaf in model.inputs]
