"""Whether several traces are one program, and which of its equations are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.core._bodies import bodies
from jaxinfer.core._compat import scope_of, source_line

INLINE = (
    "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"
)  # fmt: skip
"""Primitives whose body is evaluated once, on the operands."""


def where(eqn: Any, around: Sequence[Any] = ()) -> str:
    """Return the source line of an equation, and the module that it belongs to if that is known.

    What JAX traced for itself has no line of the user's: it is that of the equation around it.
    """
    eqns = (eqn, *reversed(around))
    line = next(filter(None, map(source_line, eqns)), "an unknown line")
    scope = next(filter(None, map(scope_of, eqns)), "")
    return f"{line} in {scope}" if scope else line


_FIXED = ("reverse", "unroll", "num_consts", "num_carry", "cond_nconsts", "body_nconsts")
"""Parameters of equations with jaxprs inside that must be the same."""


def unlike(eqns: Sequence[Any], sizes: Sequence[Mapping[str, int]], may: Sequence[str]) -> str:
    """Return how the traces differ in an equation where they must not, or nothing.

    Args:
      eqns: of every trace, None where one has ended.
      sizes: of every trace.
      may: parameters of the primitive that may differ.
    """
    base = eqns[0]
    for at, eqn in zip(sizes, eqns, strict=True):
        if eqn is None:
            return f"it is not there at {sizes_text(at)}"
        other = eqn.primitive.name
        if other != base.primitive.name:
            return f"at {sizes_text(at)} there is {other} in its place ({where(eqn)})"
        if len(eqn.invars) != len(base.invars) or len(eqn.outvars) != len(base.outvars):
            return f"at {sizes_text(at)} it has another number of operands"
        pairs = zip((*base.invars, *base.outvars), (*eqn.invars, *eqn.outvars), strict=True)
        for a, b in pairs:
            if hasattr(a, "val") != hasattr(b, "val"):
                return f"at {sizes_text(at)} a number stands where a value is computed"
            if getattr(a.aval, "dtype", None) != getattr(b.aval, "dtype", None):
                return f"at {sizes_text(at)} it has other dtypes"
            if len(getattr(a.aval, "shape", ())) != len(getattr(b.aval, "shape", ())):
                return f"at {sizes_text(at)} it has other ranks"
        inside = [bodies(base), bodies(eqn)]
        if len(inside[0]) != len(inside[1]):
            return f"at {sizes_text(at)} it has another number of branches"
        for key, value in base.params.items():
            if key in may or (inside[0] and key not in _FIXED):
                continue
            if not equal(value, eqn.params.get(key)):
                mine, other = (str(x)[:60] for x in (value, eqn.params.get(key)))
                return f"its {key} is {mine}, and {other} at {sizes_text(at)}"
    return ""


def needed_of(jaxpr: Any, live: Sequence[bool]) -> tuple[dict[int, list[bool]], list[bool]]:
    """Return the equations that the wanted results depend on, with their own wanted results.

    And which of the jaxpr's inputs they depend on.
    """
    wanted = {
        var for var, on in zip(jaxpr.outvars, live, strict=True) if on and not hasattr(var, "val")
    }
    needed: dict[int, list[bool]] = {}
    for index in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn = jaxpr.eqns[index]
        outs = [var in wanted for var in eqn.outvars]
        if not any(outs) and not eqn.effects:
            continue
        needed[index] = outs
        reads = [True] * len(eqn.invars)
        if eqn.primitive.name in INLINE and not eqn.effects:
            (body,) = bodies(eqn)
            reads = needed_of(body.jaxpr, outs)[1]
        wanted |= {
            var for var, on in zip(eqn.invars, reads, strict=True) if on and not hasattr(var, "val")
        }
    return needed, [var in wanted for var in jaxpr.invars]


def all_same(values: Sequence[Any]) -> bool:
    """Whether arrays or numbers are the same, nan being itself."""
    first = np.asarray(values[0])
    return all(
        np.shape(value) == first.shape
        and np.array_equal(np.asarray(value), first, equal_nan=_nan(first))
        for value in values[1:]
    )


def _nan(array: np.ndarray) -> bool:
    return array.dtype.kind in "fc"


def equal(a: Any, b: Any) -> bool:
    """Whether two parameters of an equation are the same."""
    if hasattr(a, "eqns") or hasattr(a, "jaxpr"):
        return str(a) == str(b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return all_same([a, b])
    try:
        return a is b or bool(a == b)
    except Exception:  # what cannot be compared is not the same
        return False


def series(values: Sequence[Any]) -> str:
    """Describe what was found in each trace."""
    return ", ".join(str(v)[:12] for v in values)


def sizes_text(at: Mapping[str, int]) -> str:
    """Describe sizes."""
    return ", ".join(f"{name} = {size}" for name, size in at.items())
