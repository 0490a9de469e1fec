"""Pipeline: any model cut into k stages by its jaxpr, each on its own device.

    y = concatenate(model(x[0:b]), model(x[b:2b]), ...)         b = microbatch

A micro-batch goes through the stages one after the other; several are in flight, so that every
stage computes another one at the same time (Huang et al., GPipe, 2019,
https://arxiv.org/abs/1811.06965, without the training). The function is traced once at a
micro-batch's sizes; ``stages.cut`` says where it is cut, ``stages.build`` how a stage is
compiled, ``stages.run`` how they run, ``stages.schedule`` what is measured.

A stage may have several devices, a mesh over which its weights are split (``stages.place``).
Limits: one process; boundary values are whole on every device of a stage's mesh. What the model
computes for one row must not depend on the others, which is tested when the pipeline is built.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.compile.stages import build as _build
from jaxinfer.compile.stages import cut as _cut
from jaxinfer.compile.stages import trace as _trace
from jaxinfer.compile.stages.check import check_rows
from jaxinfer.compile.stages.choose import choose_cuts, result_axes
from jaxinfer.compile.stages.inputs import Inputs, check_microbatch, resolve
from jaxinfer.compile.stages.place import choose_places
from jaxinfer.compile.stages.report import PipelineReport, StageRow
from jaxinfer.compile.stages.run import run
from jaxinfer.compile.stages.schedule import Schedule
from jaxinfer.core import _compat
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import InputError, InputTypeError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.program import x64_of


def pipeline(
    model: Model,
    inputs: Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    stages: int,
    microbatch: int,
    devices: Sequence[Any] | None = None,
    boundaries: Sequence[int | str] | None = None,
    sharding: Any = None,
    batch: str | None = None,
    check: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Pipeline:
    """Cut a model into stages, compile each for its device, and return what runs them.

    Args:
      model: any model with example inputs; quantized and masked parameters too. It is not
        changed; each stage's parameters are copied to its device.
      inputs: shapes, as ``{"ids": ("batch", 128)}`` by path of the leaf, or a list in order;
        sizes are numbers apart from the batch. By default the model's own signature.
      stages: k, how many.
      microbatch: rows of a micro-batch.
      devices: one for each stage; by default the first k of ``jax.local_devices()``. The same
        device may stand there several times. Or for each stage a mesh, or a list of devices (a
        mesh with the one axis ``model``), apart from each other and with the same axes.
      boundaries: where stages 1 to k - 1 begin, instead of the balanced cut: a regular
        expression (the first equation that reads a parameter whose path it matches), or a
        position in the list of equations.
      sharding: how the weights lie on the meshes of stages that have one: what
        ``ji.partition`` takes, by default ``"tensor"``.
      batch: name of the batch size; needed where several sizes are symbolic and none is
        called ``batch``.
      check: test on random inputs that no row of a result depends on another row (three
        runs of one micro-batch, no compiling). False: you know it.
      progress: called as ``progress("stage 2", done, total)`` when a stage is compiled.

    Returns:
      A Pipeline. Cost: two abstract traces, and the compilation of each stage, in threads.

    Raises:
      InputError: too few devices or equations for the stages, a boundary that is no cut,
        results without a batch axis, rows that depend on each other, a model that samples,
        inputs without a batch.

    Example:
      >>> import jax, jax.numpy as jnp, jaxinfer as ji
      >>> model = ji.from_function(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"],
      ...     {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}, (jnp.ones((4, 3)),))
      >>> pipe = pipeline(model, {"x": ("batch", 3)}, stages=2, microbatch=2,
      ...     devices=jax.devices()[:1] * 2)
      >>> pipe(jnp.ones((6, 3))).shape
      (6, 2)
    """
    if isinstance(model.program, MultiProgram):
        names = ", ".join(model.components)
        raise InputError(
            f"pipeline: this model has several functions ({names}); cut one of them: "
            f"model.components[{next(iter(model.components))!r}]"
        )
    if model.program.random:
        raise InputError(
            "pipeline: this model samples random numbers, and would draw others in micro-batches"
        )
    given = resolve(model, inputs, batch)
    check_microbatch(given, microbatch)
    places = choose_places(model, given, microbatch, stages, devices, sharding)
    axes = result_axes(model, given, microbatch)
    program, measured, positions, splits = choose_cuts(model, given, microbatch, stages, boundaries)
    plans = _build.plan_stages(program, measured, positions)
    x64 = x64_of(model.program)
    built = _build.build(program, plans, places, x64=x64, progress=progress)
    pipe = Pipeline(
        *(model, given, microbatch, tuple(axes), program, measured, tuple(positions)),
        *(tuple(built), splits, "not tested (check=False)"),
    )
    return dataclasses.replace(pipe, rows=check_rows(pipe)) if check else pipe


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A model in stages; ``pipe(*inputs)`` takes any batch.

    A batch that is no multiple of ``microbatch`` is padded with copies of its last row, and
    the result sliced: rows do not see each other. Results are assembled on the host and are
    on the last stage's devices. Calling never compiles.

    Attributes:
      model, inputs, microbatch: what was cut, at which sizes.
      axes: for each flat result, which axis is the batch.
      program, measured, positions: the equations, their costs, and where they are cut.
      stages: the compiled stages.
    """

    model: Model
    inputs: Inputs
    microbatch: int
    axes: tuple[int, ...]
    program: _trace.Program
    measured: _cut.Costs
    positions: tuple[int, ...]
    stages: tuple[_build.Stage, ...]
    splits: Mapping[Any, Sequence[int]] = dataclasses.field(default_factory=dict)
    rows: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a batch through the stages.

        Raises:
          InputError, InputTypeError: the inputs do not fit; all problems at once.
        """
        with x64_scope(x64_of(self.model.program)):
            arrays, size = self._bind(args, kwargs)
            return self._finish(self._flat(arrays, size))

    def schedule(self, *args: Any, repeats: int = 3, **kwargs: Any) -> Schedule:
        """Run a batch and return who computed what when.

        Method: first every stage's time with the machine to itself is taken, the median of
        ``repeats`` runs of one micro-batch stage after stage. Then the batch runs as in a call
        (its wall time is the median of ``repeats``), and once more with each stage's own
        thread waiting for its inputs and its results and noting the time of both, while the
        others go on.

        Args:
          args, kwargs: inputs, as for a call; without any, zeros for 8 micro-batches.
          repeats: runs of each measurement.
        """
        if repeats < 1:
            raise InputError(f"pipeline: repeats must be 1 or more, got {repeats}")
        with x64_scope(x64_of(self.model.program)):
            if args or kwargs:
                arrays, size = self._bind(args, kwargs)
            else:
                size = 8 * self.microbatch
                arrays = [np.zeros(s.shape, s.dtype) for s in self.inputs.structs(size)]
            if not size:
                raise InputError("pipeline: a batch of no rows has no schedule")
            one = self._slice(arrays, 0, self.microbatch)
            alone = [self._alone(one) for _ in range(repeats + 1)][1:]
            walls = []
            for _ in range(repeats):
                started = time.perf_counter()
                self._run(arrays, size)
                walls.append(time.perf_counter() - started)
            _, stamps = self._run(arrays, size, timed=True)
        return Schedule(
            tuple(stamps),
            tuple(map(statistics.median, zip(*alone, strict=True))),
            statistics.median(walls),
            tuple(stage.place.name for stage in self.stages),
        )

    def report(self) -> PipelineReport:
        """Return what each stage computes, holds, takes and gives, and how even they are."""
        plans = [stage.plan for stage in self.stages]
        names = [[self.program.params[var].name for var in plan.params] for plan in plans]
        rows = []
        for number, (stage, plan) in enumerate(zip(self.stages, plans, strict=True)):
            later = [set(other.received) for other in plans[number + 1 :]]
            rows.append(
                StageRow(
                    number,
                    stage.place.name,
                    len(plan.eqns),
                    sum(self.measured.flops[index] for index in plan.eqns),
                    sum(self.measured.costs[index] for index in plan.eqns),
                    _build.boundary_bytes(plan.params),
                    max(_build.bytes_by_device(stage.params, stage.place.devices)),
                    _build.boundary_bytes([self.program.inputs[i] for i in plan.inputs]),
                    _build.boundary_bytes(plan.received),
                    sum(
                        _build.boundary_bytes([var for var in plan.sent if var in other])
                        for other in later
                    ),
                    stage.aliased,
                    stage.compile_s,
                    tuple(names[number]),
                    self._where([0, *self.positions][number]),
                )
            )
        again = [
            index for index in self.measured.shared if sum(index in plan.eqns for plan in plans) > 1
        ]
        return PipelineReport(
            tuple(rows),
            self.microbatch,
            self.inputs.symbol,
            len(again),
            tuple(".".join(map(str, at)) + f": {list(n)}" for at, n in self.splits.items()),
            self.rows,
        )

    def equations(self) -> list[str]:
        """Return a line for each equation that can be cut at: position, stage, what and where.

        A position is what ``boundaries`` takes: the stage would begin with that equation.
        """
        edges = [0, *self.positions]
        stage_of = {position: stage for stage, position in enumerate(edges)}
        lines, stage = [], 0
        for position, index in enumerate(self.measured.order):
            stage = stage_of.get(position, stage)
            cost = self.measured.costs[index]
            lines.append(f"{position:>5}  stage {stage}  {cost:>15,}  {self._where(position)}")
        return lines

    def _where(self, position: int) -> str:
        """Return what an equation is: ``dot_general in encoder.layer.3 (model.py:7)``."""
        eqn = self.program.eqns[self.measured.order[position]]
        scope, line = _compat.scope_of(eqn), _compat.source_line(eqn)
        return (
            eqn.primitive.name + (f" in {scope}" if scope else "") + (f" ({line})" if line else "")
        )

    def __repr__(self) -> str:
        count = len(self.stages)
        return f"Pipeline({count} stages, micro-batches of {self.microbatch}; {self.model!r})"

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], int]:
        signature = self.model.signature
        values = signature.flatten(args, kwargs)
        leaves = self.inputs.leaves
        values = [
            as_array(value, spec.path) if spec.is_array else value
            for spec, value in zip(leaves, values, strict=True)
        ]
        if self.model.program.fixed:
            signature.bind_sizes(values, strict=True)
        faults, kinds, sizes = [], [], {}
        arrays = [v for spec, v in zip(leaves, values, strict=True) if spec.is_array]
        for spec, value, want in zip(
            self.inputs.arrays, arrays, self.inputs.structs(self.microbatch), strict=True
        ):
            fits = len(value.shape) == len(spec.shape) and all(
                dim in (self.inputs.symbol, got)
                for dim, got in zip(spec.shape, value.shape, strict=True)
            )
            if not fits:
                faults.append(f"{spec}: got shape {list(value.shape)}")
            elif self.inputs.symbol in spec.shape:
                sizes[spec.path] = value.shape[spec.shape.index(self.inputs.symbol)]
            if value.dtype != want.dtype:
                kinds.append(f"{spec}: got {value.dtype}")
        if len(set(sizes.values())) > 1:
            faults += [f"{path}: {self.inputs.symbol} is {size}" for path, size in sizes.items()]
        title = "pipeline: the inputs do not fit the sizes that it was compiled for:"
        if faults:
            raise InputError(listing(title, [*faults, *kinds]))
        if kinds:
            raise InputTypeError(listing(title, kinds, "Cast them first."))
        return list(map(np.asarray, arrays)), next(iter(sizes.values()))

    def _slice(self, arrays: Sequence[Any], start: int, size: int) -> list[Any]:
        """Return one micro-batch of each input that has rows, the last row repeated."""
        found = []
        for array, axis in zip(arrays, self.inputs.axes, strict=True):
            if axis is None:
                found.append(array)
                continue
            rows = min(self.microbatch, max(size - start, 0), array.shape[axis] - start)
            at = (*(slice(None),) * axis, slice(start, start + rows))
            part = array[at]
            if rows < self.microbatch:
                last = array[(*(slice(None),) * axis, slice(start + rows - 1, start + rows))]
                part = np.concatenate([part, *[last] * (self.microbatch - rows)], axis)
            found.append(part)
        return found

    def _run(
        self, arrays: Sequence[Any], size: int, *, timed: bool = False
    ) -> tuple[list[dict[int, Any]], list[Any]]:
        count = -(-size // self.microbatch)
        parts: dict[int, list[Any]] = {}

        def feed(number: int, batch: int) -> Any:
            if batch not in parts:
                parts[batch] = self._slice(arrays, batch * self.microbatch, size)
            return parts[batch][number]

        x64 = x64_of(self.model.program)
        return run(self.stages, count, feed, timed=timed, x64=x64)

    def _alone(self, inputs: Sequence[Any]) -> list[float]:
        """Return each stage's seconds for one micro-batch, one stage at a time."""
        values: dict[Any, Any] = {}
        seconds = []
        for stage in self.stages:
            plan = stage.plan
            given = [jax.device_put(inputs[number], stage.place.whole) for number in plan.inputs]
            received = [jax.device_put(values[var], stage.place.whole) for var in plan.received]
            jax.block_until_ready((given, received))
            started = time.perf_counter()
            outs = jax.block_until_ready(stage.run(stage.params, given, received))
            seconds.append(time.perf_counter() - started)
            values |= zip(plan.sent, outs, strict=False)
        return seconds

    def _flat(self, arrays: Sequence[Any], size: int) -> list[Any]:
        """Return the flat results as numpy arrays, assembled from those of the micro-batches."""
        parts, _ = self._run(arrays, size)
        inputs = dict(zip(self.program.inputs, arrays, strict=True))
        flat = []
        for number, (var, axis) in enumerate(zip(self.program.outs, self.axes, strict=True)):
            if var in inputs:
                whole = inputs[var]
            elif parts:
                pieces = [np.asarray(part[number]) for part in parts]
                whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)
                whole = whole[(*(slice(None),) * axis, slice(0, size))]
            else:
                shape = var.aval.shape
                whole = np.zeros((*shape[:axis], 0, *shape[axis + 1 :]), var.aval.dtype)
            flat.append(whole)
        return flat

    def _finish(self, flat: Sequence[Any]) -> Any:
        placed = [jax.device_put(array, self.stages[-1].place.whole) for array in flat]
        return self.model.program.finish(jax.tree.unflatten(self.program.tree, placed))
