"""Traces of a model's flat function at a bucket's sizes and at sizes beside it.

The neighbours are few and near (``B - 1``, about 4 % below, else above), so that Python's own
decisions by size are those of the bucket, and not of size 1, which broadcasts. They differ
enough to show in bfloat16, whose numbers of 512 and of 511 are the same. The size next to the
bucket must be the same program; where one further away is not (a limit above which a model
computes in blocks), another is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxinfer.compile.padding.axes import Factor, State, canonical
from jaxinfer.compile.padding.sizes import Length, Observed
from jaxinfer.core._compat import inner, subjaxprs, x64_scope
from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves, map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.symbols import Dim, evaluate
from jaxinfer.core.trace import flat_run


class Flat(NamedTuple):
    """A model's function on flat values.

    Attributes:
      paths: of the parameters, in order.
      params, arrays: shape and dtype of the leaves of the parameters, and of the inputs.
      jaxpr, consts: the trace; its inputs are parameters, arrays and the random key.
      tree: the structure of its result.
    """

    paths: tuple[str, ...]
    params: tuple[Any, ...]
    arrays: tuple[Any, ...]
    jaxpr: Any
    consts: Sequence[Any]
    tree: Any


def filled(model: Model, arrays: Sequence[Any]) -> list[Any]:
    """Return all leaves of the inputs: the arrays, and the values that are fixed."""
    if model.signature.open:
        return list(arrays)
    given = iter(arrays)
    return [next(given) if spec.is_array else spec.value for spec in model.inputs]


def trace(model: Model, shapes: Sequence[Sequence[int]], dtypes: Sequence[Any]) -> Flat:
    """Trace a model at shapes. Cost: one abstract trace; no memory for arrays."""
    named = leaves(model.params)
    params = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in named.values()]
    arrays = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]
    run = flat_run(model)

    def fn(values: Sequence[Any], inputs: Sequence[Any], key: Any) -> Any:
        by_path = dict(zip(named, values, strict=True))
        whole = map_leaves(lambda path, leaf: by_path[path], model.params)
        return run(whole, filled(model, inputs), key)

    with x64_scope(x64_of(model.program)):
        key = jax.eval_shape(lambda: jax.random.key(0)) if model.program.random else None
        closed, out = jax.make_jaxpr(fn, return_shape=True)(params, arrays, key)
    tree = jax.tree.structure(out)
    return Flat(tuple(named), tuple(params), tuple(arrays), closed.jaxpr, closed.consts, tree)


def at_sizes(shapes: Sequence[Sequence[Dim]], sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Return shapes with their symbols filled in.

    Raises:
      InputError: a dimension has no value.
    """
    found = []
    for shape in shapes:
        dims = [evaluate(dim, sizes) for dim in shape]
        if any(dim is None or dim < 0 for dim in dims):
            raise InputError(f"a dimension of {tuple(shape)} has no value at {dict(sizes)}")
        found.append(tuple(dim for dim in dims if dim is not None))
    return found


class Beside(NamedTuple):
    """Traces at a bucket's sizes and beside it, the bucket first."""

    flats: tuple[Flat, ...]
    observed: Observed


def beside(
    model: Model,
    shapes: Sequence[Sequence[Dim]],
    dtypes: Sequence[Any],
    bucket: Mapping[str, int],
    moving: Sequence[str],
) -> Beside:
    """Trace at a bucket's sizes, at two sizes beside it for each symbol, and at all moved.

    Raises:
      InputError: the model cannot be traced beside the bucket; with what it said there.
      Exception: whatever the model raises at the bucket's own sizes.

    Cost: 2 traces for each symbol, 2 more in all.
    """
    base = dict(bucket)
    first = trace(model, at_sizes(shapes, base), dtypes)
    sizes, flats = [base], [first]
    program, adjacent = outline(first.jaxpr), dict(base)

    def at(here: Mapping[str, int]) -> Flat:
        return trace(model, at_sizes(shapes, here), dtypes)

    for symbol in moving:
        found: list[tuple[int, Flat]] = []
        fault = ""
        for size in _near(base[symbol]):
            try:
                flat = at({**base, symbol: size})
            except Exception as error:  # whatever the model raises at a size that it does not take
                fault = fault or f"{symbol} = {size}: {type(error).__name__}: {error}"
                continue
            other = outline(flat.jaxpr) != program
            if other and found and outline(found[0][1].jaxpr) == program:
                continue  # beyond a limit at which the model computes in another way
            found.append((size, flat))
            if other or len(found) == 2:
                break
        if len(found) < 2 and not (found and other):
            raise InputError(
                f"{symbol} = {base[symbol]} cannot be told from other sizes: of 2 traces at sizes "
                f"beside it there is {len(found)} ({fault[:300] or 'the others differ'}); declare "
                f"the size exact if it is always {base[symbol]}"
            )
        adjacent[symbol] = found[0][0]
        sizes += [{**base, symbol: size} for size, _ in found]
        flats += [flat for _, flat in found]
    if len(moving) > 1:
        sizes.append(adjacent)
        flats.append(at(adjacent))
    return Beside(tuple(flats), Observed(sizes))


def outline(jaxpr: Any) -> tuple[Any, ...]:
    """Return the primitives of a jaxpr, and of those inside."""
    return tuple(
        (eqn.primitive.name, *(outline(inner(sub)[0]) for sub in subjaxprs(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _near(size: int) -> list[int]:
    """Return sizes to try beside a bucket's, the best first; 1 only where there is no other."""
    far = 2 + size // 24
    steps = [size - 1, size - far, size + 1, size + far, size - 2, size + 2, size - 3, size + 3]
    steps += [size + sign * step for step in (4, 8, 16, 32) for sign in (-1, 1)]
    steps += [size // 2, 2 * size]
    good = [n for n in dict.fromkeys(steps) if n > 1 and n != size]
    return [*good, *([1] if size != 1 else [])]


def input_state(shape: Sequence[Dim], observed: Observed) -> State:
    """Return the state of a padded input: its first elements are real.

    Raises:
      InputError: a dimension is no linear function of one size.
    """
    axes = []
    for dim in shape:
        values = [evaluate(dim, sizes) or 0 for sizes in observed.sizes]
        length = observed.length(values)
        if length is None:
            raise InputError(f"the dimension {dim} is no linear function of a size")
        if isinstance(length, Length) and length.scale < 0:
            raise InputError(f"the dimension {dim} grows as the size shrinks: it cannot be padded")
        real = length if isinstance(length, Length) else None
        axes.append(canonical([Factor(values[0], real)]))
    return tuple(axes)
