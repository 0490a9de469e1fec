"""Sizes and numbers as functions of the real sizes, fitted to traces at several sizes.

A length is ``scale * n + offset``, n a size or a product of sizes. A number that a program
computed from a size while it was traced (the ``n`` that a mean divides by, ``1/sqrt(n)``) is

    c * n**e * m**f      e, f of -2, -1, -1/2, 1/2, 1, 2
    g(a * n + b)         g of x, 1/x, sqrt x, 1/sqrt x
    c * log n

with coefficients that are integers, small fractions, or one free factor. Every trace must agree
to the last bit but one of the number's dtype, and all that fit must agree at every size up to the
bucket: two that differ are a refusal, not a choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

POWERS = (1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
"""Exponents of a size that are tried."""


class Length(NamedTuple):
    """``scale * product of the sizes + offset``; a size may be there more than once."""

    scale: int
    symbols: tuple[str, ...]
    offset: int = 0

    def at(self, sizes: Mapping[str, Any]) -> Any:
        """Return the value at some sizes (integers or arrays)."""
        value = self.scale
        for symbol in self.symbols:
            value = value * sizes[symbol]
        return value + self.offset

    def times(self, factor: int) -> Length:
        """Return this length times an integer."""
        return Length(self.scale * factor, self.symbols, self.offset * factor)

    def over(self, factor: int) -> Length | None:
        """Return this length divided by an integer, None if it does not divide."""
        if self.scale % factor or self.offset % factor:
            return None
        return Length(self.scale // factor, self.symbols, self.offset // factor)

    def __str__(self) -> str:
        text = "*".join(self.symbols)
        text = text if self.scale == 1 else f"{self.scale}*{text}"
        return (
            text
            if not self.offset
            else f"{text} {'+' if self.offset > 0 else '-'} {abs(self.offset)}"
        )


class Number(NamedTuple):
    """``g(a * x + b)``, x the product of powers of sizes; evaluated in float32 or float64."""

    powers: tuple[tuple[str, float], ...]
    scale: float
    offset: float
    outer: str

    def at(self, sizes: Mapping[str, Any], xp: Any = np, dtype: Any = np.float64) -> Any:
        """Return the value in a float type."""
        x = xp.asarray(1, dtype)
        for symbol, power in self.powers:
            n = xp.asarray(sizes[symbol], dtype)
            x = x * {2.0: lambda n=n: n * n, 1.0: lambda n=n: n, 0.5: lambda n=n: xp.sqrt(n)}[
                abs(power)
            ]() if power > 0 else x / {
                2.0: lambda n=n: n * n, 1.0: lambda n=n: n, 0.5: lambda n=n: xp.sqrt(n)
            }[abs(power)]()  # fmt: skip
        if self.outer == "log":
            return xp.asarray(self.scale, dtype) * xp.log(x)
        inner = xp.asarray(self.scale, dtype) * x + xp.asarray(self.offset, dtype)
        return {
            "": lambda: inner,
            "1/": lambda: 1 / inner,
            "sqrt": lambda: xp.sqrt(inner),
            "1/sqrt": lambda: 1 / xp.sqrt(inner),
        }[self.outer]()

    def __str__(self) -> str:
        text = "*".join(n if p == 1 else f"{n}**{p:g}" for n, p in self.powers)
        text = text if self.scale == 1 else f"{self.scale:g}*{text}"
        text = (
            text
            if not self.offset
            else f"{text} {'+' if self.offset > 0 else '-'} {abs(self.offset):g}"
        )
        return f"{self.outer}({text})" if self.outer else text


class Observed:
    """Sizes of several traces, the bucket first; fits what differs between them.

    Args:
      sizes: the symbols' sizes in each trace; symbols that never change need not be there.
    """

    def __init__(self, sizes: Sequence[Mapping[str, int]]):
        self.sizes = tuple(dict(one) for one in sizes)
        self.base = self.sizes[0]
        self.symbols = tuple(
            name for name in self.base if len({one[name] for one in self.sizes}) > 1
        )

    def depends(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Return the symbols with which a value changes, others held."""
        found = []
        for symbol in self.symbols:
            for sizes, value in zip(self.sizes[1:], values[1:], strict=True):
                moved = [name for name in self.symbols if sizes[name] != self.base[name]]
                if moved == [symbol] and value != values[0]:
                    found.append(symbol)
                    break
        return tuple(found)

    def length(self, values: Sequence[int]) -> int | Length | None:
        """Return an integer as a function of the sizes; None if it is none of the known ones."""
        if len(set(values)) == 1:
            return int(values[0])
        fits = lambda length: all(
            length.at(sizes) == value for sizes, value in zip(self.sizes, values, strict=True)
        )
        symbols = self.depends(values)
        for powers in itertools.product((1, 2, 3), repeat=len(symbols)):
            names = tuple(s for s, p in zip(symbols, powers, strict=True) for _ in range(p))
            x = [math.prod(sizes[name] for name in names) for sizes in self.sizes]
            other = next((i for i in range(1, len(x)) if x[i] != x[0]), 0)
            if not other or (values[0] - values[other]) % (x[0] - x[other]):
                continue
            scale = (values[0] - values[other]) // (x[0] - x[other])
            length = Length(int(scale), names, int(values[0] - scale * x[0]))
            if fits(length):
                return length
        return None

    def number(self, values: Sequence[Any], dtype: Any) -> Number | None:
        """Return a float as a function of the sizes; None if none fits, or two that differ do."""
        wide = [float(v) for v in values]
        if not all(map(math.isfinite, wide)) or 0.0 in wide:
            return None
        for candidates in (self._plain(wide), self._scaled(wide)):
            fits = [c for c in candidates if self._fits(c, values, dtype)]
            if fits and self._agree(fits, dtype):
                return fits[0]
            if fits:
                return None
        return None

    def _fits(self, number: Number, values: Sequence[Any], dtype: Any) -> bool:
        eps = float(ml_dtypes.finfo(dtype).eps)
        with np.errstate(all="ignore"):
            for sizes, value in zip(self.sizes, values, strict=True):
                got = float(np.asarray(number.at(sizes)).astype(dtype))
                if not abs(got - float(value)) <= eps * abs(float(value)):
                    return False
        return True

    def _agree(self, fits: Sequence[Number], dtype: Any) -> bool:
        """Whether candidates are one function at every size up to the bucket."""
        tolerance = 4 * float(ml_dtypes.finfo(dtype).eps)
        names = sorted({name for fit in fits for name, _ in fit.powers})
        grid = [np.unique(np.linspace(1, self.base[name], 33).astype(int)) for name in names]
        with np.errstate(all="ignore"):
            for point in itertools.product(*grid):
                sizes = dict(zip(names, point, strict=True))
                first, *rest = (float(fit.at(sizes)) for fit in fits)
                if any(abs(v - first) > tolerance * abs(first) for v in rest):
                    return False
        return True

    def _monomials(
        self, values: Sequence[float]
    ) -> Iterable[tuple[tuple[tuple[str, float], ...], float]]:
        symbols = self.depends(values)
        for powers in itertools.product(POWERS, repeat=len(symbols)):
            x = [
                math.prod(one[s] ** p for s, p in zip(symbols, powers, strict=True))
                for one in self.sizes
            ]
            if symbols:
                ratios = [v / at for v, at in zip(values, x, strict=True)]
                yield tuple(zip(symbols, powers, strict=True)), sorted(ratios)[len(ratios) // 2]

    def _plain(self, values: Sequence[float]) -> list[Number]:
        """Candidates whose coefficients are integers, or one over an integer."""
        found = []
        for powers, c in self._monomials(values):
            found += [Number(powers, near, 0.0, "") for near in _whole(c)]
        for number in self._lines(values, lambda x: [Fraction(round(x))]):
            found.append(number)
        return found

    def _scaled(self, values: Sequence[float]) -> list[Number]:
        """Candidates with small fractions, and one free factor."""
        found = []
        for powers, c in self._monomials(values):
            found.append(Number(powers, c, 0.0, ""))
        fractions = lambda x: [Fraction(x).limit_denominator(64)]
        found += self._lines(values, fractions)
        symbols = self.depends(values)
        if len(symbols) == 1 and self.base[symbols[0]] > 1:
            c = values[0] / math.log(self.base[symbols[0]])
            found.append(Number(((symbols[0], 1.0),), c, 0.0, "log"))
        return found

    def _lines(
        self, values: Sequence[float], snap: Callable[[float], list[Fraction]]
    ) -> list[Number]:
        symbols = self.depends(values)
        if len(symbols) != 1:
            return []
        (symbol,) = symbols
        inverse = {"": lambda v: v, "1/": lambda v: 1 / v, "sqrt": lambda v: v * v,
                   "1/sqrt": lambda v: 1 / (v * v)}  # fmt: skip
        far = max(
            range(1, len(values)), key=lambda i: abs(self.sizes[i][symbol] - self.base[symbol])
        )
        n, m = self.base[symbol], self.sizes[far][symbol]
        found = []
        for outer, back in inverse.items():
            v, w = back(values[0]), back(values[far])
            for slope in snap((v - w) / (n - m)):
                for offset in snap(v - float(slope) * n):
                    if slope and offset:
                        found.append(Number(((symbol, 1.0),), float(slope), float(offset), outer))
        return found


def _whole(c: float) -> list[float]:
    """Return the integer or the one over an integer that a coefficient may stand for."""
    found = []
    if abs(c) >= 0.5 and round(c):
        found.append(float(round(c)))
    if c and abs(1 / c) >= 1.5:
        found.append(1 / round(1 / c))
    return found


def number_value(formula: Length | Number, sizes: Mapping[str, Any], dtype: Any) -> jax.Array:
    """Return a formula at traced sizes, in a dtype."""
    if isinstance(formula, Length):
        return jnp.asarray(formula.at(sizes)).astype(dtype)
    wide = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
    return jnp.asarray(formula.at(sizes, jnp, wide)).astype(dtype)
