"""The JSON file of a suite: written as results come, aside and renamed.

A unit is what ``names()`` lists; it holds one or more cases, each with the commit it ran on.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.coverage.common import Case

FOLDER = pathlib.Path(__file__).parents[1] / "results" / "coverage"
PACKAGES = (
    *("jax", "jaxlib", "torch", "numpy", "transformers", "timm", "torchvision"),
    *("onnx", "onnxscript"),
)
SAVE_EVERY = 20.0  # seconds


def load_suite(name: str) -> Any:
    """Import a suite's module."""
    return importlib.import_module(f"benchmarks.coverage.{name}")


def written_suites(names: Sequence[str]) -> list[str]:
    """Return the names whose module exists."""
    exists = lambda name: importlib.util.find_spec(f"benchmarks.coverage.{name}") is not None
    return [name for name in names if exists(name)]


class Book:
    """The results of one suite, by unit."""

    def __init__(self, suite: str, module: Any):
        self.path = FOLDER / f"{suite}.json"
        self.units = self._read()
        self.new: set[str] = set()
        self.gone: set[str] = set()
        self.saved = time.monotonic()
        self.commit = _commit()
        self.head = {
            "suite": suite,
            "title": module.TITLE,
            "intro": module.INTRO,
            "target": getattr(module, "TARGET", None),
            "command": f"python -m benchmarks.coverage --suite {suite}",
        }

    def _read(self) -> dict[str, list[dict[str, Any]]]:
        units: dict[str, list[dict[str, Any]]] = {}
        if self.path.exists():
            for case in json.loads(self.path.read_text())["cases"]:
                units.setdefault(case.get("unit", case["name"]), []).append(case)
        return units

    def has(self, unit: str) -> bool:
        return unit in self.units

    def failed(self, unit: str) -> bool:
        return any(case["status"] == "fail" for case in self.units.get(unit, ()))

    def add(self, unit: str, cases: Sequence[Case]) -> None:
        """Replace a unit's cases; writes the file now and then."""
        self.units[unit] = [self._entry(unit, case) for case in cases]
        self.new.add(unit)
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.write()

    def _entry(self, unit: str, case: Case) -> dict[str, Any]:
        data = {key: value for key, value in dataclasses.asdict(case).items() if value}
        if case.error is not None:
            data["error"] = float(f"{case.error:.3g}")
        if unit != case.name:
            data["unit"] = unit
        return data | {"seconds": round(case.seconds, 2), "commit": self.commit}

    def keep_only(self, units: Sequence[str]) -> None:
        """Drop the units that the suite no longer has."""
        self.gone = set(self.units) - set(units)

    def summary(self) -> str:
        """Return ``12 pass, 1 fail, 2 excluded`` over all units of the file."""
        statuses = [case["status"] for cases in self.units.values() for case in cases]
        counts = [f"{statuses.count(status)} {status}" for status in ("pass", "fail", "excluded")]
        return ", ".join(counts)

    def write(self) -> None:
        """Write the file, aside and renamed; what another process has added to it stays."""
        units = self._read() | {name: self.units[name] for name in self.new}
        self.units = {name: cases for name, cases in units.items() if name not in self.gone}
        cases = [case for unit in sorted(self.units) for case in self.units[unit]]
        head = json.dumps(self.head | _environment(self.commit), indent=1)
        lines = ",\n".join("  " + json.dumps(case) for case in cases)
        FOLDER.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(f'{head[:-2]},\n "cases": [\n{lines}\n ]\n}}\n')
        aside.replace(self.path)
        self.saved = time.monotonic()


def _environment(commit: str) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "versions": {"python": platform.python_version()} | _versions(),
        "device": "cpu",
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """Return the short commit, with a plus if the code differs from it."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], capture_output=True, text=True, check=False, cwd=FOLDER.parents[2]
        )
        return done.stdout.strip()

    changed = git("status", "--short", "--", "jaxinfer", "converters", "benchmarks/coverage")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
