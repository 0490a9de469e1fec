"""The structure of a result as plain JSON, so that a loaded executable needs no program.

Dicts, lists, tuples, named tuples, ``Output`` records, None and plain numbers come back as they
were; an object of any other class that JAX flattens comes back as a tuple of its leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxinfer.core.structure import Output, Structure


class Place:
    """Stands for an array of the results."""

    shape, dtype = (), "float32"


def describe(finish: Any, count: int) -> Any:
    """Return the structure that ``finish`` gives to ``count`` arrays, as JSON.

    >>> describe(lambda flat: {"a": flat[0], "b": (flat[1], None)}, 2)
    {'kind': 'dict', 'keys': ['a', 'b'], 'items': ['*', {'kind': 'tuple', 'items': ['*', None]}]}
    """
    return _describe(finish([Place() for _ in range(count)]))


def _describe(value: Any) -> Any:
    if isinstance(value, Place):
        return "*"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return {"kind": "text", "value": value}
    if isinstance(value, Output):
        return {"kind": "record", "name": value._name, **_keyed(list(value), value.to_tuple())}
    if isinstance(value, Mapping):
        return {"kind": "dict", **_keyed(list(value), list(value.values()))}
    if hasattr(value, "_fields"):
        return {
            "kind": "namedtuple",
            "name": type(value).__name__,
            **_keyed(list(value._fields), value),
        }
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "items": [_describe(item) for item in value]}
    return {"kind": "tuple", "items": [_describe(leaf) for leaf in jax.tree.leaves(value)]}


def _keyed(keys: Sequence[Any], values: Sequence[Any]) -> dict[str, Any]:
    return {"keys": keys, "items": [_describe(item) for item in values]}


def rebuild(data: Any, flat: Sequence[Any]) -> Any:
    """Give flat arrays the structure that ``describe`` found.

    Raises:
      ValueError: the data is not what ``describe`` gives, or of another number of arrays.

    >>> rebuild({"kind": "list", "items": ["*", None, 3]}, [1.5])
    [1.5, None, 3]
    """
    values = iter(flat)
    try:
        made = _rebuild(data, values)
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"not a structure of {len(flat)} results: {str(data)[:80]}") from error
    if any(True for _ in itertools.islice(values, 1)):
        raise ValueError(f"{len(flat)} results for a structure of fewer: {str(data)[:80]}")
    return made


def _rebuild(data: Any, flat: Iterator[Any]) -> Any:
    if data == "*":
        return next(flat)
    if data is None or isinstance(data, (bool, int, float)):
        return data
    kind = data["kind"]
    if kind == "text":
        return str(data["value"])
    items = [_rebuild(item, flat) for item in data["items"]]
    if kind in ("list", "tuple"):
        return items if kind == "list" else tuple(items)
    if len(data["keys"]) != len(items):
        raise KeyError(kind)
    if kind == "dict":
        return dict(zip(data["keys"], items, strict=True))
    fields = tuple(map(str, data["keys"]))
    if kind == "record":
        return Output(str(data["name"]), fields, items)
    if kind == "namedtuple":
        leaf = Structure("leaf")
        made = Structure("namedtuple", (leaf,) * len(items), fields, str(data["name"]))
        return made.unflatten(iter(items))
    raise KeyError(kind)
