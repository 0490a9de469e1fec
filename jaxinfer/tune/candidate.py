"""Candidate: one arrangement of a model, as plain data: what a search proposes and a recipe keeps.

Precision is a level for the whole model and exceptions for groups of layers:

    f32  bf16  f16                        as trained, or cast
    W8A16  W8A8  W8A8-static  FP8  W4A16  quantized (see ``transforms/schemes.py``)
    bf16+W8A16 ...                        cast, then quantized
    int8                                  of the back-end openvino: NNCF, after training

Everything else has a value that means "as it is".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

CASTS = ("bf16", "f16")
QUANTIZED = ("W8A16", "W8A8", "W8A8-static", "FP8", "W4A16")
LEVELS = (
    *("f32", *CASTS, *QUANTIZED, "int8"),
    *(f"{cast}+{level}" for cast in CASTS for level in QUANTIZED),
)
"""Every precision that a group of layers may have."""

ATTENTION = ("", "whole", "blocked", "cudnn")
LAYOUT = ("", "NCHW", "NHWC")
BACKENDS = ("xla", "openvino")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An arrangement.

    Attributes:
      fold: linear maps are folded (``ji.fold``).
      precision: level of all groups that have none of their own.
      groups: (name of a group, level), sorted by name.
      prune: settings of ``ji.prune`` as sorted pairs; empty: nothing is pruned.
      attention: "" as the model has it; "whole": all scores at once; "blocked": a few heads
        after each other; "cudnn": ``jax.nn.dot_product_attention(implementation="cudnn")``.
      layout: of the images inside convolutions; "" as the model has it.
      unroll: loops over layers (scans) are unrolled.
      batch: how many samples a call takes; 0: as many as a batch of the data.
      buckets: (dimension, sizes), for calls of other sizes.
      mesh: ``"data=2,model=4"``; "": one device.
      sharding: of the mesh, as for ``ji.compile``.
      donate: inputs whose memory results may take.
      options: (name, value) of XLA's compiler options.
      backend: ``xla`` or ``openvino``.
    """

    fold: bool = False
    precision: str = "f32"
    groups: tuple[tuple[str, str], ...] = ()
    prune: tuple[tuple[str, Any], ...] = ()
    attention: str = ""
    layout: str = ""
    unroll: bool = False
    batch: int = 0
    buckets: tuple[tuple[str, tuple[int, ...]], ...] = ()
    mesh: str = ""
    sharding: str = "auto"
    donate: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    backend: str = "xla"

    @property
    def levels(self) -> tuple[str, ...]:
        """All precision levels that occur."""
        return tuple(dict.fromkeys([self.precision, *(level for _, level in self.groups)]))

    @property
    def calibrated(self) -> bool:
        """Whether it cannot be made without calibration data."""
        return any(level.endswith("-static") or level == "int8" for level in self.levels)

    def replace(self, **changes: Any) -> Candidate:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the default, as plain data (lists for tuples)."""
        full = json.loads(json.dumps(dataclasses.asdict(self)))
        plain = json.loads(json.dumps(dataclasses.asdict(Candidate())))
        return {name: value for name, value in full.items() if value != plain[name]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Rebuild a candidate.

        Raises:
          ValueError, TypeError: fields or values that are none.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"candidate: unknown fields: {', '.join(unknown)}")
        made = cls(**{name: _tuples(value) for name, value in data.items()})
        made.check()
        return made

    def check(self) -> None:
        """Raise ValueError for values that a field cannot have; all at once."""
        problems = [f"precision {x!r}" for x in self.levels if x not in LEVELS]
        for name, allowed in (
            ("attention", ATTENTION), ("layout", LAYOUT), ("backend", BACKENDS),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                problems.append(f"{name} {getattr(self, name)!r}")
        if not isinstance(self.batch, int) or isinstance(self.batch, bool) or self.batch < 0:
            problems.append(f"batch {self.batch!r}")
        if problems:
            raise ValueError(f"candidate: no such {', '.join(problems)}")

    @property
    def key(self) -> str:
        """A digest of everything in it.

        >>> Candidate(batch=8).key == Candidate.from_json({"batch": 8}).key
        True
        """
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """A short name for people.

        >>> Candidate(fold=True, precision="bf16", groups=(("head", "f32"),), batch=8).label
        'bf16 (1 group f32), fold, batch 8'
        """
        parts = [self.precision]
        counts: dict[str, int] = {}
        for _, level in self.groups:
            counts[level] = counts.get(level, 0) + 1
        if counts:
            shown = (f"{n} group{'s' if n > 1 else ''} {level}" for level, n in counts.items())
            parts[0] += f" ({', '.join(shown)})"
        if self.backend != "xla":
            parts.insert(0, self.backend)
        parts += ["fold"] if self.fold else []
        if self.prune:
            parts.append("prune " + " ".join(f"{name}={value}" for name, value in self.prune))
        parts += [f"{self.attention} attention"] if self.attention else []
        parts += [self.layout] if self.layout else []
        parts += ["unrolled"] if self.unroll else []
        parts += [f"batch {self.batch}"] if self.batch else []
        parts += [f"{name} in {'/'.join(map(str, sizes))}" for name, sizes in self.buckets]
        parts += [f"mesh {self.mesh} {self.sharding}"] if self.mesh else []
        parts += [f"donate {', '.join(self.donate)}"] if self.donate else []
        parts += [f"{name}={value}" for name, value in self.options]
        return ", ".join(parts)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
