"""Which parameters a constant was made of, and the names of the products that take it.

    fold(constants) -> constant     made of all that they were made of
    product(x, constant) -> node    named after these parameters: ``q.weight``, ``q.weight#2`` ..

A product is a dot_general, a convolution or a gather. By its name it is found again in a graph
that NNCF has changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np


class Names:
    """Parameters of constants, and products by name.

    Attributes:
      products: parameter paths by the name of the product.
    """

    def __init__(self) -> None:
        self.products: dict[str, tuple[str, ...]] = {}
        self._of: dict[int, tuple[Any, frozenset[str]]] = {}

    def mark(self, array: Any, paths: Iterable[str]) -> Any:
        """Say which parameters a constant was made of; returns it."""
        paths = frozenset(paths) | self.of(array)
        if paths and isinstance(array, np.ndarray):
            # by identity, as long as the array lives
            self._of[id(array)] = (weakref.ref(array), paths)
        return array

    def of(self, *values: Any) -> frozenset[str]:
        """Return the parameters that constants were made of; of other operands: none."""
        found: frozenset[str] = frozenset()
        for value in values:
            kept, paths = self._of.get(id(value), (None, frozenset()))
            if kept is not None and kept() is value:
                found |= paths
        return found

    def product(self, node: Any, *operands: Any) -> Any:
        """Name the node of a product after the parameters among its operands; returns it."""
        paths = tuple(sorted(self.of(*operands)))
        if not paths:
            return node
        base = "&".join(paths)
        name, number = base, 1
        while name in self.products:
            number += 1
            name = f"{base}#{number}"
        self.products[name] = paths
        node.set_friendly_name(name)
        return node
