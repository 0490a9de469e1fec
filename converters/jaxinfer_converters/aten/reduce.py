"""Reductions over dims: sums, means, products, extremes, variances, norms, truth values.

Formulas are those of https://docs.pytorch.org/docs/stable/torch.html#reduction-ops. Half
types are reduced in float32 and rounded once; integers are summed in int64 as narrowed. An
empty list of dims means all of them, except for ``any.dims`` and ``all.dims``. Reductions
that torch decomposes into these (``nanmean``, ``linalg_matrix_norm``) are not here.
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
from jaxinfer_converters.aten._common import (
    Array,
    Number,
    acc_dtype,
    binary,
    canonical_dim,
    canonical_dims,
    cast,
    category,
    in_float32,
    prod,
    promote_float,
    rule,
)

Dims = Sequence[int] | int | None


def _sum_input(x: Array, dtype: Any) -> Array:
    """Bring ``x`` to the dtype in which torch sums it (before float32 for half types)."""
    if dtype is None:
        dtype = dtypes.canonical("int64") if category(x.dtype) < 2 else x.dtype
    return cast(x, dtype)


@rule("aten.sum.dim_IntList")
def sum_dims(x: Array, dim: Dims, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Σ x over dim."""
    axes = canonical_dims(dim, x.ndim)
    return in_float32(lambda x: jnp.sum(x, axes, keepdims=keepdim), _sum_input(x, dtype))


@rule("aten.sum.default")
def sum_all(x: Array, *, dtype: Any = None) -> Array:
    """Σ x."""
    return sum_dims(x, None, dtype=dtype)


@rule("aten.nansum.default")
def nansum(x: Array, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Σ x over dim with NaN as 0."""
    if category(x.dtype) >= 2:
        x = jnp.where(jnp.isnan(x), jnp.zeros_like(x), x)
    return sum_dims(x, dim, keepdim, dtype=dtype)


@rule("aten.mean.dim")
def mean_dims(x: Array, dim: Dims, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Σ x / n over dim."""
    axes = canonical_dims(dim, x.ndim)
    x = x if dtype is None else cast(x, dtype)
    return in_float32(lambda x: jnp.mean(x, axes, keepdims=keepdim), x)


@rule("aten.mean.default")
def mean_all(x: Array, *, dtype: Any = None) -> Array:
    """Σ x / n."""
    return mean_dims(x, None, dtype=dtype)


@rule("aten.prod.default")
def prod_all(x: Array, *, dtype: Any = None) -> Array:
    """Π x."""
    return in_float32(jnp.prod, _sum_input(x, dtype))


@rule("aten.prod.dim_int")
def prod_dim(x: Array, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Π x over dim."""
    axes = canonical_dims(dim, x.ndim)
    return in_float32(lambda x: jnp.prod(x, axes, keepdims=keepdim), _sum_input(x, dtype))


@rule("aten.amax.default")
def amax(x: Array, dim: Dims = (), keepdim: bool = False) -> Array:
    """Max x over dim; NaN wins."""
    return jnp.max(x, canonical_dims(dim, x.ndim), keepdims=keepdim)


@rule("aten.amin.default")
def amin(x: Array, dim: Dims = (), keepdim: bool = False) -> Array:
    """Min x over dim; NaN wins."""
    return jnp.min(x, canonical_dims(dim, x.ndim), keepdims=keepdim)


@rule("aten.aminmax.default")
def aminmax(x: Array, *, dim: int | None = None, keepdim: bool = False) -> tuple[Array, Array]:
    """(amin, amax) over dim."""
    dims = () if dim is None else (dim,)
    return amin(x, dims, keepdim), amax(x, dims, keepdim)


rule("aten.max.default")(lambda x: jnp.max(x))
rule("aten.min.default")(lambda x: jnp.min(x))
binary(jnp.maximum, "aten.max.other")
binary(jnp.minimum, "aten.min.other")


def _arg(pick: Callable[..., Array], x: Array, dim: int | None, keepdim: bool) -> Array:
    """First index of the extreme over dim (over the flattened tensor for None)."""
    index = dtypes.canonical("int64")
    if x.ndim == 0:
        return jnp.zeros((), index)
    axis = None if dim is None else canonical_dim(dim, x.ndim)
    return pick(x, axis, keepdims=keepdim).astype(index)


@rule("aten.argmax.default")
def argmax(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """argmax x over dim; the first of equals, NaN wins."""
    return _arg(jnp.argmax, x, dim, keepdim)


@rule("aten.argmin.default")
def argmin(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """argmin x over dim; the first of equals, NaN wins."""
    return _arg(jnp.argmin, x, dim, keepdim)


@rule("aten.max.dim")
def max_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """(max, argmax) over dim."""
    return amax(x, (dim,), keepdim), _arg(jnp.argmax, x, dim, keepdim)


@rule("aten.min.dim")
def min_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """(min, argmin) over dim."""
    return amin(x, (dim,), keepdim), _arg(jnp.argmin, x, dim, keepdim)


def _truth(reduce: Callable[..., Array], x: Array, axes: Any, keepdim: bool) -> Array:
    """Reduce x != 0; uint8 gives uint8, all else bool."""
    out = reduce(cast(x, "bool"), axes, keepdims=keepdim)
    return out.astype(x.dtype) if x.dtype == jnp.uint8 else out


def _truths(name: str, reduce: Callable[..., Array]) -> None:
    """Register default, dim and dims of ``any`` or ``all``."""

    def over(x: Array, dim: Any = None, keepdim: bool = False) -> Array:
        axes = tuple(range(x.ndim)) if dim is None else ()
        axes = canonical_dims(dim, x.ndim) if dim not in (None, [], ()) else axes
        return _truth(reduce, x, axes, keepdim)

    rule(f"aten.{name}.default")(lambda x: over(x))
    rule(f"aten.{name}.dim", f"aten.{name}.dims")(over)


_truths("any", jnp.any)
_truths("all", jnp.all)


@rule("aten._is_all_true.default")
def is_all_true(self: Array) -> Array:
    """∀ i self[i], of a bool tensor; what ``torch._check`` of a tensor asks."""
    return jnp.all(self)


@rule("aten._is_any_true.default")
def is_any_true(self: Array) -> Array:
    """∃ i self[i], of a bool tensor."""
    return jnp.any(self)


def _var_mean(x: Array, dim: Dims, correction: Any, keepdim: bool) -> tuple[Array, Array]:
    """(Σ |x - mean|² / max(n - correction, 0), mean), in the accumulation dtype."""
    axes = canonical_dims(dim, x.ndim)
    x = cast(x, acc_dtype(x.dtype))
    n = prod([x.shape[axis] for axis in axes])
    mean = jnp.mean(x, axes, keepdims=True)
    off = x - mean
    square = lax.square(lax.abs(off)) if category(x.dtype) == 3 else lax.square(off)
    divisor = max(n - (1 if correction is None else correction), 0)
    var = jnp.sum(square, axes, keepdims=keepdim) / divisor
    return var, mean if keepdim else lax.squeeze(mean, axes)


def _real(dtype: Any) -> np.dtype:
    return np.dtype(jnp.finfo(dtype).dtype)


@rule("aten.var.correction")
def var(x: Array, dim: Dims = None, *, correction: Any = None, keepdim: bool = False) -> Array:
    """Σ |x - mean|² / (n - correction); correction is 1 if None."""
    return cast(_var_mean(x, dim, correction, keepdim)[0], _real(x.dtype))


@rule("aten.std.correction")
def std(x: Array, dim: Dims = None, *, correction: Any = None, keepdim: bool = False) -> Array:
    """√var."""
    return cast(lax.sqrt(_var_mean(x, dim, correction, keepdim)[0]), _real(x.dtype))


@rule("aten.var_mean.correction")
def var_mean(
    x: Array, dim: Dims = None, *, correction: Any = None, keepdim: bool = False
) -> tuple[Array, Array]:
    """(var, mean)."""
    variance, mean = _var_mean(x, dim, correction, keepdim)
    return cast(variance, _real(x.dtype)), cast(mean, x.dtype)


@rule("aten.std_mean.correction")
def std_mean(
    x: Array, dim: Dims = None, *, correction: Any = None, keepdim: bool = False
) -> tuple[Array, Array]:
    """(std, mean)."""
    variance, mean = _var_mean(x, dim, correction, keepdim)
    return cast(lax.sqrt(variance), _real(x.dtype)), cast(mean, x.dtype)


def _unbiased(name: str, fn: Callable[..., Any]) -> None:
    """Register the overloads of var and std that take ``unbiased`` instead of correction."""

    def default(x: Array, unbiased: bool = True) -> Any:
        return fn(x, correction=int(unbiased))

    def dims(x: Array, dim: Dims, unbiased: bool = True, keepdim: bool = False) -> Any:
        return fn(x, dim, correction=int(unbiased), keepdim=keepdim)

    rule(f"aten.{name}.default")(default)
    rule(f"aten.{name}.dim")(dims)


for _name, _fn in (("var", var), ("std", std), ("var_mean", var_mean), ("std_mean", std_mean)):
    _unbiased(_name, _fn)


@rule("aten.logsumexp.default")
def logsumexp(x: Array, dim: Dims, keepdim: bool = False) -> Array:
    """log Σ exp x over dim, shifted by the maximum."""
    (x,) = promote_float(x)
    axes = canonical_dims(dim, x.ndim)
    return in_float32(lambda x: jax.nn.logsumexp(x, axes, keepdims=keepdim), x)


def p_norm(x: Array, p: Number, axes: Any, keepdim: bool = False) -> Array:
    """(Σ |x|^p)^(1/p); p = ±inf: the extreme of |x|; p = 0: how many x are not zero.

    The gradient of the 2-norm at zero is zero, as in torch.
    """
    if p == 0:
        count = jnp.sum(x != 0, axes, keepdims=keepdim)
        return count.astype(_real(x.dtype))
    magnitude = lax.abs(x)
    if p in (math.inf, -math.inf):
        return (jnp.max if p == math.inf else jnp.min)(magnitude, axes, keepdims=keepdim)
    if p == 1:
        return jnp.sum(magnitude, axes, keepdims=keepdim)
    if p == 2:
        square = jnp.sum(lax.square(magnitude), axes, keepdims=keepdim)
        zero = square == 0
        return jnp.where(zero, 0, lax.sqrt(jnp.where(zero, 1, square)))
    return jnp.sum(magnitude**p, axes, keepdims=keepdim) ** (1 / p)


@rule("aten.linalg_vector_norm.default")
def linalg_vector_norm(
    x: Array, ord: Number = 2, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    """(Σ |x|^ord)^(1/ord) over dim."""
    x = x if dtype is None else cast(x, dtype)
    out = p_norm(cast(x, acc_dtype(x.dtype)), ord, canonical_dims(dim, x.ndim), keepdim)
    return cast(out, _real(x.dtype))


def _norm(
    x: Array, p: Number | None, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    """(Σ |x|^p)^(1/p) over dim; p is 2 if None."""
    return linalg_vector_norm(x, 2 if p is None else p, dim, keepdim, dtype=dtype)


rule("aten.norm.Scalar")(lambda x, p=2: _norm(x, p))
rule("aten.norm.ScalarOpt_dtype")(lambda x, p, *, dtype: _norm(x, p, dtype=dtype))
rule("aten.norm.ScalarOpt_dim", "aten.norm.ScalarOpt_dim_dtype")(_norm)


@rule("aten.dist.default")
def dist(x: Array, y: Array, p: Number = 2) -> Array:
    """p-norm of all of x - y, broadcast."""
    return linalg_vector_norm(x - y, p)


@rule("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def count_nonzero(x: Array, dim: Dims = None) -> Array:
    """Σ (x ≠ 0) over dim."""
    return sum_dims(cast(x, "bool"), dim)


@rule("aten.hash_tensor.default")
def hash_tensor(x: Array, dim: Dims = (), *, keepdim: bool = False, mode: int = 0) -> Array:
    """Exclusive or over dim of the bits of x as int64; floats (as float64) need x64."""
    del mode  # torch has one
    dtype = dtypes.canonical("uint64")
    if category(x.dtype) > 1 and dtype.itemsize < 8:
        raise NotImplementedError(
            "hash_tensor of floats is that of their float64 bits, which do not exist with 64-bit "
            "types off; turn them on (jax.config.update('jax_enable_x64', True))"
        )
    if category(x.dtype) > 1:
        bits = lax.bitcast_convert_type(cast(x, "float64"), dtype)
    else:
        bits = cast(x, dtypes.canonical("int64")).astype(dtype)
    axes = canonical_dims(dim, x.ndim)
    out = lax.reduce(bits, np.zeros((), dtype)[()], lax.bitwise_xor, axes)
    return jnp.expand_dims(out, axes) if keepdim else out
