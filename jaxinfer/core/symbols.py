"""Symbolic sizes: names with a range, and integer expressions over them.

Shapes of a program's inputs hold integers and expressions such as ``"batch"`` or
``"2*seq + 1"``. A plain name is bound by the first dimension that bears it; an expression is
then evaluated and compared. Expressions are parsed with ``ast`` and evaluated by the table
below: nothing else runs, so an artefact cannot smuggle code in.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any

Dim = int | str

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: a**b if 0 <= b <= 16 else math.nan,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "Max": max,
    "Min": min,
    "Mod": lambda a, b: a % b,
    "FloorDiv": lambda a, b: a // b,
    "PythonMod": lambda a, b: a % b,
    "CleanDiv": lambda a, b: a // b,
    "CeilDiv": lambda a, b: -(-a // b),
}


def evaluate(expression: Dim, sizes: Mapping[str, int]) -> int | None:
    """Return the value of an integer expression, or None where a name or function is unknown.

    >>> evaluate("2*seq + Max(1, batch)", {"seq": 3, "batch": 5})
    11
    >>> evaluate("seq//0 + other", {"seq": 3}) is None
    True
    """
    if isinstance(expression, int):
        return expression
    try:
        value = _value(ast.parse(expression, mode="eval").body, sizes)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError, RecursionError):
        return None
    return value if isinstance(value, int) else None


def _value(node: ast.AST, sizes: Mapping[str, int]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, sizes)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _CALLS[node.func.id](*(_value(arg, sizes) for arg in node.args))
    raise TypeError(f"not allowed in a size: {ast.dump(node)[:80]}")


def solve(expression: Dim, value: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the one unknown name of a linear expression ``k*name + c`` with its value.

    Rounded down where ``value`` is no multiple (evaluating then gives another value); empty if
    the expression has no or several unknown names, or is not of that form.

    >>> solve("4*n + 1", 13, {}), solve("4*n", 13, {}), solve("n*m", 6, {}), solve("n", 6, {"n": 1})
    ({'n': 3}, {'n': 3}, {}, {})
    """
    if isinstance(expression, int):
        return {}
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, RecursionError):
        return {}
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - {*sizes, *_CALLS}
    if len(names) != 1:
        return {}
    (name,) = names
    values = [evaluate(expression, {**sizes, name: n}) for n in (0, 1, 2, 3)]
    if any(v is None for v in values):
        return {}
    start, second, third, fourth = (v for v in values if v is not None)
    step = second - start
    if step <= 0 or (third, fourth) != (start + 2 * step, start + 3 * step):
        return {}
    return {name: (value - start) // step}


def is_name(dim: Dim) -> bool:
    """Return whether a dimension is a plain symbol (not an integer, not an expression)."""
    return isinstance(dim, str) and dim.isidentifier()


def bound_text(name: str, low: int, high: int | None) -> str:
    """Describe a range as users write it.

    >>> bound_text("seq", 1, 512), bound_text("batch", 0, None)
    ('1 <= seq <= 512', 'any batch')
    """
    if high is None:
        return f"{name} >= {low}" if low > 0 else f"any {name}"
    return f"{low} <= {name} <= {high}"
