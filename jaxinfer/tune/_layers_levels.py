"""Precision levels in parts: what is cast, what is quantized, and what products compute in."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxinfer.core.errors import InputError
from jaxinfer.numerics.formats import format_of
from jaxinfer.transforms.schemes import scheme_of
from jaxinfer.tune.candidate import CASTS, LEVELS, Candidate
from jaxinfer.tune.groups import Group

_DTYPES: dict[str, str] = dict(zip(CASTS, ("bfloat16", "float16"), strict=True))


class Level(NamedTuple):
    """A precision level.

    Attributes:
      cast: dtype of what is cast; "" for none.
      scheme: of quantization; "" for none.
      static: whether scales of activations are calibrated.
    """

    cast: str
    scheme: str
    static: bool

    @property
    def base(self) -> str:
        """Dtype of what is not quantized."""
        return self.cast or "float32"

    @property
    def compute(self) -> str:
        """Dtype of the operands of products: of the codes, where activations are quantized."""
        return (scheme_of(self.scheme).activations if self.scheme else "") or self.base

    @property
    def bits(self) -> int:
        """Bits of one weight, without scales."""
        if self.scheme:
            return format_of(scheme_of(self.scheme).weights).bits
        return 16 if self.cast else 32


def read_level(name: str) -> Level:
    """Return the parts of a level.

    OpenVINO's ``int8`` is static W8A8: symmetric weights by channel, calibrated activations.

    Raises:
      InputError: there is no such level; near misses are named.

    >>> read_level("bf16+W8A8-static")
    Level(cast='bfloat16', scheme='W8A8', static=True)
    """
    if name not in LEVELS:
        near = difflib.get_close_matches(str(name), LEVELS, n=3) or LEVELS
        raise InputError(f"precision {name!r}: no such level; known: {', '.join(near)}")
    if name == "int8":
        return Level("", "W8A8", True)
    cast, plus, scheme = name.partition("+")
    if not plus and cast not in _DTYPES:
        cast, scheme = "", name
    scheme = "" if scheme == "f32" else scheme
    static = scheme.endswith("-static")
    return Level(_DTYPES.get(cast, ""), scheme.removesuffix("-static"), static)


def level_of(candidate: Candidate, name: str | None) -> str:
    """Return the level of a group; of None that of what belongs to no group."""
    return dict(candidate.groups).get(name or "", candidate.precision)


def group_by_path(groups: Sequence[Group]) -> dict[str, str]:
    """Return the group of each parameter."""
    return {path: group.name for group in groups for path in group.paths}


def settings_of(level: Level) -> dict[str, Any]:
    """Return the settings of ``transforms.quantize`` for a level with a scheme."""
    activation = "static" if level.static else "dynamic"
    return {"scheme": level.scheme, "activation": activation}
