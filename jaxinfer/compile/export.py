"""Export of a model as StableHLO (``jax.export``), for platforms that need not be here.

    m.stablehlo     the function, exported for every platform: call(params, *leaves[, key]) -> list
    m.safetensors   the arrays of the parameters by name, of array types by their parts

``m.stablehlo`` is what ``jax.export`` serializes, and a trailer behind it that ``jax.export``
does not look at: JSON (signature, structure of the outputs, digests, versions), its length and a
mark. So the plain call works, without jaxinfer:

    exported = jax.export.deserialize(bytearray(Path("m.stablehlo").read_bytes()))
    outputs = exported.call(safetensors.flax.load_file("m.safetensors"), *leaves)

and ``load_export`` finds a file that was cut short, changed, or paired with other weights.

Exports age: JAX reads those of the last six months, and of versions up to three weeks newer than
itself. A model directory (``ji.save``) of a converted model does not age; export from it again.

Not done here: a derivative of the export (``ji.save`` of a Python function keeps one), shardings.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export

from jaxinfer.compile._export_files import Trailer, paths_of, read, write_all
from jaxinfer.compile._export_sizes import Sizes, resolve
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import (
    ArtefactError,
    InputError,
    JaxinferError,
    listing,
)
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.leaves import map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.parts import join, split
from jaxinfer.core.program import StableHLOProgram, x64_of
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF, Output, Structure

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS = ("beside", "inside")


class ExportError(JaxinferError, ValueError):
    """A model cannot be exported as asked; the message says for what, and why."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What ``export`` has written.

    Attributes:
      files: bytes of each file by path.
      components: name of each function, and the file it is in.
      platforms: for which it was lowered.
      dynamic: sizes that stay open.
      inputs: each array input of each function, ``x: float32[batch, 128]``.
      weights: ``beside`` or ``inside``.
      jax: the version that exported.
      calling_convention: of the serialization.
      seconds: for tracing, lowering and writing.
    """

    files: Mapping[str, int]
    components: Mapping[str, str]
    platforms: tuple[str, ...]
    dynamic: tuple[str, ...]
    inputs: Mapping[str, tuple[str, ...]]
    weights: str
    jax: str
    calling_convention: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return dataclasses.asdict(self)


def export(
    model: Model,
    path: Any,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    dynamic: Sequence[str] = (),
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    sizes: Mapping[str, int] | None = None,
    weights: str = "beside",
    overwrite: bool = False,
) -> ExportReport:
    """Write a model as StableHLO for several platforms, none of which has to be here.

    A model of several functions gives a file for each (``m.prefill.stablehlo``), and one file of
    weights.

    Args:
      model: any Model with known inputs; quantized and pruned weights are written by their
        parts, and computed as the model computes them.
      path: ``m.stablehlo``; the weights go to ``m.safetensors`` beside it.
      platforms: of cpu, cuda, rocm and tpu.
      dynamic: names of sizes to keep open. Every other size must have a number.
      inputs: shape by input name, in place of those that the model declares: numbers, and names
        of dimensions, ``{"x": ("batch", 128)}``.
      sizes: numbers for named dimensions that are not dynamic, ``{"seq": 128}``.
      weights: ``beside``, or ``inside``: baked into the function, which then takes ``{}`` for
        its parameters (compile time and memory grow with them).
      overwrite: replace files that are there; they stay if exporting or writing fails.

    Returns:
      What was written. Cost: one trace and lowering; no compile, no device.

    Raises:
      InputError: unknown platforms, sizes and inputs; all at once.
      ExportError: the function cannot be traced with a size open, or lowered for a platform.
      ArtefactError: the path is taken, or cannot be written; nothing is left.

    Example::

        report = ji.export(model, "m.stablehlo", platforms=("cpu", "tpu"), dynamic=("batch",))
        y = ji.load_export("m.stablehlo")(x)
    """
    started = time.perf_counter()
    platforms, dynamic = _names(platforms), _names(dynamic)
    parts = model.components
    problems = _problems(platforms, weights)
    resolved = resolve(parts, dynamic, inputs, sizes, problems)
    targets = paths_of(path, list(parts), bool(split(named_leaves(model.params))[0]), weights)
    targets.check(overwrite)
    exports: dict[str, Any] = {}
    trailers: dict[str, Trailer] = {}
    for name, part in parts.items():
        exports[name], trailers[name] = _exported(part, name, resolved[name], platforms, weights)
    arrays = split(named_leaves(model.params))[0] if weights == "beside" else {}
    files = write_all(
        targets,
        {name: bytes(made.serialize()) for name, made in exports.items()},
        trailers,
        arrays,
        overwrite,
    )
    first = next(iter(exports.values()))
    return ExportReport(
        files=files,
        components={name: str(targets.functions[name]) for name in parts},
        platforms=tuple(platforms),
        dynamic=tuple(dynamic),
        inputs={name: tuple(map(str, resolved[name].leaves)) for name in parts},
        weights=weights,
        jax=jax.__version__,
        calling_convention=first.calling_convention_version,
        seconds=round(time.perf_counter() - started, 3),
    )


def _names(given: Sequence[str] | str) -> tuple[str, ...]:
    """Return names: of one string, that one; each once."""
    return tuple(dict.fromkeys([given] if isinstance(given, str) else given))


def _problems(platforms: Sequence[str], weights: str) -> list[str]:
    known = ", ".join(PLATFORMS)
    problems = [
        f"platforms: {name!r}: unknown; known: {known}"
        for name in platforms
        if name not in PLATFORMS
    ]
    if not platforms:
        problems.append(f"platforms: required at least one of {known}")
    if weights not in WEIGHTS:
        problems.append(f"weights: required beside or inside, got {weights!r}")
    return problems


def _exported(
    model: Model, component: str, sizes: Sizes, platforms: Sequence[str], weights: str
) -> tuple[Any, Trailer]:
    """Return one function's export, and what is to be kept beside it."""
    program, impl = model.program, None
    arrays, types = split(named_leaves(model.params))
    given = arrays if weights == "beside" else {}
    avals = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in given.items()}
    run = model._run()
    fixed = [None if leaf.is_array else leaf for leaf in model.inputs]
    found: list[tuple[Structure, list[int | None]]] = []
    with x64_scope(x64_of(program)):
        if program.random:
            impl = str(jax.random.key_impl(jax.random.key(0)))

        def flat(given: Mapping[str, Any], *leaves: Any) -> list[Any]:
            rest = list(leaves)
            key = jax.random.wrap_key_data(rest.pop(), impl=impl) if impl is not None else None
            filled = iter(rest)
            full = [next(filled) if leaf is None else leaf.value for leaf in fixed]
            held = given if weights == "beside" else arrays
            whole = join({name: held[name] for name in arrays}, types)
            params = map_leaves(lambda path, _: whole[path], model.params)
            outs = run(params, full, key)
            values, tree = jax.tree.flatten(outs)
            found[:] = [_walk(program.finish(jax.tree.unflatten(tree, range(len(values)))))]
            return values

        made = _lowered(flat, avals, sizes, impl, platforms, component)
    signature = model.signature
    kept = iter(sizes.leaves)
    leaves = tuple(next(kept) if leaf.is_array else leaf for leaf in signature.leaves)
    signature = Signature(
        signature.names, signature.positional, signature.structures, leaves, sizes.ranges
    )
    trailer = Trailer(
        component=component,
        signature=signature.to_json(),
        outputs=found[0][0].to_json(),
        order=found[0][1],
        x64=x64_of(program),
        key_impl=impl,
        platforms=list(made.platforms),
    )
    return made, trailer


def _walk(value: Any) -> tuple[Structure, list[int | None]]:
    """Return the structure of a result, and for each of its leaves which output it is.

    ``value`` holds the numbers of the outputs in their place; None stays None. A pytree of
    another class comes back as a tuple of its leaves.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return LEAF, [value]
    if isinstance(value, Output):
        return _node("record", value._name, list(value), list(value.to_tuple()))
    if isinstance(value, Mapping):
        return _node("dict", "", list(value), list(value.values()))
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        return _node("namedtuple", type(value).__name__, list(fields), list(value))
    if isinstance(value, (tuple, list)):
        return _node("tuple" if isinstance(value, tuple) else "list", "", [], list(value))
    return _node("tuple", "", [], jax.tree.leaves(value))


def _node(
    kind: str, name: str, keys: Sequence[Any], values: Sequence[Any]
) -> tuple[Structure, list[int | None]]:
    pairs = [_walk(value) for value in values]
    children = tuple(structure for structure, _ in pairs)
    return Structure(kind, children, tuple(keys), name), [n for _, order in pairs for n in order]


def _lowered(
    flat: Any,
    params: Mapping[str, Any],
    sizes: Sizes,
    impl: str | None,
    platforms: Sequence[str],
    component: str,
) -> Any:
    """Trace and lower; what fails is tried again in parts, to say which size or platform."""
    try:
        return _try(flat, params, sizes.structs(), impl, platforms)
    except Exception as error:  # whatever the function's own code raises
        reason, cause = _reason(error), error
    what = "" if component == "model" else f"{component}: "
    if fault := _fault(flat, params, sizes, impl, []):
        raise ExportError(f"{what}this function cannot be traced: {fault}") from cause
    each = {name: _fault(flat, params, sizes, impl, [name]) for name in sizes.dynamic}
    fails = [f"{name}: {fault}" for name, fault in each.items() if fault]
    if not fails and _fault(flat, params, sizes, impl, sizes.dynamic):
        fails = [f"{' and '.join(sizes.dynamic)} together: {reason}"]
    if fails:
        works = [name for name, fault in each.items() if not fault]
        advice = (
            "Give it a number (inputs=, sizes=, --size) and export a file for each, or compile "
            "with buckets."
        )
        if works and len(works) < len(each):
            advice = f"{', '.join(works)} alone can stay open. {advice}"
        raise ExportError(listing(f"{what}sizes that cannot stay open:", fails, advice)) from cause
    faults = []
    for platform in platforms:
        try:
            _try(flat, params, sizes.structs(), impl, [platform])
        except Exception as error:
            faults.append(f"{platform}: {_reason(error)}")
    if not faults:
        faults = [f"{', '.join(platforms)} together: {reason}"]
    advice = "Leave these platforms out, or change what they cannot run."
    raise ExportError(listing(f"{what}cannot be exported for:", faults, advice)) from cause


def _fault(
    flat: Any, params: Mapping[str, Any], sizes: Sizes, impl: str | None, names: Sequence[str]
) -> str:
    """Return why the function cannot be traced with some sizes open; empty if it can."""
    try:
        jax.eval_shape(flat, params, *_with_key(sizes.structs(names), impl))
    except Exception as error:  # whatever the function's own code raises
        return _reason(error)
    return ""


def _try(
    flat: Any,
    params: Mapping[str, Any],
    structs: Sequence[Any],
    impl: str | None,
    platforms: Sequence[str],
) -> Any:
    return jax.export.export(jax.jit(flat), platforms=list(platforms))(
        dict(params), *_with_key(structs, impl)
    )


def _with_key(structs: Sequence[Any], impl: str | None) -> list[Any]:
    if impl is None:
        return list(structs)
    data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl)))
    return [*structs, jax.ShapeDtypeStruct(data.shape, data.dtype)]


def _reason(error: BaseException) -> str:
    """Return the kind of an exception and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else ''}"


# Reading.


@dataclasses.dataclass(frozen=True, eq=False)
class ExportProgram(StableHLOProgram):
    """A function read by ``load_export``: sizes may be open, and it may take a random key.

    Attributes:
      x64: whether it computes in 64 bits.
      key_impl: of the random key that it takes; None: it takes none.
      order: for each leaf of the result the output that it is, or None; empty: in order.
    """

    x64: bool = False
    key_impl: str | None = None
    order: tuple[int | None, ...] = ()

    @property
    def random(self) -> bool:
        """Whether it takes a random key."""
        return self.key_impl is not None

    def run(self, params: Any, leaves: Sequence[Any], rng_key: Any = None) -> Any:
        """Call the exported function, at any sizes that it has open.

        Raises:
          InputError: it was not exported for the platform that JAX runs on here.
        """
        given = [
            value
            for spec, value in zip(self.signature.leaves, leaves, strict=True)
            if spec.is_array
        ]
        if self.key_impl is not None:
            impl = str(jax.random.key_impl(rng_key))
            if impl != self.key_impl:
                raise InputError(
                    f"this export takes a key of {self.key_impl}, got one of {impl}: "
                    f"jax.random.key(0, impl={self.key_impl!r})"
                )
            given.append(jax.random.key_data(rng_key))
        return super().run(params, given)

    def finish(self, flat: Any) -> Any:
        """Give the flat outputs the structure that the model returned."""
        leaves = [None if place is None else flat[place] for place in self.order]
        return self.outputs.unflatten(iter(leaves))

    def to_json(self) -> dict[str, Any]:
        """Return what a model directory keeps.

        Raises:
          ArtefactError: a directory does not keep that it computes in 64 bits or takes a key.
        """
        if self.x64 or self.random or list(self.order) != list(range(len(self.order))):
            raise ArtefactError(
                "this export computes in 64 bits, takes a random key, or returns None among its "
                "outputs: it is kept as its file; save the model that it was made of"
            )
        return super().to_json()


def load_export(path: Any, *, check: bool = True) -> Model:
    """Read what ``export`` has written, and check it first.

    Args:
      path: ``m.stablehlo``; the weights are found beside it.
      check: compare the digest of the weights (reads them once); that of the function always is.

    Returns:
      A Model: call it with the inputs of the model that was exported. It is compiled at the
      first call of each combination of sizes.

    Raises:
      ArtefactError: missing, cut short, changed, of another kind, too old or too new for this
        JAX, or with other weights than it was written with.

    Example::

        y = ji.load_export("m.stablehlo")(x)
    """
    data, trailer, arrays, path = read(Path(path), check)
    try:
        program = ExportProgram(
            Signature.from_json(trailer.signature),
            Structure.from_json(trailer.outputs),
            data,
            trailer.x64,
            trailer.key_impl,
            tuple(trailer.order),
        )
        _require_order(program)
    except JaxinferError:
        raise
    except Exception as error:  # the flatbuffer parser raises whatever the bytes lead it to
        raise ArtefactError(
            f"{path}: not readable by JAX {jax.__version__}; it was exported on "
            f"{trailer.date} by JAX {trailer.jax}. JAX reads exports of the last six months, and "
            f"of versions up to three weeks newer; export the model again. ({_reason(error)})"
        ) from error
    exported: Any = program._exported  # pyright: ignore[reportAttributeAccessIssue]
    _require_same(path, exported, arrays)
    with x64_scope(trailer.x64):
        params = {name: jax.numpy.asarray(arrays[name]) for name in arrays}
    source = {"source": f"export {Path(path).name}", "exported": trailer.facts()}
    return Model(program, params, provenance=source)


def _require_order(program: ExportProgram) -> None:
    """Raise ValueError if the outputs are not those of the function."""
    exported: Any = program._exported  # pyright: ignore[reportAttributeAccessIssue]
    held = sorted(place for place in program.order if place is not None)
    if held != list(range(len(exported.out_avals))):
        raise ValueError(f"outputs {held}, of {len(exported.out_avals)}")
    if len(program.outputs.paths()) != len(program.order):
        raise ValueError("the structure of the outputs has another number of leaves")


def _require_same(path: Path, exported: Any, arrays: Mapping[str, Any]) -> None:
    """Raise ArtefactError unless the weights are those that the function takes."""
    (params, *_), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    faults = [f"{name}: missing" for name in params if name not in arrays]
    faults += [f"{name}: not a parameter" for name in arrays if name not in params]
    for name, aval in params.items():
        if name in arrays:
            got, want = arrays[name], (tuple(aval.shape), dtypes.dtype_of(str(aval.dtype)))
            if (tuple(got.shape), got.dtype) != want:
                faults.append(f"{name}: required {aval.str_short()}, got {got.dtype}{got.shape}")
    if faults:
        raise ArtefactError(listing(f"{path}: weights that do not fit the function:", faults))


__all__ = ("ExportError", "ExportReport", "LeafSpec", "export", "load_export")
