"""The reference: what the model computes as it is, from two compilations that must agree.

    agreement = max |second - first| / max |first|     of each result of a call, in float64

The first compilation is plain ``jax.jit``; its results are the reference. The second has other
compiler options, so that other parts of XLA make its code: on CPUs no YNNPACK, no fusion emitters
and LLVM at level 0; on GPUs no Triton and no autotuning. A compiler that gives wrong numbers (jax
issue 39103: jaxlib 0.10.2 on CPUs) is then found before anything is measured against them. Usual is
about 1e-6: measured on jaxlib 0.10.1 (CPU), ResNet-18 5.8e-7, MobileNetV3-small 8.8e-7,
ConvNeXt-atto 8.6e-7, ViT-tiny 1.3e-6, with random weights and four batches of four images. The
issue's program on jaxlib 0.10.2 gives 7.8e-3.

On accelerators products of float32 are traced at the precision ``highest``: without it they would
be rounded to TF32 or bfloat16 on the way, which is not a float32 reference.

Limits: an error that both compilations make is not found, and the second runs some of the calls
only (``GUARDED``). The options for GPUs and TPUs were not run on such devices. A model with
half-precision parameters is its own reference, as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.compile._check import ROUNDED, tolerance_of
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError, JaxinferError, listing
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.tune._data_set import Call, Dataset, shapes_of
from jaxinfer.tune.data import run_all

GUARDED = 8
"""Calls that the second compilation runs; at least one of every shape."""
UNUSUAL = 1e-4
"""An agreement above it is said in the notes."""

_LAST = {"xla_backend_optimization_level": 0}
OPTIONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "cpu": (
        {
            "xla_cpu_experimental_ynn_fusion_type": "",
            "xla_cpu_use_fusion_emitters": False,
            "xla_backend_optimization_level": 0,
        },
        {"xla_cpu_experimental_ynn_fusion_type": "", "xla_backend_optimization_level": 0},
        {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0},
    ),
    "gpu": (
        {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0},
        {"xla_gpu_autotune_level": 0},
    ),
    "tpu": ({"exec_time_optimization_effort": -1.0},),
}
"""Options of the second compilation by platform; the first that this XLA takes."""


class DisagreementError(JaxinferError, RuntimeError):
    """Two compilations of the same model give different numbers: one of them is wrong."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Results of the model as it is.

    Attributes:
      outputs: of each call, on the host, without rows that only fill it.
      agreement: the largest difference between the two compilations, relative to the largest value
        of a result; NaN if no second compilation was possible (``notes`` say so).
      notes: the options of the second compilation, and what is unusual.
      seconds: spent.
    """

    outputs: list[list[np.ndarray]]
    agreement: float
    notes: list[str]
    seconds: float


def reference(model: Model, dataset: Dataset) -> Reference:
    """Return the results of a model as it is, that two independent compilations agree on.

    Args:
      model: as it came.
      dataset: all of whose calls are run.

    Returns:
      A Reference. Cost: two compilations for each shape of the calls, all calls by the first,
      ``GUARDED`` of them by the second (slower code).

    Raises:
      DisagreementError: the two differ by more than 1e-3 of the largest value (5e-2 for half types
        and quantized models, 1e-9 for float64), or in infinities, or in over 1 % of integers.
      InputError: results that hold NaN; or the model cannot be run, why.
    """
    start = time.perf_counter()
    notes: list[str] = []
    with x64_scope(x64_of(model.program)), _precise():
        outputs = _guarded(lambda: run_all(_plain(model), dataset))
        _require_numbers(outputs, dataset.sampled)
        chosen = _chosen(dataset)
        others, options = _second(model, dataset, chosen, notes)
        agreement = math.nan
        if others is not None:
            allowed = tolerance_of(model)
            firsts = [outputs[place] for place in chosen]
            agreement = _agreement(chosen, firsts, others, allowed, options)
            if agreement > UNUSUAL and allowed < ROUNDED:
                notes.append(f"the two compilations differ by {agreement:.1e}, which is unusual")
    notes += _half(model)
    return Reference(outputs, agreement, notes, time.perf_counter() - start)


@contextlib.contextmanager
def _precise() -> Iterator[None]:
    if jax.default_backend() == "cpu":  # float32 it is; the plain jitted model is shared
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


def _plain(model: Model) -> Callable[[list[np.ndarray]], list[Any]]:
    return lambda arrays: jax.tree.leaves(model._jitted(model.params, arrays, None))


def _guarded(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except JaxinferError:
        raise
    except Exception as error:  # whatever the function or XLA raises
        raise InputError(
            f"reference: the model cannot be run: {type(error).__name__}: {error}"
        ) from error


def _require_numbers(outputs: Sequence[Sequence[np.ndarray]], sampled: bool) -> None:
    """Raise InputError for NaN; infinities may be meant (masked logits)."""
    problems, start = [], 0
    for call in outputs:
        for place, out in enumerate(call):
            if dtypes.kind(out.dtype) not in ("float", "complex") or not np.isnan(out).any():
                continue
            nan = np.isnan(out)
            first = int(np.argwhere(nan)[0][0]) if sampled and out.ndim else 0
            where = f"{'sample' if sampled else 'call'} {start + first}"
            problems.append(f"result {place}: {int(nan.sum())} of {out.size} are NaN, from {where}")
        start += len(call[0]) if sampled and call else 1
    if problems:
        advice = "Nothing can be compared with NaN; mend the model or leave those samples out."
        shown = [
            *problems[:10],
            *([f"and {len(problems) - 10} more"] if len(problems) > 10 else []),
        ]
        raise InputError(listing("reference: the model's own results hold NaN:", shown, advice))


def _chosen(dataset: Dataset) -> list[int]:
    """Return the places of the calls that the second compilation runs."""
    firsts: dict[Any, int] = {}
    for place, call in enumerate(dataset.calls):
        firsts.setdefault(shapes_of(call), place)
    chosen = set(firsts.values())
    for place in range(len(dataset.calls)):
        if len(chosen) >= GUARDED:
            break
        chosen.add(place)
    return sorted(chosen)


def _second(
    model: Model, dataset: Dataset, chosen: Sequence[int], notes: list[str]
) -> tuple[list[list[np.ndarray]] | None, Mapping[str, Any]]:
    """Return the results of some calls by code of other options, and the options."""
    platform = jax.default_backend()
    calls = [dataset.calls[place] for place in chosen]
    refused = []
    for options in (*OPTIONS.get(platform, ()), _LAST):
        try:
            codes = _compiled(model, calls, options)
        except jax.errors.JaxRuntimeError as error:
            refused.append(f"{_text(options)}: {str(error).splitlines()[0][:200]}")
            continue
        run = lambda arrays, codes=codes: _run(codes, model, arrays)
        part = dataclasses.replace(dataset, calls=tuple(calls))
        found = _guarded(lambda run=run, part=part: run_all(run, part))
        some = (
            f", on {len(calls)} of {len(dataset.calls)} calls"
            if len(calls) < len(dataset.calls)
            else ""
        )
        notes.append(f"compared with a second compilation ({_text(options)}){some}")
        return found, options
    notes.append(f"NOT compared with a second compilation: {'; '.join(refused)}")
    return None, {}


def _compiled(model: Model, calls: Sequence[Call], options: Mapping[str, Any]) -> dict[Any, Any]:
    codes: dict[Any, Any] = {}
    for call in calls:
        if (shapes := shapes_of(call)) not in codes:
            structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in call.arrays]
            lowered = model._jitted.lower(model.params, structs, None)
            codes[shapes] = lowered.compile(compiler_options=dict(options))
    return codes


def _run(codes: Mapping[Any, Any], model: Model, arrays: list[np.ndarray]) -> list[Any]:
    code = codes[tuple(array.shape for array in arrays)]
    return jax.tree.leaves(code(model.params, arrays, None))


def _agreement(
    places: Sequence[int],
    firsts: Sequence[Sequence[np.ndarray]],
    seconds: Sequence[Sequence[np.ndarray]],
    allowed: float,
    options: Mapping[str, Any],
) -> float:
    """Return the largest difference.

    Raises:
      DisagreementError: it is larger than allowed; the worst result and call.
    """
    worst, fault, where = 0.0, "", ""
    for place, first, second in zip(places, firsts, seconds, strict=True):
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            error, text = difference(a, b)
            if error > worst:
                worst = error
                fault, where = text, f"result {index} of call {place}"
    if not worst <= allowed:
        raise DisagreementError(
            listing(
                "two compilations of this model by XLA give different numbers, so at least one is "
                "wrong, and nothing can be measured against them:",
                [
                    f"{where}: {fault}",
                    f"they differ by {worst:.1e} of the largest value; allowed {allowed:g}, usual "
                    "1e-6",
                    "first: plain jax.jit",
                    f"second: compiler options {_text(options)}",
                    f"jax {jax.__version__} on {jax.devices()[0].device_kind}",
                ],
                "`jaxinfer doctor` names versions with known errors (for example jaxlib 0.10.2 on "
                "CPUs, https://github.com/jax-ml/jax/issues/39103): use another. A model that "
                "amplifies rounding without bound cannot be judged by its results either.",
            )
        )
    return worst


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, str]:
    """Return the largest difference relative to the largest value, and where it is, in words.

    Integers: 0 if at most 1 % of them (or a single one: a tie) differ, else infinity.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf, f"{a.dtype.name}{list(a.shape)} and {b.dtype.name}{list(b.shape)}"
    if not a.size:
        return 0.0, ""
    if dtypes.kind(a.dtype) in ("integer", "bool"):
        count = int((a != b).sum())
        few = count <= max(1, a.size // 100)
        return (0.0 if few else math.inf), f"{count} of {a.size} integers differ"
    wide = np.complex128 if np.iscomplexobj(a) else np.float64
    a, b = a.astype(wide), b.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite]):
        return math.inf, "NaN or infinity in other places"
    gap = np.abs(np.where(finite, b, 0) - np.where(finite, a, 0))
    index = np.unravel_index(int(gap.argmax()), gap.shape)
    scale = float(np.abs(np.where(finite, a, 0)).max())
    error = float(gap[index]) / scale if scale else float(gap[index])
    return error, f"{a[index]:.9g} and {b[index]:.9g} at {list(map(int, index))}"


def _half(model: Model) -> list[str]:
    names = {
        np.dtype(leaf.dtype).name
        for leaf in named_leaves(model.params).values()
        if hasattr(leaf, "dtype") and dtypes.kind(np.dtype(leaf.dtype)) == "float"
    }
    half = sorted(names - {"float32", "float64"})
    if not half:
        return []
    return [f"parameters are {', '.join(half)}: the reference is the model as it is, not float32"]


def _text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
