"""Every branch on a JAX version, and every use of JAX's semi-public modules, is here.

Supported: jax 0.9.2 to 0.11, without 0.10.2 (wrong numbers on CPU, jax issue 39103).
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax


def x64_enabled() -> bool:
    """Return whether 64-bit types are on where the caller stands (config or context)."""
    return bool(jax.config.read("jax_enable_x64"))


def x64_scope(on: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which 64-bit types are on (for this thread); none if not ``on``."""
    return jax.enable_x64(True) if on else contextlib.nullcontext()


def subjaxprs(params: dict[str, Any]) -> list[Any]:
    """Return the jaxprs among an equation's parameters (open or closed, also in tuples)."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                found.append(item)
            elif hasattr(item, "jaxpr"):
                found.append(item.jaxpr)
    return found
