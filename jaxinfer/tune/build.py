"""From a candidate to a running model: transforms by groups, then an executable, and its figures.

    fold -> cast -> prune -> quantize -> arrange -> compile

Each is applied only if the candidate asks for it. What a transform could not do is in the model's
audit, and in the notes.
"""

from __future__ import annotations

import time
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.compile.build import compile as compile_model
from jaxinfer.compile.executable import Executable
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.audit import Audit
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.symbols import is_name
from jaxinfer.transforms.arrange import arrange
from jaxinfer.transforms.cast import cast
from jaxinfer.transforms.fold import fold
from jaxinfer.transforms.prune import finalize, masks, prune
from jaxinfer.transforms.quantize import quantize
from jaxinfer.tune._build_plan import (
    INT8,
    cast_settings,
    hinted,
    levels_of,
    quantize_settings,
    require_possible,
)
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.data import Dataset
from jaxinfer.tune.groups import Group

SHOWN = 5
"""Parameters that a note names; the audit has them all."""

Shapes = Mapping[str, tuple[int | str, ...]]


class Built(NamedTuple):
    """A candidate that runs.

    Attributes:
      model: transformed.
      executable: compiled for the data's shapes, never run but for ``first_call_ms``.
      compile_s: seconds to transform, trace and compile.
      first_call_ms, second_call_ms: of the first two calls, results awaited.
      peak_bytes: what one device must hold for the largest bucket.
      weight_bytes: of the parameters.
      notes: what was not done as asked, and what has to be known of the figures.
      shapes: of the inputs that it is compiled for, names for bucketed dimensions.
    """

    model: Model
    executable: Executable
    compile_s: float
    first_call_ms: float
    peak_bytes: int
    weight_bytes: int
    notes: tuple[str, ...] = ()
    second_call_ms: float = 0.0
    shapes: Shapes = types.MappingProxyType({})


def transformed(
    model: Model,
    candidate: Candidate,
    groups: Sequence[Group] = (),
    calibration: Dataset | None = None,
) -> Model:
    """Return the model after the transforms of a candidate, in their order.

    Args:
      model: as it came, of one function.
      candidate: an arrangement.
      groups: of ``find_groups`` for this model; parameters of none have ``candidate.precision``.
      calibration: data for static activations.

    Returns:
      A Model: the same one if nothing is asked for. int8 and bf16 of OpenVINO change nothing here:
      they are its own. Pruned
      weights have their zeros written (``finalize``), compressed if ``prune`` has
      ``("compress", True)``. Cost: that of the transforms.

    Raises:
      InputError: a combination that cannot be made, groups that there are not; all at once.
    """
    require_possible(candidate, groups, calibration)
    made = model
    if candidate.fold:
        made = fold()(made)
    levels = levels_of(made, candidate, groups)
    settings = None if hinted(candidate) else cast_settings(levels, candidate.precision)
    if settings is not None:
        policy, rules = settings
        made = cast(policy, rules=rules)(made)
    if candidate.prune:
        made = _pruned(made, dict(candidate.prune))
    chosen = quantize_settings(levels, candidate.precision)
    if chosen is not None:
        scheme, activation, rules = chosen
        static = activation == "static" or any(
            each.settings.get("activation") == "static" for each in rules
        )
        data = () if not static or calibration is None else (calibration.batches(),)
        made = quantize(scheme, activation=activation, rules=rules)(made, *data)
    if candidate.attention or candidate.layout or candidate.unroll:
        made = arrange(
            attention=candidate.attention, layout=candidate.layout, unroll=candidate.unroll
        )(made)
    return made


def _pruned(model: Model, settings: dict[str, Any]) -> Model:
    compress = settings.pop("compress", False)
    try:
        done = prune(**settings)(model)
    except TypeError as error:  # no such setting
        raise InputError(f"prune: {error}") from error
    return finalize(done, compress=compress) if masks(done) else done


def build(
    model: Model,
    candidate: Candidate,
    groups: Sequence[Group],
    dataset: Dataset,
    calibration: Dataset | None = None,
) -> Built:
    """Transform and compile a model, and run it twice on the first call of the data.

    Args:
      model: as it came, of one function with known inputs.
      candidate: an arrangement.
      groups: of ``find_groups`` for this model.
      dataset: gives the shapes, at ``candidate.batch``, and the inputs of the two calls.
      calibration: for levels that need data.

    Returns:
      A Built. Nothing is compared with the model as it came: that is the caller's part.

    Raises:
      InputError: what cannot be made, or compiled.
      MissingExtraError: the back-end is not installed.
      JaxinferError, jax.errors.JaxRuntimeError: the compiler refuses it; out of memory.
    """
    if not dataset.calls:
        raise InputError("build: the data hold no call to take shapes from")
    sized = dataset.rebatch(candidate.batch) if candidate.batch else dataset
    shapes = shapes_of(model, candidate, sized)
    return assemble(model, candidate, groups, shapes, calibration, sized.calls[0].arrays)


def assemble(
    model: Model,
    candidate: Candidate,
    groups: Sequence[Group],
    shapes: Shapes,
    calibration: Dataset | None = None,
    arrays: Sequence[Any] | None = None,
    *,
    transform: bool = True,
) -> Built:
    """Transform and compile a model for some shapes; ``build`` without a data set.

    Args:
      model, candidate, groups, calibration: as for ``build``.
      shapes: of every array input, names for the dimensions of ``candidate.buckets``.
      arrays: inputs for the first two calls; None: zeros, of the smallest bucket.
      transform: False: the model has been through the transforms already (int8, which is
        OpenVINO's, needs data all the same).
    """
    started = time.perf_counter()
    made = transformed(model, candidate, groups, calibration) if transform else model
    executable = compile_model(
        made,
        dict(shapes),
        buckets={name: list(sizes) for name, sizes in candidate.buckets} or None,
        mesh=candidate.mesh or None,
        sharding=candidate.sharding,
        donate=candidate.donate,
        backend=candidate.backend,
        fallback=None,
        compiler_options=_options(made, candidate, groups, calibration),
        check=False,
        warm_up=False,
    )
    compile_s = time.perf_counter() - started
    with x64_scope(x64_of(made.program)):
        given = zeros(executable, dict(candidate.buckets)) if arrays is None else arrays
        first, second = (_timed_call(executable, given) for _ in range(2))
    report = executable.report()
    held = [each.device_bytes for each in report.buckets]
    peak, weights = max(held, default=0), executable.nbytes
    notes = [*blocked(made, model), *report.notes]
    notes += [f"{each.name}: {note}" for each in report.buckets for note in each.notes]
    if candidate.backend == "openvino":
        peak = weights = sum(held)  # each bucket has a copy
        notes.append("peak bytes: of OpenVINO its weights are known alone, not what it computes in")
    return Built(made, executable, compile_s, first, peak, weights, tuple(notes), second, shapes)


def _options(
    made: Model, candidate: Candidate, groups: Sequence[Group], calibration: Dataset | None
) -> dict[str, Any] | None:
    options = dict(candidate.options)
    if hinted(candidate):
        options["INFERENCE_PRECISION_HINT"] = "bf16"
    if candidate.precision == INT8:
        if calibration is None or not calibration.size:
            raise InputError("precision int8: needs calibration data, there are none")
        options["quantize"] = calibration.batches()
        levels = levels_of(made, candidate, groups)  # also of what folding has made
        if kept := [path for path, level in levels.items() if level != INT8]:
            options["ignore"] = kept
    return options or None


def shapes_of(model: Model, candidate: Candidate, dataset: Dataset) -> dict[str, Any]:
    """Return the shapes to compile for: those of the data, names for bucketed dimensions.

    A bucketed dimension is a size of the model's signature by its name; of a function, whose sizes
    have no names, ``batch`` is axis 0 of every input if that counts samples.

    Raises:
      InputError: no such dimension.
    """
    shapes: dict[str, Any] = dict(dataset.shapes())
    names = {name for name, _ in candidate.buckets}
    if not names:
        return shapes
    specs = {spec.path: spec for spec in model.inputs if spec.is_array}
    own = {dim for spec in specs.values() for dim in spec.shape if isinstance(dim, str)}
    found: set[str] = set()
    for path, shape in shapes.items():
        dims: list[int | str] = list(shape)
        for axis, dim in enumerate(specs[path].shape):
            named = dim if isinstance(dim, str) else ""
            if not own and axis == 0 and dataset.sampled:
                named = "batch"
            if named in names:
                dims[axis] = named
                found.add(named)
        shapes[path] = tuple(dims)
    if missing := sorted(names - found):
        have = sorted(dim for dim in own if is_name(dim)) or (["batch"] * dataset.sampled)
        problems = [f"{name}: no dimension of an input" for name in missing]
        raise InputError(listing("buckets:", problems, f"There are: {', '.join(have) or 'none'}."))
    return shapes


def zeros(executable: Executable, buckets: Mapping[str, Sequence[int]]) -> list[Any]:
    """Return inputs of zeros that fit an executable's smallest bucket."""
    sizes = {name: min(each) for name, each in buckets.items()}
    found = []
    for leaf in executable._frame.leaves:
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in leaf.shape]
        found.append(np.zeros(shape, dtypes.canonical(leaf.dtype)))
    return found


def _timed_call(executable: Executable, arrays: Sequence[Any]) -> float:
    """Return the milliseconds of a call on fresh arrays: donated ones are gone after it."""
    given = (
        [jax.numpy.array(each) for each in arrays] if executable._frame.donated else list(arrays)
    )
    key = jax.random.key(0) if executable.random else None
    started = time.perf_counter()
    jax.block_until_ready(executable.flat(given, key))
    return (time.perf_counter() - started) * 1e3


def blocked(model: Model, before: Model | None = None) -> list[str]:
    """Return what the transforms of a model could not do, a note for each transform.

    Args:
      model: transformed.
      before: the model before; its own transforms are left out.
    """
    skipped = len(before.audit()) if before is not None and before is not model else 0
    notes = []
    for audit in list(model.audit())[skipped:]:
        notes += _note(audit)
    return notes


def _note(audit: Audit) -> list[str]:
    found = audit.of("blocked")
    if found:
        each = [f"{entry.path} ({entry.why})" for entry in found[:SHOWN]]
        more = f" and {len(found) - SHOWN} more (audit)" if len(found) > SHOWN else ""
        return [f"{audit.transform}: blocked: {'; '.join(each)}{more}"]
    if not audit.of("changed"):
        return [f"{audit.transform}: changes nothing"]
    return []
