"""Example inputs as text: ``name=dtype[batch=2,3,224]``, parsed and drawn at random."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.core.dtypes import NAMES, dtype_of, kind
from jaxinfer.core.errors import ConversionError

_FORM = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<dtype>\w+)\[(?P<dims>[^\]]*)\](?P<range><\d+)?$"
)


@dataclasses.dataclass(frozen=True)
class InputText:
    """One ``--input``: ``name=dtype[batch=2,3,224]``, with ``<n`` for integers below n."""

    name: str | None
    dtype: str
    shape: tuple[int, ...]
    dynamic: Mapping[int, str]
    below: int = 2

    @classmethod
    def parse(cls, text: str) -> InputText:
        """Parse one input; raises ConversionError with the form that is meant.

        >>> InputText.parse("ids=int64[batch=2,seq=8]<100").dynamic
        {0: 'batch', 1: 'seq'}
        """
        found = _FORM.match(text.replace(" ", ""))
        form = "name=float32[batch=2,3,224,224] or int64[2,8]<30522 (integers below 30522)"
        if not found or found["dtype"] not in NAMES:
            raise ConversionError(f"--input {text!r}: not of the form {form}")
        shape, dynamic = [], {}
        for axis, part in enumerate(filter(None, found["dims"].split(","))):
            name, _, size = part.rpartition("=")
            if not size.isdigit() or (name and not name.isidentifier()):
                raise ConversionError(f"--input {text!r}: bad size {part!r}; the form is {form}")
            if name:
                dynamic[axis] = name
            shape.append(int(size))
        below = int(found["range"][1:]) if found["range"] else 2
        return cls(found["name"], found["dtype"], tuple(shape), dynamic, below)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the input: normal floats, integers from 0 below ``below``, fair bools."""
        dtype = dtype_of(self.dtype)
        if kind(dtype) == "bool":
            return rng.random(self.shape) > 0.5
        if kind(dtype) == "integer":
            return rng.integers(0, self.below, self.shape).astype(dtype)
        return rng.standard_normal(self.shape).astype(dtype)


def from_texts(texts: Sequence[str]) -> tuple[list[InputText], tuple[Any, dict[str, Any]]]:
    """Parse inputs; return them with ``(args, kwargs)`` of dynamic sizes."""
    inputs = [InputText.parse(text) for text in texts]
    args = tuple(dict(item.dynamic) for item in inputs if item.name is None)
    kwargs = {item.name: dict(item.dynamic) for item in inputs if item.name is not None}
    return inputs, (args, kwargs)


def draw(inputs: Sequence[InputText], seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Draw ``(args, kwargs)`` of numpy arrays for parsed inputs."""
    rng = np.random.default_rng(seed)
    drawn = [(item.name, item.draw(rng)) for item in inputs]
    return (
        tuple(value for name, value in drawn if name is None),
        {name: value for name, value in drawn if name is not None},
    )
