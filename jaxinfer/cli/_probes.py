"""Numerics probes: small computations with known results, run jitted on a device.

Each probe computes with JAX and, apart from that, with numpy in float64 (or by arithmetic that
is exact), and compares every value. Sizes are those at which known faults show:

- jax issue 39103 (jaxlib 0.10.2, CPU): f(x) = vmap(row -> sum((eye(3) @ row)**2))(x) with rows
  [i, 0, 0] must be i**2; wrong from 32,769 rows in float32, and 16,385 in float64.
- jax issue 39352 (jaxlib 0.10.2, CPU): arctan of 50 and more values; depends on the processor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.cli._versions import OTHER_JAXLIB

REPORT = (
    "do not trust results of this device; try another jaxlib, and XLA_FLAGS unset, "
    "and report it at https://github.com/jax-ml/jax/issues"
)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A computation and what it must give.

    Attributes:
      name: what is computed.
      got: computes it with JAX.
      want: computes it otherwise.
      bound: largest |got - want| / max(1, |want|) that is rounding, not a fault.
      advice: what to do if it fails.
    """

    name: str
    got: Callable[[], Any]
    want: Callable[[], np.ndarray]
    bound: float
    advice: str = REPORT


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of one check: ``status`` is ``ok``, ``warn`` or ``fail``."""

    check: str
    status: str
    detail: str
    advice: str = ""


def run(probe: Probe) -> Finding:
    """Run one probe on JAX's present default device."""
    want = np.asarray(probe.want())
    try:
        got = np.asarray(probe.got())
    except RuntimeError as error:  # what XLA raises if it cannot compile or run
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return Finding(probe.name, "fail", f"does not run: {first}", probe.advice)
    if got.shape != want.shape:
        detail = f"gives shape {list(got.shape)}, must be {list(want.shape)}"
        return Finding(probe.name, "fail", detail, probe.advice)
    wide = np.complex128 if np.iscomplexobj(want) else np.float64
    error = np.abs(got.astype(wide) - want.astype(wide)) / np.maximum(1, np.abs(want.astype(wide)))
    wrong = ~(error <= probe.bound)  # NaN is wrong too
    if not wrong.any():
        largest = float(error.max()) if error.size else 0.0
        return Finding(probe.name, "ok", f"{want.size} values, largest error {largest:.1e}")
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    detail = (
        f"{int(wrong.sum())} of {want.size} values are wrong, the first at {list(first)}: "
        f"{got[first]!s}, must be {want[first]!s}"
    )
    return Finding(probe.name, "fail", detail, probe.advice)


def row_norms(n: int, dtype: str) -> Probe:
    """jax issue 39103: row norms of [i, 0, 0] are i**2."""

    def got() -> Any:
        with jax.enable_x64(dtype == "float64"):
            matrix = jnp.eye(3, dtype=dtype)
            x = np.zeros((n, 3), dtype)
            x[:, 0] = np.arange(n)

            def norm(row: Any) -> Any:
                return jnp.sum(jnp.matmul(matrix, row, precision="highest") ** 2)

            return np.asarray(jax.jit(jax.vmap(norm))(x))

    return Probe(
        f"row norms, {dtype}[{n}, 3] (jax#39103)",
        got,
        lambda: np.arange(n, dtype=np.float64) ** 2,
        1e-6 if dtype == "float32" else 1e-12,
        OTHER_JAXLIB,
    )


def arctan(dtype: str, lengths: Sequence[int] = (49, 50, 51, 64, 65, 100, 127, 200)) -> Probe:
    """jax issue 39352: arctan of 50 values and more, one call for each length."""
    inputs = [np.linspace(-5.0, 7.0, n).astype(dtype) for n in lengths]

    def got() -> Any:
        with jax.enable_x64(dtype == "float64"):
            return np.concatenate([np.asarray(jax.jit(jnp.arctan)(x)) for x in inputs])

    want = lambda: np.concatenate([np.arctan(x.astype(np.float64)) for x in inputs])
    name = f"arctan, {dtype}, {min(lengths)} to {max(lengths)} values (jax#39352)"
    return Probe(name, got, want, 1e-6 if dtype == "float32" else 1e-12, OTHER_JAXLIB)


def wrap() -> Probe:
    """int32 arithmetic wraps: (2**31 - 1) + 1, and products modulo 2**32."""
    x = np.array([2**31 - 1, -(2**31), 65536, 123456789], np.int32)
    y = np.array([1, -1, 65536, 987654321], np.int32)

    def want() -> np.ndarray:
        exact = [[int(a) + int(b), int(a) * int(b)] for a, b in zip(x, y, strict=True)]
        return (np.array(exact, object).T.astype(object) + 2**31) % 2**32 - 2**31

    fn = jax.jit(lambda x, y: jnp.stack([x + y, x * y]))
    return Probe("int32 overflow wraps", lambda: fn(x, y), lambda: want().astype(np.int64), 0.0)


def convolution() -> Probe:
    """A strided, padded, grouped convolution, against the sum over taps and channels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 17, 13)).astype(np.float32)
    w = rng.standard_normal((9, 2, 3, 5)).astype(np.float32)

    def got() -> Any:
        conv = lambda x, w: lax.conv_general_dilated(
            x, w, (2, 1), ((1, 1), (2, 2)), feature_group_count=3, precision="highest"
        )
        return jax.jit(conv)(x, w)

    def want() -> np.ndarray:
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (2, 2)))
        out = np.zeros((2, 9, 9, 13))
        for channel in range(9):
            group = padded[:, 2 * (channel // 3) : 2 * (channel // 3) + 2]
            for i in range(3):
                for j in range(5):
                    patch = group[:, :, i : i + 17 : 2, j : j + 13]
                    out[:, channel] += np.einsum("ncij,c->nij", patch, w[channel, :, i, j])
        return out

    return Probe("grouped convolution, float32", got, want, 2e-5)


def softmax() -> Probe:
    """softmax over 1009 values, with large and with equal entries."""
    x = np.random.default_rng(1).standard_normal((7, 1009)).astype(np.float32) * 30
    x[3] = 88.0

    def want() -> np.ndarray:
        e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True).astype(np.float64))
        return e / e.sum(1, keepdims=True)

    return Probe("softmax, float32", lambda: jax.jit(jax.nn.softmax)(x), want, 2e-5)


def reductions() -> Probe:
    """Sum, maximum, cumulative sum and a transposed sum at odd sizes, exact in float32."""
    x = (np.arange(257 * 1031) % 7 - 3).astype(np.float32).reshape(257, 1031)

    def both(x: Any, np_: Any) -> Any:
        parts = (x.sum(0), x.T.sum(0), x.max(1), np_.cumsum(x, 1)[:, -1], x.sum()[None])
        return np_.concatenate(parts)

    return Probe(
        "reductions, float32[257, 1031]",
        lambda: jax.jit(lambda x: both(x, jnp))(x),
        lambda: both(x.astype(np.float64), np),
        0.0,
    )


def bfloat16_sum() -> Probe:
    """Ones summed in bfloat16: 256 if the sum is kept in bfloat16, exact if in float32."""
    x = np.ones((3, 1000), np.float32)

    def got() -> Any:
        half = jnp.asarray(x, jnp.bfloat16)
        fn = jax.jit(
            lambda h: jnp.stack(
                [
                    h.sum(1).astype(jnp.float32),
                    jnp.matmul(h, h[0], preferred_element_type=jnp.float32),
                ]
            )
        )
        return fn(half)

    advice = "bfloat16 sums lose digits here: keep norms and reductions in float32"
    return Probe(
        "bfloat16 sums are kept in float32", got, lambda: np.full((2, 3), 1e3), 0.0, advice
    )


def matmul_precision(multiply: Callable[[Any, Any], Any] | None = None) -> Finding:
    """Say in which precision a float32 matmul is computed by default.

    Errors relative to sum |a||b| are below 1e-6 in float32, about 3e-4 in TF32 (10 bits of
    fraction), and about 3e-3 in bfloat16 (7 bits); more is a fault.
    """
    name = "matmul, float32[257, 129] @ [129, 65]"
    rng = np.random.default_rng(2)
    a = rng.standard_normal((257, 129)).astype(np.float32)
    b = rng.standard_normal((129, 65)).astype(np.float32)
    got = np.asarray((multiply or jax.jit(jnp.matmul))(a, b)).astype(np.float64)
    scale = np.abs(a).astype(np.float64) @ np.abs(b)
    error = float((np.abs(got - a.astype(np.float64) @ b) / scale).max())
    if error < 1e-5:
        return Finding(name, "ok", f"float32, largest error {error:.1e}")
    low = "TF32" if error < 1e-3 else "bfloat16"
    if error < 1e-2:
        return Finding(
            name,
            "warn",
            f"computed in {low} by default, largest error {error:.1e}",
            "for float32: jax.config.update('jax_default_matmul_precision', 'float32'), "
            "or JAX_DEFAULT_MATMUL_PRECISION=float32",
        )
    return Finding(name, "fail", f"wrong numbers, largest error {error:.1e}", REPORT)


def probes() -> list[Probe]:
    """Return all probes."""
    return [
        row_norms(32769, "float32"),
        row_norms(16385, "float64"),
        row_norms(32769, "float64"),
        arctan("float32"),
        arctan("float64"),
        wrap(),
        convolution(),
        softmax(),
        reductions(),
        bfloat16_sum(),
    ]
