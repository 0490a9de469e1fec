"""Executables against the reference: the model's own function, compiled plainly on one device.

    error = max |got - want| / max |want|     over the values of a result, in float64

What is compiled plainly itself (one device, no padding to mask, no options) is the reference,
and is only said to be so. Anything else (a mesh, masks, compiler options, another back-end) is
run on random inputs that do not fill the bucket, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.compile._entry import Entry
from jaxinfer.compile._flat import Flat
from jaxinfer.compile._report import name_of
from jaxinfer.compile._spec import Spec
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import has_array_types
from jaxinfer.core.errors import ParityError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of

PLAIN = "is itself the reference: one device, no masks, no options"
EXACT, ROUNDED, WIDE, INT8 = 1e-3, 5e-2, 1e-9, 0.25
"""Tolerances: float32 in another order; half types, quantized or cast models; float64; int8 that a
back-end chose by itself, which only a metric can judge: this finds nonsense."""
_MISMATCHED = 0.01  # share of integers and booleans that may differ (ties, thresholds)


def tolerance_of(model: Model) -> float:
    """Return the error that another order of sums may make."""
    leaves = jax.tree.leaves(model.params)
    names = {np.dtype(leaf.dtype).name for leaf in leaves if hasattr(leaf, "dtype")}
    names |= {leaf.dtype for leaf in model.inputs if leaf.is_array}
    floats = {n for n in names if dtypes.kind(np.dtype(dtypes.dtype_of(n))) == "float"}
    if model.rewrites or has_array_types(model.params) or floats - {"float32", "float64"}:
        return ROUNDED
    return WIDE if x64_of(model.program) and floats == {"float64"} else EXACT


def real_sizes(spec: Spec, entry: Entry) -> list[dict[str, int]]:
    """Return the sizes at which a bucket is checked: one less than it, so that rows are there.

    And the smallest that use it, the most padding, where it masks.
    """
    sizes, least = entry.sizes, {}
    for name, size in sizes.items():
        smaller = [other + 1 for other in spec.buckets[name] if other < size]
        lowest = [spec.low[name], 1, entry.least.get(name, 1), *smaller]
        least[name] = min(size, max(lowest))
    nearly = {name: max(least[name], size - 1) for name, size in sizes.items()}
    return [nearly, least] if entry.needs and least != nearly else [nearly]


def random_inputs(spec: Spec, sizes: Mapping[str, int], seed: int = 0) -> list[np.ndarray]:
    """Return normal floats, and integers and booleans of 0 and 1."""
    rng = np.random.default_rng(seed)
    made = []
    for struct in spec.structs(sizes):
        kind = dtypes.kind(struct.dtype)
        if kind in ("integer", "bool"):
            made.append(rng.integers(0, 2, struct.shape).astype(struct.dtype))
        else:
            made.append(np.asarray(rng.standard_normal(struct.shape)).astype(struct.dtype))
    return made


def compare(want: Sequence[Any], got: Sequence[Any]) -> tuple[float, list[str]]:
    """Return the largest error of all results, and what is wrong apart from numbers."""
    worst, faults = 0.0, []
    for index, (w, g) in enumerate(zip(want, got, strict=True)):
        w, g = np.asarray(w), np.asarray(g)
        if w.shape != g.shape or w.dtype != g.dtype:
            wanted = f"{w.dtype.name}{list(w.shape)}"
            faults.append(f"result {index}: required {wanted}, got {g.dtype.name}{list(g.shape)}")
            continue
        if not w.size:
            continue
        if dtypes.kind(w.dtype) in ("integer", "bool"):
            share = float(np.mean(w != g))
            if share > _MISMATCHED:
                faults.append(f"result {index}: {share:.1%} of its values differ")
            continue
        wide = np.complex128 if np.iscomplexobj(w) else np.float64
        w, g = w.astype(wide), g.astype(wide)
        if not np.array_equal(np.isfinite(w), np.isfinite(g)):
            faults.append(f"result {index}: NaN or infinity in other places")
            continue
        finite = np.isfinite(w)
        difference = np.abs(np.where(finite, g - w, 0)).max()
        scale = np.abs(np.where(finite, w, 0)).max()
        worst = max(worst, float(difference / scale) if scale else float(difference))
    return worst, faults


def check_entries(
    flat: Flat,
    spec: Spec,
    entries: Sequence[Entry],
    run: Any,
    reasons: Sequence[str],
    tolerance: float | None,
) -> list[dict[str, Any]]:
    """Hold every executable against the reference; returns what the reports say.

    Args:
      flat, spec: the model, and what is compiled.
      entries: the executables.
      run: ``run(arrays) -> flat results`` by way of the executable, padded and sliced.
      reasons: why they are checked.
      tolerance: the error that is allowed; None: by the dtypes of the model.

    Raises:
      ParityError: an executable does not give the reference's numbers; all of them.
    """
    allowed = tolerance_of(flat.model) if tolerance is None else tolerance
    model = flat.model
    found, problems = [], []
    for entry in entries:
        worst, tried = 0.0, real_sizes(spec, entry)
        for sizes in tried:
            inputs = random_inputs(spec, sizes)
            with x64_scope(x64_of(model.program)):
                want = jax.tree.leaves(model._jitted(model.params, inputs, None))
            error, faults = compare(want, run(inputs))
            where = name_of(sizes) if sizes != entry.sizes else entry.report.name
            problems += [f"{where}: {fault}" for fault in faults]
            if not error <= allowed:
                problems.append(f"{where}: error {error:.2e}, allowed {allowed:g}")
            worst = max(worst, error)
        found.append(
            {
                "reference": "float32 XLA, one device, no padding",
                "because": list(reasons),
                "sizes": tried,
                "error": worst,
                "tolerance": allowed,
                "result": f"error {worst:.1e} <= {allowed:g}",
            }
        )
    if problems:
        raise ParityError(
            listing(
                f"the executable does not give the reference's numbers ({', '.join(reasons)}):",
                problems,
                "If the numbers are wanted so, give check=False or a tolerance.",
            )
        )
    return found
