"""Programs with a padded axis, and the check that padding never shows.

The padding of inputs is NaN for floats and an index that is valid, but wrong, for integers. The
real part of every result is held against the same function on inputs that are not padded.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer as ji
from jaxinfer.compile.bucket import pad

TOL = 2e-6
"""Relative to the largest value: sums of at most 100 float32 in another order."""


class Case(NamedTuple):
    """A function of arrays, their dims, dtypes, and the bucket's and the real sizes."""

    fn: Callable[..., Any]
    shapes: Sequence[Sequence[Any]]
    dtypes: Sequence[str] = ()
    bucket: Mapping[str, int] = MappingProxyType({"n": 8})
    reals: Sequence[Mapping[str, int]] = ({"n": 1}, {"n": 5})
    params: Any = MappingProxyType({})


def dims(shape, sizes):
    from jaxinfer.core.symbols import evaluate

    return tuple(evaluate(dim, sizes) for dim in shape)


def example(rng, shape, dtype):
    if dtype.startswith(("float", "bfloat")):
        return rng.normal(size=shape).astype(dtype)
    if dtype == "bool":
        return rng.random(shape) < 0.6
    return rng.integers(0, 3, shape).astype(dtype)


def garbage(array, shape):
    """Return an array at the beginning of one of NaN, True, or index 2."""
    kind = np.dtype(array.dtype).kind
    out = np.full(shape, np.nan if kind in "fV" else kind == "b" or 2, array.dtype)
    out[tuple(map(slice, array.shape))] = array
    return jnp.asarray(out)


def real_of(array, sizes, real):
    return array[tuple(slice(None) if s is None else slice(s.at(real)) for s in sizes)]


def assert_same(got, want, tol=TOL):
    assert got.shape == want.shape, (got.shape, want.shape)
    assert got.dtype == want.dtype, (got.dtype, want.dtype)
    got, want = (np.asarray(x).astype("c16" if x.dtype.kind == "c" else "f8") for x in (got, want))
    scale = float(np.abs(want[np.isfinite(want)]).max(initial=0)) or 1.0
    np.testing.assert_allclose(got, want, rtol=0, atol=tol * scale)


def quick(fn):
    """Return a function jitted anew, with little optimization: these are compiled once."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(lambda *args: fn(*args), compiler_options=options)


def padded_of(case):
    kinds = list(case.dtypes) or ["float32"] * len(case.shapes)
    model = ji.from_function(case.fn, dict(case.params), None)
    return pad(model, case.shapes, case.bucket, arrays=[jnp.dtype(k) for k in kinds])


def check(case, padded=None, tol=TOL):
    """Hold the padded function against the function itself, at every real size."""
    kinds = list(case.dtypes) or ["float32"] * len(case.shapes)
    padded = padded_of(case) if padded is None else padded
    rng = np.random.default_rng(0)
    given = [
        [example(rng, dims(s, real), k) for s, k in zip(case.shapes, kinds, strict=True)]
        for real in case.reals
    ]
    full = [
        [garbage(a, dims(s, case.bucket)) for a, s in zip(arrays, case.shapes, strict=True)]
        for arrays in given
    ]
    params = dict(case.params)

    def both(given, full, reals):  # at all sizes: compiled once
        plain = [jax.tree.leaves(case.fn(params, *arrays)) for arrays in given]
        pairs = zip(full, reals, strict=True)
        return plain, [padded.run(params, arrays, real) for arrays, real in pairs]

    sizes = [{name: jnp.int32(n) for name, n in real.items()} for real in case.reals]
    for real, want, got in zip(case.reals, *quick(both)(given, full, sizes), strict=True):
        for w, g, axes in zip(want, got, padded.outputs, strict=True):
            assert_same(real_of(g, axes, real), w, tol)
    return padded
