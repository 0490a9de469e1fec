"""The plan of a fold: plain data that says which values become parameters, and of what.

Nothing in it refers to an equation by number: another batch size, or another version of JAX,
may trace the same function otherwise. What is computed is known by the parameters it is made of,
its shape and dtype; a product by the parameter that is its kernel; a chain of equations by its
kinds, its parameters and the numbers in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxinfer.core.errors import InputError, listing

KINDS = ("affine", "merge", "compose")

Spec = tuple[tuple[int, ...], str]
"""Shape and dtype of a parameter."""


@dataclasses.dataclass(frozen=True)
class Computed:
    """A value of parameters alone that becomes a parameter.

    Attributes:
      name: of the new parameter.
      paths: the parameters that it is made of, sorted.
      shape, dtype: of the value.
      ordinal: its how-many-eth value with these paths, shape and dtype this is.
      facts: digest of the numbers and static sizes in it.
    """

    name: str
    paths: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    ordinal: int
    facts: str


@dataclasses.dataclass(frozen=True)
class Member:
    """A product by a parameter, and the equations behind it that are folded.

    Attributes:
      kernel: the parameter, or the name of a computed one.
      ops: kinds of the equations.
      paths: the parameters in them, sorted.
      facts: digest of the numbers in them.
      bias: the parameter that is added in their place, if any.
    """

    kernel: str
    ops: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    facts: str = ""
    bias: str | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Products that are changed together.

    Attributes:
      kind: ``affine``: one, whose kernel is scaled; ``merge``: several of one input, side by
        side; ``compose``: several one after the other.
      members: in order.
      name: of the kernel, new unless the kind is ``affine``.
      bias: of the bias of all members together, if any.
      axis: along which kernels are merged, as the product reads them.
    """

    kind: str
    members: tuple[Member, ...]
    name: str
    bias: str | None = None
    axis: int = 0

    @property
    def title(self) -> str:
        """What this is, for messages."""
        return f"{self.kind} {', '.join(member.kernel for member in self.members)}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of a fold.

    Attributes:
      params: shape and dtype of each parameter before it.
      frozen: parameters that were taken as inputs.
      computed, groups: what is done.
      leaves: shape and dtype of each parameter after it, in order.
    """

    params: Mapping[str, Spec]
    frozen: tuple[str, ...] = ()
    computed: tuple[Computed, ...] = ()
    groups: tuple[Group, ...] = ()
    leaves: Mapping[str, Spec] = dataclasses.field(default_factory=dict)

    @property
    def removed(self) -> tuple[str, ...]:
        """Parameters that are no more."""
        return tuple(path for path in self.params if path not in self.leaves)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "params": {path: [list(shape), dtype] for path, (shape, dtype) in self.params.items()},
            "frozen": list(self.frozen),
            "computed": [_plain(entry) for entry in self.computed],
            "groups": [_plain(group) for group in self.groups],
            "leaves": {path: [list(shape), dtype] for path, (shape, dtype) in self.leaves.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan.

        Raises:
          ValueError, KeyError, TypeError: malformed.
        """
        groups = []
        for item in data["groups"]:
            members = tuple(_built(Member, member) for member in item["members"])
            if item["kind"] not in KINDS or not members:
                raise ValueError(f"group: required one of {', '.join(KINDS)} with members")
            if (item["kind"] == "affine") != (len(members) == 1):
                raise ValueError(f"{item['kind']}: {len(members)} members")
            groups.append(_built(Group, {**item, "members": members}))
        return cls(
            _specs(data["params"]),
            _strings(data["frozen"]),
            tuple(_built(Computed, item) for item in data["computed"]),
            tuple(groups),
            _specs(data["leaves"]),
        )


def misfit(problems: list[str]) -> InputError:
    """Return the error that a plan is of another model."""
    advice = (
        "The function is not the one that was folded, or computes otherwise at these sizes or "
        "under this version of JAX; fold the unfolded model again."
    )
    return InputError(listing("fold: the plan does not fit the model:", problems, advice))


def _plain(entry: Any) -> dict[str, Any]:
    return {field.name: _listed(getattr(entry, field.name)) for field in dataclasses.fields(entry)}


def _listed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_listed(item) for item in value]
    return _plain(value) if dataclasses.is_dataclass(value) else value


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "str | None": (str, type(None)),
}


def _built(cls: Any, item: Any) -> Any:
    """Return a dataclass from plain data, each field checked."""
    names = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    if not isinstance(item, dict) or set(item) != set(names):
        raise ValueError(f"{cls.__name__}: required the fields {', '.join(names)}")
    given: dict[str, Any] = {}
    for name, kind in names.items():
        value = item[name]
        if kind == "tuple[str, ...]":
            value = _strings(value)
        elif kind == "tuple[int, ...]":
            value = _sizes(value)
        elif kind in _TYPES and (isinstance(value, bool) or not isinstance(value, _TYPES[kind])):
            raise ValueError(f"{cls.__name__}.{name}: required {kind}, got {value!r}")
        given[name] = value
    return cls(**given)


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"required a list of strings, got {str(value)[:80]}")
    return tuple(value)


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError(f"required a shape, got {str(value)[:80]}")
    return tuple(value)


def _specs(data: Any) -> dict[str, Spec]:
    if not isinstance(data, dict):
        raise ValueError(f"required shapes and dtypes by path, got {str(data)[:80]}")
    found: dict[str, Spec] = {}
    for path, (shape, dtype) in data.items():
        if not isinstance(dtype, str):
            raise ValueError(f"{path}: required the name of a dtype, got {dtype!r}")
        found[path] = (_sizes(shape), dtype)
    return found
