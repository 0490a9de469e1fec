"""Control flow: If, Loop and Scan over subgraphs.

A condition that is static picks its branch while tracing. A Loop of a static number of steps
whose state keeps its shapes is a ``lax.scan``; one that ends on a condition a
``lax.while_loop``; one whose state grows (sequences, concatenations) is unrolled.
Source: https://onnx.ai/onnx/operators/onnx__Loop.html, onnx__Scan.html, onnx__If.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import rule

UNROLLED = 4096
"""Steps up to which a loop may be unrolled."""


def _settle(values: Sequence[Any], like: Sequence[Any] | None = None) -> list[Any]:
    """Arrays of definite dtype (those of ``like``), so that both sides of a carry agree."""
    if like is None:
        return [jnp.asarray(value, jnp.result_type(value)) for value in values]
    return [jnp.asarray(value, a.dtype) for value, a in zip(values, like, strict=True)]


@rule("onnx.If", context=True)
def if_(
    context: Any, condition: Any, then: Any, other: Any, then_values: Any, other_values: Any
) -> list[Any]:
    """The results of one branch or the other."""
    if isinstance(condition, (np.ndarray, np.bool_, bool)):
        took = bool(np.reshape(condition, ()))
        return context.call(then if took else other, then_values if took else other_values)
    return lax.cond(
        jnp.reshape(condition, ()) != 0,
        lambda: _settle(context.call(then, then_values)),
        lambda: _settle(context.call(other, other_values)),
    )


@rule("onnx.Loop", context=True)
def loop(
    context: Any,
    trip: Any,
    go: Any,
    body: Any,
    state: Sequence[Any],
    captured: Sequence[Any],
    *,
    endless: bool,
    static_step: bool = False,
) -> list[Any]:
    """body(step, go, state) -> (go, state, outputs), ``trip`` times or until ``go`` is false.

    Args:
      trip: number of steps, static or not; None: no limit.
      endless: the body never ends the loop itself.
      static_step: the body needs the number of the step as a static value.
    """
    index = dtypes.canonical("int64")

    def call(step: Any, go: Any, values: Sequence[Any]) -> tuple[Any, list[Any], list[Any]]:
        salt = None if isinstance(step, np.ndarray) else step
        new_go, *out = context.call(body, [step, go, *values, *captured], salt=salt)
        return new_go, out[: len(values)], out[len(values) :]

    count = int(np.reshape(trip, ())) if isinstance(trip, np.ndarray) else None
    arrays = all(hasattr(value, "shape") for value in state)
    true = jnp.asarray(True)
    if count is not None and endless:
        first = _settle(state) if arrays else []
        steady = arrays and not static_step and _keeps(call, first, index, true)
        if not steady:
            return _unrolled(call, count, state, static_step, index)

        def step(carry: Any, i: Any) -> Any:
            _, new, out = call(i, true, carry)
            return _settle(new, carry), _settle(out)

        last, outs = lax.scan(step, first, jnp.arange(count, dtype=index))
        return [*last, *outs]
    first = _settle(state)

    def test(carry: Any) -> Any:
        i, go, _ = carry
        return go if trip is None else go & (i < jnp.reshape(jnp.asarray(trip, index), ()))

    def run(carry: Any) -> Any:
        i, go, values = carry
        new_go, new, out = call(i, go, values)
        if out:
            raise ValueError(
                "a Loop that ends on a condition computed from data has outputs for each step: "
                "their number depends on data. Give it a fixed number of steps"
            )
        return i + 1, jnp.reshape(new_go, ()) != 0, _settle(new, values)

    begin = true if go is None else jnp.reshape(jnp.asarray(go), ()) != 0
    return lax.while_loop(test, run, (jnp.zeros((), index), begin, first))[2]


def _keeps(call: Any, first: Sequence[Any], index: Any, true: Any) -> bool:
    """Whether a step leaves the shapes of the state as they are."""
    step = jax.ShapeDtypeStruct((), index)
    _, new, _ = jax.eval_shape(lambda i, s: call(i, true, s), step, list(first))
    return all(hasattr(a, "shape") and a.shape == b.shape for a, b in zip(new, first, strict=True))


def _unrolled(
    call: Any, count: int, state: Sequence[Any], static_step: bool, index: Any
) -> list[Any]:
    if count > UNROLLED:
        raise ValueError(
            f"a Loop of {count} steps whose state changes shape would be unrolled; the limit is "
            f"{UNROLLED}"
        )
    outs: list[list[Any]] = []
    values = list(state)
    for i in range(count):
        step = np.asarray(i, np.int64)
        _, values, out = call(step if static_step else jnp.asarray(i, index), True, values)
        outs.append(out)
    return [*values, *(jnp.stack(column) for column in zip(*outs, strict=True))]


@rule("onnx.Scan", context=True)
def scan(
    context: Any,
    body: Any,
    state: Sequence[Any],
    xs: Sequence[Any],
    captured: Sequence[Any],
    *,
    input_axes: Sequence[int],
    input_reverse: Sequence[int],
    output_axes: Sequence[int],
    output_reverse: Sequence[int],
    outputs: int,
) -> list[Any]:
    """body(state, slices) -> (state, outputs), along one axis of each x, forwards or back."""
    first = _settle(state)
    moved = []
    for x, axis, back in zip(xs, input_axes, input_reverse, strict=True):
        x = jnp.moveaxis(x, axis, 0)
        moved.append(jnp.flip(x, 0) if back else x)

    def step(carry: Any, now: Any) -> Any:
        index, values = carry
        out = context.call(body, [*values, *now, *captured], salt=index)
        return (index + 1, _settle(out[: len(values)], values)), _settle(out[len(values) :])

    (_, last), ys = lax.scan(step, (jnp.zeros((), jnp.int32), first), moved)
    results = []
    for y, axis, back in zip(ys, output_axes, output_reverse, strict=False):
        y = jnp.flip(y, 0) if back else y
        results.append(jnp.moveaxis(y, 0, axis))
    return [*last, *results][: outputs or None]


@rule("onnx.BatchedScan", context=True)
def batched_scan(
    context: Any,
    body: Any,
    state: Sequence[Any],
    xs: Sequence[Any],
    captured: Sequence[Any],
    *,
    input_reverse: Sequence[int],
) -> list[Any]:
    """Scan of opset 8: every state and x has a batch axis in front, and time second."""
    zeros = [0] * len(xs)

    def one(state: Any, xs: Any) -> list[Any]:
        return scan(
            context, body, state, xs, captured, input_axes=zeros, input_reverse=input_reverse,
            output_axes=[0] * 64, output_reverse=[0] * 64, outputs=0,
        )  # fmt: skip

    return jax.vmap(one)(list(state), list(xs))
