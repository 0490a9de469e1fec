"""Formats: their facts, codes of values, and two codes in a byte."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy.stats import norm

from jaxinfer.core.errors import InputError
from jaxinfer.numerics import packing
from jaxinfer.numerics.formats import FORMATS, NF4_LEVELS, decode, encode, format_of
from tests.aten.harness import rand

INTEGERS = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}
FLOATS = ("float8_e4m3fn", "float8_e5m2")


def test_every_format_is_tested():
    assert set(FORMATS) == {*INTEGERS, *FLOATS, "nf4"}


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_facts(name):
    fmt, (low, high) = FORMATS[name], INTEGERS[name]
    info = ml_dtypes.iinfo(name)
    assert (fmt.low, fmt.high) == (low, high) == (info.min, info.max)
    assert fmt.bits == info.bits
    assert fmt.bound == (None if low == 0 else high)
    assert np.iinfo(fmt.storage).bits == 8


@pytest.mark.parametrize("name", FLOATS)
def test_float_facts(name):
    fmt = FORMATS[name]
    info = ml_dtypes.finfo(name)
    assert (fmt.low, fmt.high, fmt.bits) == (float(info.min), float(info.max), 8)
    assert fmt.storage == name


def test_nf4_levels_are_quantiles():
    """QLoRA's own recipe: quantiles of the normal distribution, 8 below zero and 9 above."""
    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort([*above, 0.0, *below]) / above.max()
    np.testing.assert_allclose(NF4_LEVELS, levels, atol=1e-6)  # printed in float32 there
    assert 0.0 in NF4_LEVELS


def test_an_unknown_format_names_near_misses():
    with pytest.raises(InputError, match=r"got 'int9'; did you mean int8"):
        format_of("int9")
    with pytest.raises(InputError, match="FORMATS"):
        format_of("ternary")


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("zero", [None, 3])
def test_integers_round_to_even_and_saturate(name, zero):
    fmt = FORMATS[name]
    values = np.array([-1e9, -300, -7.5, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 7.5, 300, 1e9], np.float32)
    low = fmt.low if zero is not None or fmt.bound is None else -fmt.bound
    want = np.clip(np.round(values.astype(np.float64)) + (zero or 0), low, fmt.high)
    got = encode(values, fmt, None if zero is None else jnp.int8(zero))
    assert got.dtype == fmt.storage
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(decode(got, fmt), want)


@pytest.mark.parametrize("name", FLOATS)
def test_floats_round_as_ml_dtypes_and_saturate(name):
    fmt = FORMATS[name]
    values = np.concatenate([rand(1001) * 2.0**k for k in range(-12, 9)]).astype(np.float32)
    values = np.clip(values, fmt.low, fmt.high)
    want = values.astype(fmt.storage).astype(np.float32)
    np.testing.assert_array_equal(decode(encode(values, fmt), fmt), want)
    beyond = np.array([1e9, fmt.high * 1.2, -np.inf, -1e30], np.float32)
    want = [fmt.high, fmt.high, fmt.low, fmt.low]
    np.testing.assert_array_equal(decode(encode(beyond, fmt), fmt), want)


def test_codebook_takes_the_nearest_level():
    fmt = FORMATS["nf4"]
    values = np.linspace(-1.2, 1.2, 4001).astype(np.float32)
    distance = np.abs(values.astype(np.float64)[:, None] - np.array(NF4_LEVELS))
    codes = np.asarray(encode(values, fmt))
    got = distance[np.arange(4001), codes]
    np.testing.assert_allclose(got, distance.min(1), rtol=0, atol=1e-7)  # ties in float32
    np.testing.assert_array_equal(encode(decode(np.arange(16), fmt), fmt), np.arange(16))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((0,), 0), ((1,), 0), ((7,), -1), ((8,), 0), ((3, 5), 0), ((3, 5), -1), ((2, 0, 3), 1),
     ((2, 3, 4, 5), 1), ((2, 3, 4, 5), -2), ((1, 2, 3, 4, 5), 0)],
)  # fmt: skip
def test_packing_is_undone(shape, axis, signed):
    low, dtype = (-8, np.int8) if signed else (0, np.uint8)
    codes = np.random.default_rng(0).integers(low, low + 16, shape).astype(dtype)
    packed = packing.pack(codes, axis)
    half = list(shape)
    half[axis] = -(-shape[axis] // 2)
    assert (packed.shape, packed.dtype) == (tuple(half), np.uint8)
    even, odd = (np.moveaxis(codes, axis, 0)[start::2].astype(int) & 15 for start in (0, 1))
    want = even.copy()
    want[: len(odd)] += 16 * odd
    np.testing.assert_array_equal(packed, np.moveaxis(want, 0, axis))
    got = packing.unpack(packed, axis, signed=signed, size=shape[axis])
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, codes)
    np.testing.assert_array_equal(jax.jit(packing.pack, static_argnums=1)(codes, axis), packed)
    whole = packing.unpack(packed, axis, signed=signed)
    assert whole.shape[axis] == 2 * half[axis]


@pytest.mark.parametrize(
    ("sizes", "groups", "want"),
    [
        ((64, 32), (1, 32), 0),  # the contracted axis
        ((64, 32), (64, 1), 1),
        ((64, 32), (2, 32), 0),  # with tiles
        ((9, 32), (1, 32), 0),  # a ninth lost
        ((7, 32), (1, 32), 1),  # a seventh is too much
        ((7, 31), (1, 31), 0),  # unless nothing else is left
        ((9, 31), (3, 31), None),  # a tile of 3 cannot be padded to an even number
        ((1, 1), (1, 1), None),
        ((), (), None),
        ((6, 8, 4), (1, 1, 4), 1),
    ],
)
def test_best_axis(sizes, groups, want):
    assert packing.best_axis(sizes, groups) == want
