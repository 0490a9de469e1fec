"""The OpenVINO back-end against JAX, primitive by primitive; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinfer.compile.openvino.function import (
    compile_jaxpr,
)
from jaxinfer.compile.openvino.model import build
from tests.compile.openvino_check import (
    BIG,
    BIG2,
    LENGTHS,
    RNG,
    UNIT,
    WIDE,
    X,
    Y,
    check,
    draw,
    traced,
)

UNARY = {
    "abs": WIDE,
    "neg": WIDE,
    "sign": WIDE,
    "floor": WIDE,
    "ceil": WIDE,
    "round": WIDE,
    "square": WIDE,
    "tanh": WIDE,
    "logistic": WIDE,
    "atan": WIDE,
    "asinh": WIDE,
    "cbrt": WIDE,
    "is_finite": jnp.asarray([0, 1, np.inf, -np.inf], jnp.float32),
    "exp": -jnp.abs(WIDE),
    "exp2": -jnp.abs(WIDE),
    "log": jnp.abs(WIDE) + 1e-9,
    "sqrt": jnp.abs(WIDE),
    "rsqrt": jnp.abs(WIDE) + 1,
    "acosh": jnp.abs(WIDE) + 1,
    "sin": WIDE.clip(-9, 9),
    "cos": WIDE.clip(-9, 9),
    "tan": UNIT,
    "asin": UNIT,
    "acos": UNIT,
    "atanh": UNIT,
    "sinh": UNIT * 3,
    "cosh": UNIT * 3,
    "erf": UNIT * 4,
    "erfc": UNIT * 4,
}


def test_functions_of_one_operand():
    names, values = list(UNARY), list(UNARY.values())
    check(lambda *a: [getattr(lax, n)(v) for n, v in zip(names, a, strict=True)], *values)


def test_small_arguments_keep_their_relative_accuracy():
    """log1p, expm1 and sinh near zero, where log(1 + x) has no digits left: 4 units of eps."""
    small = jnp.asarray(10.0 ** RNG.uniform(-30, 0, 300) * RNG.choice([-1, 1], 300), jnp.float32)
    small = small.clip(-0.99, None)
    fn = lambda x: (jnp.log1p(x), jnp.expm1(x), jnp.sinh(x), jnp.cbrt(x))
    got = compile_jaxpr(traced(fn, small))([small])
    exact = np.asarray(small, np.float64)
    want = (np.log1p(exact), np.expm1(exact), np.sinh(exact), np.cbrt(exact))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-6)


def test_large_arguments_do_not_overflow_early():
    check(
        lambda x: (jnp.sinh(x), jnp.cosh(x), jnp.expm1(x)),
        jnp.asarray([-88.0, -20.0, 20.0, 87.0, 88.0], jnp.float32),
        tol=2e-5,  # exp of an argument of 88 eps
    )


def test_functions_of_two_operands():
    def fn(x, y, low):
        names = ("add", "sub", "mul", "div", "max", "min", "eq", "ne", "lt", "le", "gt", "ge")
        return [
            *(getattr(lax, name)(x, y) for name in names),
            lax.pow(jnp.abs(x), y),
            x ** jnp.int32(3),
            *(lax.integer_pow(x, n) for n in (0, 1, 2, 3, 7)),
            lax.integer_pow(jnp.abs(x) + 1, -2),
            lax.clamp(low, x, jnp.float32(0.5)),
            lax.clamp(y - 1, x, y),
            x == x,
        ]

    check(fn, X, Y, jnp.float32(-0.5), tol=1e-5)


def test_integers_are_exact():
    """Beyond 2^24 too, where OpenVINO's own comparisons and sums are in float32."""
    near = BIG + jnp.asarray(RNG.integers(-1, 2, BIG.shape), jnp.int32)

    def fn(a, b, near):
        compare = [getattr(lax, n)(a, near) for n in ("eq", "ne", "lt", "le", "gt", "ge")]
        same = [getattr(lax, n)(a, b) for n in ("add", "sub", "mul", "max", "min")]
        bits = [getattr(lax, f"bitwise_{n}")(a, b) for n in ("and", "or", "xor")]
        return [
            *compare,
            *same,
            *bits,
            jnp.where(a > b, a + b, a * b - 3) + 1,
            jnp.where(a > b, a, b),
            lax.select_n(jnp.sign(b) + 1, a, b, a + b),
            (a + b) * 3 - a * b,
            lax.neg(a),
            lax.abs(a),
            lax.sign(a),
            lax.square(a),
            lax.bitwise_not(a),
            a**3,
            a.sum(),
            a.sum((0, 2)),
            lax.cumsum(a, 1),
            a.max(1),
            a.min((0, 1)),
            jnp.argmax(a, 1),
            jnp.sort(a, 1),
            a[::-1].reshape(5, 21),
            a.astype(bool),
        ]

    check(fn, BIG, BIG2, near)


def test_truths():
    def fn(a, b):
        return [
            *(op(a, b) for op in (jnp.logical_and, jnp.logical_or, jnp.logical_xor)),
            lax.bitwise_not(a),
            a == b,
            a != b,
            a.any(1),
            a.all((0, 2)),
            a.sum(1),
            a.astype(jnp.float32),
            a.astype(jnp.int32),
            a.astype(jnp.int8),
        ]

    check(fn, X > 0, Y > 0)


def test_conversions():
    edge = [1e30, -1e30, 0.0, np.inf, -np.inf, 2.0**31, -(2.0**31), 2147483520, 1.9, -1.9]
    small = jnp.asarray(RNG.integers(-128, 128, (3, 5)), jnp.int8)

    def fn(x, big, small, unsigned):
        return [
            x.astype(jnp.int32),
            (x - x).astype(jnp.int32),
            x.astype(bool),
            big.astype(jnp.float32),
            small.astype(jnp.float32),
            small.astype(jnp.int32),
            unsigned.astype(jnp.float32) / 255,
            small[:2, 1:],
            lax.reduce_precision(x, 8, 23),
        ]

    check(fn, jnp.asarray(edge, jnp.float32), BIG, small, small.astype(jnp.uint8))


def test_choices():
    def fn(x, y, which, one):
        return [
            jnp.where(x > 0, x, y),
            lax.select_n(one, x, y),
            lax.select_n(which, x, y, x + y),
            jnp.where(x > 0, which, 7),
        ]

    which = jnp.asarray(RNG.integers(0, 3, X.shape), jnp.int32)
    check(fn, X, Y, which, jnp.asarray(True))


def test_moving_values():
    def fn(x, whole):
        turned = x.transpose(2, 0, 1)
        return [
            x.reshape(5, 21),
            turned,
            turned[1:, :2],
            turned.reshape(21, 5),
            turned + whole.transpose(2, 0, 1),
            turned.sum(1),
            (turned * 2).max((0, 2)),
            jnp.concatenate([turned, whole.transpose(2, 0, 1)], 1),
            jnp.concatenate([turned, jnp.ones((7, 3, 1))], 2),
            jnp.stack([x, whole], 2),
            lax.squeeze(x[:, None], (1,)),
            lax.squeeze(x[:, None].transpose(3, 1, 2, 0), (1,)),
            lax.squeeze(x[:, None].transpose(2, 0, 1, 3)[:1], (0, 2)),
            lax.pad(turned, 2.0, ((1, 2, 0), (0, 1, 0), (0, 0, 0))),
            lax.pad(turned, x[0, 0, 0], ((1, -1, 0), (-1, 1, 0), (0, 2, 0))),
            lax.pad(turned, 2.0, ((0, 0, 0),) * 3),
            jnp.broadcast_to(x[:1], (3, 5, 7)),
            jnp.broadcast_to(x[:1], (3, 5, 7)).sum(0),
            jnp.broadcast_to(x[:1], (3, 5, 7))[1:],
            jnp.broadcast_to(x[0, 0], (2, 3, 7)).transpose(1, 0, 2),
            x + x[:1] * x[:, :1] + jnp.arange(7.0),
            lax.slice(x, (0, 1, 2), (3, 5, 7), (1, 2, 3)),
            lax.rev(x, (1, 2)),
            *lax.split(x, (2, 3, 0), 1),
            lax.pad(x, 2.0, ((1, 2, 0), (0, 1, 0), (0, 0, 0))),
            lax.pad(x, x[0, 0, 0], ((1, -1, 0), (-1, 1, 0), (0, 0, 0))),
            lax.iota(jnp.float32, 5) + x[0, 0, 0],
            lax.stop_gradient(x),
            x,
            x[0, 0, 0],
            jnp.ones(3),
        ]

    check(fn, X, Y)


def test_slices_at_computed_places():
    def fn(x, truths, at):
        return [
            lax.dynamic_slice(x, (at, 0, at), (1, 5, 3)),
            lax.dynamic_slice(x, (-at, 0, at), (2, 5, 3)),
            lax.dynamic_update_slice(x, x[:1, :2] * 2, (at, at, 0)),
            lax.dynamic_update_slice(x, x[:, :2] * 2, (0, at, 0)),
            lax.dynamic_update_slice(truths, ~truths[:, :2], (0, at, 0)),
            lax.dynamic_update_slice(x, x * 2, (at, at, at)),
            x.at[:, at].set(1.0),
        ]

    check(fn, X, X > 0, jnp.int32(9))
    check(fn, X, X > 0, jnp.int32(1))


def test_gathers_and_scatters():
    beyond = jnp.asarray([[1, 9], [-1, -7]], jnp.int32)

    def fn(x, i, beyond, big):
        return [
            x[i],
            x[:, i],
            x[i, :, i],
            x[:, i, 1:3],
            x[i[:, None], i[None]],
            jnp.take(x, beyond, axis=1),
            jnp.take(x, beyond, axis=1, mode="clip"),
            jnp.take(big, beyond, axis=1),
            jnp.take(x > 0, beyond, axis=2),
            jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
            jax.vmap(lambda row, k: row[k])(x, LENGTHS),
            x.at[i].set(0.5),
            x.at[:, i].add(2.0),
            x.at[:, jnp.asarray([1, 1])].add(2.0),
            x.at[:, beyond[0]].set(2.0, mode="drop"),
            x.at[i, :, i].max(0.5),
            x.at[i, :, i].min(0.5),
            x.at[i, :, i].mul(0.5),
            big.at[i].set(5),
            x.at[i[:0]].set(5.0),
        ]

    check(fn, X, jnp.asarray([1, 2], jnp.int32), beyond, BIG)


def test_reductions_and_order():
    ties = jnp.round(X * 2) + 0.0  # -0.0 and 0.0 are equal to OpenVINO, not to top_k

    def fn(x, ties):
        names = ("sum", "max", "min", "prod", "mean", "std")
        return [
            *(getattr(jnp, n)(x, axis=a) for n in names for a in (None, 1, (0, 2))),
            *(getattr(jnp, n)(ties, axis=a) for n in ("argmax", "argmin") for a in (0, 1, 2)),
            lax.cumsum(x, 1),
            lax.cumsum(x, 2, reverse=True),
            jnp.sort(ties, 1),
            jnp.argsort(ties, 2),
            *lax.sort((ties, x), dimension=1, num_keys=1),
            *lax.top_k(ties, 3),
        ]

    check(fn, X, ties, tol=1e-5)


EINSUMS = {
    "ij,kj->ik": ((3, 5), (7, 5)),
    "ij,jk->ik": ((3, 5), (5, 7)),
    "ji,jk->ik": ((5, 3), (5, 7)),
    "abj,jk->abk": ((2, 3, 5), (5, 7)),
    "abj,kj->abk": ((2, 3, 5), (7, 5)),
    "bij,bkj->bik": ((2, 3, 5), (2, 7, 5)),
    "bqhd,bkhd->bhqk": ((2, 3, 2, 5), (2, 7, 2, 5)),
    "bhqk,bkhd->bqhd": ((2, 3, 5, 7), (2, 7, 3, 5)),
    "abj,bjk->ak": ((2, 3, 5), (3, 5, 7)),
    "aj,bcj->abc": ((2, 5), (3, 7, 5)),
    "j,j->": ((5,), (5,)),
    "ij,j->i": ((3, 5), (5,)),
    "j,jk->k": ((5,), (5, 7)),
    "i,k->ik": ((3,), (5,)),
    "bj,bj->b": ((3, 5), (3, 5)),
    "ij,jk->kj": ((1, 1), (1, 1)),
}


def test_products():
    pairs = [tuple(draw(*shape) for shape in shapes) for shapes in EINSUMS.values()]

    def fn(*arrays):
        return [
            out
            for spec, x, (_, weight), y in zip(
                EINSUMS, arrays[::2], pairs, arrays[1::2], strict=True
            )
            for out in (jnp.einsum(spec, x, y), jnp.einsum(spec, x, weight))
        ]

    check(fn, *(array for pair in pairs for array in pair), tol=1e-5)


NHWC = ("NHWC", "HWIO", "NHWC")


def test_products_after_a_convolution():
    """They are convolutions of 1 x 1, with the stride of the slice before them."""
    kernel, w, rows = draw(3, 3, 4, 6), draw(6, 5), draw(9, 2)

    def fn(x):
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)
        far = lax.slice(y, (0, 0, 0, 0), (2, 7, 7, 6), (1, 3, 2, 1))
        return [y @ w, y[:, ::2, ::2] @ w, far @ w, jnp.einsum("bhwc,oc->bhwo", y, w.T)]

    def other(x):
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)
        return [y[:, 1::2] @ w, y[:, :5] @ w, jnp.einsum("bhwc,ho->bcwo", y, rows)]

    x = draw(2, 9, 8, 4)
    for form, slices, products in ((fn, 0, 0), (other, 2, 1)):
        check(form, x, tol=1e-5)
        kinds = [node.get_type_name() for node in build(traced(form, x)).model.get_ops()]
        assert (kinds.count("Slice"), kinds.count("MatMul")) == (slices, products)


def test_convolutions():
    image, kernel = draw(2, 9, 8, 4), draw(3, 3, 4, 6)
    grouped, deep, point = draw(3, 3, 2, 6), draw(3, 3, 1, 4), draw(1, 1, 6, 5)
    of_line, of_box = draw(6, 4, 3), draw(6, 4, 3, 2, 3)

    def fn(x, line, box, k):
        conv = lambda x, k, *a, **kw: lax.conv_general_dilated(
            x, k, *a, dimension_numbers=NHWC, **kw
        )
        return [
            conv(x, k, (2, 2), ((1, 1), (1, 1))),
            conv(x, kernel, (1, 2), "SAME"),
            conv(x, grouped, (2, 2), ((1, 1), (1, 1)), feature_group_count=2),
            conv(x, deep, (1, 1), "SAME", feature_group_count=4),
            conv(x, k, (1, 1), ((-1, 2), (1, 1)), rhs_dilation=(2, 1)),
            conv(x, k, (1, 1), ((1, 2), (2, 2)), lhs_dilation=(2, 3)),
            jax.nn.relu(conv(x, k, (1, 1), "SAME") * jnp.arange(6.0) + 1).mean((1, 2)),
            conv(conv(x, k, (1, 1), "SAME"), point, (1, 1), "VALID").reshape(2, -1),
            lax.conv_general_dilated(line, of_line, (1,), ((1, 1),)),
            lax.conv_general_dilated(box, of_box, (1, 1, 1), "VALID"),
        ]

    check(fn, image, draw(2, 4, 9), draw(2, 4, 5, 5, 5), kernel, tol=1e-5)


@pytest.mark.parametrize("name", ["max", "min", "sum"])
def test_pooling(name):
    start, reduce = {"max": (-jnp.inf, lax.max), "min": (jnp.inf, lax.min), "sum": (0.0, lax.add)}[
        name
    ]

    def fn(x, flat):
        pool = lambda *a, **kw: lax.reduce_window(*a[:1], start, reduce, *a[1:], **kw)
        padding = ((0, 0), (1, 1), (1, 0), (0, 0))
        return [
            pool(x, (1, 3, 2, 1), (1, 2, 2, 1), padding),
            pool(x, (1, 3, 2, 1), (1, 1, 2, 1), padding, window_dilation=(1, 2, 1, 1)),
            pool(x, (1, 1, 1, 1), (1, 1, 1, 1), ((0, 0),) * 4),
            pool(x.transpose(0, 3, 1, 2), (1, 1, 2, 3), (1, 1, 1, 1), ((0, 0),) * 4),
            pool(flat, (3, 1), (2, 1), ((1, 1), (0, 0))),
            pool(flat, (3,) * 2, (2, 1), ((1, 1), (0, 0))),
        ]

    check(fn, draw(2, 9, 9, 4), draw(9, 4), tol=1e-5)


def test_loops_and_branches():
    w = draw(7, 7, scale=0.3)
    step = lambda c, a: (jnp.tanh(c @ w + a), (c.sum(-1), a[:1]))
    zeros = jnp.zeros((5, 7))

    def fn(x, many, w2, n):
        return [
            lax.scan(step, zeros, x),
            lax.scan(step, zeros, x, reverse=True),
            lax.scan(step, zeros, many),
            lax.scan(step, zeros, many, reverse=True),
            lax.scan(lambda c, a: (jnp.tanh(c @ w2 + a), None), zeros, many)[0],
            lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, jnp.stack([w] * 3))[0],
            lax.scan(step, x[0], x[:0]),
            lax.scan(lambda c, a: (c + n, a), 0, x[:, :0]),
            lax.scan(lambda c, a: ((c[0] + n, c[1]), a[:0]), (0, x[:0]), many),
            lax.scan(lambda c, a: (c + n, a), 0, many[:, :0]),
            lax.while_loop(
                lambda s: s[1].sum() < 100, lambda s: (s[0] + 1, s[1] * 1.5), (0, abs(x))
            ),
            lax.while_loop(
                lambda s: s[1].sum() < -1, lambda s: (s[0] + 1, s[1] * 1.5), (0, abs(x))
            ),
            lax.fori_loop(0, n, lambda i, x: x.at[i].add(1), x),
            lax.cond(x[0, 0, 0] > 0, lambda x: x + 1, lambda x: x * 2, x),
            lax.switch(n, [lambda x: x + 1, lambda x: x * 2, lambda x: x - 1], x),
            lax.switch(n + 9, [lambda x: x + 1, lambda x: x * 2, lambda x: x - 1], x),
            lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: x - 1),
            jax.checkpoint(jnp.sin)(x),
            jax.jit(lambda x: x * 2)(x),
        ]

    check(fn, X * 0.3, draw(47, 5, 7, scale=0.3), w, jnp.int32(2), tol=1e-4)  # 47 steps of tanh


def test_a_convolution_rewritten_for_xla_is_taken_as_a_convolution():
    weight = draw(3, 4)
    shifted = lambda x: sum(jnp.roll(x, k - 1, 1) * weight[2 - k] for k in range(3))

    def direct(x):
        x = jnp.concatenate([x[:, -1:], x, x[:, :1]], 1)
        kernel = weight[::-1][:, None][::-1]
        return lax.conv_general_dilated(
            x, kernel, (1,), "VALID", feature_group_count=4, dimension_numbers=("NHC", "HIO", "NHC")
        )

    def fn(x):
        return lax.platform_dependent(x, cpu=shifted, default=direct)

    x = draw(2, 9, 4)
    check(fn, x, tol=1e-5)
    kinds = [node.get_type_name() for node in build(traced(fn, x)).model.get_ops()]
    assert kinds.count("GroupConvolution") == 1
    assert "Multiply" not in kinds


def test_layers():
    def fn(x):
        normal = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        names = ("gelu", "silu", "softmax", "log_softmax", "softplus", "elu", "relu6", "selu")
        return [normal, *(getattr(jax.nn, name)(x) for name in names)]

    check(fn, X, tol=1e-5)
