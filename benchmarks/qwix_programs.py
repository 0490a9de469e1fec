"""The programs of the table beside qwix: each one function, given to both tools.

A row says how a weight meets a product. ``fn(params, *inputs)`` is what jaxinfer is given. What
qwix is given is a Flax module: by default a linen module that declares the same parameters by
``self.param`` and calls the same ``fn``; where a row is about a Flax module, that module.
Importable without jaxinfer, and without qwix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import lax

B, D, F, E, V = 16, 64, 96, 4, 128


@dataclasses.dataclass(frozen=True)
class Row:
    """A program.

    Attributes:
      name: unique; what the page prints.
      fn: ``fn(params, *inputs)``.
      shapes: of the parameters, a nested dict.
      inputs: shapes; a pair (shape, below) for integers.
      weights: paths of the parameters that a reader expects to be quantized.
      module: makes the module for qwix where it is not the linen module around ``fn``.
      scheme: ``W8A16`` (weights alone) or ``W8A8``.
      constants: shapes of the arrays closed over that a reader expects to be quantized.
    """

    name: str
    fn: Callable[..., Any]
    shapes: Mapping[str, Any]
    inputs: tuple[Any, ...]
    weights: tuple[str, ...]
    module: Callable[[Any], Any] | None = None
    scheme: str = "W8A16"
    constants: tuple[tuple[int, ...], ...] = ()

    def params(self) -> Any:
        """Return the parameters: normal values over the root of the fan-in, all from one seed."""
        generator = np.random.default_rng(0)

        def fill(shape: tuple[int, ...]) -> Any:
            fan = max(1, int(np.prod(shape[:-1]))) if len(shape) < 3 else int(np.prod(shape[1:-1]))
            return jnp.asarray(generator.standard_normal(shape) / fan**0.5, jnp.float32)

        return jax.tree.map(fill, dict(self.shapes), is_leaf=lambda leaf: isinstance(leaf, tuple))

    def arrays(self) -> tuple[Any, ...]:
        """Return the inputs."""
        generator = np.random.default_rng(1)
        made = []
        for spec in self.inputs:
            if spec and isinstance(spec[0], tuple):
                shape, below = spec
                made.append(jnp.asarray(generator.integers(0, below, shape), jnp.int32))
            else:
                made.append(jnp.asarray(generator.standard_normal(spec), jnp.float32))
        return tuple(made)


ROWS: dict[str, Row] = {}


def row(name: str, shapes: Any, inputs: Any, weights: str, **options: Any) -> Callable[..., Any]:
    """Register the decorated function as a row."""

    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        if name in ROWS:
            raise ValueError(f"two rows are called {name!r}")
        ROWS[name] = Row(name, fn, shapes, tuple(inputs), tuple(weights.split()), **options)
        return fn

    return add


class Raw(linen.Module):
    """The linen module around a plain function: its parameters are raw ``self.param``."""

    fn: Callable[..., Any]
    shapes: Any

    @linen.compact
    def __call__(self, *inputs):
        made = linen.initializers.normal()
        return self.fn({k: self.param(k, made, s) for k, s in self.shapes.items()}, *inputs)


X = ((B, D),)
W = {"w": (D, F)}
PAIR = {"w": (D, F), "v": (F, D)}
STACK = {"w": (3, D, F), "v": (3, F, D)}
IDS = ((B, 5), V)

# One product, in each spelling.


@row("x @ w", W, X, "w")
def _(params, x):
    return x @ params["w"]


@row("jnp.dot(x, w)", W, X, "w")
def _(params, x):
    return jnp.dot(x, params["w"])


@row("lax.dot_general(x, w)", W, X, "w")
def _(params, x):
    return lax.dot_general(x, params["w"], (((1,), (0,)), ((), ())))


@row("x @ w.T", {"w": (F, D)}, X, "w")
def _(params, x):
    return x @ params["w"].T


@row("jnp.dot(x, w.T)", {"w": (F, D)}, X, "w")
def _(params, x):
    return jnp.dot(x, params["w"].T)


@row("jnp.dot(w, x), the weight on the left", {"w": (F, D)}, ((D, B),), "w")
def _(params, x):
    return jnp.dot(params["w"], x)


@row("einsum of two operands", W, X, "w")
def _(params, x):
    return jnp.einsum("bd,df->bf", x, params["w"])


@row("einsum of three operands", PAIR, X, "w v")
def _(params, x):
    return jnp.einsum("bd,df,fe->be", x, params["w"], params["v"])


@row("einsum with a batch axis (experts)", {"w": (E, D, F)}, ((B, E, D),), "w")
def _(params, x):
    return jnp.einsum("bed,edf->bef", x, params["w"])


@row("einsum over two axes (heads)", {"w": (8, 8, F)}, ((B, 8, 8),), "w")
def _(params, x):
    return jnp.einsum("bnh,nhf->bf", x, params["w"])


@row("lax.ragged_dot (experts)", {"w": (E, D, F)}, X, "w")
def _(params, x):
    sizes = jnp.asarray([3, 6, 0, 7], jnp.int32)
    return lax.ragged_dot(x, params["w"], sizes)


@row("two parameters of one shape", {"a": (D, F), "b": (D, F)}, X, "a b")
def _(params, x):
    return jnp.tanh(jnp.dot(x, params["a"])) - jnp.dot(x, params["b"])


@row("x @ (a * g)", {"a": (D, F), "g": (F,)}, X, "a")
def _(params, x):
    return jnp.dot(x, params["a"] * params["g"])


@row("x @ concatenate([a, b])", {"a": (D, F), "b": (D, D)}, X, "a b")
def _(params, x):
    return jnp.dot(x, jnp.concatenate([params["a"], params["b"]], 1))


_CONSTANT = np.random.default_rng(2).standard_normal((D, F)).astype(np.float32) / 8


@row("a weight that is closed over", {"v": (F, D)}, X, "v", constants=((D, F),))
def _(params, x):
    return jnp.dot(jnp.tanh(jnp.dot(x, _CONSTANT)), params["v"])


# Within other transformations, spelled `@` and jnp.dot.


@jax.custom_jvp
def _jvp_at(x, w):
    return jnp.tanh(x @ w)


@jax.custom_jvp
def _jvp_dot(x, w):
    return jnp.tanh(jnp.dot(x, w))


for _each in (_jvp_at, _jvp_dot):
    _each.defjvp(lambda p, t, f=_each: (f(*p), (1 - f(*p) ** 2) * (t[0] @ p[1] + p[0] @ t[1])))


@jax.custom_vjp
def _vjp_at(x, w):
    return jnp.tanh(x @ w)


@jax.custom_vjp
def _vjp_dot(x, w):
    return jnp.tanh(jnp.dot(x, w))


for _each in (_vjp_at, _vjp_dot):
    _each.defvjp(
        lambda x, w, f=_each: (f(x, w), (x, w, f(x, w))),
        lambda kept, ct: (
            ((1 - kept[2] ** 2) * ct) @ kept[1].T,
            kept[0].T @ ((1 - kept[2] ** 2) * ct),
        ),
    )


def _within(spelling, product, jvp, vjp):
    """Register the rows in which a product stands within another construct."""

    def mlp(x, w, v):
        return jnp.tanh(product(jnp.tanh(product(x, w)), v))

    def named(name, shapes, weights="w v"):
        return row(f"{name}, {spelling}", shapes, X, weights)

    @named("jit", PAIR)
    def _(params, x):
        return jax.jit(lambda *args: mlp(*args))(x, params["w"], params["v"])

    shared = jax.jit(mlp)

    @named("jit of a function at module level", PAIR)
    def _(params, x):
        return shared(x, params["w"], params["v"])

    @named("jax.checkpoint", PAIR)
    def _(params, x):
        return jax.checkpoint(lambda *args: mlp(*args))(x, params["w"], params["v"])

    @named("vmap", PAIR)
    def _(params, x):
        return jax.vmap(lambda x: mlp(x, params["w"], params["v"]))(x)

    @named("scan, weights closed over", PAIR)
    def _(params, x):
        return lax.scan(lambda h, _: (mlp(h, params["w"], params["v"]), None), x, length=3)[0]

    @named("scan, weights stacked", STACK)
    def _(params, x):
        layers = (params["w"], params["v"])
        return lax.scan(lambda h, layer: (mlp(h, *layer), None), x, layers)[0]

    @named("cond", PAIR)
    def _(params, x):
        true = lambda x: mlp(x, params["w"], params["v"])
        return lax.cond(x[0, 0] < 9, true, lambda x: x, x)

    @named("while_loop", PAIR)
    def _(params, x):
        step = lambda c: (c[0] + 1, mlp(c[1], params["w"], params["v"]))
        return lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1]

    @named("custom_jvp", W, "w")
    def _(params, x):
        return jvp(x, params["w"])

    @named("custom_vjp", W, "w")
    def _(params, x):
        return vjp(x, params["w"])


_within("@", lambda x, w: x @ w, _jvp_at, _vjp_at)
# Not jnp.dot itself: qwix patches the name, which has to be looked up in each call.
_within("jnp.dot", lambda x, w: jnp.dot(x, w), _jvp_dot, _vjp_dot)

# Embeddings and convolutions.


@row("embedding by jnp.take", {"w": (V, D)}, (IDS,), "w")
def _(params, ids):
    return jnp.take(params["w"], ids, axis=0)


@row("tied embedding: take, then jnp.dot(h, w.T)", {"w": (V, D)}, (IDS,), "w")
def _(params, ids):
    return jnp.dot(jnp.tanh(jnp.take(params["w"], ids, axis=0)), params["w"].T)


IMAGE = ((2, 12, 12, 32),)


def _convolve(x, w, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def _conv(params, x):
    return _convolve(x, params["w"])


def _depthwise(params, x):
    return _convolve(x, params["w"], 32)


row("convolution", {"w": (3, 3, 32, 48)}, IMAGE, "w")(_conv)
row("depthwise convolution", {"w": (3, 3, 1, 32)}, IMAGE, "w")(_depthwise)
row("convolution, W8A8", {"w": (3, 3, 32, 48)}, IMAGE, "w", scheme="W8A8")(_conv)
row("depthwise convolution, W8A8", {"w": (3, 3, 1, 32)}, IMAGE, "w", scheme="W8A8")(_depthwise)
row("jnp.dot(x, w), W8A8", W, X, "w", scheme="W8A8")(lambda params, x: jnp.dot(x, params["w"]))

# Linen modules.


def _linen(name, module, shapes, inputs, weights):
    make = lambda params: module
    fn = lambda params, *inputs: module.apply({"params": params}, *inputs)
    row(name, shapes, inputs, weights, module=make)(fn)


_linen("linen Dense", linen.Dense(F), {"kernel": (D, F), "bias": (F,)}, X, "kernel")


class _Layer(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + jnp.tanh(linen.Dense(D)(x)), None


class _Scanned(linen.Module):
    @linen.compact
    def __call__(self, x):
        stack = linen.scan(
            _Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return stack(name="layers")(x, None)[0]


_linen(
    "linen nn.scan of Dense",
    _Scanned(),
    {"layers": {"Dense_0": {"kernel": (3, D, D), "bias": (3, D)}}},
    X,
    "layers.Dense_0.kernel",
)

_linen(
    "linen MultiHeadDotProductAttention",
    linen.MultiHeadDotProductAttention(4, qkv_features=D, out_features=D),
    {
        **{k: {"kernel": (D, 4, 16), "bias": (4, 16)} for k in ("query", "key", "value")},
        "out": {"kernel": (4, 16, D), "bias": (D,)},
    },
    ((B, 5, D),),
    "query.kernel key.kernel value.kernel out.kernel",
)


class _Tied(linen.Module):
    def setup(self):
        self.embed = linen.Embed(V, D)

    def __call__(self, ids):
        return self.embed.attend(jnp.tanh(self.embed(ids)))


_linen(
    "linen Embed and attend",
    _Tied(),
    {"embed": {"embedding": (V, D)}},
    (IDS,),
    "embed.embedding",
)
_linen(
    "linen Conv",
    linen.Conv(48, (3, 3)),
    {"kernel": (3, 3, 32, 48), "bias": (48,)},
    IMAGE,
    "kernel",
)

# NNX modules.


class _NnxRaw(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.zeros((D, F)))

    def __call__(self, x):
        return jnp.dot(x, self.w[...])


class _NnxTwins(nnx.Module):
    def __init__(self):
        self.a, self.b = nnx.Param(jnp.zeros((D, F))), nnx.Param(jnp.zeros((D, F)))
        self.g = nnx.Param(jnp.zeros((F,)))

    def __call__(self, x):
        a, b = self.a[...] * self.g[...], self.b[...] * self.g[...]
        return jnp.tanh(jnp.dot(x, a)) - jnp.dot(x, b)


class _NnxThis(nnx.Module):
    def __init__(this):
        this.w = nnx.Param(jnp.zeros((D, F)))

    def __call__(this, x):
        return jnp.dot(x, this.w[...])


def _nnx(name, make, shapes, weights):
    graph = nnx.split(nnx.eval_shape(make))

    def built(params):
        state = nnx.clone(graph[1])
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph[0], state)

    row(name, shapes, X, weights, module=built)(lambda params, x: built(params)(x))


_nnx(
    "NNX Linear",
    lambda: nnx.Linear(D, F, rngs=nnx.Rngs(0)),
    {"kernel": (D, F), "bias": (F,)},
    "kernel",
)
_nnx("NNX raw Param, jnp.dot", _NnxRaw, W, "w")
_nnx(
    "NNX two of one shape, scaled before the dot",
    _NnxTwins,
    {"a": (D, F), "b": (D, F), "g": (F,)},
    "a b",
)
_nnx("NNX raw Param, first argument not called self", _NnxThis, W, "w")

# What is no Flax module.


@flax.struct.dataclass
class Layer:
    """A module as equinox has them: a pytree that is called."""

    weight: Any
    bias: Any

    def __call__(self, x):
        return jnp.tanh(jnp.dot(x, self.weight) + self.bias)


row(
    "a pytree that is called (equinox)",
    {"weight": (D, F), "bias": (F,)},
    X,
    "weight",
    module=lambda params: Layer(**params),
)(lambda params, x: Layer(**params)(x))

row(
    "a plain function",
    W,
    X,
    "w",
    module=lambda params: lambda x: jnp.dot(x, params["w"]),
)(lambda params, x: jnp.dot(x, params["w"]))


def module_of(row: Row) -> Any:
    """Return what qwix is given for a row."""
    if row.module is not None:
        return row.module(row.params())
    return Raw(row.fn, dict(row.shapes))
