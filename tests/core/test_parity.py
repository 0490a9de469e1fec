"""The comparison passes what is equal, and fails on every kind of difference."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxinfer.api import from_function
from jaxinfer.core.errors import ParityError
from jaxinfer.core.frontend import Source
from jaxinfer.core.parity import Report, compare, outputs_of, prove, tolerance_for
from jaxinfer.core.structure import LEAF, Output, Structure

F32 = np.float32


def one(want, got, **options):
    (error,) = compare([np.asarray(want)], [np.asarray(got)], **options)
    return error


def test_equal_outputs_pass_with_zero_error():
    x = np.linspace(-3, 3, 35, dtype=F32).reshape(5, 7)
    error = one(x, x.copy())
    assert error.ok
    assert (error.max_abs, error.max_rel, error.mismatches) == (0, 0, 0)


def test_where_and_how_much():
    x = np.full((3, 5), 2.0, F32)
    y = x.copy()
    y[1, 4] += 0.5
    error = one(x, y)
    assert not error.ok
    assert error.worst == (1, 4)
    assert (error.max_abs, error.max_rel) == (0.5, 0.25)
    assert "[1, 4]" in str(error)
    assert "0.5" in str(error)


def test_tolerance_scales_with_the_largest_value_but_not_below_one():
    tolerance = tolerance_for("float32")
    for largest, slack in ((1000.0, 1000.0), (1.0, 1.0), (0.01, 1.0)):
        x = np.array([largest, 0.0], F32)
        assert one(x, x + F32(0.9 * tolerance * slack) * np.array([0, 1], F32)).ok
        assert not one(x, x + F32(1.1 * tolerance * slack) * np.array([0, 1], F32)).ok


def test_a_given_tolerance_replaces_the_default_but_integers_stay_exact():
    assert not one(F32([1.0]), F32([1.2]), tolerance=0.1).ok
    assert one(F32([1.0]), F32([1.2]), tolerance=0.3).ok
    assert not one(np.array([1]), np.array([2]), tolerance=10.0).ok


def test_relative_error_has_a_floor():
    """|a - b| / max(|a|, sqrt(eps) max|a|): rounding beside a zero is no relative error of 1."""
    error = one(F32([0.0, 100.0]), F32([1e-6, 100.0]))
    floor = math.sqrt(np.finfo(F32).eps) * 100
    assert error.max_rel == pytest.approx(F32(1e-6) / floor)
    assert one(F32([0.0]), F32([0.5])).max_rel == 0.5  # all zeros: the floor is 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_positions_must_agree(bad):
    x = F32([1.0, bad, 3.0])
    assert one(x, x.copy()).ok
    for other in (F32([1.0, 2.0, 3.0]), F32([bad, bad, 3.0]), F32([1.0, -bad, bad])):
        error = one(x, other)
        assert not error.ok
        assert error.mismatches >= 1
        assert math.isfinite(error.max_abs)
    assert one(x, F32([1.0, 2.0, 3.0])).worst == (1,)


def test_infinity_of_the_other_sign_is_a_mismatch():
    assert one(F32([np.inf]), F32([-np.inf])).mismatches == 1


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_integers_are_exact(dtype):
    x = np.array([0, 1, 1]).astype(dtype)
    y = x.copy()
    y[2] = 0
    assert one(x, x.copy()).ok
    assert not one(x, y).ok


def test_large_integers_that_float64_cannot_tell_apart():
    error = one(np.array([2**53], np.int64), np.array([2**53 + 1], np.int64))
    assert not error.ok
    assert error.max_abs >= 1


def test_narrowed_64_bit_types_are_the_same_kind():
    assert one(np.array([1, 2], np.int64), np.array([1, 2], np.int32)).ok
    assert one(np.array([1.0]), F32([1.0])).ok


def test_shape_and_kind_must_agree():
    for got in (np.zeros((2, 3), F32), np.zeros((3, 2), np.int32), np.zeros((3, 2, 1), F32)):
        error = one(np.zeros((3, 2), F32), got)
        assert not error.ok
        assert "got" in error.problem


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_types_are_looser_but_not_blind(dtype):
    x = np.array([1.0, -2.0], dtype)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert one(x, x + np.array(2 * eps, dtype)).ok
    assert not one(x, x + np.array(40 * eps, dtype)).ok


def test_complex():
    x = np.array([1 + 1j, 2.0], np.complex64)
    assert one(x, x.copy()).ok
    assert not one(x, x.conj()).ok
    assert not one(x, np.array([1 + 1j, complex(np.nan, 0)], np.complex64)).ok


def test_empty_outputs_and_scalars():
    assert one(np.zeros((0, 3), F32), np.zeros((0, 3), F32)).ok
    assert one(F32(1.0), F32(1.0)).worst == ()
    assert not one(F32(1.0), F32(2.0)).ok


def test_a_missing_output_is_an_error():
    with pytest.raises(ParityError, match="required 2 outputs, got 1"):
        compare([F32(1), F32(2)], [F32(1)])


def test_values_false_compares_shapes_only():
    error = one(F32([1.0]), F32([9.0]), values=False)
    assert error.ok
    assert not error.compared
    assert not one(F32([1.0]), F32([9.0, 1.0]), values=False).ok


def test_json_has_no_infinity():
    data = one(F32([1.0]), F32([1.0, 2.0])).to_json()
    assert data["max_abs"] == "inf"
    assert data["ok"] is False


def fake_source(reference):
    def examples(seed):
        return (np.random.default_rng(seed).standard_normal(4).astype(F32),), {}

    return Source("fake", lambda progress: None, examples, reference)


def double():
    return from_function(lambda p, x: {"y": x * p}, jnp.float32(2), (jnp.ones(4),))


def test_prove_passes_a_right_model_and_names_outputs():
    report = prove(double(), fake_source(lambda args, kwargs, _: [args[0] * 2]))
    assert report.ok
    assert [output.path for output in report.outputs] == ["y"]
    assert report.seeds == (0, 1)
    report.check()


def test_prove_fails_a_wrong_model_that_is_right_on_one_seed():
    right_once = []

    def reference(args, kwargs, state):
        right_once.append(args)
        return [args[0] * (2 if len(right_once) == 1 else 2.01)]

    report = prove(double(), fake_source(reference))
    assert not report.ok
    with pytest.raises(ParityError, match="1 of 1 outputs"):
        report.check()
    assert report.to_json()["ok"] is False


def test_prove_keeps_the_worst_seed():
    factors = iter((2.001, 2.1, 2.0))
    report = prove(double(), fake_source(lambda a, k, _: [a[0] * F32(next(factors))]), (0, 1, 2))
    assert report.max_rel == pytest.approx(0.1 / 2.1, rel=1e-3)


def test_empty_report_is_ok():
    assert Report((0,), ()).ok


def program(outputs, mutates=()):
    return SimpleNamespace(program=SimpleNamespace(outputs=outputs, mutates=mutates))


def test_outputs_by_path():
    nested = Structure("record", (LEAF, Structure("tuple", (LEAF, LEAF))), ("a", "b"), "Out")
    out = Output("Out", ("a", "b"), (1, (2, None)))
    assert outputs_of(program(nested), out) == {"a": 1, "b.0": 2}
    assert outputs_of(program(LEAF), 5) == {"output": 5}
    state = program(LEAF, ("bn.mean",))
    assert outputs_of(state, (5, {"bn.mean": 6})) == {"output": 5, "state.bn.mean": 6}


def test_outputs_keep_the_order_of_a_dict():
    order = Structure("dict", (LEAF, LEAF), ("z", "a"))
    assert list(outputs_of(program(order), {"a": 1, "z": 2}).items()) == [("z", 2), ("a", 1)]


def test_outputs_of_a_function_are_any_pytree():
    model = from_function(lambda p, x: (x, [x, {"k": x}]), {}, (jnp.ones(2),))
    out = model(jnp.ones(2))
    assert list(outputs_of(model, out)) == ["0", "1.0", "1.1.k"]
    assert all(isinstance(leaf, jax.Array) for leaf in outputs_of(model, out).values())
