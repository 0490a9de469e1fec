"""An inference request of OpenVINO with its memory: what a call costs beside the computation.

Giving a request other memory costs it some microseconds for each input and output. What is small
is therefore copied into memory that the request keeps, and out of it; what is large is read and
written where it is. Results are arrays of the caller's own in either case, at addresses that JAX
can take over as they are. New pages of memory cost more than copying them (the system clears
each), so memory of large results is used again once nobody has it any more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxinfer.compile.openvino.graph import writable
from jaxinfer.compile.openvino.model import Built, held_as

SMALL = 1 << 16
"""Bytes up to which an input or output is copied: that takes less than to announce other memory."""

ALIGNMENT = 64  # of memory that XLA takes without a copy
_COUNTS = getattr(sys, "_is_gil_enabled", lambda: True)()  # whether references are counted exactly


class Held(NamedTuple):
    """Memory of one result: the array that owns it, its aligned part, and OpenVINO's view."""

    owner: np.ndarray
    array: np.ndarray
    tensor: Any


class Results:
    """Memory for one result after the other; what a caller gets is the caller's alone.

    A caller gets a view. Views of it, and what JAX makes of it, keep a reference to the array that
    owns the memory, so that it is free when there is none but the one here: then the next call
    writes into it. A caller who holds more results than are kept gets new memory for each.
    """

    KEPT = 3  # one that is written, one that is held, one that JAX has not let go of yet

    def __init__(self, shape: Sequence[int], dtype: np.dtype, tensor: Any):
        self._shape, self._dtype, self._tensor = tuple(shape), dtype, tensor
        self._size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._kept: list[Held] = []
        self._alone = 0  # references to the owner's array when nobody but this has it

    def next(self) -> Held:
        """Return memory that nobody reads, at an address that XLA takes as it is."""
        for held in self._kept:
            if sys.getrefcount(held.owner) <= self._alone:
                return held
        owner = np.empty(self._size + ALIGNMENT, np.uint8)
        start = -owner.ctypes.data % ALIGNMENT
        array = owner[start : start + self._size].view(self._dtype).reshape(self._shape)
        held = Held(owner, array, self._tensor(array, True))
        del owner
        if _COUNTS:
            self._alone = sys.getrefcount(held.owner)
            self._kept = [*self._kept, held][-self.KEPT :]
        return held


class Request:
    """A request of a compiled model; for one call at a time."""

    def __init__(self, openvino: Any, compiled: Any, built: Built):
        self._request, self._tensor = compiled.create_infer_request(), openvino.Tensor
        self._inputs: list[tuple[int, int, np.ndarray | None]] = []
        self._outputs: list[tuple[int, int, Results, np.ndarray | None]] = []
        self._set: dict[int, Any] = {}
        for place, index in enumerate(built.inputs):
            memory = _kept(*built.in_avals[index])
            if memory is not None:
                self._request.set_input_tensor(place, self._tensor(memory, True))
            self._inputs.append((place, index, memory))
        for index, place in enumerate(built.outputs):
            if type(place) is not int:
                continue
            shape, dtype = built.out_avals[index]
            memory = _kept(shape, dtype)
            if memory is not None:
                self._request.set_output_tensor(place, self._tensor(memory, True))
            self._outputs.append(
                (place, index, Results(shape, held_as(dtype), self._tensor), memory)
            )

    def run(self, given: Sequence[np.ndarray], outs: list[Any]) -> None:
        """Compute on contiguous inputs; puts what is computed into ``outs``."""
        request, tensor = self._request, self._tensor
        for place, index, memory in self._inputs:
            if memory is None:
                request.set_input_tensor(place, tensor(writable(given[index]), True))
            else:
                memory[...] = given[index]
        for place, index, results, memory in self._outputs:
            if memory is None:
                held = results.next()
                if self._set.get(place) is not held.tensor:
                    request.set_output_tensor(place, held.tensor)
                    self._set[place] = held.tensor
                outs[index] = held.array.view()
        request.infer(share_outputs=True)  # else it copies them once more
        for _, index, _, memory in self._outputs:
            if memory is not None:
                outs[index] = memory.copy()


def _kept(shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """Return memory for a value that is small."""
    held = held_as(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * held.itemsize
    return np.zeros(shape, held) if size <= SMALL else None
