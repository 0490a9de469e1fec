"""Program: where a model's function comes from, and how one is found again on disk.

``FunctionProgram`` wraps a Python callable and lives in the process; saving it writes
StableHLO, which comes back as ``StableHLOProgram``. Other kinds (``graph``: a converted
PyTorch model) belong to converters and are found through the entry-point group
``jaxinfer.converters``, never by import.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.export
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import (
    ArtefactError,
    InputError,
    JaxinferError,
    MissingExtraError,
    listing,
)
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF, Structure

GROUP = "jaxinfer.converters"


@runtime_checkable
class Program(Protocol):
    """What a model needs of its program. Programs never change."""

    kind: ClassVar[str]
    fixed: ClassVar[bool]  # whether inputs must fit the signature (else it is an example)

    @property
    def signature(self) -> Signature:
        """The inputs."""
        ...

    @property
    def random(self) -> bool:
        """Whether ``run`` needs a random key."""
        ...

    @property
    def arrays(self) -> Mapping[str, Any]:
        """Constants to be stored beside the parameters."""
        ...

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """Opaque files to be stored in the artefact."""
        ...

    def run(self, params: Any, leaves: Sequence[Any], rng_key: Any = None) -> Any:
        """Compute flat outputs from flat inputs; pure."""
        ...

    def finish(self, flat: Any) -> Any:
        """Give flat outputs their structure."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return all but arrays and blobs."""
        ...


def x64_of(program: Any) -> bool:
    """Return whether a program computes in 64 bits, whatever JAX is configured to."""
    return bool(getattr(program, "x64", False))


def find_entry_point(name: str) -> Any:
    """Load the converter registered under ``name``.

    Raises:
      MissingExtraError: no such entry point is installed.
    """
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name == name:
            return entry.load()
    raise MissingExtraError(
        f"no converter named {name!r} is installed (entry-point group {GROUP!r}); "
        "reinstall jaxinfer, or install the package that provides it"
    )


def program_kind(name: str) -> Any:
    """Return the program class for a kind stored in an artefact."""
    if name == StableHLOProgram.kind:
        return StableHLOProgram
    if name == "multi":
        from jaxinfer.core.multi import MultiProgram

        return MultiProgram
    return find_entry_point(name)


def _leaf_name(path: Any) -> str:
    return ".".join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path)


def signature_of(example_inputs: Sequence[Any] | Any | None) -> Signature:
    """Return the signature of positional example inputs (pytrees of arrays), or an open one."""
    if example_inputs is None:
        return Signature((), 0, (), (), open=True)
    if not isinstance(example_inputs, (tuple, list)):
        example_inputs = (example_inputs,)
    structures, leaves, names = [], [], []
    for index, value in enumerate(example_inputs):
        names.append(f"x{index}" if len(example_inputs) > 1 else "x")
        flat, tree = jax.tree_util.tree_flatten_with_path(value)
        structures.append(_structure(value, tree))
        for path, leaf in flat:
            aval = jax.typeof(leaf)
            label = ".".join(filter(None, (names[-1], _leaf_name(path))))
            leaves.append(LeafSpec(label, tuple(aval.shape), aval.dtype.name))
    return Signature(tuple(names), len(names), tuple(structures), tuple(leaves))


def _structure(value: Any, tree: Any) -> Structure:
    if jax.tree_util.treedef_is_leaf(tree) and tree.num_leaves:  # an empty container has no leaf
        return LEAF
    if isinstance(value, Mapping):
        keys = tuple(sorted(value))
        return Structure("dict", tuple(_sub(value[k]) for k in keys), keys)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return Structure(kind, tuple(_sub(item) for item in value))
    # any other pytree is passed whole: its leaves are those of JAX, in JAX's order
    count = tree.num_leaves
    return Structure("tuple", (LEAF,) * count)


def _sub(value: Any) -> Structure:
    return _structure(value, jax.tree_util.tree_structure(value))


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionProgram:
    """A Python callable ``fn(params, *inputs)``; shapes are whatever the callable takes."""

    fn: Callable[..., Any]
    signature: Signature
    kind: ClassVar[str] = "function"
    fixed: ClassVar[bool] = False

    @property
    def random(self) -> bool:
        """False: a Python function takes its keys among its inputs."""
        return False

    @property
    def arrays(self) -> Mapping[str, Any]:
        """None: what a function closes over is its own."""
        return {}

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """None before the export."""
        return {}

    def run(self, params: Any, leaves: Sequence[Any], rng_key: Any = None) -> Any:
        """Call the function on inputs rebuilt from their leaves."""
        del rng_key
        if self.signature.open:
            return self.fn(params, *leaves)
        flat = iter(leaves)
        args = [structure.unflatten(flat) for structure in self.signature.structures]
        return self.fn(params, *args)

    def finish(self, flat: Any) -> Any:
        """Return the outputs as they are: the function made their structure."""
        return flat

    def to_json(self) -> dict[str, Any]:
        """Refuse: a Python callable is not data. Saving goes through ``stablehlo``."""
        raise ArtefactError("a Python function cannot be written as data; export it")

    def stablehlo(self, params: Any, platforms: Sequence[str]) -> StableHLOProgram:
        """Export the function at the example shapes for the named platforms.

        The export takes a flat dict of arrays by path, of array types by the names of their
        parts (``w.qvalue``).

        Raises:
          ArtefactError: there are no example inputs to export it at.
        """
        from jaxinfer.core.leaves import leaves as named_leaves
        from jaxinfer.core.leaves import map_leaves
        from jaxinfer.core.parts import join, split

        if self.signature.open:
            raise ArtefactError(
                "a Python function is saved as StableHLO at the shapes of its example inputs: "
                "make the model with example_inputs"
            )
        leaves = [
            jax.ShapeDtypeStruct(leaf.shape, dtypes.canonical(leaf.dtype))
            for leaf in self.signature.leaves
        ]
        arrays, types = split(named_leaves(params))
        flat_avals = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}

        def flat(values: dict[str, Any], *inputs: Any) -> Any:
            whole = join({name: values[name] for name in arrays}, types)
            return self.run(map_leaves(lambda path, _: whole[path], params), inputs)

        structure = output_structure(jax.eval_shape(flat, flat_avals, *leaves))
        exported = jax.export.export(
            jax.jit(lambda p, *x: jax.tree.leaves(flat(p, *x))), platforms=list(platforms)
        )(flat_avals, *leaves)
        try:
            data = exported.serialize(vjp_order=1)
        except (ValueError, TypeError, NotImplementedError):
            # a loop of unknown length has no reverse derivative; nor has, in older versions, a
            # convolution of float8: ``differentiable`` says so
            data = exported.serialize()
        return StableHLOProgram(self.signature, structure, bytes(data))


def param_names(params: Any) -> list[str]:
    """Return one unique dotted name for each leaf of a pytree, in leaf order.

    Raises:
      ValueError: two leaves would get the same name.
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = [_leaf_name(path) or "value" for path in paths]
    doubled = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubled:
        raise ValueError(listing("leaf paths that collide when joined by '.':", doubled))
    return names


def output_structure(tree: Any) -> Structure:
    """Return the structure of an output pytree of tuples, lists, dicts and arrays."""
    if tree is None:
        return Structure("tuple")
    return _sub(tree)


def _over_devices(count: int, args: Any) -> Any:
    """Return arguments that are on ``count`` devices: JAX calls an export of so many nowhere else.

    Each device gets the whole of them; the exported function says what is sharded within it.
    """
    devices = jax.devices()
    if len(devices) < count:
        raise InputError(
            f"this model was exported for {count} devices, and there are {len(devices)}; save it "
            "again from its Python function over so many"
        )
    mesh = jax.sharding.Mesh(np.asarray(devices[:count]), ("devices",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, whole), args)


@dataclasses.dataclass(frozen=True, eq=False)
class StableHLOProgram:
    """A function kept as StableHLO (``jax.export``): fixed shapes, ages with JAX.

    What it does to array types is in the export, which takes their parts.
    """

    signature: Signature
    outputs: Structure
    data: bytes
    kind: ClassVar[str] = "stablehlo"
    fixed: ClassVar[bool] = True
    takes_array_types: ClassVar[bool] = True
    FILE: ClassVar[str] = "exports/program.stablehlo"

    def __post_init__(self) -> None:
        exported = jax.export.deserialize(bytearray(self.data))
        object.__setattr__(self, "_exported", exported)
        (params, *_), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        object.__setattr__(self, "_names", frozenset(params))

    @property
    def random(self) -> bool:
        """False: keys are among the inputs of the exported function."""
        return False

    @property
    def differentiable(self) -> bool:
        """Whether the export has a reverse derivative."""
        exported: Any = self._exported  # pyright: ignore[reportAttributeAccessIssue]
        return bool(exported.has_vjp())

    @property
    def arrays(self) -> Mapping[str, Any]:
        """None: constants are inside the export."""
        return {}

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """The serialized export."""
        return {self.FILE: self.data}

    def run(self, params: Any, leaves: Sequence[Any], rng_key: Any = None) -> Any:
        """Call the exported function; sizes must be those of the export.

        An array type is given by its parts where the export takes these, else materialized.
        """
        del rng_key
        exported: Any = self._exported  # pyright: ignore[reportAttributeAccessIssue]
        platform = jax.default_backend()
        platform = {"gpu": "cuda"}.get(platform, platform)
        if platform not in exported.platforms:
            raise InputError(
                f"this model was exported for {', '.join(exported.platforms)}, not {platform}; "
                "save it again from its Python function"
            )
        params = self._arrays(params)
        if exported.nr_devices > 1:
            params, leaves = _over_devices(exported.nr_devices, (params, list(leaves)))
        return exported.call(params, *leaves)

    def _arrays(self, params: Any) -> Any:
        from jaxinfer.core.array_types import has_array_types, materialize
        from jaxinfer.core.parts import split

        if not has_array_types(params):
            return params
        names: frozenset[str] = self._names  # pyright: ignore[reportAttributeAccessIssue]
        whole = {n: materialize(leaf) if n in names else leaf for n, leaf in params.items()}
        return split(whole)[0]

    def finish(self, flat: Any) -> Any:
        """Give the flat outputs the structure that the function returned."""
        return self.outputs.unflatten(iter(flat))

    def to_json(self) -> dict[str, Any]:
        """Return the signature and the output structure; the code is a blob."""
        return {"signature": self.signature.to_json(), "outputs": self.outputs.to_json()}

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], arrays: Mapping[str, Any], blobs: Callable[[str], bytes]
    ) -> StableHLOProgram:
        """Rebuild a program from an artefact."""
        del arrays
        signature = Signature.from_json(data["signature"])
        try:
            return cls(signature, Structure.from_json(data["outputs"]), blobs(cls.FILE))
        except JaxinferError:
            raise
        except Exception as error:  # the flatbuffer parser raises whatever the bytes lead it to
            raise ArtefactError(f"{cls.FILE}: not readable by this JAX: {error}") from error
