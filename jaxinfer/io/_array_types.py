"""Array types in a model directory: their parts among the arrays, the rest in ``model.json``.

    "params":       {"w.qvalue": [[64, 128], "int8"], "w.scale": [[64, 1], "float32"], ...}
    "array_types":  {"w": {"type": "QTensor", "parts": {...}, "meta": {"format": "int8", ...}}}

What a file says is checked before an array is read: names, then the parts against each other
(``validate``), then that what they materialize to has the shape and dtype that it stands for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import jaxinfer.rules
from jaxinfer.core import dtypes
from jaxinfer.core.array_types import is_array_type, part_names, rebuild
from jaxinfer.core.errors import JaxinferError
from jaxinfer.core.parts import join
from jaxinfer.io._safetensors import Spec
from jaxinfer.numerics import masks, qtensor, sparse

REGISTERED = (jaxinfer.rules, masks, qtensor, sparse)
"""The modules that register the array types of jaxinfer; importing this imports them."""


def grouped(entries: Any, specs: Mapping[str, Spec], faults: list[str]) -> dict[str, Any]:
    """Return the leaves by path, in order: the data of an array type, or the Spec of an array.

    Args:
      entries: ``array_types`` of ``model.json``; None for a model without any.
      specs: shape and dtype of each array.
      faults: what is wrong is appended here; an array type at fault is None in the result.
    """
    if entries is None:
        return dict(specs)
    if not isinstance(entries, dict):
        faults.append(f"array_types: required an object of paths, got {str(entries)[:80]!r}")
        return dict(specs)
    found: dict[str, Any] = {}
    of: dict[str, str] = {}
    for path, data in entries.items():
        own, label = [], path[:200]
        try:
            own = [f"{path}.{name}" for name in part_names(data)]
            wrong = [f"{n[:200]}: a part of {label}, not in params" for n in own if n not in specs]
            wrong += [f"{n[:200]}: a part of {of[n][:200]} and of {label}" for n in own if n in of]
            wrong += [] if own else [f"{label}: an array type without an array"]
            wrong += [f"{label}: an array and an array type"] if path in specs else []
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            wrong = [f"{label}: array type: {error}"]
            own = [name for name in specs if name.startswith(f"{path}.")]
        faults += wrong
        found[path] = None if wrong else data
        of |= {name: path for name in own if name not in of}
    leaves: dict[str, Any] = {}
    for name, spec in specs.items():
        path = of.get(name, name)
        leaves[path] = found.get(path, spec)
    return leaves | {path: data for path, data in found.items() if path not in leaves}


def logical(
    leaves: Mapping[str, Any], specs: Mapping[str, Spec], faults: list[str]
) -> dict[str, Spec | None]:
    """Return shape and dtype of each leaf of ``grouped``, of an array type what it stands for.

    Args:
      leaves: of ``grouped``.
      specs: shape and dtype of each array.
      faults: what is wrong is appended here; a leaf at fault is None in the result.
    """
    found: dict[str, Spec | None] = {}
    seen: dict[Any, Spec] = {}
    for path, leaf in leaves.items():
        if not isinstance(leaf, dict):
            found[path] = leaf
            continue
        own = {name: specs[f"{path}.{name}"] for name in part_names(leaf)}
        key = (json.dumps(leaf, sort_keys=True), *own.items())
        try:
            if key not in seen:
                seen[key] = _stands_for(path, leaf, own)
            found[path] = seen[key]
        except JaxinferError as error:
            faults.append(str(error))
            found[path] = None
        except Exception as error:  # metadata can be anything: what it leads to can be too
            faults.append(f"{path}: array type: {type(error).__name__}: {error}")
            found[path] = None
    return found


def _stands_for(path: str, data: Any, specs: Mapping[str, Spec]) -> Spec:
    """Return shape and dtype of an array type, once its parts are known to fit each other."""
    avals = {
        name: jax.ShapeDtypeStruct(shape, dtypes.canonical(dtype))
        for name, (shape, dtype) in specs.items()
    }

    def materialized(arrays: Mapping[str, Any]) -> Any:
        made = rebuild(data, arrays)
        with contextlib.suppress(jax.errors.JAXTypeError):  # it looks at values: those come later
            made.validate(path)
        return made.materialize()

    out = jax.eval_shape(materialized, avals)
    made = rebuild(data, avals)
    shape, dtype = tuple(made.shape), np.dtype(made.dtype).name
    if shape != out.shape or dtypes.canonical(dtype) != out.dtype:
        raise ValueError(f"it stands for {dtype}{list(shape)} and gives {out.dtype}{out.shape}")
    return shape, dtype


def rebuilt(
    leaves: Mapping[str, Any], arrays: Mapping[str, Any], faults: list[str]
) -> dict[str, Any]:
    """Return the leaves by path, array types rebuilt from the arrays and validated again.

    Args:
      leaves: of ``grouped``, without faults.
      arrays: by name.
      faults: what is wrong with the values is appended here.
    """
    types = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, dict)}
    made = join(arrays, types)
    for path in types:
        assert is_array_type(made[path])
        try:
            made[path].validate(path)
        except JaxinferError as error:
            faults.append(str(error))
    return made
