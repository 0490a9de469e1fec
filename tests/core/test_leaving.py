"""Models that hold array types, on their way out: to NNX, and to a checkpoint's state dict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxinfer as ji
from jaxinfer.core.array_types import materialize
from jaxinfer.core.errors import InputError
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.quantize import quantize
from tests.cli import fakes

X = fakes.examples(0)[0]
PATH = "head.weight"


def with_leaf(make):
    model = fakes.model()
    return model.replace(params=model.params | {PATH: make(model.params[PATH])})


def quantized():
    return with_leaf(lambda w: quantize(w, "int8", axes=(1,)))


def masked():
    return with_leaf(lambda w: Masked(w, jnp.abs(w) > 0.3))


@pytest.mark.parametrize("make", [quantized, masked])
def test_to_nnx_computes_the_same(make):
    model = make()
    module = model.to_nnx()
    want = model(*X)
    jax.tree.map(np.testing.assert_array_equal, want, nnx.jit(lambda m: m(*X))(module))
    again = nnx.merge(*nnx.split(module))
    jax.tree.map(np.testing.assert_allclose, want, again(*X))


def test_what_is_trained_of_an_array_type():
    trained = lambda model: {
        ".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    assert trained(quantized().to_nnx()) == {"head.weight.scale", "head.bias"}
    assert trained(masked().to_nnx()) == {"head.weight.weight", "head.bias"}


def test_gradients_of_a_masked_weight_stop_at_the_mask():
    model = masked()
    grads = nnx.grad(lambda m: (m(*X)["logits"] ** 2).sum())(model.to_nnx())
    got = np.asarray(grads["head"]["weight"]["weight"][...])
    mask = np.asarray(model.params[PATH].mask)
    assert (got[~mask] == 0).all()
    assert (got[mask] != 0).any()


def test_a_state_dict_holds_arrays_only():
    model = quantized()
    with pytest.raises(InputError) as caught:
        ji.to_state_dict(model)
    assert "head.weight: QTensor" in str(caught.value)
    assert "materialize" in str(caught.value)
    params = {name: materialize(leaf) for name, leaf in model.params.items()}
    assert ji.to_state_dict(model, params)[PATH].shape == (3, 5)
    assert list(ji.to_state_dict(model, {"head.bias": jnp.ones(3)})) == ["head.bias"]


def test_a_rewrite_that_renames_has_no_state_dict():
    class Renamed:
        kind = "renamed"

        def param_specs(self, old):
            return old

    with pytest.raises(InputError, match="renamed has changed the parameters"):
        ji.to_state_dict(fakes.model().replace(rewrites=(Renamed(),)))
