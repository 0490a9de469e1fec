"""Array types as named arrays, and back: what artefacts store and what exports take.

An array type at path ``w`` becomes its parts, ``w.qvalue`` and ``w.scale``; one within another
``w.weight.qvalue``. What else it is (its class and metadata) is plain data beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxinfer.core.array_types import describe, is_array_type, part_names, rebuild
from jaxinfer.core.errors import ArtefactError, listing


def split(leaves: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arrays by name, and the data of ``describe`` by the path of each array type.

    Raises:
      ArtefactError: classes that are not registered, array types without an array, and parts
        that have the name of another array; all at once.

    >>> import jax.numpy as jnp
    >>> from jaxinfer.numerics.masks import Masked
    >>> arrays, types = split({"w": Masked(jnp.ones(2), jnp.ones(2, bool)), "b": jnp.ones(3)})
    >>> list(arrays), list(types)
    (['w.weight', 'w.mask', 'b'], ['w'])
    """
    arrays: dict[str, Any] = {}
    types: dict[str, Any] = {}
    of: dict[str, str] = {}
    faults: list[str] = []
    for path, leaf in leaves.items():
        own = {path: leaf}
        if is_array_type(leaf):
            try:
                types[path], parts = describe(leaf)
            except ArtefactError as error:
                faults.append(f"{path}: {error}")
                continue
            own = {f"{path}.{name}": array for name, array in parts.items()}
            if not own:
                faults.append(f"{path}: a {type(leaf).__name__} without an array")
        for name, array in own.items():
            if name in arrays:
                both = " and ".join(sorted({repr(of[name]), repr(path)}))
                faults.append(f"{name}: would stand for an array of {both}; rename one of them")
            arrays[name], of[name] = array, path
    if faults:
        raise ArtefactError(listing("array types that cannot be stored by their parts:", faults))
    return arrays, types


def join(arrays: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of ``split``: the leaves by path, each where its first part stands.

    Raises:
      ValueError: data that ``describe`` does not give.
      KeyError: a part is missing.
    """
    of = {f"{path}.{name}": path for path in types for name in part_names(types[path])}
    leaves: dict[str, Any] = {}
    for name, array in arrays.items():
        path = of.get(name)
        if path is None:
            leaves[name] = array
        elif path not in leaves:
            own = {part: arrays[f"{path}.{part}"] for part in part_names(types[path])}
            leaves[path] = rebuild(types[path], own)
    return leaves
