"""Small programs whose right partition is known, as plain JAX functions over flat parameters."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer as ji


def random(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
        for name, shape in shapes.items()
    }


def batch(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def mlp(d=24, f=40):
    """x -> relu(x up + b) down: columns, then rows."""

    def fn(p, x):
        return jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]

    params = random({"up": (d, f), "bias": (f,), "down": (f, d)})
    return ji.from_function(fn, params, (batch(8, d),))


def norm(x, weight):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * weight


def block(p, x, n):
    """One transformer layer over p, by suffix; n heads."""
    b, s, d = x.shape
    y = norm(x, p["norm1"])
    q, k, v = (y @ p[name] for name in ("q", "k", "v"))
    q, k, v = (each.reshape(b, s, n, -1).transpose(0, 2, 1, 3) for each in (q, k, v))
    scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(d // n), -1)
    x = x + (scores @ v).transpose(0, 2, 1, 3).reshape(b, s, -1) @ p["o"]
    y = norm(x, p["norm2"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def shapes_of_block(d, f):
    return {
        **{"norm1": (d,), "q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d)},
        **{"norm2": (d,), "gate": (d, f), "up": (d, f), "down": (f, d)},
    }


def transformer(layers=2, d=32, f=64, n=8, vocab=48, seq=16, rows=8):
    """Token ids -> logits; a Megatron pattern of two all-reduces a layer."""

    def fn(p, ids):
        x = p["embed"][ids]
        for i in range(layers):
            own = {k.removeprefix(f"l{i}."): w for k, w in p.items() if k.startswith(f"l{i}.")}
            x = block(own, x, n)
        return norm(x, p["norm"]) @ p["head"]

    shapes = {"embed": (vocab, d)}
    for i in range(layers):
        shapes |= {f"l{i}.{k}": shape for k, shape in shapes_of_block(d, f).items()}
    params = random({**shapes, "norm": (d,), "head": (d, vocab)})
    ids = jnp.asarray(np.random.default_rng(2).integers(0, vocab, (rows, seq)), jnp.int32)
    return ji.from_function(fn, params, (ids,))


def stack(layers=4, d=32, f=64, n=8):
    """The layers as one scan over stacked weights."""

    def fn(p, x):
        return jax.lax.scan(lambda x, own: (block(own, x, n), None), x, p)[0]

    shapes = {k: (layers, *shape) for k, shape in shapes_of_block(d, f).items()}
    params = {k: w.reshape(shapes[k]) for k, w in random(shapes).items()}
    return ji.from_function(fn, params, (batch(8, 16, d),))


def experts(count=4, d=16, f=24, ragged=False):
    """Every token through every expert (batched), or rows grouped by expert (ragged)."""

    def batched(p, x):
        hidden = jax.nn.relu(jnp.einsum("ebd,edf->ebf", jnp.stack([x] * count), p["w1"]))
        each = jnp.einsum("ebf,efd->ebd", hidden, p["w2"])
        return (each * jax.nn.softmax(x @ p["router"], -1).T[..., None]).sum(0)

    def grouped(p, x):
        sizes = jnp.full((count,), x.shape[0] // count, jnp.int32)
        hidden = jax.nn.relu(jax.lax.ragged_dot(x, p["w1"], sizes))
        return jax.lax.ragged_dot(hidden, p["w2"], sizes)

    shapes = {"w1": (count, d, f), "w2": (count, f, d)}
    params = random(shapes if ragged else {**shapes, "router": (d, count)})
    return ji.from_function(grouped if ragged else batched, params, (batch(8, d),))


def convnet(c=8):
    """Two convolutions and a classifier: output channels, then input channels."""

    def fn(p, x):
        for name in ("conv1", "conv2"):
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, p[name], (1, 1), "SAME"))
        return x.mean((2, 3)) @ p["head"]

    params = random({"conv1": (c, 3, 3, 3), "conv2": (2 * c, c, 3, 3), "head": (2 * c, 5)})
    return ji.from_function(fn, params, (batch(8, 3, 6, 6),))


def ran(model, plan, *inputs):
    """Run a model under a plan, everything placed.

    Returns the largest difference from one device, relative to the largest value, and the
    compiled program.
    """
    placed = plan.place(model)
    given = [
        jax.device_put(x, s) for x, s in zip(inputs, plan.input_shardings(inputs), strict=True)
    ]
    compiled = jax.jit(plan.run(model)).lower(placed.params, given).compile()
    worst = 0.0
    results = jax.tree.leaves(compiled(placed.params, given))
    for got, want in zip(results, jax.tree.leaves(model(*inputs)), strict=True):
        difference = np.abs(np.asarray(got) - np.asarray(want)).max()
        worst = max(worst, float(difference / np.abs(want).max()))
    return worst, compiled
