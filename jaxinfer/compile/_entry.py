"""One compiled bucket: native code, and what its caller has to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxinfer.compile._report import BucketReport


@dataclasses.dataclass(frozen=True)
class Entry:
    """The executable of one combination of sizes.

    Attributes:
      sizes: of the bucketed dimensions.
      shapes: of the array inputs.
      shardings: of the array inputs; empty on one device.
      needs: dimensions whose real size the code reads.
      outputs: for every result and axis: None, or (dimension, scale, offset) of its real size.
      code: ``code(params, inputs, donated, sizes, key) -> results``.
      report: figures.
      payload: the serialized code, where it is XLA's.
      least: the smallest real size of a dimension for which the code holds, where it is not any.
    """

    sizes: Mapping[str, int]
    shapes: tuple[tuple[int, ...], ...]
    shardings: tuple[Any, ...]
    needs: tuple[str, ...]
    outputs: tuple[tuple[tuple[str, int, int] | None, ...], ...]
    code: Callable[..., Sequence[Any]]
    report: BucketReport
    payload: bytes | None = None
    least: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def slices(self, real: Mapping[str, int]) -> list[tuple[slice, ...] | None]:
        """Return, for every result, where the real part of it is; None: all of it."""
        found: list[tuple[slice, ...] | None] = []
        for axes in self.outputs:
            cut = any(axis and real[axis[0]] != self.sizes[axis[0]] for axis in axes)
            each = [
                slice(None) if axis is None else slice(real[axis[0]] * axis[1] + axis[2])
                for axis in axes
            ]
            found.append(tuple(each) if cut else None)
        return found
