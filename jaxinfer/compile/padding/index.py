"""What padding becomes in equations that cut, join and index.

A start or an index is a value, and values are those of the real sizes: ``x[:, -1]`` reads at
``n - 1``. What must be done by hand is what JAX does with a size that is now the bucket's:

    clamping   a start is held to ``[0, n - k]``, an index to ``n - 1``
    filling    an index of n or more is out of bounds
    joining    the second part of a concatenation begins at the first one's real end
    writing    padding of an update is not written
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.compile.padding.axes import (
    Axis,
    Refusal,
    State,
    is_padded,
    is_uniform,
    join,
    show,
    varied,
    whole,
)
from jaxinfer.compile.padding.rules import rule
from jaxinfer.compile.padding.run import real, real_part
from jaxinfer.compile.padding.site import Site
from jaxinfer.compile.padding.sizes import Length
from jaxinfer.core._compat import bind
from jaxinfer.core.array_types import materialize

Array = Any


def _end(site: Site, operand: int, axis: int) -> int | Length:
    """Return the real length of an operand's axis."""
    return site.need_prefix(operand, axis) or site.shape(operand)[axis]


def _cut(site: Site, axis: int, starts: Sequence[int], limits: Sequence[int], sizes: Sequence[int]
         ) -> tuple[Axis, int | Length]:  # fmt: skip
    """Return the axis of ``a[start:limit]``, and its start."""
    operand = site.ins[0][axis]
    full = [var.aval.shape[axis] for var in (eqn.invars[0] for eqn in site.eqns)]
    if all(s == 0 and n == f for s, n, f in zip(starts, sizes, full, strict=True)):
        return operand, 0
    if is_uniform(operand):
        return site.walker.axes([(n,) for n in sizes], uniform=True)[0], 0
    end = _end(site, 0, axis)
    start, limit = site.length(starts, "its start"), site.length(limits, "its limit")
    if isinstance(limit, int) and isinstance(end, Length):
        site.walker.at_least(end, limit)
    if isinstance(start, Length):
        site.walker.at_least(start, 0)
    (found,) = site.walker.axes([(n,) for n in sizes])
    return found, start


@rule("slice", moving=("start_indices", "limit_indices"))
def slice_(site: Site) -> list[State]:
    """``a[start:limit:stride]``, with a start that moves computed when it runs."""
    rank = len(site.ins[0])
    starts, limits = site.param("start_indices"), site.param("limit_indices")
    shapes, strides = site.shapes_out(), site.params["strides"] or (1,) * rank
    axes, moved = [], {}
    for axis in range(rank):
        found, start = _cut(site, axis, [s[axis] for s in starts], [n[axis] for n in limits],
                            [shape[axis] for shape in shapes])  # fmt: skip
        axes.append(found)
        if isinstance(start, Length):
            moved[axis] = start
    if moved:
        spans = [n - s for s, n in zip(starts[0], limits[0], strict=True)]
        note = ", ".join(f"axis {axis} from {start}" for axis, start in moved.items())

        def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
            (x,) = map(materialize, values)
            at = [moved.get(axis, start) for axis, start in enumerate(starts[0])]
            out = _read(x, [real(run, start) for start in at], spans)
            return [lax.slice(out, [0] * rank, out.shape, strides)]

        site.replace(compute, note, *moved.values())
    return [tuple(axes)]


def _read(x: Array, starts: Sequence[Any], sizes: Sequence[int]) -> Array:
    """Read a box that may reach beyond the end, where there are zeros."""
    beyond = [
        (0, 0 if isinstance(at, int) and at + k <= n else k)
        for at, k, n in zip(starts, sizes, x.shape, strict=True)
    ]
    x = jnp.pad(x, beyond) if any(high for _, high in beyond) else x
    return lax.dynamic_slice(x, [jnp.asarray(at, jnp.int32) for at in starts], sizes)


@rule("split", moving=("sizes",))
def split(site: Site) -> list[State]:
    """Several slices, one after the other."""
    axis, sizes = site.params["axis"], site.param("sizes")
    rank = len(site.ins[0])
    ends = [np.cumsum(each) for each in sizes]
    outs, starts = [], []
    for number in range(len(sizes[0])):
        limits = [int(end[number]) for end in ends]
        begins = [limit - each[number] for limit, each in zip(limits, sizes, strict=True)]
        found, start = _cut(site, axis, begins, limits, [each[number] for each in sizes])
        outs.append((*site.ins[0][:axis], found, *site.ins[0][axis + 1 :]))
        starts.append(start)
    if any(isinstance(start, Length) for start in starts):

        def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
            (x,) = map(materialize, values)
            found = []
            for start, size in zip(starts, sizes[0], strict=True):
                at = [real(run, start) if a == axis else 0 for a in range(rank)]
                box = [size if a == axis else n for a, n in enumerate(x.shape)]
                found.append(_read(x, at, box))
            return found

        site.replace(compute, f"axis {axis} from {', '.join(map(str, starts))}", *starts)
    return outs


@rule("dynamic_slice", moving=("slice_sizes",))
def dynamic_slice(site: Site) -> list[State]:
    """``a[start : start + k]``, its start held to ``[0, n - k]``."""
    shapes = site.shapes_out()
    axes, ends = [], {}
    for axis in range(len(site.ins[0])):
        sizes = [shape[axis] for shape in shapes]
        full = [eqn.invars[0].aval.shape[axis] for eqn in site.eqns]
        if sizes == full:
            axes.append(site.ins[0][axis])
            continue
        end = _end(site, 0, axis)
        axes.append(site.walker.axes([(n,) for n in sizes])[0])
        size = site.length(sizes, "its size")
        if isinstance(end, Length) and isinstance(size, int):
            site.walker.at_least(end, size)
        if isinstance(end, Length) or isinstance(size, Length):
            ends[axis] = (end, size)
    if ends:
        lengths = [one for pair in ends.values() for one in pair]

        def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
            x, *starts = map(materialize, values)
            at = [_held(s, n - k) for s, n, k in zip(starts, x.shape, shapes[0], strict=True)]
            beyond = [(0, 0)] * x.ndim
            for axis, (end, size) in ends.items():
                at[axis] = _held(starts[axis], real(run, end) - real(run, size))
                beyond[axis] = (0, shapes[0][axis] if isinstance(size, Length) else 0)
            x = jnp.pad(x, beyond) if any(high for _, high in beyond) else x
            return [lax.dynamic_slice(x, at, shapes[0])]

        note = ", ".join(f"start of axis {a} at most {e} - {k}" for a, (e, k) in ends.items())
        site.replace(compute, note, *lengths)
    return [tuple(axes)]


def _held(start: Array, most: Any) -> Array:
    """Return a start held to ``[0, most]``, as an int32 (starts are of one dtype)."""
    start = jnp.asarray(start)
    start = start.astype(jnp.promote_types(start.dtype, jnp.int32))
    return jnp.clip(start, 0, jnp.asarray(most, start.dtype)).astype(jnp.int32)


@rule("dynamic_update_slice")
def dynamic_update_slice(site: Site) -> list[State]:
    """Writes a box at a start held to ``[0, n - k]``; padding of the box is not written."""
    axes, ends = list(site.ins[0]), {}
    for axis in range(len(axes)):
        pairs = {tuple(v.aval.shape[axis] for v in eqn.invars[:2]) for eqn in site.eqns}
        if all(n == k for n, k in pairs):
            axes[axis] = varied(site.joined((0, axis), (1, axis)))
            continue
        end, size = _end(site, 0, axis), _end(site, 1, axis)
        axes[axis] = varied(site.ins[0][axis])
        if isinstance(end, Length) and isinstance(size, int):
            site.walker.at_least(end, size)
        if isinstance(end, Length) or isinstance(size, Length):
            ends[axis] = (end, size, site.ins[1][axis])
    if ends:
        lengths = [one for end, size, _ in ends.values() for one in (end, size)]

        def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
            x, box, *starts = map(materialize, values)
            return [_write(run, x, box, starts, ends, lambda old, new: new)]

        note = ", ".join(f"axis {a}: {k} of {e}" for a, (e, k, _) in ends.items())
        site.replace(compute, f"writes real places only ({note})", *lengths)
    return [tuple(axes)]


Ends = dict[int, tuple[int | Length, int | Length, Axis]]
"""By axis: the real length of what is written to, of what is written, and the latter's axis."""


def _write(run: Any, x: Array, box: Array, starts: Sequence[Any], ends: Ends, new: Any) -> Array:
    """Write ``new(old, box)`` at starts held to the real lengths; padding of the box is not."""
    shape, beyond, kept = x.shape, [(0, 0)] * x.ndim, None
    at = [_held(s, n - k) for s, n, k in zip(starts, shape, box.shape, strict=True)]
    for axis, (end, size, factors) in ends.items():
        at[axis] = _held(starts[axis], real(run, end) - real(run, size))
        if isinstance(size, Length):
            beyond[axis] = (0, box.shape[axis])
            mine = real_part(run, box.shape, axis, factors)
            kept = mine if kept is None else kept & mine
    x = jnp.pad(x, beyond)
    old = lax.dynamic_slice(x, at, box.shape)
    box = new(old, box) if kept is None else jnp.where(kept, new(old, box), old)
    return lax.slice(lax.dynamic_update_slice(x, box, at), [0] * x.ndim, shape)


@rule("concatenate")
def concatenate(site: Site) -> list[State]:
    """Each part is written where the real end of those before it is."""
    at = site.params["dimension"]
    axes: list[Axis] = []
    for axis in range(len(site.ins[0])):
        if axis == at:
            axes.append(varied(site.out_axes()[axis]))
            continue
        axes.append(varied(site.joined(*((part, axis) for part in range(len(site.ins))))))
    parts = [_end(site, number, at) for number in range(len(site.ins))]
    if any(isinstance(part, Length) for part in parts[:-1]):

        def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
            values = list(map(materialize, values))
            aval = equation.eqn.outvars[0].aval
            out, end = jnp.zeros(aval.shape, aval.dtype), 0
            for value, part in zip(values, parts, strict=True):
                starts = [end if axis == at else 0 for axis in range(value.ndim)]
                out = lax.dynamic_update_slice(out, value, starts)
                end = end + real(run, part)
            return [out]

        note = f"parts of {', '.join(map(str, parts))} along axis {at}"
        site.replace(compute, note, *parts)
    return [tuple(axes)]


@rule("pad", moving=("padding_config",))
def pad(site: Site) -> list[State]:
    """Adds an edge: padding that comes before a real edge is replaced by the edge's value."""
    axes = []
    for axis, factors in enumerate(site.ins[0]):
        configs = [config[axis] for config in site.param("padding_config")]
        if all(tuple(config) == (0, 0, 0) for config in configs):
            axes.append(factors)
            continue
        if len({(low, inner) for low, _, inner in configs}) > 1:
            raise Refusal(f"the edge in front of axis {axis} changes with the size")
        (found,) = site.walker.axes([(shape[axis],) for shape in site.shapes_out()])
        axes.append(found)
        if is_padded(factors):
            site.need_prefix(0, axis)
            if any(high > 0 for _, high, _ in configs) or len({h for _, h, _ in configs}) > 1:
                site.mask(0, axis, ("operand", 1))
        elif len({high for _, high, _ in configs}) > 1 and any(h < 0 for _, h, _ in configs):
            raise Refusal(f"the edge behind axis {axis} cuts off more or less with the size")
    return [tuple(axes)]


@rule("rev")
def rev(site: Site) -> list[State]:
    """``out[i] = a[n - 1 - i]``."""
    lengths = {axis: site.need_prefix(0, axis) for axis in site.params["dimensions"]}
    moved = {axis: length for axis, length in lengths.items() if length is not None}
    if moved:

        def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
            (x,) = map(materialize, values)
            for axis in site.params["dimensions"]:
                size = x.shape[axis]
                end = real(run, moved[axis]) if axis in moved else size
                at = (end - 1 - jnp.arange(size)) % size
                x = jnp.take(x, at, axis=axis, mode="clip")
            return [x]

        site.replace(compute, f"turned around at {', '.join(map(str, moved.values()))}",
                     *moved.values())  # fmt: skip
    return [site.ins[0]]


# -- gather and scatter --------------------------------------------------------------------


def _mode(site: Site) -> str:
    return getattr(site.params["mode"], "name", str(site.params["mode"])).split(".")[-1].upper()


@rule("gather", moving=("slice_sizes",))
def gather(site: Site) -> list[State]:
    """``out[b, w] = a[index[b] + w]``: an index beyond the real end is held, or filled."""
    numbers, operand, indices = site.params["dimension_numbers"], site.ins[0], site.ins[1]
    batching = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims,
                        strict=True))  # fmt: skip
    sizes = site.param("slice_sizes")
    ends: dict[int, tuple[Length, int]] = {}
    windows: list[Axis] = []
    batch = list(indices[:-1])
    for axis, factors in enumerate(operand):
        each = [size[axis] for size in sizes]
        full = [eqn.invars[0].aval.shape[axis] for eqn in site.eqns]
        if axis in batching:
            batch[batching[axis]] = join(factors, batch[batching[axis]])
            continue
        if each == full:
            found = factors
        else:
            size = site.length(each, "its size")
            if isinstance(size, Length):
                raise Refusal("it takes part of an axis, more or less with the size")
            length = site.need_prefix(0, axis)
            found = whole(size)
            if length is not None:
                site.walker.at_least(length, size)
                if axis not in numbers.start_index_map:
                    raise Refusal(f"it takes {size} of the padded axis {axis}")
                ends[numbers.start_index_map.index(axis)] = (length, size)
        if axis not in numbers.collapsed_slice_dims:
            windows.append(found)
    if ends:
        _fix(site, ends, {numbers.start_index_map[c]: c for c in ends})
    out: list[Axis] = []
    rest, inner = iter(batch), iter(windows)
    for at in range(len(site.shapes_out()[0])):
        out.append(next(inner) if at in numbers.offset_dims else next(rest))
    return [tuple(map(varied, out))]


def _fix(site: Site, ends: dict[int, tuple[Length, int]], axes: dict[int, int]) -> None:
    """Hold indices to the real size, or have them out of bounds beyond it, as the mode says."""
    fills = _mode(site) == "FILL_OR_DROP"
    sizes = {c: site.shape()[axis] for axis, c in axes.items()}

    def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
        x, index = values[0], materialize(values[1])
        index = _beyond(run, index, ends, sizes, fills)
        return run.evaluated(equation, [x, index, *values[2:]])

    how = "are out of bounds" if fills else "are held to the last"
    shown = ", ".join(str(length) for length, _ in ends.values())
    site.replace(compute, f"indices beyond {shown} {how}", *(length for length, _ in ends.values()))


def _beyond(run: Any, index: Array, ends: Any, sizes: Any, fills: bool) -> Array:
    index = index.astype(jnp.int32) if index.dtype.itemsize < 4 else index
    parts = [index[..., c] for c in range(index.shape[-1])]
    for c, (length, size) in ends.items():
        most = jnp.asarray(real(run, length) - size).astype(index.dtype)
        over = parts[c] > most
        parts[c] = jnp.where(over, sizes[c] if fills else most, parts[c])
    return jnp.stack(parts, -1)


SCATTERS = ("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter-sub",
            "scatter_add", "scatter_mul", "scatter_min", "scatter_max", "scatter_sub")  # fmt: skip


@rule(*SCATTERS)
def scatter(site: Site) -> list[State]:
    """``a[index[b] + w] = update[b, w]``: padding among the updates is dropped."""
    numbers = site.params["dimension_numbers"]
    operand, _, updates = site.ins[:3]
    batching = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims,
                        strict=True))  # fmt: skip
    inserted = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = [axis for axis in range(len(operand)) if axis not in inserted]
    state = list(operand)
    parts: Ends = {}
    for axis, at in zip(windows, numbers.update_window_dims, strict=True):
        pairs = {
            (eqn.invars[0].aval.shape[axis], eqn.invars[2].aval.shape[at]) for eqn in site.eqns
        }
        if all(n == k for n, k in pairs):
            state[axis] = site.joined((0, axis), (2, at))
        elif is_padded(updates[at]) or is_padded(operand[axis]):
            lengths = _end(site, 0, axis), _end(site, 2, at)
            parts[axis] = (*lengths, site.ins[2][at])
            state[axis] = site.ins[0][axis]
    if parts:
        return [_scatter_box(site, windows, state, parts)]
    places = [at for at in range(len(updates)) if at not in numbers.update_window_dims]
    rows: dict[int, Axis] = {}
    for axis, at in enumerate(places):
        joined = site.joined((1, axis), (2, at))
        if axis in batching.values():
            (own,) = [o for o, i in batching.items() if i == axis]
            state[own] = join(operand[own], joined)
        elif is_padded(joined):
            rows[axis] = joined
    held = _mode(site) == "CLIP"
    ends = {
        c: length
        for c, axis in enumerate(numbers.scatter_dims_to_operand_dims)
        if axis in numbers.inserted_window_dims and (length := site.need_prefix(0, axis))
    }
    for axis in numbers.inserted_window_dims:
        state[axis] = site.ins[0][axis]
    if rows or (ends and held):
        drop = site.shape()[numbers.scatter_dims_to_operand_dims[0]]
        targets = [site.shape()[a] for a in numbers.scatter_dims_to_operand_dims]

        def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
            x, index, update = map(materialize, values[:3])
            index = index.astype(jnp.int32) if index.dtype.itemsize < 4 else index
            if held:
                most = [real(run, ends[c]) - 1 if c in ends else n - 1
                        for c, n in enumerate(targets)]  # fmt: skip
                index = jnp.clip(index, 0, jnp.stack([jnp.asarray(m, index.dtype) for m in most]))
            for axis, factors in rows.items():
                index = jnp.where(real_part(run, index.shape, axis, factors), index, drop)
            params = {**equation.params, "unique_indices": False, "indices_are_sorted": False}
            params["mode"] = lax.GatherScatterMode.FILL_OR_DROP
            return bind(equation.eqn.replace(params=params), [x, index, update])

        if held and any(axis not in numbers.inserted_window_dims
                        for axis in numbers.scatter_dims_to_operand_dims):  # fmt: skip
            raise Refusal("it clamps windows of more than one place")
        shown = ", ".join(show(factors) for factors in rows.values())
        site.replace(compute, f"drops rows beyond {shown}" if rows else "indices are held",
                     *rows.values(), *ends.values())  # fmt: skip
    return [tuple(map(varied, state))]


COMBINE = {
    "": lambda old, new: new,
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    "min": jnp.minimum,
    "max": jnp.maximum,
}
"""What a scatter makes of the old value and the new one."""


def _scatter_box(site: Site, windows: Sequence[int], state: list[Axis], parts: Ends) -> State:
    """One box, part of an axis of which it or the box is padded: written as a box.

    Raises:
      Refusal: there are several.
    """
    numbers = site.params["dimension_numbers"]
    if len(site.ins[1]) != 1 or numbers.operand_batching_dims:
        axis = next(iter(parts))
        raise Refusal(f"it writes several parts of axis {axis}, and that or the parts are padded")
    combine = COMBINE[site.name.removeprefix("scatter").lstrip("-_")]
    held = _mode(site) == "CLIP"
    ends = dict(parts)
    for axis in numbers.inserted_window_dims:
        ends[axis] = (_end(site, 0, axis), 1, ())
        state[axis] = site.ins[0][axis]
    for end, size, _ in parts.values():
        if isinstance(end, Length) and isinstance(size, int):
            site.walker.at_least(end, size)

    def compute(run: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
        x, index, update = map(materialize, values[:3])
        order = sorted(range(len(windows)), key=lambda i: windows[i])
        box = lax.transpose(update, [numbers.update_window_dims[i] for i in order])
        box = lax.expand_dims(box, sorted(numbers.inserted_window_dims))
        starts: list[Any] = [0] * x.ndim
        inside = jnp.asarray(True)
        for component, axis in enumerate(numbers.scatter_dims_to_operand_dims):
            starts[axis] = index[component]
            end, size, _ = ends.get(axis, (x.shape[axis], box.shape[axis], ()))
            most = real(run, end) - real(run, size)
            inside &= (starts[axis] >= 0) & (starts[axis] <= most)
        out = _write(run, x, box, starts, ends, combine)
        return [out if held else jnp.where(inside, out, x)]

    shown = ", ".join(f"axis {a}: {k} of {e}" for a, (e, k, _) in parts.items())
    lengths = [one for end, size, _ in ends.values() for one in (end, size)]
    site.replace(compute, f"writes real places only ({shown})", *lengths)
    return tuple(map(varied, state))
