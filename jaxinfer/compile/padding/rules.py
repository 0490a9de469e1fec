"""What padding becomes in equations that compute element by element, move, or reduce.

A rule returns the states of the results, and asks the site for masks:

    elementwise   results are real where all operands are; nothing to do
    reduction     padding along reduced axes <- the identity (0, 1, -inf ..)
    contraction   padding of both operands <- 0 (0 * nan is nan)
    windows       padding <- the identity; the result's real part must be its beginning
    sort, top_k   padding <- what sorts last
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxinfer.compile.padding.axes import (
    Axis,
    Refusal,
    State,
    canonical,
    is_padded,
    is_uniform,
    join,
    reshape,
    varied,
    whole,
    wholes,
)
from jaxinfer.compile.padding.site import Site
from jaxinfer.compile.padding.walk import Rule

RULES: dict[str, Rule] = {}
"""Rules by primitive."""

MOVING: dict[str, tuple[str, ...]] = {}
"""Parameters that may differ between the traces, by primitive."""


def rule(*names: str, moving: Sequence[str] = ()) -> Callable[[Rule], Rule]:
    """Register a rule for primitives, and the parameters that may move with the sizes."""

    def register(fn: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"{name}: a rule for padding is registered already")
            RULES[name] = fn
            MOVING[name] = tuple(moving)
        return fn

    return register


_NAMES = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy cos cosh device_put digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow
    is_finite le le_to lgamma log log1p logistic lt lt_to max min mul name ne neg nextafter not
    optimization_barrier or polygamma population_count pow pvary pcast real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
    sharding_constraint reshard layout_constraint random_gamma_grad
"""

ELEMENTWISE = tuple(_NAMES.split())
"""Primitives computed element by element, on operands of one shape or of rank 0."""


@rule(*ELEMENTWISE, moving=("sharding", "layout"))
def elementwise(site: Site) -> list[State]:
    """``out[i] = f(a[i], b[i], ..)``; operands of rank 0 serve every element."""
    outs = len(site.eqn.outvars)
    if outs > 1:  # several values at once, each by itself
        return list(site.ins)
    shape = site.shapes_out()[0]
    axes: list[Axis] = []
    for at, size in enumerate(shape):
        places = [
            (operand, at)
            for operand, state in enumerate(site.ins)
            if len(state) == len(shape) and site.shape(operand)[at] == size  # not one for all
        ]
        axes.append(site.joined(*places))
    return [tuple(axes)]


@rule("bitcast_convert_type")
def bitcast(site: Site) -> list[State]:
    """Reads the bits anew; between widths the last axis appears or goes."""
    rank = len(site.shapes_out()[0])
    if len(site.ins[0]) > rank:
        site.need_whole(0, [rank])
    return [(*site.ins[0][:rank], *wholes(site.shapes_out()[0][len(site.ins[0]) :]))]


@rule("transpose")
def transpose(site: Site) -> list[State]:
    """``out[i, j] = a[j, i]``."""
    return [tuple(site.ins[0][axis] for axis in site.params["permutation"])]


@rule("squeeze")
def squeeze(site: Site) -> list[State]:
    """Drop axes of size 1."""
    gone = site.params["dimensions"]
    return [tuple(axis for at, axis in enumerate(site.ins[0]) if at not in gone)]


@rule("expand_dims", moving=("dimensions",))
def expand_dims(site: Site) -> list[State]:
    """Insert axes of size 1."""
    axes = list(site.ins[0])
    for at in sorted(site.params["dimensions"]):
        axes.insert(at, ())
    return [tuple(axes)]


@rule("broadcast_in_dim", moving=("shape", "sharding"))
def broadcast_in_dim(site: Site) -> list[State]:
    """``out[.., i, ..] = a[i]``: new axes hold one value."""
    found: list[Axis] = [()] * len(site.shapes_out()[0])
    shapes = site.shapes_out()
    where, before = site.params["broadcast_dimensions"], site.shape()
    for at in range(len(found)):
        if at in where and before[where.index(at)] == shapes[0][at]:
            found[at] = site.ins[0][where.index(at)]
        else:
            (found[at],) = site.walker.axes([(shape[at],) for shape in shapes], uniform=True)
    return [tuple(found)]


@rule("iota", moving=("shape", "sharding"))
def iota(site: Site) -> list[State]:
    """``out[i, j] = i``: the same at every size."""
    state = list(site.out_axes(uniform=True))
    state[site.params["dimension"]] = varied(state[site.params["dimension"]])
    return [tuple(state)]


@rule("reshape", moving=("new_sizes", "sharding"))
def reshaped(site: Site) -> list[State]:
    """Merge and split axes."""
    if site.params.get("dimensions") is not None:
        raise Refusal("a reshape with an order of dimensions")
    state = site.ins[0]
    if all(map(is_uniform, state)):
        return [site.out_axes(uniform=True)]
    shape = site.shapes_out()[0]
    try:
        return [reshape(state, shape)]
    except Refusal:
        for axis, dims in _groups(site.shape(), shape):
            if is_padded(state[axis]):
                parts = [site.out_axes()[dim] for dim in dims]
                site.move(0, axis, canonical(factor for part in parts for factor in part))
        if not site.moves:
            raise
    return [reshape(site.ins[0], shape)]


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return each axis that becomes several by itself, and which."""
    found, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        first, left, dims, right = i, before[i], [j], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif right < left and j < len(after):
                right *= after[j]
                dims.append(j)
                j += 1
            else:
                return found
        if i == first + 1 and len(dims) > 1:
            found.append((first, dims))
    return found


# -- reductions ----------------------------------------------------------------------------

REDUCTIONS = {
    "reduce_sum": 0,
    "reduce_prod": 1,
    "reduce_max": "lowest",
    "reduce_min": "highest",
    "reduce_and": "ones",
    "reduce_or": 0,
    "reduce_xor": 0,
    "argmax": "lowest",
    "argmin": "highest",
}
"""The identity of each reduction."""


@rule(*REDUCTIONS, moving=("out_sharding",))
def reduction(site: Site) -> list[State]:
    """Padding along the reduced axes is replaced by the identity."""
    axes = site.params["axes"]
    for axis in axes:
        if site.name.startswith("arg"):
            site.need_prefix(0, axis)
        site.mask(0, axis, REDUCTIONS[site.name])
    return [tuple(a for at, a in enumerate(site.ins[0]) if at not in axes)]


@rule("reduce", moving=("computation",))
def reduce(site: Site) -> list[State]:
    """A reduction by any function: padding is replaced by the initial value."""
    axes, count = site.params["dimensions"], len(site.ins) // 2
    joined = site.ins[0]
    for state in site.ins[1:count]:
        joined = tuple(map(join, joined, state))
    for operand in range(count):
        site.ins[operand] = joined
        for axis in axes:
            site.mask(operand, axis, ("operand", count + operand))
    return [tuple(a for at, a in enumerate(joined) if at not in axes)] * count


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(site: Site) -> list[State]:
    """Running from the front, real results read no padding; else it is the identity."""
    axis = site.params["axis"]
    fill = {"cumsum": 0, "cumprod": 1, "cummin": "highest"}.get(site.name, "lowest")
    if site.params["reverse"] or len(site.ins[0][axis]) > 1:
        site.mask(0, axis, fill)
    state = list(site.ins[0])
    state[axis] = varied(state[axis])
    return [tuple(state)]


@rule("sort")
def sort(site: Site) -> list[State]:
    """Padding sorts last, and a stable sort keeps it behind its equals."""
    axis, keys = site.params["dimension"], site.params["num_keys"]
    operands = range(len(site.ins))
    joined = tuple(
        site.joined(*((operand, at) for operand in operands)) for at in range(len(site.ins[0]))
    )
    if is_padded(joined[axis]):
        if len(site.ins) > keys and not site.params["is_stable"]:
            raise Refusal("padding may come before its equals in a sort that is not stable")
        for operand in operands:
            site.ins[operand] = joined
            site.need_prefix(operand, axis)
            if operand < keys:
                site.mask(operand, axis, "last")
        joined = site.ins[0]
    state = (*joined[:axis], varied(joined[axis]), *joined[axis + 1 :])
    return [state] * len(site.ins)


@rule("top_k", moving=("k",))
def top_k(site: Site) -> list[State]:
    """The k largest: padding is the smallest there is, and comes after its equals."""
    axis = site.params.get("axis", -1) % len(site.ins[0])
    length = site.need_prefix(0, axis)
    site.mask(0, axis, "lowest")
    k = site.length(site.param("k"), "its k")
    if length is not None and isinstance(k, int):
        site.walker.at_least(length, k)
    state = list(site.ins[0])
    state[axis] = site.out_axes()[axis]
    return [tuple(state)] * 2


# -- contractions --------------------------------------------------------------------------


def _contract(site: Site, a: int, b: int) -> None:
    """Mask the axes that a product sums over; one that is uniform is padded as the other is."""
    both = site.joined((0, a), (1, b))
    for operand, axis in ((0, a), (1, b)):
        state = list(site.ins[operand])
        state[axis] = both
        site.ins[operand] = tuple(state)
        site.mask(operand, axis, 0)


@rule("dot_general", moving=("out_sharding",))
def dot_general(site: Site) -> list[State]:
    """``out[b, i, j] = sum_k a[b, i, k] c[b, k, j]``."""
    (contract, batch) = site.params["dimension_numbers"]
    for a, b in zip(*contract, strict=True):
        _contract(site, a, b)
    shared = [site.joined((0, a), (1, b)) for a, b in zip(*batch, strict=True)]
    free = [
        site.ins[side][axis]
        for side in (0, 1)
        for axis in range(len(site.ins[side]))
        if axis not in contract[side] and axis not in batch[side]
    ]
    return [(*shared, *free)]


@rule("ragged_dot_general")
def ragged_dot(site: Site) -> list[State]:
    """Rows times the matrix of their group; rows after the last group's are in no group."""
    numbers = site.params["ragged_dot_dimension_numbers"]
    (contract, batch) = numbers.dot_dimension_numbers
    site.need_whole(2)
    if set(numbers.lhs_ragged_dimensions) & {*contract[0], *batch[0]}:
        site.need_whole(0)
        site.need_whole(1)
        return [site.out_axes()]
    for axis in numbers.lhs_ragged_dimensions:
        site.need_prefix(0, axis)
    for a, b in zip(*contract, strict=True):
        _contract(site, a, b)
    groups = numbers.rhs_group_dimensions
    site.need_whole(1, groups)
    shared = [site.joined((0, a), (1, b)) for a, b in zip(*batch, strict=True)]
    lhs = [a for at, a in enumerate(site.ins[0]) if at not in (*contract[0], *batch[0])]
    rhs = [a for at, a in enumerate(site.ins[1]) if at not in (*contract[1], *batch[1], *groups)]
    return [(*shared, *lhs, *rhs)]


# -- windows -------------------------------------------------------------------------------


def _window(site: Site, operand: int, axis: int, index: int, fill: Any, **keys: str) -> Axis:
    """Return the axis that a window gives, moving along an axis of an operand."""
    size, padding = keys.get("size"), site.param("padding")
    low = [pads[index][0] for pads in padding]
    sizes = site.param(size)[0:] if size else [()] * len(low)
    moves = size and len({window[index] for window in sizes}) > 1
    if not is_padded(site.ins[operand][axis]):
        if moves or len({pads[index] for pads in padding}) > 1:
            raise Refusal("its window or its padding changes with the size along a whole axis")
        return whole(site.shapes_out()[0][keys_axis(keys, index)])
    site.need_prefix(operand, axis)
    if moves and any(
        pads[index] not in ((0, 0), (window[index] - 1, 0))
        for pads, window in zip(padding, sizes, strict=True)
    ):
        raise Refusal("a window as long as a padded axis, with padding of its own")
    if not moves and len(set(low)) > 1:
        raise Refusal(f"its padding in front changes with the size ({low})")
    site.mask(operand, axis, fill)
    at = keys_axis(keys, index)
    (found,) = site.walker.axes([(shape[at],) for shape in site.shapes_out()])
    return found


def keys_axis(keys: Any, index: int) -> int:
    """Return the axis of the result that a window's axis becomes."""
    return keys["out"][index]


WINDOWS = {
    "reduce_window_sum": 0,
    "reduce_window_max": "lowest",
    "reduce_window_min": "highest",
}


@rule(*WINDOWS, moving=("window_dimensions", "padding"))
def reduce_window(site: Site) -> list[State]:
    """A pool: padding is replaced by the identity."""
    return [_pooled(site, 0, WINDOWS[site.name])]


@rule("reduce_window", moving=("window_dimensions", "padding"))
def any_window(site: Site) -> list[State]:
    """A pool by any function: padding is replaced by the initial value."""
    count = len(site.ins) // 2
    states = [_pooled(site, i, ("operand", count + i)) for i in range(count)]
    return states


def _pooled(site: Site, operand: int, fill: Any) -> State:
    rank = len(site.ins[operand])
    out = []
    for axis in range(rank):
        window = {w[axis] for w in site.param("window_dimensions")}
        simple = window == {1} and site.params["window_strides"][axis] == 1
        simple = simple and {p[axis] for p in site.param("padding")} == {(0, 0)}
        if simple and site.params["base_dilation"][axis] == 1:
            out.append(site.ins[operand][axis])
        else:
            out.append(
                _window(site, operand, axis, axis, fill, size="window_dimensions",
                        out=range(rank))  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
    return tuple(out)


@rule("conv_general_dilated", moving=("padding",))
def conv(site: Site) -> list[State]:
    """A convolution: padding along windows is zero, and so is what lies beyond the real end."""
    numbers, p = site.params["dimension_numbers"], site.params
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    site.need_whole(1, [axis for axis in rhs[1:] if axis != rhs[1]], "its kernel's size is padded")
    found: list[Axis] = [()] * len(out)
    found[out[0]], found[out[1]] = site.ins[0][lhs[0]], site.ins[1][rhs[0]]
    if p["batch_group_count"] != 1:
        site.need_whole(0, [lhs[0]], "its batch is padded and grouped")
    if p["feature_group_count"] != 1:
        site.need_whole(0, [lhs[1]], "its channels are padded and grouped")
        site.need_whole(1, [rhs[0]], "its channels are padded and grouped")
    if p["feature_group_count"] == 1:
        _contract(site, lhs[1], rhs[1])
    if p["batch_group_count"] != 1 or p["feature_group_count"] != 1:
        found[out[1]] = whole(site.shapes_out()[0][out[1]])
    if p["batch_group_count"] != 1:
        found[out[0]] = whole(site.shapes_out()[0][out[0]])
    for index in range(len(out) - 2):
        found[out[index + 2]] = _window(
            site,
            0,
            lhs[index + 2],
            index,
            0,
            out=out[2:],  # pyright: ignore[reportArgumentType]
        )
    return [tuple(found)]


# -- batches -------------------------------------------------------------------------------


def _batched(core: int) -> Rule:
    def run(site: Site) -> list[State]:
        batch: State | None = None
        for operand, state in enumerate(site.ins):
            cut = len(state) - core
            site.need_whole(
                operand, range(cut, len(state)), "an axis that it works along is padded"
            )
            front = state[:cut]
            batch = front if batch is None else tuple(map(join, batch, front))
        batch = batch or ()
        outs = []
        for number in range(len(site.eqn.outvars)):
            shape = site.shapes_out(number)[0]
            outs.append((*map(varied, batch), *wholes(shape[len(batch) :])))
        return outs

    return run


for _name in ("cholesky", "eigh", "eig", "svd", "qr", "geqrf", "lu", "schur", "hessenberg",
              "tridiagonal", "triangular_solve", "householder_product"):  # fmt: skip
    rule(_name)(_batched(2))


@rule("lu_pivots_to_permutation")
def pivots(site: Site) -> list[State]:
    """Works along the last axis."""
    return _batched(1)(site)  # pyright: ignore[reportReturnType]


@rule("fft", moving=("fft_lengths",))
def fft(site: Site) -> list[State]:
    """Works along the last axes."""
    return _batched(len(site.params["fft_lengths"]))(site)  # pyright: ignore[reportReturnType]
