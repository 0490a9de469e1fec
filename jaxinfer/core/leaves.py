"""The leaves of ``params`` by path, array types being leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxinfer.core.array_types import is_array_type
from jaxinfer.core.program import param_names


def leaves(params: Any) -> dict[str, Any]:
    """Return the leaves by path, in their order.

    >>> import jax.numpy as jnp
    >>> list(leaves({"a": [jnp.ones(2), jnp.ones(3)]}))
    ['a.0', 'a.1']
    """
    if type(params) is dict and all(isinstance(key, str) for key in params):
        values = params.values()
        if all(is_array_type(value) or hasattr(value, "dtype") for value in values):
            return dict(params)  # flat already, in the converter's own order
    flat, tree = jax.tree.flatten(params, is_leaf=is_array_type)
    names = param_names(jax.tree.unflatten(tree, [_Leaf()] * len(flat)))
    return dict(zip(names, flat, strict=True))


class _Leaf:
    """Stands for a leaf, opaque to JAX."""


def with_leaves(params: Any, changes: Mapping[str, Any]) -> Any:
    """Return ``params`` with the leaves at some paths replaced.

    Raises:
      KeyError: no such path.
    """
    return map_leaves(lambda path, leaf: changes.get(path, leaf), params, required=changes)


def map_leaves(
    fn: Callable[[str, Any], Any], params: Any, *, required: Mapping[str, Any] | None = None
) -> Any:
    """Return ``params`` with ``fn(path, leaf)`` at every leaf."""
    named = leaves(params)
    if missing := [path for path in required or () if path not in named]:
        raise KeyError(f"no such parameter: {', '.join(missing)}")
    if type(params) is dict and list(named) == list(params):
        return {path: fn(path, leaf) for path, leaf in named.items()}
    tree = jax.tree.structure(params, is_leaf=is_array_type)
    return jax.tree.unflatten(tree, [fn(path, leaf) for path, leaf in named.items()])
