"""Programs that are blocks of models, and models of Flax's two interfaces."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen, nnx

from tests.laws._program import UNUSED, blocked, conv, dot, f32, gather, i32, normal, program

X = (f32("b, 7"),)
SEQUENCE = (f32("b, 5, 7"),)


def layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias


@program(
    {"scale": (7,), "bias": (7,), "w": (7, 11), "b": (11,), "v": (11, 7)},
    SEQUENCE,
    {
        "scale": blocked("mul"),
        "bias": blocked("add"),
        "w": dot(0),
        "b": blocked("add"),
        "v": dot(0),
    },
)
def norm_and_dense(params, x):
    """Section 6.3: a norm whose affine part can be folded into the product after it."""
    h = layer_norm(x, params["scale"], params["bias"])
    return x + jax.nn.gelu(h @ params["w"] + params["b"]) @ params["v"]


@program(
    {"query": (7, 15), "key": (7, 15), "value": (7, 15), "out": (15, 7)},
    SEQUENCE,
    {"query": dot(0), "key": dot(0), "value": dot(0), "out": dot(0)},
)
def attention(params, x):
    """Section 6.3: products of activations beside those of weights; QKV can be merged."""
    split = lambda w: jnp.einsum("btd,dnh->bnth", x, w.reshape(7, 3, 5))
    q, k, v = (split(params[name]) for name in ("query", "key", "value"))
    mask = jnp.tril(jnp.ones((5, 5), bool))
    weights = jax.nn.softmax(jnp.where(mask, q @ k.mT / 5**0.5, -1e30))
    return jnp.einsum("bnth,nhd->btd", weights @ v, params["out"].reshape(3, 5, 7))


@program(
    {"gate": (7, 11), "up": (7, 11), "down": (11, 7), "norm": (7,)},
    SEQUENCE,
    {"gate": dot(0), "up": dot(0), "down": dot(0), "norm": blocked("mul")},
)
def gated(params, x):
    """Section 6.3: gate and up have one input, so they can be merged."""
    h = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * params["norm"]
    return (jax.nn.silu(h @ params["gate"]) * (h @ params["up"])) @ params["down"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """A module as equinox has them; equinox itself is not installed."""

    weight: jax.Array
    bias: jax.Array
    activate: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, x):
        y = self.weight @ x + self.bias
        return jnp.tanh(y) if self.activate else y


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    """Two layers, of the same module, and a field that nothing uses."""

    layers: tuple[Linear, Linear]
    step: jax.Array

    def __call__(self, x):
        return functools.reduce(lambda x, layer: layer(x), self.layers, x)


def _net(seed):
    w, b, v, c, step = normal(seed, [(11, 7), (11,), (5, 11), (5,), (3,)])
    layers = Linear(weight=w, bias=b, activate=True), Linear(weight=v, bias=c, activate=False)
    return Net(layers, step)


@program(
    _net,
    X,
    {
        "layers.0.weight": dot(1),
        "layers.0.bias": blocked("add"),
        "layers.1.weight": dot(1),
        "layers.1.bias": blocked("add"),
        "step": UNUSED,
    },
)
def dataclass_module(params, x):
    """Pitfall 22: parameters are a registered dataclass, as an equinox module is, under vmap.

    equinox is not installed; its modules reach a transform as nothing else than such a pytree.
    """
    return jax.vmap(params)(x)


# Linen.


def linen_params(module, *shapes, dtype="float32"):
    """Return seed -> parameters of a module; only their shapes are those of its ``init``."""

    def make(seed):
        inputs = [s and jax.ShapeDtypeStruct(s, dtype) for s in shapes]
        return normal(seed, jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])

    return make


DENSE = linen.Dense(11)


@program(
    linen_params(DENSE, (1, 7)),
    X,
    {"kernel": dot(0), "bias": blocked("add")},
)
def linen_dense(params, x):
    """Section 6.1: ``nn.Dense``, the one module that every tool handles."""
    return DENSE.apply({"params": params}, x)


CONV = linen.Conv(10, (3, 2), strides=2, feature_group_count=2)


@program(
    linen_params(CONV, (1, 9, 8, 6)),
    (f32("b, 9, 8, 6"),),
    {"kernel": conv(0, 1, 2), "bias": blocked("add")},
)
def linen_conv(params, x):
    """Section 6.1: ``nn.Conv`` with groups."""
    return CONV.apply({"params": params}, x)


EMBED = linen.Embed(23, 7)


@program(
    linen_params(EMBED, (1, 5), dtype="int32"),
    (i32("b, 5", 23),),
    {"embedding": (gather(), dot(1))},
)
def linen_embed(params, ids):
    """Pitfall 10: ``nn.Embed`` and its ``attend``, where qwix is silent or crashes."""
    embed = EMBED.bind({"params": params})
    return embed.attend(jnp.tanh(embed(ids)))


HEADS = linen.MultiHeadDotProductAttention(3, qkv_features=15, out_features=7)


@program(
    linen_params(HEADS, (1, 5, 7)),
    SEQUENCE,
    {
        "query.kernel": dot(0),
        "query.bias": blocked("add"),
        "key.kernel": dot(0),
        "key.bias": blocked("add"),
        "value.kernel": dot(0),
        "value.bias": blocked("add"),
        "out.kernel": dot(0, 1),
        "out.bias": blocked("add"),
    },
)
def linen_attention(params, x):
    """Pitfall 11: kernels [d, n, h] and [n, h, d], the last with two contracting axes."""
    return HEADS.apply({"params": params}, x)


class _Layer(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + jnp.tanh(linen.Dense(7)(x)), None


SCANNED = linen.scan(_Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()


@program(
    linen_params(SCANNED, (1, 7), None),
    X,
    {"Dense_0.kernel": dot(1), "Dense_0.bias": blocked("add")},
)
def linen_scan(params, x):
    """Section 6.1: ``nn.scan`` over layers, where qwix makes a scale of a wrong shape."""
    return SCANNED.apply({"params": params}, x, None)[0]


# NNX.


class _Raw(nnx.Module):
    """One layer, and one raw parameter; the method's first argument is not called self."""

    def __init__(this, rngs):  # pyright: ignore[reportSelfClsParameterName]
        this.linear = nnx.Linear(7, 11, rngs=rngs)
        this.raw = nnx.Param(jnp.zeros((5, 11)))
        this.mean = nnx.BatchStat(jnp.zeros((11,)))

    def __call__(this, x):  # pyright: ignore[reportSelfClsParameterName]
        return (jnp.tanh(this.linear(x)) - this.mean[...]) @ this.raw[...].T


@functools.cache
def _split():
    return nnx.split(_Raw(nnx.Rngs(0)))


@program(
    lambda seed: normal(seed, nnx.to_pure_dict(_split()[1])),
    X,
    {
        "linear.kernel": dot(0),
        "linear.bias": blocked("add"),
        "raw": dot(1),
        "mean": blocked("sub"),
    },
)
def nnx_dict(params, x):
    """Section 6.1: an NNX module by its pure dict: a layer, a raw Param, a statistic."""
    graph, state = _split()
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: replacing is in place
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(x)


@program(
    lambda seed: normal(seed, _split()[1]),
    X,
    {
        "linear.kernel.value": dot(0),
        "linear.bias.value": blocked("add"),
        "raw.value": dot(1),
        "mean.value": blocked("sub"),
    },
)
def nnx_state(params, x):
    """Section 6.1: an NNX module by its ``State``, a pytree of variables of its own."""
    return nnx.merge(_split()[0], params)(x)
