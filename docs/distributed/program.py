"""A program for one process or many: load a model into shards, run it, keep the result.

One process: python program.py MODEL_DIR OUT.npy
Two: jaxinfer launch --processes 2 --devices-per-process 4 -- python program.py MODEL_DIR OUT.npy
"""

import sys

import jax
import numpy as np

import jaxinfer as ji
from jaxinfer.sharding import check_mesh, make_mesh, partition
from jaxinfer.sharding.distributed import check_same

who = ji.initialize()  # first: before anything uses a device
folder, out = sys.argv[1:]

mesh = make_mesh({"model": who.devices})  # the devices of all processes
check_mesh(mesh)  # the same in every process, or an error that says who differs

plan = partition(ji.load(folder, abstract=True), mesh, "tensor")  # shapes only, no weight is read
check_same("plan", plan.to_json())
model = ji.load(folder, shardings=plan, verify=who.process == 0)  # each reads its own slices

inputs, rng = [], np.random.default_rng(0)
leaves = [leaf for leaf in model.inputs if leaf.is_array]
for leaf, sharding in zip(leaves, plan.input_shardings(), strict=True):
    shape = [size if isinstance(size, int) else 8 for size in leaf.shape]
    whole = rng.integers(1, 9, shape).astype(leaf.dtype)
    inputs.append(jax.make_array_from_callback(whole.shape, sharding, lambda i, w=whole: w[i]))

everywhere = jax.NamedSharding(mesh, jax.P())
run = jax.jit(model.apply, out_shardings=everywhere)
y = jax.tree.leaves(run(model.params, *inputs))[0]  # every process runs it
if who.process == 0:
    np.save(out, np.asarray(y))
    print(f"{who.how}: {who.processes} processes, {who.devices} devices, {y.shape}")
