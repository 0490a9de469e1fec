"""Small models for the tests of executables; no torch."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer as ji

D, F = 3, 5


def weights(seed=0, d=D, f=F):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return {"in": {"w": draw(d, f), "b": draw(f)}, "out": {"w": draw(f, d)}}


def mlp(p, x):
    """x[b, d] -> {"y": [b, d], "sum": [b], "none": None}: rows do not see each other."""
    h = jnp.tanh(x @ p["in"]["w"] + p["in"]["b"])
    y = h @ p["out"]["w"]
    return {"y": y, "sum": y.sum(-1), "none": None}


def mlp_model(rows=2, **kwargs):
    return ji.from_function(mlp, weights(**kwargs), (jnp.ones((rows, kwargs.get("d", D))),))


def mlp_reference(p, x):
    """The same in float64, by numpy."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    y = np.tanh(x.astype(np.float64) @ p["in"]["w"] + p["in"]["b"]) @ p["out"]["w"]
    return y, y.sum(-1)


def pooled(p, x):
    """x[b, t, d] -> mean over t, then a product: the mean needs the real length."""
    return jnp.mean(x, 1) @ p["in"]["w"]


def pooled_model():
    return ji.from_function(pooled, weights(), (jnp.ones((2, 7, D)),))


def rows(*shape, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


TOL = 1e-5  # float32 sums of up to 5 terms; relative to values of about 1
