"""ExportDB: the programs by which PyTorch documents what torch.export takes."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.coverage.calls import check
from benchmarks.coverage.common import Case

TITLE = "ExportDB"
INTRO = """
The examples of [ExportDB](https://docs.pytorch.org/docs/stable/export.html),
`torch._export.db.examples`, that it says are supported: control flow, closures, mutation, dynamic
shapes, pytrees. Each is converted with its own dynamic shapes, and called at its inputs and at
its second inputs where it has any. Excluded are shapes that depend on data.
"""
TIMEOUT = 120.0
TARGET = 1.0


@functools.cache
def _examples() -> dict[str, Any]:
    from torch._export.db.case import SupportLevel
    from torch._export.db.examples import all_examples

    return {
        name: case
        for name, case in sorted(all_examples().items())
        if case.support_level == SupportLevel.SUPPORTED
    }


def names() -> list[str]:
    """Return the supported examples."""
    return list(_examples())


def run(name: str) -> list[Case]:
    """Convert one example."""
    example = _examples()[name]
    more = [example.extra_args] if example.extra_args else []
    return [
        check(
            name,
            example.model,
            example.example_args,
            example.example_kwargs,
            dynamic_shapes=example.dynamic_shapes,
            more_args=more,
            must_vary=False,
        )
    ]
