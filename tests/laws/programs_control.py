"""Programs with control flow, custom rules and calls: jaxprs within jaxprs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from tests.laws._program import blocked, dot, f32, i32, program

X = (f32("b, 7"),)
PAIR = {"w": (7, 11), "v": (11, 7)}
BOTH = {"w": dot(0), "v": dot(0)}
STACK = {"w": (3, 7, 11), "v": (3, 11, 7)}
STACKED = {"w": dot(1), "v": dot(1)}


def mlp(x, w, v):
    return jnp.tanh(jnp.tanh(x @ w) @ v)


# Calls.


@program(PAIR, X, BOTH)
def in_jit(params, x):
    """Section 6.1: both products are within a jit."""
    return jax.jit(mlp)(x, params["w"], params["v"])


@jax.jit
def _product(x, w):
    return jnp.tanh(x @ w)


@program({"a": (7, 11), "b": (7, 11)}, X, {"a": dot(0), "b": dot(0)})
def shared_jit(params, x):
    """Section 6.3: one inner jaxpr object, called with two weights; sites are not variables."""
    return _product(x, params["a"]) - _product(x * 0.5, params["b"])


@program({"a": (7, 11), "c": (11,)}, X, {"a": dot(0), "c": blocked("mul")})
def shared_jit_with_activation(params, x):
    """Section 6.3: one inner jaxpr, called with a weight and with an activation."""
    made = jnp.tanh(x.sum(0))[:, None] * params["c"]
    return _product(x, params["a"]) - _product(x, made)


@program({"w": (11, 7), "v": (11, 7)}, X, {"w": dot(1), "v": dot(0)})
def nested_jit(params, x):
    """Section 6.3: a weight is turned outside, another one within the second of two jits."""
    inner = jax.jit(lambda x, w, v: _product(_product(x, w), v.T.T))
    return jax.jit(lambda x, w, v: inner(x * 0.5, w, v))(x, params["w"].T, params["v"])


@program(PAIR, X, BOTH)
def checkpointed(params, x):
    """Section 6.1: ``jax.checkpoint``."""
    return jax.checkpoint(mlp)(x, params["w"], params["v"])


@jax.custom_jvp
def _jvp(x, w):
    return jnp.tanh(x @ w)


@_jvp.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    y = _jvp(x, w)
    return y, 2.0 * (1 - y**2) * (dx @ w + x @ dw)


@program({"w": (7, 11)}, X, {"w": dot(0)}, slope=2.0)
def custom_jvp(params, x):
    """Pitfall 7: the rule doubles the derivative, so one that is lost is seen."""
    return _jvp(x, params["w"])


@jax.custom_vjp
def _vjp(x, w):
    return jnp.tanh(x @ w)


def _forward(x, w):
    y = jnp.tanh(x @ w)
    return y, (x, w, y)


def _backward(kept, ct):
    x, w, y = kept
    ct = 3.0 * (1 - y**2) * ct
    return ct @ w.T, x.T @ ct


_vjp.defvjp(_forward, _backward)


@program({"w": (7, 11)}, X, {"w": dot(0)}, slope=3.0)
def custom_vjp(params, x):
    """Pitfall 7: the rule trebles the derivative, so one that is lost is seen."""
    return _vjp(x, params["w"])


@program({"w": (7, 11)}, X, {"w": (dot(0), dot(1))})
def inner_grad(params, x):
    """Pitfall 10: a gradient within the function: the weight is used there and back."""
    return jax.grad(lambda x: jnp.sin(x @ params["w"]).sum())(x)


@program({"w": (7, 11), "v": (7,)}, X, {"w": dot(0), "v": blocked("custom_linear_solve")})
def opaque_solve(params, x):
    """Pitfall 4: ``custom_linear_solve`` holds jaxprs, but is no call: it stays as it is."""
    v = params["v"]
    solve = lambda matvec, b: b / matvec(jnp.ones_like(b))
    y = lax.custom_linear_solve(lambda u: u * v, x.mean(0), solve, symmetric=True)
    return (x + y) @ params["w"]


@program(
    {"w": (7, 11), "g": (11,)},
    X,
    {"w": dot(0), "g": blocked("pure_callback")},
    slope=None,
    export=False,
)
def opaque_callback(params, x):
    """Pitfall 4: a call out of JAX: unknown, so it is given the plain array."""
    y = x @ params["w"]
    shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
    double = lambda y, g: np.asarray(y) * np.asarray(g)
    return jax.pure_callback(double, shape, y, params["g"], vmap_method="expand_dims")


@program({"w": (7, 11)}, X, {"w": dot(0)}, export=False)
def effects(params, x):
    """Pitfall 21: an ordered effect passes through, once and in its place."""
    y = x @ params["w"]
    jax.debug.callback(lambda y: None, y, ordered=True)
    return jnp.tanh(y)


@program({"w": (7, 11)}, (f32("b, 7"), i32("", 1000)), {"w": dot(0)})
def random_key(params, x, seed):
    """Pitfall 21: random keys pass through: a dropout by a seed that is an input."""
    y = x @ params["w"]
    kept = jax.random.bernoulli(jax.random.key(seed), 0.75, y.shape)
    return jnp.where(kept, y / 0.75, 0)


# Loops.


@program(PAIR, X, BOTH)
def scan_closed_over(params, x):
    """Section 6.1: the weights are constants of the scan."""
    step = lambda h, _: (mlp(h, params["w"], params["v"]), h.sum(-1))
    return lax.scan(step, x, length=3)


@program(STACK, X, STACKED)
def scan_stacked(params, x):
    """Pitfall 5: stacked layers; in the body the weight has lost its first axis."""
    return lax.scan(lambda h, p: (mlp(h, p["w"], p["v"]), None), x, params)[0]


@program(STACK, X, STACKED)
def scan_reversed(params, x):
    """Pitfall 5: ``reverse`` and ``unroll`` have to be passed on; outputs are stacked."""
    step = lambda h, p: (mlp(h, p["w"], p["v"]), h @ p["w"])
    return lax.scan(step, x, params, reverse=True, unroll=2)


@program({"w": (7, 7, 7)}, X, {"w": dot(2)})
def scan_cube(params, x):
    """Pitfall 5: as many layers as channels: an axis that is off by one has the right size."""
    return lax.scan(lambda h, w: (jnp.tanh(h @ w.T), None), x, params["w"])[0]


@program({"w": (7, 7), "v": (7, 11)}, X, {"w": blocked("scan"), "v": dot(0)})
def scan_carried(params, x):
    """Pitfall 5: a weight in the carry, which changes on its way: it cannot stay quantized."""
    step = lambda c, _: ((jnp.tanh(c[0] @ c[1]), c[1] * 0.9), None)
    (h, _), _ = lax.scan(step, (x, params["w"]), length=3)
    return h @ params["v"]


@program(
    {"w": (2, 3, 7, 11), "v": (2, 11, 7), "u": (7, 7)}, X, {"w": dot(2), "v": dot(1), "u": dot(0)}
)
def scan_nested(params, x):
    """Pitfall 5: a scan in a scan: two axes are lost, one, and none."""

    def layer(h, p):
        inner = lambda h, w: (h + jnp.tanh(h @ w) @ p["v"], None)
        return lax.scan(inner, h @ params["u"], p["w"])[0], None

    return lax.scan(layer, x, {"w": params["w"], "v": params["v"]})[0]


@program(
    {"w": (7, 15), "u": (5, 15), "b": (15,)},
    (f32("b, 4, 7"),),
    {"w": dot(0), "u": dot(0), "b": blocked("add")},
)
def recurrent(params, x):
    """Section 6.3: a gated recurrent layer over time; the inputs are scanned, not the weights."""

    def step(h, x):
        z = x @ params["w"] + params["b"]
        a, c, g = jnp.split(z + h @ params["u"], 3, axis=-1)
        h = jax.nn.sigmoid(a) * h + jax.nn.sigmoid(c) * jnp.tanh(g)
        return h, h

    return lax.scan(step, jnp.zeros((x.shape[0], 5)), x.swapaxes(0, 1))[1]


@program(STACK, X, STACKED)
def mapped(params, x):
    """Section 6.3: ``lax.map`` over stacked weights."""
    return lax.map(lambda p: mlp(x, p["w"], p["v"]), params)


@program(PAIR, (f32("b, 7"), i32("", 5)), BOTH, slope=None)
def while_loop(params, x, count):
    """Pitfall 6: the weights are constants of the body; the count is data."""
    step = lambda c: (c[0] + 1, mlp(c[1], params["w"], params["v"]))
    return lax.while_loop(lambda c: c[0] < count, step, (0, x))[1]


@program({"w": (7, 11), "v": (11, 7)}, X, {"w": (dot(0)), "v": dot(0)}, slope=None)
def while_condition(params, x):
    """Pitfall 6: the condition multiplies by a weight as well; it has its own constants."""
    small = lambda c: (c[0] < 4) & (jnp.abs(c[1] @ params["w"]).sum() < 1e3)
    step = lambda c: (c[0] + 1, mlp(c[1], params["w"], params["v"]))
    return lax.while_loop(small, step, (0, x))[1]


@program({"w": (7, 7)}, (f32("b, 7"), i32("", 5)), {"w": blocked("while")}, slope=None)
def while_carried(params, x, count):
    """Pitfall 6: a weight in the carry of a while loop, which is turned on its way."""
    step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ c[2]), c[2].T)
    return lax.while_loop(lambda c: c[0] < count, step, (0, x, params["w"]))[1]


@program(STACK, X, STACKED)
def fori_loop(params, x):
    """Pitfall 6: a loop of known length over layers, taken by their index."""
    at = functools.partial(lax.dynamic_index_in_dim, keepdims=False)
    return lax.fori_loop(0, 3, lambda i, h: mlp(h, at(params["w"], i), at(params["v"], i)), x)


@program(STACK, (f32("b, 7"), i32("", 4)), STACKED, slope=None)
def fori_loop_of_data(params, x, count):
    """Pitfall 6: as ``fori_loop``, of a length that is data: a while loop."""
    at = functools.partial(lax.dynamic_index_in_dim, keepdims=False)
    return lax.fori_loop(0, count, lambda i, h: mlp(h, at(params["w"], i), at(params["v"], i)), x)


# Branches.


@program({"w": (7, 11)}, X, {"w": (dot(0), blocked("sin"))})
def cond(params, x):
    """Pitfall 6: both branches use the weight, one of them by its values."""
    w = params["w"]
    return lax.cond(x.sum() > 0, lambda: jnp.tanh(x @ w), lambda: x @ jnp.sin(w))


@program({"w": (7, 11), "v": (7, 11)}, X, {"w": blocked("cond"), "v": blocked("cond")})
def cond_result(params, x):
    """Pitfall 6: the branches give one weight or the other."""
    return x @ lax.cond(x.sum() > 0, lambda: params["w"], lambda: params["v"])


@program(
    {"w": (7, 11), "v": (11, 7), "u": (7, 7)},
    (f32("b, 7"), i32("", 3)),
    {"w": (dot(0), dot(1)), "v": dot(0), "u": dot(0)},
)
def switch(params, x, index):
    """Pitfall 6: three branches, which share one weight and use it in two directions."""
    w, v, u = params["w"], params["v"], params["u"]
    branches = [lambda x: mlp(x, w, v), lambda x: x @ u, lambda x: jnp.tanh(x @ w) @ w.T]
    return lax.switch(index, branches, x)


@program({"w": (7, 11)}, X, {"w": dot(0)})
def platforms(params, x):
    """Section 6.3: ``platform_dependent``: a branch for CPUs and one for all others."""
    w = params["w"]
    tall = lambda x, w: (x[:, None] @ w)[:, 0]
    return lax.platform_dependent(x, w, cpu=lambda x, w: x @ w, default=tall)


# Maps.


@program(PAIR, X, BOTH)
def vmap_inputs(params, x):
    """Section 6.1: written for one entry, mapped over the batch."""
    return jax.vmap(lambda x: mlp(x, params["w"], params["v"]))(x)


@program(STACK, X, STACKED)
def vmap_weights(params, x):
    """Section 6.1: an ensemble: mapped over the weights (the first of one input only)."""
    return jax.vmap(lambda w, v: mlp(x, w, v))(params["w"], params["v"])


@program({"w": (7, 11, 3)}, (f32("3, b, 7"),), {"w": dot(0)})
def vmap_both(params, x):
    """Pitfall 11: weights mapped over their last axis, inputs over their first."""
    return jax.vmap(jnp.matmul, in_axes=(0, 2))(x, params["w"])


@program(PAIR, X, BOTH)
def vmap_scan(params, x):
    """Pitfall 5: a scan under vmap, whose weights are not mapped."""
    step = lambda h, _: (mlp(h, params["w"], params["v"]), None)
    return jax.vmap(lambda x: lax.scan(step, x, length=2)[0])(x)


# Shards.


def sharded_over(count):
    """Return the program's function over ``count`` devices (0: as many as there are, up to 8)."""

    def fn(params, x):
        devices = jax.devices()
        n = count or max(n for n in (1, 2, 4, 8) if n <= len(devices))
        mesh = Mesh(np.array(devices[:n]), ("m",))
        body = lambda x, w, v: lax.psum(jnp.tanh(x @ w) @ v, "m")
        columns, rows = PartitionSpec(None, "m"), PartitionSpec("m")
        return jax.shard_map(
            body, mesh=mesh, in_specs=(PartitionSpec(), columns, rows), out_specs=PartitionSpec()
        )(x, params["w"], params["v"])

    return fn


@program({"w": (7, 16), "v": (16, 11)}, X, BOTH)
def sharded(params, x):
    """Pitfall 13: ``shard_map``: columns of one weight and rows of the next, then a sum.

    It takes 8 devices where there are so many; with fewer 4, 2 or 1. The second contraction
    runs over the sharded axis, so an absmax over it has to be that of all shards.
    """
    return sharded_over(0)(params, x)
