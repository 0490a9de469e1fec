"""MiniLM from a model directory, sharded by a plan over eight devices of one process or several.

``python -m tests.slow.minilm MODEL_DIR MESH STRATEGY OUT``: process 0 saves the results to OUT.
"""

import sys

import jax
import numpy as np

from jaxinfer.io.artefact import load
from jaxinfer.sharding.distributed import initialize
from jaxinfer.sharding.mesh import check_mesh, make_mesh
from jaxinfer.sharding.partition import partition


def main(folder, mesh, strategy):
    """Return hidden states f32[8, 32, 384] and pooled f32[8, 384], and bytes per device."""
    mesh = make_mesh(mesh)
    check_mesh(mesh)
    shapes = load(folder, abstract=True)
    plan = partition(shapes, mesh, strategy, sizes={"batch": 8, "sequence": 32})
    model = load(folder, shardings=plan)
    rng = np.random.default_rng(0)
    given = {"input_ids": rng.integers(1000, 20000, (8, 32)), "attention_mask": np.ones((8, 32))}
    given["attention_mask"][3:, 20:] = 0
    placed = {}
    for (name, value), sharding in zip(given.items(), plan.input_shardings(), strict=True):
        whole = value.astype(np.int32)
        placed[name] = jax.make_array_from_callback(
            whole.shape, sharding, lambda index, whole=whole: whole[index]
        )
    everywhere = jax.NamedSharding(mesh, jax.P())
    run = jax.jit(lambda p, x: jax.tree.leaves(model.apply(p, **x)), out_shardings=everywhere)
    found = [np.asarray(value) for value in run(model.params, placed)]
    held = dict.fromkeys(jax.local_devices(), 0)
    for leaf in jax.tree.leaves(model.params):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return found, max(held.values()), plan.bytes


if __name__ == "__main__":
    who = initialize()
    results, most, _ = main(*sys.argv[1:4])
    print("bytes", most, flush=True)
    if who.process == 0:
        np.savez(sys.argv[4], *results)
