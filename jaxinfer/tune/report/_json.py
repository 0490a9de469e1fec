"""JSON of results: numpy's numbers as numbers, and those that JSON lacks as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(data: Any) -> str:
    """Return a JSON document.

    >>> dumps({"drop": float("nan")})
    '{\\n  "drop": "nan"\\n}'
    """
    return json.dumps(_plain(data), indent=2, allow_nan=False, ensure_ascii=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
