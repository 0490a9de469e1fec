"""Whether a row of a result depends on other rows: tested on random inputs.

A pipeline computes micro-batches, and pads the last one, so rows must not see each other: no
normalization over the batch, no running sum along it, no ``arange`` over its rows. Three runs
of the compiled stages tell, for random inputs x (rows) and z:

    f(x)[i] == f(rows of x in another order)[where i went]
    f(x)[0] == f(x with every row but the first from z)[0]

A test, no proof: a dependence that these inputs do not show is not found. Integers are drawn
from {0, 1}, which are valid ids and masks; floats from a normal distribution. A micro-batch of
one row has nothing to test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.program import x64_of

if TYPE_CHECKING:
    from jaxinfer.compile.pipeline import Pipeline

TOLERANCE = 1e-3
"""Largest difference, relative to the largest value. The same executable computes both sides;
a row's place may choose another kernel for the remainder, which rounds differently (about
1e-6). Types of less precision: their own eps times 8."""


def check_rows(pipe: Pipeline, seed: int = 0) -> str:
    """Return how it was tested that rows do not depend on each other.

    Raises:
      InputError: they do; the results are named.
    """
    size = pipe.microbatch
    if size == 1:
        return "micro-batches of one row, nothing to test"
    rng = np.random.default_rng(seed)
    with x64_scope(x64_of(pipe.model.program)):
        structs, axes = pipe.inputs.structs(size), pipe.inputs.axes
    first = [_draw(rng, s) for s in structs]
    others = [_draw(rng, s) for s in structs]
    order = np.roll(np.arange(size), 1)
    mixed = [
        x if axis is None else _keep_first(x, z, axis)
        for x, z, axis in zip(first, others, axes, strict=True)
    ]
    moved = [
        x if axis is None else np.take(x, order, axis) for x, axis in zip(first, axes, strict=True)
    ]
    base, other, rolled = (_results(pipe, arrays) for arrays in (first, mixed, moved))
    faults = []
    for number, axis in enumerate(pipe.axes):
        a, b, c = (np.moveaxis(_wide(r[number]), axis, 0) for r in (base, other, rolled))
        tolerance = _tolerance(base[number].dtype)
        worst = max(_distance(a[:1], b[:1]), _distance(a[order], c))
        if worst > tolerance:
            faults.append(f"result {number}: a row changes by {worst:.1e} of the largest value")
    if faults:
        raise InputError(
            listing(
                "pipeline: rows of a batch depend on each other, so micro-batches would give "
                "other results than the whole batch:",
                faults,
                "check=False cuts the model all the same.",
            )
        )
    return "tested on random inputs that they do not depend on each other"


def _results(pipe: Pipeline, arrays: Sequence[Any]) -> list[Any]:
    with x64_scope(x64_of(pipe.model.program)):
        return pipe._flat(arrays, pipe.microbatch)


def _draw(rng: np.random.Generator, struct: Any) -> Any:
    kind = dtypes.kind(struct.dtype)
    if kind in ("integer", "bool"):
        return rng.integers(0, 2, struct.shape).astype(struct.dtype)
    return rng.standard_normal(struct.shape).astype(struct.dtype)


def _keep_first(x: Any, z: Any, axis: int) -> Any:
    mixed = np.array(z)
    at = (*(slice(None),) * axis, slice(0, 1))
    mixed[at] = x[at]
    return mixed


def _wide(array: Any) -> Any:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _distance(a: Any, b: Any) -> float:
    """Return max |a - b| relative to max |a|; NaN and infinity match themselves."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0)) or 1.0
    gap = np.abs(a - b)[~same]
    return float(np.nan_to_num(gap, nan=np.inf).max()) / scale


def _tolerance(dtype: Any) -> float:
    if dtype.kind in "iub":
        return TOLERANCE
    return max(TOLERANCE, 8 * float(jax.numpy.finfo(dtype).eps))
