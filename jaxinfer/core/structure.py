"""Structure: nested inputs and outputs as JSON, without pickling and without class lookups.

A structure is a tree of ``leaf``, ``tuple``, ``list``, ``dict``, ``namedtuple`` and
``record`` nodes. A record stands for a dataclass or a Hugging Face ``ModelOutput``: its
class is not stored (loading must not import what a file names), so it comes back as an
``Output`` with the same fields in the same order.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

_KINDS = ("leaf", "tuple", "list", "dict", "namedtuple", "record")


class Output(Mapping[str, Any]):
    """Named outputs: fields by attribute, by key, or by position; a JAX pytree.

    >>> out = Output("BaseModelOutput", ("last_hidden_state",), (1.0,))
    >>> out.last_hidden_state, out["last_hidden_state"], out[0], out.to_tuple()
    (1.0, 1.0, 1.0, (1.0,))
    """

    __slots__ = ("_fields", "_name", "_values")

    def __init__(self, name: str, fields: Sequence[str], values: Sequence[Any]):
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_fields", tuple(fields))
        object.__setattr__(self, "_values", tuple(values))

    def __getattr__(self, field: str) -> Any:
        if field in self._fields:
            return self._values[self._fields.index(field)]
        raise AttributeError(f"{self._name} has no field {field!r}; it has {list(self._fields)}")

    def __setattr__(self, field: str, value: Any) -> None:
        raise AttributeError(f"{self._name} is read-only")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return self._values[key]
        if key in self._fields:
            return self._values[self._fields.index(key)]
        raise KeyError(f"{key!r}; {self._name} has {list(self._fields)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __reduce__(self) -> Any:
        return Output, (self._name, self._fields, self._values)

    def __repr__(self) -> str:
        inner = ", ".join(f"{f}={v!r}" for f, v in zip(self._fields, self._values, strict=True))
        return f"{self._name}({inner})"

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values in order, as ``ModelOutput.to_tuple`` does."""
        return self._values


jax.tree_util.register_pytree_with_keys(
    Output,
    lambda o: (
        [(jax.tree_util.GetAttrKey(f), v) for f, v in zip(o._fields, o._values, strict=True)],
        (o._name, o._fields),
    ),
    lambda aux, values: Output(aux[0], aux[1], tuple(values)),
)


@dataclasses.dataclass(frozen=True)
class Structure:
    """One node of a nested input or output: its kind, its keys and its children."""

    kind: str
    children: tuple[Structure, ...] = ()
    keys: tuple[str | int, ...] = ()
    name: str = ""

    def to_json(self) -> Any:
        """Return a JSON value: ``"*"`` for a leaf, else an object."""
        if self.kind == "leaf":
            return "*"
        data: dict[str, Any] = {"kind": self.kind}
        if self.keys:
            data["keys"] = list(self.keys)
        if self.name:
            data["name"] = self.name
        data["children"] = [child.to_json() for child in self.children]
        return data

    @classmethod
    def from_json(cls, data: Any) -> Structure:
        """Rebuild a structure, refusing anything that ``to_json`` does not write.

        Raises:
          ValueError: unknown kind, or keys that do not fit the children.
        """
        if data == "*":
            return LEAF
        if not isinstance(data, dict) or data.get("kind") not in _KINDS[1:]:
            raise ValueError(f"not a structure: {str(data)[:80]}")
        children = tuple(cls.from_json(child) for child in data.get("children", ()))
        keys = tuple(data.get("keys", ()))
        keyed = data["kind"] in ("dict", "namedtuple", "record")
        if len(keys) != (len(children) if keyed else 0):
            raise ValueError(f"{data['kind']} with {len(children)} children, {len(keys)} keys")
        if not all(isinstance(key, (str, int)) for key in keys):
            raise ValueError(f"keys must be strings or integers, got {keys}")
        return cls(data["kind"], children, keys, str(data.get("name", "")))

    def paths(self, prefix: str = "") -> list[str]:
        """Return one readable path for each leaf, in order."""
        if self.kind == "leaf":
            return [prefix]
        out: list[str] = []
        for key, child in zip(self._labels(), self.children, strict=True):
            out += child.paths(f"{prefix}.{key}" if prefix else str(key))
        return out

    def _labels(self) -> Sequence[Any]:
        return self.keys or range(len(self.children))

    def flatten(self, value: Any, path: str, problems: list[str]) -> list[Any]:
        """Return the leaves of ``value`` in order; misfits are appended to ``problems``."""
        if self.kind == "leaf":
            if isinstance(value, (dict, list, tuple)):
                problems.append(f"{path}: required an array, got {_brief(value)}")
                return []
            return [value]
        items = self._items(value)
        if items is None:
            problems.append(f"{path}: required {self._brief()}, got {_brief(value)}")
            return []
        leaves: list[Any] = []
        for key, child, item in zip(self._labels(), self.children, items, strict=True):
            leaves += child.flatten(item, f"{path}.{key}", problems)
        return leaves

    def _items(self, value: Any) -> list[Any] | None:
        if self.kind in ("tuple", "list", "namedtuple"):
            if not isinstance(value, (tuple, list)) or len(value) != len(self.children):
                return None
            return list(value)
        if isinstance(value, Mapping):
            return [value[k] for k in self.keys] if set(value) == set(self.keys) else None
        if self.kind == "record" and all(hasattr(value, str(k)) for k in self.keys):
            return [getattr(value, str(k)) for k in self.keys]
        return None

    def _brief(self) -> str:
        if self.keys:
            return f"{self.name or self.kind} with {list(self.keys)}"
        return f"{self.kind} of {len(self.children)}"

    def unflatten(self, leaves: Iterator[Any]) -> Any:
        """Build the nested value, taking leaves in order from an iterator."""
        if self.kind == "leaf":
            return next(leaves)
        values = [child.unflatten(leaves) for child in self.children]
        if self.kind == "tuple":
            return tuple(values)
        if self.kind == "list":
            return values
        if self.kind == "dict":
            return dict(zip(self.keys, values, strict=True))
        fields = tuple(str(key) for key in self.keys)
        if self.kind == "namedtuple":
            return _namedtuple(self.name, fields)(*values)
        return Output(self.name or "Output", fields, values)


LEAF = Structure("leaf")

_NAMEDTUPLES: dict[tuple[str, tuple[str, ...]], type] = {}


def _namedtuple(name: str, fields: tuple[str, ...]) -> Any:
    """Return one class for each (name, fields), so that tree structures compare equal."""
    made = _NAMEDTUPLES.get((name, fields))
    if made is None:
        made = collections.namedtuple(name or "Output", fields, rename=True)
        _NAMEDTUPLES[name, fields] = made
    return made


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"dict with {list(value)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
