"""A model's function as a jaxpr, with the place of every parameter in it. Shapes only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves, map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.provenance import Uses, uses_of
from jaxinfer.core.symbols import evaluate


class Traced(NamedTuple):
    """A function on the leaves of the parameters, then the inputs.

    Attributes:
      jaxpr, consts: the trace; its first ``len(paths)`` inputs are the parameters.
      paths: of the parameters, in order.
      component: which of the model's functions it is (``model`` if there is one).
    """

    jaxpr: Any
    consts: Sequence[Any]
    paths: tuple[str, ...]
    component: str

    @property
    def uses(self) -> Uses:
        """Where the parameters go."""
        return uses_of(self.jaxpr, self.paths)


def trace(model: Model, example: Sequence[Any] | None = None) -> list[Traced]:
    """Trace every function of a model, rewrites included; array types as what they stand for.

    Args:
      model: the model.
      example: leaves of its inputs (arrays or shapes). By default they have the sizes of the
        signature, symbolic ones small and different from each other.

    Raises:
      InputError: the model was made without example inputs, and none are given; or a size of
        an input is an expression without a value.

    Cost: one abstract trace; no memory for arrays.
    """
    return [_trace(part, name, example) for name, part in model.components.items()]


def _trace(model: Model, component: str, example: Sequence[Any] | None) -> Traced:
    named = leaves(model.params)
    paths = list(named)
    specs = [] if example is not None else input_structs(model)
    given = specs if example is None else list(example)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in named.values()]
    arrays = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in given if hasattr(v, "dtype")]
    run = flat_run(model)

    def fn(values: Sequence[Any], inputs: Sequence[Any], key: Any) -> Any:
        filled = iter(inputs)
        full = [next(filled) if hasattr(v, "dtype") else v for v in given]
        by_path = dict(zip(paths, values, strict=True))
        params = map_leaves(lambda path, leaf: by_path[path], model.params)
        return run(params, full, key)

    with x64_scope(x64_of(model.program)):
        key = jax.eval_shape(lambda: jax.random.key(0)) if model.program.random else None
        closed = jax.make_jaxpr(fn)(shapes, arrays, key)
    return Traced(closed.jaxpr, closed.consts, tuple(paths), component)


def flat_run(model: Model) -> Callable[..., Any]:
    """Return ``run(params, leaves, rng_key)`` of a model with its rewrites."""
    return model._run()


def input_structs(model: Model, sizes: Mapping[str, int] | None = None) -> list[Any]:
    """Return shape and dtype of each leaf of the inputs; a value that is fixed as it is.

    Raises:
      InputError: the model has no example inputs, or a size has no value.
    """
    signature = model.signature
    if signature.open:
        raise InputError(
            "this model was made without example inputs: give from_function example_inputs, "
            "or the transform a batch of data"
        )
    chosen = {**example_sizes(model), **(sizes or {})}
    found: list[Any] = []
    for spec in signature.leaves:
        if not spec.is_array:
            found.append(spec.value)
            continue
        shape = [evaluate(dim, chosen) for dim in spec.shape]
        if any(dim is None for dim in shape):
            raise InputError(f"{spec}: a size has no value at {chosen}")
        found.append(jax.ShapeDtypeStruct(shape, dtypes.canonical(spec.dtype)))
    return found


def example_sizes(model: Model) -> dict[str, int]:
    """Return a value for every symbolic size: small, different where their ranges allow it."""
    sizes: dict[str, int] = {}
    for name, (low, high) in model.signature.symbols.items():
        value = max(low, 2)
        while value in sizes.values() and (high is None or value < high):
            value += 1
        sizes[name] = value
    return sizes
