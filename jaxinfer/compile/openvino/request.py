"""An inference request of OpenVINO with its memory: what a call costs beside the computation.

Giving a request other memory costs it some microseconds for each input and output. What is small
is therefore copied into memory that the request keeps, and out of it; what is large is read and
written where it is. Results are new arrays in either case, at addresses that JAX can take over
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino.graph import writable
from jaxinfer.compile.openvino.model import Built, held_as

SMALL = 1 << 16
"""Bytes up to which an input or output is copied: that takes less than to announce other memory."""

ALIGNMENT = 64  # of memory that XLA takes without a copy


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return a new array at an address that XLA takes as it is."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class Request:
    """A request of a compiled model; for one call at a time."""

    def __init__(self, openvino: Any, compiled: Any, built: Built):
        self._request, self._tensor = compiled.create_infer_request(), openvino.Tensor
        self._inputs: list[tuple[int, int, np.ndarray | None]] = []
        self._outputs: list[tuple[int, int, tuple[int, ...], np.dtype, np.ndarray | None]] = []
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
            self._outputs.append((place, index, shape, held_as(dtype), memory))

    def run(self, given: Sequence[np.ndarray], outs: list[Any]) -> None:
        """Compute on contiguous inputs; puts what is computed into ``outs``."""
        request, tensor = self._request, self._tensor
        for place, index, memory in self._inputs:
            if memory is None:
                request.set_input_tensor(place, tensor(writable(given[index]), True))
            else:
                memory[...] = given[index]
        for place, index, shape, dtype, memory in self._outputs:
            if memory is None:
                outs[index] = empty(shape, dtype)
                request.set_output_tensor(place, tensor(outs[index], True))
        request.infer(share_outputs=True)  # else it copies them once more
        for _, index, _, _, memory in self._outputs:
            if memory is not None:
                outs[index] = memory.copy()


def _kept(shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """Return memory for a value that is small."""
    held = held_as(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * held.itemsize
    return np.zeros(shape, held) if size <= SMALL else None
