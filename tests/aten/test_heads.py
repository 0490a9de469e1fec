"""Attention head by head is attention."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer_converters.aten import _heads, attention
from tests.aten.harness import rand

MASKS = {
    "none": None,
    "one for all": (5, 7),
    "of the keys": (7,),
    "of the batch": (3, 1, 5, 7),
    "of the heads": (4, 5, 7),
    "of all": (3, 4, 5, 7),
    "of the batch's keys": (3, 1, 1, 7),
    "of one": (1, 1, 5, 7),
}


def arrays(lead, heads, groups):
    sizes = ((heads, 5, 6), (groups, 7, 6), (groups, 7, 3))
    return [rand(*lead, *size, seed=seed) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("block", [1, 2 * 5 * 7, 1 << 30])
def test_blocks_are_the_whole(monkeypatch, mask, groups, block):
    monkeypatch.setattr(_heads, "BLOCK", block)
    q, k, v = arrays((3,), 4, groups)
    shape = MASKS[mask]
    seen = None if shape is None else jnp.asarray(rand(*shape, seed=9) > -0.5)
    dense = functools.partial(attention._attend, causal=True, scale=None)
    got = _heads.by_blocks(dense, q, k, v, seen)
    np.testing.assert_allclose(got, dense(q, k, v, seen), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 1, 3)])
def test_any_number_of_leading_axes(lead):
    q, k, v = arrays(lead, 4, 2)
    bias = rand(*(1,) * (len(lead) - 1), *lead[-1:], 4, 5, 7, seed=9)
    dense = functools.partial(attention._attend, causal=False, scale=0.3)
    got = _heads.by_blocks(dense, q, k, v, bias)
    np.testing.assert_allclose(got, dense(q, k, v, bias), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_rule_takes_blocks_where_scores_are_many(monkeypatch, causal):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(_heads, "LARGE", 100)
    rule = attention.scaled_dot_product_attention
    q, k, v = arrays((3,), 4, 4)

    def attend(q, k, v):
        return rule(None, q, k, v, None, 0.0, causal)

    jaxpr = str(jax.make_jaxpr(attend)(q, k, v))
    assert "platform_index" in jaxpr
    assert "scan" in jaxpr
    want = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), is_causal=causal
    )
    np.testing.assert_allclose(jax.jit(attend)(q, k, v), want, rtol=1e-4, atol=1e-5)
    weights = rand(*want.shape, seed=4)
    loss = lambda *args: (attend(*args) * weights).sum()
    leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
    (out * torch.from_numpy(weights)).sum().backward()
    for got, leaf in zip(jax.grad(loss, (0, 1, 2))(q, k, v), leaves, strict=True):
        np.testing.assert_allclose(got, leaf.grad, rtol=1e-3, atol=1e-5)


def test_memory_is_that_of_a_block():
    shape = (4, 8, 600, 32)
    q = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert math.prod((4, 8, 600, 600)) > _heads.LARGE
    rule = lambda q: attention.scaled_dot_product_attention(None, q, q, q)
    used = jax.jit(rule).lower(q).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * _heads.BLOCK * 4 < 4 * math.prod((4, 8, 600, 600))
