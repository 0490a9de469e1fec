"""Which values of a function depend on parameters alone, and what they are made of.

For every value that parameters and constants alone decide, by equations that are pure:

    paths   the parameters
    facts   the numbers and static sizes that went in (a literal may depend on the inputs' sizes)
    core    the value before the rearrangements that follow the last computation; a parameter
            that is only rearranged is its own core
    axes    for each axis, the axes of the core that it runs along
    pinned  whether its sizes follow from those of parameters, whatever the inputs' sizes are

Sets are the bits of integers: the cost is linear in the equations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxinfer.core._compat import subjaxprs
from jaxinfer.core.provenance import LAYOUT, Axes
from jaxinfer.transforms._fold_flat import Flat, Node

VIEWS = (
    "transpose",
    "squeeze",
    "broadcast_in_dim",
    "reshape",
    "convert_element_type",
    "slice",
    "rev",
    "split",
    "stop_gradient",
    "copy",
)
"""Rearrangements, which XLA fuses into what reads them: evaluated again in each trace."""

_IMPURE = ("random_", "threefry", "rng_", "shard", "pcast", "pvary", "reshard", "axis_index")
_OPAQUE = ("callback", "ffi", "custom_call", "custom_lin", "pallas", "barrier", "exported")
_CALLS = ("custom_jvp_call", "custom_vjp_call")

_FACTS: dict[str, tuple[str, ...]] = {
    "slice": ("start_indices", "limit_indices", "strides"),
    "dynamic_slice": ("slice_sizes",),
    "split": ("sizes", "axis"),
    "pad": ("padding_config",),
    "iota": ("dimension",),
    "integer_pow": ("y",),
    "rev": ("dimensions",),
    "transpose": ("permutation",),
}
"""Parameters of equations that choose values, and so are part of what is computed."""


class Value(NamedTuple):
    """A value that parameters and constants alone decide (see the head of the module)."""

    paths: int
    facts: int
    core: int
    axes: tuple[Axes, ...]
    pinned: bool


class Values:
    """The params-only values of a flat function.

    Args:
      flat: the function; its first inputs are the parameters.
      paths: of the parameters, in order.
      frozen: paths of parameters to be taken as inputs: ignored, or changed by the function.
    """

    def __init__(self, flat: Flat, paths: Sequence[str], frozen: Collection[str] = ()):
        self.flat, self.paths = flat, tuple(paths)
        self.of: dict[int, Value] = {}
        self._facts: list[Any] = []
        self._numbers: dict[Any, int] = {}
        for index, path in enumerate(self.paths):
            if path not in frozen:
                number = flat.inputs[index]
                self.of[number] = Value(1 << index, 0, number, self._whole(number), True)
        for number, value in flat.known.items():
            if isinstance(value, Tracer) or not _is_plain(value):
                continue
            shape = flat.shape(number)
            self.of[number] = Value(
                0, self._constant(value), number, self._whole(number), not shape
            )
        for node in flat.nodes:
            self._follow(node)

    def is_param(self, value: int) -> bool:
        """Return whether a value is a parameter as it came in."""
        return (
            value in self.of and value not in self.flat.known and (value not in self.flat.producer)
        )

    def names(self, mask: int) -> list[str]:
        """Return the paths of a set, sorted."""
        return sorted(self.paths[bit] for bit in _bits(mask))

    def digest(self, mask: int) -> str:
        """Return a short name for a set of facts; the empty set has the empty one."""
        texts = sorted(map(self._text, _bits(mask)))
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] if texts else ""

    def _whole(self, value: int) -> tuple[Axes, ...]:
        return tuple(
            frozenset({axis}) if size != 1 else frozenset()
            for axis, size in enumerate(self.flat.shape(value))
        )

    def _follow(self, node: Node) -> None:
        of = self.of
        if not all(value in of for value in node.inputs) or not _is_pure(node):
            return
        given = [of[value] for value in node.inputs]
        paths = facts = 0
        for each in given:
            paths, facts = paths | each.paths, facts | each.facts
        for name in _FACTS.get(node.name, ()):
            facts |= self._fact((node.name, name, str(node.eqn.params[name])))
        if node.name in _CALLS:
            for number in _numbers(node.eqn):
                facts |= self._fact(("number", number))
        if node.name in VIEWS and len(given) == 1:
            axes = LAYOUT[node.name](node.eqn, given[0].axes)
            if axes is not None:
                for out in node.outputs:
                    pinned = given[0].pinned and _keeps_sizes(self.flat, node, out)
                    of[out] = Value(paths, facts, given[0].core, axes, pinned)
                return
        for out in node.outputs:
            of[out] = Value(paths, facts, out, self._whole(out), self._is_pinned(node, out))

    def _is_pinned(self, node: Node, out: int) -> bool:
        shape = self.flat.shape(out)
        if node.name in _SIZED:
            return False
        same = [value for value in node.inputs if self.flat.shape(value) == shape]
        if len(node.outputs) == 1 and all(
            value in same or not self.flat.shape(value) for value in node.inputs
        ):
            return any(self.of[value].pinned for value in same)  # elementwise: one of them decides
        return all(self.of[value].pinned for value in node.inputs)

    def _fact(self, key: Any) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self._facts)
            self._facts.append(key)
        return 1 << self._numbers[key]

    def _constant(self, value: Any) -> int:
        if np.ndim(value) == 0:
            return self._fact(("number", repr(np.asarray(value).tolist())))
        self._facts.append(value)  # an array: read only where a digest needs it
        return 1 << (len(self._facts) - 1)

    def _text(self, bit: int) -> str:
        fact = self._facts[bit]
        if isinstance(fact, tuple):
            return " ".join(fact[:1] + tuple(map(str, fact[1:])))
        array = np.asarray(fact)
        return f"array {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


_SIZED = ("iota", "pad", "dynamic_slice", "gather", "slice", "broadcast_in_dim", "split")
"""Equations whose results have sizes that may be those of the inputs."""


def _is_plain(value: Any) -> bool:
    """Whether a constant is an array or a number, rather than a random key."""
    return not hasattr(value, "dtype") or jnp.issubdtype(value.dtype, np.generic)


def _keeps_sizes(flat: Flat, node: Node, out: int) -> bool:
    """Whether a rearrangement adds no axis but of size 1, and cuts none."""
    if node.name in ("slice", "split"):
        return False
    if node.name != "broadcast_in_dim":
        return True
    return np.prod(flat.shape(node.inputs[0]), dtype=object) == np.prod(
        flat.shape(out), dtype=object
    )


def _is_pure(node: Node) -> bool:
    eqn, name = node.eqn, node.name
    if eqn.effects or name.startswith(_IMPURE) or any(word in name for word in _OPAQUE):
        return False
    if name in _CALLS:
        return True
    inner = subjaxprs(eqn.params)
    return not inner and all(hasattr(var.aval, "shape") for var in eqn.outvars)


def _numbers(eqn: Any) -> list[str]:
    """Return the literals inside an equation."""
    found = []
    for jaxpr in subjaxprs(eqn.params):
        for each in jaxpr.eqns:
            found += [repr(np.asarray(v.val).tolist()) for v in each.invars if hasattr(v, "val")]
            found += _numbers(each)
    return found


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
