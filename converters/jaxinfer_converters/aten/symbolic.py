"""Sizes and assertions: Python integers in the graph (``sym_size``, ``operator.add``).

Sizes are static in JAX, so these rules compute with plain integers while tracing. Assertions
on sizes are checked then (``ValueError``); assertions on the values of tensors cannot be
checked while tracing, and do nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import Array, canonical_dim, is_array, prod, rule

for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "abs", "pow",
              "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_",
              "lshift", "rshift"):  # fmt: skip
    rule(f"operator.{_name}")(getattr(operator, _name))

for _name in ("floor", "ceil", "trunc"):
    rule(f"math.{_name}")(getattr(math, _name))

for _name in ("sqrt", "cos", "cosh", "sin", "sinh", "tan", "tanh", "asin", "acos", "atan", "log2"):
    rule(f"math.{_name}", f"torch._sym_{_name}")(getattr(math, _name))

rule("torch.sym_not")(operator.not_)
rule("torch.sym_float")(float)
rule("torch.sym_int")(int)


@rule("operator.getitem")
def getitem(values: Any, index: int) -> Any:
    """values[index]: one result of an operator with several."""
    return values[index]


def _wider(value: Any, a: Any, b: Any) -> Any:
    return float(value) if isinstance(a, float) or isinstance(b, float) else value


@rule("torch.sym_max")
def sym_max(a: Any, b: Any) -> Any:
    """The larger; a float if either is one."""
    return _wider(max(a, b), a, b)


@rule("torch.sym_min")
def sym_min(a: Any, b: Any) -> Any:
    """The smaller; a float if either is one."""
    return _wider(min(a, b), a, b)


@rule("torch.sym_ite")
def sym_ite(b: bool, t: Any, f: Any) -> Any:
    """``t`` if ``b`` else ``f``; ``b`` may be read from data."""
    return jnp.where(b, t, f) if is_array(b) else t if b else f


@rule("aten.sym_size.int")
def sym_size(self: Array, dim: int) -> int:
    """x.shape[dim]."""
    return self.shape[canonical_dim(dim, self.ndim)]


@rule("aten.sym_numel.default")
def sym_numel(self: Array) -> int:
    """The number of elements."""
    return prod(self.shape)


@rule("aten.sym_stride.int")
def sym_stride(self: Array, dim: int) -> int:
    """The stride that a contiguous x has along dim."""
    return prod([max(n, 1) for n in self.shape[canonical_dim(dim, self.ndim) + 1 :]])


@rule("aten.sym_storage_offset.default")
def sym_storage_offset(self: Array) -> int:
    """0: arrays have storage of their own."""
    del self
    return 0


@rule("aten.sym_is_contiguous.default")
def sym_is_contiguous(self: Array, memory_format: Any = None) -> bool:
    """True: arrays have no strides."""
    del self, memory_format
    return True


@rule("aten.item.default", "aten._local_scalar_dense.default")
def item(self: Array) -> Array:
    """The one element as a 0-dimensional array; as a size it is data-dependent, and fails."""
    return self.reshape(())


def _require(holds: Any, message: str) -> None:
    if not is_array(holds) and not holds:
        raise ValueError(message)


@rule("aten._assert_scalar.default")
def assert_scalar(self: Any, assert_msg: str) -> None:
    """Raise ``ValueError`` if a static number is false; nothing for a traced array."""
    _require(self, assert_msg)


@rule("aten._assert_async.default", "aten._assert_async.msg")
def assert_async(self: Any, assert_msg: str = "assertion failed") -> None:
    """Raise ``ValueError`` if a static number is false; nothing for a traced array."""
    _require(self, assert_msg)


@rule("aten._linalg_check_errors.default")
def linalg_check_errors(info: Array, api_name: str, *, is_matrix: bool) -> None:
    """Nothing: whether a factorization failed is known from its values, as inf and NaN."""


@rule("aten._functional_assert_async.msg", "aten._functional_assert_scalar.default")
def functional_assert(self: Any, assert_msg: str, dep_token: Array) -> Array:
    """As the assertion; returns the token that keeps its place in the order."""
    _require(self, assert_msg)
    return dep_token


@rule("aten._make_dep_token.default")
def make_dep_token(*, dtype: Any = None) -> Array:
    """A 0-dimensional tensor that orders assertions; its value means nothing."""
    return jnp.zeros((), dtype or jnp.float32)


@rule("aten._assert_tensor_metadata.default")
def assert_tensor_metadata(
    a: Array,
    size: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dtype: Any = None,
) -> None:
    """Raise ``ValueError`` for another shape or kind of dtype; strides are not looked at."""
    del stride
    if size is not None and tuple(size) != a.shape:
        raise ValueError(f"the model asserts size {list(size)}, got {list(a.shape)}")
    if dtype is not None and dtypes.kind(dtype) != dtypes.kind(a.dtype):
        raise ValueError(f"the model asserts dtype {dtype}, got {a.dtype}")


@rule("aten.sym_constrain_range.default", "aten.sym_constrain_range_for_size.default")
def sym_constrain_range(size: Any, *, min: int | None = None, max: int | None = None) -> None:
    """Raise ``ValueError`` if a static size is outside; nothing for a traced array."""
    low, high = min, max
    _require(low is None or size >= low, f"the model requires a size >= {low}, got {size}")
    _require(high is None or size <= high, f"the model requires a size <= {high}, got {size}")
