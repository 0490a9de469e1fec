"""What an executable is made of, bucket by bucket: times, bytes, FLOPs, collectives, checks."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.compile._memory import in_words


@dataclasses.dataclass(frozen=True)
class BucketReport:
    """One executable.

    Attributes:
      sizes: of the bucketed dimensions.
      backend: ``xla`` or ``openvino``.
      lower_s, compile_s: seconds to trace and lower, and to compile; 0 where it was loaded.
      origin: ``compiled``, ``cache`` (the user's own), ``loaded``, or ``compiled again: why``.
      code_bytes: of the native code, as serialized.
      argument_bytes, output_bytes, temp_bytes: for one device.
      aliased_bytes: results that take the place of donated inputs.
      device_bytes: what one device must hold: arguments + results + temporaries - aliased.
      flops: arithmetic of the whole function, scans in full; None where it was not counted.
      flops_notes: what the count leaves out.
      collectives: (kind, bytes for one device, how many), for one run.
      masked: equations that padding would change, and what was done (see ``ji.bucket``).
      check: how it was compared with the reference, and what came out.
      notes: what else was decided for this bucket.
    """

    sizes: Mapping[str, int]
    backend: str = "xla"
    lower_s: float = 0.0
    compile_s: float = 0.0
    origin: str = "compiled"
    code_bytes: int = 0
    argument_bytes: int = 0
    output_bytes: int = 0
    temp_bytes: int = 0
    aliased_bytes: int = 0
    device_bytes: int = 0
    flops: int | None = None
    flops_notes: Sequence[str] = ()
    collectives: Sequence[tuple[str, int, int]] = ()
    masked: Sequence[Any] = ()
    check: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The sizes as text."""
        return name_of(self.sizes)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BucketReport:
        """Rebuild a report.

        Raises:
          TypeError: fields that are none.
        """
        known = dict(data)
        known["collectives"] = tuple(tuple(item) for item in known.get("collectives", ()))
        return cls(**known)


def name_of(sizes: Mapping[str, int]) -> str:
    """Return sizes as text.

    >>> name_of({"batch": 4, "seq": 128}), name_of({})
    ('batch=4 seq=128', 'fixed')
    """
    return " ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed"


@dataclasses.dataclass(frozen=True)
class CompileReport(Sequence[BucketReport]):
    """All buckets of an executable; ``print`` it, or take ``to_json()``.

    Attributes:
      buckets: one report each, smallest first.
      param_bytes: of all parameters, once.
      param_bytes_per_device: of what one device holds of them.
      device: kind and number of the devices.
      strategy: how it is sharded; empty on one device.
      notes: what was decided for all of them.
    """

    buckets: tuple[BucketReport, ...]
    param_bytes: int
    param_bytes_per_device: int
    device: str
    strategy: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: Any) -> Any:
        return self.buckets[index]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        data = {**dataclasses.asdict(self), "notes": list(self.notes)}
        return {**data, "buckets": [bucket.to_json() for bucket in self.buckets]}

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table, header first."""
        head = ("bucket", "from", "compile s", "code", "temporary", "per device", "GFLOPs")
        found: list[tuple[str, ...]] = [(*head, "collectives", "check")]
        for bucket in self.buckets:
            moved = ", ".join(f"{n} {kind} {in_words(b)}" for kind, b, n in bucket.collectives)
            flops = "?" if bucket.flops is None else f"{bucket.flops / 1e9:.4g}"
            found.append(
                (
                    bucket.name,
                    bucket.origin,
                    f"{bucket.compile_s:.2f}",
                    *map(in_words, (bucket.code_bytes, bucket.temp_bytes, bucket.device_bytes)),
                    flops,
                    moved or "none",
                    str(bucket.check.get("result", "")),
                )
            )
        return found

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        held = in_words(self.param_bytes_per_device)
        head = f"{self.device}; parameters {in_words(self.param_bytes)}, {held} on each device"
        lines.insert(0, head + (f"; sharded: {self.strategy}" if self.strategy else ""))
        for bucket in self.buckets:
            lines += [f"{bucket.name}: {note}" for note in (*bucket.notes, *bucket.flops_notes)]
            if bucket.masked:
                lines.append(f"{bucket.name}: masked {_counted(bucket.masked)}")
        return "\n".join([*lines, *self.notes])


def _counted(masked: Sequence[Any]) -> str:
    """Return how many equations of each kind are masked; ``to_json()`` has them one by one."""
    kinds = collections.Counter(str(item["primitive"]) for item in masked)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())
