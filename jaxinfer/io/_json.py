"""JSON from files that may be damaged or hostile, and lists of faults of a bounded length.

Stricter than ``json.loads``: bytes must be UTF-8, a key may not come twice, nesting and size
are bounded. Every fault is one ``ValueError`` with a text for the user. Unlike strict JSON,
``NaN`` and ``Infinity`` are read, since Python writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from jaxinfer.core.errors import listing

MAX_DEPTH = 200
MAX_BYTES = 1 << 30
MAX_SHOWN = 50


def parse(data: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value that ``data`` holds.

    Raises:
      ValueError: not UTF-8, not JSON, a key given twice, or nested deeper than ``max_depth``.

    >>> parse(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> parse(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: key 'a' is given twice
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"nested deeper than {max_depth} levels") from error
    _check_depth(value, max_depth)
    return value


def read(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value in a file.

    Raises:
      ValueError: the file is too large, or not what ``parse`` takes.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return parse(data)


def report(title: str, faults: Sequence[str], advice: str = "", shown: int = MAX_SHOWN) -> str:
    """Join faults under a title; beyond ``shown`` of them only the count is given."""
    kept = list(faults[:shown])
    if len(faults) > shown:
        kept.append(f"... and {len(faults) - shown} more")
    return listing(title, kept, advice)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:200]!r} is given twice")
            seen.add(key)
    return value


def _check_depth(value: Any, max_depth: int) -> None:
    """Walk level by level, without recursion."""
    level = [value]
    for _ in range(max_depth + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = [item for item in inner if isinstance(item, (dict, list))]
        if not level:
            return
    raise ValueError(f"nested deeper than {max_depth} levels")
