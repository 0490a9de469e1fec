"""Compares a model's outputs with the original's, and says where they differ most.

For outputs a (wanted) and b (got), over positions where both are finite:

    max_abs = max |a - b|
    max_rel = max |a - b| / max(|a|, sqrt(eps) * max|a|)

eps is that of a's dtype; the floor keeps rounding near zero from reading as a relative error
of 1. NaN must meet NaN, and an infinity the same infinity; other positions are counted as
mismatches. An output passes if it has the wanted shape and kind of dtype, no mismatch, and

    max_abs <= tolerance * max(1, max|a|)

with the tolerance of ``tolerance_for``. Integers and bools must be equal. Differences are
computed in float64 (complex128).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import ml_dtypes
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import InputError, ParityError, listing
from jaxinfer.core.program import param_names

if TYPE_CHECKING:
    from jaxinfer.core.frontend import Source
    from jaxinfer.core.model import Model

TOLERANCES = {
    # Two orderings of the same float32 sums in a deep network differ by 1e-6 to 1e-5 of the
    # largest value; a wrong kernel, mask or constant by 1e-2 and more.
    "float32": 1e-4,
    "float64": 1e-4,  # computed in float32 while x64 is off
    "complex64": 1e-4,
    "complex128": 1e-4,
    "float16": 8 * 2**-10,  # 8 eps: one rounding a layer, at other places than torch's
    "bfloat16": 8 * 2**-7,
}
_FLOAT8 = 0.25  # float8 and narrower: the spacing of the format itself


def tolerance_for(dtype: str) -> float:
    """Return the default tolerance for outputs of a dtype; integers and bools have 0.

    >>> tolerance_for("float32"), tolerance_for("bfloat16"), tolerance_for("int64")
    (0.0001, 0.0625, 0.0)
    """
    if dtypes.kind(dtypes.dtype_of(dtype)) in ("integer", "bool"):
        return 0.0
    return TOLERANCES.get(dtype, _FLOAT8)


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How one output differs from what was wanted.

    Attributes:
      path: the output's path, for example ``last_hidden_state``.
      shape, dtype: of what was wanted.
      max_abs: largest absolute difference (infinite if the shapes differ).
      max_rel: largest relative difference, as defined above.
      worst: index of the largest absolute difference, or of the first mismatch.
      mismatches: positions where one side is NaN or infinite and the other is not the same.
      scale: max(1, largest finite magnitude wanted).
      tolerance: what ``max_abs / scale`` may be.
      compared: whether numbers were compared, not only shape and dtype.
      problem: what is wrong other than by a number; empty if nothing.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    worst: tuple[int, ...] = ()
    mismatches: int = 0
    scale: float = 1.0
    tolerance: float = 0.0
    compared: bool = True
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the output passes."""
        within = self.max_abs <= self.tolerance * self.scale
        return within and not self.problem and not self.mismatches

    def __str__(self) -> str:
        name = f"{self.path}: {self.dtype}[{', '.join(map(str, self.shape))}]"
        if self.problem:
            return f"{name}: {self.problem}"
        text = f"{name}: largest absolute error {self.max_abs:.3g}, relative {self.max_rel:.3g}"
        if self.mismatches:
            text += f"; {self.mismatches} positions differ in being NaN or infinite"
        if not self.ok:
            text += (
                f", at index {list(self.worst)} (allowed: {self.tolerance:.3g} x {self.scale:.3g})"
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; numbers that JSON lacks become text."""
        data = dataclasses.asdict(self) | {"ok": self.ok}
        data |= {"shape": list(self.shape), "worst": list(self.worst)}
        return {
            key: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in data.items()
        }


def compare(
    want: Sequence[Any],
    got: Sequence[Any],
    paths: Sequence[str] | None = None,
    *,
    tolerance: float | None = None,
    values: bool = True,
) -> list[OutputError]:
    """Compare two lists of arrays, one by one.

    Args:
      want: what the original gave.
      got: what is to be judged, in the same order.
      paths: names for the reports (default: the positions).
      tolerance: for all inexact outputs, in place of ``tolerance_for``.
      values: false compares shapes and dtypes only (for models that sample).

    Raises:
      ParityError: the numbers of outputs differ.
    """
    if len(want) != len(got):
        raise ParityError(f"required {len(want)} outputs, got {len(got)}")
    paths = [str(index) for index in range(len(want))] if paths is None else paths
    return [
        _compare(np.asarray(a), np.asarray(b), path, tolerance, values)
        for a, b, path in zip(want, got, paths, strict=True)
    ]


def _compare(
    want: np.ndarray, got: np.ndarray, path: str, tolerance: float | None, values: bool
) -> OutputError:
    kind = dtypes.kind(want.dtype)
    exact = kind in ("integer", "bool")
    allowed = tolerance_for(want.dtype.name) if exact or tolerance is None else tolerance
    report = OutputError(path, tuple(want.shape), want.dtype.name, tolerance=allowed)
    if got.shape != want.shape or dtypes.kind(got.dtype) != kind:
        text = f"got {got.dtype.name}[{', '.join(map(str, got.shape))}]"
        return dataclasses.replace(report, problem=text, max_abs=math.inf, max_rel=math.inf)
    if not values:
        return dataclasses.replace(report, compared=False)
    if not want.size:
        return report
    wide: Any = np.complex128 if kind == "complex" else np.float64
    a, b = want.astype(wide), got.astype(wide)
    same = want == got if exact else (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    wrong = ~same & ~finite
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(finite & ~same, np.abs(a - b), 0.0)
        if exact:  # 64-bit integers beyond 2**53 may differ by less than float64 shows
            difference = np.where(same, 0.0, np.maximum(difference, 1.0))
    magnitude = np.where(np.isfinite(a), np.abs(a), 0.0)
    largest = float(magnitude.max())
    floor = math.sqrt(_eps(want.dtype)) * largest or 1.0
    index = int(np.argmax(wrong) if wrong.any() else np.argmax(difference))
    return dataclasses.replace(
        report,
        max_abs=float(difference.max()),
        max_rel=float((difference / np.maximum(magnitude, floor)).max()),
        worst=tuple(int(i) for i in np.unravel_index(index, want.shape)),
        mismatches=int(wrong.sum()),
        scale=max(1.0, largest),
    )


def _eps(dtype: np.dtype) -> float:
    """Return the spacing at 1 of a float dtype as JAX computes it; 0 for integers."""
    if dtypes.kind(dtype) in ("integer", "bool"):
        return 0.0
    return float(ml_dtypes.finfo(dtypes.canonical(dtype.name)).eps)


@dataclasses.dataclass(frozen=True)
class Report:
    """A model held against its original on several random inputs.

    Attributes:
      seeds: of the random inputs.
      outputs: one entry for each output, with its largest errors over all seeds.
      notes: what could not be compared.
    """

    seeds: tuple[int, ...]
    outputs: tuple[OutputError, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every output passes."""
        return all(output.ok for output in self.outputs)

    @property
    def compared(self) -> bool:
        """Whether numbers were compared, not only shapes and dtypes."""
        return all(output.compared for output in self.outputs)

    @property
    def max_abs(self) -> float:
        """Largest absolute error of any output."""
        return max((output.max_abs for output in self.outputs), default=0.0)

    @property
    def max_rel(self) -> float:
        """Largest relative error of any output."""
        return max((output.max_rel for output in self.outputs), default=0.0)

    def check(self) -> None:
        """Raise if an output does not pass.

        Raises:
          ParityError: every output that does not, with its errors and where they are worst.
        """
        failed = [str(output) for output in self.outputs if not output.ok]
        if failed:
            raise ParityError(
                listing(
                    f"{len(failed)} of {len(self.outputs)} outputs are not the original's:", failed
                )
            )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        worst = {"max_abs": self.max_abs, "max_rel": self.max_rel}
        return {
            "ok": self.ok,
            "compared": self.compared,
            **{k: v if math.isfinite(v) else repr(v) for k, v in worst.items()},
            "seeds": list(self.seeds),
            "outputs": [output.to_json() for output in self.outputs],
            "notes": list(self.notes),
        }


def prove(
    model: Model, source: Source, seeds: Sequence[int] = (0, 1), *, tolerance: float | None = None
) -> Report:
    """Run a model and its original on the same random inputs, once for each seed.

    A model that samples is compared in shapes and dtypes only; new state only where the
    source's reference returns it. Both are said in the report's notes.
    """
    worst: dict[str, OutputError] = {}
    notes: dict[str, None] = {}
    for seed in seeds:
        args, kwargs = source.examples(seed)
        key = jax.random.key(seed) if model.program.random else None
        state = _state_names(model)
        want = source.reference(args, kwargs, state)
        want = [_in_order(x, place, model, "output_perms") for place, x in enumerate(want)]
        args, kwargs = _as_model_takes(model, args, kwargs)
        got = outputs_of(model, model(*args, rng_key=key, **kwargs))
        if state and len(want) == len(got) - len(state):
            got = dict(list(got.items())[: len(want)])
            notes["the new state of buffers was not compared: the source returns none"] = None
        if model.program.random:
            notes["the model samples: shapes and dtypes were compared, not numbers"] = None
        paths, values = list(got), list(got.values())
        for error in compare(
            want, values, paths, tolerance=tolerance, values=not model.program.random
        ):
            old = worst.get(error.path, error)
            worst[error.path] = _worse(old, error)
    return Report(tuple(seeds), tuple(worst.values()), tuple(notes))


def _as_model_takes(model: Model, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Return the original's inputs with the axes in the model's own order (NHWC)."""
    if not getattr(model.program, "input_perms", None):
        return args, kwargs
    signature = model.signature
    leaves = enumerate(signature.flatten(args, kwargs))
    turned = iter([_in_order(leaf, place, model, "input_perms") for place, leaf in leaves])
    return tuple(structure.unflatten(turned) for structure in signature.structures), {}


def _in_order(value: Any, place: int, model: Model, which: str) -> Any:
    perm = getattr(model.program, which, {}).get(place)
    return value if perm is None else np.transpose(value, perm)


def _worse(a: OutputError, b: OutputError) -> OutputError:
    """Return the worse of two, with the largest relative error of both."""
    rank = lambda e: (not e.ok, e.mismatches, e.max_abs / e.scale)
    return dataclasses.replace(max(a, b, key=rank), max_rel=max(a.max_rel, b.max_rel))


def _state_names(model: Model) -> tuple[str, ...]:
    return tuple(getattr(model.program, "mutates", ()))


def outputs_of(model: Model, out: Any) -> dict[str, Any]:
    """Return what a call of a model gave as a flat dict by output path, Nones left out.

    A single output is named ``output``; new state follows as ``state.<name>``.
    """
    names = _state_names(model)
    out, state = out if names else (out, {})
    structure = getattr(model.program, "outputs", None)
    if structure is None:  # a Python function: its output is any pytree
        paths = ["" if path == "value" else path for path in param_names(out)]
        leaves = jax.tree.leaves(out)
    else:
        problems: list[str] = []
        paths, leaves = structure.paths(), structure.flatten(out, "output", problems)
        if problems:
            raise InputError(listing("outputs are not of the recorded structure:", problems))
    named = [(path or "output", leaf) for path, leaf in zip(paths, leaves, strict=True)]
    named += [(f"state.{name}", state[name]) for name in names]
    if len({path for path, _ in named}) != len(named):
        raise InputError("two outputs have the same path; give the keys of the output other names")
    return {path: leaf for path, leaf in named if leaf is not None}
