"""Lengths and numbers fitted to traces: what was computed comes back, at every size."""

import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.compile.padding.sizes import Length, Number, Observed, number_value

NEAR = Observed([{"n": 64, "m": 9}, {"n": 63, "m": 9}, {"n": 60, "m": 9}, {"n": 64, "m": 8},
                 {"n": 64, "m": 7}, {"n": 63, "m": 8}])  # fmt: skip
FORMULAS = {
    "n": lambda n, m: n,
    "n + m": None,
    "1/n": lambda n, m: 1 / n,
    "1/(n m)": lambda n, m: 1 / (n * m),
    "n/m": lambda n, m: n / m,
    "1/sqrt n": lambda n, m: 1 / math.sqrt(n),
    "sqrt(n)/8": lambda n, m: math.sqrt(n) / 8,
    "0.37 n": lambda n, m: 0.37 * n,
    "n - 1": lambda n, m: n - 1,
    "1/(n - 1)": lambda n, m: 1 / (n - 1),
    "sqrt(n + 2)": lambda n, m: math.sqrt(n + 2),
    "1/sqrt(2 n + 3)": lambda n, m: 1 / math.sqrt(2 * n + 3),
    "n / 3 + 1 / 4": lambda n, m: n / 3 + 0.25,
    "n**2": lambda n, m: n * n,
    "1/n**2": lambda n, m: 1 / n**2,
    "log n": lambda n, m: 0.7 * math.log(n),
    "sqrt n / m": lambda n, m: math.sqrt(n) / m,
}


@pytest.mark.parametrize("name", [name for name, fn in FORMULAS.items() if fn])
def test_numbers_come_back(name):
    fn, dtype = FORMULAS[name], np.dtype("float32")
    number = NEAR.number([dtype.type(fn(**s)) for s in NEAR.sizes], dtype)
    assert number is not None
    for n in (2, 3, 17, 64):
        for m in (2, 9):
            got = number_value(number, {"n": jnp.int32(n), "m": jnp.int32(m)}, dtype)
            want = fn(n, m)
            # the free factor and each of three operations round once: 4 * 2**-24
            assert abs(float(got) - want) <= 4 * 2**-23 * abs(want), (number, n, m)


def test_numbers_without_a_formula():
    f32 = np.dtype("float32")
    for fn in (lambda n, m: math.sin(n), lambda n, m: n + m, lambda n, m: math.exp(n / 9),
               lambda n, m: n % 2 + 1.0, lambda n, m: 0.0 * n, lambda n, m: math.inf):  # fmt: skip
        assert NEAR.number([f32.type(fn(**s)) for s in NEAR.sizes], f32) is None


def test_numbers_that_two_formulas_fit():
    """In bfloat16 the traces may not tell a power from a line: there is no choice."""
    bf16 = np.dtype(ml_dtypes.bfloat16)
    near = Observed([{"n": 256}, {"n": 255}, {"n": 254}])
    values = [bf16.type(v) for v in (1.40625, 1.3984375, 1.3984375)]
    assert near.number(values, bf16) is None
    assert len([c for c in near._scaled(list(map(float, values)))
                if near._fits(c, values, bf16)]) > 1  # fmt: skip


@given(st.integers(-9, 9).filter(bool), st.integers(-50, 50))
@settings(max_examples=50, deadline=None)
def test_lines_come_back(scale, offset):
    length = NEAR.length([scale * s["n"] + offset for s in NEAR.sizes])
    assert length == Length(scale, ("n",), offset)
    assert length.at({"n": 5}) == scale * 5 + offset


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_products_come_back(scale, a, b):
    length = NEAR.length([scale * s["n"] ** a * s["m"] ** b for s in NEAR.sizes])
    assert length is not None
    assert length.at({"n": 5, "m": 2}) == scale * 5**a * 2**b


def test_lengths_that_are_none():
    assert NEAR.length([7] * 6) == 7
    assert NEAR.length([s["n"] // 2 for s in NEAR.sizes]) is None
    assert NEAR.length([s["n"] + s["m"] for s in NEAR.sizes]) is None
    assert NEAR.length([64, 64, 60, 64, 64, 64]) is None


def test_lengths():
    length = Length(6, ("n",), -3)
    assert str(length) == "6*n - 3"
    assert (length.times(2), length.over(3)) == (Length(12, ("n",), -6), Length(2, ("n",), -1))
    assert length.over(2) is None
    assert str(Length(1, ("n", "m"))) == "n*m"
    assert str(Number((("n", -0.5),), 2.0, 0.0, "")) == "2*n**-0.5"
    assert str(Number((("n", 1.0),), 1.0, -1.0, "1/")) == "1/(n - 1)"
