"""What the tests of arrange share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NUMBERS = {"NHWC": ("NHWC", "HWIO", "NHWC"), "NCHW": ("NCHW", "OIHW", "NCHW")}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def equations(fn, *args):
    """Return all equations of a function, those inside others too."""
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            found.append(eqn)
            for value in eqn.params.values():
                for one in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(one, "jaxpr", one)
                    if hasattr(inner, "eqns"):
                        walk(inner)

    walk(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def of(model, name, *args):
    return [e for e in equations(model.apply, model.params, *args) if e.primitive.name == name]


def near(got, want):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


def convolve(x, w, numbers="NHWC", **options):
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lax.conv_general_dilated(x, w, dimension_numbers=NUMBERS[numbers], **options)


def image(layout, batch=2):
    x = normal(batch, 7, 5, 4)
    return x if layout == "NHWC" else np.moveaxis(x, 3, 1)


def network(p, x):
    x = convolve(x, p["one"])
    x = jax.nn.relu((x - p["mean"]) * lax.rsqrt(p["var"] + 1e-5))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = convolve(x, p["two"]) + x
    return x.mean((1, 2)) @ p["head"]


def weights():
    return {
        "one": normal(3, 3, 4, 6),
        "two": normal(3, 3, 6, 6, seed=1),
        "mean": normal(6, seed=2),
        "var": np.abs(normal(6, seed=3)),
        "head": normal(6, 3, seed=4),
    }
