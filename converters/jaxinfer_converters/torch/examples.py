"""Example inputs: drawn at random like others, and turned from numpy to torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from jaxinfer.core.arrays import from_torch_tensor
from jaxinfer.core.dtypes import kind
from jaxinfer.core.examples import InputText as InputText
from jaxinfer.core.examples import draw as draw
from jaxinfer.core.examples import from_texts as from_texts


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
