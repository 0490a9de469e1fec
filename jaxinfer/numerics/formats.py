"""Number formats of quantized values, and the step between a value and its code.

A value is ``scale * (decode(code) - zero_point)``. ``encode`` takes values that are divided by
the scale already, and saturates; ``decode`` is its inverse on codes.

- Integer formats round half to even. Without a zero point the range is symmetric (int8: -127
  to 127, int4: -7 to 7), so that ``-x`` has the code ``-code``; with one it is the whole range.
- Float formats round as the hardware does, and saturate (a plain cast of JAX gives NaN or
  infinity above the largest value).
- Codebook formats take the nearest level.

Sources: B. Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, 2018, https://arxiv.org/abs/1712.05877 (integers); P.
Micikevicius et al., FP8 Formats for Deep Learning, 2022, https://arxiv.org/abs/2209.05433
(float8); T. Dettmers et al., QLoRA, 2023, https://arxiv.org/abs/2305.14314 (nf4).

What it does not do: choose scales (``quantize.py``), or hold codes of 4 bits in half a byte
(``packing.py``). Microscaling formats (mxfp4, nvfp4) are not here.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxinfer.core.errors import InputError
from jaxinfer.core.table import RuleTable

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Format:
    """What is known of a number format.

    Args:
      name: the field's name for it.
      kind: ``integer``, ``float`` or ``codebook``.
      bits: of one code.
      storage: dtype name of codes that are not packed.
      low: smallest decoded value.
      high: largest decoded value.
      bound: largest magnitude that a symmetric range uses; None where no range is symmetric.
      arithmetic: whether matrix products run on the codes themselves on some hardware; if
        not, the format is emulated: codes are decoded before the product.
      levels: decoded value of each code, ascending (codebooks only).
    """

    name: str
    kind: Literal["integer", "float", "codebook"]
    bits: int
    storage: str
    low: float
    high: float
    bound: float | None
    arithmetic: bool
    levels: tuple[float, ...] = ()


NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 levels of NF4: quantiles of a normal distribution, with an exact zero (QLoRA, 2023)."""

FORMATS: RuleTable[Format] = RuleTable("number format")
"""All formats by name."""

for _format in (
    Format("int8", "integer", 8, "int8", -128, 127, 127, arithmetic=True),
    Format("uint8", "integer", 8, "uint8", 0, 255, None, arithmetic=True),
    Format("int4", "integer", 4, "int8", -8, 7, 7, arithmetic=True),
    Format("uint4", "integer", 4, "uint8", 0, 15, None, arithmetic=True),
    Format("float8_e4m3fn", "float", 8, "float8_e4m3fn", -448, 448, 448, arithmetic=True),
    Format("float8_e5m2", "float", 8, "float8_e5m2", -57344, 57344, 57344, arithmetic=True),
    Format("nf4", "codebook", 4, "uint8", -1, 1, 1, arithmetic=False, levels=NF4_LEVELS),
):
    FORMATS.register(_format.name)(_format)


def format_of(name: str) -> Format:
    """Return the format of a name.

    Raises:
      InputError: the name is unknown; near misses are named.

    >>> format_of("int4").bound, format_of("nf4").arithmetic
    (7, False)
    """
    if name not in FORMATS:
        near = FORMATS.near(name)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InputError(
            f"number format: required one of {', '.join(FORMATS)}; got {name!r}; {hint}"
            "A format of your own is registered in jaxinfer.numerics.formats.FORMATS"
        )
    return FORMATS[name]


def encode(values: Array, format: Format, zero_point: Array | None = None) -> Array:
    """Return the codes nearest to values that are divided by their scale.

    ``code = clip(round(v) + zero_point, low, high)`` for integers, the nearest float or level
    otherwise. Values outside the range saturate. NaN has no code in integer and codebook
    formats: what comes out is unspecified.

    Args:
      values: f32[...] or f64[...], any shape.
      format: the format.
      zero_point: integers that broadcast against ``values``; integer formats only.

    Returns:
      Codes of ``values``' shape, in ``format.storage``, one code an element. The error is at
      most 0.5 for integers within the range; for floats it is relative, 2**-4 (e4m3fn) or
      2**-3 (e5m2) above the smallest normal value.
    """
    if format.kind == "codebook":
        middles = [(a + b) / 2 for a, b in itertools.pairwise(format.levels)]
        codes = jnp.zeros(jnp.shape(values), format.storage)
        for middle in middles:
            codes += (values > middle).astype(format.storage)
        return codes
    if format.kind == "float":
        return jnp.clip(values, format.low, format.high).astype(format.storage)
    if zero_point is None:
        bound = format.high if format.bound is None else format.bound
        low = format.low if format.bound is None else -format.bound
        return jnp.clip(jnp.round(values), low, bound).astype(format.storage)
    codes = jnp.round(values) + zero_point.astype(values.dtype)
    return jnp.clip(codes, format.low, format.high).astype(format.storage)


def decode(codes: Array, format: Format, dtype: Any = jnp.float32) -> Array:
    """Return the value of each code, before zero point and scale; exact in float32.

    Args:
      codes: of ``format.storage``, not packed, any shape.
      format: the format.
      dtype: float dtype of the result.
    """
    if format.kind == "codebook":
        levels = jnp.asarray(format.levels, dtype)
        return jnp.take(levels, codes.astype(jnp.int32), axis=0, mode="clip")
    return codes.astype(dtype)
