"""Small functions through which a weight takes every way there is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


@dataclasses.dataclass(frozen=True)
class Flow:
    """A function of ``params`` and ``x``, and the uses of each parameter.

    ``sites``: (path, primitive, side, contracting, indexed); ``blocked``: (path, primitive).
    """

    fn: Callable[..., Any]
    params: dict[str, Any]
    x: Any
    sites: tuple[Any, ...] = ()
    blocked: tuple[Any, ...] = ()


def rand(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def one(fn, shape, contracting, x=(3, 5), side=1, primitive="dot_general", indexed=()):
    """A flow with one weight ``w`` that is used once."""
    site = ("w", primitive, side, contracting, indexed)
    return Flow(fn, {"w": rand(*shape)}, rand(*x), (site,))


@jax.custom_jvp
def custom(x, w):
    return jnp.tanh(x @ w)


@custom.defjvp
def _(primals, tangents):
    return custom(*primals), tangents[0] @ primals[1]


@jax.custom_vjp
def reverse(x, w):
    return x @ w


reverse.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, t: (t @ r[1].T, r[0].T @ t))

product = jax.jit(lambda a, b: a @ b)


def local(p, x):
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    call = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P("a"), P(None, "a")), out_specs=P("a")
    )
    return call(x, p["w"])


def convolved(p, x):
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x, p["w"], (1,), "SAME", dimension_numbers=numbers)


TWICE = (("w", "dot_general", 1, (0,), ()), ("v", "dot_general", 1, (0,), ()))
SQUARE = rand(5, 5) / 5

FLOWS = {
    "plain": one(lambda p, x: x @ p["w"], (5, 7), (0,)),
    "transposed": one(lambda p, x: x @ p["w"].T, (7, 5), (1,)),
    "left": one(lambda p, x: p["w"] @ x, (7, 5), (1,), x=(5, 3), side=0),
    "jit": one(lambda p, x: product(x, p["w"]), (5, 7), (0,)),
    "shared jit": Flow(
        lambda p, x: product(product(x, p["w"]), p["v"]),
        {"v": SQUARE, "w": SQUARE + 1},
        rand(3, 5),
        TWICE,
    ),
    "scan over": one(
        lambda p, x: lax.scan(lambda c, w: (c @ w, None), x, p["w"])[0], (4, 5, 5), (1,)
    ),
    "scan closed": one(
        lambda p, x: lax.scan(lambda c, _: (c @ p["w"], c.sum()), x, None, length=3), (5, 5), (0,)
    ),
    "while": one(
        lambda p, x: lax.while_loop(
            lambda c: c[1] < 3, lambda c: (c[0] @ p["w"], c[1] + 1), (x, 0)
        ),
        (5, 5),
        (0,),
    ),
    "fori": one(lambda p, x: lax.fori_loop(0, 3, lambda i, c: c @ p["w"], x), (5, 5), (0,)),
    "cond": Flow(
        lambda p, x: lax.cond(x.sum() > 0, lambda x: x @ p["w"], lambda x: x @ (p["w"] * 2), x),
        {"w": SQUARE},
        rand(3, 5),
        (("w", "dot_general", 1, (0,), ()),),
        (("w", "mul"),),
    ),
    "platforms": Flow(
        lambda p, x: lax.platform_dependent(
            x, cpu=lambda x: x @ p["w"], default=lambda x: jnp.dot(p["w"].T, x.T).T
        ),
        {"w": SQUARE},
        rand(3, 5),
        (("w", "dot_general", 1, (0,), ()), ("w", "dot_general", 0, (0,), ())),
    ),
    "custom_jvp": one(lambda p, x: custom(x, p["w"]), (5, 7), (0,)),
    "custom_vjp": one(lambda p, x: reverse(x, p["w"]), (5, 7), (0,)),
    "remat": one(lambda p, x: jax.checkpoint(lambda x: jnp.sin(x @ p["w"]))(x), (5, 7), (0,)),
    "vmap": one(lambda p, x: jax.vmap(lambda x, w: x @ w)(x, p["w"]), (2, 5, 7), (1,), x=(2, 3, 5)),
    "shard_map": one(local, (5, 7), (0,)),
    "embedding": Flow(
        lambda p, x: p["w"][x] @ p["w"].T,
        {"w": rand(11, 5)},
        np.array([1, 7, 2]),
        (("w", "gather", 0, (), (0,)), ("w", "dot_general", 1, (1,), ())),
    ),
    "heads": one(lambda p, x: jnp.einsum("bd,dnh->bnh", x, p["w"].reshape(5, 2, 3)), (5, 6), (0,)),
    "merged": one(
        lambda p, x: jnp.einsum("bnh,nhd->bd", x, p["w"].reshape(2, 3, 7)),
        (6, 7),
        (0,),
        x=(3, 2, 3),
    ),
    "sliced": one(lambda p, x: x @ p["w"][:, 2:5], (5, 7), (0,)),
    "experts": one(
        lambda p, x: jnp.einsum("ebd,edf->ebf", x, p["w"]), (2, 5, 7), (1,), x=(2, 3, 5)
    ),
    "ragged": one(
        lambda p, x: lax.ragged_dot(x, p["w"], jnp.array([1, 2])),
        (2, 5, 7),
        (1,),
        primitive="ragged_dot_general",
        indexed=(0,),
    ),
    "convolution": one(convolved, (3, 5, 7), (0, 1), x=(2, 9, 5), primitive="conv_general_dilated"),
    "scaled": Flow(
        lambda p, x: x @ (p["a"] * p["g"]),
        {"a": rand(5, 7), "g": rand(7)},
        rand(3, 5),
        (),
        (("a", "mul"), ("g", "mul")),
    ),
    "joined": Flow(
        lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 1),
        {"a": rand(5, 7), "b": rand(5, 2)},
        rand(3, 5),
        (),
        (("a", "concatenate"), ("b", "concatenate")),
    ),
    "carried": Flow(
        lambda p, x: lax.scan(
            lambda c, _: ((c[0] @ c[1], c[1] / 2), None), (x, p["w"]), None, length=2
        )[0][0],
        {"w": SQUARE},
        rand(3, 5),
        (),
        (("w", "scan (carried)"),),
    ),
    "returned": Flow(
        lambda p, x: (x @ p["w"], p["w"]),
        {"w": rand(5, 7)},
        rand(3, 5),
        (("w", "dot_general", 1, (0,), ()),),
        (("w", "output"),),
    ),
    "merged axes of two kinds": one(
        lambda p, x: x @ p["w"].reshape(6, 7), (2, 3, 7), (0, 1), x=(3, 6)
    ),
    "bfloat16": one(lambda p, x: x.astype("bfloat16") @ p["w"].astype("bfloat16"), (5, 7), (0,)),
    "two parameters multiplied": Flow(
        lambda p, x: x @ (p["a"] @ p["b"]),
        {"a": rand(5, 6), "b": rand(6, 7)},
        rand(3, 5),
        (),
        (("a", "dot_general"), ("b", "dot_general")),
    ),
    "integers": Flow(
        lambda p, x: x @ p["w"].astype("int32").astype("float32"),
        {"w": rand(5, 7)},
        rand(3, 5),
        (),
        (("w", "convert_element_type"),),
    ),
    "unused": Flow(lambda p, x: x, {"w": rand(5, 7)}, rand(3, 5)),
}
