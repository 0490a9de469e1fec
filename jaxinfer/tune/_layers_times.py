"""The products of a model timed alone: each distinct one is compiled once, then all take turns.

A product is timed at all its levels in the same rounds, so that a busy machine is slow for all;
the fastest call of each counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core._compat import bind, x64_scope
from jaxinfer.core.array_types import array_rule
from jaxinfer.core.dtypes import dtype_of
from jaxinfer.core.interpret import Equation, Interpreter
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.quantize import quantize
from jaxinfer.transforms._cast_rules import Caster
from jaxinfer.transforms.schemes import scheme_of
from jaxinfer.tune._device_kernels import values
from jaxinfer.tune._layers_levels import Level, group_by_path, read_level
from jaxinfer.tune._layers_products import Product, products_of
from jaxinfer.tune.groups import Group

COMPILING = 0.6
"""Share of the seconds after which no compilation begins."""

ROUNDS = 30


class GroupTimes(NamedTuple):
    """Milliseconds of the products of groups, in one call of the model.

    Attributes:
      ms: by group, then level; None if not all of its products were timed.
      notes: what was not timed, and why.
    """

    ms: dict[str, dict[str, float | None]]
    notes: list[str]


def group_times(
    model: Model,
    groups: Sequence[Group],
    arrays: Any,
    levels: Mapping[str, Sequence[str]],
    seconds: float = 10.0,
) -> GroupTimes:
    """Time the products with the parameters of groups, each alone, on random values.

    Args:
      model: in float32, of one component.
      groups: of its layers.
      arrays: the inputs of one call, or their shapes.
      levels: for each group the levels to time it at.
      seconds: for compiling and timing; the largest products come first, and what is not reached
        has no time. One compilation or round may go beyond.

    Cost: a distinct product (shapes, dtypes, numbers) and level is compiled once. What is alone
    has its operands in the caches or not as chance has it, and nothing fused to it: in the model
    it may be faster or slower. Memory: the operands of all products that are timed.
    """
    of = group_by_path(groups)
    work: dict[Any, list[tuple[str, Product]]] = {}
    for product in products_of(model, arrays).all:
        if product.path in of and product.flops and product.counted:
            work.setdefault(_key(product), []).append((of[product.path], product))
    order = sorted(work.values(), key=lambda uses: -sum(p.flops for _, p in uses))
    start = time.perf_counter()
    calls: dict[tuple[int, str], _Call] = {}
    late, failed = 0, []
    for number, uses in enumerate(order):
        for level in dict.fromkeys(level for name, _ in uses for level in levels.get(name, ())):
            if time.perf_counter() - start > COMPILING * seconds:
                late += 1
                continue
            try:
                with x64_scope(x64_of(model.program)):
                    calls[number, level] = _Call(uses[0][1], read_level(level))
            except Exception as error:  # whatever a platform has to say about a dtype
                text = str(error).strip().split("\n")[0][:120]
                failed.append(f"{_text(uses[0][1])} at {level}: {type(error).__name__}: {text}")
    _take_turns(list(calls.values()), start + seconds)
    ms: dict[str, dict[str, float | None]] = {
        group.name: dict.fromkeys(levels.get(group.name, ()), 0.0) for group in groups
    }
    for number, uses in enumerate(order):
        for name, product in uses:
            for level, before in ms[name].items():
                call = calls.get((number, level))
                took = None if call is None else call.best * 1e3
                ms[name][level] = _sum(before, took, product.times)
    multiplied = {name for uses in order for name, _ in uses}
    for name in ms.keys() - multiplied:
        ms[name] = dict.fromkeys(ms[name])  # gathered only: there is nothing to time
    notes = [f"{late} products were not timed: {seconds:g} s were over"] if late else []
    return GroupTimes(ms, [*notes, *(f"not timed: {each}" for each in failed)])


def _take_turns(calls: Sequence[_Call], end: float) -> None:
    """Time calls in turn, three rounds at least, until the time is up."""
    for turn in range(ROUNDS):
        for call in calls:
            call.time()
            if turn > 2 and time.perf_counter() > end:
                return


def _sum(before: float | None, took: float | None, times: int) -> float | None:
    return None if before is None or took is None else before + took * times


def _key(product: Product) -> Any:
    shapes = [(tuple(var.aval.shape), str(var.aval.dtype)) for var in product.eqn.invars]
    site = product.site
    assert site is not None
    return (product.eqn.primitive.name, str(shapes), str(product.eqn.params), site.side)


def _text(product: Product) -> str:
    shapes = " x ".join(str(list(var.aval.shape)) for var in product.eqn.invars[:2])
    return f"{product.eqn.primitive.name} {shapes}"


class _Call:
    """A product at a level, compiled; ``best``: seconds of its fastest call."""

    def __init__(self, product: Product, level: Level):
        self.best = math.inf
        fn, self.given = _function(product, level)
        self.compiled = jax.jit(fn).lower(*self.given).compile()
        jax.block_until_ready(self.compiled(*self.given))

    def time(self) -> None:
        """Call it twice; the first of them brings its operands to the caches."""
        for _ in range(2):
            start = time.perf_counter()
            jax.block_until_ready(self.compiled(*self.given))
            self.best = min(self.best, time.perf_counter() - start)


def _function(product: Product, level: Level) -> tuple[Callable[..., Any], list[Any]]:
    """Return a product at a level, as a model of that level computes it, and its arguments."""
    eqn, site = product.eqn, product.site
    assert site is not None
    given: list[Any] = [_random(var.aval, n) for n, var in enumerate(eqn.invars)]
    plain = Caster(level.cast, {}) if level.cast else None
    if plain is not None:
        given = [
            v.astype(dtype_of(level.cast)) if v.dtype in (jnp.float32, jnp.float64) else v
            for v in given
        ]

    def evaluate(*args: Any) -> Any:
        equation = Equation(eqn, (0,))
        outs = plain(equation, list(args)) if plain is not None else None
        return bind(eqn, args) if outs is None else list(outs)

    if level.scheme and given[site.side].dtype.itemsize > 1:
        given[site.side] = _quantized(given[site.side], eqn, site.side, level)

    def fn(*args: Any) -> Any:
        return Interpreter(array_rule).call(evaluate, *args) if level.scheme else evaluate(*args)

    return fn, given


def _random(aval: Any, seed: int) -> Any:
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        whole = math.prod(aval.shape)  # sizes of groups: rows are dealt out by the caller's shapes
        return jnp.zeros(aval.shape, aval.dtype) + (1 if whole else 0)
    return values(tuple(aval.shape), np.dtype(aval.dtype).name, seed)


def _quantized(weight: Any, eqn: Any, side: int, level: Level) -> Any:
    """Quantize an operand along the axes that its product sums, as the parameter would be."""
    scheme = scheme_of(level.scheme)
    axes = _contracting(eqn, side)
    long = [axis for axis in axes if weight.shape[axis] > 1]
    tiles = None
    if scheme.group and len(long) == 1 and scheme.group < weight.shape[long[0]]:
        tiles = {long[0]: scheme.group}
    made: Any = quantize(weight, scheme.weights, axes=axes, tiles=tiles)
    if not scheme.activations:
        return made
    scale = jnp.full((1,) * weight.ndim, 1 / 127, jnp.float32) if level.static else None
    return ActQTensor(made, scale, scheme.activations)


def _contracting(eqn: Any, side: int) -> tuple[int, ...]:
    name = eqn.primitive.name
    if name == "dot_general":
        return tuple(eqn.params["dimension_numbers"][0][side])
    if name == "conv_general_dilated":
        return tuple(eqn.params["dimension_numbers"].rhs_spec[1:])
    return tuple(eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0][side])
