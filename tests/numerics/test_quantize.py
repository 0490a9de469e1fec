"""Quantization against the definition, tile by tile, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.numerics.formats import FORMATS, NF4_LEVELS
from jaxinfer.numerics.quantize import (
    absmax_scale,
    minmax_scale,
    mse_scale,
    nonfinite,
    quantize,
)
from tests.aten.harness import rand

SYMMETRIC = [name for name in FORMATS if FORMATS[name].bound is not None]
# shape, axes, tiles
CASES = [
    ((), (), None),
    ((7,), (0,), None),
    ((1,), (0,), None),
    ((0,), (0,), None),
    ((0, 3), (0,), {0: 4}),
    ((3, 0), (0,), {0: 2}),
    ((7, 5), (0,), None),
    ((7, 5), (-1,), {-1: 2}),
    ((7, 5), (), None),
    ((67, 3), (0,), {0: 32}),
    ((64, 6), (0, 1), {0: 16}),
    ((13, 4), (0,), {0: 100}),
    ((3, 3, 1, 8), (0, 1, 2), None),
    ((2, 5, 11), (1, 2), {2: 3, 1: 2}),
    ((2, 3, 4, 5), (-1, 1), None),
    ((2, 3, 1, 5, 7), (4, 3), {3: 3}),
]
IDS = [f"{shape}-{axes}-{tiles}" for shape, axes, tiles in CASES]


def tiles_of(shape, axes, tiles):
    """Yield (index of the scale, slices of the tile) by loops."""
    rank = len(shape)
    runs = {axis % rank: size for axis, size in (tiles or {}).items()}
    ranges = []
    for axis, size in enumerate(shape):
        if axis not in {a % rank for a in axes}:
            ranges.append([slice(i, i + 1) for i in range(size)])
        else:
            run = runs.get(axis, size) or 1
            ranges.append([slice(i, i + run) for i in range(0, max(size, 1), run)])
    for index in itertools.product(*(range(len(r)) for r in ranges)):
        yield index, tuple(r[i] for r, i in zip(ranges, index, strict=True))


def weights(shape, seed=0):
    """Rows of very different size."""
    x = rand(*shape, seed=seed) if shape else np.asarray(rand(1, seed=seed))[0]
    grow = np.linspace(-3, 3, shape[-1] if shape else 1)
    return np.asarray(x * (10**grow if shape else 1), np.float32)


@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.parametrize(("shape", "axes", "tiles"), CASES, ids=IDS)
def test_absmax(name, shape, axes, tiles):
    x, fmt = weights(shape), FORMATS[name]
    q = quantize(x, name, axes=axes, tiles=tiles)
    q.validate()
    assert (q.shape, q.ndim, q.dtype, q.zero_point) == (shape, len(shape), np.float32, None)
    scale, zero = absmax_scale(x, name, axes=axes, tiles=tiles)
    assert zero is None
    np.testing.assert_array_equal(scale, q.scale)
    got = np.asarray(q.materialize()).astype(np.float64)
    assert got.shape == shape
    count = 0
    for index, box in tiles_of(shape, axes, tiles):
        part = x[box].astype(np.float64)
        want = np.abs(part).max(initial=0) / fmt.bound or 1.0
        assert float(scale[index]) == pytest.approx(want, rel=3e-7)
        _check_error(fmt, part, got[box], float(scale[index]))
        count += 1
    assert count == scale.size


def _check_error(fmt, want, got, scale):
    error = np.abs(got - want)
    if fmt.kind == "integer":  # float32 rounds x / scale and the product
        assert (error <= scale * (0.5 + 4 * fmt.high * 2**-24)).all()
    elif fmt.kind == "float":
        info = jnp.finfo(fmt.storage)
        assert (error <= np.abs(want) * float(info.eps) / 2 * 1.001 +
                scale * float(info.smallest_subnormal) / 2).all()  # fmt: skip
    else:
        distance = np.abs(want[..., None] / scale - np.array(NF4_LEVELS)).min(-1)
        np.testing.assert_allclose(error / scale, distance, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "shift"), [("int8", 0), ("uint8", 2), ("int4", -2), ("uint4", 0)])
@pytest.mark.parametrize(("shape", "axes", "tiles"), CASES, ids=IDS)
def test_minmax(name, shape, axes, tiles, shift):
    fmt = FORMATS[name]
    x = weights(shape)
    x = (x + shift * np.abs(x).max(initial=0)).astype(np.float32)  # 0 is beyond the values
    q = quantize(x, name, axes=axes, tiles=tiles, symmetric=False)
    q.validate()
    scale, zero = minmax_scale(x, name, axes=axes, tiles=tiles)
    np.testing.assert_array_equal(scale, q.scale)
    np.testing.assert_array_equal(zero, q.zero_point)
    got = np.asarray(q.materialize()).astype(np.float64)
    for index, box in tiles_of(shape, axes, tiles):
        part = x[box].astype(np.float64)
        low, high = part.min(initial=0), part.max(initial=0)
        want = (high - low) / (fmt.high - fmt.low) or 1.0
        assert float(scale[index]) == pytest.approx(want, rel=5e-7)
        assert abs(int(zero[index]) - (fmt.low - low / want)) <= 0.5 + 1e-4
        # float32 may also round the zero point the other way next to a half
        bound = float(scale[index]) * (0.5 + 8 * 256 * 2**-24)
        assert (np.abs(got[box] - part) <= bound).all()


def test_the_symmetric_range_is_used_to_its_ends():
    for name, bound in (("int8", 127), ("int4", 7)):
        codes = quantize(np.array([1.0, -1.0, 0.0]), name, axes=(0,)).unpacked().codes()
        assert codes.tolist() == [bound, -bound, 0]


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_exact_zeros(name):
    x = weights((4, 6))
    x[2] = 0
    q = quantize(x, name, axes=(1,))
    assert not np.asarray(q.materialize())[2].any()
    assert np.asarray(q.materialize())[0].any()
    assert q.scale[2, 0] == 1
    x[:] = rand(4, 6)
    x[:, ::2] = 0
    assert not np.asarray(quantize(x, name, axes=(0, 1)).materialize())[:, ::2].any()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1e-42, 1e-38, 3e38])
def test_extreme_sizes(name, size):
    x = np.array([[size, -size, size / 2, 0]], np.float32)
    q = quantize(x, name, axes=(1,))
    got = np.asarray(q.materialize()).astype(np.float64)
    assert np.isfinite(got).all()
    kind, tiny = FORMATS[name].kind, float(np.finfo(np.float32).tiny)
    step = 0.51 if kind == "integer" else 0.16
    # 2**-4 or 2**-3 of the value for floats; numbers below tiny are zero on CPUs
    allowed = size * 2**-3 if kind == "float" else step * float(q.scale[0, 0])
    assert np.abs(got - x).max() <= max(allowed, tiny)


def test_float8_saturates_where_the_scale_is_given():
    one = jnp.ones((1,))
    q = quantize(np.array([1e4, -1e4, 3.0]), "float8_e4m3fn", axes=(0,), scale=one)
    assert q.materialize().tolist() == [448, -448, 3]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_statistics_of_halves_are_float32(dtype):
    x = jnp.asarray(rand(33, 5), dtype)
    q = quantize(x, "int8", axes=(0,))
    assert (q.scale.dtype, q.dtype, q.materialize().dtype) == (np.float32, x.dtype, x.dtype)
    same = quantize(x.astype(jnp.float32), "int8", axes=(0,), dtype=dtype)
    np.testing.assert_array_equal(q.scale, same.scale)
    np.testing.assert_array_equal(q.qvalue, same.qvalue)
    assert same.dtype == x.dtype


def test_float64_is_kept():
    with x64_scope():
        x = np.random.default_rng(0).normal(size=(9, 4))
        q = quantize(x, "int8", axes=(0,))
        assert q.scale.dtype == q.materialize().dtype == np.float64
        np.testing.assert_allclose(q.scale[0], np.abs(x).max(0) / 127, rtol=1e-15)


def test_given_scales():
    x = rand(8, 6)
    scale, zero = minmax_scale(x, "uint4", axes=(0,), tiles={0: 4})
    half = scale.astype(jnp.bfloat16)
    q = quantize(x, "uint4", axes=(0,), tiles={0: 4}, scale=half, zero_point=zero)
    assert q.scale.dtype == jnp.bfloat16
    # codes are of the rounded scale
    wide = np.repeat(np.asarray(half, np.float32), 4, 0)
    offset = np.repeat(np.asarray(zero, np.float32), 4, 0)
    codes = np.clip(np.round(x / wide) + offset, 0, 15)
    np.testing.assert_array_equal(q.codes(), codes)
    np.testing.assert_allclose(q.materialize(), (codes - offset) * wide, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "symmetric"),
    [("int4", True), ("int4", False), ("uint4", False), ("int8", True), ("nf4", True)],
)
def test_mse_finds_the_best_factor(name, symmetric):
    fmt = FORMATS[name]
    x = weights((67, 5))
    x[3] *= 5  # an outlier in each column
    factors = (1.0, 0.9, 0.7, 0.5, 0.3)
    how = {"axes": (0,), "tiles": {0: 32}}
    scale, zero = mse_scale(x, name, **how, symmetric=symmetric, factors=factors)

    def errors(scale, zero):
        q = quantize(x, name, **how, scale=scale, zero_point=zero)
        squares = (np.asarray(q.materialize(), np.float64) - x) ** 2
        return np.stack([squares[i : i + 32].sum(0) for i in (0, 32, 64)])

    base, _ = (absmax_scale if symmetric else minmax_scale)(x, name, **how)
    tried = []
    for factor in factors:
        shrunk = np.asarray(base) * np.float32(factor)
        offset = None
        if not symmetric:
            low = np.stack([x[i : i + 32].min(0, initial=0) for i in (0, 32, 64)])
            offset = np.clip(np.round(fmt.low - low * factor / shrunk), fmt.low, fmt.high)
            offset = jnp.asarray(offset.astype(fmt.storage))
        tried.append(errors(jnp.asarray(shrunk), offset))
    best = np.min(tried, 0)
    np.testing.assert_allclose(errors(scale, zero), best, rtol=1e-3)
    assert (best < tried[0] * 0.99).any() or name == "int8"  # the search matters


def test_nonfinite_counts():
    x = np.array([[1, np.nan], [np.inf, -np.inf]], np.float32)
    assert int(nonfinite(x)) == 3
    assert int(nonfinite(x[:1, :1])) == 0
    assert int(nonfinite(np.zeros((0, 3)))) == 0
    assert not np.isfinite(np.asarray(quantize(x, "int8", axes=(1,)).materialize())).all()


@pytest.mark.parametrize("name", FORMATS)
def test_jit_vmap_and_eval_shape(name):
    x = np.stack([weights((37, 6), seed) for seed in range(3)])
    how = {"axes": (-2,), "tiles": {-2: 8}}
    fn = lambda x: quantize(x, name, **how)
    one, jitted, mapped = fn(x), jax.jit(fn)(x), jax.vmap(fn)(x)
    for other in (jitted, mapped):
        assert jax.tree.structure(other) == jax.tree.structure(one)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    shapes = jax.eval_shape(fn, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert (shapes.shape, shapes.dtype, shapes.nbytes) == (x.shape, x.dtype, one.nbytes)
    for k in range(3):
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a, b[k]), fn(x[k]), one)


@pytest.mark.parametrize("fn", [absmax_scale, mse_scale])
def test_scales_trace(fn):
    x = weights((37, 6))
    scale = lambda x: fn(x, "int4", axes=(0,), tiles={0: 8})[0]
    np.testing.assert_array_equal(jax.jit(scale)(x), scale(x))
    stacked = jax.vmap(scale)(np.stack([x, 2 * x]))
    np.testing.assert_allclose(stacked, np.stack([scale(x), 2 * scale(x)]), rtol=1e-6)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4), ("nf4", 4), ("uint4", 4)])
@pytest.mark.parametrize(
    ("rows", "dtype"), [(1024, "float32"), (1024, "bfloat16"), (1000, "float32")]
)
def test_bytes_and_memory(name, bits, rows, dtype):
    x = jax.ShapeDtypeStruct((rows, 512), dtype)
    fn = jax.jit(lambda x: quantize(x, name, axes=(0,), tiles={0: 64}))
    memory = fn.lower(x).compile().memory_analysis()
    q = jax.eval_shape(fn, x)
    scales = 16 * 512 * (4 + (q.zero_point is not None))
    assert q.nbytes == 1024 * 512 * bits // 8 + scales
    assert memory.output_size_in_bytes <= q.nbytes + 256
    copies = memory.temp_size_in_bytes / (4 * x.size)
    assert copies < (0.25 if (rows, dtype) == (1024, "float32") else 2.2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: quantize(x, "int9", axes=()), InputError, "did you mean"),
        (lambda x: quantize(x.astype(int), "int8", axes=()), InputTypeError, "array of floats"),
        (lambda x: quantize(x, "int8", axes=(), dtype="int8"), InputTypeError, "float dtype"),
        (lambda x: quantize(x, "int8", axes=(2,)), InputError, "rank 2"),
        (lambda x: quantize(x, "int8", axes=(0, -2)), InputError, "no axis twice"),
        (lambda x: quantize(x, "int8", axes=(0,), tiles={1: 2}), InputError, "one of axes"),
        (lambda x: quantize(x, "int8", axes=(0,), tiles={0: 0}), InputError, "1 or more"),
        (lambda x: quantize(x, "uint4", axes=(0,), symmetric=True), InputError, "or int4"),
        (lambda x: quantize(x, "nf4", axes=(0,), symmetric=False), InputError, "no zero point"),
        (lambda x: absmax_scale(x, "uint8", axes=(0,)), InputError, "no symmetric range"),
        (lambda x: minmax_scale(x, "nf4", axes=(0,)), InputError, "no zero point"),
        (lambda x: mse_scale(x, "int8", axes=(0,), factors=()), InputError, "positive factors"),
        (lambda x: mse_scale(x, "int8", axes=(0,), factors=(0,)), InputError, "positive"),
        (
            lambda x: quantize(x, "int8", axes=(0,), scale=np.ones(3, np.float32)),
            InputError,
            r"required \(1, 3\)",
        ),
        (
            lambda x: quantize(x, "int8", axes=(0,), scale=np.ones((1, 3), int)),
            InputTypeError,
            "scale of floats",
        ),
        (
            lambda x: quantize(x, "uint4", axes=(0,), scale=np.ones((1, 3), np.float32)),
            InputError,
            "required zero_point",
        ),
        (
            lambda x: quantize(
                x,
                "uint4",
                axes=(0,),
                scale=np.ones((1, 3), np.float32),
                zero_point=np.ones((1, 3), np.float32),
            ),
            InputTypeError,
            "integer zero_point",
        ),
        (
            lambda x: quantize(x, "uint4", axes=(0,), zero_point=np.ones((1, 3), int)),
            InputError,
            "required scale",
        ),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call(rand(2, 3))
