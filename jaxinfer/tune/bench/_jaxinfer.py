"""The sides ``jaxinfer`` and ``jaxinfer-tuned``: a model directory, compiled at one shape."""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinfer.compile._check import EXACT, tolerance_of
from jaxinfer.compile.build import compile
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError
from jaxinfer.core.model import Model
from jaxinfer.core.parity import outputs_of
from jaxinfer.core.program import x64_of
from jaxinfer.io.artefact import load
from jaxinfer.tune.bench._memory import resident_mb
from jaxinfer.tune.bench.side import Prepared


def open_model(settings: Mapping[str, Any]) -> _Plain:
    """Open the model directory ``settings["model_dir"]``."""
    return _Plain(settings["model_dir"])


def open_tuned(settings: Mapping[str, Any]) -> _Plain:
    """Open what ``jaxinfer optimize`` wrote to ``settings["model_dir"]``.

    Its recipe's compiler options and back-end are used; without a recipe it is compiled as any
    model directory, and that is said.
    """
    folder = Path(settings["model_dir"])
    if (folder / "recipe.json").is_file():
        return _Tuned(str(folder))
    plain = _Plain(str(folder))
    plain.facts["notes"].append("no recipe.json there: compiled as it is")
    return plain


class _Plain:
    """A model directory compiled by XLA without options."""

    def __init__(self, model_dir: str):
        self.base_mb = resident_mb()
        self.model = load(model_dir, verify=False)
        self.facts: dict[str, Any] = {
            "precision": precision_of(self.model),
            "device": device_name(),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
            "notes": [],
        }

    def prepare(self, arrays: Sequence[np.ndarray]) -> Prepared:
        """Compile at the shapes of the arrays."""
        return prepared(self.model, narrowed(self.model, arrays), self._compile)

    def _compile(self, arrays: Sequence[np.ndarray]) -> tuple[Any, list[str]]:
        shapes = shapes_of(self.model, arrays)
        return compile(self.model, shapes, check=False, warm_up=False), []


class _Tuned(_Plain):
    """A directory with a recipe: what it says of the compiler is followed."""

    def __init__(self, model_dir: str):
        from jaxinfer.tune.tuned import load_tuned  # pyright: ignore[reportMissingImports]

        super().__init__(model_dir)
        self._load = functools.partial(load_tuned, model_dir)

    def _compile(self, arrays: Sequence[np.ndarray]) -> tuple[Any, list[str]]:
        return self._load(shapes_of(self.model, arrays)).executable, []


def prepared(
    model: Model,
    arrays: Sequence[np.ndarray],
    build: Callable[[Sequence[np.ndarray]], tuple[Any, list[str]]],
) -> Prepared:
    """Compile a model by ``build(arrays) -> (executable, notes)``, ready to be called.

    Raises:
      InputError: the model samples.
    """
    if model.program.random:
        raise InputError("this model samples random numbers: outputs cannot be compared")
    started = time.perf_counter()
    executable, notes = build(arrays)
    seconds = time.perf_counter() - started
    signature = model.signature
    if len(signature.leaves) == len(signature.names) == len(arrays):
        call = lambda: jax.block_until_ready(executable(*arrays))
    else:
        call = lambda: jax.block_until_ready(executable.flat(arrays))

    def outputs(result: Any) -> list[np.ndarray]:
        if isinstance(result, list):  # of ``flat``
            return [np.asarray(each) for each in result]
        return [np.asarray(each) for each in outputs_of(model, result).values()]

    return Prepared(call, outputs, notes, seconds)


def narrowed(model: Model, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the arrays in the dtypes that the executable takes (int64 as int32)."""
    from jaxinfer.core.arrays import aligned

    found = []
    leaves = [leaf for leaf in model.inputs if leaf.is_array]
    with x64_scope(x64_of(model.program)):
        for leaf, array in zip(leaves, arrays, strict=True):
            dtype = dtypes.canonical(leaf.dtype)
            dtypes.check_range(array, dtype, leaf.path)
            buffer = aligned(array.shape, dtype)
            np.copyto(buffer, array, casting="unsafe")
            found.append(buffer)
    return found


def shapes_of(model: Model, arrays: Sequence[np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array input by its path."""
    leaves = [leaf for leaf in model.inputs if leaf.is_array]
    return {leaf.path: tuple(a.shape) for leaf, a in zip(leaves, arrays, strict=True)}


def precision_of(model: Model) -> str:
    """Return ``f32`` if everything is computed in it, else what else there is, in words."""
    from jaxinfer.core.array_types import is_array_type

    if (
        all(rewrite.kind == "fold" for rewrite in model.rewrites)
        and tolerance_of(model.replace(rewrites=())) == EXACT
    ):
        return "f32"
    leaves = jax.tree.leaves(model.params, is_leaf=is_array_type)
    kinds = {type(leaf).__name__ for leaf in leaves if is_array_type(leaf)}
    names = {
        np.dtype(leaf.dtype).name for leaf in leaves
        if not is_array_type(leaf) and dtypes.kind(np.dtype(leaf.dtype)) == "float"
    } - {"float32"}  # fmt: skip
    rewrites = {rewrite.kind for rewrite in model.rewrites} - {"fold"}
    return ", ".join(sorted({*kinds, *names, *rewrites})) or "mixed"


def device_name() -> str:
    """Return the device on which JAX computes."""
    device = jax.devices()[0]
    return f"{device.platform}: {device.device_kind}" if device.platform != "cpu" else "cpu"
