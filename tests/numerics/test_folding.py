"""Folded equals unfolded within the derived bound, both against loops of numpy in float64.

The bound of a case is f M: f from ``rounding_bound``, M the sum of the magnitudes of all terms,
which is the same computation on absolute values.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.core.flops import count
from jaxinfer.numerics import folding
from jaxinfer.numerics.folding import (
    DENSE,
    HWIO,
    IOHW,
    OIHW,
    TORCH_DENSE,
    Layout,
    affine_of_norm,
    compose,
    concatenate,
    rounding_bound,
    scale_inputs,
    scale_outputs,
    split,
    worth_composing,
)

DTYPES = ["float32", "bfloat16", "float16"]
EPSILON = 1e-3


def rand(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def wide(x):
    return np.asarray(x).astype(np.float64)


def assert_within(a, b, factor, magnitude):
    assert a.shape == magnitude.shape
    assert (abs(wide(a) - wide(b)) <= factor * magnitude).all()


def norm_of(channels, dtype, seed=10):
    mean, gamma, beta = (rand(channels, seed=seed + i, dtype=dtype) for i in range(3))
    return mean, abs(rand(channels, seed=seed + 3, dtype=dtype)) + 0.1, gamma, beta


def normalize(y, mean, var, gamma, beta):
    """Normalize as a model does, in the dtype it has."""
    epsilon = np.asarray(EPSILON, y.dtype)
    root = 1 / np.sqrt(var + epsilon) if y.dtype == np.float64 else lax.rsqrt(var + epsilon)
    return (y - mean) * root * gamma + beta


# Kinds of convolution: layout, kernel shape, inputs, outputs, then strides, padding, dilations.
PLAIN = {"stride": 1, "pad": 0, "between": 1, "apart": 1}
CONVOLUTIONS = {
    "hwio": (HWIO, (3, 2, 4, 6), 4, 6, {}),
    "oihw": (OIHW, (6, 4, 3, 2), 4, 6, {}),
    "padded": (HWIO, (3, 2, 4, 6), 4, 6, {"pad": 2, "stride": 2}),
    "dilated": (OIHW, (6, 4, 3, 2), 4, 6, {"apart": 2}),
    "grouped hwio": (HWIO._replace(groups=2), (3, 2, 2, 6), 4, 6, {}),
    "grouped oihw": (OIHW._replace(groups=2), (6, 2, 3, 2), 4, 6, {"stride": 2}),
    "depthwise hwio": (HWIO._replace(groups=4), (3, 2, 1, 8), 4, 8, {}),
    "depthwise oihw": (OIHW._replace(groups=4), (8, 1, 3, 2), 4, 8, {"pad": 1}),
    "transposed": (HWIO, (3, 2, 4, 6), 4, 6, {"pad": 1, "between": 2}),
    "transposed iohw": (IOHW, (4, 6, 3, 2), 4, 6, {"pad": 1, "between": 2}),
    "transposed grouped": (IOHW._replace(groups=2), (4, 3, 3, 2), 4, 6, {"pad": 1, "between": 2}),
    "transposed depthwise": (IOHW._replace(groups=4), (4, 2, 3, 2), 4, 8, {"pad": 1, "between": 2}),
    "one channel": (HWIO, (3, 2, 1, 1), 1, 1, {}),
}


def to_hwio(kernel, layout):
    """Return the kernel as [taps, inputs / groups, outputs] of a plain correlation."""
    if layout.output == -1:
        return kernel
    if not layout.inputs_whole:
        return kernel.transpose(2, 3, 1, 0)
    inputs, each, *taps = kernel.shape
    groups = layout.groups
    k = kernel.reshape(groups, inputs // groups, each, *taps)[..., ::-1, ::-1]
    return k.transpose(3, 4, 1, 0, 2).reshape(*taps, inputs // groups, groups * each)


def convolve(x, kernel, layout, options):
    o = {**PLAIN, **options}
    y = lax.conv_general_dilated(
        x,
        to_hwio(kernel, layout),
        (o["stride"],) * 2,
        [(o["pad"],) * 2] * 2,
        (o["between"],) * 2,
        (o["apart"],) * 2,
        ("NHWC", "HWIO", "NHWC"),
        feature_group_count=layout.groups,
        precision="highest",
    )
    assert y.dtype == x.dtype
    return y


def convolve64(x, kernel, layout, options):
    """Loop over outputs, taps and groups in float64."""
    o, k, x = {**PLAIN, **options}, wide(to_hwio(kernel, layout)), wide(x)
    b, h, w, c = x.shape
    between = np.zeros((b, (h - 1) * o["between"] + 1, (w - 1) * o["between"] + 1, c))
    between[:, :: o["between"], :: o["between"]] = x
    x = np.pad(between, [(0, 0), (o["pad"],) * 2, (o["pad"],) * 2, (0, 0)])
    reach = [(n - 1) * o["apart"] + 1 for n in k.shape[:2]]
    size = [(n - r) // o["stride"] + 1 for n, r in zip(x.shape[1:3], reach, strict=True)]
    y = np.zeros((b, *size, k.shape[3]))
    ins, outs = k.shape[2], k.shape[3] // layout.groups
    for i, j, s, t, g in itertools.product(
        *(range(n) for n in (*size, *k.shape[:2], layout.groups))
    ):
        at = x[:, i * o["stride"] + s * o["apart"], j * o["stride"] + t * o["apart"]]
        mine = slice(g * outs, (g + 1) * outs)
        y[:, i, j, mine] += at[:, g * ins : (g + 1) * ins] @ k[s, t, :, mine]
    return y


def case(name, dtype):
    layout, shape, inputs, outputs, options = CONVOLUTIONS[name]
    x = rand(2, 6, 5, inputs, seed=1, dtype=dtype)
    terms = int(np.prod(shape)) // shape[layout.output] * (inputs if layout.inputs_whole else 1)
    return layout, rand(*shape, seed=2, dtype=dtype), x, inputs, outputs, options, terms


@pytest.mark.parametrize("name", ["transposed iohw", "transposed grouped", "transposed depthwise"])
def test_the_transposed_convolution_of_these_tests_is_torch_s(name):
    torch = pytest.importorskip("torch")
    layout, kernel, x, *_, options, _ = case(name, "float32")
    want = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(wide(x)).permute(0, 3, 1, 2),
        torch.from_numpy(wide(kernel)),
        stride=2,
        groups=layout.groups,
    )
    # torch's padding 0 is k - 1 zeros around, here 1: one fewer at each end of 3 taps, none of 2
    got = convolve64(x, kernel, layout, options)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1)[:, 1:-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_batch_norm_into_a_convolution(name, with_bias, dtype):
    layout, kernel, x, _, outputs, options, terms = case(name, dtype)
    bias = rand(outputs, seed=3, dtype=dtype) if with_bias else None
    norm = norm_of(outputs, dtype)
    scale, shift = affine_of_norm(*norm, epsilon=EPSILON)
    new, new_bias = jax.jit(lambda k, b: scale_outputs(k, b, scale, shift, layout=layout))(
        kernel, bias
    )
    assert new.dtype == new_bias.dtype == kernel.dtype
    assert new.shape == kernel.shape

    y = convolve(x, kernel, layout, options)
    unfolded = normalize(y if bias is None else y + bias, *norm)
    folded = convolve(x, new, layout, options) + new_bias
    bias64 = np.zeros(outputs) if bias is None else wide(bias)
    mean, var, gamma, beta = map(wide, norm)
    exact = normalize(convolve64(x, kernel, layout, options) + bias64, mean, var, gamma, beta)
    size = convolve64(abs(x), abs(kernel), layout, options) + abs(bias64) + abs(mean)
    magnitude = size * abs(gamma) / np.sqrt(var + EPSILON) + abs(beta)
    factor = rounding_bound(terms, dtype)
    assert_within(folded, unfolded, factor, magnitude)
    assert_within(folded, exact, factor, magnitude)
    wrong = convolve(x, kernel, layout, options) + new_bias
    with pytest.raises(AssertionError):
        assert_within(wrong, exact, factor, magnitude)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_affine_before_a_convolution(name, dtype):
    layout, kernel, x, inputs, outputs, options, terms = case(name, dtype)
    padded = options.get("pad", 0) > 0
    scale = rand(inputs, seed=5, dtype=dtype)
    shift = None if padded else rand(inputs, seed=6, dtype=dtype)
    bias = rand(outputs, seed=7, dtype=dtype)
    new, new_bias = scale_inputs(kernel, bias, scale, shift, padded=padded, layout=layout)
    shift = jnp.zeros_like(scale) if shift is None else shift
    unfolded = convolve(x * scale + shift, kernel, layout, options) + bias
    folded = convolve(x, new, layout, options) + new_bias
    exact = convolve64(wide(x) * wide(scale) + wide(shift), kernel, layout, options) + wide(bias)
    size = abs(wide(x) * wide(scale)) + abs(wide(shift))
    magnitude = convolve64(size, abs(kernel), layout, options) + abs(wide(bias))
    factor = rounding_bound(terms, dtype)
    assert_within(folded, unfolded, factor, magnitude)
    assert_within(folded, exact, factor, magnitude)


def test_a_shift_through_padding_would_be_wrong_and_is_refused():
    layout, kernel, x, inputs, *_, options, terms = case("padded", "float32")
    scale, shift = rand(inputs, seed=5), rand(inputs, seed=6)
    with pytest.raises(InputError, match=r"conv\.weight: a shift before a padded or transposed"):
        scale_inputs(kernel, None, scale, shift, padded=True, layout=layout, path="conv.weight")
    new, bias = scale_inputs(kernel, None, scale, shift, padded=False, layout=layout)
    folded = convolve(x, new, layout, options) + bias
    exact = convolve64(x * scale + shift, kernel, layout, options)
    size = convolve64(abs(x * scale) + abs(shift), abs(kernel), layout, options)
    with pytest.raises(AssertionError):
        assert_within(folded, exact, rounding_bound(terms, "float32"), size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [DENSE, TORCH_DENSE])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_dense(layout, rows, dtype):
    x, w = rand(rows, 11, dtype=dtype), rand(11, 5, seed=1, dtype=dtype)
    a, b = rand(5, seed=2, dtype=dtype), rand(5, seed=3, dtype=dtype)
    stored = w if layout == DENSE else w.T
    back = lambda k: k if layout == DENSE else k.T
    new, bias = scale_outputs(stored, None, a, b, layout=layout)
    exact = wide(x) @ wide(w) * wide(a) + wide(b)
    size = abs(wide(x)) @ abs(wide(w)) * abs(wide(a)) + abs(wide(b))
    assert_within(x @ back(new) + bias, x @ w * a + b, rounding_bound(11, dtype), size)
    assert_within(x @ back(new) + bias, exact, rounding_bound(11, dtype), size)

    a, b = rand(11, seed=2, dtype=dtype), rand(11, seed=3, dtype=dtype)
    new, bias = scale_inputs(stored, None, a, b, padded=False, layout=layout)
    exact = (wide(x) * wide(a) + wide(b)) @ wide(w)
    size = (abs(wide(x) * wide(a)) + abs(wide(b))) @ abs(wide(w))
    assert_within(x @ back(new) + bias, (x * a + b) @ w, rounding_bound(11, dtype), size)
    assert_within(x @ back(new) + bias, exact, rounding_bound(11, dtype), size)


def test_scales_alone_need_no_bias():
    w, a = rand(3, 5), rand(5, seed=1)
    assert scale_outputs(w, None, a)[1] is None
    assert scale_inputs(w, None, rand(3), padded=True)[1] is None
    bias = rand(5, seed=2)
    assert scale_inputs(w, bias, rand(3), padded=False)[1] is bias
    np.testing.assert_array_equal(scale_outputs(w, bias, a)[1], bias * a)


def test_several_axes():
    """x[b, d] and w[e, d, n, h] give y[b, e, n, h]: experts and heads are outputs."""
    w, a, x = rand(2, 7, 3, 5), rand(5, 2, 3, seed=1), rand(4, 7, seed=2)
    layout = Layout(output=(3, 0, 2), input=1)  # in the order that the scale has
    new, bias = scale_outputs(w, None, a, 2 * a, layout=layout)
    want = np.einsum("bd,ednh,hen->bhen", *map(wide, (x, w, a))) + wide(2 * a)
    size = np.einsum("bd,ednh,hen->bhen", *(abs(wide(v)) for v in (x, w, a))) + abs(wide(2 * a))
    got = jnp.einsum("bd,ednh->bhen", x, new) + bias
    assert_within(got, want, rounding_bound(7, "float32"), size)

    w, a = rand(3, 7, 5), rand(7, 3, seed=3)  # y[b, o] of x[b, h, n] and w[n, h, o]
    x = rand(4, 7, 3, seed=4)
    new, bias = scale_inputs(w, None, a, 2 * a, padded=False, layout=Layout(2, (1, 0)))
    want = np.einsum("bhn,nho->bo", wide(x) * wide(a) + wide(2 * a), wide(w))
    size = np.einsum("bhn,nho->bo", abs(wide(x) * wide(a)) + abs(wide(2 * a)), abs(wide(w)))
    got = jnp.einsum("bhn,nho->bo", x, new) + bias
    assert_within(got, want, rounding_bound(21, "float32"), size)


def test_under_vmap_and_eval_shape():
    kernel, bias, scale = rand(4, 3, 3, 2, 6), rand(4, 6, seed=1), rand(4, 6, seed=2)
    fold = lambda k, b, s: scale_outputs(k, b, s, s, layout=HWIO)
    got = jax.vmap(fold)(kernel, bias, scale)
    for i in range(4):
        for x, y in zip(fold(kernel[i], bias[i], scale[i]), got, strict=True):
            np.testing.assert_allclose(x, y[i], rtol=1e-6)
    shapes = jax.eval_shape(fold, kernel[0], bias[0], scale[0])
    assert [s.shape for s in shapes] == [(3, 3, 2, 6), (6,)]


def test_norm_without_gamma_and_beta_and_in_float64():
    mean, var, *_ = norm_of(5, "float32")
    scale, shift = affine_of_norm(mean, var, epsilon=EPSILON)
    np.testing.assert_allclose(scale, 1 / np.sqrt(wide(var) + EPSILON), rtol=1e-6)
    np.testing.assert_allclose(shift, -wide(mean) / np.sqrt(wide(var) + EPSILON), rtol=1e-6)
    with jax.enable_x64(True):
        mean, var, gamma, beta = (jnp.asarray(wide(v)) for v in norm_of(5, "float32"))
        scale, shift = affine_of_norm(mean, var, gamma, beta, epsilon=EPSILON)
        assert scale.dtype == shift.dtype == jnp.float64
        w, x = jnp.asarray(wide(rand(7, 5))), jnp.asarray(wide(rand(3, 7)))
        new, bias = scale_outputs(w, None, scale, shift)
        got, want = x @ new + bias, normalize(wide(x @ w), *map(wide, (mean, var, gamma, beta)))
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biases", [*itertools.product([False, True], repeat=2)])
def test_compose(biases, dtype):
    x, w1, w2 = rand(4, 7, dtype=dtype), rand(7, 3, seed=1, dtype=dtype), rand(3, 5, dtype=dtype)
    c1, c2 = (
        rand(n, seed=2, dtype=dtype) if some else None
        for n, some in zip((3, 5), biases, strict=True)
    )
    kernel, bias = compose(w1, w2, c1, c2)
    assert (bias is None) == (not any(biases))
    zero = lambda c, n: jnp.zeros(n, dtype) if c is None else c
    bias, c1, c2 = zero(bias, 5), zero(c1, 3), zero(c2, 5)
    exact = (wide(x) @ wide(w1) + wide(c1)) @ wide(w2) + wide(c2)
    size = abs(wide(x)) @ abs(wide(w1)) + abs(wide(c1))
    size = size @ abs(wide(w2)) + abs(wide(c2))
    folded = x @ kernel + bias
    assert folded.dtype == jnp.dtype(dtype)
    assert_within(folded, (x @ w1 + c1) @ w2 + c2, rounding_bound(10, dtype), size)
    assert_within(folded, exact, rounding_bound(10, dtype), size)


@pytest.mark.parametrize("sizes", [*itertools.product((1, 3, 7), (2, 7), (1, 3, 5), (2, 7))])
def test_flops_are_those_of_the_function(sizes):
    rows, k, m, n = sizes
    x, w1, w2, w = (jax.ShapeDtypeStruct(s, "float32") for s in ((rows, k), (k, m), (m, n), (k, n)))
    two, one = count(lambda x, a, b: x @ a @ b, x, w1, w2), count(jnp.matmul, x, w)
    assert folding.composition_flops(*sizes) == (two.flops, one.flops)
    assert worth_composing(*sizes) == (one.flops < two.flops)
    at_each = count(lambda x, a, b: x @ (a @ b), x, w1, w2).flops
    assert worth_composing(*sizes, each_call=True) == (at_each < two.flops)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("biases", [*itertools.product([False, True], repeat=3)])
def test_parallel_layers(biases, axis):
    sizes, x = (3, 1, 5), rand(4, 7)
    kernels = [rand(7, n, seed=n) for n in sizes]
    given = [rand(n, seed=n) if some else None for n, some in zip(sizes, biases, strict=True)]
    stored = [w.T if axis == 0 else w for w in kernels]
    kernel, bias, got = concatenate(stored, given, axis=axis)
    assert got == sizes
    assert (bias is None) == (not any(biases))
    y = x @ (kernel.T if axis == 0 else kernel)
    outs = split(y if bias is None else y + bias, got)
    for out, w, c in zip(outs, kernels, given, strict=True):
        want = wide(x) @ wide(w) + (0 if c is None else wide(c))
        size = abs(wide(x)) @ abs(wide(w)) + (0 if c is None else abs(wide(c)))
        assert_within(out, want, rounding_bound(7, "float32"), size)


def test_parallel_convolutions_are_split_along_any_axis():
    kernels = [rand(n, 4, 3, 3, seed=n) for n in (2, 5)]
    kernel, _, sizes = concatenate(kernels, [None, None], axis=0)
    for got, want in zip(split(kernel, sizes, axis=0), kernels, strict=True):
        np.testing.assert_array_equal(got, want)


def test_rounding_bound():
    assert rounding_bound(1, "bfloat16") > rounding_bound(1000, "float32")
    assert rounding_bound(1000, "float32", "float16") > 0.9
    assert rounding_bound(10, "float64") < 1e-14
    with pytest.raises(InputError, match="no rounding bound"):
        rounding_bound(1 << 24, "float32")


W, C = np.ones((4, 6), np.float32), np.ones(6, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: scale_outputs(W, None, W[0, :4]), InputError, r"scale must have shape \(6,\)"),
        (
            lambda: scale_outputs(W, C, C, W[:, 0], path="fc.weight"),
            InputError,
            r"fc\.weight: folding into outputs: shift must have shape \(6,\).*got \(4,\)",
        ),
        (lambda: scale_outputs(W, W[:, 0], C), InputError, "bias must have shape"),
        (lambda: scale_outputs(W.astype(np.int8), None, C), InputTypeError, "before quantizing"),
        (lambda: scale_outputs(W, None, C, layout=Layout(1, 1)), InputError, "different axes"),
        (lambda: scale_outputs(W, None, C, layout=Layout(2, 0)), InputError, "different axes"),
        (
            lambda: scale_outputs(W, None, C, layout=DENSE._replace(groups=4)),
            InputError,
            "axis 1 .* no multiple of groups=4",
        ),
        (
            lambda: scale_outputs(W, None, C, layout=DENSE._replace(groups=3, inputs_whole=True)),
            InputError,
            "axis 0 .* no multiple of groups=3",
        ),
        (
            lambda: scale_outputs(W, None, W, layout=Layout((0, 1), (), groups=2)),
            InputError,
            "one axis of each",
        ),
        (lambda: scale_inputs(W, None, C, padded=False), InputError, r"scale must have .*\(4,\)"),
        (lambda: affine_of_norm(C, W[0, :4], epsilon=0.0), InputError, "one shape"),
        (lambda: compose(W, W), InputError, r"\[k, m\] and \[m, n\]"),
        (lambda: compose(W, W.T, W[:, 0]), InputError, "bias of the first"),
        (lambda: compose(W, W.T, C, C), InputError, "bias of the second"),
        (lambda: compose(W, W.T.astype(int)), InputTypeError, "float kernel"),
        (lambda: concatenate([], []), InputError, "got 0 and 0"),
        (lambda: concatenate([W, W], [None]), InputError, "got 2 and 1"),
        (lambda: concatenate([W, W.T], [None] * 2), InputError, "equal in all axes but 1"),
        (lambda: concatenate([W, W], [C, C[:4]]), InputError, "bias must have shape"),
        (
            lambda: concatenate([W, W.astype(np.float16)], [None] * 2),
            InputTypeError,
            "one dtype, got float16, float32",
        ),
        (lambda: split(jnp.ones((2, 5)), (2, 2)), InputError, "need 4 along axis -1"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
