"""One step of ``recover``: the loss of what trains, its gradient, and the optimizer's update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import with_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.trace import flat_run
from jaxinfer.transforms import _recover_leaves as kinds

Array = jax.Array

DIVERGENCES = ("kl", "mse")


def step_of(
    model: Model,
    loss: Any,
    tx: Any,
    teacher: Model | None,
    share: float,
    how: tuple[str, float],
) -> Callable[..., Any]:
    """Return the jitted step; it may use up the values and the optimizer's state."""
    forward = _forward(model)
    forward_teacher = None if teacher is None else _forward(teacher)

    def total(
        values: Any, masks: Any, leaves_: Any, seen: Any, inputs: Any, target: Any, key: Any
    ) -> Any:
        changes = {
            path: kinds.seen(value, leaves_[path], masks.get(path))
            for path, value in values.items()
        }
        output = forward(with_leaves(model.params, {**leaves_, **changes}), inputs, key)
        found: Any = 0.0
        if share < 1:
            found = (1 - share) * _scalar(loss(output, target))
        if forward_teacher is not None:
            wanted = jax.lax.stop_gradient(forward_teacher(seen, inputs, key))
            found += share * distance(output, wanted, *how)
        return found

    def step(
        values: Any, state: Any, masks: Any, leaves_: Any, seen: Any, inputs: Any, target: Any,
        key: Any,
    ) -> Any:  # fmt: skip
        value, grads = jax.value_and_grad(total)(values, masks, leaves_, seen, inputs, target, key)
        updates, state = tx.update(grads, state, values)
        made = {}
        for path, old in values.items():
            new = (old + updates[path]).astype(old.dtype)
            made[path] = jnp.where(masks[path], new, old) if path in masks else new
        return made, state, value

    return jax.jit(step, donate_argnums=(0, 1))


def _forward(model: Model) -> Callable[..., Any]:
    """Return ``forward(params, leaves, key)``, without the new state of a model that has some."""
    run, program, specs = flat_run(model), model.program, model.inputs
    is_open = model.signature.open
    mutates = bool(getattr(program, "mutates", ()))

    def forward(params: Any, given: Sequence[Any], key: Any) -> Any:
        if not is_open:  # a leaf that is no array is part of the function
            given = [
                value if spec.is_array else spec.value
                for spec, value in zip(specs, given, strict=True)
            ]
        outputs = program.finish(run(params, given, key if program.random else None))
        return outputs[0] if mutates else outputs

    return forward


def _scalar(value: Any) -> Any:
    if jnp.shape(value) != ():
        raise InputError(
            f"recover: loss: required a scalar, got shape {jnp.shape(value)}; take its mean"
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise InputError(f"recover: loss: required a float, got {jnp.result_type(value)}")
    return value


def distance(output: Any, wanted: Any, divergence: str, temperature: float) -> Any:
    """Return how far outputs are from the teacher's, the mean over float outputs.

    >>> float(distance(jnp.zeros((1, 2)), jnp.zeros((1, 2)), "kl", 2.0))
    0.0

    Raises:
      InputError: outputs of another structure or shape, or none of floats.
    """
    ours, tree = jax.tree.flatten(output)
    theirs, other = jax.tree.flatten(wanted)
    if tree != other or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        raise InputError(
            "recover: outputs of shapes "
            f"{jax.tree.map(jnp.shape, output)}, the teacher's {jax.tree.map(jnp.shape, wanted)}"
        )
    found = [
        _distance(a, b, divergence, temperature)
        for a, b in zip(ours, theirs, strict=True)
        if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    if not found:
        raise InputError("recover: no output is of floats: there is nothing to distill")
    return sum(found) / len(found)


def _distance(output: Array, wanted: Array, divergence: str, temperature: float) -> Array:
    output, wanted = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (output, wanted))
    if divergence == "mse":
        return jnp.mean((output - wanted) ** 2)
    log_q, log_p = (jax.nn.log_softmax(x / temperature, axis=-1) for x in (output, wanted))
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
