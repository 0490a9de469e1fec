"""The table of rewrites: which class a rewrite in an artefact is of."""

from __future__ import annotations

from typing import Any

from jaxinfer.core.table import RuleTable

REWRITES: RuleTable[Any] = RuleTable("rewrite")
"""Rewrite kind to its class: ``kind``, ``to_json()``, ``from_json(data)``.

One that changes the names or shapes of the parameters has ``param_specs(old)`` as well: what is
read (values with ``shape`` and ``dtype`` by path) in place of ``old``.
"""
