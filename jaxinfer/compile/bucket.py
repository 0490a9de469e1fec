"""bucket(): a function for any size up to a bucket's, padded, masked, and sliced back.

    pad(model, shapes, {"seq": 128})        one bucket: the function at 128, right for any n <= 128
    bucket(model, {"seq": [32, 128]})       all of them, by the least that holds a call

A function traced at size B is right at n < B only if no real result reads padding, and no number
in it is B's own. The trace is read at B and at sizes beside it, side by side (``_pad_walk``):
every difference must be an axis along a size, a number with a formula (1/n), or a slice that
moves. Padding is followed through every equation; where a sum, a product, a window or an index
would read it, it is replaced by the identity first (``_pad_rules``, ``_pad_index``). What cannot
be proven is refused with the equation and its source line. In what comes out, the real part of
every result equals the unpadded function's, whatever stands in the padding (NaN too).

What it does not do: prove that Python decides the same at far smaller sizes (it traces near the
bucket, where that is decided), sample random numbers whose shape depends on a size, or take
axes that are padded where a primitive sorts, transforms or factorizes along them unless a mask
is known. Size 0 is no padded size: give it a call of its own.

The idea of buckets: jax issue 803, https://github.com/jax-ml/jax/issues/803.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer.compile._pad_index  # noqa: F401  (registers rules)
from jaxinfer.compile._pad_axes import is_padded, is_uniform, prefix, show
from jaxinfer.compile._pad_choose import bucket_faults
from jaxinfer.compile._pad_choose import choose_buckets as choose_buckets
from jaxinfer.compile._pad_choose import waste as waste
from jaxinfer.compile._pad_rules import MOVING, RULES
from jaxinfer.compile._pad_run import PaddedRun
from jaxinfer.compile._pad_sizes import number_value
from jaxinfer.compile._pad_trace import Flat, at_sizes, beside, filled, input_state, trace
from jaxinfer.compile._pad_walk import Findings, Walker, sizes_text
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.model import Model, _need_key
from jaxinfer.core.program import x64_of
from jaxinfer.core.symbols import Dim, evaluate, is_name, solve


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

    Cost: 2 traces and 2 more for each symbol that is not exact; no array is computed.

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
    moving = [name for name in bucket if name not in exact and _used(name, shapes)]
    if not moving:
        base = trace(model, at_sizes(shapes, bucket), kinds)
        return _whole(model, base, shapes, bucket)
    flats, observed = beside(model, shapes, kinds, bucket, moving)
    base, jaxprs = flats[0], [flat.jaxpr for flat in flats]
    walker = Walker(observed, RULES, MOVING)
    states: list[Any] = [walker.axes([leaf.shape]) for leaf in base.params]
    states += [input_state(shape, observed) for shape in shapes]
    states += [() for _ in base.jaxpr.invars[len(states) :]]
    results = walker.walk(jaxprs, [flat.consts for flat in flats], states)
    found = walker.found
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
    least = {name: size for name, size in found.least.items() if size > 1}
    run = _plain(model, base) if not needs else _padded(model, base, found)
    return Padded(run, base.tree, needs, tuple(outputs), masked, least)


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


def _given(model: Model, leaves: Sequence[Any]) -> list[Any]:
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
        arrays = _given(model, leaves)
        _checked(base, params, arrays)
        return jax.tree.leaves(flat(params, filled(model, arrays), rng_key))

    return run


def _padded(model: Model, base: Flat, found: Findings) -> Callable[..., list[Any]]:
    def run(
        params: Any, leaves: Sequence[Any], sizes: Mapping[str, Any], rng_key: Any = None
    ) -> list[Any]:
        arrays = [jnp.asarray(value) for value in _given(model, leaves)]
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
        return [out.materialize() if hasattr(type(out), "materialize") else out for out in outs]

    return run


# -- all buckets of a model ----------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Bucketed:
    """A model that pads each call to the least bucket that holds it, and slices the results.

    Attributes:
      model: the model.
      buckets: for each symbol its buckets, ascending.
      shapes: dims of each array among the leaves of the inputs.
      fill: what stands in the padding (it never shows; other values are for tests).
    """

    model: Model
    buckets: Mapping[str, tuple[int, ...]]
    shapes: tuple[tuple[Dim, ...], ...]
    fill: Any = 0
    _cache: dict[Any, Padded] = dataclasses.field(default_factory=dict, repr=False)
    _jitted: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def sizes(self, arrays: Sequence[Any]) -> dict[str, int]:
        """Return the real size of each symbol in a call.

        Raises:
          InputError: shapes that do not fit, sizes above the largest bucket or below 1; all.
        """
        faults: list[str] = []
        sizes: dict[str, int] = {}
        if len(arrays) != len(self.shapes):
            raise InputError(f"required {len(self.shapes)} input arrays, got {len(arrays)}")
        pairs = list(zip(self.shapes, arrays, strict=True))
        for plain in (True, False):
            for shape, array in pairs:
                for dim, got in zip(shape, array.shape, strict=False):
                    if is_name(dim) and plain:
                        sizes.setdefault(str(dim), got)
                    elif not plain and not is_name(dim):
                        sizes.update(solve(dim, got, sizes))
        for number, (shape, array) in enumerate(pairs):
            want = tuple(evaluate(dim, sizes) for dim in shape)
            if want != tuple(array.shape):
                shown, at = ", ".join(map(str, shape)), sizes_text(sizes)
                faults.append(f"input {number}: required [{shown}], got {list(array.shape)} ({at})")
        for name, each in self.buckets.items():
            size = sizes.get(name)
            if size is not None and size > each[-1]:
                faults.append(f"{name} = {size} is above the largest bucket, {each[-1]}")
            elif size is not None and size < 1 and not self._takes_empty(name):
                faults.append(f"{name} = {size}: the model takes sizes from 1 on")
        if faults:
            raise InputError(listing("the inputs do not fit the buckets:", faults))
        return sizes

    def _takes_empty(self, name: str) -> bool:
        return self.model.signature.symbols.get(name, (0, None))[0] == 0

    def bucket_of(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return the least bucket of each symbol that holds a size; an empty size is its own."""
        return {
            name: next(b for b in each if b >= sizes[name]) if sizes[name] else 0
            for name, each in self.buckets.items()
        }

    def padded(self, bucket: Mapping[str, int], arrays: Sequence[Any] | None = None) -> Padded:
        """Return the function of one bucket; kept once it is made.

        Raises:
          PaddingError: see ``pad``.
        """
        kinds = None if arrays is None else tuple(np.dtype(a.dtype).name for a in arrays)
        key = (tuple(sorted(bucket.items())), kinds)
        if key not in self._cache:
            self._cache[key] = pad(
                self.model, self.shapes, bucket, arrays=None if kinds is None else arrays
            )
        return self._cache[key]

    @property
    def masked(self) -> tuple[Masking, ...]:
        """What was done in the functions made so far, each once."""
        found = [item for padded in self._cache.values() for item in padded.masked]
        return tuple(dict.fromkeys(found))

    def audit(self) -> dict[str, list[Masking]]:
        """Return what is done in every bucket; makes those that were not made yet.

        Raises:
          PaddingError: see ``pad``.
        """
        found: dict[str, list[Masking]] = {}
        for bucket in _products(self.buckets):
            name = ", ".join(f"{symbol}={size}" for symbol, size in bucket.items())
            found[name] = list(self.padded(bucket).masked)
        return found

    @property
    def apply(self) -> Callable[..., Any]:
        """The pure function ``apply(params, *inputs, rng_key=None, **named)``.

        It pads, evaluates and slices at trace time; under ``jit`` it is compiled for each size.
        """
        model = self.model

        def apply(params: Any, *args: Any, rng_key: Any = None, **kwargs: Any) -> Any:
            values = model.signature.flatten(args, kwargs)
            arrays = [jnp.asarray(v) for v in _given(model, values)]
            key = _need_key(model.program, rng_key)
            evaluate = lambda padded, full, sizes: padded.run(params, full, sizes, key)
            return self._call(params, arrays, key, evaluate)

        return apply

    def __call__(self, *args: Any, rng_key: Any = None, **kwargs: Any) -> Any:
        """Pad, run the bucket's function (jitted: compiled once for each bucket), and slice.

        Raises:
          InputError: the inputs do not fit; all problems at once.
          PaddingError: see ``pad``.
        """
        model = self.model
        with x64_scope(x64_of(model.program)):
            values = model.signature.flatten(args, kwargs)
            arrays = [as_array(v, f"input {i}") for i, v in enumerate(_given(model, values))]
            key = _need_key(model.program, rng_key)

            def compiled(padded: Padded, full: Any, sizes: Mapping[str, int]) -> Any:
                if id(padded) not in self._jitted:
                    self._jitted[id(padded)] = jax.jit(padded.run)
                given = {name: jnp.int32(size) for name, size in sizes.items()}
                return self._jitted[id(padded)](model.params, full, given, key)

            return self._call(model.params, arrays, key, compiled)

    def _call(self, params: Any, arrays: list[Any], key: Any, evaluate: Any) -> Any:
        model, sizes = self.model, self.sizes(arrays)
        bucket = self.bucket_of(sizes)
        if any(size == 0 for size in bucket.values()):  # nothing to pad: the function at that size
            return model.program.finish(model._run()(params, filled(model, arrays), key))
        padded = self.padded(bucket, arrays)
        low = {n: least for n, least in padded.least.items() if sizes[n] < least}
        if low:
            shown = ", ".join(f"{n} = {sizes[n]}, required {least}" for n, least in low.items())
            raise InputError(
                f"below the least size for which the bucket's function holds: {shown}; it takes "
                "a fixed part of a padded axis"
            )
        full = [
            padded_to(array, at, self.fill)
            for array, at in zip(arrays, at_sizes(self.shapes, bucket), strict=True)
        ]
        outs = [
            _sliced(out, real, sizes)
            for out, real in zip(evaluate(padded, full, sizes), padded.outputs, strict=True)
        ]
        return model.program.finish(jax.tree.unflatten(padded.tree, outs))


def padded_to(array: Any, shape: Sequence[int], fill: Any = 0) -> Any:
    """Return an array with padding at the end of its axes."""
    edges = [(0, want - got) for want, got in zip(shape, array.shape, strict=True)]
    if not any(high for _, high in edges):
        return array
    return jnp.pad(array, edges, constant_values=fill)


def _sliced(out: Any, real: Sequence[Size | None], sizes: Mapping[str, int]) -> Any:
    box = tuple(slice(None) if size is None else slice(size.at(sizes)) for size in real)
    return out[box] if any(size is not None for size in real) else out


def _products(buckets: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    found: list[dict[str, int]] = [{}]
    for name, sizes in buckets.items():
        found = [{**one, name: size} for one in found for size in sizes]
    return found


def bucket(
    model: Model,
    buckets: Mapping[str, Sequence[int]],
    inputs: Mapping[str, Sequence[Dim]] | Sequence[Sequence[Dim]] | None = None,
    *,
    fill: Any = 0,
) -> Bucketed:
    """Return a model that takes any size up to the largest bucket.

    Args:
      model: the model.
      buckets: ascending sizes of each symbol, ``{"batch": [1, 4, 16]}``.
      inputs: dims of the inputs, by path or in order, with symbols: ``{"x": ("batch", 128)}``.
        Default: those of the signature. An input that is not named keeps its own.
      fill: what stands in the padding.

    Raises:
      InputError: buckets that are empty, not ascending, doubled or not positive; symbols without
        buckets, buckets of no symbol, unknown inputs; all at once.

    Example:
      >>> import jax, jax.numpy as jnp, jaxinfer as ji
      >>> model = ji.from_function(lambda p, x: jax.nn.softmax(x, 0), {}, (jnp.ones(4),))
      >>> bucketed = bucket(model, {"n": [2, 8]}, {"x": ("n",)})
      >>> bucketed(jnp.zeros(5)).tolist()
      [0.20000000298023224, 0.20000000298023224, 0.20000000298023224, 0.20000000298023224, \
0.20000000298023224]
    """
    faults = [f"{name}: {fault}" for name, sizes in buckets.items()
              for fault in bucket_faults(sizes)]  # fmt: skip
    if not buckets:
        faults.append("required buckets for at least one symbol, got none")
    specs = [spec for spec in model.inputs if spec.is_array]
    own: list[tuple[Dim, ...]] = [tuple(spec.shape) for spec in specs]
    if isinstance(inputs, Mapping):
        paths = [spec.path for spec in specs]
        faults += [f"{name}: no such input; there are {', '.join(paths)}" for name in inputs
                   if name not in paths]  # fmt: skip
        own = [tuple(inputs.get(path, shape)) for path, shape in zip(paths, own, strict=True)]
    elif inputs is not None:
        own = [tuple(shape) for shape in inputs]
        if not model.signature.open and len(own) != len(specs):
            faults.append(f"required the dims of {len(specs)} inputs, got {len(own)}")
    for spec, shape in zip(specs, own, strict=False):
        if len(spec.shape) != len(shape):
            faults.append(f"{spec.path}: required {len(spec.shape)} dims, got {len(shape)}")
    one = dict.fromkeys(buckets, 1)
    for dim in dict.fromkeys(dim for shape in own for dim in shape):
        if evaluate(dim, one) is None:
            faults.append(f"{dim}: a dimension without buckets")
    dims = [dim for shape in own for dim in shape]
    faults += [
        f"{name}: no input has a dimension of that name"
        for name in buckets
        if not any(_mentions_any(dim, name, one) for dim in dims)
    ]
    if faults:
        raise InputError(listing("the buckets do not fit the model:", faults))
    held = {name: tuple(int(size) for size in sizes) for name, sizes in buckets.items()}
    return Bucketed(model, held, tuple(own), fill)


def _mentions_any(dim: Dim, name: str, one: Mapping[str, int]) -> bool:
    if not isinstance(dim, str):
        return False
    without = {key: value for key, value in one.items() if key != name}
    return evaluate(dim, one) is not None and evaluate(dim, without) is None
