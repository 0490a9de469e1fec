"""Weights straight into the shards of a mesh, without the whole of any tensor beside them.

    shard of leaf x on device d = x[index(d)],   index from sharding.addressable_devices_indices_map

A file is memory-mapped. For each leaf ``jax.make_array_from_callback`` asks for the slices of this
process's devices; each distinct slice is copied once, in pieces of ``_PIECE`` bytes, into memory
that the shard then owns, and the pages of a piece are given back to the system before the next.
So a process reads only its slices, and holds, beyond its shards: on CPU one piece a thread; on
another platform the shards of one leaf a thread until they are on their devices.

Booleans (their bytes are checked), four-bit floats (unpacked), tensors at odd places in the file
and ``.npz`` members are read whole, then sliced: one tensor a thread.

CPU devices that hold the same slice share its memory: nothing writes to it, and XLA copies before
it reuses a donated buffer that came from the host. On other platforms each device has its own.

Source of the idea: https://docs.jax.dev/en/latest/_autosummary/jax.make_array_from_callback.html.
It does not split a read over processes, and checks no SHA-256 (``jaxinfer.load`` does).
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_enabled, x64_scope
from jaxinfer.core.arrays import aligned
from jaxinfer.core.errors import CheckpointError, InputError, listing
from jaxinfer.io import _json, _tree
from jaxinfer.io._shardings import held_bytes, index_key, resolve
from jaxinfer.io.checkpoint import Checkpoint, open_checkpoint

Progress = Callable[[int, int, float, str], None]
"""``progress(done_bytes, total_bytes, bytes_per_s, name)``."""

_PIECE = 1 << 24


def read_sharded(
    source: Checkpoint | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    shardings: Any,
    *,
    names: Sequence[str] | None = None,
    dtypes: Mapping[str, str] | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> dict[str, jax.Array]:
    """Read weights into shards.

    Args:
      source: a checkpoint, or what ``open_checkpoint`` takes: a safetensors file, an index of
        several, a directory of them.
      shardings: a ``jax.sharding.Sharding`` for all, a mapping or a function from the name to
        one, or a plan with ``param_shardings``.
      names: the weights to read; None: all.
      dtypes: the float dtype to read a weight in, by name; None: as stored. 64-bit numbers are
        narrowed where JAX does, if they are exact then.
      threads: how many leaves are read at a time.
      progress: called as ``progress(done_bytes, total_bytes, bytes_per_s, name)`` after each
        leaf, from the calling thread; bytes are those of this process's distinct slices.

    Returns:
      ``{name: jax.Array}`` in the order of ``names``, each on the devices of its sharding.

    Raises:
      InputError: missing and extra shardings, devices that do not exist, sizes that a sharding
        does not divide; all of them, before anything is read.
      CheckpointError: weights that are not there, damaged, or not exact in their dtype; all.
      MemoryError: a device or the host is full; says at which leaf and what was read by then.

    Cost: one read of this process's slices.

    Example, over the first axis of every weight::

        mesh = jax.make_mesh((8,), ("model",))
        params = read_sharded("llama/", jax.NamedSharding(mesh, jax.P("model")))
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    chosen = list(checkpoint) if names is None else list(names)
    avals, faults = _avals(checkpoint, chosen, dtypes or {})
    if faults:
        raise CheckpointError(listing("these weights cannot be read:", faults))
    placed = resolve(shardings, avals)
    cast = frozenset(dtypes or ())
    return read_leaves(checkpoint, avals, placed, cast=cast, threads=threads, progress=progress)


def _avals(
    checkpoint: Checkpoint, names: Sequence[str], wanted: Mapping[str, str]
) -> tuple[dict[str, jax.ShapeDtypeStruct], list[str]]:
    """Return shape and dtype of each weight as it will be, and the faults."""
    avals: dict[str, jax.ShapeDtypeStruct] = {}
    faults = [f"{name}: a dtype is given, it is not read" for name in wanted if name not in names]
    for name in names:
        if name not in checkpoint:
            faults.append(f"{name}: not in {', '.join(str(f) for f in checkpoint.files[:3])}")
            continue
        shape, stored = checkpoint.spec(name)
        dtype = str(wanted.get(name, stored))
        if dtype not in dtypes.NAMES:
            faults.append(f"{name}: unknown dtype {dtype!r}")
        elif dtype != stored and {_kind(dtype), _kind(stored)} != {"float"}:
            faults.append(f"{name}: stored as {stored}, which is not cast to {dtype}")
        else:
            avals[name] = jax.ShapeDtypeStruct(shape, dtypes.canonical(dtype))
    return avals, faults


def _kind(dtype: str) -> str:
    return dtypes.kind(dtypes.dtype_of(dtype))


class Meter:
    """Counts bytes and their rate for ``progress``."""

    def __init__(self, total: int, progress: Progress | None):
        self.done, self._total, self._progress = 0, total, progress
        self._start = time.perf_counter()

    def add(self, count: int, name: str) -> None:
        """Report ``count`` more bytes, read for ``name``."""
        self.done += count
        if self._progress is not None:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            self._progress(self.done, self._total, self.done / seconds, name)


def read_leaves(
    checkpoint: Checkpoint,
    avals: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, jax.sharding.Sharding],
    *,
    cast: Collection[str] = (),
    threads: int = 2,
    progress: Progress | None = None,
) -> dict[str, jax.Array]:
    """Read weights whose shardings ``resolve`` has let through; see ``read_sharded``.

    Args:
      cast: names whose dtype was asked for; of others a narrower one must hold the values exactly.
    """
    if threads < 1:
        raise InputError(f"threads: required 1 or more, got {threads}")
    sizes = {name: held_bytes(shardings[name], aval) for name, aval in avals.items()}
    meter, x64 = Meter(sum(sizes.values()), progress), x64_enabled()
    arrays: dict[str, jax.Array] = {}
    faults: list[str] = []

    def read(name: str) -> jax.Array:
        with x64_scope(x64):  # a context of the thread that asked
            return _read(checkpoint, name, avals[name], shardings[name], name in cast)

    with concurrent.futures.ThreadPoolExecutor(threads, "jaxinfer-read") as pool:
        running = {pool.submit(read, name): name for name in avals}
        try:
            for future in concurrent.futures.as_completed(list(running)):
                name = running[future]
                try:
                    arrays[name] = future.result()
                    meter.add(sizes[name], name)
                except (CheckpointError, OverflowError) as error:
                    faults.append(str(error))
                except Exception as error:
                    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                        raise MemoryError(_full(name, sizes, meter.done, error)) from error
                    raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if faults:
        raise CheckpointError(_json.report("weights cannot be read:", faults))
    return {name: arrays[name] for name in avals}


def _full(name: str, sizes: Mapping[str, int], done: int, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return (
        f"{name}: no memory for its {sizes[name] / 1e6:.1f} MB here, after {done / 1e9:.2f} of "
        f"{sum(sizes.values()) / 1e9:.2f} GB were read: {first}. Shard over more devices or "
        "processes, or store the weights in a narrower dtype"
    )


def _read(
    checkpoint: Checkpoint,
    name: str,
    aval: jax.ShapeDtypeStruct,
    sharding: jax.sharding.Sharding,
    cast: bool,
) -> jax.Array:
    """Read one leaf; each distinct slice once."""
    view, made = checkpoint[name], {}

    def shard(index: Any) -> np.ndarray:
        key = index_key(index)
        if key not in made:
            made[key] = _copy(checkpoint, name, view[index], aval.dtype, cast)
        return made[key]

    try:
        array = jax.make_array_from_callback(aval.shape, sharding, shard, dtype=aval.dtype)
        return array.block_until_ready()  # no copy of the host's may outlive this leaf
    finally:
        checkpoint.release(name)


def _copy(
    checkpoint: Checkpoint, name: str, view: np.ndarray, dtype: Any, cast: bool
) -> np.ndarray:
    """Copy a slice piece by piece into memory of its own, and give its pages back."""
    buffer = aligned(view.shape, dtype)
    if not view.ndim or not view.size:
        buffer[...] = _converted(name, view, buffer.dtype, cast)
        return buffer
    rows = max(1, _PIECE // max(abs(view.strides[0]), 1))
    for start in range(0, len(view), rows):
        buffer[start : start + rows] = _converted(
            name, view[start : start + rows], buffer.dtype, cast
        )
        checkpoint.release(name)
    return buffer


def _converted(name: str, piece: np.ndarray, dtype: np.dtype, cast: bool) -> np.ndarray:
    """Return a piece in the dtype it will have.

    Raises:
      OverflowError: a 64-bit number is not exact in 32 bits.
      CheckpointError: a finite float becomes infinite, or NaN where there is no infinity.
    """
    if piece.dtype == dtype:
        return piece
    if not cast:
        return _tree.narrowed(name, piece)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        made = piece.astype(dtype)
        lost = int(np.sum(np.isfinite(piece) & ~np.isfinite(made)))
    if lost:
        raise CheckpointError(
            f"{name}: {lost} values of {piece.dtype.name} are too large for {dtype.name}"
        )
    return made
