"""A function compiled by OpenVINO against JAX; operands for it."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)

from jaxinfer.compile.openvino.function import compile_jaxpr

RNG = np.random.default_rng(0)


def draw(*shape, scale=1.0):
    return jnp.asarray(RNG.normal(size=shape) * scale, jnp.float32)


X, Y = draw(3, 5, 7), draw(3, 5, 7)
BIG = jnp.asarray(RNG.integers(-(2**31), 2**31, (3, 5, 7)), jnp.int32)
BIG2 = jnp.asarray(RNG.integers(-(2**31), 2**31, (3, 5, 7)), jnp.int32)
WIDE = jnp.asarray(
    [*RNG.normal(size=200) * 10.0 ** RNG.integers(-8, 2, 200), 0, 1, -1, 0.5, -0.5, 1.5, -2.5, 88]
).astype(jnp.float32)
UNIT = jnp.asarray([*RNG.uniform(-0.999, 0.999, 99), *RNG.normal(size=99) * 1e-3, 0], jnp.float32)
LENGTHS = jnp.asarray([2, 0, 4], jnp.int32)


def traced(fn, *args):
    return jax.make_jaxpr(lambda *a: jax.tree.leaves(fn(*a)))(*args)


def check(fn, *args, tol=2e-6):
    """Every output has JAX's shape and dtype, and its numbers to ``tol`` of the largest.

    2e-6 of the largest is some units in the last place of float32 after sums of up to a hundred
    terms in another order; integers and truths have to be equal.
    """
    want = jax.tree.leaves(jax.jit(fn)(*args))
    before = [np.array(a) for a in args]
    got = compile_jaxpr(traced(fn, *args), threads=1)([np.asarray(a) for a in args])
    for held, kept in zip(args, before, strict=True):  # they share memory with OpenVINO
        np.testing.assert_array_equal(np.asarray(held), kept)
    assert len(got) == len(want)
    for place, (g, w) in enumerate(zip(got, want, strict=True)):
        w = np.asarray(w)
        assert (g.shape, g.dtype) == (w.shape, w.dtype), place
        if w.dtype.kind in "bi":
            np.testing.assert_array_equal(g, w, err_msg=f"output {place}")
        else:
            g, w = (a.astype(np.float32) for a in (g, w))
            scale = float(np.abs(w[np.isfinite(w)]).max(initial=0)) or 1.0
            np.testing.assert_allclose(
                g, w, rtol=0, atol=tol * scale, err_msg=f"output {place}", equal_nan=True
            )
