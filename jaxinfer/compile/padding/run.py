"""Evaluates a function at its bucket's sizes, with the actions that make the real part right.

The interpreter of the other transforms (``core.interpret``) on the trace at the bucket's sizes:
numbers with a formula are computed from the real sizes, masks are put on operands, and what has
an action is computed by it. Array types at the leaves of the parameters meet the same rules as
elsewhere, after the masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from jaxinfer.compile.padding.axes import Axis
from jaxinfer.compile.padding.control import KeepCarry
from jaxinfer.compile.padding.site import Findings
from jaxinfer.compile.padding.sizes import Length, number_value
from jaxinfer.core._bodies import Body
from jaxinfer.core._compat import bind, scan_counts, within
from jaxinfer.core.array_types import array_rule, materialize
from jaxinfer.core.interpret import ENTERING, Equation, Interpreter, as_declared

Array = Any


def real(run: Any, length: int | Length) -> Any:
    """Return a length at the run's sizes."""
    return length.at(run.sizes) if isinstance(length, Length) else length


def real_part(run: Any, shape: Sequence[int], axis: int, factors: Axis) -> Array:
    """Return whether places of an axis are real, bool of size 1 along the other axes."""
    place, kept = jnp.arange(shape[axis], dtype=jnp.int32), None
    tail = shape[axis]
    for factor in factors:
        tail //= factor.size
        if factor.length is not None:
            mine = (place // tail) % factor.size < real(run, factor.length)
            kept = mine if kept is None else kept & mine
    assert kept is not None
    return kept.reshape([-1 if at == axis else 1 for at in range(len(shape))])


def fill_of(name: Any, dtype: Any) -> Any:
    """Return what a fill is in a dtype: a number, ``lowest``, ``highest``, ``last``, ``ones``."""
    if not isinstance(name, str):
        return name
    if dtype == jnp.bool_:
        return {"lowest": False}.get(name, True)
    if jnp.issubdtype(dtype, jnp.inexact):
        return {"lowest": -np.inf, "highest": np.inf, "last": np.nan}[name]
    if name == "ones":  # all bits
        return -1 if jnp.issubdtype(dtype, jnp.signedinteger) else ml_dtypes.iinfo(dtype).max
    bounds = ml_dtypes.iinfo(dtype)
    return bounds.min if name == "lowest" else bounds.max


def replaced(run: Any, x: Array, axis: int, factors: Axis, fill: Any) -> Array:
    """Return ``x`` with the padding of an axis replaced."""
    value = jnp.asarray(fill_of(fill, x.dtype)).astype(x.dtype)
    return jnp.where(real_part(run, x.shape, axis, factors), x, value)


def moved(run: Any, x: Array, axis: int, before: Axis, after: Axis) -> Array:
    """Return ``x`` with the real places of an axis where ``after`` has them, in their order."""
    size = x.shape[axis]
    place, rank, tail = jnp.arange(size, dtype=jnp.int32), jnp.zeros(size, jnp.int32), size
    lengths = lambda factors: [real(run, f.length) if f.length else f.size for f in factors]
    for factor, length in zip(after, lengths(after), strict=True):
        tail //= factor.size
        rank = rank * length + (place // tail) % factor.size
    at, stride = jnp.zeros(size, jnp.int32), 1
    for factor, length in reversed(list(zip(before, lengths(before), strict=True))):
        at += rank % jnp.maximum(length, 1) * stride
        rank //= jnp.maximum(length, 1)
        stride *= factor.size
    return jnp.take(x, at, axis=axis, mode="clip")


class PaddedRun(Interpreter):
    """The interpreter of one call.

    Args:
      found: what the walk found.
      sizes: the real sizes, integers or int32 scalars.
    """

    def __init__(self, found: Findings, sizes: Mapping[str, Any]):
        super().__init__(self._rule, lambda equation: equation.address in found.entered)
        self.found = found
        self.sizes = {name: jnp.asarray(size, jnp.int32) for name, size in sizes.items()}

    def constant(self, value: Any) -> Any:
        """Return a constant, or what its formula gives."""
        known = self.found.constants.get(id(value))
        return value if known is None else number_value(known[1], self.sizes, value.dtype)

    def _equation(self, equation: Equation, values: Sequence[Any]) -> Sequence[Any]:
        given = list(values)
        for operand, formula in self.found.numbers.get(equation.address, {}).items():
            dtype = equation.eqn.invars[operand].aval.dtype
            given[operand] = number_value(formula, self.sizes, dtype)
        return super()._equation(equation, given)

    def _rule(self, equation: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        action = self.found.actions.get(equation.address)
        if action is None:
            return array_rule(equation, values)
        given = list(values)
        for move in action.moves:
            (x,) = self.arrays(equation, [given[move.operand]])
            given[move.operand] = moved(self, x, move.axis, move.before, move.after)
        for mask in action.masks:
            fill = mask.fill
            if isinstance(fill, tuple):
                fill = materialize(values[fill[1]])
            (x,) = self.arrays(equation, [given[mask.operand]])
            given[mask.operand] = replaced(self, x, mask.axis, mask.factors, fill)
        if action.compute is not None:
            return action.compute(self, equation, given)
        return self.evaluated(equation, given)

    def evaluated(self, equation: Equation, values: Sequence[Any]) -> Sequence[Any]:
        """Return the results of an equation as it is, on arrays or array types."""
        outs = array_rule(equation, values)
        return bind(equation.eqn, self.arrays(equation, values)) if outs is None else outs


def _scan(
    interpreter: Interpreter, equation: Equation, inside: Sequence[Body], values: Sequence[Any]
) -> Sequence[Any]:
    """A scan; where its steps are padded, those beyond the real length keep the carry."""
    assert isinstance(interpreter, PaddedRun)
    action = interpreter.found.actions.get(equation.address)
    if action is None or not isinstance(action.compute, KeepCarry):
        return ENTERING["scan"](interpreter, equation, inside, values)
    params = equation.params
    consts, carry = scan_counts(params)
    length, given = params["length"], list(values)
    init = as_declared(equation, slice(consts, consts + carry), given, interpreter)
    xs = interpreter.arrays(equation, given[consts + carry :])
    end = real(interpreter, action.compute.length)
    fn = interpreter.body(equation, 0, inside[0])

    def step(state: Any, x: Any) -> tuple[Any, Any]:
        number, *each = x
        outs = fn(*given[:consts], *state, *each)
        on = number < end
        kept = [lax.select(on, new, old) for new, old in zip(outs, state, strict=False)]
        return kept, outs[carry:]

    options = {name: params[name] for name in ("reverse", "unroll")}
    with within(equation.eqn):
        state, ys = lax.scan(step, init, [jnp.arange(length), *xs], length=length, **options)
    return [*state, *ys]


PaddedRun.entering = {**ENTERING, "scan": _scan}
