"""What a row of the table of programs is, and the few words that rows are written with."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core.table import RuleTable


@dataclasses.dataclass(frozen=True)
class Use:
    """What one equation does with a parameter.

    Attributes:
      primitive: that consumes it, after everything that only rearranges it. ``output``: it is
        a result of the function. ``scan`` and ``while``: the loop carries it.
      site: whether it is an operand that a weight-only quantizer can handle as it is.
      contracting: axes of the *original* parameter that the equation sums over; an axis that
        was split into a summed and a free part is among them.
    """

    primitive: str
    site: bool
    contracting: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function with parameters and inputs, and what is known of its parameters.

    Attributes:
      name: unique.
      fn: ``fn(params, *inputs)``.
      params: seed -> pytree of arrays; nothing is made before it is called.
      inputs: batch, seed -> tuple of arrays.
      symbolic: for each input the shape that ``jax.export`` is given; empty: it cannot.
      weights: for each leaf path its different uses; none: unused.
      note: why the row is here; the pitfalls are those of the notes on transforms.
      constants: shapes of the arrays that the function closes over.
      slope: the reverse derivative by the inputs, as a multiple of the true one (a custom rule
        that says otherwise must survive a transform); None where there is none.
    """

    name: str
    fn: Callable[..., Any]
    params: Callable[..., Any]
    inputs: Callable[..., tuple[Any, ...]]
    symbolic: tuple[str, ...]
    weights: Mapping[str, tuple[Use, ...]]
    note: str
    constants: tuple[tuple[int, ...], ...] = ()
    slope: float | None = 1.0

    def verdict(self, path: str) -> str:
        """Return ``site`` (all uses are), ``blocked`` (some use is not one) or ``unused``."""
        found = self.weights[path]
        if not found:
            return "unused"
        return "site" if all(use.site for use in found) else "blocked"


TABLE: RuleTable[Program] = RuleTable("program")


# Uses.


def dot(*contracting: int) -> Use:
    return Use("dot_general", True, contracting)


def conv(*contracting: int) -> Use:
    return Use("conv_general_dilated", True, contracting)


def ragged(*contracting: int) -> Use:
    return Use("ragged_dot_general", True, contracting)


def gather() -> Use:
    return Use("gather", True)


def blocked(primitive: str) -> Use:
    return Use(primitive, False)


UNUSED: tuple[Use, ...] = ()


# Arrays.


@dataclasses.dataclass(frozen=True)
class Spec:
    """An input: its shape with ``b`` for the batch; integers are below ``below``."""

    shape: str
    below: int | None = None

    def make(self, generator: np.random.Generator, batch: int) -> Any:
        sizes = [batch if s == "b" else int(s) for s in self.shape.replace(",", " ").split()]
        if self.below is not None:
            return jnp.asarray(generator.integers(0, self.below, sizes), jnp.int32)
        return jnp.asarray(generator.standard_normal(sizes), jnp.float32)


def f32(shape: str) -> Spec:
    return Spec(shape)


def i32(shape: str, below: int) -> Spec:
    return Spec(shape, below)


def normal(seed: int, shapes: Any) -> Any:
    """Fill a pytree of shapes (or of arrays) with normal values, each scaled by its fan-in.

    All values differ, and none is zero: zero biases would let a wrong transform pass.
    """
    generator = np.random.default_rng(seed)

    def fill(leaf: Any) -> Any:
        shape = leaf if isinstance(leaf, tuple) else leaf.shape
        dtype = jnp.float32 if isinstance(leaf, tuple) else leaf.dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            return leaf
        fan = np.prod(shape[:-1]) if len(shape) > 1 else 4
        return jnp.asarray(generator.standard_normal(shape) / np.sqrt(fan), dtype)

    return jax.tree.map(fill, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def program(
    params: Any,
    inputs: tuple[Spec, ...],
    weights: Mapping[str, Use | tuple[Use, ...]],
    *,
    constants: tuple[tuple[int, ...], ...] = (),
    slope: float | None = 1.0,
    export: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function: its name is the row's, its docstring the note.

    Args:
      params: a pytree of shapes, or seed -> pytree of arrays.
      inputs: one for each input of the function.
      weights: what becomes of each leaf.
      constants, slope: as in ``Program``.
      export: whether the function can be exported at a symbolic batch.
    """

    def make_params(seed: int = 0) -> Any:
        return params(seed) if callable(params) else normal(seed, params)

    def make_inputs(batch: int, seed: int = 0) -> tuple[Any, ...]:
        generator = np.random.default_rng([seed, batch])
        return tuple(spec.make(generator, batch) for spec in inputs)

    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        uses = {k: (v,) if isinstance(v, Use) else v for k, v in weights.items()}
        shapes = tuple(spec.shape for spec in inputs) if export else ()
        note = inspect.getdoc(fn) or ""
        name = fn.__name__
        row = Program(name, fn, make_params, make_inputs, shapes, uses, note, constants, slope)
        TABLE.register(name)(row)
        return fn

    return add
