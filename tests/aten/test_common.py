"""The dtype rules that all families share, against torch's own."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core import dtypes
from jaxinfer_converters.aten import _common

NAMES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
         "float64", "complex64")  # fmt: skip
TENSORS = [(name, shape) for name in NAMES for shape in ((2,), ())]
NUMBERS = [True, 3, 2.5, 1j]


def both(torch, item):
    """An operand for torch, and the same one as JAX holds it."""
    if not isinstance(item, tuple):
        return item, item
    name, shape = item
    return torch.ones(shape, dtype=getattr(torch, name)), jnp.ones(shape, dtypes.canonical(name))


def narrowed(torch, dtype) -> str:
    if dtype == torch.complex32:  # JAX has no complex half type
        return "complex64"
    return dtypes.canonical(str(dtype).removeprefix("torch.")).name


def test_result_type_is_torchs():
    torch = pytest.importorskip("torch")
    wrong = []
    for left, right in itertools.product([*TENSORS, *NUMBERS], repeat=2):
        (t_left, j_left), (t_right, j_right) = both(torch, left), both(torch, right)
        want = narrowed(torch, torch.result_type(t_left, t_right))
        if (got := _common.result_type(j_left, j_right).name) != want:
            wrong.append(f"{left} with {right}: torch {want}, here {got}")
    assert not wrong, "\n".join(wrong)


def test_result_type_takes_the_highest_of_three():
    half, flag, whole = jnp.ones(2, jnp.bfloat16), jnp.ones((), bool), jnp.ones((), jnp.int32)
    assert _common.result_type(half, flag, whole).name == "bfloat16"
    assert _common.result_type(flag, whole, 2.5).name == "float32"


@pytest.mark.parametrize(
    ("number", "dtype"), [(2**31, "int32"), (-(2**31) - 1, "int32"), (256, "uint8"), (-1, "uint8")]
)
def test_cast_raises_where_an_integer_would_wrap(number, dtype):
    with pytest.raises(OverflowError, match=f"{number} does not fit {dtype}"):
        _common.cast(number, dtype)


@pytest.mark.parametrize(
    ("number", "dtype"), [(2**31 - 1, "int32"), (255, "uint8"), (-128, "int8")]
)
def test_cast_takes_the_ends_of_the_range(number, dtype):
    out = _common.cast(number, dtype)
    assert (int(out), out.dtype.name) == (number, dtype)


def test_cast_takes_large_integers_to_floats():
    assert float(_common.cast(2**40, "float32")) == 2.0**40


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.add.Scalar", (2**31,)),
        ("aten.mul.Tensor", (2**40,)),
        ("aten.clamp.default", (None, 2**33)),
        ("aten.eq.Scalar", (2**31,)),
        ("aten.fill.Scalar", (2**31,)),
        ("aten.full_like.default", (2**31,)),
        ("aten.remainder.Scalar", (2**31,)),
    ],
)
def test_rules_raise_where_a_literal_would_wrap(op, args):
    from jaxinfer.core.ops import OPS

    with pytest.raises(OverflowError, match="does not fit int32"):
        OPS[op](jnp.ones(2, jnp.int32), *args)


def test_arange_raises_where_its_last_number_would_wrap():
    from jaxinfer_converters.aten.creation import arange_step

    with pytest.raises(OverflowError):
        arange_step(0, 2**32, 2**30, dtype=np.dtype("int32"))
