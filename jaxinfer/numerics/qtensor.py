"""QTensor: a quantized array as a pytree, and what can be done to its layout as it is.

``value = scale * (decode(qvalue) - zero_point)``, tile by tile.

Invariants (after QArray of https://github.com/google/qwix):

- ``scale.ndim == qvalue.ndim``, and each dimension of ``scale`` divides that of ``qvalue``
  (unpacked): a sharding of the values is one of the scales, and tiles are derived, not stored;
- axes in the metadata are counted from the right, so that all children may get a leading axis
  (``lax.scan`` over stacked layers, ``vmap``) and lose it again;
- an axis may be stored longer than it is (tiles that do not divide, an odd number of packed
  codes). What the padding decodes to is unspecified; ``materialize`` cuts it off.

Layout methods never decode. They give None where the result would need it, or where it would
need more scales than a quarter of its elements (and more than there were).

What it does not do: choose scales (``quantize.py``), arithmetic, traced slice starts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core.array_types import ARRAY_TYPES, ArrayType
from jaxinfer.core.dtypes import dtype_of
from jaxinfer.core.errors import InputError, listing
from jaxinfer.numerics import _tiling
from jaxinfer.numerics.formats import FORMATS, Format, decode, format_of
from jaxinfer.numerics.packing import best_axis, pack, unpack

Array = jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("qvalue", "scale", "zero_point"),
    meta_fields=("format", "logical_dtype", "packed", "sizes"),
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class QTensor(ArrayType):
    """An array of codes with its scales.

    Args:
      qvalue: codes, one an element, or two a byte along ``packed``.
      scale: floats of ``qvalue``'s rank.
      zero_point: integers of ``scale``'s shape; None if the format is symmetric.
      format: name of a registered format.
      logical_dtype: name of the float dtype that the array stands for.
      packed: axis from the right (negative) along which two codes share a byte, or None.
      sizes: (axis from the right, logical size) of each axis that is stored longer.
    """

    kind: ClassVar[str] = "QTensor"
    META: ClassVar[tuple[str, ...]] = ("format", "logical_dtype", "packed", "sizes")
    qvalue: Array
    scale: Array
    zero_point: Array | None
    format: str
    logical_dtype: str
    packed: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def spec(self) -> Format:
        """The number format."""
        return format_of(self.format)

    @property
    def ndim(self) -> int:
        """Rank."""
        return len(self.qvalue.shape)

    @property
    def dtype(self) -> np.dtype:
        """The float dtype that the array stands for."""
        return dtype_of(self.logical_dtype)

    @property
    def stored(self) -> tuple[int, ...]:
        """Number of codes along each axis, with padding."""
        shape = list(self.qvalue.shape)
        if self.packed is not None:
            shape[self.packed] *= 2
        return tuple(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        shape = list(self.stored)
        for axis, size in self.sizes:
            shape[axis] = size
        return tuple(shape)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Number of stored elements along each axis that share a scale."""
        pairs = zip(self.stored, self.scale.shape, strict=True)
        return tuple(size // count if count else 1 for size, count in pairs)

    def __repr__(self) -> str:
        if not all(hasattr(x, "shape") for x in (self.qvalue, self.scale)):
            return f"QTensor({self.format}, {self.qvalue!r}, {self.scale!r}, {self.zero_point!r})"
        sizes = ",".join(map(str, self.shape))
        extra = "" if self.packed is None else f", packed={self.packed}"
        extra += "" if self.zero_point is None else ", zero_point"
        return f"QTensor({self.format}[{sizes}], {self.logical_dtype}, tiles={self.tiles}{extra})"

    def validate(self, path: str = "QTensor") -> None:
        """Raise if the children and metadata do not fit each other.

        Args:
          path: leaf path, for the message.

        Raises:
          InputError: all problems at once.
        """
        problems = self._problems()
        if problems:
            raise InputError(listing(f"{path}: the parts do not fit each other:", problems))

    def _problems(self) -> list[str]:
        if self.format not in FORMATS:
            return [f"format: required one of {', '.join(FORMATS)}; got {self.format!r}"]
        found, rank = [], self.ndim
        for axis in (*(() if self.packed is None else (self.packed,)), *(a for a, _ in self.sizes)):
            if not -rank <= axis < 0:
                found.append(f"axis {axis}: required {-rank} to -1, counted from the right")
        if self.packed is not None and self.spec.bits != 4:
            found.append(f"packed={self.packed}: required a format of 4 bits, got {self.format}")
        if found:
            return found
        storage = "uint8" if self.packed is not None else self.spec.storage
        if np.dtype(self.qvalue.dtype) != dtype_of(storage):
            found.append(f"qvalue: required {storage}, got {self.qvalue.dtype}")
        if not jnp.issubdtype(self.scale.dtype, jnp.floating):
            found.append(f"scale: required floats, got {self.scale.dtype}")
        if len(self.scale.shape) != rank:
            found.append(f"scale: required rank {rank} of qvalue, got {self.scale.shape}")
        elif any(q % s if s else q for q, s in zip(self.stored, self.scale.shape, strict=True)):
            found.append(f"scale: required divisors of {self.stored}, got {self.scale.shape}")
        if self.zero_point is not None and self.zero_point.shape != self.scale.shape:
            found.append(
                f"zero_point: required {self.scale.shape} of scale, got {self.zero_point.shape}"
            )
        for axis, size in self.sizes:
            if not 0 <= size < self.stored[axis]:
                found.append(f"size {size} of axis {axis}: required less than {self.stored[axis]}")
        return found

    def codes(self) -> Array:
        """Return the codes one an element, of shape ``stored`` (with padding)."""
        if self.packed is None:
            return self.qvalue
        return unpack(self.qvalue, self.packed, signed=self.spec.storage == "int8")

    def materialize(self) -> Array:
        """Return the array that this stands for: ``scale * (decode(codes) - zero_point)``.

        Computed in float32 (or the scale's dtype, if wider) and rounded once to ``dtype``.
        Differentiable in ``scale``. Cost: one multiplication an element.
        """
        compute = jnp.promote_types(jnp.float32, self.scale.dtype)
        values = decode(self.codes(), self.spec, compute)
        shapes = _tiling.split(self.stored, self.scale.shape)
        values = values.reshape(shapes.values)
        if self.zero_point is not None:
            values -= self.zero_point.reshape(shapes.scale).astype(compute)
        values *= self.scale.reshape(shapes.scale).astype(compute)
        values = values.reshape(self.stored)
        if self.shape != self.stored:
            values = lax.slice(values, [0] * self.ndim, self.shape)
        return values.astype(self.dtype)

    def astype(self, dtype: Any) -> QTensor:
        """Return the same codes and scales, to stand for an array of another float dtype."""
        return dataclasses.replace(self, logical_dtype=np.dtype(dtype).name)

    def independent(self, axis: int) -> bool:
        """Whether all children can be indexed along ``axis`` (by ``scan``, ``vmap``, a gather).

        That is: one scale for each index, no packing along it, no padding.
        """
        axis = self._axis(axis)
        unpacked = self.packed is None or self.ndim + self.packed != axis
        return unpacked and self.scale.shape[axis] == self.shape[axis] == self.stored[axis]

    def unpacked(self) -> QTensor:
        """Return the same with one code an element (exact; twice the bytes)."""
        if self.packed is None:
            return self
        axis = self.ndim + self.packed
        return self._with(self.codes(), self.scale, self.zero_point, self.shape)._trim(axis)

    def repacked(self) -> QTensor:
        """Return the same packed along the best axis, if the format has 4 bits and one exists."""
        if self.packed is not None or self.spec.bits != 4:
            return self
        axis = best_axis(self.stored, self.scale.shape)
        if axis is None:
            return self
        qvalue = pack(self.qvalue, axis)
        return self._with(qvalue, self.scale, self.zero_point, self.shape, axis - self.ndim)

    def transpose(self, perm: Sequence[int]) -> QTensor:
        """Permute the axes, as ``lax.transpose``. Never None."""
        order = [self._axis(axis) for axis in perm]
        if sorted(order) != list(range(self.ndim)):
            raise InputError(f"transpose: required a permutation of {self.ndim} axes, got {perm}")
        packed = self.packed
        if packed is not None:
            packed = order.index(self.ndim + packed) - self.ndim
        move = lambda x: lax.transpose(x, order)
        shape = tuple(self.shape[axis] for axis in order)
        return self._with(move(self.qvalue), *self._map(move), shape, packed)

    def expand_dims(self, axes: Sequence[int]) -> QTensor:
        """Insert axes of size 1 at ``axes`` of the result, as ``jnp.expand_dims``. Never None."""
        rank = self.ndim + len(axes)
        new = sorted({axis % rank for axis in axes if -rank <= axis < rank})
        if len(new) != len(axes):
            raise InputError(f"expand_dims: required different axes of rank {rank}, got {axes}")
        old = [axis for axis in range(rank) if axis not in new]
        packed = self.packed
        if packed is not None:
            packed = old[packed] - rank
        shape = [1] * rank
        for axis, size in zip(old, self.shape, strict=True):
            shape[axis] = size
        expand = lambda x: lax.expand_dims(x, new)
        return self._with(expand(self.qvalue), *self._map(expand), tuple(shape), packed)

    def squeeze(self, axes: Sequence[int]) -> QTensor:
        """Drop axes of size 1, as ``lax.squeeze``; unpacks along a dropped axis. Never None."""
        drop = sorted({self._axis(axis) for axis in axes})
        for axis in drop:
            if self.shape[axis] != 1:
                raise InputError(f"squeeze: required size 1, got {self.shape[axis]} of axis {axis}")
        whole = self
        if self.packed is not None and self.ndim + self.packed in drop:
            whole = self.unpacked()
        for axis in drop:
            whole = whole._trim(axis)
        keep = [axis for axis in range(self.ndim) if axis not in drop]
        packed = whole.packed
        if packed is not None:
            packed = keep.index(self.ndim + packed) - len(keep)
        cut = lambda x: lax.squeeze(x, drop)
        shape = tuple(self.shape[axis] for axis in keep)
        return whole._with(cut(whole.qvalue), *whole._map(cut), shape, packed)

    def slice(self, starts: Sequence[int], limits: Sequence[int]) -> QTensor | None:
        """Take a static slice of stride 1, as ``lax.slice``.

        Whole tiles are kept where the slice ends within one. Where it starts within one, tiles
        are cut to the greatest common divisor, with more scales. Unpacks where a byte is cut.
        """
        if not len(starts) == len(limits) == self.ndim:
            raise InputError(f"slice: required {self.ndim} starts and limits")
        out = self
        for axis, (start, limit) in enumerate(zip(starts, limits, strict=True)):
            if not 0 <= start <= limit <= self.shape[axis]:
                raise InputError(
                    f"slice: required 0 <= start <= limit <= {self.shape[axis]} along axis {axis}, "
                    f"got {start} and {limit}"
                )
            if (start, limit) != (0, self.shape[axis]):
                out = out._slice(axis, start, limit)
        return out if _affordable(out, self.scale.size) else None

    def _slice(self, axis: int, start: int, limit: int) -> QTensor:
        tile = max(1, self.tiles[axis])
        count = self.scale.shape[axis]
        size = limit - start
        if size == 0:
            groups, codes = ((0, 1) if count else (0, 0)), (start, start)
        elif start // tile == (limit - 1) // tile:  # within one tile
            groups, codes = (start // tile, start // tile + 1), (start, limit)
        elif start % tile:
            return self._refine(axis, math.gcd(tile, start))._slice(axis, start, limit)
        else:
            groups = (start // tile, -(-limit // tile))
            codes = (start, groups[1] * tile)
        low, high = codes
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        own = self.packed is not None and self.ndim + self.packed == axis
        if own and high % 2 and groups[1] - groups[0] == 1 and high < self.stored[axis]:
            high += 1  # one scale serves the neighbour as well: its value is padding
        if own and (low % 2 or high % 2):
            return self.unpacked()._slice(axis, start, limit)
        if own:
            low, high = low // 2, high // 2
        qvalue = lax.slice_in_dim(self.qvalue, low, high, axis=axis)
        scales = self._map(lambda x: lax.slice_in_dim(x, *groups, axis=axis))
        return self._with(qvalue, *scales, shape, self.packed)

    def reshape(self, shape: Sequence[int]) -> QTensor | None:
        """Reshape in row-major order, as ``lax.reshape`` (no -1).

        Axes may be split and merged where tiles stay boxes; scales are repeated where a merged
        axis needs it. Padded axes stay as they are or are not touched at all (None). Unpacks
        if the packed axis is cut to an odd size, or is not the last of those merged.
        """
        new = tuple(shape)
        if math.prod(new) != self.size:
            raise InputError(f"reshape: required {self.size} elements of {self.shape}, got {new}")
        if new == self.shape:
            return self
        if self.size == 0:
            scale = jnp.ones((1,) * len(new), self.scale.dtype)
            zero = None if self.zero_point is None else scale.astype(self.zero_point.dtype)
            codes = jnp.zeros(new, dtype_of(self.spec.storage))
            return self._with(codes, scale, zero, new)
        whole = self.squeeze([axis for axis, size in enumerate(self.shape) if size == 1])
        out = whole._reblock(tuple(size for size in new if size != 1))
        if out is None or not _affordable(out, self.scale.size):
            return None
        return out.expand_dims([axis for axis, size in enumerate(new) if size == 1])

    def _reblock(self, new: tuple[int, ...]) -> QTensor | None:
        """Reshape where neither shape has an axis of size 1."""
        q, packed = self, None
        bytes_, parts, spread, groups = [], [], [], []
        for old_axes, new_axes in _tiling.blocks(self.shape, new):
            last, end = old_axes[-1], new_axes[-1]
            own = q.packed is not None and q.ndim + q.packed in old_axes
            if len(old_axes) == len(new_axes) == 1:
                bytes_.append(q.qvalue.shape[last])
                counts = [[q.scale.shape[last]]] * 3
            else:
                if own and (q.ndim + (q.packed or 0) != last or new[end] % 2):
                    return self.unpacked()._reblock(new)
                for axis in old_axes:
                    q = q._trim(axis)
                old = [q.stored[axis] for axis in old_axes]
                if old != [self.shape[axis] for axis in old_axes]:
                    # padding within tiles, or half a byte of it
                    return self.unpacked()._reblock(new) if own else None
                sizes = [new[axis] for axis in new_axes]
                counts = _tiling.regroup(old, [q.scale.shape[axis] for axis in old_axes], sizes)
                if counts is None:
                    return None
                bytes_ += [*sizes[:-1], sizes[-1] // 2 if own else sizes[-1]]
            packed = end - len(new) if own else packed
            for target, values in zip((parts, spread, groups), counts, strict=True):
                target += values
        follow = lambda x: jnp.broadcast_to(x.reshape(parts), spread).reshape(groups)
        return q._with(q.qvalue.reshape(bytes_), *q._map(follow), new, packed)

    def _axis(self, axis: int) -> int:
        if not -self.ndim <= axis < self.ndim:
            raise InputError(f"axis {axis}: required less than {self.ndim} of {self!r}")
        return axis % self.ndim

    def _map(self, fn: Callable[[Array], Array]) -> tuple[Array, Array | None]:
        """Apply ``fn`` to scale and zero point."""
        return fn(self.scale), None if self.zero_point is None else fn(self.zero_point)

    def _with(
        self,
        qvalue: Array,
        scale: Array,
        zero_point: Array | None,
        shape: tuple[int, ...],
        packed: int | None = None,
    ) -> QTensor:
        """Return a QTensor of a logical shape; what is stored beyond it is padding."""
        made = QTensor(qvalue, scale, zero_point, self.format, self.logical_dtype, packed)
        pairs = enumerate(zip(shape, made.stored, strict=True))
        sizes = tuple((axis - made.ndim, size) for axis, (size, held) in pairs if size != held)
        return dataclasses.replace(made, sizes=sizes)

    def _trim(self, axis: int) -> QTensor:
        """Drop the padding of an axis where no tile and no byte is cut."""
        held, size = self.stored[axis], self.shape[axis]
        if held == size or self.tiles[axis] == 0:
            return self
        if self.packed is not None and self.ndim + self.packed == axis:
            return self
        count = -(-size // self.tiles[axis])
        end = size if count == 1 else count * self.tiles[axis]
        qvalue = lax.slice_in_dim(self.qvalue, 0, end, axis=axis)
        scales = self._map(lambda x: lax.slice_in_dim(x, 0, max(count, 1), axis=axis))
        return self._with(qvalue, *scales, self.shape, self.packed)

    def _refine(self, axis: int, tile: int) -> QTensor:
        """Cut the tiles of an axis to ``tile``, a divisor, by repeating scales."""
        times = max(1, self.tiles[axis]) // tile
        if times == 1:
            return self
        scales = self._map(lambda x: jnp.repeat(x, times, axis=axis))
        return self._with(self.qvalue, *scales, self.shape, self.packed)


ARRAY_TYPES.register("QTensor")(QTensor)


def _affordable(q: QTensor, before: int) -> bool:
    """Whether scales are at most a quarter of the elements, or no more than there were."""
    return q.scale.size <= max(before, q.size // 4)
