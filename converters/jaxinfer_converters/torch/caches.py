"""Key-value caches of transformers as data: the structure of their tensors.

transformers' exporters flatten a cache object to its tensors and a JSON description of the
rest (``transformers/exporters/exporter_dynamo.py``, ``_flatten_to_context``). A cache becomes
a record of records, ``past_key_values.layers.0.keys``, with no class of transformers in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxinfer.core.structure import LEAF, Structure


def describes_object(context: Any) -> bool:
    """Return whether a tree context is the exporters' description of an object."""
    return isinstance(context, Mapping) and context.get("_t") == "obj" and "s" in context


def object_structure(context: Any) -> Structure:
    """Return the structure of an object from the exporters' description of it.

    Only what leads to tensors and symbolic sizes is kept, in their order.
    """
    return _walk(context) or Structure("tuple")


def _walk(item: Any) -> Structure | None:
    if isinstance(item, list):
        children = [_walk(child) for child in item]
        if not any(children):
            return None
        return Structure("list", tuple(c or Structure("record", name="Empty") for c in children))
    if not isinstance(item, Mapping):
        return None
    tag = item.get("_t")
    if tag in ("tensor", "sym"):
        return LEAF
    if tag == "items":  # a dict whose keys are not strings
        return _keyed("dict", item["v"], "")
    if tag == "seq":
        return _walk(item["v"])
    if tag == "obj":
        return _keyed("record", item["s"].items(), str(item["p"]).rpartition(":")[2])
    return _keyed("dict", (item["v"] if tag == "map" else item).items(), "")


def _keyed(kind: str, items: Any, name: str) -> Structure | None:
    children = [(key, child) for key, value in items if (child := _walk(value)) is not None]
    if not children:
        return None
    return Structure(kind, tuple(c for _, c in children), tuple(k for k, _ in children), name)
