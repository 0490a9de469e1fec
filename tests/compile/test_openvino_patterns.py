"""What is recognised as one operator: in which forms, with JAX's numbers, and what is not it."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinfer.compile.openvino.function import compile_jaxpr
from jaxinfer.compile.openvino.model import build
from tests.compile.openvino_check import RNG, X, check, draw, traced


def kinds(fn, *args):
    return Counter(node.get_type_name() for node in build(traced(fn, *args)).model.get_ops())


def normal(x, axes=-1, eps=1e-5, weight=None, fast=False, divide=False):
    mean = x.mean(axes, keepdims=True)
    if fast:  # Flax
        mean2 = jnp.square(jnp.abs(x)).mean(axes)
        var = jnp.maximum(0.0, mean2 - jnp.square(jnp.abs(x.mean(axes))))
        var = var.reshape(mean.shape)
    else:
        var = jnp.square(x - mean).mean(axes, keepdims=True)
    if divide:
        return (x - mean) / jnp.sqrt(var + eps)
    factor = lax.rsqrt(var + eps)
    return (x - mean) * (factor if weight is None else factor * weight)


NORMAL = [
    normal,
    lambda x: normal(x, divide=True),
    lambda x: normal(x, weight=jnp.arange(7.0)),
    lambda x: normal(x, fast=True),
    lambda x: normal(x, axes=(1, 2)),
    lambda x: jax.nn.standardize(x, axis=-1, epsilon=1e-5),
]


def test_normalization():
    fn = lambda x: [form(x) for form in NORMAL]
    check(fn, X, tol=1e-5)
    found = kinds(fn, X)
    assert found["MVN"] == len(NORMAL)
    assert found["ReduceMean"] == found["ReduceSum"] == found["Sqrt"] == 0


def test_what_is_no_normalization():
    def fn(x, y):
        mean = x.mean(-1, keepdims=True)
        var = jnp.square(x - mean).mean(-1, keepdims=True)
        other = jnp.square(y - mean).mean(-1, keepdims=True)
        rows = jnp.square(x - mean).mean(1, keepdims=True)
        return [
            (x - mean) * lax.rsqrt(other + 1e-5),
            (y - mean) * lax.rsqrt(var + 1e-5),
            (x - mean) * lax.rsqrt(rows + 1e-5),
            (x - mean) * lax.rsqrt(var + y**2 + 0.1),
            (x - mean) / (var + 1e-5),
            (x - 2 * mean) * lax.rsqrt(var + 1e-5),
            x.sum(-1) / 5,
        ]

    check(fn, X, draw(3, 5, 7), tol=1e-5)
    assert kinds(fn, X, X)["MVN"] == 0


def test_softmax():
    fn = lambda x: [jax.nn.softmax(x), jax.nn.softmax(x, 1), jax.nn.softmax(x[:, 0] * 50)]
    check(fn, X)
    found = kinds(fn, X)
    assert (found["Softmax"], found["Exp"]) == (3, 0)
    other = lambda x: [
        jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
        jnp.exp(x - x.max(1, keepdims=True)) / jnp.exp(x).sum(-1, keepdims=True),
        jax.nn.softmax(x, (1, 2)),
    ]
    check(other, X, tol=1e-5)
    assert kinds(other, X)["Softmax"] == 0


def test_gelu():
    def fn(x):
        half = 0.5 * x
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x * x * x)
        return [
            jax.nn.gelu(x, approximate=False),
            jax.nn.gelu(x),
            half * (1 + lax.erf(x * np.float32(np.sqrt(0.5)))),
            half * (1 + lax.tanh(inner)),
        ]

    check(fn, X * 3)
    assert kinds(fn, X)["Gelu"] == 4
    other = lambda x: [
        x * (1 + lax.erf(x * np.float32(np.sqrt(0.5)))),
        0.5 * x * (1 + lax.erf(x)),
        0.5 * x * (1 + lax.erf(x[::-1] * np.float32(np.sqrt(0.5)))),
        0.5 * x * (1 + lax.tanh(x + 0.044715 * x * x * x)),
        0.5 * x * (1 + lax.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.05 * x * x * x))),
    ]
    check(other, X)
    assert kinds(other, X)["Gelu"] == 0


def test_ranges():
    w = draw(7, 7)

    def fn(x):
        y = x @ w
        return [
            jax.nn.relu(x),
            jax.nn.relu6(x * 4),
            jnp.clip(x, -0.5, 0.5),
            lax.clamp(-0.5, x, 1.0),
            jnp.minimum(jnp.maximum(0.5, x), 0.2),
            jax.nn.relu(y),
            jax.nn.relu6(y + 1),
            jnp.maximum(x, -jnp.inf),
            jnp.minimum(x, jnp.inf),
            jnp.clip(x, 0.1, None),
        ]

    check(fn, X, tol=1e-5)
    found = kinds(fn, X)
    assert (found["Relu"], found["Clamp"]) == (1, 3)


Q, K, V = draw(2, 3, 5, 8), draw(2, 3, 7, 8), draw(2, 3, 7, 6)
SEEN = jnp.asarray(RNG.random((2, 1, 5, 7)) < 0.6).at[:, :, :, 0].set(True)
EMPTY = SEEN.at[1].set(False).at[0, 0, 2].set(False)  # rows that see nothing


def guarded(x):
    """PyTorch's softmax: zeros for a row of -inf."""
    empty = jnp.max(x, -1, keepdims=True) == -jnp.inf
    return jnp.where(empty, 0, jax.nn.softmax(jnp.where(empty, 0, x), -1))


def attend(q, k, v, mask=None, bias=None, least=-jnp.inf, softmax=jax.nn.softmax, scale=0.3):
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) * scale
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, least)
    return jnp.einsum("bhts,bhse->bhte", softmax(scores), v)


ATTENTION = {
    "plain": lambda q, k, v, m: attend(q, k, v),
    "divided": lambda q, k, v, m: attend(q, k, v, softmax=lambda x: jax.nn.softmax(x / 2)),
    "masked": lambda q, k, v, m: attend(q, k, v, SEEN),
    "masked by an input": lambda q, k, v, m: attend(q, k, v, m),
    "lowest": lambda q, k, v, m: attend(q, k, v, m & EMPTY, least=jnp.finfo(jnp.float32).min),
    "added": lambda q, k, v, m: attend(q, k, v, bias=jnp.where(m, 0.5, -2.0)),
    "added and masked": lambda q, k, v, m: attend(q, k, v, m, bias=q[..., :7]),
    "empty rows": lambda q, k, v, m: attend(q, k, v, m & EMPTY, softmax=guarded),
    "constant": lambda q, k, v, m: attend(q, k, v, EMPTY, softmax=guarded),
    "none empty": lambda q, k, v, m: attend(q, k, v, SEEN, softmax=guarded),
    "of terms": lambda q, k, v, m: attend(
        q, k, v, bias=jnp.where(m & EMPTY, 0.5, -jnp.inf), softmax=guarded
    ),
    "of both": lambda q, k, v, m: attend(
        q, k, v, m, bias=jnp.where(EMPTY, 0.5, -jnp.inf), softmax=guarded
    ),
    "joined heads": lambda q, k, v, m: attend(q, k, v, m & EMPTY, softmax=guarded)
    .transpose(0, 2, 1, 3)
    .reshape(2, 5, 18),
    "heads last": lambda q, k, v, m: jnp.einsum(
        "bhts,bshe->bthe", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q.transpose(0, 2, 1, 3),
                                                     k.transpose(0, 2, 1, 3))),
        v.transpose(0, 2, 1, 3)),
    "three axes": lambda q, k, v, m: jnp.einsum(
        "bts,bse->bte", guarded(jnp.where(m[:, 0] & EMPTY[:, 0], q[:, 0] @ k[:, 0].mT, -jnp.inf)),
        v[:, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name):
    fn = ATTENTION[name]
    check(fn, Q, K, V, SEEN, tol=1e-5)
    found = kinds(fn, Q, K, V, SEEN)
    assert (found["ScaledDotProductAttention"], found["MatMul"], found["Softmax"]) == (1, 0, 0)


OTHER = {
    "a mask that is not out of reach": lambda q, k, v, m: attend(q, k, v, m, least=-3.0),
    "lowest, and zeros for -inf": lambda q, k, v, m: attend(
        q, k, v, m & EMPTY, least=jnp.finfo(jnp.float32).min, softmax=guarded
    ),
    "scaled after the mask": lambda q, k, v, m: attend(
        q, k, v, bias=jnp.where(m, 0.5, -2.0), softmax=lambda x: jax.nn.softmax(x * 2)
    ),
    "along another axis": lambda q, k, v, m: attend(
        q, k, v, softmax=lambda x: jax.nn.softmax(x, -2)
    ),
    "scores that are no product": lambda q, k, v, m: jax.nn.softmax(q[..., :7]) @ v,
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_attention(name):
    fn = OTHER[name]
    check(fn, Q, K, V, SEEN, tol=1e-5)
    assert kinds(fn, Q, K, V, SEEN)["ScaledDotProductAttention"] == 0


def test_one_mask_for_all_layers():
    def fn(q, k, v, m):
        m = m & EMPTY
        once = attend(q, k, v, m, softmax=guarded)
        return attend(q, k, jnp.concatenate([once, once[..., :2, :]], 2), m, softmax=guarded)

    check(fn, Q, K, V, SEEN, tol=1e-5)
    assert kinds(fn, Q, K, V, SEEN)["Select"] == 1
    assert compile_jaxpr(traced(fn, Q, K, V, SEEN)).report()["products"] == {"activation": 4}
