"""Quantized weights through every primitive that has a rule, against sums in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinfer.core.array_types import RULES, array_rule, is_array_type, materialize
from jaxinfer.core.interpret import Interpreter
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.formats import NF4_LEVELS, format_of
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.numerics.quantize import quantize
from jaxinfer.rules._layout import KINDS

F32 = 64 * 2.0**-23
"""Sums of at most 100 terms in another order, sqrt(terms) ulp, and a few products: ample."""


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def run(fn, *values):
    """Evaluate with the rules; returns results as they are, and what was materialized."""
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
    closed = jax.make_jaxpr(fn)(*shapes)
    interpreter = Interpreter(array_rule)
    outs = interpreter.run(closed.jaxpr, closed.consts, values)
    return outs, [equation.name for equation in interpreter.materialized]


def decoded(q):
    """Return the values of a weight in float64, one element at a time as the formula has it."""
    q = getattr(q, "weight", q)
    codes = np.asarray(q.codes())
    values = np.asarray(NF4_LEVELS)[codes] if q.format == "nf4" else codes.astype(np.float64)

    def spread(part):
        part = np.asarray(part, np.float64)
        for axis, (count, size) in enumerate(zip(part.shape, q.stored, strict=True)):
            part = np.repeat(part, size // count, axis)
        return part

    if q.zero_point is not None:
        values = values - spread(q.zero_point)
    return (values * spread(q.scale))[tuple(map(slice, q.shape))]


def rounded(x, fmt, axes, scale=None):
    """Return activations as their codes stand for them, in float64."""
    x, bound = np.asarray(x, np.float64), format_of(fmt).bound
    most = np.abs(x).max(tuple(axes), keepdims=True, initial=0)
    step = np.where(most == 0, 1, most / bound) if scale is None else np.asarray(scale, np.float64)
    ratio = np.clip(x / step, -bound, bound)
    codes = np.round(ratio) if fmt.startswith("int") else ratio.astype(jnp.dtype(fmt))
    return codes.astype(np.float64) * step


def assert_near(got, want, tol=F32):
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tol * max(np.abs(want).max(initial=0), 1e-3))


# Matrix products.

DOTS = {  # x, w, dimension numbers of (x, w), axes of w that are summed over
    "right": ((5, 12), (12, 11), (((1,), (0,)), ((), ())), (0,)),
    "turned": ((5, 12), (11, 12), (((1,), (1,)), ((), ())), (1,)),
    "two free": ((12, 5), (3, 12, 7), (((0,), (1,)), ((), ())), (1,)),
    "batch": ((5, 3, 12), (12, 3, 7), (((2,), (0,)), ((1,), (1,))), (0,)),
    "two contracting": ((2, 12, 5), (2, 12, 7), (((0, 1), (0, 1)), ((), ())), (0, 1)),
    "vector": ((5, 12), (12,), (((1,), (0,)), ((), ())), (0,)),
}
WEIGHTS = {
    "int8": {},
    "int8 asymmetric": {"symmetric": False},
    "uint8": {},
    "int4": {},
    "uint4": {},
    "float8_e4m3fn": {},
    "nf4": {},
}


def weight_of(name, shape, axes, tile, dtype=jnp.float32):
    (axis, *_) = reversed(axes)
    return quantize(
        normal(shape, 1, dtype) + 0.25,
        name.split()[0],
        axes=axes,
        tiles={axis: tile} if tile else None,
        **WEIGHTS[name],
    )


def flipped(numbers):
    (a, b), (c, d) = numbers
    return (b, a), (d, c)


def einsum(x, w, numbers, side):
    """Sum in float64; ``side`` is where the weight stands."""
    (cx, cw), (bx, bw) = numbers
    letters = iter("abcdefghijklmnop")
    of_x = [next(letters) for _ in range(x.ndim)]
    of_w = [next(letters) for _ in range(w.ndim)]
    for i, j in zip((*cx, *bx), (*cw, *bw), strict=True):
        of_w[j] = of_x[i]
    batch = [of_x[i] for i in bx]
    free_x = [a for i, a in enumerate(of_x) if i not in (*cx, *bx)]
    free_w = [a for j, a in enumerate(of_w) if j not in (*cw, *bw)]
    out = batch + (free_x + free_w if side else free_w + free_x)
    return np.einsum(f"{''.join(of_x)},{''.join(of_w)}->{''.join(out)}", np.asarray(x), w)


def dot(numbers, side):
    if side:
        return lambda w, x: lax.dot_general(x, w, numbers)
    return lambda w, x: lax.dot_general(w, x, flipped(numbers))


def some(cases, whole, weights=tuple(WEIGHTS)):
    """Return pairs of a case and a format: all formats of the whole cases, else a third."""
    return [
        (case, weight)
        for i, case in enumerate(cases)
        for j, weight in enumerate(weights)
        if case in whole or (i + j) % 3 == 0
    ]


def dots():
    """Return layouts with formats, and runs of 0 (all), 4 and 5 of 12 in turn."""
    turns = itertools.cycle((4, 0, 5))
    pairs = some(DOTS, ("right", "two contracting"))
    return [(*pair, tile) for pair, tile in zip(pairs, turns, strict=False)]


@pytest.mark.parametrize(("case", "weight", "tile"), dots())
def test_dot_general(case, weight, tile):
    shape, own, numbers, axes = DOTS[case]
    x, q = normal(shape, 2), weight_of(weight, own, axes, tile)
    for side in (0, 1):
        (got,), used = run(dot(numbers, side), q, x)
        assert used == []
        assert got.dtype == jnp.float32
        assert_near(got, einsum(np.asarray(x, np.float64), decoded(q), numbers, side))


@pytest.mark.parametrize(("case", "weight", "tile"), [d for d in dots() if d[1] != "uint8"])
def test_dot_general_of_quantized_activations(case, weight, tile):
    shape, own, numbers, axes = DOTS[case]
    x, q = normal(shape, 2), weight_of(weight, own, axes, tile)
    fmt = "float8_e4m3fn" if weight.startswith("float8") else "int8"
    static = jnp.full((1,) * q.ndim, 0.01 if fmt == "int8" else 0.003)
    for side, scale in itertools.product((0, 1), (None, static)):
        (got,), used = run(dot(numbers, side), ActQTensor(q, scale, fmt), x)
        assert used == []
        whole = None if scale is None else float(static.max())
        values = rounded(x, fmt, numbers[0][0], whole)
        if scale is not None:
            assert np.abs(values).max() <= whole * format_of(fmt).bound < np.abs(x).max()
        assert_near(got, einsum(values, decoded(q), numbers, side))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", DOTS)
def test_dot_general_in_bfloat16(case, kind):
    """Codes are exact in bf16; one or two roundings of the result, 2**-8 each with the sums'."""
    shape, own, numbers, axes = DOTS[case]
    x = normal(shape, 2, jnp.bfloat16)
    for tile, side in itertools.product((0, 4), (0, 1)):
        q = weight_of("int8", own, axes, tile, jnp.bfloat16)
        value = q if kind == "QTensor" else ActQTensor(q, None, "int8")
        (got,), _ = run(dot(numbers, side), value, x)
        assert got.dtype == jnp.bfloat16
        values = np.asarray(x, np.float64)
        values = values if kind == "QTensor" else rounded(x, "int8", numbers[0][0])
        # in groups the weight is rounded to bf16 before the product
        assert_near(got, einsum(values, decoded(q), numbers, side), 2.0**-7)


def test_zero_rows_are_exact():
    x = normal((3, 8)).at[1].set(0)
    q = quantize(normal((8, 5), 1).at[:, 2].set(0), "int8", axes=(0,))
    for value in (q, ActQTensor(q, None, "int8"), ActQTensor(q, None, "float8_e4m3fn")):
        (got,), _ = run(lambda w, x: x @ w, value, x)
        assert np.isfinite(got).all()
        assert (np.asarray(got)[1] == 0).all()
        assert (np.asarray(got)[:, 2] == 0).all()


@pytest.mark.parametrize("size", [1e-38, 1e30])
def test_tiny_and_huge_activations(size):
    x, q = normal((3, 8)) * size, quantize(normal((8, 5), 1), "int8", axes=(0,))
    (got,), _ = run(lambda w, x: x @ w, ActQTensor(q, None, "int8"), x)
    want = rounded(x, "int8", (1,)) @ decoded(q)
    # a scale is at least the least normal number: of 1e-38 values it is 1e-40 rounded up
    bound = np.finfo(np.float32).tiny * np.abs(decoded(q)).sum(0).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=F32 * np.abs(want).max() + bound)


def test_empty_operands():
    q = quantize(normal((8, 5)), "int8", axes=(0,))
    for value in (q, ActQTensor(q, None, "int8")):
        (got,), _ = run(lambda w, x: x @ w, value, jnp.zeros((0, 8)))
        assert got.shape == (0, 5)


def test_int4_packed_along_each_axis():
    for axis in (0, 1):
        shape = [7, 7]
        shape[axis] = 8
        q = quantize(normal(shape), "int4", axes=(0,))
        assert q.packed == axis - 2 or axis == 0
        (got,), used = run(lambda w, x: x @ w, q, normal((3, shape[0]), 2))
        assert used == []
        assert_near(got, np.asarray(normal((3, shape[0]), 2), np.float64) @ decoded(q))
    packed = {quantize(normal(s), "int4", axes=(0,)).packed for s in ((8, 7), (7, 8))}
    assert packed == {-2, -1} or packed == {-2}


def test_two_quantized_operands_are_decoded_and_recorded():
    a, b = (quantize(normal(s, i), "int8", axes=(0,)) for i, s in enumerate(((3, 8), (8, 5))))
    (got,), used = run(jnp.dot, a, b)
    assert used == ["dot_general"]
    assert_near(got, decoded(a) @ decoded(b))
    mixed = ActQTensor(b, None, "int8")
    (got,), used = run(jnp.dot, a, mixed)
    assert used == ["dot_general"]


# Convolutions.

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
CONVS = {
    "nhwc": ((2, 6, 5, 4), (3, 2, 4, 6), NHWC, {}),
    "nchw": ((2, 4, 6, 5), (6, 4, 3, 2), NCHW, {"window_strides": (2, 1), "padding": "SAME"}),
    "grouped": ((2, 6, 5, 4), (3, 2, 2, 6), NHWC, {"feature_group_count": 2}),
    "grouped nchw": ((2, 4, 6, 5), (6, 2, 3, 2), NCHW, {"feature_group_count": 2}),
    "depthwise": ((2, 6, 5, 4), (3, 2, 1, 8), NHWC, {"feature_group_count": 4}),
    "transposed": ((2, 6, 5, 4), (3, 2, 4, 6), NHWC,
                   {"lhs_dilation": (2, 3), "padding": ((2, 1), (1, 1))}),
    "dilated": ((2, 6, 5, 4), (3, 2, 4, 6), NHWC, {"rhs_dilation": (2, 1)}),
    "1d": ((2, 4, 9), (6, 4, 3), ("NCH", "OIH", "NCH"), {"padding": ((2, 0),)}),
    "pointwise": ((2, 4, 9), (6, 4, 1), ("NCH", "OIH", "NCH"), {}),
}  # fmt: skip


def convolution(case):
    shape, own, numbers, options = CONVS[case]
    rank = len(shape) - 2
    given = {"window_strides": (1,) * rank, "padding": "VALID", **options}
    return (
        shape,
        own,
        lambda w, x: lax.conv_general_dilated(x, w, dimension_numbers=numbers, **given),
    )


def convolved(x, w, eqn):
    """Convolve in float64, output by output."""
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    x, w = x.transpose(numbers.lhs_spec), w.transpose(numbers.rhs_spec)

    def dilate(a, steps):
        shape = [*a.shape[:2], *((n - 1) * s + 1 for n, s in zip(a.shape[2:], steps, strict=True))]
        out = np.zeros(shape)
        out[(..., *(slice(None, None, s) for s in steps))] = a
        return out

    x = np.pad(dilate(x, p["lhs_dilation"]), [(0, 0), (0, 0), *p["padding"]])
    w = dilate(w, p["rhs_dilation"])
    sizes = [(n - k) // s + 1 for n, k, s in
             zip(x.shape[2:], w.shape[2:], p["window_strides"], strict=True)]  # fmt: skip
    groups, outs = p["feature_group_count"], w.shape[0]
    y = np.zeros((x.shape[0], outs, *sizes))
    for at in itertools.product(*map(range, sizes)):
        window = x[(..., *(slice(i * s, i * s + k) for i, s, k in
                           zip(at, p["window_strides"], w.shape[2:], strict=True)))]  # fmt: skip
        for o in range(outs):
            first = o // (outs // groups) * w.shape[1]
            part = window[:, first : first + w.shape[1]]
            y[(slice(None), o, *at)] = (part * w[o]).reshape(len(x), -1).sum(1)
    return y.transpose(np.argsort(numbers.out_spec))


@pytest.mark.parametrize(("case", "weight"), some(CONVS, ("nhwc",)))
def test_conv_general_dilated(case, weight):
    shape, own, fn = convolution(case)
    x = normal(shape, 2)
    (eqn,) = jax.make_jaxpr(fn)(jnp.zeros(own), x).eqns
    numbers = eqn.params["dimension_numbers"]
    summed = numbers.rhs_spec[1:]
    for tile in (0, 3) if case == "nhwc" else (0,):
        q = weight_of(weight, own, sorted(summed), tile)
        (got,), used = run(fn, q, x)
        assert used == []
        assert_near(got, convolved(np.asarray(x, np.float64), decoded(q), eqn))
        if weight not in ("int8", "int4", "nf4", "float8_e4m3fn"):
            continue
        fmt = "float8_e4m3fn" if weight.startswith("float8") else "int8"
        image = [axis for axis in range(x.ndim) if axis != numbers.lhs_spec[0]]
        for scale in (None, jnp.full((1,) * q.ndim, 0.02)):
            (got,), used = run(fn, ActQTensor(q, scale, fmt), x)
            values = rounded(x, fmt, image, None if scale is None else 0.02)
            assert_near(got, convolved(values, decoded(q), eqn))
            assert used == []


def test_a_quantized_image_is_decoded_and_recorded():
    shape, own, fn = convolution("nhwc")
    image = quantize(normal(shape), "int8", axes=(1, 2, 3))
    kernel = normal(own, 1)
    (got,), used = run(lambda x, w: fn(w, x), image, kernel)
    assert used == ["conv_general_dilated"]
    assert_near(got, np.asarray(fn(kernel, image.materialize()), np.float64))


# Rows of groups.


@pytest.mark.parametrize("tile", [0, 4])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_ragged_dot(weight, tile):
    x, sizes = normal((7, 8), 2), jnp.array([2, 0, 4, 1], jnp.int32)
    q = weight_of(weight, (4, 8, 5), (1,), tile)
    group = np.repeat(np.arange(4), np.asarray(sizes))

    def want(x):
        return np.stack([row @ decoded(q)[g] for row, g in zip(x, group, strict=True)])

    fn = lambda w, x: lax.ragged_dot(x, w, sizes)
    (got,), used = run(fn, q, x)
    assert used == []
    assert_near(got, want(np.asarray(x, np.float64)))
    if weight != "uint8":
        fmt = "float8_e4m3fn" if weight.startswith("float8") else "int8"
        for scale in (None, jnp.full((1, 1, 1), 0.02)):
            (got,), used = run(fn, ActQTensor(q, scale, fmt), x)
            assert used == []
            assert_near(got, want(rounded(x, fmt, (1,), None if scale is None else 0.02)))


def test_ragged_dot_with_rows_of_no_group():
    """Rows behind the last group are zero."""
    x, sizes = normal((7, 8), 2), jnp.array([2, 1], jnp.int32)
    q = quantize(normal((2, 8, 5)), "int8", axes=(1,))
    for value in (q, ActQTensor(q, None, "int8")):
        (got,), _ = run(lambda w, x: lax.ragged_dot(x, w, sizes), value, x)
        assert (np.asarray(got)[3:] == 0).all()
        assert np.abs(got[:3]).max() > 0


# Rows.

IDS = jnp.array([[0, 3], [8, -1], [23, 9]])  # 23 rows: one is beyond them, one before
GATHERS = {
    "fill": lambda w: jnp.take(w, IDS, axis=0, mode="fill"),
    "clip": lambda w: jnp.take(w, IDS, axis=0, mode="clip"),
    "promise": lambda w: w.at[IDS[:1]].get(mode="promise_in_bounds"),
    "fill 0": lambda w: w.at[IDS].get(mode="fill", fill_value=0),
    "fill 5": lambda w: w.at[IDS].get(mode="fill", fill_value=5),
    "fill -1": lambda w: w.at[IDS].get(mode="fill", fill_value=-1.5),
    "index": lambda w: w[IDS],
    "columns": lambda w: jnp.take(w, jnp.array([1, 4, 6]), axis=1),
    "elements": lambda w: w[jnp.array([1, 22]), jnp.array([0, 5])],
    "part": lambda w: lax.gather(
        w, jnp.array([[2], [5]]),
        lax.GatherDimensionNumbers((1,), (0,), (0,)), (1, 4), mode="clip"),
    "first": lambda w: lax.gather(
        w, jnp.array([[2], [5]]),
        lax.GatherDimensionNumbers((0,), (0,), (0,)), (1, 7), mode="clip"),
}  # fmt: skip


@pytest.mark.parametrize("weight", ["int8", "uint4", "float8_e4m3fn", "nf4"])
@pytest.mark.parametrize("case", GATHERS)
def test_gather(case, weight):
    q = quantize(normal((23, 7)), weight.split()[0], axes=(1,), **WEIGHTS[weight])
    fn = GATHERS[case]
    want = np.asarray(fn(q.materialize()))
    declined = case in ("columns", "elements", "part", "first", "fill 5", "fill -1")
    for value in (q, ActQTensor(q, None, "int8")):
        (got,), used = run(fn, value)
        assert not is_array_type(got)
        np.testing.assert_allclose(got, want, rtol=2.0**-23, atol=0)
        assert [name for name in used if name == "gather"] == ["gather"] * declined


def test_gather_of_experts():
    q = quantize(normal((3, 7, 12)), "int4", axes=(1,), tiles={1: 4})
    (got,), used = run(lambda w: w[jnp.array([2, 0])], q)
    assert used == []
    np.testing.assert_array_equal(got, q.materialize()[jnp.array([2, 0])])


# Layout.

START = jnp.int32(1)
LAYOUTS = {
    "transpose": (lambda w: lax.transpose(w, (2, 0, 1)), ()),
    "reshape": (lambda w: lax.reshape(w, (4, 8, 2, 3)), ()),
    "broadcast_in_dim": (lambda w: lax.broadcast_in_dim(w, (1, 4, 8, 6), (1, 2, 3)), ()),
    "squeeze": (lambda w: lax.squeeze(lax.slice(w, (1, 0, 0), (2, 8, 6)), (0,)), ()),
    "slice": (lambda w: lax.slice(w, (1, 0, 2), (4, 8, 5)), ()),
    "dynamic_slice": (lambda w, i: lax.dynamic_slice(w, (i, 0, 0), (2, 8, 6)), (START,)),
    "split": (lambda w: lax.split(w, (2, 1, 3), 2), ()),
    "copy": (jnp.copy, ()),
    "stop_gradient": (lax.stop_gradient, ()),
    "convert_element_type": (lambda w: w.astype(jnp.bfloat16), ()),
    "optimization_barrier": (lax.optimization_barrier, ()),
}


@pytest.mark.parametrize(
    ("weight", "kind"),
    [("int8", "QTensor"), ("uint4", "QTensor"), ("int8", "ActQTensor"), ("int4", "static")],
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_stay_quantized(name, weight, kind):
    fn, rest = LAYOUTS[name]
    q = quantize(normal((4, 8, 6)), weight.split()[0], axes=(1,), **WEIGHTS[weight])
    value = q
    if kind != "QTensor":
        layers = jnp.arange(1.0, 5.0).reshape(4, 1, 1)
        value = ActQTensor(q, layers if kind == "static" else None, "int8")
    outs, used = run(fn, value, *rest)
    want = fn(q.materialize(), *rest)
    want = want if isinstance(want, (list, tuple)) else [want]
    assert len(outs) == len(want)
    if (name, kind) == ("reshape", "static"):  # of several layers: it declines
        assert used == ["reshape"]
        return
    assert used == []
    for got, each in zip(outs, want, strict=True):
        assert type(got) is type(value)
        assert got.shape == each.shape
        assert got.dtype == each.dtype
        got.validate("it")
        np.testing.assert_array_equal(
            np.asarray(got.materialize(), np.float32), np.asarray(each, np.float32)
        )
    if kind == "static":
        (got, *_) = outs
        layer = {"squeeze": [2], "slice": [2, 3, 4], "dynamic_slice": [2, 3]}
        assert got.scale.ravel().tolist() == layer.get(name, [1, 2, 3, 4])
        axis = 1 if name in ("transpose", "broadcast_in_dim") else 0
        assert name == "squeeze" or got.scale.shape[axis] == got.scale.size


DECLINED = {
    "a mixed reshape": (lambda w: lax.reshape(w, (24, 8)), "reshape"),
    "a real broadcast": (
        lambda w: lax.broadcast_in_dim(w, (2, 4, 8, 6), (1, 2, 3)), "broadcast_in_dim"),
    "a stride": (lambda w: lax.slice(w, (0, 0, 0), (4, 8, 6), (1, 1, 2)), "slice"),
    "to integers": (lambda w: w.astype(jnp.int32), "convert_element_type"),
    "turned round": (lambda w: lax.rev(w, (0,)), "rev"),
    "another use": (jnp.tanh, "tanh"),
    "a dynamic slice of what is summed": (
        lambda w: lax.dynamic_slice(w, (0, START, 0), (4, 5, 6)), "dynamic_slice"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", DECLINED)
def test_what_is_declined_is_decoded_and_recorded(case, kind):
    fn, primitive = DECLINED[case]
    q = quantize(normal((4, 8, 6)), "int8", axes=(1,))
    (got,), used = run(fn, q if kind == "QTensor" else ActQTensor(q, None, "int8"))
    assert not is_array_type(got)
    assert used == [primitive]
    np.testing.assert_array_equal(got, fn(q.materialize()))


def test_a_sharding_constraint_holds_for_all_parts():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    q = quantize(normal((4, 6)), "int4", axes=(0,))
    for value in (q, ActQTensor(q, jnp.ones((1, 1)), "int8")):
        (got,), used = run(lambda w: lax.with_sharding_constraint(w, where), value)
        assert type(got) is type(value)
        assert used == []
        np.testing.assert_array_equal(got.materialize(), q.materialize())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_within_shard_map(kind):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    q = quantize(normal((4, 6)), "int8", axes=(0,))
    value = q if kind == "QTensor" else ActQTensor(q, None, "int8")

    def fn(w, x):
        body = lambda w, x: lax.psum(x @ lax.pcast(w, "x", to="varying"), "x")
        return jax.shard_map(body, mesh=mesh, in_specs=(spec(), spec()), out_specs=spec())(w, x)

    x = jnp.ones((2, 4))
    (got,), used = run(fn, value, x)
    assert used == []
    values = np.ones((2, 4)) if kind == "QTensor" else rounded(x, "int8", (1,))
    assert_near(got, values @ decoded(q))


def test_scales_have_gradients():
    q = quantize(normal((4, 6)), "int8", axes=(0,))
    x = normal((3, 4), 1)

    def total(scale):
        made = QTensor(q.qvalue, scale, None, q.format, q.logical_dtype, q.packed, q.sizes)
        return run(lambda w, x: x @ w, made, x)[0][0].sum()

    want = (np.asarray(x, np.float64) @ np.asarray(q.codes(), np.float64)).sum(0, keepdims=True)
    assert_near(jax.grad(total)(q.scale), want)


MOVED = {"copy_p", "pvary", "pcast"}
"""Names of ``copy`` and of ``pcast`` (above) in other versions of JAX, by the same rule."""


def test_every_rule_is_tested():
    products = ("dot_general", "conv_general_dilated", "ragged_dot_general", "gather")
    tested = {*LAYOUTS, *products, "sharding_constraint", *MOVED}
    registered = {name for name in RULES if name.split(".")[0] in KINDS}
    assert registered <= {f"{kind}.{name}" for kind in KINDS for name in tested}
    assert materialize(jnp.ones(2)).shape == (2,)
