"""Where float16 overflows: the float32 model is run, and what would be rounded is measured.

First the cast function is evaluated on shapes, to know which operands and results it rounds to
float16; then the function is evaluated as it was on each batch, and the largest finite magnitude
of each of these is taken out of it, from within loops and branches as well (by a callback). The
dtypes of the cast and the values of the original are the two halves, so an overflow is found
where it arises, and does not hide those behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core._compat import source_line
from jaxinfer.core.array_types import materialize
from jaxinfer.core.interpret import Equation, Interpreter
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.leaves import map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.provenance import Address
from jaxinfer.core.trace import flat_run
from jaxinfer.transforms._cast_rules import Narrow, evaluate, is_first, is_float
from jaxinfer.transforms._cast_trace import CastTrace, output_dtype, trace_declared

Place = tuple[Address, str, str, str]
"""Address, primitive, what of it, line."""


def find_overflow(
    model: Model, rewrite: Any, targets: Mapping[str, str], data: Iterable[Sequence[Any]]
) -> list[dict[str, Any]]:
    """Return what overflows float16 on batches, in program order.

    Args:
      model: before the cast.
      rewrite: the cast's.
      targets: dtypes of the parameters that it casts.
      data: batches, as leaves of the model's inputs.

    Returns:
      For each operand, result or output that overflows: ``primitive``, ``what``, ``source``
      (line of the user's code), ``largest`` magnitude in float32, the ``batch`` that has it,
      the number of ``batches`` that overflow, and the ``parameters`` of the equation.

    Cost: one float32 run a batch and a reduction for each place; one compilation a shape.
    """
    probe = _Probe(model, rewrite, targets)
    found: dict[Place, dict[str, Any]] = {}
    for number, leaves in enumerate(data):
        for place, largest in probe.run(leaves).items():
            with np.errstate(over="ignore"):
                if np.isfinite(np.float16(largest)):
                    continue
            address, primitive, what, source = place
            new = {
                "primitive": primitive,
                "what": what,
                "source": source,
                "largest": largest,
                "batch": number,
                "batches": 0,
                "parameters": probe.parameters.get(address, []),
            }
            one = found.setdefault(place, new)
            one["batches"] += 1
            if largest > one["largest"]:
                one |= {"largest": largest, "batch": number}
    return [found[place] for place in sorted(found)]


class _Probe:
    """Runs a model and takes the magnitudes out of it."""

    def __init__(self, model: Model, rewrite: Any, targets: Mapping[str, str]):
        self.model, self.rewrite = model, rewrite
        self.narrow = map_leaves(
            lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, targets.get(path, leaf.dtype)),
            model.params,
        )
        self.largest: dict[Place, float] = {}
        self.parameters: dict[Address, list[str]] = {}
        self.compiled: dict[Any, Any] = {}

    def run(self, leaves: Sequence[Any]) -> dict[Place, float]:
        """Return the largest magnitude at each place for one batch."""
        flat, tree = jax.tree.flatten(leaves)
        arrays = [value for value in flat if hasattr(value, "dtype")]
        fixed = tuple(None if hasattr(value, "dtype") else value for value in flat)
        key = (tree, repr(fixed))
        if key not in self.compiled:
            self.compiled[key] = jax.jit(functools.partial(self._run, tree, fixed))
        self.largest = {}
        rng_key = jax.random.key(0) if self.model.program.random else None
        jax.block_until_ready(self.compiled[key](self.model.params, arrays, rng_key))
        jax.effects_barrier()
        return self.largest

    def _run(self, tree: Any, fixed: Any, params: Any, arrays: Any, rng_key: Any) -> Any:
        filled = iter(arrays)
        leaves = tree.unflatten([next(filled) if v is None else v for v in fixed])
        run, declared = flat_run(self.model), dict(self.rewrite.declared)
        cast = trace_declared(run, self.narrow, leaves, rng_key, declared)
        for site in cast.uses().sites:
            paths = self.parameters.setdefault(site.address, [])
            paths += [site.path] * (site.path not in paths)
        watched = self._watched(cast)
        count = len(cast.paths)
        named = named_leaves(params)
        values = [*(named[path] for path in cast.paths), *cast.values[count:]]
        interpreter = Interpreter(functools.partial(self._rule, watched, cast.first), _always)
        outs = interpreter.run(cast.jaxpr, cast.consts, values)
        for number, (var, out) in enumerate(zip(cast.jaxpr.outvars, outs, strict=True)):
            if is_float(var.aval.dtype):
                dtype = output_dtype(var.aval.dtype, self.rewrite.policy)
                if dtype == jnp.float16 and var.aval.dtype != dtype:
                    self._take((len(cast.jaxpr.eqns),), "output", str(number), "", out)
        return [out for out in outs if is_float(out.dtype)]

    def _watched(self, cast: CastTrace) -> Mapping[Address, Narrow]:
        """Evaluate the cast function on shapes."""
        caster = cast.caster(self.rewrite)
        run = Interpreter(caster, _always).run
        jax.eval_shape(lambda *values: run(cast.jaxpr, cast.consts, values), *cast.values)
        return caster.narrowed

    def _rule(
        self,
        watched: Mapping[Address, Narrow],
        first: int,
        equation: Equation,
        values: Sequence[Any],
    ) -> Sequence[Any] | None:
        if is_first(equation.address, first):
            return [values[0]]
        narrow = watched.get(equation.address)
        if narrow is None:
            return None
        values = list(map(materialize, values))
        name, line = equation.name, source_line(equation.eqn)
        for operand in narrow.operands:
            self._take(equation.address, name, f"operand {operand}", line, values[operand])
        outs = evaluate(equation.eqn, values)
        for out in outs if narrow.results else ():
            self._take(equation.address, name, "result", line, out)
        return outs

    def _take(self, address: Address, name: str, what: str, line: str, value: Any) -> None:
        size = jnp.abs(value)
        largest = jnp.max(jnp.where(jnp.isfinite(size), size, 0), initial=0)
        jax.debug.callback(functools.partial(self._note, (address, name, what, line)), largest)

    def _note(self, place: Place, largest: Any) -> None:
        self.largest[place] = max(self.largest.get(place, 0.0), float(np.max(largest)))


def _always(equation: Equation) -> bool:
    del equation
    return True
