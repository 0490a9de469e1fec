"""Counts the arithmetic of a function from its jaxpr, at concrete shapes, without running it.

    dot_general     2 * batch * m * n * k           a multiply-add is 2 FLOPs
    convolution     2 * output * in_channels/groups * taps
    elementwise     1 for each output value; exp, tanh, erf, rsqrt and the like are counted
                    apart, in ``transcendentals``, as XLA's cost analysis does
    reduction       input values - output values
    scan            length * body
    cond            its dearest branch
    while           its body once, and listed in ``unknown_loops``: the trip count is data

Taps of a convolution that fall on padding are counted, as published figures do; zeros that
``lhs_dilation`` inserts (transposed convolutions) are not. Complex values: add 2, multiply 6,
multiply-add 8. Integer arithmetic counts like that of floats. Layout (reshape, transpose,
slice, gather, concatenate, convert) is free. What has no rule (sort, decompositions, random
numbers, custom kernels) is listed in ``uncounted``, never guessed.

This is the arithmetic that the program asks for, before XLA fuses, folds or pads anything.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.core._compat import subjaxprs


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FREE = _names(
    """broadcast_in_dim reshape transpose squeeze concatenate pad rev slice dynamic_slice
    dynamic_update_slice gather scatter iota copy convert_element_type bitcast_convert_type
    reduce_precision real imag complex conj split empty device_put optimization_barrier
    sharding_constraint reshard layout_constraint mesh_cast pvary pcast create_token
    axis_index random_wrap random_unwrap stack stop_gradient"""
)
_ELEMENTWISE = _names(
    """add sub mul div rem neg abs sign floor ceil round max min clamp nextafter is_finite
    eq ne lt le gt ge eq_to le_to lt_to and or not xor select_n shift_left
    shift_right_logical shift_right_arithmetic population_count clz add_any square"""
)
_TRANSCENDENTAL = _names(
    """exp exp2 expm1 log log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh
    atanh logistic erf erfc erf_inv lgamma digamma polygamma igamma igammac
    igamma_grad_a random_gamma_grad regularized_incomplete_beta zeta bessel_i0e bessel_i1e
    sqrt rsqrt cbrt pow"""
)
_REDUCTIONS = _names(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax
    argmin"""
)
_CUMULATIVE = _names("cumsum cumprod cummax cummin")
_CALLS = _names(
    """jit pjit closed_call core_call custom_jvp_call custom_vjp_call
    custom_vjp_call_jaxpr remat remat2 checkpoint named_call"""
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a function costs at one set of shapes.

    Attributes:
      flops: arithmetic operations; a multiply-add is 2.
      transcendentals: values of exp, tanh, erf, rsqrt and the like, not in ``flops``.
      bytes_in: bytes of all arguments (parameters are arguments).
      bytes_constants: bytes of the arrays that the function closes over.
      bytes_out: bytes of the results.
      by_primitive: FLOPs by primitive, the dearest first.
      unknown_loops: how many while loops were counted as if they ran once.
      uncounted: primitives without a rule, with how often they run.
    """

    flops: int
    transcendentals: int = 0
    bytes_in: int = 0
    bytes_constants: int = 0
    bytes_out: int = 0
    by_primitive: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0
    uncounted: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return what the numbers leave out, as lines for people; empty if nothing."""
        lines = []
        if self.unknown_loops:
            lines.append(
                f"loops with unknown trip count: {self.unknown_loops}, each counted as one trip"
            )
        if self.uncounted:
            shown = ", ".join(f"{name} ({n})" for name, n in self.uncounted.items())
            lines.append(f"not counted: {shown}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return dataclasses.asdict(self)


def count(fn: Callable[..., Any] | Any, *avals: Any) -> Cost:
    """Count a function at the shapes of its arguments, or a jaxpr as it stands.

    Args:
      fn: a traceable function, or a jaxpr (open or closed; then without ``avals``).
      avals: pytrees of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The Cost. It takes one abstract trace and a walk over the equations.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = jax.ShapeDtypeStruct((5, 7), jnp.float32)
      >>> count(lambda w, x: x @ w, w, jax.ShapeDtypeStruct((3, 5), jnp.float32)).flops
      210
    """
    closed = fn if hasattr(fn, "eqns") or hasattr(fn, "jaxpr") else jax.make_jaxpr(fn)(*avals)
    jaxpr = getattr(closed, "jaxpr", closed)
    tally, memo, arrays = _Tally(), {}, {}
    _walk(jaxpr, 1, tally, memo)
    _constants(closed, arrays, set())
    return Cost(
        flops=sum(tally.flops.values()),
        transcendentals=sum(tally.transcendentals.values()),
        bytes_in=sum(_bytes(v.aval) for v in jaxpr.invars),
        bytes_constants=sum(arrays.values()),
        bytes_out=sum(_bytes(v.aval) for v in jaxpr.outvars),
        by_primitive={k: n for k, n in tally.flops.most_common() if n},
        unknown_loops=tally.loops,
        uncounted=dict(sorted(tally.uncounted.items())),
    )


@dataclasses.dataclass
class _Tally:
    """Running sums; ``total`` compares branches."""

    flops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    transcendentals: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    uncounted: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    loops: int = 0

    def add(self, other: _Tally, times: int) -> None:
        for mine, theirs in (
            (self.flops, other.flops),
            (self.transcendentals, other.transcendentals),
            (self.uncounted, other.uncounted),
        ):
            for name, value in theirs.items():
                mine[name] += value * times
        self.loops += other.loops if times else 0

    @property
    def total(self) -> int:
        return sum(self.flops.values()) + sum(self.transcendentals.values())


def _walk(jaxpr: Any, times: int, tally: _Tally, memo: dict[int, _Tally]) -> None:
    tally.add(_tally(jaxpr, memo), times)


def _tally(jaxpr: Any, memo: dict[int, _Tally]) -> _Tally:
    """Return the sums of one jaxpr; a jaxpr that is called again is not walked again."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    if id(jaxpr) not in memo:
        tally = _Tally()
        for eqn in jaxpr.eqns:
            _equation(eqn, tally, memo)
        memo[id(jaxpr)] = tally
    return memo[id(jaxpr)]


def _equation(eqn: Any, tally: _Tally, memo: dict[int, _Tally]) -> None:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        _walk(params["jaxpr"], params["length"], tally, memo)
    elif name == "while":
        tally.loops += 1
        _walk(params["cond_jaxpr"], 1, tally, memo)
        _walk(params["body_jaxpr"], 1, tally, memo)
    elif name == "cond":
        branches = [_tally(branch, memo) for branch in params["branches"]]
        tally.add(max(branches, key=lambda branch: branch.total), 1)
    elif name == "shard_map":  # the body is one device's share
        _walk(params["jaxpr"], params["mesh"].size, tally, memo)
    elif name in _CALLS:
        for sub in subjaxprs(params):
            _walk(sub, 1, tally, memo)
    elif name in _RULES:
        tally.flops[name] += _RULES[name](eqn)
    elif name in ("reduce", "reduce_window"):
        body = _tally(params["jaxpr"], memo)
        size = _window(eqn) if name == "reduce_window" else _reduced(eqn)
        tally.add(body, size)
    elif name in _TRANSCENDENTAL:
        tally.transcendentals[name] += _size(eqn.outvars[0])
    elif name not in _FREE:
        tally.uncounted[name] += 1
        for sub in subjaxprs(params):
            _walk(sub, 1, tally, memo)


def _size(var: Any) -> int:
    return math.prod(var.aval.shape)


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


def _is_complex(var: Any) -> bool:
    return jax.numpy.issubdtype(var.aval.dtype, np.complexfloating)


def _multiply_add(eqn: Any) -> int:
    return 8 if _is_complex(eqn.outvars[0]) else 2


def _elementwise(eqn: Any) -> int:
    out = eqn.outvars[0]
    each = 1
    if _is_complex(out):
        each = 6 if eqn.primitive.name in ("mul", "div", "square") else 2
    return each * _size(out)


def _integer_pow(eqn: Any) -> int:
    """x**n by repeated squaring: bits(n) - 1 squarings, ones(n) - 1 products."""
    n = abs(eqn.params["y"])
    products = max(n.bit_length() - 1, 0) + max(n.bit_count() - 1, 0)
    inverse = 1 if eqn.params["y"] < 0 else 0
    return (products + inverse) * (6 if _is_complex(eqn.outvars[0]) else 1) * _size(eqn.outvars[0])


def _reduced(eqn: Any) -> int:
    return max(_size(eqn.invars[0]) - _size(eqn.outvars[0]), 0)


def _reduction(eqn: Any) -> int:
    return _reduced(eqn) * (2 if _is_complex(eqn.invars[0]) else 1)


def _cumulative(eqn: Any) -> int:
    shape, axis = eqn.invars[0].aval.shape, eqn.params["axis"]
    return _size(eqn.invars[0]) - math.prod(shape[:axis] + shape[axis + 1 :])


def _window(eqn: Any) -> int:
    window = math.prod(eqn.params["window_dimensions"])
    return _size(eqn.outvars[0]) * (window - 1)


def _scatter(eqn: Any) -> int:
    return _size(eqn.invars[2])


def _contracted(eqn: Any, dimension_numbers: Any) -> int:
    (contracting, _), _ = dimension_numbers
    return math.prod(eqn.invars[0].aval.shape[axis] for axis in contracting)


def _dot_general(eqn: Any) -> int:
    k = _contracted(eqn, eqn.params["dimension_numbers"])
    return _multiply_add(eqn) * _size(eqn.outvars[0]) * k


def _ragged_dot(eqn: Any) -> int:
    """Every row meets one group: as one dot, however many groups there are."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    k = _contracted(eqn, numbers.dot_dimension_numbers)
    (contracting, _), _ = numbers.dot_dimension_numbers
    outputs = _size(eqn.outvars[0])
    if set(numbers.lhs_ragged_dimensions) & set(contracting):
        outputs //= eqn.outvars[0].aval.shape[0] or 1  # each group sums its own share of k
    return _multiply_add(eqn) * outputs * k


def _convolution(eqn: Any) -> int:
    params = eqn.params
    numbers = params["dimension_numbers"]
    lhs, rhs = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    out = eqn.outvars[0].aval.shape
    total = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]
    for index in range(len(out) - 2):
        total *= _taps(
            lhs[numbers.lhs_spec[2 + index]],
            out[numbers.out_spec[2 + index]],
            rhs[numbers.rhs_spec[2 + index]],
            params["window_strides"][index],
            params["padding"][index][0],
            params["lhs_dilation"][index],
            params["rhs_dilation"][index],
        )
    return _multiply_add(eqn) * total


def _taps(
    size: int, out: int, taps: int, stride: int, low: int, lhs_dilation: int, rhs_dilation: int
) -> int:
    """Return how many (output, tap) pairs of one axis do work.

    All of them; with ``lhs_dilation`` those that meet a real input: position
    ``o*stride + t*rhs_dilation - low`` is a multiple of it and lies within the input.
    """
    if lhs_dilation == 1:
        return out * taps
    at = np.arange(out)[:, None] * stride + np.arange(taps) * rhs_dilation - low
    return int(((at % lhs_dilation == 0) & (at >= 0) & (at <= (size - 1) * lhs_dilation)).sum())


def _fft(eqn: Any) -> int:
    """5 n log2(n) for each transform of n complex values, half of it for real ones."""
    lengths = eqn.params["fft_lengths"]
    n = math.prod(lengths)
    real = not (_is_complex(eqn.invars[0]) and _is_complex(eqn.outvars[0]))
    points = max(_size(eqn.invars[0]), _size(eqn.outvars[0]))
    transforms = points // (n or 1) or (1 if points else 0)
    return round(transforms * 5 * n * math.log2(n or 1) / (2 if real else 1)) if n > 1 else 0


_RULES: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot_general,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "integer_pow": _integer_pow,
    "fft": _fft,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_CUMULATIVE, _cumulative),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    **dict.fromkeys(
        ("scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter_add", "scatter_mul"),
        _scatter,
    ),
}


def _constants(jaxpr: Any, found: dict[int, int], seen: set[int]) -> None:
    """Collect the bytes of closed-over arrays (consts and array literals), each once."""
    values: list[Any] = list(getattr(jaxpr, "consts", ()))
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    if id(inner) in seen and not values:
        return
    seen.add(id(inner))
    for eqn in inner.eqns:
        values += [v.val for v in eqn.invars if hasattr(v, "val")]
        for sub in _closed(eqn.params.values()):
            _constants(sub, found, seen)
    for value in values:
        if getattr(value, "ndim", 0) > 0:
            found[id(value)] = value.size * value.dtype.itemsize


def _closed(values: Sequence[Any] | Any) -> list[Any]:
    """Return the jaxprs among parameters with their constants still attached."""
    found = []
    for value in values:
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                found.append(item)
    return found
