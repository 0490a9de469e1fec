"""Batches as users have them become calls: bound to the model's inputs, checked, on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.arrays import as_array, is_torch_tensor
from jaxinfer.core.errors import InputError, InputTypeError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.signature import LeafSpec

_MOST = 10  # batches that are wrong, before the rest is not looked at

_Bad = (InputError, InputTypeError, OverflowError)


class Raw(NamedTuple):
    """A batch after binding: arrays of the inputs in order, and what else it holds."""

    arrays: list[np.ndarray]
    extras: dict[str, Any]


def require_readable(model: Model, what: str) -> None:
    """Raise InputError for models that no data can be read for."""
    if isinstance(model.program, MultiProgram):
        names = ", ".join(model.components)
        raise InputError(
            f"{what}: this model has several functions ({names}); give one of them: "
            f"model.components[{next(iter(model.components))!r}]"
        )
    if model.signature.open:
        raise InputError(
            f"{what}: this model was made without example inputs, so the dtypes of its inputs are "
            "not known: give from_function example_inputs"
        )
    if model.program.random:
        raise InputError(
            f"{what}: this model samples random numbers, so two of its outputs cannot be compared; "
            f"take dropout and sampling out ({getattr(model.program, 'random_sites', 'eval mode')})"
        )
    if not any(spec.is_array for spec in model.inputs):
        raise InputError(f"{what}: this model takes no array")


def read_calls(model: Model, data: Any, what: str) -> list[Raw]:
    """Bind every batch of ``data`` to the model's inputs; an iterator is read once, to its end.

    Raises:
      InputError: no batch, or batches that do not fit; all of them (up to ten).
      InputTypeError: not an iterable of batches; or only dtypes do not fit.
    """
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputTypeError(
            f"{what}: required an iterable of batches, got {type(data).__name__}; "
            "one batch alone is [batch]"
        )
    if (shape := getattr(data, "shape", None)) is not None:
        raise InputTypeError(
            f"{what}: required an iterable of batches, got one array of shape {tuple(shape)}; "
            "one batch alone is [batch]"
        )
    found: list[Raw] = []
    problems: list[str] = []
    only_types = True
    for number, batch in enumerate(data):
        try:
            found.append(_bound(model, batch))
        except _Bad as error:
            only_types = only_types and isinstance(error, InputTypeError)
            problems.append(f"batch {number}: {error}")
            if len(problems) == _MOST:
                problems.append("(batches after these were not looked at)")
                break
    if problems:
        message = listing(f"{what}: batches do not fit the model:", problems)
        raise (InputTypeError if only_types else InputError)(message)
    if not found:
        raise InputError(f"{what}: required at least one batch, got none")
    every = set().union(*(raw.extras for raw in found))
    lacking = [
        f"batch {number}: lacks {name}"
        for number, raw in enumerate(found)
        for name in sorted(every - set(raw.extras))
    ]
    if lacking:
        title = f"{what}: what a batch holds beyond the inputs must be in all of them:"
        raise InputError(listing(title, lacking[:_MOST]))
    return found


def _bound(model: Model, batch: Any) -> Raw:
    named, extras = _named(model, batch)
    signature = model.signature
    values = signature.flatten((), named)
    problems: list[str] = []
    types: list[str] = []
    leaves: list[Any] = []
    for spec, value in zip(signature.leaves, values, strict=True):
        if not spec.is_array:
            leaves.append(value)
            continue
        try:
            leaves.append(np.asarray(as_array(value, spec.path)))
        except InputTypeError as error:
            types.append(str(error))
            leaves.append(None)
        except OverflowError as error:
            problems.append(str(error))
            leaves.append(None)
    if not (problems or types):
        if model.program.fixed:
            signature.bind_sizes(leaves, strict=True)
        else:
            _check_example(signature.leaves, leaves, problems, types)
        leaves = [
            _cast(spec, value) if spec.is_array else value
            for spec, value in zip(signature.leaves, leaves, strict=True)
        ]
    if not (problems or types):
        problems += _nan(signature.leaves, leaves)
    if problems or types:
        error = InputError if problems else InputTypeError
        raise error("\n    ".join([*problems, *types]))
    arrays = [v for spec, v in zip(signature.leaves, leaves, strict=True) if spec.is_array]
    if all(array.ndim and not len(array) for array in arrays):
        raise InputError("holds no sample: axis 0 of its inputs has size 0")
    return Raw(arrays, {name: _host(value) for name, value in extras.items()})


def _named(model: Model, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs by name, and the rest."""
    names, structures = model.signature.names, model.signature.structures
    first = structures[0]
    if isinstance(batch, Mapping):
        whole = first.kind in ("dict", "record") and len(names) == 1
        if whole and not set(batch) & set(names) and set(batch) == set(first.keys):
            return {names[0]: batch}, {}  # the one input, a dict itself
        inputs = {name: value for name, value in batch.items() if name in names}
        return inputs, {str(name): v for name, v in batch.items() if name not in names}
    if not isinstance(batch, (tuple, list)):
        return {names[0]: batch}, {}
    if batch and isinstance(batch[0], Mapping) and first.kind == "leaf":
        inputs, extras = _named(model, batch[0])  # (inputs by name, labels, ...)
        return inputs, {**extras, **_numbered(batch[1:])}
    rest = list(batch)
    inputs, start = {}, 0
    for name, structure in zip(names, structures, strict=True):
        count = len(structure.paths())
        leaves = model.inputs[start : start + count]
        start += count
        if rest and (any(leaf.is_array for leaf in leaves) or _is_fixed(leaves, rest[0])):
            inputs[name] = rest.pop(0)
    return inputs, _numbered(rest)


def _is_fixed(leaves: Sequence[LeafSpec], value: Any) -> bool:
    """Return whether a value is what an input without arrays is fixed to."""
    return (
        len(leaves) == 1 and type(value) is type(leaves[0].value) and bool(value == leaves[0].value)
    )


def _numbered(values: Sequence[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


def _check_example(
    specs: Sequence[LeafSpec], values: Sequence[Any], problems: list[str], types: list[str]
) -> None:
    """Compare with the example inputs of a function: any sizes, but those ranks and dtypes."""
    for spec, value in zip(specs, values, strict=True):
        if not spec.is_array:
            continue
        want = dtypes.canonical(spec.dtype)
        kinds = dtypes.kind(want), dtypes.kind(value.dtype)
        if value.ndim != len(spec.shape):
            problems.append(f"{spec}: got shape {list(value.shape)}, required the example's rank")
        if kinds[0] != kinds[1] or (kinds[0] != "integer" and value.dtype != want):
            types.append(
                f"{spec}: got {value.dtype.name}; cast it first, for example "
                f"x.astype({want.name!r})"
            )


def _cast(spec: LeafSpec, value: np.ndarray) -> np.ndarray:
    """Return integers in the dtype of the input, floats as they are."""
    want = dtypes.canonical(spec.dtype)
    if value.dtype == want or dtypes.kind(want) != dtypes.kind(value.dtype):
        return value
    if dtypes.kind(want) == "integer":
        dtypes.check_range(value, want, spec.path)
    return value.astype(want)


def _nan(specs: Sequence[LeafSpec], values: Sequence[Any]) -> list[str]:
    found = []
    for spec, value in zip(specs, values, strict=True):
        if not spec.is_array or dtypes.kind(value.dtype) not in ("float", "complex"):
            continue
        nan = np.isnan(value)
        if nan.any():
            first = f", the first in row {int(np.argwhere(nan)[0][0])}" if value.ndim else ""
            found.append(f"{spec}: {int(nan.sum())} of {value.size} values are NaN{first}")
    return found


def _host(value: Any) -> Any:
    """Return what a batch holds beyond the inputs with its arrays on the host."""
    if is_torch_tensor(value):
        return np.asarray(as_array(value, "extra"))
    return np.asarray(value) if isinstance(value, jax.Array) else value


def as_rows(value: Any, count: int) -> np.ndarray | None:
    """Return an extra as an array with a row for each of ``count`` samples, or None."""
    if isinstance(value, np.ndarray):
        return value if value.ndim and len(value) == count else None
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    items = [_host(item) for item in value]
    try:
        made = np.asarray(items)
    except ValueError:
        made = None
    if made is None or made.dtype == object:
        made = np.empty(count, object)
        for row, item in enumerate(items):
            made[row] = item
    return made
