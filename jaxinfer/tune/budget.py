"""Budget: how long a search may take, and how many programs it may compile."""

from __future__ import annotations

import dataclasses
import math

from jaxinfer.core.errors import InputError, listing


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a search may spend.

    Attributes:
      seconds: of wall time, from the call to the result.
      compiles: programs that are compiled for measuring (the reference's two are not counted).

    Raises:
      InputError: a number that is not above zero.

    >>> Budget(seconds=60).compiles is None
    True
    """

    seconds: float = 300.0
    compiles: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if not _positive(self.seconds):
            problems.append(f"seconds: required a number above 0, got {self.seconds!r}")
        if self.compiles is not None and not (
            isinstance(self.compiles, int) and _positive(self.compiles)
        ):
            problems.append(f"compiles: required an integer above 0, got {self.compiles!r}")
        if problems:
            raise InputError(listing("Budget:", problems))


def _positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value > 0
