"""What must hold on a GPU: ``pytest -m gpu`` on a machine with one. Torch is not needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.cli import _probes
from jaxinfer.core.ops import OPS

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_gpu():
    if jax.default_backend() != "gpu":
        pytest.fail(f"asked for the GPU tests, but JAX runs on {jax.default_backend()}")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_numerics_probes_pass():
    findings = [_probes.run(probe) for probe in _probes.probes()]
    assert [finding for finding in findings if finding.status == "fail"] == []


def test_linear_is_float32_not_tf32():
    x, w = normal(257, 1031), normal(65, 1031, seed=1)
    got = jax.jit(OPS["aten.linear.default"])(x, w)
    want = x.astype(np.float64) @ w.astype(np.float64).T
    # float32: sqrt(1031) terms of 6e-8 each; TF32 would be off by 1e-2 and more
    assert np.abs(np.asarray(got) - want).max() < 1e-3


def test_convolution_is_float32_not_tf32():
    x, w = normal(2, 16, 19, 17), normal(8, 16, 3, 3, seed=1)
    got = jax.jit(OPS["aten.conv2d.default"])(x, w)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), (2, 3))
    want = np.einsum("bchwij,ocij->bohw", windows, w.astype(np.float64))
    assert np.abs(np.asarray(got) - want).max() < 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_attention(dtype):
    q, k, v = (jnp.asarray(normal(2, 4, 13, 8, seed=s), dtype) for s in range(3))
    rule = OPS["aten.scaled_dot_product_attention.default"]
    got = jax.jit(lambda *a: rule(None, *a, is_causal=True))(q, k, v)
    wide = [np.asarray(a, np.float64) for a in (q, k, v)]
    scores = wide[0] @ wide[1].swapaxes(-1, -2) / np.sqrt(8)
    scores = np.where(np.tri(13, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = weights / weights.sum(-1, keepdims=True) @ wide[2]
    bound = {"bfloat16": 3e-2, "float16": 4e-3, "float32": 1e-4}[jnp.dtype(dtype).name]
    assert np.abs(np.asarray(got, np.float64) - want).max() < bound
