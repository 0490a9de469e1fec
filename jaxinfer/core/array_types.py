"""Array types: pytrees that stand at a leaf of ``params`` for the array they materialize to.

An array type is a frozen dataclass, registered with JAX, with ``shape``, ``dtype``, ``ndim``,
``size``, ``nbytes`` and ``materialize()``. A model whose parameters hold any is evaluated by the
interpreter with the rules of ``RULES``: an equation that a rule takes is computed on the parts
(integers, masks), any other on the materialized array.

    ARRAY_TYPES   kind -> class, for artefacts
    RULES         "kind.primitive" -> rule(equation, values) -> results, or None to decline
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from jaxinfer.core.errors import ArtefactError
from jaxinfer.core.table import RuleTable

ARRAY_TYPES: RuleTable[type] = RuleTable("array type")
"""Classes by kind."""

RULES: RuleTable[Any] = RuleTable("array type")
"""Rules by ``kind.primitive``."""


class ArrayType:
    """What array types share: sizes that follow from ``shape``."""

    kind: ClassVar[str]
    shape: Any
    dtype: Any

    @property
    def ndim(self) -> int:
        """Rank."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements of the array that this stands for."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the parts, as allocated."""
        return sum(_bytes(leaf) for leaf in jax.tree.leaves(self))

    def materialize(self) -> Any:
        """Return the array that this stands for."""
        raise NotImplementedError(f"{type(self).__name__} must define materialize()")

    def validate(self, path: str) -> None:
        """Raise InputError if the parts do not fit each other (on load)."""


def is_array_type(value: Any) -> bool:
    """Return whether a value is an array type rather than an array."""
    return hasattr(type(value), "materialize")


def materialize(value: Any) -> Any:
    """Return the array that a value stands for."""
    return value.materialize() if is_array_type(value) else value


def has_array_types(tree: Any) -> bool:
    """Return whether any leaf of a pytree is an array type."""
    return any(map(is_array_type, jax.tree.leaves(tree, is_leaf=is_array_type)))


def array_rule(equation: Any, values: Sequence[Any]) -> Sequence[Any] | None:
    """The interpreter's rule: that of ``RULES`` for the array type among the operands.

    Declines where operands are of several kinds, or no rule is registered.
    """
    kinds = {type(value).kind for value in values if is_array_type(value)}
    if len(kinds) != 1:
        return None
    rule = RULES.get(f"{kinds.pop()}.{equation.name}")
    return None if rule is None else rule(equation, values)


def nbytes(leaf: Any) -> int:
    """Return the bytes of a leaf as allocated: of an array, or of an array type's parts."""
    return sum(map(_bytes, jax.tree.leaves(leaf)))


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def describe(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an array type as plain data, and its arrays by the names of its parts.

    Raises:
      ArtefactError: its class is not registered.
    """
    kind = getattr(type(value), "kind", None)
    if ARRAY_TYPES.get(str(kind)) is not type(value):
        raise ArtefactError(
            f"{type(value).__name__} is no registered array type: it could not be loaded again; "
            "register the class in jaxinfer.core.array_types.ARRAY_TYPES"
        )
    data: dict[str, Any] = {"type": kind, "parts": {}, "meta": {}}
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if _is_meta(type(value), field):
            data["meta"][field.name] = part
        elif part is None:
            data["parts"][field.name] = None
        elif is_array_type(part):
            data["parts"][field.name], inner = describe(part)
            arrays |= {f"{field.name}.{name}": array for name, array in inner.items()}
        else:
            data["parts"][field.name] = "array"
            arrays[field.name] = part
    return data, arrays


def part_names(data: Any) -> list[str]:
    """Return the names of the arrays that ``rebuild`` takes for the data of ``describe``.

    Raises:
      ValueError: the data is not what ``describe`` gives.
    """
    names = []
    for name, part in _checked(data)[1].items():
        if part == "array":
            names.append(name)
        elif part is not None:
            names += [f"{name}.{inner}" for inner in part_names(part)]
    return names


def rebuild(data: Any, arrays: Mapping[str, Any]) -> Any:
    """Inverse of ``describe``.

    Raises:
      ValueError: unknown types, fields that do not fit (all that a malformed file can hold).
    """
    cls, parts, meta = _checked(data)
    given: dict[str, Any] = {name: _tuples(value) for name, value in meta.items()}
    for name, part in parts.items():
        if part is None or part == "array":
            given[name] = None if part is None else arrays[name]
        else:
            given[name] = rebuild(part, {n: arrays[f"{name}.{n}"] for n in part_names(part)})
    return cls(**given)


def _checked(data: Any) -> tuple[type, dict[str, Any], dict[str, Any]]:
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in ARRAY_TYPES:
        known = ", ".join(ARRAY_TYPES)
        raise ValueError(f"unknown array type {str(kind)[:80]!r}; known: {known}")
    cls, parts, meta = ARRAY_TYPES[kind], data.get("parts"), data.get("meta")
    if not isinstance(parts, dict) or not isinstance(meta, dict):
        raise ValueError(f"{kind}: required parts and meta")
    fields = {field.name: _is_meta(cls, field) for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    given = dict.fromkeys(parts, False) | dict.fromkeys(meta, True)
    if given != fields:
        raise ValueError(f"{kind}: required the fields {', '.join(fields)}, got {', '.join(given)}")
    return cls, parts, meta


def _is_meta(cls: type, field: Any) -> bool:
    return field.name in getattr(cls, "META", ()) or bool(field.metadata.get("static"))


def _tuples(value: Any) -> Any:
    """Return JSON's lists as tuples, all the way down: metadata must be hashable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
