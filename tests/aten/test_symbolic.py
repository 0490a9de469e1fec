"""Assertions on static sizes raise while tracing; those on traced values do nothing."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.core.ops import OPS


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "message"),
    [
        ("aten._assert_scalar.default", (False, "size must be even"), {}, "must be even"),
        ("aten._assert_scalar.default", (0, "size must be even"), {}, "must be even"),
        ("aten._assert_async.msg", (False, "size must be even"), {}, "must be even"),
        ("aten._assert_async.default", (False,), {}, "assertion failed"),
        ("aten._functional_assert_scalar.default", (False, "even", None), {}, "even"),
        ("aten.sym_constrain_range.default", (3,), {"min": 4}, "size >= 4, got 3"),
        ("aten.sym_constrain_range_for_size.default", (3,), {"max": 2}, "size <= 2, got 3"),
    ],
)
def test_false_assertions_on_sizes_raise(op, args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        OPS[op](*args, **kwargs)


def test_metadata_that_differs_raises():
    check = OPS["aten._assert_tensor_metadata.default"]
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"asserts size \[2, 5\], got \[2, 3\]"):
        check(x, [2, 5])
    with pytest.raises(ValueError, match="asserts dtype int32, got float32"):
        check(x, None, None, np.dtype("int32"))
    check(x, None, None, np.dtype("float16"))  # a cast model keeps the kind of its dtypes


def test_arange_of_a_tensors_value_is_refused():
    with pytest.raises(NotImplementedError, match="depends on the values of a tensor"):
        OPS["aten.arange.default"](jnp.int32(3))


def test_sampling_is_known_from_the_arguments():
    samples = OPS["aten.dropout.default"].samples
    assert samples("x", 0.5, True)
    assert not samples("x", 0.5, False)
    assert not samples("x", 0.0, True)
    assert OPS["aten.native_dropout.default"].samples("x", 0.5, None)
    assert not OPS["aten.rrelu.default"].samples("x")
    assert OPS["aten.rrelu.default"].samples("x", 0.1, 0.3, True)
    noise = OPS["aten.rrelu_with_noise_functional.default"].samples
    assert noise("x", "n", 0.1, 0.3, True)
    assert not noise("x", "n", 0.1, 0.3)
    assert OPS["aten.rand.default"].samples([2])


def test_strides_and_parts_of_empty_arrays():
    assert [OPS["aten.sym_stride.int"](jnp.ones((2, 0, 3)), d) for d in range(3)] == [3, 3, 1]
    empty = OPS["aten.view_as_complex.default"](jnp.ones((3, 0, 2)))
    assert (empty.shape, empty.dtype.name) == ((3, 0), "complex64")


def test_a_choice_by_data_is_a_where():
    choose = jax.jit(lambda b: OPS["torch.sym_ite"](b, 1, 0))
    assert (int(choose(True)), int(choose(False))) == (1, 0)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: OPS["aten.arange.default"](x.shape[0]),
        lambda x: OPS["aten.arange.start_step"](1, x.shape[0] + 5, 3),
        lambda x: OPS["aten.arange.start"](2, x.shape[0] + 4, dtype=np.dtype("float32")),
        lambda x: OPS["aten.slice.Tensor"](x, 0, 1, 2**63 - 1),
        lambda x: OPS["aten.slice.Tensor"](x, 0, None, -1),
        lambda x: OPS["aten.slice.Tensor"](x, 0, 0, x.shape[0]),
        lambda x: OPS["aten.slice.Tensor"](x, 1, 1, 3),
        lambda x: OPS["aten.slice.Tensor"](OPS["aten.arange.default"](600), 0, 0, x.shape[0]),
    ],
)
def test_sizes_that_stay_open_in_an_export(fn):
    """A function that is exported once with an open size gives what it gives at each size."""
    size = jax.export.symbolic_shape("n, 5", constraints=["n >= 3", "n <= 600"])
    exported = jax.export.export(jax.jit(fn))(jax.ShapeDtypeStruct(size, jnp.float32))
    for n in (3, 7, 11):
        x = jnp.arange(5.0 * n).reshape(n, 5)
        want, got = fn(x), exported.call(x)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
