"""Sides: what is started in a process of its own, and what it has to provide there.

A side names a function, ``"package.module:function"``, that its process imports and calls with
the side's settings. It returns an ``Adapter``. So a benchmark may have sides of its own: anything
that takes arrays and returns arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Side:
    """What is timed.

    Attributes:
      factory: ``"package.module:function"``; called in the side's process as
        ``function(settings)``.
      settings: JSON data. Added are ``threads``, ``seed``, ``batch``, ``scratch`` (an empty folder)
        and ``device`` (what the first side that is no peer reported, "" if none).
      peer: what the others are compared with, as ``Row.ratio``.
      precision: if the adapter does not say it.
      environment: variables of its process, beside those that every side gets.
      missing: why it cannot be started (a package is not installed); it is not, then.
      skipped: why it does not apply.
    """

    factory: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    peer: bool = False
    precision: str = "f32"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missing: str = ""
    skipped: str = ""


class Prepared(NamedTuple):
    """Something compiled for inputs of one shape.

    Attributes:
      run: computes once; returns when the results are there (a device's, when it has finished).
      outputs: the results of a ``run`` as numpy arrays, flat, in the model's order.
      notes: fallbacks and the like.
      compile_s: seconds of what was needed to get here; None: the time of ``prepare`` is taken.
      first_call_ms: of a first call within ``prepare``; None: there was none, and it is timed.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], Sequence[np.ndarray]]
    notes: Sequence[str] = ()
    compile_s: float | None = None
    first_call_ms: float | None = None


class Adapter(Protocol):
    """A model, opened in a side's process; nothing is compiled yet.

    Attributes:
      facts: JSON data: ``precision`` and ``device`` in words, ``versions`` of its packages by
        name, ``notes``; all may be left out.
    """

    facts: Mapping[str, Any]

    def prepare(self, arrays: Sequence[np.ndarray]) -> Prepared:
        """Compile for the array inputs, which stay as they are; they are on the host."""
        ...
