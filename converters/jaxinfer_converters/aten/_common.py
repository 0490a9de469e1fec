"""What every family of rules uses: torch's dtype promotion, dims, scalars, precision.

Conventions for rules (see also ``jaxinfer.core.ops``):

* name = operator; arguments in schema order, keywords as in the schema; tensors arrive as JAX
  arrays, sizes as Python integers, dtypes as numpy dtypes already narrowed for x64, devices,
  layouts and memory formats as None or not at all;
* a rule must be traceable, and shape- and dtype-exact: what torch gives, it gives;
* prefer ``lax`` over ``jnp`` where it is as clear: it traces faster and promotes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer.core.ops import add_rule

rule = add_rule

Array = jax.Array
Number = bool | int | float | complex

FLOAT = np.dtype("float32")  # torch's default dtype for Python floats and for int -> float


def is_array(x: Any) -> bool:
    """Return whether ``x`` is an array (a tensor in the graph), not a Python number."""
    return hasattr(x, "dtype") and hasattr(x, "shape")


def category(dtype: Any) -> int:
    """Return 0 bool, 1 integer, 2 float, 3 complex."""
    return ("bool", "integer", "float", "complex").index(dtypes.kind(dtype))


def _number_dtype(x: Number) -> np.dtype:
    if isinstance(x, (bool, np.bool_)):
        return np.dtype("bool")
    if isinstance(x, float):
        return FLOAT
    if isinstance(x, complex):
        return np.dtype("complex64")
    return dtypes.canonical("int64")


def _combine(higher: np.dtype | None, lower: np.dtype | None) -> np.dtype | None:
    """Return the dtype of two priorities together (ATen/native/TypeProperties.cpp)."""
    if higher is None or lower is None:
        return higher if lower is None else lower
    high, low = category(higher), category(lower)
    if high == 3:
        return higher
    if high == 2:
        if low < 3:
            return higher
        return np.dtype("complex128" if higher.itemsize == 8 else "complex64")
    if high == 0 or low >= 2:
        return np.dtype(jnp.promote_types(higher, lower))
    return higher


def result_type(*xs: Any) -> np.dtype:
    """Return torch's result dtype of arrays and Python numbers.

    Arrays with dimensions go before zero-dimensional ones, and those before Python numbers:
    a lower priority counts only if its category (bool < integer < float < complex) is higher.
    Source: PyTorch, ``torch.result_type``.

    >>> result_type(jnp.ones((2,), jnp.float16), jnp.float32(1), 3.0).name
    'float16'
    >>> result_type(jnp.ones((2,), jnp.int32), 2.5).name
    'float32'
    """
    by_priority: list[np.dtype | None] = [None, None, None]
    for x in xs:
        if is_array(x):
            level, dtype = (0 if x.ndim else 1), np.dtype(x.dtype)
        else:
            level, dtype = 2, _number_dtype(x)
        seen = by_priority[level]
        by_priority[level] = dtype if seen is None else np.dtype(jnp.promote_types(seen, dtype))
    dims, zero, wrapped = by_priority
    result = _combine(dims, _combine(zero, wrapped))
    assert result is not None
    return result


def cast(x: Any, dtype: Any) -> Array:
    """Return ``x`` (array or Python number) as an array of ``dtype``.

    Raises:
      OverflowError: a Python integer does not fit an integer ``dtype`` (it would wrap).
    """
    dtype = np.dtype(dtype)
    if is_array(x):
        if x.dtype == dtype:
            return jnp.asarray(x)
        if category(dtype) < 3 and category(x.dtype) == 3:
            x = lax.real(x)
        if dtype == np.dtype("bool"):
            return jnp.asarray(x) != 0
        return lax.convert_element_type(x, dtype)
    if isinstance(x, int) and not isinstance(x, bool) and category(dtype) == 1:
        info = jnp.iinfo(dtype)
        if not info.min <= x <= info.max:
            raise OverflowError(
                f"the number {x} does not fit {dtype.name}, which JAX computes in with 64-bit "
                f"types off; {dtypes.X64_ADVICE}"
            )
    return jnp.asarray(x, dtype)


def promote(*xs: Any) -> list[Array]:
    """Cast arrays and numbers to their common torch result dtype."""
    dtype = result_type(*xs)
    return [cast(x, dtype) for x in xs]


def promote_float(*xs: Any) -> list[Array]:
    """As ``promote``, with integers and bools becoming float32 (``sin``, ``div``)."""
    dtype = result_type(*xs)
    if category(dtype) < 2:
        dtype = FLOAT
    return [cast(x, dtype) for x in xs]


def acc_dtype(dtype: Any) -> np.dtype:
    """Return the dtype in which torch accumulates: float32 for bfloat16 and float16."""
    dtype = np.dtype(dtype)
    return FLOAT if category(dtype) == 2 and dtype.itemsize < 4 else dtype


def in_float32(fn: Callable[..., Array], *xs: Array) -> Array:
    """Compute ``fn`` of half-precision arrays in float32 and round once at the end."""
    dtype = np.dtype(xs[0].dtype)
    return cast(fn(*(cast(x, acc_dtype(dtype)) for x in xs)), dtype)


def canonical_dim(dim: int, ndim: int) -> int:
    """Return a non-negative axis; a scalar has one axis, as in torch.

    Raises:
      IndexError: out of range.
    """
    size = max(ndim, 1)
    if not -size <= dim < size:
        raise IndexError(f"dim {dim} is out of range for {ndim} dimensions")
    return dim % size


def canonical_dims(dims: Any, ndim: int) -> tuple[int, ...]:
    """Return sorted-as-given non-negative axes; None or an empty list means all axes."""
    if dims is None or (isinstance(dims, Sequence) and len(dims) == 0):
        return tuple(range(ndim))
    if isinstance(dims, int):
        dims = (dims,)
    return tuple(canonical_dim(d, ndim) for d in dims) if ndim else ()


def expand_tuple(value: Any, n: int) -> tuple[Any, ...]:
    """Return ``value`` repeated to ``n`` entries if it is one number (kernel sizes, strides)."""
    if isinstance(value, (list, tuple)):
        return tuple(value) * n if len(value) == 1 else tuple(value)
    return (value,) * n


def precision(*xs: Array) -> Any:
    """Return the precision for a matmul or convolution of ``xs``.

    float32 is computed in float32, as torch does by default, unless the user has set
    ``jax_default_matmul_precision``: then that decides.
    """
    if jax.config.jax_default_matmul_precision is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    return lax.Precision.HIGHEST if all(x.dtype.itemsize >= 4 for x in xs) else None


def prod(values: Sequence[int]) -> int:
    """Return the product of integers, 1 for none."""
    return math.prod(values)


def unary(fn: Callable[[Array], Array], *names: str, to_float: bool = False) -> None:
    """Register ``fn`` as an elementwise rule of one tensor.

    ``to_float`` makes integers float32, and computes half types in float32, rounding once.
    """

    def apply(x: Array) -> Array:
        return in_float32(fn, *promote_float(x)) if to_float else fn(x)

    rule(*names)(apply)


def binary(fn: Callable[[Array, Array], Array], *names: str, to_float: bool = False) -> None:
    """Register ``fn`` as an elementwise rule of two operands, promoted and broadcast.

    ``to_float`` makes integers float32, and computes half types in float32, rounding once.
    """

    def apply(x: Any, y: Any) -> Array:
        return in_float32(fn, *promote_float(x, y)) if to_float else fn(*promote(x, y))

    rule(*names)(apply)
