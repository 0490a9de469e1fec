"""The data of a search: read once, checked, kept on the host, cut into what calibrates and judges.

A batch is what a call of the model takes: a tuple of inputs by position, a dict of inputs by name,
or the one input by itself. What it holds beyond the inputs (labels) are extras: keys that are no
inputs by their name, and positions behind the inputs as "0", "1" ...

Whether axis 0 counts samples is decided by what the model does, never by the data alone:

* converted models: axis 0 of every input is the same symbol (``batch``), which nothing else uses;
  or the same number in all of them, and then only that number of samples goes in a call;
* functions: all inputs have as many rows in each batch, and the function takes other numbers of
  rows (shapes alone are tried);
* axis 0 of every result has as many rows;
* and the numbers say so: in a batch of other samples in another order, a sample has the same
  results (``check``).

Else calls stay as they are (``Dataset.sampled`` is false, and ``notes`` say why), and are what is
counted. A model that changes its buffers returns ``(outputs, new_state)``; its new state counts
among its results. Models that draw random numbers are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.compile._check import compare, tolerance_of
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError, JaxinferError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.symbols import is_name
from jaxinfer.io._npz import NpzFile
from jaxinfer.tune._data_read import Raw, as_rows, read_calls, require_readable
from jaxinfer.tune._data_set import Call as Call
from jaxinfer.tune._data_set import Dataset as Dataset
from jaxinfer.tune._data_set import same

BATCH = 8
"""Samples in a call of data from a file, where the model does not say otherwise."""


def read(model: Model, data: Any, *, check: bool = True) -> Dataset:
    """Return the calls of a model for batches of data.

    Args:
      model: of one function, with known inputs.
      data: an iterable of batches; an iterator is read once, to its end. Arrays may be numpy, JAX
        or torch; they are kept as numpy.
      check: run the model on a batch and on its samples in another order, to see that a sample
        does not depend on the others. This compiles the model at the first batch's shapes, for
        ``model(...)`` and ``reference`` as well; a function whose first batch holds one sample is
        compiled for two besides.

    Returns:
      A Dataset. All its calls have as many samples as the first batch, if they are sampled.

    Raises:
      InputError: no data; batches that are empty, do not fit the model or hold NaN (up to ten at
        once); an extra that some batches lack; a model that cannot be read for, or that fails.
      InputTypeError: no iterable of batches, or dtypes that do not fit.

    Example:
      >>> import jax.numpy as jnp, numpy as np, jaxinfer as ji
      >>> model = ji.from_function(lambda p, x: x @ p, jnp.eye(3), (jnp.ones((2, 3)),))
      >>> data = read(model, [(np.ones((4, 3), np.float32), np.arange(4))] * 2)
      >>> data.size, data.batch, data.rebatch(3).calls[-1].size, data.shapes(16)
      (8, 4, 2, {'x': (16, 3)})
    """
    require_readable(model, "data")
    with x64_scope(x64_of(model.program)):
        raws = read_calls(model, data, "data")
        out = _results(model, raws[0].arrays)
        found = _samples(model, raws, [tuple(each.shape) for each in out])
        if found.sampled and check and (reason := _mixed(model, raws, found)):
            found = _Samples(False, reason)
    if not found.sampled:
        calls = tuple(Call(raw.arrays, raw.extras, 1) for raw in raws)
        return Dataset(model.signature, calls, False, notes=(found.reason,))
    counts = [len(raw.arrays[0]) for raw in raws]
    calls = tuple(
        Call(raw.arrays, {**raw.extras, **_as_rows(raw, found.rows, count)}, count)
        for raw, count in zip(raws, counts, strict=True)
    )
    dataset = Dataset(
        *(model.signature, calls, True, found.rows, found.fixed, found.low, found.high)
    )
    return dataset.rebatch(dataset.batch)


def read_npz(
    model: Model, path: str | os.PathLike[str], *, batch: int = 0, check: bool = True
) -> Dataset:
    """Return the calls of a model for the arrays of an .npz file.

    Args:
      model: as for ``read``.
      path: a file with an array for each input (by its path; or ``arr_0``, ``arr_1`` ... in order),
        samples along axis 0. Inputs of rank 0 are the same in every call. Other arrays are extras.
        Nothing is unpickled. bfloat16 and float8 are read from float32.
      batch: samples in a call; 0: as many as the model is fixed to, else 8, or what it takes.
      check: as for ``read``.

    Raises:
      CheckpointError: no archive, or one that holds more than arrays of numbers.
      InputError, InputTypeError: as for ``read``; arrays that are missing, or of other lengths.
    """
    require_readable(model, f"{path}")
    archive = NpzFile(path)
    specs = [spec for spec in model.inputs if spec.is_array]
    by_place = not any(spec.path in archive for spec in specs)
    names = {
        spec.path: f"arr_{place}" if by_place and f"arr_{place}" in archive else spec.path
        for place, spec in enumerate(specs)
    }
    problems = [f"missing: {s} (as {names[s.path]})" for s in specs if names[s.path] not in archive]
    if problems:
        advice = f"It holds: {', '.join(archive) or 'nothing'}."
        raise InputError(listing(f"{path} does not hold the model's inputs:", problems, advice))
    arrays = {spec.path: _stored(spec.dtype, archive[names[spec.path]]) for spec in specs}
    counts = {
        spec.path: len(arrays[spec.path]) for spec in specs if spec.shape and arrays[spec.path].ndim
    }
    if len(set(counts.values())) != 1 or not next(iter(counts.values())):
        each = ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none has axis 0"
        raise InputError(f"{path}: required as many samples of each input along axis 0; {each}")
    count = next(iter(counts.values()))
    extras = {name: archive[name] for name in archive if name not in names.values()}
    size = batch or _usual_batch(model)
    empty = Dataset(model.signature, (), False)
    exact = model.program.fixed and all(
        isinstance(spec.shape[0], int) for spec in specs if spec.shape
    )

    def cut(start: int) -> dict[str, Any]:
        rows: Any = slice(start, start + size)
        if exact and start + size > count:  # the model takes no fewer: some are there again
            rows = start + np.arange(size) % (count - start)
        inputs = [arrays[s.path][rows] if s.path in counts else arrays[s.path] for s in specs]
        more = {n: a[rows] if a.ndim and len(a) == count else a for n, a in extras.items()}
        return {**more, **empty.arguments(inputs)}

    dataset = read(model, [cut(start) for start in range(0, count, size)], check=check)
    return dataset.take(count) if dataset.sampled else dataset


def split(dataset: Dataset, seed: int = 0, calibration: float = 0.5) -> tuple[Dataset, Dataset]:
    """Return the data that calibrate, and the data that judge; they share no sample.

    Args:
      dataset: to be split by samples, or by calls if they are not sampled.
      seed: of the draw; within each part samples keep their order.
      calibration: share of the samples that calibrate, at least one on each side. A single sample
        judges, and nothing calibrates.

    Raises:
      InputError: a share that is not within 0 and 1.
    """
    if not 0 <= calibration < 1:
        raise InputError(f"calibration: required a share from 0 to below 1, got {calibration!r}")
    count = dataset.size
    part = 0 if count < 2 or not calibration else min(max(1, round(count * calibration)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return dataset.pick(order[:part]), dataset.pick(order[part:])


def run_all(
    flat: Callable[[list[np.ndarray]], Sequence[Any]], dataset: Dataset
) -> list[list[np.ndarray]]:
    """Return the results of every call, on the host, without the rows that only fill a call.

    Args:
      flat: takes the array inputs of a call and returns its results, as ``Executable.flat``.
      dataset: the calls.
    """
    found = []
    for call in dataset.calls:
        outs = [np.asarray(out) for out in flat(list(call.arrays))]
        found.append([out[: call.size] for out in outs] if dataset.sampled else outs)
    return found


class _Samples(NamedTuple):
    """Whether axis 0 counts samples; if so: extras that it counts too, and sizes it may have."""

    sampled: bool
    reason: str = ""
    rows: tuple[str, ...] = ()
    fixed: int = 0
    low: int = 1
    high: int | None = None


def _as_rows(raw: Raw, names: Sequence[str], count: int) -> dict[str, Any]:
    return {name: as_rows(raw.extras[name], count) for name in names}


def _results(model: Model, arrays: Sequence[Any]) -> list[Any]:
    """Return shape and dtype of each result for inputs, by tracing alone."""
    structs = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    try:
        return jax.tree.leaves(model._jitted.eval_shape(model.params, structs, None))
    except JaxinferError:
        raise
    except Exception as error:  # whatever the user's function raises while it is traced
        shapes = ", ".join(f"{a.dtype.name}{list(a.shape)}" for a in arrays)
        raise InputError(
            f"data: the model fails on inputs {shapes}: {type(error).__name__}: {error}"
        ) from error


def _samples(model: Model, raws: Sequence[Raw], out: Sequence[tuple[int, ...]]) -> _Samples:
    """Decide by the signature, by shapes and by extras."""
    specs = [spec for spec in model.inputs if spec.is_array]
    for spec in specs:
        if not spec.shape:
            return _Samples(False, f"{spec} has no axis of samples")
    for number, raw in enumerate(raws):
        if len({len(array) for array in raw.arrays}) > 1:
            each = ", ".join(map(str, (list(array.shape) for array in raw.arrays)))
            return _Samples(False, f"axis 0 differs between the inputs of batch {number}: {each}")
    count = len(raws[0].arrays[0])
    fixed, low, high = 0, 1, None
    if model.program.fixed:
        dims = {spec.shape[0] for spec in specs}
        dim = next(iter(dims))
        if len(dims) > 1:
            return _Samples(False, f"axis 0 of the inputs is {', '.join(map(str, dims))}")
        if isinstance(dim, int):
            fixed = dim
        elif is_name(dim) and not _elsewhere(model, dim):
            low, high = model.signature.symbols.get(dim, (1, None))
        else:
            return _Samples(False, f"axis 0 of the inputs, {dim}, is the size of other axes too")
    if not fixed:
        other = count + 1 if high is None or count < high else count - 1
        if other < max(1, low):
            fixed = count
        else:
            try:
                wide = [tuple(o.shape) for o in _results(model, _resized(raws[0].arrays, other))]
            except InputError:
                if model.program.fixed:
                    raise
                fixed = count  # the function takes this number alone
            else:
                want = [(other, *shape[1:]) for shape in out]
                if wrong := [i for i, shape in enumerate(wide) if shape != want[i]]:
                    return _Samples(False, f"result {wrong[0]} has no axis 0 of samples")
    if fixed and any(len(raw.arrays[0]) != fixed for raw in raws):
        return _Samples(False, f"the model takes {fixed} rows alone, and some batches have others")
    if wrong := [i for i, shape in enumerate(out) if not shape or shape[0] != count]:
        return _Samples(False, f"result {wrong[0]} has no axis 0 of samples")
    rows, reason = _extras(raws)
    return _Samples(not reason, reason, rows, fixed, max(1, low), high)


def _extras(raws: Sequence[Raw]) -> tuple[tuple[str, ...], str]:
    """Return the extras with a row for each sample; and why calls cannot be regrouped."""
    rows = []
    for name in raws[0].extras:
        values = [raw.extras[name] for raw in raws]
        constant = len(raws) > 1 and all(same(value, values[0]) for value in values[1:])
        counted = all(as_rows(raw.extras[name], len(raw.arrays[0])) is not None for raw in raws)
        if counted and not (constant and not isinstance(values[0], (np.ndarray, list))):
            rows.append(name)
        elif not constant and len(raws) > 1:
            return (), f"{name!r}, which the batches hold besides the inputs, has no row per sample"
    return tuple(rows), ""


def _elsewhere(model: Model, name: str) -> bool:
    """Return whether a symbol is in other sizes than axis 0 of the inputs."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    return any(word.search(str(dim)) for spec in model.inputs for dim in spec.shape[1:])


def _resized(arrays: Sequence[np.ndarray], rows: int) -> list[Any]:
    return [jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype) for array in arrays]


def _mixed(model: Model, raws: Sequence[Raw], found: _Samples) -> str:
    """Return why the results of a sample depend on others in its call; empty if they do not.

    Rows 0 to n - 1 and rows n - 1, 0, 0, ... are run: the results of rows 0 and n - 1 must be equal
    within the rounding of another order.
    """

    def run(arrays: Sequence[Any]) -> list[np.ndarray]:
        results = jax.tree.leaves(model._jitted(model.params, list(arrays), None))
        return [np.asarray(result) for result in results]

    count = len(raws[0].arrays[0])
    if count == 1:
        if found.fixed or model.program.fixed or (found.high is not None and found.high < 2):
            return ""
        alone = raws[0].arrays
        mates = next((r.arrays for r in raws[1:] if _fits(r.arrays, alone)), alone)
        pair = [np.concatenate([b[-1:], a]) for a, b in zip(alone, mates, strict=True)]
        first, second = run(alone), [out[1:] for out in run(pair)]
    else:
        order = np.array([count - 1] + [0] * (count - 1))
        first = [out[[count - 1, 0]] for out in run(raws[0].arrays)]
        second = [out[:2] for out in run([array[order] for array in raws[0].arrays])]
    error, faults = compare(first, second)
    if not faults and error <= tolerance_of(model):
        return ""
    why = faults[0] if faults else f"they differ by {error:.1e} of the largest value"
    return f"the results of a sample depend on the other samples in its call ({why})"


def _fits(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return all(x.shape[1:] == y.shape[1:] for x, y in zip(a, b, strict=True))


def _stored(dtype: str, array: np.ndarray) -> np.ndarray:
    """Return an array of a file in the input's dtype, if that is one that .npz cannot hold."""
    want = dtypes.dtype_of(dtype)
    own = want.type.__module__ == "ml_dtypes"
    return array.astype(want) if own and array.dtype == np.float32 else array


def _usual_batch(model: Model) -> int:
    dims = {spec.shape[0] for spec in model.inputs if spec.is_array and spec.shape}
    if model.program.fixed and (fixed := [dim for dim in dims if isinstance(dim, int)]):
        return max(1, fixed[0])
    highs = [model.signature.symbols.get(str(dim), (1, None))[1] for dim in dims]
    return max(1, min([BATCH, *(high for high in highs if high is not None)]))
