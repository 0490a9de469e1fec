"""Audit: what a transform did to every parameter, and why it left the others as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxinfer.core.errors import InputError, listing

STATUSES = ("changed", "ignored", "blocked", "unfit", "unused")
"""changed; ignored: by a rule; blocked: by an equation; unfit: of a kind or size that the
transform does not apply to; unused: the function does not read it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was done to one parameter.

    Attributes:
      path: of the parameter.
      status: one of ``STATUSES``.
      why: what it became, or what was in the way.
      source: line of the user's code, where one is to blame.
      before, after: bytes.
    """

    path: str
    status: str
    why: str = ""
    source: str = ""
    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status: required one of {', '.join(STATUSES)}, got {self.status!r}")


@dataclasses.dataclass(frozen=True)
class Audit:
    """The entries of one transform, a parameter each.

    >>> audit = Audit("quantize", (Entry("w", "changed", "W8A16", before=400, after=108),))
    >>> print(audit)
    quantize: 1 of 1 parameters changed; 400 B -> 108 B
      changed  w  W8A16  400 B -> 108 B
    """

    transform: str
    entries: tuple[Entry, ...]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def of(self, *statuses: str) -> tuple[Entry, ...]:
        """Return the entries of some statuses."""
        return tuple(entry for entry in self.entries if entry.status in statuses)

    @property
    def before(self) -> int:
        """Bytes of all parameters before."""
        return sum(entry.before for entry in self.entries)

    @property
    def after(self) -> int:
        """Bytes of all parameters after."""
        return sum(entry.after for entry in self.entries)

    def require(self) -> None:
        """Raise if a parameter was blocked (``strict=True``).

        Raises:
          InputError: all blocked parameters, with the equation and its line.
        """
        blocked = [f"{e.path}: {e.why} {e.source}".rstrip() for e in self.of("blocked")]
        if blocked:
            advice = "Ignore them by a rule, or leave strict out to have them as they are."
            raise InputError(listing(f"{self.transform}: blocked:", blocked, advice))

    def __str__(self) -> str:
        changed = self.of("changed")
        head = (
            f"{self.transform}: {len(changed)} of {len(self.entries)} parameters changed; "
            f"{size(self.before)} -> {size(self.after)}"
        )
        rows = [
            (e.status, e.path, e.why, f"{size(e.before)} -> {size(e.after)}", e.source)
            for e in self.entries
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([head, *(f"  {line}" for line in lines)])

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "transform": self.transform,
            "entries": [list(dataclasses.astuple(entry)) for entry in self.entries],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Audit:
        """Rebuild an audit."""
        return cls(str(data["transform"]), tuple(Entry(*item) for item in data["entries"]))


@dataclasses.dataclass(frozen=True)
class Report:
    """The audits of a model, one for each transform that it went through, in order."""

    audits: tuple[Audit, ...]

    def __iter__(self) -> Iterator[Audit]:
        return iter(self.audits)

    def __len__(self) -> int:
        return len(self.audits)

    def __getitem__(self, transform: str) -> Audit:
        """Return the last audit of a transform, by its name."""
        for each in reversed(self.audits):
            if each.transform == transform:
                return each
        known = ", ".join(each.transform for each in self.audits) or "none"
        raise KeyError(f"no transform {transform!r} was applied; known: {known}")

    def __str__(self) -> str:
        return "\n".join(map(str, self.audits)) or "no transform was applied"

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain data."""
        return [each.to_json() for each in self.audits]


def size(count: int) -> str:
    """Return bytes for people, in powers of 1024.

    >>> size(999), size(1536), size(3 << 30)
    ('999 B', '1.5 KiB', '3.0 GiB')
    """
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def audits(provenance: Mapping[str, Any]) -> tuple[Audit, ...]:
    """Return the audits of a model, in the order of its transforms."""
    return tuple(Audit.from_json(item) for item in provenance.get("audits", ()))


def with_audit(provenance: Mapping[str, Any], audit: Audit) -> dict[str, Any]:
    """Return a provenance with one more audit."""
    return {**provenance, "audits": [*provenance.get("audits", ()), audit.to_json()]}


def merged(found: Iterable[Entry], paths: Sequence[str]) -> tuple[Entry, ...]:
    """Return the entries in the order of ``paths``.

    Raises:
      ValueError: a path has no entry, or two: no parameter is left out of an audit.
    """
    by_path: dict[str, Entry] = {}
    for entry in found:
        if entry.path in by_path:
            raise ValueError(f"{entry.path} has two entries")
        by_path[entry.path] = entry
    if missing := [path for path in paths if path not in by_path]:
        raise ValueError(f"no entry for {', '.join(missing)}")
    return tuple(by_path[path] for path in paths)
