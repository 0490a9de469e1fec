"""Which axes of a program are one dimension: by its equations, in every kind of body."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxinfer.sharding._auto_dimensions import dimensions
from jaxinfer.sharding._auto_factors import expand, lead
from jaxinfer.sharding._auto_flow import Flow


def read(fn, **shapes):
    """Read a function of named parameters; the axes of each."""
    avals = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes.values()]
    closed = jax.make_jaxpr(lambda *values: fn(**dict(zip(shapes, values, strict=True))))(*avals)
    flow = Flow()
    flow.add(closed.jaxpr, list(shapes))
    return flow


def pairs(flow):
    """Return every pair of axes of different parameters that are one dimension."""
    places = [
        (f"{name}{i}", lead(one))
        for name, axes in flow.params.items()
        for i, one in enumerate(axes)
    ]
    return {
        (one, other)
        for index, (one, a) in enumerate(places)
        for other, b in places[index + 1 :]
        if a is not None and a is b and one[0] != other[0]
    }


def looped(a, b):
    return lax.while_loop(lambda c: c.sum() < 3, lambda c: c + b, a)


def branched(a, b):
    return lax.cond(a.sum() > 0, lambda: a * 2, lambda: b)


def updated(a, b):
    return lax.dynamic_update_slice(a, b, (1, 0))


def scattered(a, b):
    return a.at[jnp.array([2, 0])].add(b)


def joined(a, b):
    return jnp.concatenate([a, b], 0)


CASES = {
    "sum": (lambda a, b: a + b, (5, 7), (5, 7), {("a0", "b0"), ("a1", "b1")}),
    "sizes of 1": (lambda a, b: a + b, (5, 7), (1, 7), {("a1", "b1")}),
    "product": (lambda a, b: a @ b, (5, 7), (7, 3), {("a1", "b0")}),
    "left": (lambda a, b: b.T @ a, (7, 5), (7, 3), {("a0", "b0")}),
    "batched": (lambda a, b: a @ b, (4, 5, 7), (4, 7, 3), {("a0", "b0"), ("a2", "b1")}),
    "while": (looped, (5, 7), (5, 7), {("a0", "b0"), ("a1", "b1")}),
    "cond": (branched, (5, 7), (5, 7), {("a0", "b0"), ("a1", "b1")}),
    "jit": (lambda a, b: jax.jit(jnp.multiply)(a, b), (5,), (5,), {("a0", "b0")}),
    "remat": (lambda a, b: jax.checkpoint(jnp.multiply)(a, b), (5,), (5,), {("a0", "b0")}),
    "relu": (lambda a, b: jax.nn.relu(a) + b, (5,), (5,), {("a0", "b0")}),
    "scan": (
        lambda a, b: lax.scan(lambda c, w: (jnp.tanh(c @ w), None), a, b)[0],
        (3, 7),
        (4, 7, 7),
        {("a1", "b1"), ("a1", "b2")},
    ),
    "update": (updated, (5, 7), (2, 7), {("a1", "b1")}),
    "scatter": (scattered, (5, 7), (2, 7), {("a1", "b1")}),
    "concatenate": (joined, (5, 7), (2, 7), {("a1", "b1")}),
    "pad": (lambda a, b: jnp.pad(a, ((1, 1), (0, 0))) + b, (5, 7), (7, 7), {("a1", "b1")}),
    "reverse": (lambda a, b: a[::-1] + b, (5,), (5,), {("a0", "b0")}),
    "sort": (lambda a, b: jnp.sort(a) + b, (5,), (5,), set()),
    "softmax": (lambda a, b: jax.nn.softmax(a) * b, (5, 7), (7,), {("a1", "b0")}),
    "cumulative": (lambda a, b: jnp.cumsum(a, 0) + b, (5,), (5,), {("a0", "b0")}),
    "take": (lambda a, b: a[jnp.array([1, 3])] + b, (5, 7), (2, 7), {("a1", "b1")}),
    "nothing": (lambda a, b: (a * 2, b * 2), (5, 5), (5, 5), set()),
}


@pytest.mark.parametrize("name", CASES)
def test_same_dimensions(name):
    fn, a, b, want = CASES[name]
    assert pairs(read(fn, a=a, b=b)) == want


def test_heads():
    """Queries and keys agree on 3 heads of 4, though a reshape of 12 columns makes them."""

    def fn(x, q, k):
        one, other = ((x @ w).reshape(-1, 3, 4) for w in (q, k))
        return jnp.einsum("snh,tnh->nst", one, other)

    flow = read(fn, x=(5, 8), q=(8, 12), k=(8, 12))
    heads = lead(flow.params["q"][1])
    assert heads is lead(flow.params["k"][1])
    assert [factor.size for factor in expand(flow.params["q"][1])] == [3, 4]
    found = dimensions(flow)[heads]
    assert found.kinds == {"heads"}
    assert sorted(found.params) == [("k", 1), ("q", 1)]
    assert lead(flow.params["x"][1]) in found.apart


def test_groups_of_channels():
    def fn(x, w):
        return lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=3)

    flow = read(fn, x=(2, 6, 9), w=(12, 2, 3))
    assert lead(flow.params["x"][1]) is lead(flow.params["w"][0])
    assert [factor.size for factor in expand(flow.params["w"][0])] == [3, 4]


def test_bytes_of_a_product_and_of_a_scan():
    def fn(x, w):
        return lax.scan(lambda c, own: (c @ own, None), x, w)[0]

    found = read(fn, x=(3, 7), w=(5, 7, 7))
    (use,) = [use for use in found.uses if use.kind == "contract"]
    assert use.bytes == 5 * 3 * 7 * 4
    (product,) = found.products[0].values()
    assert (product.path, product.side, product.operand_bytes) == ("w", 1, 5 * 7 * 7 * 4)


def test_what_is_unknown_is_needed_whole():
    flow = read(lambda a: jnp.sort(a, axis=0), a=(5, 7))
    assert [use.kind for use in flow.uses] == ["break", "break", "output", "output"]
    assert {use.bytes for use in flow.uses} == {5 * 7 * 4}
