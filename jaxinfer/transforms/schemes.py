"""Quantization schemes by the field's names: bits of the weights and of the activations.

    W8A16   int8 weights, activations as they are
    W8A8    int8 weights and activations
    FP8     float8 e4m3 weights and activations
    W4A16   int4 weights in groups of 64, activations as they are
    W4A8    int4 weights in groups of 128, int8 activations
    NF4     weights of 16 normal quantiles in groups of 64, activations as they are

Sources: see ``jaxinfer.numerics.formats``; groups: E. Frantar et al., GPTQ, 2022,
https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

import dataclasses

from jaxinfer.core.errors import InputError
from jaxinfer.core.table import RuleTable


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Number formats of a scheme.

    Attributes:
      weights: format of the weights; ``asymmetric`` the one with a zero point ("": there is none).
      activations: format of what they are multiplied by; "" if it stays as it is.
      group: how many elements of the contracting axis share a scale by default; 0: all.
    """

    weights: str
    activations: str = ""
    group: int = 0
    asymmetric: str = ""


SCHEMES: RuleTable[Scheme] = RuleTable("quantization scheme")
"""All schemes by name."""

for _name, _scheme in {
    "W8A16": Scheme("int8", asymmetric="uint8"),
    "W8A8": Scheme("int8", "int8", asymmetric="int8"),
    "FP8": Scheme("float8_e4m3fn", "float8_e4m3fn"),
    "W4A16": Scheme("int4", group=64, asymmetric="uint4"),
    "W4A8": Scheme("int4", "int8", group=128, asymmetric="int4"),
    "NF4": Scheme("nf4", group=64),
}.items():
    SCHEMES.register(_name)(_scheme)


def scheme_of(name: str) -> Scheme:
    """Return a scheme.

    Raises:
      InputError: the name is unknown; near misses are named.

    >>> scheme_of("W4A16").group
    64
    """
    if name in SCHEMES:
        return SCHEMES[name]
    near = SCHEMES.near(str(name).upper()) or [
        known for known in SCHEMES if known.lower() == str(name).lower()
    ]
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise InputError(f"quantize: unknown scheme {name!r}; {hint}known: {', '.join(SCHEMES)}")
