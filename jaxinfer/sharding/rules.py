"""Sharding rules: regular expressions on parameter paths, and the specs they give.

    [(r"query\\.weight$", (None, "model")), (r"output\\.dense\\.weight$", ("model", None))]

A pattern is searched for in the path (``re.search``). A spec has one entry for each axis of the
leaf, in the leaf's own order: a mesh axis, a tuple of them, None (or ``""``), or a logical name
(``heads``, ``mlp`` ...) that the table ``LOGICAL`` maps to a mesh axis by what that axis is for.
Trailing entries may be left out. A pattern that begins with ``inputs.`` is for inputs.

Two rules that give one leaf different specs are an error, and so is any spec that the leaf
cannot have; all at once. A rule that matches nothing is reported; a leaf that no rule matches
is whole.

Source of the idea of logical axes: A. Roberts et al., Scaling Up Models and Data with t5x and
seqio, 2022, https://arxiv.org/abs/2203.17189.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh, PartitionSpec

from jaxinfer.core.errors import InputError, listing
from jaxinfer.sharding import _specs

ROLES = {
    "data": ("data", "dp", "batch", "replica"),
    "tensor": ("model", "tensor", "tp", "mp"),
    "fsdp": ("fsdp", "zero", "shard"),
    "expert": ("expert", "experts", "ep"),
    "sequence": ("seq", "sequence", "sp", "cp", "context"),
}
"""Names of mesh axes by what they are for: a strategy, and the names that say it."""

LOGICAL: Mapping[str, str | None] = {
    "batch": "data",
    "sequence": "sequence",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "experts": "expert",
    "positions": None,
    "classes": None,
    "stack": None,
}
"""Logical axes, and the strategy over whose mesh axis each is split (None: never)."""


class Rule(NamedTuple):
    """A pattern and its spec."""

    pattern: str
    spec: Sequence[Any]


def role_of(name: str) -> str:
    """Return what a mesh axis is for by its name; empty if the name does not say.

    >>> role_of("tp"), role_of("x")
    ('tensor', '')
    """
    return next((role for role, names in ROLES.items() if name.lower() in names), "")


def axes_for(mesh: Mesh, role: str) -> tuple[str, ...]:
    """Return the mesh axes that are for a strategy by name."""
    return tuple(name for name in mesh.axis_names if role_of(name) == role)


def rules_of(given: Any) -> list[Rule]:
    """Return rules from a mapping or pairs.

    Raises:
      InputError: patterns that are no regular expressions, specs that are none; all at once.
    """
    pairs = list(given.items()) if isinstance(given, Mapping) else list(given)
    problems, found = [], []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            problems.append(f"rule {number}: required (pattern, spec), got {pair!r}")
            continue
        pattern, spec = pair
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            problems.append(f"rule {number}: {pattern!r} is no regular expression: {error}")
        try:
            found.append(Rule(pattern, _spec(spec)))
        except TypeError as error:
            problems.append(f"rule {number} ({pattern!r}): {error}")
    if problems:
        raise InputError(listing("sharding rules that cannot be read:", problems))
    return found


def _spec(spec: Any) -> tuple[Any, ...]:
    if spec is None:
        return ()
    if isinstance(spec, str):
        spec = [part.strip() for part in spec.split(",")]
    if not isinstance(spec, (tuple, list, PartitionSpec)):
        raise TypeError(f"a spec is a tuple, a PartitionSpec or names, got {spec!r}")
    return tuple(_entry(entry) for entry in spec)


def _entry(entry: Any) -> Any:
    if entry is None or entry in ("", "-", "none", "None"):
        return None
    if isinstance(entry, str):
        return entry
    if isinstance(entry, (tuple, list)) and all(isinstance(name, str) for name in entry):
        return tuple(entry)
    raise TypeError(f"an entry is a name, a tuple of names or None, got {entry!r}")


def resolve(
    spec: Sequence[Any], mesh: Mesh, logical: Mapping[str, Any] = LOGICAL
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the mesh axes of each entry of a spec, and names that are neither kind.

    A logical name whose strategy has no axis in the mesh splits nothing.
    """
    found, unknown = [], []
    for entry in spec:
        names: list[str] = []
        for name in _specs.axes_of(entry):
            if name in mesh.shape:
                names.append(name)
            elif name in logical:
                names += _of_logical(logical[name], mesh)
            else:
                unknown.append(name)
        found.append(tuple(names))
    return found, unknown


def _of_logical(target: Any, mesh: Mesh) -> list[str]:
    if target is None:
        return []
    found: list[str] = []
    for name in _specs.axes_of(target):
        found += [name] if name in mesh.shape else axes_for(mesh, name)
    return found


class Applied(NamedTuple):
    """What rules gave: specs and reasons by path, and notes."""

    specs: dict[str, PartitionSpec]
    why: dict[str, str]
    notes: list[str]


def apply_rules(
    leaves: Mapping[str, Any],
    rules: Sequence[Rule],
    mesh: Mesh,
    *,
    logical: Mapping[str, Any] = LOGICAL,
    inputs: Mapping[str, Any] | None = None,
) -> Applied:
    """Match rules with leaves.

    Args:
      leaves: by path.
      rules: patterns and specs.
      mesh: the mesh.
      logical: logical axes: name of a mesh axis or a strategy, or None.
      inputs: the array inputs by ``inputs.NAME``.

    Raises:
      InputError: conflicting rules, unknown axes, specs that a leaf cannot have; all at once.
    """
    specs: dict[str, PartitionSpec] = {}
    why: dict[str, str] = {}
    problems: list[str] = []
    matched: set[int] = set()
    resolved = [resolve(rule.spec, mesh, logical) for rule in rules]
    for rule, (_, unknown) in zip(rules, resolved, strict=True):
        if unknown:
            axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
            problems.append(
                f"rule {rule.pattern!r}: no axis {', '.join(map(repr, unknown))}; the mesh has "
                f"{axes}, logical axes are {', '.join(logical)}"
            )
    for path, leaf in {**leaves, **(inputs or {})}.items():
        hits = [
            number
            for number, rule in enumerate(rules)
            if _is_for_inputs(rule.pattern) == (path not in leaves)
            and re.search(rule.pattern, path)
        ]
        matched |= set(hits)
        if not hits:
            continue
        trimmed = {number: _specs.trimmed(resolved[number][0]) for number in hits}
        first = hits[0]
        other = next((n for n in hits if trimmed[n] != trimmed[first]), None)
        if other is not None:
            problems.append(
                f"{path}: rules conflict: {rules[first].pattern!r} gives {_show(trimmed[first])}, "
                f"{rules[other].pattern!r} gives {_show(trimmed[other])}"
            )
            continue
        entries = list(resolved[first][0])
        while len(entries) > len(leaf.shape) and not entries[-1]:
            entries.pop()
        found = _specs.faults(path, leaf, entries, mesh)
        problems += [f"{fault} (rule {rules[first].pattern!r})" for fault in found]
        if not found:
            specs[path] = trimmed[first]
            why[path] = f"rule {rules[first].pattern!r}"
    if problems:
        raise InputError(listing("sharding rules that do not fit:", problems))
    notes = [
        f"rule {rule.pattern!r} matches no "
        + ("input" if _is_for_inputs(rule.pattern) else "parameter")
        for number, rule in enumerate(rules)
        if number not in matched
    ]
    return Applied(specs, why, notes)


def _is_for_inputs(pattern: str) -> bool:
    return pattern.lstrip("^").replace("\\.", ".").startswith("inputs.")


def _show(spec: PartitionSpec) -> str:
    return f"({', '.join(str(entry) for entry in spec)})"
