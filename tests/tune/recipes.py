"""Small models for the tests of what is built, recipes and tuned models; no torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer as ji
from jaxinfer.tune._recipe_prints import prints_of
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.data import read
from jaxinfer.tune.groups import find_groups
from jaxinfer.tune.recipe import make_recipe

D = F = 16  # products of one shape are compiled once for all tests


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(seed=0):
    """A pytree of dicts: two blocks, each of a product and its bias, and a head."""
    draw = lambda n, *shape: jnp.asarray(normal(*shape, seed=seed + n) / 3)
    return {
        "a": {"w": draw(0, D, F), "b": draw(1, F)},
        "b": {"w": draw(2, F, F), "b": draw(3, F)},
        "head": {"w": draw(4, F, 4)},
    }


def mlp(p, x):
    x = jnp.tanh(x @ p["a"]["w"] + p["a"]["b"])
    x = jnp.tanh(x @ p["b"]["w"] + p["b"]["b"])
    return x @ p["head"]["w"]


def mlp_model(seed=0, rows=4):
    return ji.from_function(mlp, weights(seed), (jax.ShapeDtypeStruct((rows, D), "float32"),))


def batches(count=3, rows=4):
    return [(normal(rows, D, seed=10 + n),) for n in range(count)]


def everything(model=None, data=None):
    """Return a model, its groups and its data."""
    model = mlp_model() if model is None else model
    dataset = read(model, batches() if data is None else data, check=False)
    return model, find_groups(model, dataset.calls[0].arrays), dataset


@functools.cache
def usual():
    """Return the usual model, its groups and its data, and what it is known by."""
    found = everything()
    return (*found, prints_of(found[0]))


def recipe_of(candidate=None, **known):
    model, groups, data, prints = usual()
    candidate = candidate or Candidate()
    return make_recipe(model, candidate, groups, data.shapes(), prints=prints, **known)
