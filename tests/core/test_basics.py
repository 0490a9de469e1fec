"""Rule tables, dtypes, symbolic sizes and arrays: what everything else stands on."""

import jax
import ml_dtypes
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core import dtypes
from jaxinfer.core.arrays import as_array, owned
from jaxinfer.core.errors import InputTypeError, MissingExtraError
from jaxinfer.core.program import find_entry_point
from jaxinfer.core.symbols import bound_text, evaluate, is_name
from jaxinfer.core.table import RuleTable


def test_a_rule_table_refuses_duplicates():
    table = RuleTable("test")
    table.register("a.b.c", "a.b.d")(len)
    with pytest.raises(ValueError, match="exists already"):
        table.register("a.b.c")(max)
    table.register("a.b.c", replace=True)(max)
    assert table["a.b.c"] is max
    assert table.near("a.b.default") == ["a.b.c", "a.b.d"]
    table.unregister("a.b.c")
    assert list(table) == ["a.b.d"]
    with pytest.raises(ValueError, match="at least one name"):
        table.register()


def test_builtin_operators_cannot_be_registered_by_accident():
    with pytest.raises(ValueError, match=r"aten\.add\.Tensor.*replace=True"):
        ji.register("aten.add.Tensor")(lambda x, y: x)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("batch", 5), ("2*batch + 1", 11), ("Mod(seq, 4) - 1", 2), ("seq//2", 3),
        ("Max(seq, 9)", 9), ("-seq", -7), ("batch**2", 25), ("unknown", None), ("1/0", None),
        ("seq//0", None), ("__import__('os')", None), ("batch.real", None), ("(", None),
        ("2**batch**99", None), ("1.5", None), ("[1]*batch", None), ("Max(batch)", None),
    ],
)  # fmt: skip
def test_sizes_are_evaluated_and_nothing_else_is(text, value):
    assert evaluate(text, {"batch": 5, "seq": 7}) == value


def test_symbol_names_and_ranges():
    assert is_name("batch")
    assert not is_name("2*batch")
    assert not is_name(3)
    assert bound_text("n", 3, None) == "n >= 3"


def test_dtypes_narrow_without_wrapping():
    assert dtypes.canonical("int64") == np.int32
    assert dtypes.dtype_of("bfloat16") == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match="unknown dtype 'float99'"):
        dtypes.dtype_of("float99")
    assert dtypes.narrow(np.array([2**31 - 1]), "x").dtype == np.int32
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(OverflowError, match=f"x: int64 value {value} does not fit int32"):
            dtypes.narrow(np.array([0, value]), "x")
    assert dtypes.narrow(np.zeros(0, np.int64), "x").dtype == np.int32
    with jax.enable_x64(True):
        assert dtypes.narrow(np.array([2**40]), "x").dtype == np.int64


@pytest.mark.parametrize("name", sorted(dtypes.NAMES))
def test_every_dtype_has_a_kind(name):
    assert dtypes.kind(dtypes.dtype_of(name)) in ("bool", "integer", "float", "complex")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(3, "int32"), (True, "bool"), (1.5, "float32"), (2j, "complex64"), (np.float16(1), "float16")],
)
def test_numbers_become_arrays(value, dtype):
    assert as_array(value, "x").dtype == dtype


@pytest.mark.parametrize("value", ["a", object(), None, np.array(["a"]), np.array([None])])
def test_what_is_no_array_is_refused(value):
    with pytest.raises(InputTypeError, match="x: required an array"):
        as_array(value, "x")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int32", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (64,), (1024,)])
def test_owned_arrays_share_no_memory(dtype, shape):
    source = np.asarray(np.ones(shape)).astype(dtypes.dtype_of(dtype))
    copy = owned(source)
    assert (copy.shape, copy.dtype) == (shape, source.dtype)
    source[...] = 0
    assert np.asarray(copy).astype(np.float32).min(initial=1) == 1


def test_a_converter_that_is_not_installed():
    with pytest.raises(MissingExtraError, match="no converter named 'nope'"):
        find_entry_point("nope")


def test_host_arrays_are_taken_over_where_this_jax_can():
    from jaxinfer.core._compat import adopter

    structs = [jax.ShapeDtypeStruct((3, 5), np.float32), jax.ShapeDtypeStruct((), np.int32)]
    adopt = adopter(structs)
    assert adopt.__name__ == "adopt"  # "plain": the private function has changed
    arrays = [np.arange(15, dtype=np.float32).reshape(3, 5), np.asarray(7, np.int32)]
    for got, want in zip(adopt(arrays), arrays, strict=True):
        assert isinstance(got, jax.Array)
        assert (got.shape, got.dtype, got.devices()) == (want.shape, want.dtype, {jax.devices()[0]})
        assert np.array_equal(np.asarray(got), want)
        assert np.array_equal(np.asarray(got + 1), want + 1)
