"""Executable: native code for a set of shapes, with its parameters; calls never compile.

A call binds its inputs to the model's signature, takes the smallest bucket that holds them,
pads them with zeros on the host, runs, and slices the results on the host. What was decided for
inputs of some shapes and dtypes is remembered, so that the next call with such inputs looks it up.

Padding and slicing happen on the host, because on the device each size would be a program of its
own: a device's array that has to be padded is copied to the host and back. Inputs that have
exactly a bucket's shape stay where they are, and their results are asynchronous, as under ``jit``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.compile import _memory
from jaxinfer.compile._entry import Entry
from jaxinfer.compile._report import CompileReport, name_of
from jaxinfer.compile.guard import no_compile
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import InputError, InputTypeError, listing
from jaxinfer.core.signature import LeafSpec, Signature

_ROUTES = 4096  # shapes that are remembered; then all are forgotten


class Frame(NamedTuple):
    """What an executable is around its code.

    Attributes:
      signature: of the calls.
      leaves: array leaves of the inputs, with numbers and names of bucketed dimensions.
      buckets, low: sizes of each bucketed dimension, and the least that it may have.
      names, params: of the parameter arrays.
      finish: gives a list of results the structure that the model returns.
      donated: positions of the array inputs that are donated.
      devices: where it runs.
      plan: mesh, and shardings by parameter name, or None.
      key_impl: of the random key, or "".
      x64: whether it computes in 64 bits.
      info: what the report says of all buckets.
    """

    signature: Signature
    leaves: tuple[LeafSpec, ...]
    buckets: Mapping[str, tuple[int, ...]]
    low: Mapping[str, int]
    names: tuple[str, ...]
    params: list[Any]
    finish: Callable[[Sequence[Any]], Any]
    donated: tuple[int, ...]
    devices: tuple[Any, ...]
    plan: Any
    key_impl: str
    x64: bool
    info: Mapping[str, Any]


class _Route(NamedTuple):
    entry: Entry
    targets: list[tuple[int, ...] | None]  # the shape to pad each input to
    sizes: list[np.ndarray]
    slices: list[tuple[slice, ...] | None] | None


class Executable:
    """Compiled code for every bucket; made by ``compile`` and ``load_executable``."""

    def __init__(self, frame: Frame, entries: Sequence[Entry], source: Any = None):
        self._frame, self._entries, self._source = frame, tuple(entries), source
        self._by_sizes = {tuple(entry.sizes.values()): entry for entry in entries}
        self._routes: dict[Any, _Route] = {}
        self._fast: dict[Any, tuple[list[Any], Callable[..., Any], list[Any]]] = {}
        self._params, self._finish = frame.params, frame.finish
        signature = frame.signature
        self._plain = len(signature.leaves) == len(signature.names) == len(frame.leaves)
        self._plain = self._plain and all(s.kind == "leaf" for s in signature.structures)
        processes = {device.process_index for device in frame.devices}
        self._spans = len(processes) > 1

    @property
    def buckets(self) -> Mapping[str, tuple[int, ...]]:
        """The sizes of each bucketed dimension."""
        return self._frame.buckets

    @property
    def signature(self) -> Signature:
        """The arguments of a call, as those of the model."""
        return self._frame.signature

    @property
    def inputs(self) -> tuple[LeafSpec, ...]:
        """The input leaves in order, as those of the model."""
        return self._frame.signature.leaves

    @property
    def random(self) -> bool:
        """Whether a call needs ``rng_key``."""
        return bool(self._frame.key_impl)

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters, once."""
        inside = int(self._frame.info.get("param_bytes", 0))
        return inside or sum(int(p.nbytes) for p in self._frame.params)

    def __call__(self, *args: Any, rng_key: Any = None, **kwargs: Any) -> Any:
        """Run on inputs by position or name; any size up to the largest bucket.

        Takes numpy arrays, JAX arrays, torch tensors and numbers. Nothing is compiled.

        Raises:
          InputError, InputTypeError: the inputs do not fit; all problems at once.
          DeviceMemoryError: the device has no memory left.
        """
        try:  # arrays by position that have exactly a bucket's shapes: nothing is left to decide
            dtypes, code, sizes = self._fast[tuple([a.shape for a in args])]
            if not kwargs and [a.dtype for a in args] == dtypes:
                return self._finish(code(self._params, list(args), [], sizes, []))
        except (KeyError, AttributeError, TypeError, ValueError, jax.errors.JaxRuntimeError):
            pass  # what is wrong is said below
        with x64_scope(self._frame.x64):
            return self._call(args, kwargs, rng_key)

    def _call(self, args: Any, kwargs: Any, rng_key: Any) -> Any:
        frame = self._frame
        if self._plain and not kwargs and len(args) == len(frame.leaves):
            arrays: Sequence[Any] = args
        else:
            arrays = self._arrays(frame.signature.flatten(args, kwargs))
        return self._finish(self.flat(arrays, rng_key))

    def flat(self, arrays: Sequence[Any], rng_key: Any = None) -> Sequence[Any]:
        """Run on the array inputs in order; returns the results as a flat list."""
        frame = self._frame
        try:
            route = self._routes[tuple([(a.shape, a.dtype) for a in arrays])]
        except (KeyError, AttributeError, TypeError):
            arrays = [as_array(a, leaf.path) for a, leaf in zip(arrays, frame.leaves, strict=True)]
            route = self._route(arrays)
        key = self._key(rng_key)
        entry, targets, sizes, slices = route
        given = [
            a if target is None else _padded(a, target)
            for a, target in zip(arrays, targets, strict=True)
        ]
        if entry.shardings:
            given = [self._put(a, s) for a, s in zip(given, entry.shardings, strict=True)]
        outs = self._run(entry, given, sizes, key)
        if slices is not None:
            outs = [
                out if cut is None else jax.device_put(np.asarray(out)[cut])
                for out, cut in zip(outs, slices, strict=True)
            ]
        return outs

    def _arrays(self, values: Sequence[Any]) -> list[Any]:
        leaves = self._frame.signature.leaves
        problems = [
            f"{spec.path}: fixed to {spec.value!r}, got {value!r}"
            for spec, value in zip(leaves, values, strict=True)
            if not spec.is_array and (type(value) is not type(spec.value) or value != spec.value)
        ]
        if problems:
            raise InputError(listing("inputs do not fit the executable:", problems))
        return [value for spec, value in zip(leaves, values, strict=True) if spec.is_array]

    def _run(self, entry: Entry, given: Sequence[Any], sizes: Any, key: Any) -> Sequence[Any]:
        donated = self._frame.donated
        kept = [a for i, a in enumerate(given) if i not in donated] if donated else list(given)
        gone = [given[i] for i in donated]
        device = self._frame.devices[0]
        try:
            return entry.code(self._frame.params, kept, gone, sizes, key)
        except ValueError as error:
            if "sharding" not in str(error) and "device" not in str(error).lower():
                raise
            # an array that lives on another device is brought here
            kept, gone = ([self._here(a, device) for a in each] for each in (kept, gone))
            return entry.code(self._frame.params, kept, gone, sizes, key)
        except jax.errors.JaxRuntimeError:
            with _memory.explained(entry.report.name, entry.report.device_bytes, device):
                raise

    def _here(self, array: Any, device: Any) -> Any:
        return array if self._frame.plan is not None else jax.device_put(array, device)

    def _put(self, array: Any, sharding: Any) -> Any:
        if not self._spans:
            return jax.device_put(array, sharding)
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    def _key(self, rng_key: Any) -> list[Any]:
        if not self._frame.key_impl:
            return []
        if rng_key is None:
            raise InputError("this model samples random numbers: pass rng_key=jax.random.key(0)")
        if jax.numpy.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
            if str(jax.random.key_impl(rng_key)) != self._frame.key_impl:
                raise InputError(
                    f"rng_key: compiled for keys of {self._frame.key_impl}, "
                    f"got {jax.random.key_impl(rng_key)}"
                )
            return [jax.random.key_data(rng_key)]
        return [rng_key]

    def _route(self, arrays: Sequence[Any]) -> _Route:
        """Bind sizes, choose the bucket; every problem of a call at once."""
        frame, problems, types = self._frame, [], []
        real: dict[str, int] = {}
        origin: dict[str, str] = {}
        for leaf, array in zip(frame.leaves, arrays, strict=True):
            if len(array.shape) != len(leaf.shape):
                problems.append(f"{leaf}: got shape {list(array.shape)}")
                continue
            want, got = _dtype(leaf), np.dtype(array.dtype)
            if want != got:
                types.append(
                    f"{leaf}: got {got.name}; cast it first, for example x.astype({want.name!r})"
                )
            for axis, (dim, size) in enumerate(zip(leaf.shape, array.shape, strict=True)):
                expected = dim if isinstance(dim, int) else real.setdefault(dim, size)
                origin.setdefault(str(dim), leaf.path)
                if size != expected:
                    named = "" if isinstance(dim, int) else f" ({dim} of {origin[dim]})"
                    shape = list(array.shape)
                    problems.append(
                        f"{leaf}: axis {axis} must be {expected}{named}, got shape {shape}"
                    )
        problems += self._out_of_range(real)
        if problems or types:
            error = InputError if problems else InputTypeError
            have = "; ".join(f"{name}: {list(sizes)}" for name, sizes in frame.buckets.items())
            advice = f"It is compiled for {have}." if have else "It is compiled for these only."
            title = "inputs do not fit the executable:"
            raise error(listing(title, problems + types, advice))
        chosen = tuple(
            next(size for size in sizes if size >= real.get(name, 0))
            for name, sizes in frame.buckets.items()
        )
        entry = self._by_sizes[chosen]
        empty = [name for name in entry.needs if real.get(name) == 0]
        if empty:
            raise InputError(f"{', '.join(empty)}: 0: a size that masks depend on is 1 or more")
        short = [
            f"{name}: {real[name]}: the code for {entry.sizes[name]} holds from {least} on; below, "
            "the model computes something else: compile a smaller bucket"
            for name, least in entry.least.items()
            if real.get(name, least) < least
        ]
        if short:
            raise InputError(listing("inputs do not fit the executable:", short))
        targets = [
            None if array.shape == shape else shape
            for array, shape in zip(arrays, entry.shapes, strict=True)
        ]
        sizes = [np.asarray(real[name], np.int32) for name in entry.needs]
        slices = entry.slices(real)
        route = _Route(entry, targets, sizes, slices if any(slices) else None)
        if len(self._routes) >= _ROUTES:
            self._routes.clear()
        self._routes[tuple([(a.shape, a.dtype) for a in arrays])] = route
        decided = not (any(targets) or any(slices) or entry.shardings or frame.donated)
        if self._plain and decided and not (frame.key_impl or frame.x64):
            # the C++ part of a compiled call, once there is one
            code = getattr(entry.code, "_call", None) or entry.code
            self._fast[entry.shapes] = ([a.dtype for a in arrays], code, sizes)
        return route

    def _out_of_range(self, real: Mapping[str, int]) -> list[str]:
        found = []
        for name, sizes in self._frame.buckets.items():
            size, low = real.get(name, 0), self._frame.low[name]
            if size > sizes[-1]:
                found.append(
                    f"{name}: {size} is above the largest bucket, {sizes[-1]}; compile with a "
                    "larger one, or split the input"
                )
            elif size < low:
                found.append(f"{name}: {size}: the model takes {low} or more")
        return found

    def report(self) -> CompileReport:
        """Return what it is made of, bucket by bucket; ``print`` it."""
        frame = self._frame
        local = sum(_on_one_device(p) for p in frame.params) or self.nbytes
        kind = frame.devices[0].device_kind
        return CompileReport(
            tuple(entry.report for entry in self._entries),
            self.nbytes,
            local,
            f"{len(frame.devices)} x {kind}",
            str(frame.info.get("strategy", "")),
            tuple(frame.info.get("notes", ())),
        )

    def warm_up(self) -> None:
        """Run every bucket once on zeros, under ``no_compile``."""
        with no_compile():
            for entry in self._entries:
                with x64_scope(self._frame.x64):
                    self._warm(entry)

    def _warm(self, entry: Entry) -> None:
        arrays = [
            np.zeros(shape, _dtype(leaf))
            for shape, leaf in zip(entry.shapes, self._frame.leaves, strict=True)
        ]
        if entry.shardings:
            arrays = [self._put(a, s) for a, s in zip(arrays, entry.shardings, strict=True)]
        sizes = [np.asarray(entry.sizes[name], np.int32) for name in entry.needs]
        key = []
        if self._frame.key_impl:
            shape = jax.eval_shape(
                lambda: jax.random.key_data(jax.random.key(0, impl=self._frame.key_impl))
            )
            key = [np.zeros(shape.shape, shape.dtype)]
        jax.block_until_ready(self._run(entry, arrays, sizes, key))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the code and the parameters to a directory, for ``load_executable``.

        Raises:
          ArtefactError: the path is taken, the disk is full, or the platform cannot give its
            code away; nothing is left.
        """
        from jaxinfer.compile.store import save

        save(self, path, overwrite=overwrite)

    def __repr__(self) -> str:
        sizes = "; ".join(name_of(entry.sizes) for entry in self._entries)
        return f"Executable({len(self._entries)} compiled: {sizes}; {self.nbytes:,} bytes)"


def _dtype(leaf: LeafSpec) -> np.dtype[Any]:
    from jaxinfer.core import dtypes

    return np.dtype(dtypes.canonical(leaf.dtype))


def _padded(array: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    host = np.asarray(array)
    out = np.zeros(shape, host.dtype)
    out[tuple(map(slice, host.shape))] = host
    return out


def _on_one_device(array: Any) -> int:
    shards = getattr(array, "addressable_shards", None)
    return int(shards[0].data.nbytes) if shards else int(array.nbytes)
