"""What a pipeline is built with: batch axes of the results, positions of the cuts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from jaxinfer.compile.stages import cut as _cut
from jaxinfer.compile.stages import trace as _trace
from jaxinfer.compile.stages.inputs import Inputs
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of


def result_axes(model: Model, inputs: Inputs, microbatch: int) -> list[int]:
    """Return the batch axis of each flat result, found by tracing at a second size.

    Raises:
      InputError: the batch cannot change, or results that have no axis of the batch's size;
        all of them.
    """
    low, high = inputs.bounds
    other = microbatch + 1 if high is None or microbatch < high else microbatch - 1
    if other < max(low, 1):
        raise InputError(f"pipeline: {inputs.symbol} is always {microbatch}: nothing to cut")
    first = _trace.result_shapes(model, inputs, microbatch)
    second = _trace.result_shapes(model, inputs, other)
    axes, faults = [], []
    for number, (one, two) in enumerate(zip(first, second, strict=True)):
        changed = [i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
        if len(changed) == 1 and (one.shape[changed[0]], two.shape[changed[0]]) == (
            microbatch,
            other,
        ):
            axes.append(changed[0])
            continue
        what = "no axis changes with it" if not changed else f"[{', '.join(map(str, two.shape))}]"
        shape = f"[{', '.join(map(str, one.shape))}]"
        faults.append(
            f"result {number}: {one.dtype}{shape} at {inputs.symbol} = {microbatch}, "
            f"at {other}: {what}"
        )
    if not first:
        faults.append("the model returns nothing")
    if faults:
        title = f"pipeline: every result needs one axis of size {inputs.symbol}:"
        advice = "Micro-batches are joined along it; a mean or a new state over all rows is not."
        raise InputError(listing(title, faults, advice))
    return axes


def choose_cuts(
    model: Model,
    inputs: Inputs,
    microbatch: int,
    stages: int,
    boundaries: Sequence[int | str] | None,
) -> tuple[_trace.Program, _cut.Costs, list[int], dict[Any, list[int]]]:
    """Return the equations, their costs, where they are cut, and the scans that were split.

    Raises:
      InputError: more stages than equations, or boundaries that are no cuts.
    """
    traced = _trace.trace(model, inputs, microbatch)
    with x64_scope(x64_of(model.program)):
        program = _trace.flatten(traced)
        measured = _cut.measure(program)
        splits: dict[Any, list[int]] = {}
        if boundaries is None:
            splits = _cut.plan_splits(program, measured, stages)
            if splits:
                program = _trace.flatten(traced, splits)
                measured = _cut.measure(program)
    count = len(measured.order)
    if stages > count:
        raise InputError(
            f"pipeline: {stages} stages, and {count} equations to cut (calls inlined; loops and "
            "branches are one each)"
        )
    if boundaries is not None:
        return program, measured, _given(boundaries, program, measured, stages), splits
    costs = [measured.costs[index] for index in measured.order]
    across = _cut.crossing(program, measured.order)
    return program, measured, _cut.cut(costs, across, stages), splits


def _given(
    boundaries: Sequence[int | str], program: _trace.Program, measured: _cut.Costs, stages: int
) -> list[int]:
    """Return the positions that a user's boundaries mean.

    Raises:
      InputError: another number than ``stages - 1``, no such parameter, a position outside, or
        an order in which a stage would be empty; all of them.
    """
    count = len(measured.order)
    faults, found = [], []
    if len(boundaries) != stages - 1:
        faults.append(f"required {stages - 1} for {stages} stages, got {len(boundaries)}")
    for boundary in boundaries:
        if isinstance(boundary, bool) or not isinstance(boundary, (int, str)):
            faults.append(f"{boundary!r}: neither a position nor a regular expression")
        elif isinstance(boundary, int):
            found.append(boundary)
            if not 0 < boundary < count:
                faults.append(f"{boundary}: a cut is before one of the equations 1 to {count - 1}")
        else:
            position, fault = _first_use(boundary, program, measured)
            faults += [fault] if fault else []
            found.append(position)
    if not faults:
        faults += [
            f"{boundaries[i]!r} (equation {a}) does not come before {boundaries[i + 1]!r} "
            f"(equation {b})"
            for i, (a, b) in enumerate(itertools.pairwise(found))
            if a >= b
        ]
    if faults:
        raise InputError(listing("pipeline: the boundaries are no cuts:", faults))
    return found


def _first_use(text: str, program: _trace.Program, measured: _cut.Costs) -> tuple[int, str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        return 0, f"{text!r}: not a regular expression ({error})"
    for position, index in enumerate(measured.order):
        for var in program.eqns[index].invars:
            source = None if hasattr(var, "val") else program.params.get(var)
            if source is not None and pattern.search(source.name):
                if not position:
                    return 0, f"{text!r}: {source.name} is read by the first equation"
                return position, ""
    return 0, f"{text!r}: no equation reads a parameter of that name"
