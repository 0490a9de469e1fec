"""Executables of the OpenVINO back-end: the same interface, the same checks.

Options of the back-end come in ``compiler_options``:

    quantize    calibration data: batches of the model's inputs, in a list; NNCF makes it int8
    ignore, transformer, preset, subset, fast_bias, smooth_quant: of it, see ``Quantization``
    threads     of a call
    others      OpenVINO's own properties by name

Weights are constants of each bucket, so every bucket has a copy of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.compile import aot
from jaxinfer.compile._entry import Entry
from jaxinfer.compile._flat import Flat
from jaxinfer.compile._report import BucketReport
from jaxinfer.compile._spec import Sizes, Spec
from jaxinfer.core import flops
from jaxinfer.core._compat import adopter, x64_scope
from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import InputError, MissingExtraError
from jaxinfer.core.parts import part_names
from jaxinfer.core.program import x64_of

QUANTIZATION = ("ignore", "transformer", "preset", "subset", "fast_bias", "smooth_quant")
OWN = ("quantize", "threads", *QUANTIZATION)


def build_openvino(
    flat: Flat,
    spec: Spec,
    padded: Sequence[tuple[Sizes, Any]],
    settings: aot.Settings,
    fallback: str | None,
    progress: aot.Progress | None,
) -> tuple[list[Entry] | None, list[str]]:
    """Compile every bucket with OpenVINO; returns entries, or None and why XLA is asked instead.

    Raises:
      OpenVINOUnsupported, MissingExtraError: it cannot, and there is no fallback.
    """
    from jaxinfer.compile.openvino.function import OpenVINOUnsupported, available

    try:
        if why := available():
            raise MissingExtraError(why)
        entries = []
        for number, (sizes, each) in enumerate(padded):
            entries.append(_entry(flat, spec, sizes, each, settings.options))
            if progress is not None:
                report = entries[-1].report
                progress(number + 1, len(padded), report.name, report.compile_s)
        return entries, []
    except (OpenVINOUnsupported, MissingExtraError) as error:
        if fallback != "xla":
            raise
        return None, [f"compiled with XLA (fallback='xla'), not OpenVINO: {error}"]


def _entry(flat: Flat, spec: Spec, sizes: Sizes, padded: Any, options: Mapping[str, Any]) -> Entry:
    from jaxinfer.compile.openvino.function import Quantization, compile_jaxpr

    started = time.perf_counter()
    structs = spec.structs(sizes)
    args = (
        *flat.sort(structs),
        [jax.ShapeDtypeStruct((), np.int32)] * len(padded.needs),
        flat.key_structs(),
    )
    fn = flat.function(padded)
    with x64_scope(x64_of(flat.model.program)):
        closed = jax.make_jaxpr(fn)(flat.arrays, *args)
    lower_s = time.perf_counter() - started
    own = {name: value for name, value in options.items() if name not in OWN}
    how = {name: options[name] for name in QUANTIZATION if name in options}
    quantize = None
    if options.get("quantize") is not None:
        batches = [_calibration(flat, spec, sizes, padded, batch) for batch in options["quantize"]]
        quantize = Quantization(batches, **how)
    elif how:
        raise InputError(f"compiler_options: {', '.join(how)}: of quantize, which is not given")
    started = time.perf_counter()
    made = compile_jaxpr(
        closed,
        constants=list(zip(_paths(flat), flat.arrays, strict=True)),
        threads=options.get("threads"),
        options=own or None,
        quantize=quantize,
    )
    taken, facts = time.perf_counter() - started, made.report()
    cost = flops.count(closed)
    layers = ", ".join(f"{count} {kind}" for kind, count in facts["layers"].items())
    report = BucketReport(
        sizes=dict(sizes),
        backend="openvino",
        lower_s=lower_s,
        compile_s=taken,
        argument_bytes=sum(_bytes(struct) for struct in structs),
        output_bytes=sum(_bytes(aval) for aval in closed.out_avals),
        device_bytes=facts["weight_bytes"],
        code_bytes=facts["weight_bytes"],
        flops=cost.flops,
        flops_notes=tuple(cost.notes()),
        masked=tuple(aot.plain(item) for item in padded.masked),
        notes=(f"OpenVINO runs {layers}", *_int8_notes(facts["int8"])),
    )
    return Entry(
        dict(sizes),
        tuple(struct.shape for struct in structs),
        (),
        padded.needs,
        aot.outputs_of(padded),
        Call(made),
        report,
        least=dict(padded.least),
    )


def _paths(flat: Flat) -> list[str]:
    """Return the parameter path of each parameter array; parts of an array type have one."""
    of = {f"{path}.{part}": path for path in flat.types for part in part_names(flat.types[path])}
    return [of.get(name, name) for name in flat.names]


def _int8_notes(facts: Mapping[str, Any] | None) -> list[str]:
    """Say what is int8 and what is not."""
    if facts is None:
        return []
    done, left = facts["products"]["int8"], facts["products"]["float32"]
    how = "as a transformer" if facts["transformer"] else "not as a transformer"
    notes = [
        f"int8 by NNCF ({facts['preset']}, {how}, {facts['batches']} batches): "
        f"{len(done)} of {len(done) + len(left)} products with parameters"
    ]
    for text, names in (
        ("float32 as asked", [name for name in left if name in facts["ignored"]]),
        ("float32 by NNCF's or OpenVINO's choice", [n for n in left if n not in facts["ignored"]]),
    ):
        if names:
            notes.append(f"{text}: {', '.join(names)}")
    return notes


class Call:
    """An OpenVINO function with the arguments of a flat function.

    Its results become JAX arrays that take their memory over: nobody else has it.
    """

    def __init__(self, function: Any):
        self.function = function
        self._adopt = adopter([jax.ShapeDtypeStruct(*aval) for aval in function.out_avals])

    def __call__(
        self, params: Any, inputs: Any, donated: Any, sizes: Any, key: Any
    ) -> list[jax.Array]:
        """Run on the host; parameters are inside."""
        del params
        return self._adopt(self.function([*inputs, *donated, *sizes, *key]))


def _bytes(aval: Any) -> int:
    return int(np.prod(aval.shape, dtype=int)) * np.dtype(aval.dtype).itemsize


def _calibration(
    flat: Flat, spec: Spec, sizes: Sizes, padded: Any, batch: Any
) -> list[np.ndarray[Any, Any]]:
    """Return a batch of the model's inputs as those of the compiled function: cut and padded."""
    signature = flat.model.signature
    args, kwargs = ((), batch) if isinstance(batch, Mapping) else (batch, {})
    args = args if isinstance(args, (tuple, list)) else (args,)
    values = signature.flatten(args, kwargs)
    pairs = zip(signature.leaves, values, strict=True)
    arrays = [np.asarray(as_array(v, leaf.path)) for leaf, v in pairs if leaf.is_array]
    real: dict[str, int] = {}
    made = []
    for leaf, array, struct in zip(spec.leaves, arrays, spec.structs(sizes), strict=True):
        if array.ndim != len(struct.shape):
            raise InputError(f"quantize: {leaf}: a calibration batch has shape {array.shape}")
        cut = array[tuple(map(slice, struct.shape))]
        for dim, size in zip(leaf.shape, cut.shape, strict=True):
            if isinstance(dim, str):
                real[dim] = size
        out = np.zeros(struct.shape, struct.dtype)
        out[tuple(map(slice, cut.shape))] = cut
        made.append(out)
    kept, gone = flat.sort(made)
    return [*kept, *gone, *(np.asarray(real[name], np.int32) for name in padded.needs)]
