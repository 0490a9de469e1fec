"""Constants that a function closes over, as parameters.

A weight that is closed over is no input of the traced function: no transform sees it, and the
executable embeds it. ``hoist_constants`` makes a function whose parameters hold them, by the
names ``consts.0``, ``consts.1`` ..., in the order in which the trace holds them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.core._bodies import bodies
from jaxinfer.core._compat import is_tracer
from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import InputError
from jaxinfer.core.interpret import Equation, Interpreter
from jaxinfer.core.leaves import leaves, map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram
from jaxinfer.core.trace import trace

MIN_SIZE = 64
"""Elements from which on a constant is hoisted by default."""


def constants(jaxpr: Any, consts: Sequence[Any]) -> Iterator[Any]:
    """Yield the concrete arrays that a jaxpr and the jaxprs inside hold, in order."""
    yield from (value for value in consts if _concrete(value))
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if hasattr(var, "val") and _concrete(var.val):
                yield var.val
        for body in bodies(eqn):
            yield from constants(body.jaxpr, body.consts)


def _concrete(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not is_tracer(value)


def large(jaxpr: Any, consts: Sequence[Any], min_size: int) -> list[Any]:
    """Return the different constants of at least ``min_size`` elements, in order."""
    found: dict[int, Any] = {}
    for value in constants(jaxpr, consts):
        if math.prod(value.shape) >= min_size:
            found.setdefault(id(value), value)
    return list(found.values())


def hoist_constants(model: Model, *, min_size: int = MIN_SIZE) -> Model:
    """Return a model of the same function, whose closed-over arrays are parameters.

    Args:
      model: made by ``from_function`` or ``from_flax``, with example inputs. A converted model
        has its constants (index tables, masks) in its program; its weights are parameters.
      min_size: elements from which on an array is hoisted.

    Returns:
      A Model whose ``params`` are a flat dict: the old leaves by their paths, and
      ``consts.<n>``. The model itself if there is nothing to hoist. Transforms see the new
      leaves; the closed-over arrays are not read any more.

    Raises:
      InputError: the model is no function, or has been through a transform; when it is traced
        at other shapes: it holds other constants there.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> table = jnp.ones((8, 8))
      >>> model = ji.from_function(lambda p, x: x @ table, {}, (jnp.ones((2, 8)),))
      >>> list(hoist_constants(model).params)
      ['consts.0']
    """
    program = model.program
    if not isinstance(program, FunctionProgram):
        raise InputError(
            f"hoist_constants: required a model of a Python function, got a {program.kind} "
            "program: its weights are parameters already"
        )
    if model.rewrites or model.provenance.get("stages"):
        raise InputError("hoist_constants: comes before all transforms")
    (traced,) = trace(model)
    held = large(traced.jaxpr, traced.consts, min_size)
    if not held:
        return model
    old = leaves(model.params)
    names = [f"consts.{number}" for number in range(len(held))]
    if taken := [name for name in names if name in old]:
        raise InputError(f"hoist_constants: parameters are called {', '.join(taken)} already")
    specs = [(tuple(value.shape), jnp.dtype(value.dtype)) for value in held]
    example, fn = model.params, program.fn

    def hoisted(params: Any, *inputs: Any) -> Any:
        own = map_leaves(lambda path, leaf: params[path], example)
        flat, tree = jax.tree.flatten((own, inputs))
        make = jax.make_jaxpr(lambda *given: fn(*_call(tree, given)), return_shape=True)
        closed, shapes = make(*flat)
        found = large(closed.jaxpr, closed.consts, min_size)
        if [(tuple(v.shape), jnp.dtype(v.dtype)) for v in found] != specs:
            raise InputError(
                "hoist_constants: at these shapes the function holds other constants than at "
                f"its example inputs: {len(found)} of at least {min_size} elements, "
                f"required {len(specs)}; pass them as parameters"
            )
        swap = {id(value): params[name] for value, name in zip(found, names, strict=True)}
        outs = _Swapping(swap).run(closed.jaxpr, closed.consts, flat)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    params = {**old, **{n: as_array(v, n) for n, v in zip(names, held, strict=True)}}
    return model.replace(program=dataclasses.replace(program, fn=hoisted), params=params)


def _call(tree: Any, given: Sequence[Any]) -> tuple[Any, ...]:
    own, inputs = jax.tree.unflatten(tree, given)
    return (own, *inputs)


class _Swapping(Interpreter):
    """Evaluates with other values for some constants."""

    def __init__(self, swap: dict[int, Any]):
        super().__init__(lambda equation, values: None, self._holds)
        self.swap = swap

    def constant(self, value: Any) -> Any:
        return self.swap.get(id(value), value)

    def _holds(self, equation: Equation) -> bool:
        """Whether a jaxpr inside an equation holds one of them."""
        return any(
            id(value) in self.swap
            for body in bodies(equation.eqn)
            for value in constants(body.jaxpr, body.consts)
        )
