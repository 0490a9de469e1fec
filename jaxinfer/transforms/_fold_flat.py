"""A jaxpr as one flat list of equations, calls inlined, and its evaluation with steps replaced.

``jit``, ``closed_call`` and ``remat`` are inlined. Loops, branches, ``shard_map``, custom
derivatives and everything opaque stay one equation each; so does a ``jit`` that demands
shardings. Values are numbers, so a body that is called twice has its values twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxinfer.core._bodies import bodies
from jaxinfer.core._compat import bind, within

INLINED = ("jit", "closed_call", "core_call", "remat2", "checkpoint")
OUTPUT = -1
"""Stands among the consumers of a value for the results of the function."""


class Node(NamedTuple):
    """An equation: its operands and results by number, and the calls that it is within."""

    eqn: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scopes: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.eqn.primitive.name


@dataclasses.dataclass
class Flat:
    """A function as equations over numbered values.

    Attributes:
      nodes: the equations in order.
      avals: shape and dtype of each value.
      known: constants and literals.
      inputs, outputs: of the function.
      producer: of each value that an equation makes, that equation's index.
      consumers: of each value, the indices of the equations that read it, once for each read.
    """

    nodes: list[Node] = dataclasses.field(default_factory=list)
    avals: list[Any] = dataclasses.field(default_factory=list)
    known: dict[int, Any] = dataclasses.field(default_factory=dict)
    inputs: list[int] = dataclasses.field(default_factory=list)
    outputs: list[int] = dataclasses.field(default_factory=list)
    producer: dict[int, int] = dataclasses.field(default_factory=dict)
    consumers: list[list[int]] = dataclasses.field(default_factory=list)

    def value(self, aval: Any) -> int:
        """Number a new value."""
        self.avals.append(aval)
        self.consumers.append([])
        return len(self.avals) - 1

    def made_by(self, value: int) -> Node | None:
        """Return the equation that makes a value."""
        index = self.producer.get(value)
        return None if index is None else self.nodes[index]

    def shape(self, value: int) -> tuple[Any, ...]:
        """Return the shape of a value."""
        return tuple(self.avals[value].shape)


def flatten(jaxpr: Any, consts: Sequence[Any]) -> Flat:
    """Return a jaxpr with the calls in it inlined.

    >>> import jax.numpy as jnp
    >>> closed = jax.make_jaxpr(lambda x: jax.jit(jnp.sin)(jnp.cos(x)))(1.0)
    >>> [node.name for node in flatten(closed.jaxpr, closed.consts).nodes]
    ['cos', 'sin']
    """
    flat = Flat()
    flat.inputs = [flat.value(var.aval) for var in jaxpr.invars]
    flat.outputs = _walk(flat, jaxpr, consts, flat.inputs, ())
    for index, node in enumerate(flat.nodes):
        for value in node.inputs:
            flat.consumers[value].append(index)
        flat.producer |= dict.fromkeys(node.outputs, index)
    for value in flat.outputs:
        flat.consumers[value].append(OUTPUT)
    return flat


def _walk(
    flat: Flat, jaxpr: Any, consts: Sequence[Any], args: Sequence[int], scopes: tuple[Any, ...]
) -> list[int]:
    env: dict[Any, int] = dict(zip(jaxpr.invars, args, strict=True))

    def known(aval: Any, value: Any) -> int:
        number = flat.value(aval)
        flat.known[number] = value
        return number

    for var, value in zip(jaxpr.constvars, consts, strict=True):
        env[var] = known(var.aval, value)

    def read(var: Any) -> int:
        return known(var.aval, var.val) if hasattr(var, "val") else env[var]

    for eqn in jaxpr.eqns:
        inputs = tuple(map(read, eqn.invars))
        if _is_inlined(eqn):
            (body,) = bodies(eqn)
            outputs = _walk(flat, body.jaxpr, body.consts, inputs, (*scopes, eqn))
        else:
            outputs = [flat.value(var.aval) for var in eqn.outvars]
            flat.nodes.append(Node(eqn, inputs, tuple(outputs), scopes))
        env |= zip(eqn.outvars, outputs, strict=True)
    return list(map(read, jaxpr.outvars))


def _is_inlined(eqn: Any) -> bool:
    if eqn.primitive.name not in INLINED:
        return False
    demands = (eqn.params.get(f"{way}_shardings", ()) for way in ("in", "out"))
    return not any(isinstance(s, jax.sharding.Sharding) for group in demands for s in group)


class Step(NamedTuple):
    """What is evaluated: an equation as it is, or what stands in its place.

    Attributes:
      node: the equation, for its context.
      inputs, outputs: numbers of values.
      fn: operands -> results; None: the equation itself.
    """

    node: Node
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fn: Callable[..., Sequence[Any]] | None = None


def needed(steps: Sequence[Step], outputs: Iterable[int]) -> list[Step]:
    """Return the steps that outputs or effects need, in order."""
    wanted, found = set(outputs), []
    for step in reversed(steps):
        if step.node.eqn.effects or not wanted.isdisjoint(step.outputs):
            wanted.update(step.inputs)
            found.append(step)
    return found[::-1]


def evaluate(steps: Sequence[Step], given: Mapping[int, Any], outputs: Sequence[int]) -> list[Any]:
    """Evaluate steps in order, each in its equation's context; values are freed when read last.

    Args:
      steps: all that are needed.
      given: the values that no step makes.
      outputs: numbers of the results.
    """
    env, last = dict(given), {}
    for index, step in enumerate(steps):
        last |= dict.fromkeys(step.inputs, index)
    ends: list[list[int]] = [[] for _ in steps]
    for value, index in last.items():
        ends[index].append(value)
    kept = set(outputs)
    with contextlib.ExitStack() as outer:
        contexts = outer.enter_context(_Contexts())
        for step, over in zip(steps, ends, strict=True):
            contexts.switch(step.node.scopes)
            values = [env[value] for value in step.inputs]
            if step.fn is None:
                results = bind(step.node.eqn, values)
            else:
                with within(step.node.eqn):
                    results = step.fn(*values)
            env |= zip(step.outputs, results, strict=True)
            for value in over:
                if value not in kept:
                    del env[value]
    return [env[value] for value in outputs]


class _Contexts(contextlib.AbstractContextManager["_Contexts"]):
    """The contexts of the calls that the current equation is within."""

    def __init__(self) -> None:
        self.entered: list[tuple[Any, contextlib.AbstractContextManager[Any]]] = []

    def switch(self, scopes: Sequence[Any]) -> None:
        """Leave the calls that are over, enter those that begin."""
        same = 0
        while same < min(len(scopes), len(self.entered)) and (
            self.entered[same][0] is scopes[same]
        ):
            same += 1
        while len(self.entered) > same:
            self.entered.pop()[1].__exit__(None, None, None)
        for eqn in scopes[same:]:
            context = within(eqn)
            context.__enter__()
            self.entered.append((eqn, context))

    def __exit__(self, *error: object) -> None:
        self.switch(())
