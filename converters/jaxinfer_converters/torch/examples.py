"""Example inputs: parsed from text, drawn at random, and turned from numpy to torch."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from jaxinfer.core.arrays import from_torch_tensor
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


def like(example: Any, seed: int) -> Any:
    """Draw inputs like an example (nested tensors): floats normal, integers and bools permuted.

    Permuting keeps integers valid (token ids, class labels) where a range is not known.
    """
    rng = np.random.default_rng(seed)

    def one(tensor: torch.Tensor) -> np.ndarray:
        array = np.asarray(from_torch_tensor(tensor))
        if kind(array.dtype) in ("float", "complex"):
            return rng.standard_normal(array.shape).astype(array.dtype)
        return rng.permutation(array.reshape(-1)).reshape(array.shape)

    return pytree.tree_map_only(torch.Tensor, one, example)


def to_torch(values: Any) -> Any:
    """Turn numpy arrays in a nested value into torch tensors (copies)."""

    def one(array: np.ndarray) -> torch.Tensor:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(array))

    return pytree.tree_map_only(np.ndarray, one, values)


def flat_outputs(output: Any) -> list[np.ndarray]:
    """Flatten a module's output to numpy arrays, in torch's own tree order."""
    return [
        np.asarray(from_torch_tensor(leaf)) if isinstance(leaf, torch.Tensor) else np.asarray(leaf)
        for leaf in pytree.tree_leaves(output)
        if leaf is not None
    ]


def by_path(module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's tensors by the paths that the signature gives them (``batch.ids``)."""
    names = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names += [f"x{i}" for i in range(len(names), len(args))]
    found: dict[str, Any] = {}
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            keys = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path]
            found[".".join([name, *keys])] = leaf
    return found
