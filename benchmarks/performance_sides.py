"""What the processes of a benchmark's sides import for docs/performance.md."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def open_kept(settings: Mapping[str, Any]) -> Any:
    """Open ``settings["inner"]``, and keep its outputs in the file ``settings["keep"]``."""
    module, _, name = str(settings["inner"]).partition(":")
    return _Kept(getattr(importlib.import_module(module), name)(settings), Path(settings["keep"]))


class _Kept:
    """An adapter whose outputs are written to a file as well."""

    def __init__(self, inner: Any, path: Path):
        self._inner, self._path = inner, path

    @property
    def facts(self) -> Mapping[str, Any]:
        return getattr(self._inner, "facts", {})

    def prepare(self, arrays: Sequence[np.ndarray]) -> Any:
        made = self._inner.prepare(arrays)

        def outputs(result: Any) -> Sequence[np.ndarray]:
            found = list(made.outputs(result))
            np.savez(self._path, *found)
            return found

        return made._replace(outputs=outputs)
