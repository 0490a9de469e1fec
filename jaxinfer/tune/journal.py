"""Journal: every step of a search as a line of JSON, so that a killed search goes on where it was.

A step is looked up by a digest of all that its result depends on: program and weights, data,
jaxlib, device, candidate, repetitions. One that is there is not done again, and counts with the
seconds that it took then: decisions rest on recorded numbers alone, so a search that is killed
and continued decides as it would have. A line that was being written when the process died is
dropped.

The first line names the format. Lines of other programs or machines in one file do no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxinfer.core.errors import ArtefactError

FORMAT = "jaxinfer.search"
VERSION = 1


class Journal:
    """Steps that were done, in memory and in a file.

    Args:
      path: the file; None: none.
      resume: go on from what the file has; else it is begun anew.
      context: what every step depends on (JSON).
      clock: seconds, rising.

    Attributes:
      spent: seconds of all steps that were asked for, as recorded.
      replayed: how many of them were there already.

    Raises:
      ArtefactError: the file is no journal, or cannot be read or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        resume: bool = False,
        context: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.path = Path(path) if path is not None else None
        self.spent, self.replayed = 0.0, 0
        self._context = json.dumps(context, sort_keys=True, default=str)
        self._clock, self._mark = clock, clock()
        self._known: dict[str, dict[str, Any]] = {}
        self._asked: set[str] = set()
        if self.path is not None:
            self._open(self.path, resume)

    def _open(self, path: Path, resume: bool) -> None:
        lines: list[str] = []
        try:
            if path.exists():
                text = path.read_text(encoding="utf-8", errors="replace")
                lines = _lines(path, text)
            if not resume:
                lines = []
            self._known = {found["key"]: found for found in map(_step, lines) if found}
            path.parent.mkdir(parents=True, exist_ok=True)
            head = json.dumps({"format": FORMAT, "version": VERSION})
            aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            aside.write_text("".join(f"{line}\n" for line in (head, *lines)), encoding="utf-8")
            os.replace(aside, path)
        except OSError as error:
            raise ArtefactError(f"{path}: no journal there: {error.strerror or error}") from error

    def do(self, kind: str, arguments: Any, work: Callable[[], Any]) -> Any:
        """Return the result of a step (JSON): the recorded one, or of ``work()``, then recorded.

        Its seconds are those since the last step, so that what is between steps counts too.
        """
        text = json.dumps([kind, arguments, self._context], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        known = self._known.get(key)
        if key in self._asked and known is not None:
            return known["value"]
        self._asked.add(key)
        if known is not None:
            self.replayed += 1
            self.spent += known["seconds"]
            self._mark = self._clock()
            return known["value"]
        value = json.loads(json.dumps(work()))
        now = self._clock()
        seconds, self._mark = max(0.0, now - self._mark), now
        self.spent += seconds
        step = {"key": key, "kind": kind, "seconds": round(seconds, 6), "value": value}
        self._known[key] = step
        if self.path is not None:
            self._append(self.path, json.dumps(step))
        return value

    def _append(self, path: Path, line: str) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ArtefactError(f"{path}: a step is not kept: {error.strerror or error}") from error

    def leave_out(self, seconds: float) -> None:
        """Do not count seconds of what only a search that goes on has to do again."""
        self._mark += seconds

    @property
    def elapsed(self) -> float:
        """Seconds spent, with those since the last step."""
        return self.spent + max(0.0, self._clock() - self._mark)


def holds_steps(path: Path) -> bool:
    """Return whether a file is there that a new search may not replace.

    A search that ended before its first step (its metric was refused) leaves a file with the first
    line alone: that is in nobody's way. What is no journal is.
    """
    if not path.exists():
        return False
    try:
        return bool(_lines(path, path.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ArtefactError):
        return True


def _lines(path: Path, text: str) -> list[str]:
    """Return the whole lines behind the first, which says what the file is."""
    head, *rest = text.split("\n") if text else [""]
    try:
        found = json.loads(head)
        fits = isinstance(found, dict) and found.get("format") == FORMAT
    except ValueError:
        fits = False
    if text and not fits:
        raise ArtefactError(f"{path}: not a journal of a search; choose another path or remove it")
    if text and found.get("version") != VERSION:
        raise ArtefactError(
            f"{path}: a journal of version {found.get('version')!r}, required {VERSION}; remove it"
        )
    return [line for line in rest if _step(line)]


def _step(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("seconds"), (int, float)):
        return None
    return found if isinstance(found.get("key"), str) and "value" in found else None
