"""Loads a model into shards over eight devices and runs it: in one process, or in several.

``python same.py MODEL_DIR OUT [kill | raise | exit | late]``: process 0 saves the result to OUT
(.npy). With a last word process 1 goes wrong after its first step, while the others go on: it is
killed, raises, exits with code 0; or it does not come at all.
"""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core.errors import InputError
from jaxinfer.io.artefact import load
from jaxinfer.sharding.distributed import check_same, initialize
from jaxinfer.sharding.mesh import check_mesh, make_mesh

SPECS = {
    "embed": jax.P("model"),  # rows
    "up": jax.P(None, "model"),  # column-parallel
    "down": jax.P("model"),  # row-parallel: its sum crosses the processes
    "scale": jax.P(),
}


def forward(params, ids):
    """ids[b, t] -> f32[b, t, d]: embedding, one residual MLP, a mean over positions."""
    x = params["embed"][ids]
    x = x + jax.nn.gelu(x @ params["up"]) @ params["down"]
    return x * params["scale"] + jnp.mean(x, 1, keepdims=True)


def values(v=40, d=24, f=32):
    """Parameters and ids."""
    rng = np.random.default_rng(0)
    shapes = {"embed": (v, d), "up": (d, f), "down": (f, d), "scale": (d,)}
    params = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return params, rng.integers(0, v, (6, 5)).astype(np.int32)


def go_wrong(mode):
    """Leave the others alone."""
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "raise":
        raise ValueError("what went wrong")
    if mode == "exit":
        sys.exit(0)


def main(folder, mode=""):
    """Load, run, and return the whole result; the same code in one process and in many."""
    mesh = make_mesh({"model": 4, "data": 2})  # devices of several processes along "model"
    check_mesh(mesh)
    check_same("specs", {name: str(spec) for name, spec in SPECS.items()})

    def on(spec):
        return jax.NamedSharding(mesh, spec)

    model = load(folder, shardings={name: on(spec) for name, spec in SPECS.items()})
    ids = values()[1]
    batch = jax.make_array_from_callback(ids.shape, on(jax.P("data")), lambda index: ids[index])
    run = jax.jit(model.apply, out_shardings=on(jax.P()))
    for step in range(3):
        y = run(model.params, batch).block_until_ready()
        if step == 0 and jax.process_index() == 1:
            go_wrong(mode)
    return np.asarray(y)


def differ():
    """Make meshes and plans that differ between processes; prints what each is told."""
    sizes = {"model": 4, "data": 2} if jax.process_index() else {"model": 2, "data": 4}
    try:
        check_mesh(make_mesh(sizes), timeout=30)
    except InputError as error:
        print("refused:", str(error).replace("\n", " "), flush=True)
    try:
        check_same("plan", {"w": jax.process_index()})
    except InputError as error:
        print("no plan:", str(error).replace("\n", " "), flush=True)


if __name__ == "__main__":
    if sys.argv[3:] == ["late"] and os.environ["JAX_PROCESS_ID"] == "1":
        time.sleep(600)
    who = initialize()
    print(who._replace(how="").__repr__(), who.how, flush=True)
    assert initialize() == who  # a second call changes nothing
    differ()
    result = main(sys.argv[1], *sys.argv[3:])
    if who.process == 0:
        np.save(sys.argv[2], result)
