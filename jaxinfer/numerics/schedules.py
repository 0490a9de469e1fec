"""Sparsity over the steps of a training run, as pure functions of the step.

A schedule maps a step (a number, or i32[] or f32[], also traced) to f32[], the sparsity that
masks should have from that step on. Masks take it as it is (``unstructured(scores,
schedule(step))``), inside ``jit`` too.

Sources: ``cubic``, Zhu, Gupta, "To prune, or not to prune", 2017,
https://arxiv.org/abs/1710.01878; ``iterative``, Frankle, Carbin, "The lottery ticket hypothesis",
2019, https://arxiv.org/abs/1803.03635.

Not done here: when masks are computed anew (the training loop), and rewinding weights.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinfer.core.errors import InputError

Array = jax.Array

Schedule = Callable[[int | float | Array], Array]


def one_shot(final: float, at: int = 0) -> Schedule:
    """Return the schedule that is 0 before step ``at`` and ``final`` from there on.

    Raises:
      InputError: ``final`` outside [0, 1).

    >>> [float(one_shot(0.5, at=2)(step)) for step in range(4)]
    [0.0, 0.0, 0.5, 0.5]
    """
    _check("one_shot", final=final)
    return lambda step: jnp.where(jnp.asarray(step) >= at, jnp.float32(final), jnp.float32(0))


def cubic(initial: float, final: float, start: int, end: int) -> Schedule:
    """Return ``final + (initial - final) (1 - (step - start) / (end - start))^3``.

    Before ``start`` it is ``initial``, from ``end`` on exactly ``final``: fast while much is
    redundant, slow at the end.

    Raises:
      InputError: not ``0 <= initial <= final < 1``, or not ``start < end``.

    >>> [float(cubic(0.0, 0.5, 0, 4)(step)) for step in (-1, 0, 2, 4, 5)]
    [0.0, 0.0, 0.4375, 0.5, 0.5]
    """
    _check("cubic", initial=initial, final=final)
    if initial > final:
        raise InputError(f"cubic schedule: required initial <= final, got {initial} > {final}")
    if start >= end:
        raise InputError(f"cubic schedule: required start < end, got {start} and {end}")

    def schedule(step: int | float | Array) -> Array:
        # Subtracted before the conversion: exact for steps of integers beyond 2^24.
        left = jnp.clip((end - jnp.asarray(step)).astype(jnp.float32) / (end - start), 0, 1)
        return jnp.float32(final) + jnp.float32(initial - final) * left**3

    return schedule


def iterative(final: float, rounds: int, *, every: int = 1, start: int = 0) -> Schedule:
    """Return the schedule of ``rounds`` equal cuts: each keeps the same share of what is left.

    ``1 - (1 - final)^(done / rounds)``, where ``done`` rounds are over: 0 before ``start``, 1 from
    ``start`` on, one more ``every`` so many steps.

    Raises:
      InputError: ``final`` outside [0, 1), or ``rounds`` or ``every`` below 1.

    >>> [round(float(iterative(0.75, 2, every=3)(step)), 6) for step in (-1, 0, 2, 3, 9)]
    [0.0, 0.5, 0.5, 0.75, 0.75]
    """
    _check("iterative", final=final)
    if rounds < 1 or every < 1:
        raise InputError(
            f"iterative schedule: rounds and every must be at least 1, got {rounds} and {every}"
        )
    # Of so few values a table is exact where a power in float32 is not.
    table = [1 - (1 - final) ** (done / rounds) for done in range(rounds)] + [final]

    def schedule(step: int | float | Array) -> Array:
        done = (jnp.asarray(step) - start) // every + 1
        return jnp.asarray(table, jnp.float32)[jnp.clip(done, 0, rounds).astype(jnp.int32)]

    return schedule


def _check(name: str, **sparsities: float) -> None:
    for key, value in sparsities.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} schedule: {key} must be in [0, 1), got {value}")
