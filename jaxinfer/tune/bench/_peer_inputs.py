"""What every peer needs of the model directory: its inputs, its order of axes, its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.arrays import aligned
from jaxinfer.core.model import Model
from jaxinfer.core.signature import LeafSpec
from jaxinfer.io.artefact import load
from jaxinfer.tune.bench._worker import read_arrays


class Interface:
    """The signature of a model directory, and how its axes lie to those of the original.

    Arrays are given in the model's order of axes.
    """

    def __init__(self, model_dir: str):
        self.model: Model = load(model_dir, abstract=True)
        self.signature = self.model.signature
        self.leaves: list[LeafSpec] = [leaf for leaf in self.model.inputs if leaf.is_array]
        places = [place for place, leaf in enumerate(self.model.inputs) if leaf.is_array]
        perms = getattr(self.model.program, "input_perms", {})
        self._inward = [np.argsort(perms[place]) if place in perms else None for place in places]
        self._outward = getattr(self.model.program, "output_perms", {})

    def inward(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the inputs with the original's axes and dtypes (int64 where JAX has int32)."""
        return [
            _as(array if perm is None else array.transpose(perm), dtypes.dtype_of(leaf.dtype))
            for leaf, array, perm in zip(self.leaves, arrays, self._inward, strict=True)
        ]

    def outward(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the original's outputs with the model's axes."""
        return [
            array.transpose(self._outward[place]) if place in self._outward else array
            for place, array in enumerate(outputs)
        ]

    def named(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """Return the array inputs by path."""
        return {leaf.path: array for leaf, array in zip(self.leaves, arrays, strict=True)}

    def call(self, arrays: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and named arguments of the original, fixed values among them."""
        given = iter(arrays)
        leaves = iter([next(given) if leaf.is_array else leaf.value for leaf in self.model.inputs])
        values = [structure.unflatten(leaves) for structure in self.signature.structures]
        count = self.signature.positional
        return values[:count], dict(zip(self.signature.names[count:], values[count:], strict=True))


def _as(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a contiguous array of a dtype, in aligned memory where it has to be copied."""
    if array.dtype == dtype and array.flags.c_contiguous:
        return array
    buffer = aligned(array.shape, dtype)
    np.copyto(buffer, array, casting="unsafe")
    return buffer


def calibration_batches(
    settings: Mapping[str, Any], arrays: Sequence[np.ndarray]
) -> tuple[list[list[np.ndarray]], list[str]]:
    """Return batches to calibrate on, in the original's axes, and what is to be said of them.

    Those of ``settings["calibration"]`` (files of the parent), else random ones.
    """
    files = (settings.get("calibration") or {}).get(str(settings["batch"]), ())
    if files:
        interface = Interface(settings["model_dir"])
        return [interface.inward(read_arrays(Path(file))) for file in files], []
    return [list(arrays)], [
        "calibrated on the timed inputs themselves: there is no other data (--data)"
    ]
