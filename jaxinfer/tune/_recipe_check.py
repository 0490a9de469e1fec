"""What a recipe's file must be: every fault of it, named, before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.tune.candidate import Candidate

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _scalar(value: Any) -> bool:
    return _text(value) or _flag(value) or _number(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, value))


def _pair(first: Check, second: Check) -> Check:
    return lambda value: (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and first(value[0])
        and second(value[1])
    )


def _object_of(check: Check) -> Check:
    return lambda value: (
        isinstance(value, Mapping) and all(map(_text, value)) and all(map(check, value.values()))
    )


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_text, value)) and all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or _scalar(value)


_CANDIDATE: Mapping[str, tuple[Check, str]] = {
    "fold": (_flag, "true or false"),
    "precision": (_text, "a level"),
    "groups": (_list_of(_pair(_text, _text)), "pairs of a group and a level"),
    "prune": (_list_of(_pair(_text, _scalar)), "pairs of a setting and a value"),
    "attention": (_text, "a word"),
    "layout": (_text, "a word"),
    "unroll": (_flag, "true or false"),
    "batch": (_whole, "a whole number"),
    "buckets": (_list_of(_pair(_text, _list_of(_whole))), "pairs of a dimension and sizes"),
    "mesh": (_text, "a text such as data=2"),
    "sharding": (_text, "a word"),
    "donate": (_list_of(_text), "names of inputs"),
    "options": (_list_of(_pair(_text, _scalar)), "pairs of an option and a value"),
    "backend": (_text, "a word"),
}

_SHAPE: Check = _list_of(lambda dim: _whole(dim) or (_text(dim) and dim.isidentifier()))

FIELDS: Mapping[str, tuple[Check, str]] = {
    "candidate": (lambda value: isinstance(value, Mapping), "an object"),
    "groups": (_object_of(_list_of(_text)), "an object of names to paths"),
    "shapes": (_object_of(_SHAPE), "an object of inputs to shapes"),
    "program": (_text, "a digest"),
    "weights": (_text, "a digest"),
    "program_of": (_text, "a text"),
    "inputs": (_list_of(_text), "a list of texts"),
    "params": (_object_of(_text), "an object of paths to texts"),
    "seed": (_whole, "a whole number"),
    "split": (lambda value: _number(value) and 0 <= value < 1, "a share from 0 to below 1"),
    "metric": (_text, "a name"),
    "drop_kind": (lambda value: value in ("absolute", "relative"), "absolute or relative"),
    "max_drop": (_or_none(_number), "a number or null"),
    "reference": (_or_none(_number), "a number or null"),
    "measured": (_object_of(_plain), "an object of plain data"),
    "environment": (_object_of(_plain), "an object of plain data"),
    "notes": (_list_of(_text), "a list of texts"),
}
"""Of every field of a recipe: the check, and what it must be in words."""


def faults_of(data: Mapping[str, Any], required: tuple[str, ...]) -> list[str]:
    """Return everything that is wrong with the fields of a recipe.

    Args:
      data: the object in the file, without ``format`` and ``version``.
      required: fields that may not be missing.
    """
    faults = [f"{name}: missing" for name in required if name not in data]
    for name, value in data.items():
        if name not in FIELDS:
            faults.append(f"{name[:80]}: no field of a recipe")
            continue
        check, what = FIELDS[name]
        if not check(value):
            faults.append(f"{name}: required {what}, got {_shown(value)}")
    candidate = data.get("candidate")
    if isinstance(candidate, Mapping):
        faults += _candidate_faults(candidate)
    return faults


def _candidate_faults(data: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, value in data.items():
        if name not in _CANDIDATE:
            faults.append(f"candidate.{str(name)[:80]}: no such field")
        elif not _CANDIDATE[name][0](value):
            what = _CANDIDATE[name][1]
            faults.append(f"candidate.{name}: required {what}, got {_shown(value)}")
    if not faults:
        try:
            Candidate.from_json(data)
        except (ValueError, TypeError) as error:
            faults.append(str(error))
    return faults


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
