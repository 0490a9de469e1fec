"""What cannot be proven is refused, and the error names the equation, the line and the axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.compile.bucket import PaddingError, Size, pad
from jaxinfer.compile.padding.axes import Refusal, wholes
from jaxinfer.compile.padding.rules import rule
from jaxinfer.compile.padding.same import unlike
from jaxinfer.compile.padding.sizes import Observed
from jaxinfer.compile.padding.walk import Walker
from jaxinfer.core.errors import InputError
from tests.compile.padding import Case, check, padded_of

N, BS = (3, "n"), ("b", "s", 4)
BOTH = {"b": 4, "s": 8}


def refused(fn, *words, shapes=(N,), dtypes=(), **changes):
    with pytest.raises(PaddingError) as error:
        padded_of(Case(fn, shapes, dtypes, **changes))
    text = str(error.value)
    for word in words:
        assert word in text, text
    return text


def both(fn, *words, **changes):
    return refused(fn, *words, shapes=[BS], bucket=BOTH, **changes)


def test_a_refusal_names_primitive_line_axis_symbol_and_way_out():
    text = refused(lambda p, x: jnp.fft.fft(x, axis=1), "fft at ", "test_pad_refusals.py:")
    assert "axis that it works along is padded" in text
    assert "padding of n up to 8 cannot be proven" in text
    assert "Declare n exact" in text


def test_all_problems_are_named_at_once():
    def fn(p, x):
        return jnp.fft.fft(x, axis=1), jnp.linalg.cholesky(x.T @ x), x.reshape(-1)[::2]

    text = refused(fn, "fft at", "cholesky at", "slice at")
    assert text.count("\n  ") == 3


def test_what_nobody_needs_is_not_refused():
    check(Case(lambda p, x: (jnp.fft.fft(x, axis=1), x.sum(1))[1], [N]))


def test_random_bits_of_a_padded_shape():
    fn = lambda p, x: x + jax.random.normal(jax.random.key(0), x.shape)
    refused(
        fn, "random_bits at", "test_pad_refusals.py", "its shape is (3, 8), and (3, 7) at n = 7"
    )


def test_numbers_without_a_formula():
    refused(lambda p, x: x * float(np.sin(x.shape[1])), "mul at", "by no formula that is known")
    text = refused(lambda p, x: x[:, 0] + (x.shape[1] ^ 5), "add at")
    assert "(13.0, 2.0, 3.0" in text


def test_programs_that_differ_beside_the_bucket():
    text = refused(lambda p, x: jnp.sin(x) if x.shape[1] % 2 else jnp.cos(x), "cos at")
    assert "at n = 7 there is sin in its place" in text
    refused(lambda p, x: sum(x[:, i] for i in range(x.shape[1])), "at n = 7")
    fn = lambda p, x: lax.associative_scan(jnp.add, x, axis=1)
    refused(fn, "slice at", "at n = 7 there is")


def test_parameters_that_differ_beside_the_bucket():
    refused(lambda p, x: lax.integer_pow(x, x.shape[1]), "integer_pow at", "its y is 8, and 7 at")
    fn = lambda p, x: lax.reduce_precision(x, 8, x.shape[1])
    refused(fn, "reduce_precision at", "mantissa_bits")
    fn = lambda p, x: lax.scan(lambda c, a: (c + a, a), x[:, 0], x.T, unroll=x.shape[1])[0]
    refused(fn, "scan at", "its unroll")


def test_lengths_that_are_no_line():
    refused(lambda p, x: x[:, ::2], "slice at", "is no linear function of the sizes")
    refused(lambda p, x: x[:, x.shape[1] // 2 :], "slice at", "no linear function")
    refused(
        lambda p, x: lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 2), "SAME"),
        "reduce_window_sum at", "its padding in front changes",
    )  # fmt: skip
    refused(
        lambda p, x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 2), "VALID"),
        "reduce_window_sum at", "no linear function",
    )  # fmt: skip
    refused(
        lambda p, x: lax.conv_general_dilated(x[None], jnp.ones((2, 3, 3)), (2,), "SAME"),
        "conv_general_dilated at",
    )


def test_axes_that_grow_as_sizes_shrink():
    """The real size would have more places than the bucket's."""
    fn = lambda p, x: jnp.arange(16.0)[: 16 - x.shape[1]].sum() + x
    refused(fn, "slice at", "axis 0 is -1*n + 16 long: longer at real sizes")
    refused(lambda p, x: jnp.roll(x, 9, 1), "slice at", "longer at real sizes")


def test_real_parts_that_are_no_box():
    both(lambda p, x: x.reshape(-1, 4), "result 0", "is no box that can be sliced",
         "(b of 4) x (s of 8)")  # fmt: skip
    both(lambda p, x: jnp.ones(x.shape[0] * x.shape[1]), "the same value everywhere")
    both(lambda p, x: lax.scan(lambda c, a: (c + a, a), x[0, 0], x.reshape(-1, 4)),
         "scan at", "it steps over (b of 4) x (s of 8)")  # fmt: skip


def test_reshapes_that_cut_padding():
    refused(lambda p, x: x.reshape(-1, 2).sum(1), "reshape at")


def test_a_sort_that_is_not_stable():
    fn = lambda p, x: lax.sort((x, jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)),
                               dimension=1, is_stable=False, num_keys=1)  # fmt: skip
    refused(fn, "sort at", "not stable")


def test_edges_and_windows_that_move():
    refused(lambda p, x: jnp.pad(x, ((0, 0), (16 - x.shape[1], 0))), "pad at", "edge in front")
    fn = lambda p, x: (
        jnp.zeros((3, 4)).sum()
        + lax.pad(jnp.ones((3, 16)), 0.0, [(0, 0, 0), (0, x.shape[1] - 16, 0)])
    )
    refused(fn, "pad at", "cuts off more or less")
    fn = lambda p, x: lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 1), [(0, 0), (x.shape[1], 1)])
    refused(fn, "reduce_window_sum at", "its padding in front changes")
    fn = lambda p, x: lax.reduce_window(
        x, 0.0, lax.add, (1, x.shape[1]), (1, 1), [(0, 0), (2, x.shape[1])]
    )
    refused(fn, "reduce_window_sum at", "a window as long as a padded axis")
    fn = lambda p, x: (
        x.sum()
        + lax.reduce_window(jnp.ones((3, 16)), 0.0, lax.add, (1, x.shape[1]), (1, 1), "VALID")
    )
    refused(fn, "reduce_window_sum at", "along a whole axis")


def test_convolutions_over_padded_kernels_and_groups():
    def conv(lhs, rhs, **options):
        return lax.conv_general_dilated(lhs, rhs, (1,), "VALID", **options)

    refused(lambda p, x: conv(jnp.ones((1, 1, 20)), x[:, None]), "its kernel's size is padded")
    fn = lambda p, x: conv(x.T[None], jnp.ones((x.shape[1], 1, 2)),
                           feature_group_count=x.shape[1])  # fmt: skip
    refused(fn, "conv_general_dilated at")
    refused(lambda p, x: conv(x.T[:, None], jnp.ones((x.shape[1], 1, 3)),
                              batch_group_count=x.shape[1]), "conv_general_dilated at")  # fmt: skip


def test_indices():
    fn = lambda p, x: lax.gather(
        jnp.ones(20), jnp.array([[1], [2]]), lax.GatherDimensionNumbers((1,), (), (0,)),
        slice_sizes=(x.shape[1],),
    )  # fmt: skip
    refused(fn, "gather at", "part of an axis, more or less with the size")
    fn = lambda p, x: lax.gather(
        x, jnp.array([[1], [2]]), lax.GatherDimensionNumbers((1, 2), (), (0,)), slice_sizes=(1, 2)
    )
    refused(fn, "gather at", "it takes 2 of the padded axis 1")
    fn = lambda p, x: lax.scatter(
        x, jnp.array([[1], [2]]), jnp.ones((2, 1, 2)),
        lax.ScatterDimensionNumbers((1, 2), (), (0,)),
    )  # fmt: skip
    refused(fn, "scatter at", "it writes several parts of axis 1")
    fn = lambda p, x: lax.scatter(
        jnp.ones((9, 3)), (x[:1].T > 0).astype(int), x.T[:, None, :],
        lax.ScatterDimensionNumbers((1, 2), (), (0,)), mode="clip",
    )  # fmt: skip
    refused(fn, "scatter at", "it clamps windows of more than one place")


def test_ragged_groups():
    fn = lambda p, x: lax.ragged_dot(jnp.ones((6, 3)), jnp.ones((x.shape[1], 3, 2)),
                                     jnp.ones(x.shape[1], jnp.int32))  # fmt: skip
    refused(lambda p, x: fn(p, x) + x.sum(), "ragged_dot_general at")


def test_constants_that_are_no_beginning_of_each_other():
    def fn(p, x):
        return x + np.linspace(0, 1, x.shape[1], dtype="float32")

    refused(fn, "a constant float32[8] of the function", "are not the beginning")
    refused(lambda p, x: x + np.eye(3, dtype="f4")[:, :1] * np.full((1, x.shape[1]), x.shape[1]),
            "a constant")  # fmt: skip


def test_loops_that_do_not_settle_or_join():
    fn = lambda p, x: lax.fori_loop(
        0, 3, lambda i, c: (c[1], c[0]), (x.reshape(-1), x.swapaxes(0, 1).reshape(-1))
    )[0].sum()
    both(fn, "scan at", "padded in different places")
    fn = lambda p, x: lax.cond(x[0, 0, 0] > 0, lambda y: y.reshape(-1, 4),
                               lambda y: y.swapaxes(0, 1).reshape(-1, 4), x).sum()  # fmt: skip
    both(fn, "cond at", "padded in different places")


def test_opaque_primitives():
    fn = lambda p, x: jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    refused(fn, "pure_callback at")
    refused(lambda p, x: jnp.linalg.solve(jnp.eye(3), x), "custom_linear_solve at")


def test_an_inner_result_that_is_a_number():
    fn = lambda p, x: x.sum(1) * jax.jit(lambda y: y.shape[1])(x)
    refused(fn, "the result of an inner function is a number that changes")


def test_a_size_that_cannot_be_told_from_others():
    def fn(p, x):
        if x.shape[1] != 8:
            raise ValueError("eight only")
        return x

    model = ji.from_function(fn, {}, None)
    with pytest.raises(InputError, match=r"2 traces at sizes beside it there is 0.*eight only"):
        pad(model, [N], {"n": 8}, arrays=["float32"])
    assert pad(model, [N], {"n": 8}, arrays=["float32"], exact=["n"]).needs == ()


def test_sizes_of_a_bucket():
    model = ji.from_function(lambda p, x: x, {}, None)
    with pytest.raises(InputError) as error:
        pad(model, [N], {"n": 0, "m": True, "k": 1.5}, exact=["q"], arrays=["float32"])
    assert all(f"{name}:" in str(error.value) for name in ("n", "m", "k", "q"))
    with pytest.raises(InputError, match="n: a dimension without a bucket"):
        pad(model, [N], {"m": 3}, arrays=["float32"])
    with pytest.raises(InputError, match="required the dims of 0 input arrays, got 1; give arrays"):
        pad(model, [N], {"n": 3})
    with pytest.raises(InputError, match="the dimension n//2 is no linear function of a size"):
        pad(model, [("n//2", "n")], {"n": 9}, arrays=["float32"])


def test_dimensions_that_grow_as_sizes_shrink():
    model = ji.from_function(lambda p, x: x, {}, None)
    with pytest.raises(InputError, match="the dimension 20 - n grows as the size shrinks"):
        pad(model, [("n", "20 - n")], {"n": 9}, arrays=["float32"])


def test_calls_with_other_arrays():
    padded = pad(ji.from_function(lambda p, x: x.mean() * p["w"], {"w": jnp.ones(2)}, None), [N],
                 {"n": 8}, arrays=["float32"])  # fmt: skip
    x, sizes = jnp.ones((3, 8)), {"n": 3}
    with pytest.raises(InputError) as error:
        padded.run({"w": jnp.ones(3)}, [jnp.ones((3, 7))], sizes)
    assert "parameter w: required float32[2], got float32[3]" in str(error.value)
    assert "input 0: required float32[3, 8], got float32[3, 7]" in str(error.value)
    with pytest.raises(InputError, match="parameter w: missing\n  parameter v: unknown"):
        padded.run({"v": jnp.ones(2)}, [x], sizes)
    with pytest.raises(InputError, match="required 1 inputs, got 2"):
        padded.run({"w": jnp.ones(2)}, [x, x], sizes)
    with pytest.raises(InputError, match="the real size of n is needed"):
        padded.run({"w": jnp.ones(2)}, [x], {})


def test_other_refusals():
    refused(
        lambda p, x: lax.approx_max_k(x, 1), "approx_top_k at", "(n of 8)), and there is no rule"
    )
    refused(lambda p, x: lax.reshape(x, (3 * x.shape[1],), (1, 0)), "an order of dimensions")
    refused(lambda p, x: x if x.shape[1] == 8 else jnp.sin(x), "sin at", "at some sizes only")
    fn = lambda p, x: lax.cond(x[0, 0] > 0, lambda y: jnp.fft.fft(y, axis=1).real, lambda y: y, x)
    refused(fn, "fft at")
    mesh = jax.make_mesh((1,), ("d",))
    spec = jax.sharding.PartitionSpec()
    fn = jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec)
    refused(lambda p, x: fn(x), "shard_map at")
    numbers = lax.RaggedDotDimensionNumbers((((1,), (0,)), ((), ())), [1], [])
    fn = lambda p, x: lax.ragged_dot_general(x, x.T, jnp.array([2, 1]), numbers)
    refused(fn, "ragged_dot_general at", "axis 1 of operand 0 is padded")


def test_how_programs_differ():
    """What two traces of one equation must share."""
    x, y, at = jnp.ones(3), jnp.ones((3, 4)), [{"n": 1}, {"n": 2}]
    last = lambda fn, *args: jax.make_jaxpr(fn)(*args).jaxpr.eqns[-1]

    def differ(first, second):
        return unlike([first, second], at, ())

    assert differ(last(jnp.add, x, x), last(jnp.add, x, x)) == ""
    join = lambda *parts: lax.concatenate(parts, 0)
    assert "another number of operands" in differ(last(join, x, x), last(join, x, x, x))
    number = last(lambda a: a * 2.0, x)
    assert "a number stands where a value" in differ(last(jnp.multiply, x, x), number)
    whole = jnp.ones(3, int)
    assert "other dtypes" in differ(last(jnp.add, x, x), last(jnp.add, whole, whole))
    assert "other ranks" in differ(last(jnp.add, x, x), last(jnp.add, y, y))
    branch = lambda count: last(
        lambda i, a: lax.switch(i, [lambda v, k=k: v * k for k in range(count)], a), 0, x
    )
    assert "another number of branches" in differ(branch(2), branch(3))
    assert "it is not there at n = 2" in differ(number, None)


def test_what_a_rule_finds_is_held_against_the_shapes():
    walker = Walker(Observed([{"n": 8}, {"n": 7}, {"n": 6}]), {}, {"iota": ("shape",)})
    with pytest.raises(Refusal, match="axis 0 of its result is 8, but 7 long at"):
        walker.check(wholes((8,)), [(8,), (7,), (6,)])
    jaxprs = [jax.make_jaxpr(lambda n=n: jnp.arange(n))().jaxpr for n in (8, 7, 6)]
    assert walker.walk(jaxprs, [(), (), ()], []) == [None]
    (problem,) = walker.found.problems.values()
    assert "the shape of its result changes with the size, and there is no rule" in problem


def test_constants_of_another_rank():
    walker = Walker(Observed([{"n": 8}, {"n": 7}, {"n": 6}]), {}, {})
    assert walker._constant([np.ones(2), np.ones((2, 2)), np.ones(2)], (0,)) is None
    assert "its rank changes with the size" in walker.found.problems[0,]


def test_a_dimension_that_would_be_negative_beside_the_bucket():
    model = ji.from_function(lambda p, x: x.sum(1), {}, None)
    padded = pad(model, [("n", "n - 7")], {"n": 8}, arrays=["float32"])
    assert padded.outputs[0] == (Size("n"),)


def test_a_rule_is_registered_once():
    with pytest.raises(ValueError, match="transpose: a rule for padding is registered already"):
        rule("transpose")(lambda site: [])


def test_least_sizes():
    """A fixed part of a padded axis, and a number that changes its formula further down."""
    least = lambda fn, n=64: padded_of(Case(fn, [N], bucket={"n": n})).least
    assert least(lambda p, x: x[:, :5]) == {"n": 5}
    assert least(lambda p, x: lax.top_k(x, 3)) == {"n": 3}
    assert least(lambda p, x: x.sum(1) / max(x.shape[1], 40)) == {"n": 40}
    assert least(lambda p, x: x[:, 2:].sum(1)) == {"n": 2}
    assert least(lambda p, x: x.mean(1)) == {}
    # n - 5 for 6, 7 and 8; another line below
    assert least(lambda p, x: x * float(x.shape[1] % 3 + 1), 8) == {"n": 6}


def test_a_limit_further_down_is_passed_over():
    """A model may compute in another way below a limit; the limit beside the bucket is refused."""
    fn = lambda p, x: x.mean(1) if x.shape[1] > 60 else x.sum(1) / x.shape[1]
    check(Case(fn, [N], bucket={"n": 64}, reals=[{"n": 62}, {"n": 3}]))
    with pytest.raises(PaddingError):
        padded_of(Case(lambda p, x: jnp.sin(x) if x.shape[1] > 63 else x, [N], bucket={"n": 64}))
