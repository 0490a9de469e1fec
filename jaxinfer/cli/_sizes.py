"""Options of the commands that compile: sizes, buckets and devices as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def shapes(given: Sequence[str]) -> dict[str, tuple[int | str, ...]]:
    """Return ``{"x": ("batch", 128)}`` of ``["x=batch,128"]``.

    Raises:
      click.UsageError: no name, or a name twice.

    >>> shapes(["x=batch,128", "scale="])
    {'x': ('batch', 128), 'scale': ()}
    """
    return {name: tuple(map(_size, sizes)) for name, sizes in _pairs(given, "--input")}


def buckets(given: Sequence[str]) -> dict[str, list[int]]:
    """Return ``{"batch": [1, 4]}`` of ``["batch=1,4"]``.

    Raises:
      click.UsageError: not numbers.
    """
    found = {}
    for name, sizes in _pairs(given, "--buckets"):
        wrong = [size for size in sizes if not size.isdecimal()]
        if wrong or not sizes:
            raise click.UsageError(f"--buckets {name}: required numbers, got {','.join(sizes)!r}")
        found[name] = list(map(int, sizes))
    return found


def options(given: Sequence[str]) -> dict[str, Any]:
    """Return compiler options; numbers and true/false as such.

    >>> options(["xla_cpu_enable_fast_math=false", "xla_backend_optimization_level=1"])
    {'xla_cpu_enable_fast_math': False, 'xla_backend_optimization_level': 1}
    """
    known = {"true": True, "false": False}
    found: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise click.UsageError(f"--option: required NAME=VALUE, got {item!r}")
        number = value.removeprefix("-").isdecimal()
        found[name] = known.get(value.lower(), int(value) if number else value)
    return found


def _pairs(given: Sequence[str], option: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for item in given:
        name, equals, text = item.partition("=")
        if not name or not equals:
            raise click.UsageError(f"{option}: required NAME=SIZE,SIZE..., got {item!r}")
        if name in dict(found):
            raise click.UsageError(f"{option}: {name} is there twice")
        found.append((name.strip(), [size.strip() for size in text.split(",") if size.strip()]))
    return found


def _size(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
