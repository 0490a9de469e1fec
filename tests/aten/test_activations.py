"""Derivatives of the activations and friends against torch's, far out where branches overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.core.ops import OPS

NAMES = [
    "celu",
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log_sigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "tanh",
    "special_entr",
    "sinc",
]
POINTS = np.array([-95.0, -20.5, -2.2, -0.3, 0.2, 1.7, 2.9, 21.0, 95.0], np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_torchs(name):
    torch = pytest.importorskip("torch")
    points = np.abs(POINTS) if name == "special_entr" else POINTS
    x = torch.tensor(points, requires_grad=True)
    getattr(torch.ops.aten, name).default(x).sum().backward()
    got = jax.grad(lambda x: OPS[f"aten.{name}.default"](x).sum())(jnp.asarray(points))
    # twice the default tolerance of the functions: a derivative has about twice the operations
    np.testing.assert_allclose(got, x.grad.numpy(), rtol=4e-5, atol=4e-5)


@pytest.mark.parametrize(
    ("op", "args", "want"),
    [
        ("aten.relu.default", (0.0,), 0.0),
        ("aten.xlogy.Tensor", (0.0, 0.0), 0.0),
        ("aten.xlogy.Tensor", (0.0, 2.0), np.log(2.0)),
        ("aten.special_xlog1py.default", (0.0, -1.0), 0.0),
        ("aten.pow.Tensor_Scalar", (0.0, 2), 0.0),
        ("aten.elu.default", (200.0,), 1.0),
    ],
)
def test_derivative_at_an_edge(op, args, want):
    first, *rest = (jnp.float32(a) if isinstance(a, float) else a for a in args)
    np.testing.assert_allclose(jax.grad(OPS[op])(first, *rest), want, rtol=1e-6)
