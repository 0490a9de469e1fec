"""The programs of the micro-benchmark: products of known cost on the default device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core import dtypes
from jaxinfer.core.array_types import array_rule
from jaxinfer.core.interpret import Interpreter
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.quantize import quantize
from jaxinfer.transforms.schemes import scheme_of

Make = Callable[[], tuple[Callable[..., Any], list[Any]]]
"""Returns a function and its arguments; what it allocates lives as long as its measurement."""


def values(shape: Sequence[int], dtype: str, seed: int = 0) -> Any:
    """Return values on the default device: -127 to 127 of integers, -1 to 1 of floats.

    One random block, repeated: made on the host, where nothing is compiled for it.
    """
    block = np.random.default_rng(seed).uniform(-1, 1, 4099).astype(np.float32)
    if dtype == "int8":
        block = np.rint(block * 127)
    return jnp.asarray(np.resize(block.astype(dtypes.dtype_of(dtype)), shape))


def summed(dtype: str) -> Any:
    """Return the dtype in which products of a dtype are summed."""
    return jnp.int32 if dtype == "int8" else jnp.float32


def matmul(m: int, k: int, n: int, dtype: str, precision: Any = None) -> Make:
    """[m, k] x [k, n], as jaxinfer computes it: int8 to int32, float8 to float32, halves rounded
    once, float32 at the highest precision."""
    narrow = dtype in ("bfloat16", "float16")
    precision = lax.Precision.HIGHEST if dtype == "float32" and precision is None else precision

    def fn(a: Any, b: Any) -> Any:
        numbers = (((1,), (0,)), ((), ()))
        out = lax.dot_general(a, b, numbers, precision, summed(dtype))
        return out.astype(dtype) if narrow else out

    return lambda: (fn, [values((m, k), dtype), values((k, n), dtype, 1)])


def convolution(size: int, channels: int, dtype: str) -> Make:
    """3 x 3, NHWC, stride 1, the channels kept; one image."""

    def fn(x: Any, w: Any) -> Any:
        gpu = dtype == "int8" and jax.default_backend() == "gpu"
        x, w = (x.astype(jnp.float32), w.astype(jnp.float32)) if gpu else (x, w)
        return lax.conv_general_dilated(
            *(x, w, (1, 1), "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST if dtype == "float32" else None,
            preferred_element_type=jnp.int32 if dtype == "int8" and not gpu else None,
        )

    image, kernel = (1, size, size, channels), (3, 3, channels, channels)
    return lambda: (fn, [values(image, dtype), values(kernel, dtype, 1)])


def matvec(k: int, n: int, dtype: str) -> Make:
    """One row; int8 weights are decoded before the product, as weights alone are."""

    def fn(a: Any, b: Any) -> Any:
        precision = lax.Precision.HIGHEST if dtype == "float32" else None
        out = lax.dot_general(
            *(a, b.astype(a.dtype), (((1,), (0,)), ((), ()))),
            *(precision, jnp.float32),
        )
        return out.astype(a.dtype)

    row = "float32" if dtype == "int8" else dtype
    return lambda: (fn, [values((1, k), row), values((k, n), dtype, 1)])


def quantized(m: int, k: int, n: int, level: str) -> Make:
    """[m, k] x [k, n] in float32 with quantized weights, as a quantized model computes it."""
    scheme = scheme_of(level)

    def fn(a: Any, weight: Any) -> Any:
        numbers = (((1,), (0,)), ((), ()))
        dot = lambda a, b: lax.dot_general(a, b, numbers, lax.Precision.HIGHEST)
        return Interpreter(array_rule).call(dot, a, weight)

    def make() -> tuple[Callable[..., Any], list[Any]]:
        tiles = {0: scheme.group} if scheme.group else None
        weight: Any = quantize(values((k, n), "float32", 1), scheme.weights, axes=(0,), tiles=tiles)
        if scheme.activations:
            weight = ActQTensor(weight, None, scheme.activations)
        return fn, [values((m, k), "float32"), weight]

    return make


def copy(count: int) -> Make:
    """Read and write so many float32 values."""
    return lambda: (lambda x: x + 1, [jnp.zeros(count, jnp.float32)])


def total(count: int) -> Make:
    """Read so many float32 values."""
    return lambda: (lambda x: x.reshape(-1, 1024).sum(0), [jnp.zeros(count, jnp.float32)])
