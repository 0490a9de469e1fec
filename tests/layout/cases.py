"""Calls of operators with images that the cases of tests/aten do not have."""

import dataclasses

import numpy as np

from jaxinfer_converters.layout.marks import Elementwise, Like, Pad
from jaxinfer_converters.layout.table import MARKS
from tests.aten.harness import case, rand

X = rand(2, 6, 5, 7)
VIEWS = [
    case(X, [2, 6, 35]),
    case(X, [2, 3, 2, -1]),
    case(X, [2, 2, 3, 5, 7]),
    case(rand(2, 6, 1, 1), [2, 6]),
    case(rand(2, 3, 2, 5), [2, 6, 5, 1]),
]
EXPANDED = [
    case(rand(2, 6, 1, 1), [2, 6, 5, 7]),
    case(rand(2, 1, 5, 7), [-1, 6, -1, -1]),
    case(rand(2, 1, 5), [2, 6, 5]),
]
EXTRA = {
    **{f"aten.{op}.default": VIEWS
       for op in ("view", "view_copy", "_unsafe_view", "reshape", "_reshape_copy")},
    **{f"aten.{op}.default": EXPANDED for op in ("expand", "expand_copy", "broadcast_to")},
    **{f"aten.{op}.dims": [case(rand(2, 6, 1, 1), [2, 3]), case(rand(2, 1, 5, 1), [1, 2, 3])]
       for op in ("squeeze", "squeeze_copy")},
    "aten.unflatten.int": [case(X, 1, [3, 2]), case(rand(2, 6, 8), 2, [2, 4])],
    "aten.narrow.Tensor": [case(X, 1, np.array(2), 3), case(X, 3, np.array(1), 4)],
}  # fmt: skip


def as_images(one):
    """An elementwise case with its arrays tiled to images, the last one to channels only."""
    arrays = [x for x in one.args if isinstance(x, np.ndarray)]
    if not arrays or any(x.size == 0 for x in arrays):
        return []
    full = [np.resize(x, (2, 6, 5, 3)) if isinstance(x, np.ndarray) else x for x in one.args]
    made = [dataclasses.replace(one, args=tuple(full))]
    if len(arrays) > 1 and isinstance(one.args[-1], np.ndarray):
        for shape in ((6, 1, 1), (3,)):
            last = np.resize(one.args[-1], shape)
            made.append(dataclasses.replace(one, args=(*full[:-1], last)))
    return made


def extra(op, cases):
    """The calls of an operator with images, beside its own cases."""
    made = list(EXTRA.get(op, []))
    if isinstance(MARKS[op], (Elementwise, Like)) and not isinstance(MARKS[op], Pad):
        tiled = [images for one in cases if (images := as_images(one))]
        made += tiled[0] if tiled else []
    return made
