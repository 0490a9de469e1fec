"""What each operator does to the channels of its operands, and how it is written for another
order of storage.

A ``Mark`` says, for a call and the place of the channels in its carriers (the operands that
hold the image), where they are in its results, and rewrites the call for stored operands:
dims are renumbered, sizes permuted, and operators that know their axes by position (pools,
norms, resizing) get ``channels_last=True``. Convolutions *need* channels-last, the operators
of ``MARKS`` *allow* it, every other operator *forbids* it: its operands are brought back.
A call that a mark does not fit (``Unfit``) forbids it as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer_converters.graph import Node, Ref, refs
from jaxinfer_converters.layout.axes import (
    CHANNELS,
    Order,
    Shape,
    Track,
    between,
    inverse,
    removed,
    through_view,
)

Tracks = Sequence[Track | None]


class Unfit(Exception):
    """The call cannot run on values stored in another order."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A node, and the shapes of the values it reads and makes, at sample sizes.

    Attributes:
      shapes: by name, for each sample of the symbolic sizes.
      results: shapes of its results, for each sample.
    """

    node: Node
    shapes: Sequence[Mapping[str, Shape]]
    results: Sequence[Sequence[Shape]]

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        args = self.node.args
        return args[index] if index < len(args) else self.node.kwargs.get(name, default)

    def put(self, index: int, name: str, value: Any) -> Node:
        """Return the node with another value of an argument."""
        return put(self.node, index, name, value)

    def tensors(self) -> list[str]:
        """Return the names of the arrays it reads."""
        names = refs((self.node.args, self.node.kwargs))
        return [name for name in names if name in self.shapes[0]]

    def rank(self, name: str) -> int:
        """Return the rank of an operand."""
        return len(self.shapes[0][name])

    def result_rank(self) -> int:
        """Return the rank of the first result."""
        return len(self.results[0][0])

    def same(self, track: Track | None) -> list[Track | None]:
        """Return the track for every result."""
        return [track] * len(self.results[0])


def put(node: Node, index: int, name: str, value: Any) -> Node:
    """Return the node with another value of an argument given by position or by name."""
    if index < len(node.args):
        return dataclasses.replace(node, args=(*node.args[:index], value, *node.args[index + 1 :]))
    return dataclasses.replace(node, kwargs={**node.kwargs, name: value})


def first(call: Call) -> str:
    """Return the name of the first argument, which must be an array."""
    value = call.node.args[0] if call.node.args else None
    if not isinstance(value, Ref) or value.name not in call.shapes[0]:
        raise Unfit
    return value.name


class Mark:
    """An operator whose first argument is its carrier and whose results are laid out alike."""

    needs = False  # must run channels-last
    reads = False  # takes its carrier in any order, and gives no array that has channels
    broadcasts = False  # other operands are broadcast against the carriers

    def carriers(self, call: Call) -> list[str]:
        """Return the operands that hold the channels."""
        return [first(call)]

    def forward(self, call: Call, track: Track) -> Tracks:
        """Return where the channels are in each result."""
        del call, track
        raise NotImplementedError

    def backward(self, call: Call, track: Track) -> Track | None:
        """Return where the channels are in the carriers, from the first result; None: unknown."""
        del call, track
        return None

    def rewrite(self, call: Call, have: Order, give: Sequence[Order]) -> Node:
        """Return the node for carriers stored as ``have`` and results as ``give``."""
        del have, give
        return call.node


class Elementwise(Mark):
    """y[i] = f(x[i], ...), broadcast: carriers are the operands of full rank."""

    broadcasts = True

    def carriers(self, call: Call) -> list[str]:
        """Return the operands of the result's rank."""
        names = [name for name in call.tensors() if call.rank(name) == call.result_rank()]
        if not names:
            raise Unfit
        return names

    def forward(self, call: Call, track: Track) -> Tracks:
        """The same place."""
        return call.same(track)

    def backward(self, call: Call, track: Track) -> Track | None:
        """The same place."""
        return track


class Like(Mark):
    """y has the first argument's shape and dtype; other arguments are no arrays."""

    def forward(self, call: Call, track: Track) -> Tracks:
        """The same place."""
        return call.same(track)

    def backward(self, call: Call, track: Track) -> Track | None:
        """The same place."""
        return track


class Spatial(Mark):
    """An operator of images [n, c, ...] that takes ``channels_last=True``.

    Args:
      nd: number of spatial axes; None: one or more.
      images: which results are images; the others have no channels axis that moves.
    """

    def __init__(self, nd: int | None = None, images: Sequence[int] = (0,)):
        self.nd, self.images = nd, images

    def forward(self, call: Call, track: Track) -> Tracks:
        """Axis 1, as in torch."""
        rank = call.rank(first(call))
        if track != CHANNELS or rank < 3 or (self.nd is not None and rank != self.nd + 2):
            raise Unfit
        return [CHANNELS if index in self.images else None for index in range(len(call.results[0]))]

    def backward(self, call: Call, track: Track) -> Track | None:
        """Axis 1, as in torch."""
        return CHANNELS

    def rewrite(self, call: Call, have: Order, give: Sequence[Order]) -> Node:
        """Tell the rule."""
        if have == tuple(range(len(have))):
            return call.node
        return dataclasses.replace(call.node, kwargs={**call.node.kwargs, "channels_last": True})


class Convolution(Spatial):
    """A convolution: its kernel [o, i, ...] (transposed: [i, o, ...]) is stored [..., i, o]."""

    needs = True

    def __init__(self, nd: int | None = None, transposed: bool = False):
        super().__init__(nd)
        self.transposed = transposed

    def forward(self, call: Call, track: Track) -> Tracks:
        """Axis 1; an image without a batch stays as it is."""
        if call.rank(first(call)) != call.rank(self.kernel(call)[0]):
            raise Unfit
        return super().forward(call, track)

    def kernel(self, call: Call) -> tuple[str, Order]:
        """Return the kernel's name and how it is stored."""
        weight = call.arg(1, "weight")
        if not isinstance(weight, Ref):
            raise Unfit
        swap = self.transposed or bool(call.arg(6, "") if self.nd is None else False)
        window = tuple(range(2, call.rank(weight.name)))
        return weight.name, (*window, 0, 1) if swap else (*window, 1, 0)


class Dims(Mark):
    """An operator along dims, which are renumbered.

    Args:
      effect: ``keep`` the axes, ``reduce``, ``drop`` or ``squeeze`` those named, ``insert`` one.
      index, name, default: the argument that names them.
      keepdim: position of the ``keepdim`` argument of a reduction.
      lists: the carriers are the list that is the first argument.
    """

    def __init__(
        self,
        effect: str = "keep",
        index: int = 1,
        name: str = "dim",
        default: Any = None,
        keepdim: int | None = None,
        lists: bool = False,
    ):
        self.effect, self.index, self.name, self.default = effect, index, name, default
        self.keepdim, self.lists = keepdim, lists

    def carriers(self, call: Call) -> list[str]:
        """Return the first argument, or the arrays of the list that it is."""
        if not self.lists:
            return [first(call)]
        names = list(refs(call.node.args[0]))
        if not names or any(call.rank(name) != call.rank(names[0]) for name in names):
            raise Unfit
        return names

    def dims(self, call: Call) -> list[int]:
        """Return the dims as non-negative axes (of the result where they are inserted)."""
        value = call.arg(self.index, self.name, self.default)
        value = [value] if isinstance(value, int) else value
        if not value or not all(isinstance(dim, int) for dim in value):
            raise Unfit
        carrier = self.carriers(call)[0]
        rank = call.result_rank() if self.effect == "insert" else call.rank(carrier)
        if not rank:
            raise Unfit
        return [dim % rank for dim in value]

    def forward(self, call: Call, track: Track) -> Tracks:
        """Where the channels are once axes went or came; the first axis stays."""
        dims, carrier = self.dims(call), self.carriers(call)[0]
        rank, effect = call.rank(carrier), self.effect
        if effect == "squeeze":  # only axes of size 1 go
            dims = [d for d in dims if all(shapes[carrier][d] == 1 for shapes in call.shapes)]
        if effect == "reduce":
            keepdim = bool(self.keepdim is not None and call.arg(self.keepdim, "keepdim", False))
            effect = "keep" if keepdim else "drop"
        if effect == "keep":
            return call.same(track)
        if effect == "insert":
            (dim,) = dims
            if dim == 0 or track.start < dim < track.start + track.width:
                raise Unfit
            return call.same(Track(track.start + (dim <= track.start), track.width))
        if track.others(rank)[:1] == [0] and 0 in dims:
            raise Unfit
        return call.same(removed(track, dims))

    def backward(self, call: Call, track: Track) -> Track | None:
        """The same place where axes are kept."""
        if self.effect == "insert":
            (dim,) = self.dims(call)
            return None if dim in track.axes() else removed(track, [dim])
        kept = self.effect == "keep" or (
            self.keepdim is not None and call.arg(self.keepdim, "keepdim", False)
        )
        return track if kept else None

    def rewrite(self, call: Call, have: Order, give: Sequence[Order]) -> Node:
        """Renumber the dims."""
        place = inverse(give[0] if self.effect == "insert" else have)
        dims = [place[dim] for dim in self.dims(call)]
        value = call.arg(self.index, self.name, self.default)
        return call.put(self.index, self.name, dims[0] if isinstance(value, int) else dims)


class Permute(Mark):
    """y.shape[i] = x.shape[dims[i]]: one order in memory may serve both."""

    def dims(self, call: Call) -> Order:
        """Return the permutation."""
        rank = call.rank(first(call))
        op = call.node.op.split(".")[1]
        dims = list(range(rank))
        if op.startswith("permute"):
            return tuple(dim % rank for dim in call.arg(1, "dims"))
        if op in ("mT", "t", "numpy_T"):
            one, two = rank - 2, rank - 1
            if rank < 2 or (op == "numpy_T" and rank != 2):
                raise Unfit
        elif op in ("movedim", "moveaxis"):
            source, to = (call.arg(1, "source"), call.arg(2, "destination"))
            if not isinstance(source, int) or not isinstance(to, int):
                raise Unfit
            dims.insert(to % rank, dims.pop(source % rank))
            return tuple(dims)
        else:
            one, two = call.arg(1, "dim0") % rank, call.arg(2, "dim1") % rank
        dims[one], dims[two] = dims[two], dims[one]
        return tuple(dims)

    def forward(self, call: Call, track: Track) -> Tracks:
        """Where the channels went, if they are still together."""
        return [_together([self.dims(call).index(axis) for axis in track.axes()])]

    def backward(self, call: Call, track: Track) -> Track | None:
        """Where they came from."""
        return _together([self.dims(call)[axis] for axis in track.axes()])

    def rewrite(self, call: Call, have: Order, give: Sequence[Order]) -> Node:
        """Return the permute of the stored value, often no more than a new name for it."""
        dims = self.dims(call)
        # stored y = y's axes in the order give, each of which is axis dims[...] of x
        stored = between(have, tuple(dims[axis] for axis in give[0]))
        return dataclasses.replace(
            call.node,
            op="aten.permute.default",
            args=(call.node.args[0], list(stored)),
            kwargs={},
        )


def _together(axes: list[int]) -> Track | None:
    low, high = min(axes), max(axes)
    return Track(low, len(axes)) if high - low + 1 == len(axes) else None


class View(Mark):
    """A reshape that keeps the channels apart from the other axes."""

    def forward(self, call: Call, track: Track) -> Tracks:
        """Where the channels are in the new shape."""
        name = first(call)
        found = {
            through_view(track, shapes[name], results[0])
            for shapes, results in zip(call.shapes, call.results, strict=True)
        }
        (result, *more) = found
        if result is None or more:
            raise Unfit
        return [result]

    def backward(self, call: Call, track: Track) -> Track | None:
        """Where they were in the old one."""
        name = first(call)
        found = {
            through_view(track, results[0], shapes[name])
            for shapes, results in zip(call.shapes, call.results, strict=True)
        }
        return found.pop() if len(found) == 1 else None

    def rewrite(self, call: Call, have: Order, give: Sequence[Order]) -> Node:
        """Permute the sizes; merge or split the same axes where they are stored."""
        node, op = call.node, call.node.op
        if op == "aten.flatten.using_ints":
            rank = len(have)
            start, end = (int(call.arg(i, n, d)) % rank for i, n, d in FLATTEN)
            places = sorted(inverse(have)[axis] for axis in range(start, end + 1))
            if places != list(range(places[0], places[-1] + 1)):
                raise Unfit
            return dataclasses.replace(node, args=(node.args[0], places[0], places[-1]), kwargs={})
        if op == "aten.unflatten.int":
            return call.put(1, "dim", inverse(have)[call.arg(1, "dim") % len(have)])
        name = "shape" if op.startswith("aten.reshape.") else "size"
        sizes = call.arg(1, name)
        return call.put(1, name, [sizes[axis] for axis in give[0]])


FLATTEN = ((1, "start_dim", 0), (2, "end_dim", -1))


class Sizes(Mark):
    """An operator with one number for each axis (expand, repeat)."""

    def __init__(self, name: str):
        self.name = name

    def forward(self, call: Call, track: Track) -> Tracks:
        """The same place; new axes do not fit."""
        if call.rank(first(call)) != call.result_rank():
            raise Unfit
        return [track]

    def backward(self, call: Call, track: Track) -> Track | None:
        """The same place."""
        return track if call.rank(first(call)) == call.result_rank() else None

    def rewrite(self, call: Call, have: Order, give: Sequence[Order]) -> Node:
        """Permute the numbers."""
        sizes = call.arg(1, self.name)
        return call.put(1, self.name, [sizes[axis] for axis in have])


class Pad(Like):
    """Padding: pairs of widths from the last axis backwards."""

    def __init__(self, name: str = "padding"):
        self.name = name

    def rewrite(self, call: Call, have: Order, give: Sequence[Order]) -> Node:
        """Put each pair where its axis is stored."""
        widths = list(call.arg(1, self.name))
        rank = len(have)
        pairs = {rank - 1 - i: widths[2 * i : 2 * i + 2] for i in range(len(widths) // 2)}
        stored = [width for axis in reversed(have) for width in pairs.get(axis, [0, 0])]
        return call.put(1, self.name, stored)


class Size(Mark):
    """The size of one axis, of a value stored in any order."""

    reads = True

    def forward(self, call: Call, track: Track) -> Tracks:
        """It is no array."""
        return []

    def rewrite(self, call: Call, have: Order, give: Sequence[Order]) -> Node:
        """Renumber the axis."""
        return call.put(1, "dim", inverse(have)[call.arg(1, "dim") % len(have)])
