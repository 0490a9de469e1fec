"""pad(): a function at a bucket's sizes that is right for any real sizes up to them.

A function traced at size B is right at n < B only if no real result reads padding, and no number
in it is B's own. The trace is read at B and at sizes beside it, side by side (``walk``):
every difference must be an axis along a size, a number with a formula (1/n), or a slice that
moves. Padding is followed through every equation; where a sum, a product, a window or an index
would read it, it is replaced by the identity first (``rules``, ``index``). What cannot
be proven is refused with the equation and its source line. In what comes out, the real part of
every result equals the unpadded function's, whatever stands in the padding (NaN too).

What it does not do: prove that Python decides the same at far smaller sizes (it traces near the
bucket, where that is decided), sample random numbers whose shape depends on a size, or take
axes that are padded where a primitive sorts, transforms or factorizes along them unless a mask
is known. Size 0 is no padded size: give it a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxinfer.compile.padding.index  # noqa: F401  (registers rules)
from jaxinfer.compile.padding.axes import is_padded, is_uniform, prefix, show
from jaxinfer.compile.padding.rules import MOVING, RULES
from jaxinfer.compile.padding.run import PaddedRun
from jaxinfer.compile.padding.site import Findings
from jaxinfer.compile.padding.sizes import Observed, number_value
from jaxinfer.compile.padding.trace import (
    Beside,
    Flat,
    at_sizes,
    beside,
    filled,
    input_state,
    outline,
    trace,
)
from jaxinfer.compile.padding.walk import Walker
from jaxinfer.core import dtypes
from jaxinfer.core.array_types import materialize
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.symbols import Dim, evaluate


class PaddingError(InputError):
    """A model cannot be proven right on padded inputs; the message names every equation."""


class Size(NamedTuple):
    """The real size of an axis: ``scale * n[symbol] + offset``."""

    symbol: str
    scale: int = 1
    offset: int = 0

    def at(self, sizes: Mapping[str, int]) -> int:
        """Return it at some sizes."""
        return self.scale * sizes[self.symbol] + self.offset


class Masking(NamedTuple):
    """What was done in one equation: ``did`` says to which operand, axis and with what."""

    primitive: str
    source: str
    did: str


class Padded(NamedTuple):
    """A model's function at one bucket's sizes, right for all real sizes up to them.

    Attributes:
      run: ``run(params, leaves, sizes, rng_key=None)``, pure: the flat results (the leaves of
        what the model's flat function gives), of the padded shapes. ``leaves``: the padded
        arrays, in order. ``sizes``: the real size of each symbol, integers or int32 scalars.
      tree: the structure of the results, for ``tree.unflatten`` and then ``program.finish``.
      needs: symbols whose real size is read at run time; without any the model runs as it is.
      outputs: for each result, for each axis, its real size (None: all of it).
      masked: what was done, equation by equation.
      least: the smallest real size of a symbol for which this holds (where it is not 1): below
        it the program would not be the same, ``x[:, :5]`` at 3 for example.
    """

    run: Callable[..., list[Any]]
    tree: Any
    needs: tuple[str, ...]
    outputs: tuple[tuple[Size | None, ...], ...]
    masked: tuple[Masking, ...]
    least: Mapping[str, int]


def pad(
    model: Model,
    shapes: Sequence[Sequence[Dim]],
    bucket: Mapping[str, int],
    *,
    exact: Collection[str] = (),
    arrays: Sequence[Any] | None = None,
) -> Padded:
    """Return a model's function at a bucket's sizes, right for all real sizes up to them.

    Args:
      model: the model; its parameters may be shapes.
      shapes: dims of each array among the leaves of its inputs, integers and symbols.
      bucket: the size of every symbol.
      exact: symbols whose real size is always the bucket's.
      arrays: an array, a shape or a dtype for each of the leaves, for its dtype (default: of the
        signature; needed where the model was made without example inputs).

    Raises:
      PaddingError: equations that cannot be proven right, all of them.
      InputError: sizes that are none, or not known.

    Cost: 2 traces and 4 more for each symbol that is not exact; no array is computed.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> x = jnp.arange(12.0).reshape(3, 4)
      >>> model = ji.from_function(lambda p, x: x.mean(1), {}, (x,))
      >>> padded = pad(model, [(3, "n")], {"n": 4})
      >>> padded.run({}, [x], {"n": 2})[0].tolist(), padded.needs
      ([0.5, 4.5, 8.5], ('n',))
    """
    kinds = _dtypes(model, shapes, arrays)
    _check_bucket(shapes, bucket, exact)
    moving = [
        name
        for name, size in bucket.items()
        if name not in exact and size > 1 and _used(name, shapes)
    ]
    if not moving:
        base = trace(model, at_sizes(shapes, bucket), kinds)
        return _whole(model, base, shapes, bucket)
    near = beside(model, shapes, kinds, bucket, moving)
    base = near.flats[0]
    found, results = _walked(shapes, near)
    problems = list(found.problems.values())
    outputs: list[tuple[Size | None, ...]] = []
    for number, state in enumerate(results):
        if state is not None:
            outputs.append(_sizes(number, state, problems))
    if problems or len(outputs) != len(results):
        raise PaddingError(_refused(bucket, moving, problems))
    needs = tuple(name for name in bucket if name in found.needs)
    masked = tuple(
        Masking(action.name, action.source, "; ".join(action.notes))
        for _, action in sorted(found.actions.items())
    ) + tuple(_numbers(found, base.jaxpr))
    least = _least(model, shapes, kinds, near, found, moving)
    run = _plain(model, base) if not needs else _padded(model, base, found)
    return Padded(run, base.tree, needs, tuple(outputs), masked, least)


def _walked(shapes: Sequence[Sequence[Dim]], near: Beside) -> tuple[Findings, list[Any]]:
    """Read traces side by side; returns what was found, and the states of the results."""
    base, walker = near.flats[0], Walker(near.observed, RULES, MOVING)
    states: list[Any] = [walker.axes([leaf.shape]) for leaf in base.params]
    states += [input_state(shape, near.observed) for shape in shapes]
    states += [() for _ in base.jaxpr.invars[len(states) :]]
    jaxprs, consts = [f.jaxpr for f in near.flats], [f.consts for f in near.flats]
    results = walker.walk(jaxprs, consts, states)
    return walker.found, results


def _least(
    model: Model,
    shapes: Sequence[Sequence[Dim]],
    kinds: Sequence[Any],
    near: Beside,
    found: Findings,
    moving: Sequence[str],
) -> dict[str, int]:
    """Return the least sizes for which the bucket's program is the function, where not 1.

    A trace at the smallest size and one half way must be explained by the same formulas as those
    near the bucket; where one is not (a number is ``max(n, 64)``), bisection finds from where
    on it is. A small size at which the model computes in another way altogether shows nothing,
    and is passed over.
    """
    base = near.observed.base

    def holds(symbol: str, size: int) -> bool:
        here = {**base, symbol: size}
        try:
            flat = trace(model, at_sizes(shapes, here), kinds)
        except Exception:  # a size that the model does not take
            return True
        if outline(flat.jaxpr) != outline(near.flats[0].jaxpr):
            return True
        both = Beside((*near.flats, flat), Observed((*near.observed.sizes, here)))
        return not _walked(shapes, both)[0].problems

    least = {}
    for symbol in moving:
        low = max(found.least.get(symbol, 1), 1)
        known = min(sizes[symbol] for sizes in near.observed.sizes)
        tried = {size for size in (max(low, 2), (low + known) // 2) if low <= size < known}
        if failed := [size for size in tried if size > 1 and not holds(symbol, size)]:
            below = max(failed)
            while known - below > 1:
                middle = (below + known) // 2
                below, known = (below, middle) if holds(symbol, middle) else (middle, known)
            low = known
        if low > 1:
            least[symbol] = low
    return least


def _refused(bucket: Mapping[str, int], moving: Sequence[str], problems: Sequence[str]) -> str:
    sizes = ", ".join(f"{name} up to {bucket[name]}" for name in moving)
    names = " or ".join(moving)
    return listing(
        f"padding of {sizes} cannot be proven to leave the results as they are:",
        problems,
        f"Declare {names} exact (no padding: one executable for each size), or compute these "
        "equations outside of the model.",
    )


def _sizes(number: int, state: Any, problems: list[str]) -> tuple[Size | None, ...]:
    found: list[Size | None] = []
    for axis, factors in enumerate(state):
        length = prefix(factors)
        if not is_padded(factors):
            found.append(None)
        elif length is None or len(length.symbols) != 1:
            uniform = " (the same value everywhere)" if is_uniform(factors) else ""
            problems.append(
                f"result {number}: the real part of axis {axis} is no box that can be sliced: "
                f"{show(factors)}{uniform}; return it with its axes apart"
            )
            found.append(None)
        else:
            found.append(Size(length.symbols[0], length.scale, length.offset))
    return tuple(found)


def _numbers(found: Findings, jaxpr: Any) -> list[Masking]:
    formulas = [str(f) for by in found.numbers.values() for f in by.values()]
    formulas += [str(formula) for _, formula in found.constants.values()]
    counts = {text: formulas.count(text) for text in formulas}
    return [
        Masking("number", "", f"{text} from the real size, {count} times")
        for text, count in sorted(counts.items())
    ]


def _used(name: str, shapes: Sequence[Sequence[Dim]]) -> bool:
    return any(_mentions(dim, name) for shape in shapes for dim in shape)


def _mentions(dim: Dim, name: str) -> bool:
    return dim == name or (isinstance(dim, str) and evaluate(dim, {name: 1}) is not None)


def _dtypes(model: Model, shapes: Sequence[Any], arrays: Sequence[Any] | None) -> list[Any]:
    if arrays is not None:
        found = [getattr(value, "dtype", value) for value in arrays]
    else:
        found = [dtypes.canonical(spec.dtype) for spec in model.inputs if spec.is_array]
    if len(found) != len(shapes):
        raise InputError(
            f"required the dims of {len(found)} input arrays, got {len(shapes)}"
            + ("; give arrays= for their dtypes" if model.signature.open else "")
        )
    return found


def _check_bucket(
    shapes: Sequence[Sequence[Dim]], bucket: Mapping[str, int], exact: Collection[str]
) -> None:
    faults = [f"{name}: required a positive integer, got {size!r}" for name, size in bucket.items()
              if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1]  # fmt: skip
    faults += [f"{name}: no bucket of that name" for name in exact if name not in bucket]
    if not faults:
        faults = [
            f"{dim}: a dimension without a bucket"
            for dim in dict.fromkeys(dim for shape in shapes for dim in shape)
            if evaluate(dim, bucket) is None
        ]
    if faults:
        raise InputError(listing("the sizes of a bucket:", faults))


def _whole(
    model: Model, base: Flat, shapes: Sequence[Sequence[Dim]], bucket: Mapping[str, int]
) -> Padded:
    outputs = tuple(tuple(None for _ in var.aval.shape) for var in base.jaxpr.outvars)
    return Padded(_plain(model, base), base.tree, (), outputs, (), {})


def given_arrays(model: Model, leaves: Sequence[Any]) -> list[Any]:
    """Return the arrays among leaves that may hold fixed values as well."""
    specs = model.inputs
    if not model.signature.open and len(leaves) == len(specs):
        return [v for spec, v in zip(specs, leaves, strict=True) if spec.is_array]
    return list(leaves)


def _checked(base: Flat, params: Any, arrays: Sequence[Any]) -> list[Any]:
    """Return the leaves of the parameters in the order of the trace."""
    named = named_leaves(params)
    faults = [f"parameter {path}: missing" for path in base.paths if path not in named]
    faults += [f"parameter {path}: unknown" for path in named if path not in base.paths]
    if len(arrays) != len(base.arrays):
        faults.append(f"required {len(base.arrays)} inputs, got {len(arrays)}")
    labels = [f"parameter {path}" for path in base.paths]
    labels += [f"input {number}" for number in range(len(base.arrays))]
    if not faults:
        given = [named[path] for path in base.paths]
        want, got = (*base.params, *base.arrays), (*given, *arrays)
        for label, a, b in zip(labels, want, got, strict=True):
            if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
                shown = f"{a.dtype}{list(a.shape)}, got {b.dtype}{list(b.shape)}"
                faults.append(f"{label}: required {shown}")
    if faults:
        advice = "These are not the shapes and dtypes that were padded: call pad() for them."
        raise InputError(listing("a padded function was called with other arrays:", faults, advice))
    return [named[path] for path in base.paths]


def _plain(model: Model, base: Flat) -> Callable[..., list[Any]]:
    flat = model._run()

    def run(
        params: Any, leaves: Sequence[Any], sizes: Any = None, rng_key: Any = None
    ) -> list[Any]:
        arrays = given_arrays(model, leaves)
        _checked(base, params, arrays)
        return jax.tree.leaves(flat(params, filled(model, arrays), rng_key))

    return run


def _padded(model: Model, base: Flat, found: Findings) -> Callable[..., list[Any]]:
    def run(
        params: Any, leaves: Sequence[Any], sizes: Mapping[str, Any], rng_key: Any = None
    ) -> list[Any]:
        arrays = [jnp.asarray(value) for value in given_arrays(model, leaves)]
        values = _checked(base, params, arrays)
        if missing := [name for name in found.needs if name not in sizes]:
            raise InputError(f"the real size of {', '.join(missing)} is needed")
        interpreter = PaddedRun(found, sizes)
        given = [*values, *arrays, *([rng_key] if model.program.random else [])]
        outs = interpreter.run(base.jaxpr, base.consts, given)
        changed = found.numbers.get((len(base.jaxpr.eqns),), {})
        outs = [
            number_value(changed[i], interpreter.sizes, out.dtype) if i in changed else out
            for i, out in enumerate(outs)
        ]
        return list(map(materialize, outs))

    return run
