"""Programs of one or two products: every way in which a weight meets one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.laws._program import UNUSED, blocked, dot, f32, gather, i32, normal, program, ragged

X = (f32("b, 7"),)
CONSTANT = np.linspace(-1, 1, 77, dtype=np.float32).reshape(7, 11)


@program({"w": (7, 11)}, X, {"w": dot(0)})
def matmul(params, x):
    """Section 6.1: the plain case, which qwix leaves in float32 when spelled ``@``."""
    return x @ params["w"]


@program({"w": (11, 7)}, X, {"w": dot(1)})
def transposed(params, x):
    """Section 6.1: torch's layout; the scale belongs to axis 0 of the stored weight."""
    return x @ params["w"].T


@program({"w": (11, 7)}, (f32("7, b"),), {"w": dot(1)})
def left(params, x):
    """Section 6.1: the weight is the left operand."""
    return params["w"] @ x


@program({"w": (5, 7, 11)}, (f32("b, 11, 3"),), {"w": dot(2)})
def general_left(params, x):
    """Section 6.1: ``lax.dot_general`` with the weight on the left, of three axes."""
    return lax.dot_general(params["w"], x, (((2,), (1,)), ((), ())))


@program({"w": (5, 11, 7)}, (f32("b, 7, 3"),), {"w": dot(2)})
def general_right(params, x):
    """Pitfall 11: the contracting axis is the last one, and two axes are free."""
    return lax.dot_general(x, params["w"], (((1,), (2,)), ((), ())))


@program({"w": (7,)}, X, {"w": dot(0)})
def vector(params, x):
    """Pitfall 11: a weight without any free axis, so with one scale."""
    return jnp.tanh(x @ params["w"])


@program({"w": (7, 3, 11)}, (f32("b, 11, 7"),), {"w": dot(0, 2)})
def contracting_two(params, x):
    """Pitfall 11: two contracting axes around a free one."""
    return jnp.einsum("bij,jki->bk", x, params["w"])


@program({"w": (7, 3, 11)}, (f32("b, 5, 3, 7"),), {"w": dot(0)})
def batched(params, x):
    """Pitfall 11: the weight has a batch axis in its middle (heads)."""
    return jnp.einsum("btnd,dnf->btnf", x, params["w"])


@program({"w": (7, 11), "v": (11, 5)}, X, {"w": dot(0), "v": dot(0)})
def einsum_three(params, x):
    """Section 6.1: three operands; the order of the two products is einsum's own."""
    return jnp.einsum("bi,ij,jk->bk", x, params["w"], params["v"])


@program(
    {"a": (7, 11), "b": (11, 5)}, X, {"a": blocked("dot_general"), "b": blocked("dot_general")}
)
def composed(params, x):
    """Pitfall 20: a product of two parameters, of which neither is the weight."""
    return x @ (params["a"] @ params["b"])


@program({"a": (7, 11), "g": (11,)}, X, {"a": blocked("mul"), "g": blocked("mul")})
def scaled(params, x):
    """Section 6.1: ``x @ (a * g)``, where qwix crashes."""
    return x @ (params["a"] * params["g"])


@program({"a": (7, 5), "b": (7, 11)}, X, {"a": blocked("concatenate"), "b": blocked("concatenate")})
def concatenated(params, x):
    """Section 6.1: two parameters side by side in one product; qwix leaves it in float32."""
    return x @ jnp.concatenate([params["a"], params["b"]], axis=1)


@program({"a": (7, 11), "b": (7, 11)}, X, {"a": dot(0), "b": dot(0)})
def twins(params, x):
    """Section 6.1: two parameters of one shape; a guess by shape takes one for the other."""
    return jnp.tanh(x @ params["a"]) - x @ params["b"]


@program({"a": (11, 11), "b": (11, 11)}, (f32("b, 11"),), {"a": dot(1), "b": dot(0)})
def square_twins(params, x):
    """Section 6.1: two square parameters, used in different directions."""
    return jnp.tanh(x @ params["a"].T) @ params["b"]


@program({"w": (7, 7)}, X, {"w": (dot(0), dot(1))})
def both_ways(params, x):
    """Pitfall 10: one weight in two directions, so no scale of one axis fits both."""
    return jnp.tanh(x @ params["w"]) @ params["w"].T


@program({"w": (7, 11)}, X, {"w": (dot(0), blocked("mul"))})
def penalized(params, x):
    """Pitfall 20: a weight that a product uses and an elementwise operation as well."""
    return x @ params["w"] + (params["w"] * 0.5).sum(0)


@program(
    {"w": (7, 11), "b": (11,), "old": (3, 5)}, X, {"w": dot(0), "b": blocked("add"), "old": UNUSED}
)
def unused(params, x):
    """Pitfall 20: a parameter that nothing uses is neither a site nor blocked."""
    return x @ params["w"] + params["b"]


@program({"w": (7, 11), "v": (5,)}, X, {"w": dot(0), "v": blocked("output")})
def returned(params, x):
    """Pitfall 20: a parameter that comes out as it went in; and outputs in a dict."""
    return {"y": x @ params["w"], "v": params["v"]}


@program(
    {"layers": [{"w": (7, 11)}, {"w": (11, 5)}]}, X, {"layers.0.w": dot(0), "layers.1.w": dot(0)}
)
def nested(params, x):
    """Section 6.3: paths through a dict and a list."""
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["w"])
    return x


# Constants.


@program({"w": (11, 5)}, X, {"w": dot(0)}, constants=((7, 11),))
def closed_over(params, x):
    """Pitfall 9: the first weight is not among the parameters but closed over."""
    return jnp.tanh(x @ CONSTANT) @ params["w"]


@program({}, X, {}, constants=((7, 11), (7, 11)))
def closed_over_in_jit(params, x):
    """Pitfall 9: no parameters at all, one constant outside and one within a jit."""
    del params
    reverse = jnp.asarray(CONSTANT[:, ::-1].copy())
    return x @ CONSTANT + jax.jit(lambda x: x @ reverse)(x)


# Layout.


@program({"w": (7, 15)}, (f32("b, 5, 7"),), {"w": dot(0)})
def heads_split(params, x):
    """Pitfall 12: [d, n h] -> [d, n, h]; the channels stay whole."""
    return jnp.einsum("btd,dnh->btnh", x, params["w"].reshape(7, 3, 5))


@program({"w": (15, 7)}, (f32("b, 2, 3, 5"),), {"w": dot(0)})
def heads_joined(params, x):
    """Pitfall 12: [n h, d] -> [n, h, d], of which both new axes are summed over."""
    return jnp.einsum("btnh,nhd->btd", x, params["w"].reshape(3, 5, 7))


@program({"w": (3, 5, 7)}, (f32("b, 2, 15"),), {"w": dot(0, 1)})
def heads_merged(params, x):
    """Pitfall 12: [n, h, d] -> [n h, d]: two stored axes become the contracting one."""
    return x @ params["w"].reshape(15, 7)


@program({"w": (15, 7)}, (f32("b, 5"),), {"w": dot(0)})
def heads_apart(params, x):
    """Pitfall 12: axis 0 is split into a free and a contracting part."""
    return jnp.einsum("bh,nhd->bnd", x, params["w"].reshape(3, 5, 7))


@program({"w": (7, 15)}, (f32("b, 21"),), {"w": dot(0, 1)})
def mixed(params, x):
    """Pitfall 12: a reshape across both axes; no channel of the product is one as stored."""
    return x @ params["w"].reshape(21, 5)


@program({"w": (7, 1, 11)}, X, {"w": dot(0)})
def squeezed(params, x):
    """Pitfall 12: an axis of size 1 between the two that count."""
    return x @ jnp.squeeze(params["w"], 1)


@program({"w": (7, 1)}, X, {"w": dot(0)})
def broadcasted(params, x):
    """Pitfall 12: a weight that is broadcast along its free axis."""
    return x @ jnp.broadcast_to(params["w"], (7, 11))


@program({"w": (11, 7)}, X, {"w": dot(1)})
def flipped(params, x):
    """Pitfall 12: a chain of layouts: reversed, turned and cut with a stride."""
    return x @ jnp.flip(params["w"], 0).T[:, ::2]


@program({"w": (7, 45)}, (f32("b, 4, 7"),), {"w": dot(0)})
def qkv_after(params, x):
    """Pitfall 12: a merged QKV weight, split after the product."""
    q, k, v = jnp.split(x @ params["w"], 3, axis=-1)
    return jax.nn.softmax(q @ k.mT) @ v


@program({"w": (7, 48)}, (f32("b, 4, 7"),), {"w": dot(0)})
def qkv_before(params, x):
    """Pitfall 12: a merged QKV weight whose slices meet three products (unequal parts)."""
    w = params["w"]
    q, k, v = x @ w[:, :15], x @ w[:, 15:30], x @ w[:, 30:]
    return jax.nn.softmax(q @ k.mT) @ v


@program({"w": (7, 48)}, (f32("b, 4, 7"),), {"w": dot(0)})
def qkv_split(params, x):
    """Pitfall 12: as ``qkv_before``, by the primitive ``split`` with several results."""
    q, k, v = (x @ w for w in jnp.split(params["w"], [15, 30], axis=1))
    return jax.nn.softmax(q @ k.mT) @ v


@program({"w": (3, 7, 11)}, (f32("b, 7"), i32("", 3)), {"w": dot(1)})
def chosen(params, x, index):
    """Section 6.3: ``dynamic_slice`` at an index that is an input."""
    return x @ lax.dynamic_index_in_dim(params["w"], index, keepdims=False)


@program({"w": (7, 11)}, X, {"w": dot(0)})
def stopped(params, x):
    """Section 6.3: ``stop_gradient`` is a primitive of its own, and only a name."""
    return x @ lax.stop_gradient(params["w"])


# Types.


@program(lambda seed: {"w": normal(seed, {"w": (7, 11)})["w"].astype("bfloat16")}, X, {"w": dot(0)})
def bfloat16(params, x):
    """Pitfall 15: a bf16 weight; its absmax is to be taken in float32."""
    return x @ params["w"]


def _half(seed):
    return jax.tree.map(lambda a: a.astype("float16"), normal(seed, {"w": (11, 7), "b": (11,)}))


@program(_half, X, {"w": dot(1), "b": blocked("add")})
def float16(params, x):
    """Pitfall 15: computed in float16, given back in float32."""
    y = x.astype(jnp.float16) @ params["w"].T + params["b"]
    return y.astype(jnp.float32)


def _integers(seed):
    generator = np.random.default_rng(seed)
    q = jnp.asarray(generator.integers(-127, 128, (7, 11)), jnp.int8)
    shift = jnp.asarray(generator.integers(1, 9, 11), jnp.int32)
    return {"q": q, "scale": normal(seed, (11,)), "shift": shift}


@program(
    _integers,
    X,
    {
        "q": blocked("convert_element_type"),
        "scale": blocked("mul"),
        "shift": blocked("convert_element_type"),
    },
)
def integers(params, x):
    """Pitfall 15: integer parameters (a hand-made int8 weight, an int32 bias) are not quantized."""
    return (x @ params["q"].astype(jnp.float32) + params["shift"]) * params["scale"]


# Rows and groups.


@program({"w": (23, 7)}, (i32("b, 5", 23),), {"w": gather()})
def taken(params, ids):
    """Section 6.1: an embedding by ``jnp.take``."""
    return jnp.tanh(jnp.take(params["w"], ids, axis=0))


@program({"w": (23, 7), "p": (5, 7)}, (i32("b, 5", 23),), {"w": gather(), "p": blocked("add")})
def indexed(params, ids):
    """Section 6.1: an embedding by indexing, and positions that are added."""
    return params["w"][ids] + params["p"]


@program({"w": (7, 23)}, (i32("b", 23),), {"w": gather()})
def taken_columns(params, ids):
    """Pitfall 11: a gather along the second axis."""
    return jnp.take(params["w"], ids, axis=1).T


@program({"w": (23, 7)}, (i32("b, 5", 23),), {"w": (gather(), dot(1))})
def tied(params, ids):
    """Pitfall 10: embedding and attend with one weight: one scale must serve both."""
    return jnp.tanh(params["w"][ids].sum(1)) @ params["w"].T


@program({"w": (3, 7, 11)}, (f32("b, 7"), i32("b", 3)), {"w": gather()})
def taken_experts(params, x, ids):
    """Pitfall 11: a whole matrix gathered for each entry; the product sees no parameter."""
    return jnp.einsum("bd,bdf->bf", x, params["w"][ids])


@program({"w": (3, 7, 11)}, (f32("b, 7"), i32("b", 3)), {"w": ragged(1)})
def ragged_dot(params, x, ids):
    """Section 6.3: ``ragged_dot``, with groups whose sizes are data."""
    counts = (ids[:, None] == jnp.arange(3)).sum(0, dtype=jnp.int32)
    return lax.ragged_dot(x[jnp.argsort(ids)], params["w"], counts)


@program(
    {"router": (7, 3), "up": (3, 7, 11), "down": (3, 11, 7)},
    X,
    {"router": dot(0), "up": dot(1), "down": dot(1)},
)
def experts(params, x):
    """Pitfall 11: a dense mixture of experts; ``down`` has a batch axis, ``up`` none."""
    gates = jax.nn.softmax(x @ params["router"])
    hidden = jnp.tanh(jnp.einsum("bd,edf->bef", x, params["up"]))
    return jnp.einsum("bed,be->bd", jnp.einsum("bef,efd->bed", hidden, params["down"]), gates)


@program({"w": (3, 11, 7)}, (f32("b, 3, 11"),), {"w": dot(0, 1)})
def experts_summed(params, x):
    """Pitfall 11: the product sums over the experts as well, so no expert has its own scale."""
    return jnp.einsum("bef,efd->bd", x, params["w"])
