"""A metric that the user wrote: joined data for it, and checks that it can judge at all."""

from __future__ import annotations

import math
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.core.arrays import from_torch_tensor, is_torch_tensor
from jaxinfer.core.errors import InputError, JaxinferError
from jaxinfer.tune._data_set import Dataset, shapes_of

RELATIVE = 1e-9
ROUNDING = 2.0**-18
"""Of float32 sums in another order: 32 units in the last place."""


class MetricError(JaxinferError, ValueError):
    """A candidate's results cannot be judged: not finite, of other shapes, or the metric fails."""


class _Group(NamedTuple):
    """Calls whose samples have equal shapes.

    Attributes:
      calls: their places.
      batch: inputs by name and extras, of all their samples.
      rows: extras in it that have a row for each sample.
      size: how many samples.
    """

    calls: list[int]
    batch: dict[str, Any]
    rows: frozenset[str]
    size: int


class UserMetric:
    """Calls ``metric(outputs, batch)`` on all samples at once."""

    def __init__(
        self,
        metric: Callable[..., Any],
        dataset: Dataset,
        finish: Callable[[Sequence[Any]], Any],
    ):
        self.metric, self.name = metric, name_of(metric)
        self._dataset, self._finish = dataset, finish
        self._title = f"metric {self.name}".replace("metric metric", "metric")
        self._groups: list[_Group] | None = None

    def __call__(self, outputs: Sequence[Sequence[np.ndarray]]) -> float:
        """Return the metric of a candidate's results.

        Raises:
          MetricError: it fails, or returns no finite number.
        """
        try:
            return self._value(outputs)
        except InputError as error:
            raise MetricError(str(error)) from error

    def checked(self, outputs: Sequence[Sequence[np.ndarray]], seed: int) -> float:
        """Return the metric of the reference's results, once it has proven that it can judge.

        Raises:
          InputError: it raises, returns no finite number, changes its arguments, is not the same
            twice, or depends on the order of the samples.
        """
        value = self._value(outputs, watch=True)
        allowed = RELATIVE * abs(value) + ROUNDING * max(abs(value), _rounding_scale(outputs))
        again = self._value(outputs)
        if abs(again - value) > allowed:
            raise InputError(
                f"{self._title}: is {value!r} and then {again!r} of the same results: "
                "it keeps a state or draws random numbers; give one that does neither"
            )
        orders = ("reversed", "shuffled") if self._dataset.sampled else ()
        for order in orders:
            other = self._value(outputs, order=order, seed=seed)
            if abs(other - value) > allowed:
                raise InputError(
                    f"{self._title}: depends on the order of the samples: {value!r}, and "
                    f"{other!r} with the samples {order} (results and batch alike); candidates "
                    "may run in batches of other sizes, so it must not"
                )
        return value

    def _value(
        self,
        outputs: Sequence[Sequence[np.ndarray]],
        *,
        order: str = "",
        seed: int = 0,
        watch: bool = False,
    ) -> float:
        """Return the mean over groups, weighted by samples."""
        total = count = 0.0
        for group in self._joined(outputs):
            outs = [
                _plain(np.concatenate(parts) if self._dataset.sampled else parts[0].copy())
                for parts in zip(*(outputs[i] for i in group.calls), strict=True)
            ]
            batch = dict(group.batch)
            if order:
                rows = _order(group.size, order, seed)
                outs = [out[rows] for out in outs]
                batch = {name: self._turned(group, name, rows) for name in batch}
            before = _prints(outs, batch) if watch else None
            value = self._call(outs, batch)
            if watch and (changed := _changed(before, _prints(outs, batch))):
                raise InputError(
                    f"{self._title}: changes what it is given ({changed}); copy it first"
                )
            total += value * group.size
            count += group.size
        return total / count

    def _turned(self, group: _Group, name: str, rows: np.ndarray) -> Any:
        value = group.batch[name]
        if name in group.rows:
            return value[rows]
        if name not in self._dataset.signature.names:
            return value
        return jax.tree.map(lambda leaf: leaf[rows] if _is_rows(leaf) else leaf, value)

    def _call(self, outs: Sequence[np.ndarray], batch: dict[str, Any]) -> float:
        try:
            result = self.metric(self._finish(outs), batch)
        except Exception as error:  # whatever the user's function raises
            line = _line(self.metric, error)
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{self._title}: {what}\n  {line}") from error
        value = number(result)
        if value is None:
            raise InputError(
                f"{self._title}: required a number, got {_brief(result)}; return one float "
                "for all samples, higher is better"
            )
        if not math.isfinite(value):
            raise InputError(f"{self._title}: required a finite number, got {value}")
        return value

    def _joined(self, outputs: Sequence[Sequence[np.ndarray]]) -> list[_Group]:
        if self._groups is None:
            self._groups = self._grouped(outputs)
        return self._groups

    def _grouped(self, outputs: Sequence[Sequence[np.ndarray]]) -> list[_Group]:
        calls = self._dataset.calls
        if not self._dataset.sampled:
            return [
                _Group(
                    [place],
                    {**self._dataset.arguments(_copies(call.arrays)), **call.extras},
                    frozenset(),
                    1,
                )
                for place, call in enumerate(calls)
            ]
        places: dict[Any, list[int]] = {}
        rows = frozenset(self._dataset.by_sample)
        for place, (call, outs) in enumerate(zip(calls, outputs, strict=True)):
            shapes = [out.shape[1:] for out in outs]
            shapes += [np.shape(call.extras[name])[1:] for name in sorted(rows)]
            places.setdefault((shapes_of(call, rows=False), *shapes), []).append(place)
        return [self._group(found, rows) for found in places.values()]

    def _group(self, places: list[int], rows: frozenset[str]) -> _Group:
        calls = [self._dataset.calls[place] for place in places]

        def joined(parts: list[np.ndarray]) -> np.ndarray:
            cut = [part[: call.size] for part, call in zip(parts, calls, strict=True)]
            return np.concatenate(cut)  # a copy also of one: the user's own arrays stay as they are

        arrays = [joined(list(parts)) for parts in zip(*(c.arrays for c in calls), strict=True)]
        extras = {
            name: joined([call.extras[name] for call in calls]) if name in rows else value
            for name, value in calls[0].extras.items()
        }
        batch = {**self._dataset.arguments(arrays), **extras}
        return _Group(places, batch, rows, sum(call.size for call in calls))


def name_of(metric: Any) -> str:
    """Return the name of a metric for tables."""
    inner = getattr(metric, "func", metric)  # of functools.partial
    name = str(getattr(inner, "__name__", type(inner).__name__))
    return "metric" if name == "<lambda>" else name


def number(value: Any) -> float | None:
    """Return a number or an array of one element as a float; None if it is neither.

    >>> import numpy as np
    >>> number(np.float32([0.5])), number([1.0, 2.0]), number("0.5"), number(None)
    (0.5, None, None, None)
    """
    if isinstance(value, (str, bytes)) or value is None:
        return None
    try:
        array = np.asarray(from_torch_tensor(value) if is_torch_tensor(value) else value)
        if array.size != 1 or array.dtype.kind in "cSUmM" or isinstance(value, (Mapping, set)):
            return None
        return float(array.reshape(())[()])
    except (TypeError, ValueError):
        return None


def _copies(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [array.copy() for array in arrays]


def _plain(array: np.ndarray) -> np.ndarray:
    """Return half types in float32: numpy itself knows few functions on them."""
    floats = array.dtype.type.__module__ == "ml_dtypes" or array.dtype == np.float16
    return array.astype(np.float32) if floats else array


def _is_rows(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.ndim > 0


def _order(count: int, order: str, seed: int) -> np.ndarray:
    if order == "reversed":
        return np.arange(count)[::-1].copy()
    return np.random.default_rng(seed).permutation(count)


def _rounding_scale(outputs: Sequence[Sequence[np.ndarray]]) -> float:
    """Return 1/100 of the largest finite float result: sums of such values cancel to any value."""
    largest = 0.0
    for call in outputs:
        for out in call:
            if out.dtype.kind in "fV" and out.size:
                wide = np.abs(out.astype(np.float64))
                largest = max(largest, float(np.where(np.isfinite(wide), wide, 0).max()))
    return largest / 100


def _prints(outs: Sequence[np.ndarray], batch: Mapping[str, Any]) -> dict[str, int]:
    """Return a checksum of each array that a metric is given."""
    named = {f"outputs {place}": out for place, out in enumerate(outs)}
    for name, value in batch.items():
        flat = jax.tree_util.tree_flatten_with_path(value)[0]
        named.update({name + jax.tree_util.keystr(path): leaf for path, leaf in flat})
    return {
        name: zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data)
        for name, leaf in named.items()
        if isinstance(leaf, np.ndarray) and leaf.size and leaf.dtype.kind != "O" and leaf.ndim
    }


def _changed(before: Mapping[str, int] | None, after: Mapping[str, int]) -> str:
    return ", ".join(name for name, value in after.items() if (before or {}).get(name) != value)


def _line(metric: Any, error: BaseException) -> str:
    """Return the line of the user's metric that failed."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    inner = getattr(metric, "func", metric)
    function = inner if hasattr(inner, "__code__") else vars(type(inner)).get("__call__")
    code = getattr(function, "__code__", None)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    if not own and not frames:
        return "(it cannot be called with (outputs, batch))"
    frame = own[-1] if own else frames[0]
    return f"{frame.filename}:{frame.lineno} ({frame.name}): {frame.line or ''}".rstrip()


def _brief(value: Any) -> str:
    shape = getattr(value, "shape", None)
    text = type(value).__name__
    return f"{text} of shape {list(shape)}" if shape is not None else f"{text} {str(value)[:60]!r}"
