"""Convolutions in other dimension numbers, and values that stay in the order that these give.

    y = T_out^-1( conv( T_x(x), T_w(w) ) )

A ``Moved`` value is an array whose axes are stored in another order than the function has them.
Equations that do not care (elementwise, windows, sums, padding, joining) are evaluated on it as it
is stored, so that transposes are left only where an image enters and leaves such a chain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxinfer.core.array_types import materialize
from jaxinfer.core.interpret import Equation
from jaxinfer.core.table import RuleTable

SPECS = {
    "NHWC": ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
    "NCHW": ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),
}
"""Where batch, channels, height and width are (of kernels: output, input, height, width)."""

_KEPT = (
    *("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count"),
    *("batch_group_count", "precision", "preferred_element_type"),
)


@dataclasses.dataclass(frozen=True)
class Moved:
    """An array that is stored in another order of its axes.

    Attributes:
      value: the array as stored.
      perm: axis of the function's array that each stored axis is.
    """

    value: Any
    perm: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the function's array."""
        return tuple(self.value.shape[self.perm.index(axis)] for axis in range(len(self.perm)))

    @property
    def dtype(self) -> Any:
        """Dtype of both."""
        return self.value.dtype

    def materialize(self) -> Any:
        """Return the function's array."""
        inverse = tuple(self.perm.index(axis) for axis in range(len(self.perm)))
        return lax.transpose(self.value, inverse)


def stored(value: Any, perm: tuple[int, ...]) -> Any:
    """Return a value as it is stored in an order; a scalar as it is."""
    if isinstance(value, Moved) and value.perm == perm:
        return value.value
    array = materialize(value)
    return array if not array.ndim else lax.transpose(array, perm)


def is_arranged(eqn: Any, layout: str) -> bool:
    """Whether a two-dimensional convolution has the dimension numbers of a layout already."""
    numbers = eqn.params["dimension_numbers"]
    found = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    return tuple(map(tuple, found)) == SPECS[layout]


def is_image(eqn: Any) -> bool:
    """Whether an equation is a convolution over two dimensions."""
    return eqn.primitive.name == "conv_general_dilated" and len(eqn.invars[0].aval.shape) == 4


def convolve(equation: Equation, values: Sequence[Any], layout: str) -> list[Any]:
    """Evaluate a convolution in the dimension numbers of a layout."""
    numbers = equation.params["dimension_numbers"]
    lhs, rhs, out = SPECS[layout]
    x, kernel = values
    y = lax.conv_general_dilated(
        stored(x, _order(numbers.lhs_spec, lhs)),
        stored(kernel, _order(numbers.rhs_spec, rhs)),
        dimension_numbers=lax.ConvDimensionNumbers(lhs, rhs, out),
        **{name: equation.params[name] for name in _KEPT},
    )
    return [Moved(y, _order(numbers.out_spec, out))]


def _order(spec: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Return, for each stored axis, the axis that has its meaning."""
    order = [0] * len(spec)
    for own, place in zip(spec, target, strict=True):
        order[place] = own
    return tuple(order)


Mover = Callable[[Equation, Sequence[Any]], "list[Any] | None"]
MOVERS: RuleTable[Mover] = RuleTable("rule of moved images")
"""How a primitive is evaluated with a ``Moved`` value among its operands; None: it is not."""


def _perm(values: Sequence[Any]) -> tuple[int, ...]:
    return next(value.perm for value in values if isinstance(value, Moved))


def _bind(equation: Equation, values: Sequence[Any], **changes: Any) -> list[Any]:
    """Bind a primitive with some other parameters; its context is the caller's."""
    primitive = equation.eqn.primitive
    given = primitive.get_bind_params({**equation.params, **changes})
    out = primitive.bind(*values, **given)
    return list(out) if primitive.multiple_results else [out]


_ELEMENTWISE = (
    *("abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type"),
    *("copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1"),
    *("floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt"),
    *("max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision"),
    *("rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square"),
    *("stop_gradient", "sub", "tan", "tanh", "xor"),
)


@MOVERS.register(*_ELEMENTWISE)
def elementwise(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Each element by itself: operands of one rank (an axis of 1 is repeated), and scalars."""
    perm = _perm(values)
    if any(len(value.shape) not in (len(perm), 0) for value in values):
        return None
    return [Moved(out, perm) for out in _bind(equation, [stored(v, perm) for v in values])]


@MOVERS.register("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or")
def reduction(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Sums over axes; what is left is put in the function's order."""
    (moved,), axes = values, equation.params["axes"]
    if equation.params.get("out_sharding") is not None:
        return None
    (out,) = _bind(equation, [moved.value], axes=tuple(sorted(map(moved.perm.index, axes))))
    kept = [axis for axis in moved.perm if axis not in axes]
    order = tuple(kept.index(axis) for axis in sorted(kept))
    return [out if order == tuple(range(len(order))) else lax.transpose(out, order)]


@MOVERS.register("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def window(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Pooling."""
    (moved,) = values
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    changes = {
        name: tuple(equation.params[name][axis] for axis in moved.perm)
        for name in names
    }  # fmt: skip
    return [Moved(_bind(equation, [moved.value], **changes)[0], moved.perm)]


@MOVERS.register("pad")
def pad(equation: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Padding with a scalar."""
    moved, fill = values
    if not isinstance(moved, Moved):
        return None
    config = tuple(equation.params["padding_config"][axis] for axis in moved.perm)
    out = _bind(equation, [moved.value, materialize(fill)], padding_config=config)
    return [Moved(out[0], moved.perm)]


@MOVERS.register("concatenate")
def concatenate(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Joining along an axis."""
    perm = _perm(values)
    axis = perm.index(equation.params["dimension"])
    out = _bind(equation, [stored(value, perm) for value in values], dimension=axis)
    return [Moved(out[0], perm)]


@MOVERS.register("split")
def split(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Parts along an axis."""
    (moved,), axis = values, equation.params["axis"]
    parts = _bind(equation, [moved.value], axis=moved.perm.index(axis))
    return [Moved(part, moved.perm) for part in parts]


@MOVERS.register("slice")
def cut(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """A part of each axis."""
    (moved,) = values
    changes = {
        name: None if given is None else tuple(given[axis] for axis in moved.perm)
        for name in ("start_indices", "limit_indices", "strides")
        for given in [equation.params[name]]
    }
    return [Moved(_bind(equation, [moved.value], **changes)[0], moved.perm)]


@MOVERS.register("transpose")
def transpose(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Another order for the function, nothing to do for what is stored."""
    (moved,), order = values, equation.params["permutation"]
    return [Moved(moved.value, tuple(tuple(order).index(axis) for axis in moved.perm))]


def is_sharded(shardings: Sequence[Any]) -> bool:
    """Whether a sharding is demanded of any value."""
    return any(isinstance(each, jax.sharding.Sharding) for each in shardings)
