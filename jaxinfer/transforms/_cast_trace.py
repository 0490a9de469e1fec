"""Tracing a function in its declared dtypes, and evaluating the trace under a cast policy.

The trace begins with one equation for each parameter that is stored narrower than declared,
which brings it there; the interpreter's rule skips these, so that what follows has the declared
dtypes in its equations and the stored ones in its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core.array_types import is_array_type, materialize
from jaxinfer.core.dtypes import dtype_of
from jaxinfer.core.interpret import Interpreter
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.leaves import map_leaves
from jaxinfer.core.provenance import Address, Uses, uses_of
from jaxinfer.transforms._cast_rules import CLASSES, Caster, is_float


class CastTrace(NamedTuple):
    """A trace in declared dtypes.

    Attributes:
      jaxpr, consts: on the leaves of the parameters, then the arrays of the inputs and the key.
      paths: of the parameters.
      values: what it is to be evaluated on.
      first: how many equations bring parameters to their declared dtypes.
      structure: of the outputs.
    """

    jaxpr: Any
    consts: Any
    paths: tuple[str, ...]
    values: list[Any]
    first: int
    structure: Any

    def uses(self) -> Uses:
        """Return where the parameters go."""
        return uses_of(self.jaxpr, self.paths)

    def caster(self, rewrite: Any) -> Caster:
        """Return the interpreter's rule for this trace."""
        at: dict[Address, str] = {}
        others: dict[str, str] = dict(rewrite.computes)
        if any(path in others for path in self.paths):
            found = self.uses()
            for use in (*found.sites, *found.obstacles):
                if use.path in others and CLASSES.get(use.primitive) == "product":
                    own = others[use.path]
                    both = dtype_of(at.get(use.address, own)), dtype_of(own)
                    at[use.address] = jnp.promote_types(*both).name
        policy = rewrite.policy
        return Caster(policy.compute, at, self.first, policy.float64)


def trace_declared(
    run: Callable[..., Any], params: Any, leaves: Any, rng_key: Any, declared: Mapping[str, str]
) -> CastTrace:
    """Trace a flat function with some parameters in other dtypes than they have.

    Args:
      run: ``run(params, leaves, rng_key)``.
      params, leaves, rng_key: its arguments, or shapes.
      declared: dtypes by path.
    """
    named = {path: _abstract_or_array(leaf) for path, leaf in named_leaves(params).items()}
    narrow = [path for path, v in named.items() if declared.get(path, v.dtype) != v.dtype]
    flat, tree = jax.tree.flatten(leaves)
    arrays = [value for value in flat if hasattr(value, "dtype")]
    arrays = list(map(_abstract_or_array, arrays))

    def fn(values: Any, arrays: Any, rng_key: Any) -> Any:
        by_path = dict(zip(named, values, strict=True))
        for path in narrow:
            by_path[path] = lax.convert_element_type(by_path[path], dtype_of(declared[path]))
        filled = iter(arrays)
        given = [next(filled) if hasattr(value, "dtype") else value for value in flat]
        own = map_leaves(lambda path, leaf: by_path[path], params)
        return run(own, tree.unflatten(given), rng_key)

    avals = [
        jax.ShapeDtypeStruct(v.shape, v.dtype) if is_array_type(v) else v for v in named.values()
    ]
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(avals, arrays, rng_key)
    values = [*named.values(), *arrays, *jax.tree.leaves(rng_key)]
    structure = jax.tree.structure(shapes)
    return CastTrace(closed.jaxpr, closed.consts, tuple(named), values, len(narrow), structure)


def _abstract_or_array(value: Any) -> Any:
    """Return a value that is no numpy array: a scalar of those would count as a literal."""
    known = is_array_type(value) or isinstance(value, (jax.Array, jax.ShapeDtypeStruct))
    return value if known else jnp.asarray(value)


def evaluate_cast(
    rewrite: Any, run: Callable[..., Any], params: Any, leaves: Any, rng_key: Any
) -> Any:
    """Evaluate a flat function under a policy; the outputs in their declared dtypes or its own."""
    traced = trace_declared(run, params, leaves, rng_key, dict(rewrite.declared))
    interpreter = Interpreter(traced.caster(rewrite), enter=lambda equation: True)
    outs = interpreter.run(traced.jaxpr, traced.consts, traced.values)
    pairs = zip(traced.jaxpr.outvars, outs, strict=True)
    given = [_output(var.aval.dtype, out, rewrite.policy) for var, out in pairs]
    return jax.tree.unflatten(traced.structure, given)


def output_dtype(declared: Any, policy: Any) -> Any:
    """Return the dtype that an output of a declared dtype comes in."""
    if not is_float(declared) or not policy.output:
        return declared
    return declared if declared == "float64" and not policy.float64 else dtype_of(policy.output)


def _output(declared: Any, value: Any, policy: Any) -> Any:
    value, dtype = jnp.asarray(materialize(value)), output_dtype(declared, policy)
    return value if value.dtype == dtype else lax.convert_element_type(value, dtype)
