"""The data that a transform sees: batches of a model's inputs, checked.

A batch is what a call of the model takes: a tuple of inputs by position, a dict of inputs by
name, or the one input by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.core.model import Model


def batches(model: Model, data: tuple[Any, ...], what: str) -> Iterator[list[Any]]:
    """Yield the leaves of the model's inputs for each batch of ``data[0]``, as JAX arrays.

    Args:
      model: the model.
      data: what a transform got behind the model: one iterable of batches.
      what: the transform, for messages.

    Raises:
      InputError: no data, no batches, a batch that does not fit the model (which one).
      InputTypeError: a batch of other dtypes.
    """
    if len(data) != 1:
        raise InputError(
            f"{what}: required one iterable of batches behind the model, got {len(data)}: "
            "transform(model, [batch, batch, ...])"
        )
    source = data[0]
    if isinstance(source, (str, bytes, Mapping)) or not isinstance(source, Iterable):
        raise InputTypeError(
            f"{what}: required an iterable of batches, got {type(source).__name__}; "
            "one batch alone is [batch]"
        )
    shape = getattr(source, "shape", None)
    if shape is not None:
        raise InputTypeError(
            f"{what}: required an iterable of batches, got one array of shape {shape}; "
            "one batch alone is [batch]"
        )
    count = 0
    for number, batch in enumerate(source):
        yield leaves_of(model, batch, f"{what}: batch {number}")
        count += 1
    if not count:
        raise InputError(f"{what}: the calibration data hold no batch")


def leaves_of(model: Model, batch: Any, what: str) -> list[Any]:
    """Return the leaves of the model's inputs for one batch.

    Raises:
      InputError, InputTypeError: the batch does not fit, with ``what`` before the reasons.
    """
    args, kwargs = _call_of(batch)
    signature = model.signature
    try:
        values = signature.flatten(args, kwargs)
        if signature.open:
            return jax.tree.map(lambda value: as_array(value, "input"), values)
        values = [
            as_array(value, spec.path) if spec.is_array else value
            for spec, value in zip(signature.leaves, values, strict=True)
        ]
        if model.program.fixed:
            signature.bind_sizes(values, strict=True)
    except (InputError, InputTypeError) as error:
        raise type(error)(f"{what}: {error}") from error
    return values


def _call_of(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(batch, Mapping):
        return (), batch
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}
