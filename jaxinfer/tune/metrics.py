"""Metrics: how good results are, and how near to those of the reference; higher is better.

Similarity, in float64; ``w`` of the reference, ``g`` of a candidate:

    cosine  <w, g> / (|w| |g|) of each sample, flattened; the mean over samples
    max     largest |g - w| / largest |w|
    top1    share of rows along the last axis whose largest value is at the same place
    kl      mean of sum p log(p / q) over rows along the last axis, p = softmax(w), q = softmax(g)

``top1`` and ``kl`` are of float results whose last axis has more than one value: they are computed
whether or not those are logits, and mean something only if they are. Integers and booleans count by
the share that is equal, as ``cosine``, ``top1`` and 1 - ``max``. Of several results the worst
counts. Where the reference is infinite and the candidate has the same infinity (masked logits),
values are left out.

As metrics: ``cosine``, ``top1``, ``max`` (1 - max) and ``kl`` (-kl). A user's metric is a function
``metric(outputs, batch) -> float``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.tune._metrics_user import MetricError as MetricError
from jaxinfer.tune._metrics_user import UserMetric, name_of
from jaxinfer.tune.data import Dataset

Outputs = Sequence[Sequence[np.ndarray]]

BUILT_IN: Mapping[str, Callable[[Mapping[str, float]], float]] = {
    "cosine": lambda found: found["cosine"],
    "max": lambda found: 1.0 - found["max"],
    "top1": lambda found: found["top1"],
    "kl": lambda found: -found["kl"],
}
DROPS = ("absolute", "relative")


class Score(NamedTuple):
    """How good the results of a candidate are.

    Attributes:
      metric: higher is better.
      drop: how much lower than that of the reference, in its unit or relative to it; negative if
        higher.
      similarity: to the reference's results.
    """

    metric: float
    drop: float
    similarity: dict[str, float]


class Judge:
    """Compares results with those of the reference, by a metric.

    Attributes:
      name: of the metric.
      reference: the metric of the reference's own results.
      drop: ``absolute``: reference - metric; ``relative``: that divided by |reference|.

    A user's metric is called as ``metric(outputs, batch)``: ``outputs`` in the structure that the
    model returns, all samples along axis 0; ``batch`` a dict of all inputs by name and of the
    extras; numpy, half types as float32. Samples of different shapes cannot be put in one array:
    then it is called once for each group of equal shapes (for each call, where calls are not
    sampled), and its values are averaged by samples. A loss is returned as ``-loss``. Cost: a copy
    of the data for it, and four calls of it to begin with.

    Args:
      model: whose results they are.
      dataset: that judges.
      outputs: results of the reference, for each call (``data.run_all``).
      metric: None or a name (``cosine``, ``max``, ``top1``, ``kl``), or a function.
      drop: ``absolute`` or ``relative``.
      seed: of the order in which a user's metric must give the same value.

    Raises:
      InputError: no data or results; no such metric, or one that does not apply; a user's metric
        that raises, returns no finite number, depends on the order of samples, is not the same
        twice, or changes what it is given; a relative drop of a reference of 0.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        outputs: Outputs,
        metric: str | Callable[..., Any] | None = None,
        drop: str = "absolute",
        seed: int = 0,
    ):
        if drop not in DROPS:
            raise InputError(f"drop: required one of {', '.join(DROPS)}, got {drop!r}")
        if not dataset.calls:
            raise InputError("metric: required at least one sample that judges, got none")
        if not any(out.size for call in outputs for out in call):
            raise InputError("metric: the model has no results to compare")
        self.drop, self._want, self._sampled = drop, outputs, dataset.sampled
        self._paths = _paths(model, dataset)
        self._user: UserMetric | None = None
        own = similarity(outputs, outputs, sampled=self._sampled)
        if metric is None or isinstance(metric, str):
            self.name = metric or "cosine"
            _require_built_in(self.name, own)
            self.reference = BUILT_IN[self.name](own)
        elif callable(metric):
            self.name = name_of(metric)
            self._user = UserMetric(metric, dataset, _finish(model, dataset))
            self.reference = self._user.checked(outputs, seed)
        else:
            names = ", ".join(BUILT_IN)
            raise InputError(f"metric: required a function or one of {names}, got {metric!r}")
        if drop == "relative" and self.reference == 0:
            raise InputError(
                f"drop: the reference's {self.name} is 0, so nothing is relative to it; "
                "use drop='absolute'"
            )

    def score(self, outputs: Outputs) -> Score:
        """Return metric, drop and similarity of a candidate's results.

        Raises:
          MetricError: results that are not finite where the reference's are, or of other shapes;
            or a metric that fails on them.
        """
        self._require_finite(outputs)
        found = similarity(outputs, self._want, sampled=self._sampled)
        value = BUILT_IN[self.name](found) if self._user is None else self._user(outputs)
        if not math.isfinite(value):
            raise MetricError(f"{self.name}: is {value} of these results")
        fall = self.reference - value
        if self.drop == "relative":
            fall /= abs(self.reference)
        return Score(value, fall, found)

    def _require_finite(self, outputs: Outputs) -> None:
        sample = 0
        for got, want in zip(outputs, self._want, strict=True):
            for place, (g, w) in enumerate(zip(got, want, strict=True)):
                where = self._paths[place]
                if g.shape != w.shape:
                    shapes = f"{list(g.shape)}, required {list(w.shape)}"
                    raise MetricError(f"{where}: has shape {shapes}")
                if dtypes.kind(g.dtype) not in ("float", "complex"):
                    continue
                bad = ~np.isfinite(g)
                if not bad.any():
                    continue
                bad &= _wide(g) != _wide(w)  # an infinity that the reference has too
                if count := int(bad.sum()):
                    first = int(np.argwhere(bad)[0][0]) if self._sampled and g.ndim else 0
                    raise MetricError(
                        f"not finite: {where}: {count} of {g.size} values are NaN or infinite "
                        f"where the reference's are not ({self._unit} {sample + first})"
                    )
            sample += len(want[0]) if self._sampled else 1

    @property
    def _unit(self) -> str:
        return "sample" if self._sampled else "call"


def similarity(
    got: Outputs | Sequence[np.ndarray], want: Outputs | Sequence[np.ndarray], sampled: bool = True
) -> dict[str, float]:
    """Return how near results are to others: ``cosine``, ``max``, and ``top1``, ``kl`` of floats.

    Args:
      got, want: results of one call, or of each of several calls, on the host.
      sampled: axis 0 counts samples; else each result is one.

    Returns:
      Floats. A value that is not finite where ``want`` is gives a cosine and top1 of 0, and a max
      and kl of infinity. Without any value: a cosine of 1 and a max of 0. Cost: some copies of the
      results of one call in float64.

    Raises:
      MetricError: another number or other shapes of results.

    >>> import numpy as np
    >>> found = similarity([np.float32([[3, 4.4]])], [np.float32([[3, 4]])])
    >>> {name: round(value, 4) for name, value in found.items()}
    {'cosine': 0.999, 'max': 0.1, 'top1': 1.0, 'kl': 0.0147}
    """
    got_calls, want_calls = _calls(got), _calls(want)
    counts = [[len(call) for call in calls] for calls in (got_calls, want_calls)]
    if counts[0] != counts[1]:
        raise MetricError(f"required {counts[1]} results of each call, got {counts[0]}")
    sums = [_Sums() for _ in want_calls[0]] if want_calls else []
    for g_call, w_call in zip(got_calls, want_calls, strict=True):
        for place, (g, w) in enumerate(zip(g_call, w_call, strict=True)):
            g, w = np.asarray(g), np.asarray(w)
            if g.shape != w.shape:
                raise MetricError(
                    f"result {place}: has shape {list(g.shape)}, required {list(w.shape)}"
                )
            if w.size:
                sums[place].add(g, w, sampled)
    each = [one.found() for one in sums]
    worst = {"cosine": min, "max": max, "top1": min, "kl": max}
    found = {"cosine": 1.0, "max": 0.0}
    for name, choose in worst.items():
        if values := [one[name] for one in each if name in one]:
            found[name] = choose(values)
    return found


@dataclasses.dataclass
class _Sums:
    """What is added up of one result over all calls."""

    cosine: float = 0.0
    samples: int = 0
    difference: float = 0.0
    scale: float = 0.0
    same: int = 0  # rows of equal argmax; integers that are equal
    rows: int = 0
    kl: float = 0.0
    kl_rows: int = 0
    exact: bool = False

    def add(self, g: np.ndarray, w: np.ndarray, sampled: bool) -> None:
        if dtypes.kind(w.dtype) in ("integer", "bool"):
            self.exact = True
            self.same += int((g == w).sum())
            self.rows += w.size
            return
        g, w = _wide(g), _wide(w)
        if w.ndim > sampled and w.shape[-1] > 1 and not np.iscomplexobj(w):
            self._add_rows(g.reshape(-1, w.shape[-1]), w.reshape(-1, w.shape[-1]))
        rows = len(w) if sampled and w.ndim else 1
        g, w = g.reshape(rows, -1), w.reshape(rows, -1)
        equal = g == w
        infinite = ~np.isfinite(w) & equal
        lost = ~np.isfinite(g) & ~equal
        if infinite.any() or lost.any():
            bad = infinite | lost | ~np.isfinite(w)
            g, w = np.where(bad, 0, g), np.where(bad, 0, w)
        self.cosine += float(np.where(lost.any(1), 0.0, _cosine(g, w)).sum())
        self.samples += rows
        largest = math.inf if lost.any() else float(np.abs(g - w).max(initial=0))
        self.difference = max(self.difference, largest)
        self.scale = max(self.scale, float(np.abs(w).max(initial=0)))

    def _add_rows(self, g: np.ndarray, w: np.ndarray) -> None:
        good = ~np.isnan(g).any(1) & ~np.isnan(w).any(1)
        self.same += int(((g.argmax(1) == w.argmax(1)) & good).sum())
        self.rows += len(w)
        proper = (w.max(1) < math.inf) & (w.max(1) > -math.inf)  # a softmax of them exists
        self.kl += float(_divergence(g[proper], w[proper]).sum())
        self.kl_rows += int(proper.sum())

    def found(self) -> dict[str, float]:
        if self.exact:
            agreement = self.same / self.rows if self.rows else 1.0
            return {"cosine": agreement, "max": 1.0 - agreement, "top1": agreement}
        if not self.samples:
            return {}
        error = self.difference / self.scale if self.scale else self.difference
        found = {"cosine": self.cosine / self.samples, "max": error}
        if self.rows:
            found["top1"] = self.same / self.rows
        if self.kl_rows:
            found["kl"] = self.kl / self.kl_rows
        return found


def _cosine(g: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the cosine of the angle between rows: 1 of two zeros, 0 of one."""
    largest = [np.maximum(np.abs(x).max(1, initial=0), 1e-300)[:, None] for x in (g, w)]
    g, w = g / largest[0], w / largest[1]  # squares of large values are no infinities
    norms = np.sqrt((np.abs(g) ** 2).sum(1) * (np.abs(w) ** 2).sum(1))
    inner = (g * w.conj()).sum(1).real
    both = ~(g.any(1) | w.any(1))
    return np.where(both, 1.0, np.clip(inner / np.where(norms > 0, norms, 1.0), -1.0, 1.0))


def _divergence(g: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return KL(softmax(w) || softmax(g)) of each row, infinity where g is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        log_p, log_q = _log_softmax(w), _log_softmax(g)
        p = np.exp(log_p)
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    total = terms.sum(1)
    return np.where(np.isnan(total), math.inf, np.maximum(total, 0.0))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(1, keepdims=True)
    with np.errstate(divide="ignore"):
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _calls(outputs: Any) -> list[list[np.ndarray]]:
    calls = list(outputs)
    if calls and not isinstance(calls[0], (list, tuple)):
        return [calls]
    return [list(call) for call in calls]


def _require_built_in(name: str, own: Mapping[str, float]) -> None:
    if name not in BUILT_IN:
        raise InputError(
            f"metric: required a function or one of {', '.join(BUILT_IN)}, got {name!r}"
        )
    if name not in own:
        raise InputError(
            f"metric: {name} is of float results whose last axis has several values (logits); "
            "this model has none"
        )


def _tree(model: Model, dataset: Dataset) -> Any:
    """Return the structure of the flat results, by tracing alone."""
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in dataset.calls[0].arrays]
    with x64_scope(x64_of(model.program)):
        return jax.tree.structure(model._jitted.eval_shape(model.params, structs, None))


def _finish(model: Model, dataset: Dataset) -> Callable[[Sequence[Any]], Any]:
    tree = _tree(model, dataset)
    return lambda outs: model.program.finish(jax.tree.unflatten(tree, outs))


def _paths(model: Model, dataset: Dataset) -> list[str]:
    """Return a name for each result, in the order of the flat results."""
    tree = _tree(model, dataset)
    numbered = jax.tree.unflatten(tree, range(tree.num_leaves))
    flat = jax.tree_util.tree_flatten_with_path(model.program.finish(numbered))[0]
    names = {place: jax.tree_util.keystr(path) for path, place in flat}
    return [f"result {place}{names.get(place, '')}" for place in range(tree.num_leaves)]
