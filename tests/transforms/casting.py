"""What the tests of cast share: small models, errors, the dtypes of products."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer as ji
from jaxinfer.core._compat import subjaxprs
from jaxinfer.transforms._cast_rules import CLASSES
from jaxinfer.transforms.cast import cast
from tests.laws.programs import PROGRAMS

UNIT = {"bf16": 2.0**-8, "f16": 2.0**-11}
"""Half the distance of neighbours, relative: the error of one rounding."""


@functools.cache
def model_of(name):
    row = PROGRAMS[name]
    return ji.from_function(row.fn, row.params(), row.inputs(2))


@functools.cache
def cast_of(name, policy="bf16"):
    return cast(policy)(model_of(name))


def linear(fn=None, **params):
    """A model of x[2, 3] whose parameters are arrays."""
    params = params or {"w": normal(3, 5), "v": normal(5, 4)}
    fn = fn or (lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"])
    return ji.from_function(fn, params, (normal(2, 3),))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), "float32")


def error(got, want):
    """Return the largest error, relative to the largest value of its leaf."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(
        np.abs(np.asarray(g, "f8") - np.asarray(w, "f8")).max() / np.abs(np.asarray(w, "f8")).max()
        for g, w in pairs
    )


def equations(model, *inputs):
    """Yield all equations of a model, those in loops and branches too."""
    todo = [jax.make_jaxpr(model.apply)(model.params, *inputs).jaxpr]
    while todo:
        for eqn in todo.pop().eqns:
            yield eqn
            todo += subjaxprs(eqn.params)


def products(model, *inputs):
    """Return how many products there are by the dtypes of their operands."""
    return collections.Counter(
        "*".join(var.aval.dtype.name for var in eqn.invars[:2])
        for eqn in equations(model, *inputs)
        if CLASSES.get(eqn.primitive.name) == "product"
    )


def dtypes(tree):
    return [leaf.dtype.name for leaf in jax.tree.leaves(tree)]
