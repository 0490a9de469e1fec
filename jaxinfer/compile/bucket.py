"""bucket(): a model for any size up to its largest bucket, padded, masked, and sliced back.

    pad(model, shapes, {"seq": 128})        one bucket (``padding.function``)
    bucket(model, {"seq": [32, 128]})       all of them: a call goes to the least that holds it
    choose_buckets(histogram, 4)            which ones, from the sizes that occur

Only the real part of a result comes back, and it equals the unpadded function's; what cannot be
proven so is refused with the equation and its source line. ``Bucketed`` compiles a bucket when it
is first called: ``compile`` (another file) does so ahead of time.

The idea of buckets: jax issue 803, https://github.com/jax-ml/jax/issues/803.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.compile.padding.choose import bucket_faults
from jaxinfer.compile.padding.choose import choose_buckets as choose_buckets
from jaxinfer.compile.padding.choose import waste as waste
from jaxinfer.compile.padding.function import Masking, Padded, Size, given_arrays
from jaxinfer.compile.padding.function import PaddingError as PaddingError
from jaxinfer.compile.padding.function import pad as pad
from jaxinfer.compile.padding.same import sizes_text
from jaxinfer.compile.padding.trace import at_sizes, filled
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model, _need_key
from jaxinfer.core.program import x64_of
from jaxinfer.core.symbols import Dim, evaluate, is_name, solve


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
            arrays = [jnp.asarray(v) for v in given_arrays(model, values)]
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
            arrays = [as_array(v, f"input {i}") for i, v in enumerate(given_arrays(model, values))]
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
