"""Dataset: calls of a model on the host, and how samples are put together to other calls.

Arrays stay numpy and are views of what came in where that is possible; regrouping copies a sample
at most once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxinfer.core.errors import InputError
from jaxinfer.core.signature import Signature


class Call(NamedTuple):
    """One call of the model.

    Attributes:
      arrays: of the array leaves of the inputs, in the order of the signature, on the host.
      extras: what the batch holds beyond the inputs (labels), by name.
      size: samples in it that are real; rows behind them repeat samples. 1 if not sampled.
    """

    arrays: list[np.ndarray]
    extras: dict[str, Any]
    size: int


class Run(NamedTuple):
    """Neighbouring samples of one call: rows ``rows`` of call ``call``."""

    call: int
    rows: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Calls of a model, checked.

    Attributes:
      signature: of the model.
      calls: in order.
      sampled: axis 0 of every input and output, and of the extras ``by_sample``, counts samples,
        so that calls can be regrouped.
      by_sample: extras with a row for each sample; others are the same in all calls, or belong to
        a call as a whole.
      fixed: the only number of samples that a call may have; 0 if there are others.
      low, high: the least and the most samples that a call may have; None: no bound.
      notes: what was found of the data that one may want to know.
    """

    signature: Signature
    calls: tuple[Call, ...]
    sampled: bool
    by_sample: tuple[str, ...] = ()
    fixed: int = 0
    low: int = 1
    high: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many samples there are; how many calls, if they are not sampled."""
        return sum(call.size for call in self.calls) if self.sampled else len(self.calls)

    @property
    def batch(self) -> int:
        """Samples that the first call takes; 1 if calls are not sampled, 0 without calls."""
        if not self.calls:
            return 0
        return len(self.calls[0].arrays[0]) if self.sampled else 1

    @property
    def uniform(self) -> bool:
        """Whether all calls have the same shapes."""
        return len({shapes_of(call) for call in self.calls}) < 2

    def rebatch(self, n: int) -> Dataset:
        """Return the same samples in calls of exactly ``n``, in order.

        The last call of each group of equal shapes is filled by repeating its samples;
        ``Call.size`` says how many are real.

        Raises:
          InputError: calls are not sampled, or the model does not take ``n``.
        """
        if not self.sampled:
            raise InputError(f"batch {n}: {self._why_not()}")
        low, high = self.fixed or self.low, self.fixed or self.high
        if n < low or (high is not None and n > high):
            takes = f"{low} to {high or 'any number of'}" if low != high else f"exactly {low}"
            raise InputError(f"batch {n}: the model takes {takes} samples in a call")
        return self._picked([np.arange(call.size) for call in self.calls], n)

    def take(self, n: int) -> Dataset:
        """Return the first ``n`` samples; calls, if they are not sampled.

        Calls keep their number of samples, unless there are fewer and the model takes fewer.
        """
        n = max(0, n)
        if not self.sampled:
            return dataclasses.replace(self, calls=self.calls[:n])
        starts = np.cumsum([0, *(call.size for call in self.calls)])
        rows = [
            np.arange(min(call.size, max(0, n - start)))
            for call, start in zip(self.calls, starts[:-1].tolist(), strict=True)
        ]
        return self._picked(rows, self._batch_for(n))

    def pick(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Return some samples (calls, if they are not sampled), in their order in the data."""
        chosen = np.unique(np.asarray(indices, int))
        if not self.sampled:
            return dataclasses.replace(self, calls=tuple(self.calls[i] for i in chosen))
        starts = np.cumsum([0, *(call.size for call in self.calls)])
        rows = [
            chosen[(chosen >= low) & (chosen < high)] - low
            for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        ]
        return self._picked(rows, self._batch_for(len(chosen)))

    def batches(self) -> list[dict[str, Any]]:
        """Return a dict by input name for each call, with fixed values: what the model takes."""
        return [self.arguments(call.arrays) for call in self.calls]

    def arguments(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """Return arrays of the inputs, in order, as a dict by input name in their structure."""
        given = iter(arrays)
        leaves = [next(given) if spec.is_array else spec.value for spec in self.signature.leaves]
        filled = iter(leaves)
        named = zip(self.signature.names, self.signature.structures, strict=True)
        return {name: structure.unflatten(filled) for name, structure in named}

    def shapes(self, batch: int = 0, call: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array input in one call, as ``ji.compile`` takes them.

        Args:
          batch: samples; 0: as many as that call takes.
          call: which one; shapes may differ (``uniform``).

        Raises:
          InputError: there is no such call, or ``batch`` of calls that are not sampled.
        """
        if batch and not self.sampled:
            raise InputError(f"batch {batch}: {self._why_not()}")
        if not 0 <= call < len(self.calls):
            raise InputError(f"call {call}: there are {len(self.calls)}")
        paths = [spec.path for spec in self.signature.leaves if spec.is_array]
        shapes = [tuple(array.shape) for array in self.calls[call].arrays]
        return {
            path: (batch, *shape[1:]) if batch else shape
            for path, shape in zip(paths, shapes, strict=True)
        }

    def _batch_for(self, count: int) -> int:
        return self.fixed or max(self.low, min(count, self.batch))

    def _why_not(self) -> str:
        return "; ".join(("the calls of these data cannot be regrouped", *self.notes))

    def _picked(self, rows: Sequence[np.ndarray], n: int) -> Dataset:
        """Return chosen rows of each call in calls of ``n``."""
        groups: dict[Any, list[Run]] = {}
        for number, (call, chosen) in enumerate(zip(self.calls, rows, strict=True)):
            if len(chosen):
                groups.setdefault(shapes_of(call, rows=False), []).append(Run(number, chosen))
        calls = [self._made(block, n) for runs in groups.values() for block in _blocks(runs, n)]
        return dataclasses.replace(self, calls=tuple(calls))

    def _made(self, block: Sequence[Run], n: int) -> Call:
        first = self.calls[block[0].call]
        size = sum(len(run.rows) for run in block)

        def joined(get: Callable[[Call], np.ndarray]) -> np.ndarray:
            return filled([_rows(get(self.calls[run.call]), run.rows) for run in block], n)

        arrays = [joined(lambda call, i=i: call.arrays[i]) for i in range(len(first.arrays))]
        extras = {
            name: joined(lambda call, name=name: call.extras[name])
            if name in self.by_sample
            else value
            for name, value in first.extras.items()
        }
        return Call(arrays, extras, size)


def shapes_of(call: Call, rows: bool = True) -> tuple[Any, ...]:
    """Return the shapes of a call's arrays; without ``rows`` those of one sample."""
    return tuple(array.shape if rows else array.shape[1:] for array in call.arrays)


def _blocks(runs: Sequence[Run], n: int) -> list[list[Run]]:
    """Cut runs of rows in blocks of ``n`` rows; the last may have fewer."""
    blocks: list[list[Run]] = []
    room = 0
    for call, rows in runs:
        start = 0
        while start < len(rows):
            if not room:
                blocks.append([])
                room = n
            part = rows[start : start + room]
            blocks[-1].append(Run(call, part))
            room -= len(part)
            start += len(part)
    return blocks


def _rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return some rows, as a view where they follow one another."""
    first = int(rows[0])
    if len(rows) == int(rows[-1]) - first + 1:
        return array[first : first + len(rows)]
    return array[rows]


def filled(parts: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Return rows joined, and repeated from the first until there are ``n``."""
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(joined) == n:
        return joined
    return joined[np.arange(n) % len(joined)]


def same(a: Any, b: Any) -> bool:
    """Return whether two extras are equal, arrays by their values."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    try:
        first, second = np.asarray(a), np.asarray(b)
        return first.shape == second.shape and bool(np.all(first == second))
    except (TypeError, ValueError):
        return a is b
