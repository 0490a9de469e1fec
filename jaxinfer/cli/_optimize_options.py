"""Options of ``optimize`` as text: percent, limits with units, allowances, a metric by name."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

METRICS = ("cosine", "max", "top1", "kl")
_UNITS = {
    "": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
    "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40,
}  # fmt: skip
_TIMES = {"_ms": {"us": 1e-3, "ms": 1.0, "s": 1e3}, "_s": {"ms": 1e-3, "s": 1.0, "min": 60.0}}


def percent(text: str) -> float:
    """Return a share, or a number as it is.

    Raises:
      click.UsageError: no number.

    >>> percent("0.5%"), percent("0.005")
    (0.005, 0.005)
    """
    found = text.strip()
    try:
        value = float(found.removesuffix("%"))
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise click.UsageError(f"--max-drop: required a number or a percentage, got {text!r}")
    # / 100 of a decimal is the nearest float to what was written; * 0.01 is not
    return value / 100 if found.endswith("%") else value


def constraints(given: Sequence[str]) -> dict[str, float]:
    """Return limits; times and bytes may have units.

    Raises:
      click.UsageError: no name, no number, a name twice.

    >>> constraints(["p99_ms=20", "peak_bytes=2GiB", "compile_s=2min"])
    {'p99_ms': 20.0, 'peak_bytes': 2147483648.0, 'compile_s': 120.0}
    """
    found: dict[str, float] = {}
    for item in given:
        name, equals, text = (part.strip() for part in item.partition("="))
        number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        unit = text[len(number) :].lower()
        units = _UNITS if name.endswith("_bytes") else {}
        for suffix, known in _TIMES.items():
            units = known if name.endswith(suffix) and not units else units
        try:
            value = float(number) * {"": 1.0, **units}[unit]
        except (ValueError, KeyError):
            have = f" (units: {', '.join(each for each in units if each)})" if units else ""
            raise click.UsageError(
                f"--constraint: required NAME=NUMBER{have}, got {item!r}"
            ) from None
        if not name or not equals:
            raise click.UsageError(f"--constraint: required NAME=NUMBER, got {item!r}")
        if name in found:
            raise click.UsageError(f"--constraint: {name} is there twice")
        found[name] = value
    return found


def sizes(text: str | None, option: str) -> tuple[int, ...] | None:
    """Return ``(1, 8, 32)`` of ``"1,8,32"``.

    Raises:
      click.UsageError: not numbers.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.UsageError(f"{option}: required numbers from 1, got {text!r}")
    return tuple(map(int, parts))


def buckets(given: Sequence[str]) -> dict[str, list[tuple[int, ...]]]:
    """Return lists of sizes to choose from, by dimension.

    >>> buckets(["seq=64,128", "seq=32,64,128"])
    {'seq': [(64, 128), (32, 64, 128)]}
    """
    found: dict[str, list[tuple[int, ...]]] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not name or not equals:
            raise click.UsageError(f"--buckets: required NAME=SIZE,SIZE..., got {item!r}")
        found.setdefault(name.strip(), []).append(sizes(text, f"--buckets {name}") or ())
    return found


def allowed(text: str | None) -> tuple[list[str], list[dict[str, Any]]]:
    """Return levels of precision, and settings of pruning, beyond what is usual.

    Raises:
      click.UsageError: names that there are not, all of them.

    >>> allowed("W4A16,prune=2:4,prune=0.7")
    (['W4A16'], [{'pattern': '2:4'}, {'sparsity': 0.7}])
    """
    from jaxinfer.tune.candidate import LEVELS

    levels: list[str] = []
    prunes: list[dict[str, Any]] = []
    wrong: list[str] = []
    for item in filter(None, map(str.strip, (text or "").split(","))):
        name, _, value = item.partition("=")
        if item in LEVELS:
            levels.append(item)
        elif name == "prune":
            try:
                prunes.append({"pattern": value} if ":" in value else {"sparsity": float(value)})
            except ValueError:
                if value:
                    wrong.append(item)
                prunes.append({"sparsity": 0.5})
        else:
            wrong.append(item)
    if wrong:
        raise click.UsageError(
            f"--allow: there is no {', '.join(wrong)}; known: prune, prune=SPARSITY, prune=N:M, "
            f"{', '.join(LEVELS)}"
        )
    return levels, prunes


def metric(text: str) -> str | Callable[..., Any]:
    """Return a metric of jaxinfer's by its name, or a function of yours.

    Args:
      text: ``cosine``, ``max``, ``top1``, ``kl``, or ``package.module:function``, which is imported
        from the current directory or from what is installed: its code runs.

    Raises:
      click.UsageError: neither.
      InputError: the module cannot be imported, or has no such function.
    """
    from jaxinfer.core.errors import InputError

    if text in METRICS:
        return text
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise click.UsageError(
            f"--metric: required {', '.join(METRICS)} or package.module:function, got {text!r}"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"--metric {text}: {module} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputError(f"--metric {text}: {module} has no function {name}")
    return found
