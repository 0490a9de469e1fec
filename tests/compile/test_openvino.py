"""The OpenVINO back-end against JAX, primitive by primitive and as a whole."""

import builtins
import concurrent.futures
import gc
import importlib.util
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.compile.openvino import function as back_end
from jaxinfer.compile.openvino.function import (
    OpenVINOFunction,
    OpenVINOUnsupported,
    Quantization,
    compile_jaxpr,
    unsupported,
)
from jaxinfer.compile.openvino.graph import build
from jaxinfer.core.errors import ArtefactError, InputError, InputTypeError, MissingExtraError

if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)
needs_nncf = pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="needs nncf")
RNG = np.random.default_rng(0)


def draw(*shape, scale=1.0):
    return jnp.asarray(RNG.normal(size=shape) * scale, jnp.float32)


X, Y = draw(3, 5, 7), draw(3, 5, 7)
BIG = jnp.asarray(RNG.integers(-(2**31), 2**31, (3, 5, 7)), jnp.int32)
BIG2 = jnp.asarray(RNG.integers(-(2**31), 2**31, (3, 5, 7)), jnp.int32)
WIDE = jnp.asarray(
    [*RNG.normal(size=200) * 10.0 ** RNG.integers(-8, 2, 200), 0, 1, -1, 0.5, -0.5, 1.5, -2.5, 88]
).astype(jnp.float32)
UNIT = jnp.asarray([*RNG.uniform(-0.999, 0.999, 99), *RNG.normal(size=99) * 1e-3, 0], jnp.float32)
LENGTHS = jnp.asarray([2, 0, 4], jnp.int32)


def traced(fn, *args):
    return jax.make_jaxpr(lambda *a: jax.tree.leaves(fn(*a)))(*args)


def check(fn, *args, tol=2e-6):
    """Every output has JAX's shape and dtype, and its numbers to ``tol`` of the largest.

    2e-6 of the largest is some units in the last place of float32 after sums of up to a hundred
    terms in another order; integers and truths have to be equal.
    """
    want = jax.tree.leaves(jax.jit(fn)(*args))
    before = [np.array(a) for a in args]
    got = compile_jaxpr(traced(fn, *args), threads=1)([np.asarray(a) for a in args])
    for held, kept in zip(args, before, strict=True):  # they share memory with OpenVINO
        np.testing.assert_array_equal(np.asarray(held), kept)
    assert len(got) == len(want)
    for place, (g, w) in enumerate(zip(got, want, strict=True)):
        w = np.asarray(w)
        assert (g.shape, g.dtype) == (w.shape, w.dtype), place
        if w.dtype.kind in "bi":
            np.testing.assert_array_equal(g, w, err_msg=f"output {place}")
        else:
            g, w = (a.astype(np.float32) for a in (g, w))
            scale = float(np.abs(w[np.isfinite(w)]).max(initial=0)) or 1.0
            np.testing.assert_allclose(
                g, w, rtol=0, atol=tol * scale, err_msg=f"output {place}", equal_nan=True
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


# Refusals.


def test_everything_that_is_refused_is_named_at_once_with_its_line():
    def fn(x, n, small, words):
        a = lax.erf_inv(x)
        b = lax.atan2(x, x)
        c = lax.rem(n, n)
        d = small + small
        e = words * 2
        f = x.astype(jnp.int8)
        g = lax.reduce_precision(x, 5, 2)
        h = lax.dot(small, small, preferred_element_type=jnp.int32)
        i = lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0)))
        j = lax.complex(x, x)
        k = n // 3
        return a, b, c, d, e, f, g, h, i, j, k

    args = draw(5, 5), BIG[0, 0], jnp.ones((5, 5), jnp.int8), jnp.ones(3, jnp.uint32)
    closed = traced(fn, *args)
    found = unsupported(closed)
    for primitive, reason in {
        "erf_inv": "no counterpart",
        "atan2": "no counterpart",
        "rem": "no counterpart",
        "add": "int8",
        "mul": "uint32",
        "convert_element_type": "out of range",
        "reduce_precision": "mantissa bits",
        "dot_general": "int8",
        "pad": "dilation",
        "complex": "complex64",
        "div": "int32",
        "input 3": "uint32",
        "output 9": "complex64",
    }.items():
        lines = [text for text in found if text.startswith(primitive)]
        assert lines, primitive
        assert any(reason in text for text in lines), (primitive, lines)
    assert sum("test_openvino.py" in text for text in found) >= 9
    with pytest.raises(OpenVINOUnsupported) as caught:
        compile_jaxpr(closed)
    assert caught.value.missing == found
    assert all(text in str(caught.value) for text in found)
    assert "backend='xla'" in str(caught.value)


@pytest.mark.parametrize(
    ("fn", "args", "reason"),
    [
        (lambda x: lax.scan(lambda c, a: (lax.erf_inv(c), a), x, jnp.ones((47, 3))), (X[0, :3, 0],),
         "erf_inv"),
        (lambda k: jax.random.bits(jax.random.wrap_key_data(k), (3,)), (jnp.zeros(2, jnp.uint32),),
         "uint32"),
        (lambda x: lax.sort((x, x), num_keys=2), (X,), "by 2 keys"),
        (lambda x: lax.argmax(x, 1, np.int16), (X,), "int16"),
        (lambda x: jnp.sort(x > 0), (X,), "bool"),
        (lambda x: lax.max(x > 0, x > 1), (X,), "of bool"),
        (lambda x: lax.lt(x > 0, x > 1), (X,), "of bool"),
        (lambda x: lax.exp(x) + lax.cummax(x, 1), (X,), "cummax"),
        (lambda x: x.prod(1), (BIG,), "of int32"),
        (lambda x: lax.population_count(x), (BIG,), "no counterpart"),
        (lambda x: lax.cond(x[0] > 0, lambda x: lax.while_loop(lambda s: s[0] < 9, lambda s: s * 2,
                                                              x), lambda x: x, x),
         (X[0, 0],), "loop of unknown length"),
        (lambda x: jax.vmap(lambda x: lax.while_loop(lambda s: s < 9, lambda s: s * 2, x))(abs(x)),
         (X[0, 0],), "for each row"),
        (lambda x: lax.reduce_window(x, 0, lax.add, (1, 2), (1, 1), "VALID"), (BIG[0],),
         "of integers"),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), ((0, 0), (-1, 0))), (X[0],),
         "negative"),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "VALID", (1, 2)), (X[0],),
         "dilated operand"),
        (lambda x: lax.reduce_window(x[None], 0.0, lax.add, (2,) * 4, (1,) * 4, "SAME"), (X,),
         "over 4 axes"),
        (lambda x: lax.conv_general_dilated(x[..., None, None, None], jnp.ones((5, 5, 1, 1, 1, 1)),
                                            (1,) * 4, "SAME"), (X,), "over 4 axes"),
        (lambda x: lax.conv_general_dilated(x, jnp.ones((6, 5, 1)), (1,), "VALID",
                                            batch_group_count=3), (X,), "groups of the batch"),
        (lambda x: lax.conv_general_dilated(x, jnp.ones((2, 5, 1)), (1,), ((-9, 3),)), (X,),
         "cuts all of an axis"),
        (lambda x: lax.pad(x, 0.0, ((-9, 7, 0),)), (X[0, 0],), "cuts all of an axis"),
    ],
)  # fmt: skip
def test_refusals(fn, args, reason):
    found = unsupported(traced(fn, *args))
    assert any(reason in text for text in found), found


@pytest.mark.parametrize(
    ("fn", "shapes", "reason"),
    [
        (lambda x, i: x[i[:, 0], i[:, 1]], ((2**16, 2**15), (3, 2)), "2.31 elements"),
        (lambda x, i: x.at[i[:, 0], i[:, 1]].set(0.0), ((2**16, 2**15), (3, 2)), "2.31 elements"),
        (lambda x, i: lax.reshape(x, (6,), (1, 0)), ((2, 3), (1,)), "order of dimensions"),
        (lambda x, i: lax.scan(lambda c, a: (c + a.sum(), c), 0.0, x), ((9, 0), (1,)), None),
        (lambda x, i: lax.scan(lambda c, a: (c + i[0], a), 0, x), ((9, 0), (1,)), None),
        (lambda x, i: lax.top_k(x.astype(jnp.bfloat16), 2), ((3, 5), (1,)), "another dtype"),
        (lambda x, i: x.at[i.astype(jnp.int8)].set(0.0), ((3, 5), (1,)), "int8"),
        (lambda x, i: lax.platform_dependent(x, tpu=lambda x: x, cuda=jnp.sin), ((3,), (1,)),
         "(?s)platform_index.*without a branch for the CPU"),
    ],
)  # fmt: skip
def test_refusals_by_shape(fn, shapes, reason):
    """From shapes alone: nothing is allocated."""
    x, i = (
        jax.ShapeDtypeStruct(s, t) for s, t in zip(shapes, (jnp.float32, jnp.int32), strict=True)
    )
    found = unsupported(jax.make_jaxpr(fn)(x, i))
    if reason is None:
        assert not found
    else:
        assert re.search(reason, "\n".join(found)), found


def test_64_bit_programs_are_refused():
    with jax.enable_x64(True):
        closed = traced(lambda x, n: (x * 2, n + 1), np.ones(3), np.ones(3, np.int64))
    found = unsupported(closed)
    assert any("float64" in text and "without x64" in text for text in found)
    assert any(text.startswith("input 1: dtype int64") for text in found)


def test_sizes_have_to_be_numbers():
    (size,) = jax.export.symbolic_shape("batch")
    closed = jax.make_jaxpr(lambda x: x * 2)(jax.ShapeDtypeStruct((size, 3), jnp.float32))
    assert any("have to be numbers" in text for text in unsupported(closed))


def test_gather_by_narrow_indices_is_refused():
    found = unsupported(traced(lambda x, i: x.at[i].get(mode="clip"), X, jnp.ones(2, jnp.int8)))
    assert any("int8" in text for text in found)


# The compiled function.


def net():
    w, v = draw(64, 64, scale=0.2), draw(64, 32, scale=0.2)

    def fn(x, n):
        y = jax.nn.relu(x @ w) @ v
        return (
            *(y, n + 1, x.sum() > 0, x[0, 0], jnp.ones(3), (x * 2).astype(jnp.bfloat16), x[:0]),
            jnp.full((2,), 0.1, jnp.bfloat16),
        )

    return fn, draw(8, 64), jnp.int32(3)


def test_outputs_of_every_kind_and_the_report():
    fn, x, n = net()
    made = compile_jaxpr(traced(fn, x, n), threads=2, options={"PERFORMANCE_HINT": "THROUGHPUT"})
    want = jax.tree.leaves(fn(x, n))
    got = made([x, n])
    assert [(g.shape, g.dtype) for g in got] == [(w.shape, w.dtype) for w in want]
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g.astype(np.float32), np.asarray(w, np.float32), atol=1e-5)
    report = made.report()
    json.dumps(report)
    assert report["precision"] == "f32"
    assert set(report["layers"]) <= {"f32", "i32", "u8"}
    assert report["weight_bytes"] >= 4 * 64 * (64 + 32)
    assert report["computed_in_float32"] == {"convert_element_type": 1}
    assert report["options"]["INFERENCE_NUM_THREADS"] == 2
    assert report["options"]["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert report["fallback"] == []
    assert report["int8"] is None
    assert report["products"] == {"weight": 2}
    assert "openvino" in report["versions"]
    assert made.in_avals == (((8, 64), "float32"), ((), "int32"))
    assert made.out_avals[5] == ((8, 64), "bfloat16")


def test_results_are_not_overwritten_by_the_next_call():
    made = compile_jaxpr(traced(lambda x: (x * 2, jnp.ones(2)), X))
    first, ones = made([X])
    kept = first.copy()
    ones[:] = 7
    again = made([Y])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(again[1], 1)


def test_weights_live_as_long_as_the_function():
    def make():
        w = draw(300, 300)
        closed = jax.make_jaxpr(lambda x: (x @ w, w[0]))(jnp.ones((2, 300)))
        return compile_jaxpr(closed), np.asarray(w)[0].copy()

    made, first = make()
    gc.collect()
    np.testing.assert_array_equal(made([np.ones((2, 300), np.float32)])[1], first)


def test_calls_from_several_threads():
    w = draw(64, 64)
    made = compile_jaxpr(traced(lambda x: jnp.tanh(x @ w), draw(8, 64)))
    inputs = [np.asarray(draw(8, 64)) for _ in range(32)]
    want = [made([x])[0] for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda x: made([x])[0], inputs), want, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_narrow_floats_in_and_out():
    x = X.astype(jnp.bfloat16)
    made = compile_jaxpr(traced(lambda x, h: (x * 2, h + 1), x, X.astype(jnp.float16)))
    got = made([np.asarray(x), np.asarray(X, np.float16)])
    assert [str(g.dtype) for g in got] == ["bfloat16", "float16"]
    np.testing.assert_array_equal(got[0], np.asarray(x * 2))
    assert made.report()["computed_in_float32"] == {"mul": 1, "add": 1}


def test_strided_and_read_only_arrays():
    made = compile_jaxpr(traced(lambda x: x + 1, X))
    turned = np.asarray(X).transpose(2, 1, 0).copy().transpose(2, 1, 0)
    np.testing.assert_array_equal(made([turned])[0], np.asarray(X) + 1)
    assert not np.asarray(X).flags.writeable
    np.testing.assert_array_equal(made([X])[0], np.asarray(X) + 1)


def test_only_constants_and_size_zero():
    made = compile_jaxpr(traced(lambda x: (jnp.arange(3), x.sum(0)), jnp.ones((0, 2))))
    got = made([np.ones((0, 2), np.float32)])
    np.testing.assert_array_equal(got[0], [0, 1, 2])
    np.testing.assert_array_equal(got[1], [0, 0])
    assert made.report()["layers"] == {}
    with pytest.raises(InputError, match="every output"):
        compile_jaxpr(traced(lambda x: jnp.arange(3), X), quantize=[[X]])


def test_inputs_that_do_not_fit():
    made = compile_jaxpr(traced(lambda x, y: x + y, X, X))
    with pytest.raises(InputError, match="required 2 inputs, got 1"):
        made([X])
    with pytest.raises(InputError, match=r"(?s)input 0: required shape.*input 1: required float32"):
        made([X[0], BIG])
    with pytest.raises(InputTypeError, match="input 1: required float32, got int32"):
        made([X, BIG])


def test_nan_is_not_taken():
    made = compile_jaxpr(traced(lambda x, y: x + y, X, X.astype(jnp.bfloat16)))
    bad = np.asarray(X.astype(jnp.bfloat16)).copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="input 1: has NaN"):
        made([X, bad])


def test_comparisons_with_nan_inside():
    """What a division makes of zeros: no comparison with it is true but ``!=``."""

    def fn(x):
        y = x / x  # NaN where x is 0
        return [getattr(lax, n)(y, x) for n in ("eq", "ne", "lt", "le", "gt", "ge")], jnp.isnan(y)

    check(fn, jnp.asarray([0.0, 1.0, 0.5, -2.0] * 7, jnp.float32))


def test_options_that_do_not_exist():
    closed = traced(lambda x: x + 1, X)
    with pytest.raises(
        InputError, match=r"(?s)threads: required.*SPEED: .*no such option.*known: "
    ):
        compile_jaxpr(closed, threads=0, options={"SPEED": "fast"})
    with pytest.raises(InputError, match="does not compile"):
        compile_jaxpr(closed, options={"PERFORMANCE_HINT": "warp"})


def test_another_precision_only_if_asked_for():
    made = compile_jaxpr(traced(lambda x: x + 1, X), options={"INFERENCE_PRECISION_HINT": "bf16"})
    assert made.report()["precision"] == "bf16"


def test_missing_packages_name_the_extra(monkeypatch):
    real = builtins.__import__
    closed = traced(lambda x: x + 1, X)

    def absent(name):
        def load(module, *args):
            if module.split(".")[0] == name:
                raise ImportError(f"No module named {name!r}")
            return real(module, *args)

        monkeypatch.setattr("importlib.import_module", load)

    assert back_end.available() == ""
    absent("nncf")
    with pytest.raises(MissingExtraError, match=r"jaxinfer\[openvino-int8\]"):
        compile_jaxpr(closed, quantize=[[X]])
    absent("openvino")
    assert "jaxinfer[openvino]" in back_end.available()
    with pytest.raises(MissingExtraError, match=r"jaxinfer\[openvino\]"):
        compile_jaxpr(closed)


def test_no_telemetry():
    assert "openvino_telemetry" not in sys.modules


# Files.


@pytest.fixture
def saved(tmp_path):
    fn, x, n = net()
    made = compile_jaxpr(traced(fn, x, n), threads=1)
    names = made.save(tmp_path / "ov")
    assert sorted(names) == sorted(p.name for p in (tmp_path / "ov").iterdir())
    return tmp_path / "ov", made, [x, n]


def test_save_and_load(saved):
    folder, made, args = saved
    again = OpenVINOFunction.load(folder)
    for g, w in zip(again(args), made(args), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_array_equal(g, w)
    report = again.report()
    assert report["options"]["INFERENCE_NUM_THREADS"] == 1
    assert report["precision"] == "f32"
    assert report["computed_in_float32"] == made.report()["computed_in_float32"]
    assert (
        OpenVINOFunction.load(folder, threads=2).report()["options"]["INFERENCE_NUM_THREADS"] == 2
    )


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("openvino.json", None),
        ("openvino.json", b"{"),
        ("openvino.json", ("schema", 9)),
        ("openvino.json", ("in_avals", [[[8, 63], "float32"], [[], "int32"]])),
        ("openvino.json", ("outputs", [0, 1, 2, 3, None, 3, None, None])),
        ("openvino.json", ("inputs", [0, 7])),
        ("openvino.json", ("inputs", [0])),
        ("model.xml", None),
        ("model.xml", b"<net"),
        ("constants.npz", None),
        ("constants.npz", b"PK"),
    ],
)
def test_damaged_files(saved, file, change):
    folder, _, _ = saved
    path = folder / file
    if change is None:
        path.unlink()
    elif isinstance(change, bytes):
        path.write_bytes(change)
    else:
        data = json.loads(path.read_text())
        data[change[0]] = change[1]
        path.write_text(json.dumps(data))
    with pytest.raises(ArtefactError, match="not a program saved for OpenVINO"):
        OpenVINOFunction.load(folder)


def test_save_where_nothing_can_be_written(saved, tmp_path):
    _, made, _ = saved
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="not written"):
        made.save(tmp_path / "file")


# int8, and quantized models.


@needs_nncf
def test_int8_by_calibration(capfd):
    fn, x, n = net()
    closed = traced(fn, x, n)
    batches = [(draw(8, 64), n) for _ in range(3)]
    how = Quantization(iter(batches), preset="mixed", subset=2)
    made, plain = compile_jaxpr(closed, quantize=how), compile_jaxpr(closed)
    report = made.report()
    assert report["layers"].get("i8", 0) + report["layers"].get("u8", 0) >= 3, report["layers"]
    assert report["int8"]["batches"] == 2
    assert report["int8"]["quantizers"] >= 3
    assert not report["int8"]["transformer"]
    got, want = made([x, n])[0].ravel(), plain([x, n])[0].ravel()
    cosine = got @ want / np.linalg.norm(got) / np.linalg.norm(want)
    assert 0.999 < cosine < 1 - 1e-7  # int8, and not float32
    assert capfd.readouterr().out == ""


@needs_nncf
def test_int8_takes_only_batches_that_fit():
    closed = traced(lambda x: x @ jnp.ones((7, 7)), X)
    with pytest.raises(InputError, match="at least one batch"):
        compile_jaxpr(closed, quantize=[])
    with pytest.raises(InputError, match="batch 0: required float32"):
        compile_jaxpr(closed, quantize=[[X[0]]])
    with pytest.raises(InputError, match=r"(?s)preset.*subset"):
        Quantization([], preset="fast", subset=0)


def flat(model, x):
    run = model._run()
    return jax.make_jaxpr(lambda x: jax.tree.leaves(run(model.params, [x])))(x)


def test_quantized_and_pruned_models():
    """Weight-only weights become float constants; integer products are refused with the advice."""
    params = {"w": draw(64, 48), "v": draw(48, 32)}
    model = ji.from_function(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], params, draw(8, 64))
    x = draw(8, 64)
    for changed in (ji.quantize("W8A16")(model), ji.prune(sparsity=0.5)(model)):
        made = compile_jaxpr(flat(changed, x))
        want = np.asarray(changed(x))
        np.testing.assert_allclose(made([x])[0], want, atol=1e-5 * np.abs(want).max())
        assert made.report()["folded"]
    found = unsupported(flat(ji.quantize("W8A8")(model), x))
    assert any(text.startswith("dot_general") and "quantize=" in text for text in found)


# Real architectures.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "vit_base_patch16_224"])
def test_real_models(timm, name):
    import torch

    from tests.conftest import randomize

    torch.manual_seed(0)
    module = randomize(timm.create_model(name, pretrained=False).eval())
    x = torch.randn(1, 3, 224, 224)
    model = ji.from_torch(module, (x,))
    (want,) = jax.tree.leaves(model(x.numpy()))
    got = compile_jaxpr(flat(model, x.numpy()))([x.numpy()])[0]
    # two orders of summation in float32: measured 1.2e-6 and 1.3e-6 of the largest
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
