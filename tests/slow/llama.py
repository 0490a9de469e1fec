"""A random Llama of 1.35 billion parameters in bfloat16: written by streaming, read into shards.

``python -m tests.slow.llama write DIR`` writes a model directory of several safetensors files, one
tensor in memory at a time. ``... load DIR [run] [unverified]`` loads it over eight CPU devices (of
this process, or of several under ``jaxinfer launch``), and prints what that took as JSON.

Memory is that of ``/proc/self/status``: ``RssAnon`` is what the process has allocated, ``RssFile``
the pages of mapped files that count as its own (libraries, and those of the weights not yet given
back); ``VmHWM`` the highest sum of both that the kernel has seen. A thread samples the parts.
"""

import contextlib
import json
import math
import sys
import threading
import time
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

D, F, LAYERS, V, HEADS = 2048, 5504, 24, 32000, 16
DENSE = {
    **dict.fromkeys("qkvo", (D, D)),
    **dict.fromkeys(("gate", "up"), (D, F)),
    "down": (F, D),
}
COLUMNS, ROWS = ("q", "k", "v", "gate", "up", "head"), ("o", "down", "embed")


def shapes():
    """Return the shape of every parameter."""
    found = {"embed": (V, D)}
    for layer in range(LAYERS):
        own = {"attention_norm": (D,), "mlp_norm": (D,), **DENSE}
        found |= {f"layers.{layer}.{name}": shape for name, shape in own.items()}
    return found | {"norm": (D,), "head": (D, V)}


class Later:
    """An array that is made when it is written."""

    dtype = np.dtype(ml_dtypes.bfloat16)

    def __init__(self, name, shape):
        self.name, self.shape, self.size = name, shape, math.prod(shape)

    def __array__(self, dtype=None, copy=None):
        if len(self.shape) == 1:
            return np.ones(self.shape, self.dtype)
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        drawn = rng.standard_normal(self.shape, np.float32)
        return (drawn * np.float32(self.shape[0] ** -0.5)).astype(self.dtype)


def normed(x, scale):
    """RMS norm."""
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
    return y.astype(x.dtype) * scale


def rotated(x):
    """Rotary positions of x[b, t, n, h]."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 1e4 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def forward(params, ids):
    """ids[b, t] -> logits bf16[b, t, v]."""
    x = params["embed"][ids]
    for layer in range(LAYERS):
        own = {name: params[f"layers.{layer}.{name}"] for name in DENSE}
        y = normed(x, params[f"layers.{layer}.attention_norm"])
        q, k, v = ((y @ own[name]).reshape(*ids.shape, HEADS, -1) for name in "qkv")
        heads = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + heads.reshape(x.shape) @ own["o"]
        y = normed(x, params[f"layers.{layer}.mlp_norm"])
        x = x + (jax.nn.silu(y @ own["gate"]) * (y @ own["up"])) @ own["down"]
    return normed(x, params["norm"]) @ params["head"]


def write(folder):
    """Write the model in files of at most 600 MB."""
    from jaxinfer.core.model import Model
    from jaxinfer.core.program import FunctionProgram, signature_of
    from jaxinfer.io import artefact

    artefact.SHARD_BYTES = 600_000_000
    params = {name: Later(name, shape) for name, shape in shapes().items()}
    ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    Model(FunctionProgram(forward, signature_of((ids,))), params).save(folder)


def status():
    """Return bytes by the names of /proc/self/status."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    names = ("VmRSS", "RssAnon", "RssFile", "VmHWM")
    return {name: int(lines[name].split()[0]) * 1024 for name in names}


@contextlib.contextmanager
def watched():
    """Yield a dict that holds the highest values seen while the block runs."""
    peak, done = status(), threading.Event()

    def watch():
        while not done.wait(0.002):
            for name, value in status().items():
                peak[name] = max(peak[name], value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def spec(name):
    """Columns, then rows, of each pair of products; norms whole."""
    last = name.split(".")[-1]
    if last in COLUMNS:
        return jax.P(None, "model")
    return jax.P("model") if last in ROWS else jax.P()


def load(folder, run=False, verify=True):
    """Load into shards; returns what it took."""
    from jaxinfer.io.artefact import load as read
    from jaxinfer.sharding.distributed import initialize
    from jaxinfer.sharding.mesh import make_mesh

    who = initialize()
    mesh = make_mesh({"model": 8})
    model = read(folder, abstract=True)
    shardings = {n: jax.NamedSharding(mesh, spec(n)) for n in model.params}
    jax.block_until_ready(jnp.ones(8) + 1)  # what JAX allocates once
    before, seen = status(), []
    with watched() as peak:
        started = time.perf_counter()
        model = read(folder, shardings=shardings, verify=verify, progress=lambda *a: seen.append(a))
        seconds = time.perf_counter() - started
    held = sum(s.data.nbytes for a in model.params.values() for s in a.addressable_shards)
    found = {
        "process": who.process,
        "count": sum(a.size for a in model.params.values()),
        "bytes": model.nbytes,
        "held": held,
        "read": seen[-1][0],
        "seconds": seconds,
        "peak": peak["VmHWM"] - before["VmRSS"],
        "anonymous": peak["RssAnon"] - before["RssAnon"],
        "file": peak["RssFile"] - before["RssFile"],
    }
    sample = model.params["layers.7.up"]
    whole = np.asarray(Later("layers.7.up", sample.shape))
    for shard in sample.addressable_shards:
        assert np.array_equal(np.asarray(shard.data), whole[shard.index])
    if run:
        started = time.perf_counter()
        ids = np.random.default_rng(0).integers(0, V, (2, 8)).astype(np.int32)
        logits = model(ids)
        found |= {
            "shape": logits.shape,
            "finite": bool(jnp.isfinite(logits).all()),
            "deviation": float(jnp.std(logits.astype(jnp.float32))),
            "devices": len(logits.sharding.device_set),
            "run seconds": time.perf_counter() - started,
        }
    return found


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2])
    else:
        print(json.dumps(load(sys.argv[2], "run" in sys.argv, "unverified" not in sys.argv)))
