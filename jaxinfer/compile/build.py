"""compile: a model becomes an Executable, for every bucket and over any mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxinfer.compile import _cache, _check, aot
from jaxinfer.compile._entry import Entry
from jaxinfer.compile._flat import Flat
from jaxinfer.compile._spec import Spec, resolve
from jaxinfer.compile.executable import Executable, Frame
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.sharding.distributed import check_same
from jaxinfer.sharding.mesh import check_mesh, make_mesh
from jaxinfer.sharding.partition import partition
from jaxinfer.sharding.plan import put

BACKENDS = ("xla", "openvino")


class Placement(NamedTuple):
    """Where parameters are, by name of the parameter array.

    Attributes:
      mesh: of all shardings.
      params: sharding of each parameter array.
      inputs: PartitionSpec of each array input.
      strategy: in words.
    """

    mesh: Any
    params: Mapping[str, Any]
    inputs: tuple[Any, ...]
    strategy: str

    def param_shardings(self, params: Any) -> Mapping[str, Any]:
        """Return the shardings by name, as a ``ShardingPlan`` does."""
        del params
        return self.params


class Source(NamedTuple):
    """What an executable was made of, for saving it: the flat function, jobs and settings."""

    flat: Flat
    jobs: Sequence[aot.Job]
    settings: aot.Settings


def compile(
    model: Model,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    *,
    buckets: Mapping[str, Sequence[int]] | None = None,
    mesh: Any = None,
    sharding: Any = "auto",
    donate: Sequence[str] = (),
    backend: str = "xla",
    fallback: str | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    check: bool | str = "auto",
    tolerance: float | None = None,
    cache: Any = False,
    warm_up: bool = True,
    threads: int = 0,
    progress: aot.Progress | None = None,
) -> Executable:
    """Compile a model ahead of time, for every bucket; calls of the result never compile.

    Args:
      model: of one function (a component of a generative model).
      inputs: shape by input name, ``{"x": ("batch", 128)}``: numbers, and names of
        dimensions. What is left out has the shape that the model declares.
      buckets: sizes by dimension, ``{"batch": [1, 4, 16, 64]}``: inputs are padded to the next
        one. Padding is proven not to reach the results, or masked, or refused (``ji.bucket``).
      mesh: ``{"data": 2, "model": 4}``, a string, or a ``jax.sharding.Mesh``; None: one device.
      sharding: of a mesh: "auto", a strategy, rules, or a ShardingPlan (``ji.partition``).
      donate: inputs whose memory results may take; JAX arrays that are passed there are gone
        after the call.
      backend: "xla", or "openvino" (CPU; the extra of that name).
      fallback: "xla": what the other back-end cannot take is compiled with XLA, and said in the
        report; None: it is an error.
      compiler_options: XLA flags for these executables alone, or options of the back-end.
      check: "auto": whatever is not plain XLA on one device is compared with it on random
        inputs; True: also that, with itself; False: nothing is.
      tolerance: of the check, relative to the largest value; by default 1e-3 for float32 and
        5e-2 for half types and for cast, quantized and pruned models.
      cache: True: code is kept in the user's cache and taken from it (``~/.cache/jaxinfer``,
        ``$JAXINFER_CACHE``); or a folder.
      warm_up: run each executable once on zeros.
      threads: that compile at a time; 0: as many as there are processors.
      progress: called as ``progress(done, total, bucket, seconds)``.

    Returns:
      An Executable. Cost: for each bucket one to three traces and one compilation; the check
      compiles the reference as well.

    Raises:
      InputError: sizes, names, donation or options that do not fit; all at once.
      PaddingError: padding would change a result; the equation is named.
      DeviceMemoryError: it does not fit.
      ParityError: it does not give the reference's numbers.
      MissingExtraError: the back-end is not installed.

    Example:
      >>> import jax.numpy as jnp, numpy as np, jaxinfer as ji
      >>> fn = lambda p, x: jnp.tanh(x @ p["w"])
      >>> model = ji.from_function(fn, {"w": jnp.eye(3)}, (jnp.ones((2, 3)),))
      >>> exe = ji.compile(model, {"x": ("batch", 3)}, buckets={"batch": [2, 8]})
      >>> exe(np.ones((5, 3), np.float32)).shape, exe(np.ones((1, 3), np.float32)).shape
      ((5, 3), (1, 3))
    """
    _require_settings(backend, fallback, check, mesh)
    spec = resolve(model, inputs, buckets)
    donated = _donated(spec, donate)
    plan = _plan(model, spec, mesh, sharding)
    notes = list(plan.notes) if plan is not None else []
    devices = tuple(plan.mesh.devices.flat) if plan is not None else (jax.devices()[0],)
    flat = Flat(model, donated)
    params = _place(flat, plan, devices[0])
    folder = _cache.open_folder(cache)
    options = dict(compiler_options or {})
    settings = aot.Settings(params, plan, devices, options, folder, threads)
    padded = aot.pad_all(flat, spec)
    entries: list[Entry] | None = None
    jobs: list[aot.Job] = []
    if backend == "openvino":
        from jaxinfer.compile.openvino.backend import build_openvino

        entries, notes = build_openvino(flat, spec, padded, settings, fallback, progress)
        settings = settings._replace(options={})  # they were the back-end's own
        if tolerance is None and options.get("quantize") is not None and entries is not None:
            tolerance = _check.INT8
    if entries is None:
        jobs = [aot.lower(flat, spec, sizes, each, settings) for sizes, each in padded]
        entries = aot.compile_all(flat, jobs, settings, progress)
    frame = _frame(flat, spec, settings, padded, notes)
    if not jobs:  # the code has its weights inside
        inside = sum(int(array.nbytes) for array in frame.params)
        info = {**frame.info, "param_bytes": inside}
        frame = frame._replace(names=(), params=[], info=info)
    made = functools.partial(Executable, frame, source=Source(flat, jobs, settings))
    executable = made(_checked(flat, spec, entries, made(entries), settings, check, tolerance))
    if warm_up:
        executable.warm_up()
    return executable


def _require_settings(backend: str, fallback: Any, check: Any, mesh: Any) -> None:
    problems = []
    if backend not in BACKENDS:
        problems.append(f"backend: required one of {', '.join(BACKENDS)}, got {backend!r}")
    if fallback not in (None, "xla"):
        problems.append(f"fallback: required None or 'xla', got {fallback!r}")
    if check not in (True, False, "auto"):
        problems.append(f"check: required True, False or 'auto', got {check!r}")
    if backend == "openvino" and mesh is not None:
        problems.append("backend: openvino runs on one device; leave mesh out")
    if problems:
        raise InputError(listing("compile:", problems))


def _donated(spec: Spec, donate: Sequence[str]) -> tuple[int, ...]:
    names = [donate] if isinstance(donate, str) else list(donate)
    paths = [leaf.path for leaf in spec.leaves]
    unknown = [name for name in names if name not in paths]
    if unknown:
        have = ", ".join(paths)
        raise InputError(
            f"donate: no such array input: {', '.join(map(str, unknown))}; there are {have}"
        )
    return tuple(i for i, path in enumerate(paths) if path in names)


def _plan(model: Model, spec: Spec, mesh: Any, sharding: Any) -> Any:
    if mesh is None:
        return None
    made = make_mesh(mesh)
    check_mesh(made)
    largest = {name: sizes[-1] for name, sizes in spec.buckets.items()}
    plan = partition(model, made, sharding, inputs=spec.structs(largest))
    check_same("the sharding plan", plan.to_json())
    return plan


def _place(flat: Flat, plan: Any, device: Any) -> list[Any]:
    """Return the parameter arrays where the executable wants them."""
    if plan is None:
        return [
            a if isinstance(a, jax.Array) and a.devices() == {device} else jax.device_put(a, device)
            for a in flat.arrays
        ]
    shardings = plan.param_shardings(flat.model.params)
    return [put(a, shardings[n]) for n, a in zip(flat.names, flat.arrays, strict=True)]


def _frame(
    flat: Flat, spec: Spec, settings: aot.Settings, padded: Sequence[Any], notes: Sequence[str]
) -> Frame:
    model, plan = flat.model, settings.plan
    tree = padded[0][1].tree

    def finish(outs: Sequence[Any]) -> Any:
        return model.program.finish(jax.tree.unflatten(tree, outs))

    placement = None
    if plan is not None:
        names = flat.names
        shardings = plan.param_shardings(model.params)
        placement = Placement(
            plan.mesh, {n: shardings[n] for n in names}, tuple(plan.inputs), plan.strategy
        )
    return Frame(
        model.signature,
        spec.leaves,
        spec.buckets,
        spec.low,
        flat.names,
        list(settings.params),
        finish,
        flat.donated,
        tuple(settings.devices),
        placement,
        getattr(flat, "key_impl", ""),
        x64_of(model.program),
        {"strategy": plan.strategy if plan is not None else "", "notes": tuple(notes)},
    )


def _checked(
    flat: Flat,
    spec: Spec,
    entries: Sequence[Entry],
    executable: Executable,
    settings: aot.Settings,
    check: bool | str,
    tolerance: float | None,
) -> list[Entry]:
    """Return the entries with what the check found in their reports."""
    if check is False:
        return _with_checks(entries, [{"result": "not checked: check=False"}] * len(entries))
    found: list[dict[str, Any]] = []
    hindered = _hindered(flat, settings)
    for entry in entries:
        reasons = _reasons(entry, settings) or (["asked for"] if check is True else [])
        if not reasons:
            found.append({"result": _check.PLAIN})
        elif hindered:
            found.append({"result": f"not checked: {hindered}"})
        else:
            run = executable.flat
            found += _check.check_entries(flat, spec, [entry], run, reasons, tolerance)
    return _with_checks(entries, found)


def _with_checks(entries: Sequence[Entry], found: Sequence[Mapping[str, Any]]) -> list[Entry]:
    return [
        dataclasses.replace(entry, report=dataclasses.replace(entry.report, check=each))
        for entry, each in zip(entries, found, strict=True)
    ]


def _reasons(entry: Entry, settings: aot.Settings) -> list[str]:
    reasons = []
    if entry.report.backend != "xla":
        reasons.append(f"back-end {entry.report.backend}")
    if settings.plan is not None and len(settings.devices) > 1:
        reasons.append(f"{len(settings.devices)} devices")
    if settings.options:
        reasons.append("compiler options")
    if entry.needs:
        reasons.append("masks")
    if entry.report.origin == "cache":
        reasons.append("cache")
    return reasons


def _hindered(flat: Flat, settings: aot.Settings) -> str:
    """Return why there is no reference to compare with; empty if there is one."""
    if flat.model.program.random:
        return "the model samples, and padding or a mesh may change what it draws"
    parts = [a for a in flat.arrays if isinstance(a, jax.Array) and len(a.devices()) > 1]
    return "the parameters came in shards: no device has them all" if parts else ""
