"""Control flow: torch's higher-order operators as ``lax.cond``, ``while_loop``, ``scan``, ``map``.

Branches and bodies are subgraphs. A condition that is a Python bool picks its branch while
tracing. Loop state keeps the dtypes it enters with. Random numbers inside a loop differ from
step to step: the step's number goes into the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import is_array, rule


def _settle(values: Sequence[Any], like: Sequence[Any] | None = None) -> list[Any]:
    """Arrays of definite dtype (those of ``like``), so that both sides of a carry agree."""
    if like is None:
        return [jnp.asarray(value, jnp.result_type(value)) for value in values]
    return [jnp.asarray(value, a.dtype) for value, a in zip(values, like, strict=True)]


@rule("higher_order.cond", context=True)
def cond(
    context: Any, predicate: Any, true_graph: Any, false_graph: Any, operands: Sequence[Any]
) -> list[Any]:
    """true_graph(operands) if predicate else false_graph(operands)."""
    if not is_array(predicate):
        return context.call(true_graph if predicate else false_graph, operands)
    return lax.cond(
        jnp.reshape(predicate, ()) != 0,
        lambda: _settle(context.call(true_graph, operands)),
        lambda: _settle(context.call(false_graph, operands)),
    )


@rule("higher_order.while_loop", context=True)
def while_loop(
    context: Any,
    cond_graph: Any,
    body_graph: Any,
    carried: Sequence[Any],
    additional: Sequence[Any] = (),
) -> list[Any]:
    """Carried = body(carried) while cond(carried); additional inputs do not change."""
    first = _settle(carried)

    def test(state: tuple[Any, list[Any]]) -> Any:
        step, values = state
        (go,) = context.call(cond_graph, [*values, *additional], salt=step)
        return jnp.reshape(go, ()) != 0

    def body(state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        step, values = state
        new = context.call(body_graph, [*values, *additional], salt=step)
        return step + 1, _settle(new, values)

    return lax.while_loop(test, body, (jnp.zeros((), np.int32), first))[1]


@rule("higher_order.scan", context=True)
def scan(
    context: Any,
    combine_graph: Any,
    init: Sequence[Any],
    xs: Sequence[Any],
    additional: Sequence[Any] = (),
) -> list[Any]:
    """(carry, y[i]) = combine(carry, x[i]) along the first dim; gives [*carry, *ys]."""
    first = _settle(init)

    def step(state: tuple[Any, list[Any]], slices: list[Any]) -> Any:
        index, carry = state
        out = context.call(combine_graph, [*carry, *slices, *additional], salt=index)
        new = _settle(out[: len(carry)], carry)
        return (index + 1, new), _settle(out[len(carry) :])

    (_, carry), ys = lax.scan(step, (jnp.zeros((), np.int32), first), list(xs))
    return [*carry, *ys]


@rule("higher_order.map_impl", context=True)
def map_impl(
    context: Any, body_graph: Any, xs: Sequence[Any], additional: Sequence[Any] = ()
) -> list[Any]:
    """y[i] = body(x[i]) along the first dim."""

    def step(index: Any, slices: list[Any]) -> Any:
        out = context.call(body_graph, [*slices, *additional], salt=index)
        return index + 1, _settle(out)

    return lax.scan(step, jnp.zeros((), np.int32), list(xs))[1]


@rule("higher_order.invoke_quant_packed", "higher_order.strict_mode", context=True)
def called(context: Any, body_graph: Any, *operands: Any, **options: Any) -> list[Any]:
    """body(operands): a region marked for torch's own compiler."""
    del options
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    return context.call(body_graph, operands)


@rule("higher_order.hints_wrapper", context=True)
def hints_wrapper(
    context: Any,
    body_graph: Any,
    operands: Sequence[Any],
    options: Any = None,
    *,
    hints: Any = None,
) -> list[Any]:
    """body(operands): hints are for torch's own compiler."""
    del options, hints
    return context.call(body_graph, operands)
