"""Ahead of time: every bucket is traced and lowered in turn, and compiled in threads.

Tracing and lowering hold Python's lock, so they are done one after the other; XLA compiles
without it. Each executable is checked: the bytes that donation saved, the memory it needs
against what the devices have, and its results against a reference (``_check``).
"""

from __future__ import annotations

import concurrent.futures
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

from jaxinfer.compile import _memory, _native
from jaxinfer.compile._entry import Entry
from jaxinfer.compile._flat import Flat
from jaxinfer.compile._report import BucketReport, name_of
from jaxinfer.compile._spec import Sizes, Spec
from jaxinfer.core import flops
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.hlo import collectives
from jaxinfer.core.program import x64_of

Progress = Callable[[int, int, str, float], None]
"""Called as ``progress(done, total, bucket, seconds)`` when an executable is ready."""


class Job(NamedTuple):
    """One bucket, lowered.

    Attributes:
      sizes, structs: its sizes, and shape and dtype of its array inputs.
      shardings: of the array inputs; empty on one device.
      padded: what ``bucket.pad`` found.
      jaxpr: of the flat function.
      lowered: to be compiled.
      seconds: that this took.
      notes: what was decided.
    """

    sizes: Sizes
    structs: list[jax.ShapeDtypeStruct]
    shardings: tuple[Any, ...]
    padded: Any
    jaxpr: Any
    lowered: Any
    seconds: float
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The sizes as text."""
        return name_of(self.sizes)


class Settings(NamedTuple):
    """What all buckets have in common.

    Attributes:
      params: the parameter arrays, placed.
      plan: how they are sharded, or None.
      devices: where they are.
      options: XLA's compiler options.
      cache: the folder of the user's own cache, or None.
      threads: that compile at a time.
    """

    params: Sequence[Any]
    plan: Any
    devices: Sequence[Any]
    options: Mapping[str, Any]
    cache: Any = None
    threads: int = 0


def pad_all(flat: Flat, spec: Spec) -> list[tuple[Sizes, Any]]:
    """Return every combination of buckets with what padding does to it.

    Raises:
      PaddingError: a result would change with the padding.
    """
    from jaxinfer.compile.bucket import pad

    found: list[tuple[Sizes, Any]] = []
    for sizes in spec.combinations():
        if not sizes:
            found.append((sizes, _whole(flat, spec.structs(sizes))))
            continue
        shapes = [leaf.shape for leaf in spec.leaves]
        found.append((sizes, pad(flat.model, shapes, sizes, exact=spec.exact(sizes))))
    return found


class Whole(NamedTuple):
    """What ``bucket.Padded`` is, for inputs of fixed sizes."""

    run: Callable[..., Any]
    tree: Any
    outputs: tuple[tuple[None, ...], ...]
    needs: tuple[str, ...] = ()
    masked: tuple[Any, ...] = ()
    least: Mapping[str, int] = {}


def _whole(flat: Flat, structs: Sequence[Any]) -> Whole:
    model, run = flat.model, flat.model._run()
    with x64_scope(x64_of(model.program)):
        key = jax.eval_shape(lambda: jax.random.key(0)) if model.program.random else None
        leaves = flat.leaves(*flat.sort(structs))
        arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]

        def fn(params: Any, given: Any, key: Any) -> Any:
            filled = iter(given)
            full = [next(filled) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
            return run(params, full, key)

        shapes, tree = jax.tree.flatten(jax.eval_shape(fn, model.params, arrays, key))
    outputs = tuple((None,) * len(shape.shape) for shape in shapes)
    flat_run = lambda params, leaves, sizes, key=None: jax.tree.leaves(run(params, leaves, key))
    return Whole(flat_run, tree, outputs)


def lower(flat: Flat, spec: Spec, sizes: Sizes, padded: Any, settings: Settings) -> Job:
    """Trace and lower one bucket. Cost: one or two abstract traces."""
    started = time.perf_counter()
    structs = spec.structs(sizes)
    shardings, notes = _input_shardings(settings.plan, spec, structs)
    args, options = _call(flat, structs, padded, shardings, settings)
    with x64_scope(x64_of(flat.model.program)), warnings.catch_warnings():
        # said by an error of our own, with the bytes
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        traced = jax.jit(flat.function(padded, settings.plan), **options).trace(*args)
        lowered = traced.lower()
    seconds = time.perf_counter() - started
    return Job(sizes, structs, shardings, padded, traced.jaxpr, lowered, seconds, notes)


def _call(
    flat: Flat, structs: Sequence[Any], padded: Any, shardings: Sequence[Any], settings: Settings
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a bucket's flat function as shapes, and the options of its jit."""
    args = (
        [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in settings.params],
        *flat.sort(structs),
        [jax.ShapeDtypeStruct((), np.int32)] * len(padded.needs),
        flat.key_structs(),
    )
    options: dict[str, Any] = {"donate_argnums": (2,)} if flat.donated else {}
    if settings.plan is not None:
        options |= _shardings(flat, settings, shardings)
    return args, options


def _shardings(flat: Flat, settings: Settings, inputs: Sequence[Any]) -> dict[str, Any]:
    plan = settings.plan
    everywhere = jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec())
    by_name = plan.param_shardings(flat.model.params)
    given = ([by_name[name] for name in flat.names], *flat.sort(inputs), everywhere, everywhere)
    options: dict[str, Any] = {"in_shardings": given}
    if len({device.process_index for device in settings.devices}) > 1:
        options["out_shardings"] = everywhere  # every process can read every result
    return options


def _input_shardings(
    plan: Any, spec: Spec, structs: Sequence[Any]
) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Return the shardings of the inputs at one bucket; an axis that is too short stays whole."""
    if plan is None:
        return (), ()
    found, notes = [], []
    for leaf, struct, given in zip(spec.leaves, structs, plan.inputs, strict=True):
        axes = []
        for axis, names in enumerate((*given, *[None] * (len(struct.shape) - len(given)))):
            each = names if isinstance(names, tuple) else (names,) if names else ()
            parts = int(np.prod([plan.mesh.shape[name] for name in each], dtype=int))
            if struct.shape[axis] % parts:
                size = struct.shape[axis]
                notes.append(f"{leaf.path}: axis {axis} of {size} is not split in {parts}")
                names = None
            axes.append(names)
        found.append(jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec(*axes)))
    return tuple(found), tuple(notes)


def compile_all(
    flat: Flat, jobs: Sequence[Job], settings: Settings, progress: Progress | None
) -> list[Entry]:
    """Compile every bucket, in threads; the order is that of the jobs.

    Raises:
      InputError: options that XLA does not know; donation that saves nothing.
      DeviceMemoryError: it does not fit the devices.
    """
    threads = settings.threads or min(len(jobs), os.cpu_count() or 1)
    done: list[Entry] = []
    with concurrent.futures.ThreadPoolExecutor(threads, "jaxinfer-compile") as pool:
        tasks = [pool.submit(_compile, flat, job, settings) for job in jobs]
        try:
            for task in concurrent.futures.as_completed(tasks):
                entry = task.result()
                done.append(entry)
                if progress is not None:
                    progress(len(done), len(jobs), entry.report.name, entry.report.compile_s)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    entries = [task.result() for task in tasks]
    _require_donated(flat, jobs, entries)
    return entries


def _compile(flat: Flat, job: Job, settings: Settings) -> Entry:
    started = time.perf_counter()
    with (
        x64_scope(x64_of(flat.model.program)),
        _memory.explained(job.name, None, settings.devices[0]),
    ):
        compiled, payload, origin = _native.build(
            job.lowered, settings.options, settings.devices, settings.cache
        )
    seconds = time.perf_counter() - started
    report = _report(job, compiled, payload, origin, seconds)
    resident = sum(_local_bytes(p) for p in settings.params)
    _memory.require(job.name, report.device_bytes, settings.devices, resident)
    outputs = outputs_of(job.padded)
    shapes = tuple(struct.shape for struct in job.structs)
    return Entry(
        *(job.sizes, shapes, job.shardings, job.padded.needs, outputs, compiled, report, payload),
        least=dict(job.padded.least),
    )


def _local_bytes(array: Any) -> int:
    shards = getattr(array, "addressable_shards", None)
    return int(shards[0].data.nbytes) if shards else int(getattr(array, "nbytes", 0))


def _report(job: Job, compiled: Any, payload: Any, origin: str, seconds: float) -> BucketReport:
    memory = compiled.memory_analysis()
    cost = flops.count(job.jaxpr)
    taken = {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
    }
    parts = job.shardings and job.shardings[0].mesh.size > 1
    return BucketReport(
        sizes=dict(job.sizes),
        lower_s=job.seconds,
        compile_s=seconds,
        origin=origin,
        code_bytes=memory.generated_code_size_in_bytes or len(payload or b""),
        **taken,
        device_bytes=sum(taken.values()) - 2 * taken["aliased_bytes"],
        flops=cost.flops,
        flops_notes=tuple(cost.notes()),
        collectives=tuple(_moved(compiled)) if parts else (),
        masked=tuple(plain(item) for item in job.padded.masked),
        notes=job.notes,
    )


def _moved(compiled: Any) -> list[tuple[str, int, int]]:
    return [(item.kind, item.bytes, item.count) for item in collectives(compiled.as_text())]


def outputs_of(padded: Any) -> tuple[tuple[tuple[str, int, int] | None, ...], ...]:
    """Return the real sizes of the axes of the results, as plain tuples."""
    return tuple(
        tuple(None if axis is None else tuple(axis) for axis in axes) for axes in padded.outputs
    )


def plain(item: Any) -> Any:
    """Return a named tuple as a dict, for JSON."""
    return item._asdict() if hasattr(item, "_asdict") else item


def _require_donated(flat: Flat, jobs: Sequence[Job], entries: Sequence[Entry]) -> None:
    """Raise InputError where donated inputs were not used for results."""
    if not flat.donated:
        return
    problems = []
    for job, entry in zip(jobs, entries, strict=True):
        parts = [_share(job, i) for i in flat.donated]
        given, saved = sum(parts), entry.report.aliased_bytes
        if saved < given:
            problems.append(f"{job.name}: {given} bytes are donated, XLA writes {saved} over")
    if problems:
        raise InputError(
            listing(
                "donation saves nothing, or not all:",
                problems,
                "An input is written over by a result of its shape and dtype only; leave the "
                "others out of donate.",
            )
        )


def _share(job: Job, index: int) -> int:
    struct = job.structs[index]
    shape = job.shardings[index].shard_shape(struct.shape) if job.shardings else struct.shape
    return int(np.prod(shape, dtype=int)) * struct.dtype.itemsize


def exported(flat: Flat, job: Job, settings: Settings) -> bytes:
    """Return a bucket's flat function as StableHLO for its own platform, serialized."""
    args, options = _call(flat, job.structs, job.padded, job.shardings, settings)
    with x64_scope(x64_of(flat.model.program)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        fn = jax.jit(flat.function(job.padded, settings.plan), **options)
        made = jax.export.export(fn)(*args)
        return bytes(made.serialize())


def compile_export(data: bytes, mesh: Any = None) -> Any:
    """Compile what ``exported`` gave; nothing is traced but the call of it.

    Args:
      data: the export.
      mesh: of its shardings, in the order of devices that it was made for.
    """
    made = jax.export.deserialize(bytearray(data))
    args, _ = jax.tree.unflatten(made.in_tree, made.in_avals)
    structs = jax.tree.map(lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype), args)
    options: dict[str, Any] = {}
    if mesh is not None:
        shardings, _ = jax.tree.unflatten(made.in_tree, made.in_shardings_jax(mesh))
        options["in_shardings"] = shardings
    return jax.jit(made.call, **options).lower(*structs).compile()
