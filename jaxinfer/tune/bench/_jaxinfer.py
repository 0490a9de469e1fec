"""The sides ``jaxinfer`` and ``jaxinfer-tuned``: a model directory, compiled at one shape."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.compile._check import EXACT, tolerance_of
from jaxinfer.compile.build import compile
from jaxinfer.compile.executable import Executable
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError
from jaxinfer.core.model import Model
from jaxinfer.core.parity import outputs_of
from jaxinfer.core.program import x64_of
from jaxinfer.io.artefact import load
from jaxinfer.tune.bench._environment import versions
from jaxinfer.tune.bench._worker import resident_mb
from jaxinfer.tune.bench.side import Prepared
from jaxinfer.tune.recipe import FILE, Recipe


def open_model(settings: Mapping[str, Any]) -> _Plain:
    """Open the model directory ``settings["model_dir"]``."""
    return _Plain(settings)


def open_tuned(settings: Mapping[str, Any]) -> _Plain:
    """Open what ``jaxinfer optimize`` wrote to ``settings["model_dir"]``.

    Its recipe's compiler options and back-end are used, at the shapes of the run and without
    buckets; without a recipe it is compiled as any model directory, and that is said.
    """
    if (Path(settings["model_dir"]) / FILE).is_file():
        return _Tuned(settings)
    plain = _Plain(settings)
    plain.facts["notes"].append(f"no {FILE} there: compiled as it is")
    return plain


class _Made(NamedTuple):
    executable: Executable
    notes: Sequence[str] = ()
    compile_s: float | None = None
    first_call_ms: float | None = None


class _Plain:
    """A model directory compiled by XLA without options."""

    def __init__(self, settings: Mapping[str, Any]):
        self.base_mb = resident_mb()
        self._settings = settings
        self.model = load(settings["model_dir"], verify=False)
        self.facts: dict[str, Any] = {
            "precision": precision_of(self.model),
            "device": device_name(),
            "versions": versions(("jax", "jaxlib")),
            "notes": [],
        }

    def prepare(self, arrays: Sequence[np.ndarray]) -> Prepared:
        """Compile at the shapes of the arrays.

        Raises:
          InputError: the model samples.
        """
        if self.model.program.random:
            raise InputError("this model samples random numbers: outputs cannot be compared")
        given = narrowed(self.model, arrays)
        started = time.perf_counter()
        made = self._compile(given)
        seconds = time.perf_counter() - started
        executable, signature = made.executable, self.model.signature
        if len(signature.leaves) == len(signature.names) == len(given):
            run = lambda: jax.block_until_ready(executable(*given))
        else:  # structures and fixed values: the arrays alone
            run = lambda: jax.block_until_ready(executable.flat(given))
        compile_s = seconds if made.compile_s is None else made.compile_s
        return Prepared(run, self._outputs, made.notes, compile_s, made.first_call_ms)

    def _outputs(self, result: Any) -> list[np.ndarray]:
        """Return the outputs in order, without the new state of buffers."""
        found = result
        if not isinstance(result, list):  # of ``flat``
            found = list(outputs_of(self.model, result).values())
        count = len(found) - len(getattr(self.model.program, "mutates", ()))
        return [np.asarray(each) for each in found[:count]]

    def _compile(self, arrays: Sequence[np.ndarray]) -> _Made:
        shapes = shapes_of(self.model, arrays)
        return _Made(compile(self.model, shapes, check=False, warm_up=False))


class _Tuned(_Plain):
    """A directory with a recipe: what it says of the compiler is followed."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self._recipe = Recipe.load(Path(settings["model_dir"]) / FILE)
        candidate = self._recipe.candidate
        if candidate.backend == "openvino":
            self.facts["versions"] |= versions(("openvino", "nncf"))
        if candidate.backend == "openvino" and candidate.precision in ("int8", "bf16"):
            self.facts["precision"] = candidate.precision  # its own: the model is in float32
        self.facts["notes"].append(f"recipe: {candidate.label}")

    def _compile(self, arrays: Sequence[np.ndarray]) -> _Made:
        from jaxinfer.tune.build import assemble

        recipe, shapes = self._recipe, shapes_of(self.model, arrays)
        candidate = recipe.candidate.replace(buckets=(), batch=0)
        notes: list[str] = []
        if {path: tuple(shape) for path, shape in recipe.shapes.items()} != shapes:
            found = "; ".join(f"{path} {list(shape)}" for path, shape in recipe.shapes.items())
            notes.append(f"the recipe was found at other sizes ({found})")
        calibration = self._calibration() if "int8" in candidate.levels else None
        made = assemble(
            self.model, candidate, recipe.group_list, shapes, calibration, arrays, transform=False
        )
        return _Made(
            made.executable, (*notes, *made.notes), made.compile_s, made.first_call_ms
        )  # fmt: skip

    def _calibration(self) -> Any:
        from jaxinfer.tune.data import read_npz, split

        if not self._settings.get("data"):
            raise InputError("the recipe has int8 of OpenVINO, which needs data (--data FILE.npz)")
        data = read_npz(self.model, self._settings["data"], check=False)
        return split(data, self._recipe.seed, self._recipe.split)[0]


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
