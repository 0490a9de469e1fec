"""Every way to compute a convolution against XLA's own, its gradients, and its exports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxinfer_converters.aten import _convolve as ways
from jaxinfer_converters.aten._convolve import Transposed, Window
from jaxinfer_converters.aten._lowering import convolve, convolve_first, convolve_transposed
from tests.aten.harness import rand

SPACE = {1: (11,), 2: (11, 7), 3: (5, 7, 6)}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 3, 2)}


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * (1 + np.abs(want).max()))


def windows(nd, groups):
    """Unequal strides, paddings (negative ones too) and dilations."""
    ones = (1,) * nd
    yield Window(ones, ((0, 0),) * nd, ones, groups)
    yield Window((2, 3, 2)[:nd], ((1, 2), (0, 1), (2, 0))[:nd], (2, 1, 1)[:nd], groups)
    yield Window((1, 2, 1)[:nd], ((-1, 2),) * nd, ones, groups)


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("many", [1, 2])
def test_taps_are_a_depthwise_convolution(nd, many):
    x, w = rand(2, *SPACE[nd], 6), rand(*KERNEL[nd], 1, 6 * many)
    for window in windows(nd, 6):
        close(ways.taps(x, w, window), ways.direct(x, w, window))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_products_are_convolutions_with_one_entry(nd):
    x, w = rand(2, *SPACE[nd], 6), rand(*(1,) * nd, 6, 4)
    for window in windows(nd, 1):
        close(ways.product(x, w, window), ways.direct(x, w, window))


@pytest.mark.parametrize("groups", [1, 2])
def test_planes_are_a_convolution(groups):
    x, w = rand(2, *SPACE[3], 6), rand(*KERNEL[3], 6 // groups, 4)
    for window in windows(3, groups):
        close(ways.planes(x, w, window), ways.direct(x, w, window))


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_phases_are_a_transposed_convolution(nd, groups):
    x, w = rand(2, *SPACE[nd], 6), rand(*KERNEL[nd], 6, 2)
    for stride, padding, extra in (
        ((2,) * nd, (0,) * nd, (0,) * nd),
        ((3, 2, 1)[:nd], (1, 0, 1)[:nd], (1, 1, 0)[:nd]),
        ((2,) * nd, (3, 2, 2)[:nd], (1,) * nd),
    ):
        how = Transposed(stride, padding, extra, (1,) * nd, groups)
        want = ways.dilated(x, w, how)
        assert want.shape[1:-1] == tuple(how.outputs(SPACE[nd], KERNEL[nd]))
        close(ways.phases(x, w, how), want)


@pytest.mark.slow
def test_half_types_accumulate_in_float32():
    """A sum of 301 ones: bfloat16 alone would stop at 256."""
    x, w = jnp.ones((1, 301, 4), "bfloat16"), jnp.ones((301, 1, 4), "bfloat16")
    window = Window((1,), ((0, 0),), (1,), 4)
    assert ways.taps(x, w, window).tolist() == [[[300.0] * 4]]  # 301, rounded to 8 bits


CALLS = {
    "depthwise": (
        functools.partial(convolve, window=Window((2, 1), ((1, 1),) * 2, (1, 2), 6)),
        functools.partial(ways.direct, window=Window((2, 1), ((1, 1),) * 2, (1, 2), 6)),
        (2, 9, 8, 6),
        (3, 3, 1, 12),
    ),
    "pointwise": (
        functools.partial(convolve, window=Window((2, 1), ((1, 1),) * 2, (1, 1), 1)),
        functools.partial(ways.direct, window=Window((2, 1), ((1, 1),) * 2, (1, 1), 1)),
        (2, 9, 8, 6),
        (1, 1, 6, 5),
    ),
    "transposed": (
        functools.partial(
            convolve_transposed, how=Transposed((2,) * 3, (1,) * 3, (1,) * 3, (1,) * 3, 1)
        ),
        functools.partial(ways.dilated, how=Transposed((2,) * 3, (1,) * 3, (1,) * 3, (1,) * 3, 1)),
        (2, 4, 3, 5, 6),
        (3, 2, 3, 6, 4),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_chosen_has_gradients_maps_and_exports(name):
    ours, plain, image, kernel = CALLS[name]
    x, w = rand(*image), rand(*kernel)

    def loss(fn):
        return jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(fn(x, w))), (0, 1)))

    for got, want in zip(loss(ours)(x, w), loss(plain)(x, w), strict=True):
        close(got, want)
    batched = jax.jit(jax.vmap(ours, (0, None)))(x[:, None], w)
    close(batched[:, 0], plain(x, w))
    text = export.export(jax.jit(ours), platforms=("cpu", "cuda"))(x, w).mlir_module()
    assert name == "pointwise" or "stablehlo.convolution" in text  # what CUDA gets
    compiled = jax.jit(ours).lower(x, w).compile().as_text()
    if jax.default_backend() == "cpu":
        assert ("convolution" in compiled) == (name == "transposed")
        assert "conditional" not in compiled


def test_depthwise_in_torchs_layout():
    x, w = rand(2, 6, 9, 8), rand(12, 1, 3, 2)
    window = Window((2, 1), ((1, 0), (0, 1)), (1, 2), 6)
    want = ways.direct(np.moveaxis(x, 1, -1), w.transpose(2, 3, 1, 0), window)
    close(np.moveaxis(convolve_first(x, w, window), 1, -1), want)
