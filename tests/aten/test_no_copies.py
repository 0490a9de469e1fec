"""What is promised about the shape of the computation, checked in its jaxpr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.core.ops import OPS
from jaxinfer_converters.graph import Graph
from jaxinfer_converters.program import Context
from tests.aten.harness import rand

GQA = [rand(2, 6, 5, 7), rand(2, 3, 11, 7), rand(2, 3, 11, 7)]


def equations(jaxpr):
    """All equations, also of inner jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def attend(q, k, v, **options):
    context = Context(Graph((), (), ()), {})
    return OPS["aten.scaled_dot_product_attention.default"](context, q, k, v, **options)


def made_from_keys(fn, *args):
    """Shapes that hold more than the keys do: [.., 6 heads, 11, 7]."""
    made = jax.make_jaxpr(fn)(*args)
    shapes = [v.aval.shape for e in equations(made.jaxpr) for v in e.outvars]
    return [s for s in shapes if s[-2:] == (11, 7) and np.prod(s) > 2 * 3 * 11 * 7]


def test_grouped_queries_do_not_expand_keys_and_values():
    assert not made_from_keys(lambda *x: attend(*x, enable_gqa=True), *GQA)
    expanded = lambda q, k, v: attend(q, jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1))
    assert made_from_keys(expanded, *GQA)  # so the check can fail
    np.testing.assert_allclose(attend(*GQA, enable_gqa=True), expanded(*GQA), rtol=1e-5, atol=1e-5)


def test_linear_contracts_its_weight_as_it_lies():
    made = jax.make_jaxpr(OPS["aten.linear.default"])(rand(2, 5, 3), rand(7, 3), rand(7))
    names = [e.primitive.name for e in equations(made.jaxpr)]
    assert names.count("dot_general") == 1
    assert "transpose" not in names


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_types_accumulate_and_add_in_float32(kind):
    args = [rand(*shape, dtype=kind) for shape in ((2, 3), (7, 3), (7,))]
    made = jax.make_jaxpr(OPS["aten.linear.default"])(*args)
    kinds = {e.primitive.name: e.outvars[0].aval.dtype.name for e in equations(made.jaxpr)}
    assert kinds["dot_general"] == kinds["add"] == "float32"
    assert made.out_avals[0].dtype.name == kind


@pytest.mark.parametrize("name", ["aten.norm.Scalar", "aten.linalg_vector_norm.default"])
def test_norm_has_a_gradient_at_zero(name):
    gradient = jax.grad(lambda x: OPS[name](x))(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, 0)


def test_masked_rows_have_a_gradient():
    mask = np.zeros((5, 11), bool)
    gradient = jax.grad(lambda q: attend(q, GQA[1], GQA[2], attn_mask=mask).sum())(GQA[0][:, :3])
    np.testing.assert_array_equal(gradient, 0)
