"""A model's parameters as a flat dict of named leaves, and back, without pickling.

A flat dict keeps its own order. Any other tree of dicts, lists and tuples is described by a
``Structure``; its leaves are named by their path, joined by dots. Array types are leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.array_types import is_array_type
from jaxinfer.core.errors import ArtefactError
from jaxinfer.core.program import output_structure, param_names
from jaxinfer.core.structure import Structure
from jaxinfer.io import _json
from jaxinfer.io._header import CODES
from jaxinfer.io._safetensors import Spec


def flatten(params: Any) -> tuple[dict[str, Any], Structure | None]:
    """Return leaves by name, and the structure (None for a flat dict).

    Raises:
      ArtefactError: containers other than dict, list and tuple, or paths that collide.
    """
    structure = None
    if is_flat(params):
        leaves = dict(params)
    else:
        try:
            values, tree = jax.tree.flatten(params, is_leaf=is_array_type)
            opaque = jax.tree.unflatten(tree, [_Leaf()] * len(values))
            structure = output_structure(opaque)
            rebuilt = structure.unflatten(iter(jax.tree.leaves(opaque)))
            names = param_names(opaque)
        except (ValueError, TypeError) as error:
            raise ArtefactError(f"the parameters cannot be named: {error}") from error
        if jax.tree.structure(rebuilt) != jax.tree.structure(opaque):
            raise ArtefactError(
                f"the parameters are not a tree of dicts, lists and tuples only: {tree}"
            )
        leaves = dict(zip(names, values, strict=True))
    return leaves, structure


class _Leaf:
    """Stands for a leaf, opaque to JAX."""


def require_storable(arrays: Mapping[str, Any]) -> None:
    """Raise ArtefactError for arrays that a file cannot hold, all of them."""
    faults = [f"{name}: {fault}" for name, leaf in arrays.items() if (fault := _fault(name, leaf))]
    if faults:
        raise ArtefactError(_json.report("arrays that cannot be saved:", faults))


def is_flat(params: Any) -> bool:
    """Return whether ``params`` is a dict of leaves with string keys."""
    return (
        type(params) is dict
        and all(isinstance(key, str) for key in params)
        and all(is_array_type(v) or jax.tree_util.all_leaves([v]) for v in params.values())
    )


def unflatten(leaves: Mapping[str, Any], structure: Structure | None) -> Any:
    """Inverse of ``flatten``."""
    return dict(leaves) if structure is None else structure.unflatten(iter(leaves.values()))


def _fault(name: str, leaf: Any) -> str:
    if name == "__metadata__" or name != name.encode(errors="replace").decode():
        return "not a name that safetensors can hold"
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return f"a {type(leaf).__name__}, not an array"
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "a shape without values (of a model loaded with abstract=True)"
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "a random key; keep jax.random.key_data(key) instead"
    if leaf.dtype.name not in CODES:
        return f"safetensors cannot hold {leaf.dtype.name}"
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return "spread over several processes; gather it first"
    return ""


def to_host(leaf: Any) -> np.ndarray:
    """Return a leaf as numpy, without leaving a copy in JAX's own cache of host values."""
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)  # another handle on the same buffer: the cache dies with it
    return np.asarray(leaf)


def to_device(name: str, array: np.ndarray) -> jax.Array:
    """Return a copy as a JAX array, in the dtype that JAX computes in.

    Raises:
      OverflowError: with 64-bit types off, a value does not fit the narrower dtype exactly.
    """
    return jnp.array(narrowed(name, array), copy=True)


def narrowed(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array in the dtype that JAX computes in.

    Raises:
      OverflowError: with 64-bit types off, a value does not fit the narrower dtype exactly.
    """
    target = dtypes.canonical(array.dtype.name)
    if target == array.dtype:
        return array
    with np.errstate(over="ignore"):
        narrow = dtypes.narrow(array, name)
    back, inexact = narrow.astype(array.dtype), array.dtype.kind in "fc"
    if not np.array_equal(back, array, equal_nan=inexact):
        raise OverflowError(
            f"{name}: {array.dtype.name} values are not exact in {target.name}, which JAX "
            f"computes in with 64-bit types off; {dtypes.X64_ADVICE}"
        )
    return narrow


def check_specs(data: Any) -> dict[str, Spec]:
    """Return names with shape and dtype from JSON, ``{name: [[int, ...], dtype]}``.

    Raises:
      ValueError: anything else, all faults.
    """
    if not isinstance(data, dict):
        raise ValueError("params: required an object of names to [shape, dtype]")
    specs: dict[str, Spec] = {}
    faults: list[str] = []
    for name, item in data.items():
        match item:
            case [list(shape), str(dtype)] if dtype in CODES and all(
                type(dim) is int and dim >= 0 for dim in shape
            ):
                specs[name] = (tuple(shape), dtype)
            case _:
                faults.append(f"{name[:200]}: {str(item)[:80]}")
    if faults:
        raise ValueError(_json.report("params: required [shape, dtype] for:", faults))
    return specs
