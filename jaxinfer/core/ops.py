"""The table of operator rules, and the public ``register`` for custom operators.

A rule is a plain function over JAX arrays with the operator's own arguments (schema order,
keywords by name). Rules for PyTorch's own operators are added by the converters; a custom
operator ``mylib::scale`` is registered as ``mylib.scale.default`` (name and overload).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxinfer.core.program import find_entry_point
from jaxinfer.core.table import RuleTable

OPS: RuleTable[Callable[..., Any]] = RuleTable("operator")


def register(
    *names: str,
    replace: bool = False,
    context: bool = False,
    samples: Callable[..., bool] | None = None,
) -> Callable[[Any], Any]:
    """Register a lowering rule for operators, by overload name.

    The rule gets JAX arrays, Python numbers and dtypes, and returns an array (or a tuple of
    arrays for an operator with several results). It is called while the model is traced, so
    it must be traceable.

    Args:
      names: ``"namespace.name.overload"``; the overload of an operator with one is
        ``default``.
      replace: override a rule that exists.
      context: call the rule with a ``Context`` first (``context.key()``, subgraphs).
      samples: a predicate over the node's arguments: whether the operator draws random
        numbers when called so; the model then needs ``rng_key``. Implies ``context``.

    Raises:
      ValueError: a rule of that name exists and ``replace`` is false.

    Example:
      >>> import jaxinfer as ji
      >>> @ji.register("mylib.scale.default", replace=True)
      ... def scale(x, factor):
      ...     return x * factor
    """
    find_entry_point("graph")  # so that the built-in rules are there before the user's

    def add(rule: Callable[..., Any]) -> Callable[..., Any]:
        return add_rule(*names, replace=replace, context=context, samples=samples)(rule)

    return add


def add_rule(
    *names: str,
    replace: bool = False,
    context: bool = False,
    samples: Callable[..., bool] | None = None,
) -> Callable[[Any], Any]:
    """Register without loading the built-in rules first (for the built-in rules).

    Args:
      samples: a predicate over the node's arguments (arrays stand as references): whether
        the operator draws random numbers when called so. Such a rule gets a ``Context``.
    """

    def add(rule: Callable[..., Any]) -> Callable[..., Any]:
        if context or samples is not None:
            rule.wants_context = True  # pyright: ignore[reportFunctionMemberAccess]
        if samples is not None:
            rule.samples = samples  # pyright: ignore[reportFunctionMemberAccess]
        return OPS.register(*names, replace=replace)(rule)

    return add
