"""TunedModel: a model with the executable of the arrangement that was found for it.

``tuned(*inputs)`` runs compiled code and never compiles; everything else (``apply``, ``params``,
``audit()``, transforms) is that of the transformed model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxinfer.compile.executable import Executable
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import (
    ArtefactError,
    InputError,
    InputTypeError,
    MissingExtraError,
    ParityError,
    listing,
)
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram, StableHLOProgram, x64_of
from jaxinfer.io.artefact import load, save
from jaxinfer.tune.build import Built, assemble, shapes_of
from jaxinfer.tune.data import Dataset, read, run_all, split
from jaxinfer.tune.metrics import BUILT_IN, Judge
from jaxinfer.tune.recipe import FILE, Recipe, changes_of, require_same_program

_FUNCTION = ("program", "params", "rewrites")


@dataclasses.dataclass(frozen=True, eq=False)
class TunedModel(Model):
    """A transformed model, compiled.

    Attributes:
      executable: what a call runs.
      recipe: how it was made.
      notes: what is not as the recipe has it, or was not done as asked.
    """

    executable: Any = None
    recipe: Recipe | None = None
    notes: tuple[str, ...] = ()

    def __call__(self, *args: Any, rng_key: Any = None, **kwargs: Any) -> Any:
        """Run the executable on inputs by position or name; nothing is compiled.

        Raises:
          InputError, InputTypeError: the inputs do not fit what was compiled.
          DeviceMemoryError: the device has no memory left.
        """
        try:
            return self.executable(*args, rng_key=rng_key, **kwargs)
        except (InputError, InputTypeError) as error:
            advice = (
                "A tuned model is compiled for these sizes alone: model.plain(*inputs) compiles "
                "for others, and a search with buckets in its space makes one for several."
            )
            raise type(error)(f"{error}\n{advice}") from error

    @property
    def plain(self) -> Model:
        """The transformed model without the executable: a call compiles for its sizes."""
        return Model(self.program, self.params, self.rewrites, self.provenance)

    def replace(self, **changes: Any) -> Model:
        """Return a copy with some fields changed: a plain Model where the function changes.

        What is compiled would no longer be that function.
        """
        if not any(name in changes for name in _FUNCTION):
            return dataclasses.replace(self, **changes)
        return dataclasses.replace(self.plain, **changes)

    def save(self, path: Any, *, overwrite: bool = False) -> None:
        """Write the transformed model to a directory, its recipe beside it in ``recipe.json``.

        ``ji.load`` reads the transformed model, ``load_tuned`` compiles it as well.

        Raises:
          ArtefactError: as for ``jaxinfer.save``.
        """
        files = {} if self.recipe is None else {FILE: self.recipe.encoded()}
        save(self.plain, path, overwrite=overwrite, extra_files=files)

    def __repr__(self) -> str:
        label = "" if self.recipe is None else f"; {self.recipe.candidate.label}"
        return f"Tuned{super().__repr__()[:-1]}{label})"


def tuned_of(built: Built, recipe: Recipe, notes: Sequence[str] = ()) -> TunedModel:
    """Return the tuned model of what was built."""
    model = sized(built.model, built)
    return TunedModel(
        *(model.program, model.params, model.rewrites, model.provenance),
        built.executable,
        recipe,
        tuple(dict.fromkeys([*notes, *built.notes])),
    )


def sized(model: Model, built: Built) -> Model:
    """Return a model of a Python function with the sizes that it is compiled for as its example.

    It is saved at these. Other programs take any size that they declare.
    """
    program = model.program
    if not isinstance(program, FunctionProgram):
        return model
    if any(isinstance(dim, str) for shape in built.shapes.values() for dim in shape):
        return model
    signature = program.signature
    leaves = tuple(
        dataclasses.replace(leaf, shape=tuple(built.shapes.get(leaf.path, leaf.shape)))
        for leaf in signature.leaves
    )
    made = dataclasses.replace(signature, leaves=leaves)
    return model.replace(program=dataclasses.replace(program, signature=made))


def apply_recipe(
    recipe: Recipe | str | os.PathLike[str],
    model: Model,
    data: Any = None,
    *,
    metric: str | Callable[..., Any] | None = None,
    check: bool = True,
) -> TunedModel:
    """Make a model again as a recipe says, without a search.

    Args:
      recipe: a Recipe, the path of its file, or a directory with a ``recipe.json``.
      model: the model as it came, of the recipe's program. Other weights are allowed, and noted.
      data: batches, as for ``ji.optimize``, or a Dataset. Needed by recipes with calibrated
        levels; else to take shapes from, and to compare with the model as it came.
      metric: to judge with; None: the recipe's if it is one of jaxinfer's, else outputs alone.
      check: raise if the result is worse than the recipe allows.

    Returns:
      A TunedModel. Its ``notes`` say what is not as it was (device, versions, weights), what was
      not done, and how it compares. Cost: the transforms, one compilation, and with data two
      more (the data's own check, and the model as it came).

    Raises:
      ArtefactError: the recipe cannot be read; all its faults.
      InputError: another program; no data where some are needed; data that do not fit.
      MissingExtraError: the back-end of the recipe is not installed; the extra is named.
      ParityError: ``check``, and the drop is more than the recipe's ``max_drop``.

    Example:
      >>> import jax.numpy as jnp, numpy as np, jaxinfer as ji
      >>> from jaxinfer.tune.candidate import Candidate
      >>> from jaxinfer.tune.recipe import make_recipe
      >>> model = ji.from_function(lambda p, x: x @ p, jnp.eye(3), (jnp.ones((2, 3)),))
      >>> recipe = make_recipe(model, Candidate(precision="bf16"), (), {"x": (2, 3)})
      >>> tuned = apply_recipe(recipe, model)
      >>> tuned(np.ones((2, 3), np.float32)).tolist()
      [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    found = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    notes = [*require_same_program(found, model), *changes_of(found)]
    candidate = found.candidate
    if data is None and candidate.calibrated:
        raise InputError(
            f"apply_recipe: {candidate.label} is calibrated: give data, batches of the model's "
            "inputs as for the search"
        )
    if data is None:
        notes.append("not compared with the model as it came: no data")
        built = _build(found, model, found.shapes, None, None)
        return tuned_of(built, found, notes)
    dataset = data if isinstance(data, Dataset) else read(model, data)
    calibration, judging = split(dataset, found.seed, found.split)
    judged = judging.rebatch(candidate.batch) if candidate.batch and judging.sampled else judging
    shapes = shapes_of(model, candidate, judged)
    built = _build(found, model, shapes, calibration, judged.calls[0].arrays)
    notes += _compared(found, model, built.executable, judged, metric, check)
    return tuned_of(built, found.replace(shapes=shapes), notes)


def _build(
    recipe: Recipe, model: Model, shapes: Any, calibration: Dataset | None, arrays: Any
) -> Built:
    try:
        return assemble(model, recipe.candidate, recipe.group_list, shapes, calibration, arrays)
    except MissingExtraError as error:
        raise MissingExtraError(f"the recipe's back-end {recipe.candidate.backend}: {error}") from (
            error
        )


def _compared(
    recipe: Recipe,
    model: Model,
    executable: Executable,
    data: Dataset,
    metric: Any,
    check: bool,
) -> list[str]:
    """Return how an executable compares with the model as it came.

    Raises:
      ParityError: it is worse than the recipe allows, and ``check``.
    """
    notes = []
    name = metric
    if metric is None and recipe.metric in BUILT_IN:
        name = recipe.metric
    elif metric is None:
        notes.append(f"the recipe's metric {recipe.metric!r} is a function: give it as metric=")

    def plain(arrays: Sequence[Any]) -> list[Any]:
        return jax.tree.leaves(model._jitted(model.params, list(arrays), None))

    with x64_scope(x64_of(model.program)):
        want = run_all(plain, data)
    judge = Judge(model, data, want, name, recipe.drop_kind, recipe.seed)
    score = judge.score(run_all(executable.flat, data))
    near = ", ".join(f"{key} {value:.6g}" for key, value in score.similarity.items())
    text = (
        f"{judge.name} {score.metric:.6g}, {judge.reference:.6g} of the model as it came: "
        f"a drop of {score.drop:.3g} ({recipe.drop_kind}) on {data.size} samples; {near}"
    )
    comparable = metric is not None or recipe.metric == judge.name
    if recipe.max_drop is not None and comparable and score.drop > recipe.max_drop:
        fault = f"{text}; the recipe allows {recipe.max_drop:g}"
        if check:
            advice = "Search again on this device (ji.optimize), or take it with check=False."
            raise ParityError(listing("the recipe's arrangement is worse here:", [fault], advice))
        text = fault
    return [*notes, text]


def load_tuned(path: Any, data: Any = None, *, verify: bool = True) -> TunedModel:
    """Read a tuned model that was saved, and compile it as its recipe says.

    Nothing is transformed again: the directory holds the transformed model.

    Args:
      path: a directory of ``TunedModel.save``.
      data: batches, needed for int8 of OpenVINO alone, which quantizes while it compiles.
      verify: as for ``ji.load``.

    Raises:
      ArtefactError: the directory or its recipe is damaged, or has no recipe.
      InputError: no data where some are needed; a Python function, saved as StableHLO at fixed
        sizes, whose recipe has buckets or is for OpenVINO.
      MissingExtraError: the back-end is not installed.
    """
    if not (Path(path) / FILE).is_file():
        raise ArtefactError(f"{path}: has no {FILE}: it is no tuned model; ji.load reads it")
    model = load(path, verify=verify)
    recipe = Recipe.load(Path(path) / FILE)
    candidate, calibration = recipe.candidate, None
    if isinstance(model.program, StableHLOProgram):
        why = "has buckets" if candidate.buckets else ""
        why = "is for openvino, which cannot read it" if candidate.backend == "openvino" else why
        if why:
            raise InputError(
                f"load_tuned: {path} was saved from a Python function, as StableHLO at fixed "
                f"sizes, and the recipe {why}; give apply_recipe the function: "
                "apply_recipe(path, model)"
            )
    if candidate.precision == "int8":
        if data is None:
            raise InputError(
                "load_tuned: int8 of OpenVINO is calibrated while it is compiled: give data"
            )
        dataset = data if isinstance(data, Dataset) else read(model, data)
        calibration, _ = split(dataset, recipe.seed, recipe.split)
    groups, shapes = recipe.group_list, recipe.shapes
    built = assemble(model, candidate, groups, shapes, calibration, transform=False)
    return tuned_of(built, recipe, [*recipe.notes, *changes_of(recipe)])
