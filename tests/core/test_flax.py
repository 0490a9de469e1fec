"""Flax modules become Models, and Models become NNX modules that train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxinfer as ji
from jaxinfer.core.errors import ConversionError


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)

    def __call__(self, x):
        return self.norm(nnx.relu(self.first(x)))


X = jnp.asarray(np.random.default_rng(0).standard_normal((7, 3)), jnp.float32)


def test_linen():
    class Dense(linen.Module):
        @linen.compact
        def __call__(self, x, scale=1.0):
            return linen.Dense(2)(x) * scale

    module = Dense()
    variables = module.init(jax.random.key(0), X)
    model = ji.from_flax(module, variables, (X,), scale=3.0)
    np.testing.assert_allclose(model(X), module.apply(variables, X, 3.0), rtol=1e-6)
    assert model(X[:2]).shape == (2, 2)
    with pytest.raises(TypeError, match="needs its variables"):
        ji.from_flax(module)


def test_nnx():
    module = Net(nnx.Rngs(0))
    module.eval()
    model = ji.from_flax(module, None, (X,))
    np.testing.assert_allclose(model(X), module(X), rtol=1e-6)
    doubled = jax.tree.map(lambda v: v * 2, model.params)
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, doubled)
    np.testing.assert_allclose(
        ji.from_flax(module, doubled, (X,))(X), model.apply(doubled, X), rtol=1e-6
    )


def test_nnx_that_changes_its_state_is_refused():
    module = Net(nnx.Rngs(0))
    model = ji.from_flax(module, None, (X,))
    with pytest.raises(ConversionError, match="changes its state"):
        model(X)


def test_not_a_flax_module():
    with pytest.raises(TypeError, match="from_function"):
        ji.from_flax(lambda x: x)
    with pytest.raises(TypeError, match="callable"):
        ji.from_function(3, {})


def dotted():
    rng = np.random.default_rng(1)
    params = {
        "layer.0.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "layer.0.bias": np.zeros(4, np.float32),
        "layer.1.weight": rng.standard_normal((4, 1)).astype(np.float32),
        "steps": np.zeros((), np.int32),
    }
    params = jax.tree.map(jnp.asarray, params)

    def fn(p, x):
        hidden = jnp.tanh(x @ p["layer.0.weight"] + p["layer.0.bias"])
        return hidden @ p["layer.1.weight"]

    return ji.from_function(fn, params, (X,))


def test_to_nnx_nests_splits_and_merges():
    model = dotted()
    module = model.to_nnx()
    np.testing.assert_allclose(module(X), model(X), rtol=1e-6)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    pure = nnx.to_pure_dict(params)
    assert set(pure["layer"]) == {"0", "1"}
    assert set(pure["layer"]["0"]) == {"weight", "bias"}
    assert list(nnx.to_pure_dict(rest)) == ["steps"]
    np.testing.assert_allclose(nnx.merge(graphdef, params, rest)(X), model(X), rtol=1e-6)


def test_optax_trains_a_converted_module():
    module = dotted().to_nnx()
    target = jnp.sin(X.sum(1, keepdims=True))
    optimizer = nnx.Optimizer(module, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - target) ** 2))(module)
        optimizer.update(module, grads)
        return loss

    losses = [float(step(module, optimizer)) for _ in range(200)]
    assert losses[-1] < 0.1 * losses[0]


def test_reserved_names_get_an_underscore():
    model = ji.from_function(lambda p, x: x * p["train.weight"], {"train.weight": jnp.ones(3)})
    module = model.to_nnx()
    assert hasattr(module, "train_")
    np.testing.assert_array_equal(module(jnp.arange(3.0)), [0, 1, 2])
