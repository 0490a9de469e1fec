"""Observers against numpy in float64: exact ends and histograms, bounds within what is stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.numerics import _histogram
from jaxinfer.numerics.calibration import METHODS, merge, merge_trees, observer, problems

OPTIONS = {
    "absmax": {},
    "minmax": {},
    "moving_average": {"rate": 0.3},
    "percentile": {"percent": 97.0, "bins": 64},
    "mse": {"levels": 15, "bins": 64},
}
SHAPE = (3, 5, 7)


def data(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_t(3, shape) * scale).astype(np.float32)


def batches(scales=(1.0, 40.0, 0.0, 1e-3), shape=SHAPE):
    return [data(*shape, seed=i, scale=s) for i, s in enumerate(scales)]


def run(seen, values, shape=SHAPE):
    stats = seen.init(shape)
    for x in values:
        stats = seen.update(stats, x)
    return stats


def assert_same(a, b, rtol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=rtol)


def tolerance(method):
    """All is exact but the weighted sums of floats, in another order."""
    return 1e-6 if method == "moving_average" else 0.0


def test_every_method_is_in_the_table_of_these_tests():
    assert set(OPTIONS) == set(METHODS)


@pytest.mark.parametrize("axes", [(), (-1,), (0, 2), (1,), (0, 1, 2)])
@pytest.mark.parametrize("method", OPTIONS)
def test_laws(method, axes):
    seen = observer(method, axes=axes, **OPTIONS[method])
    one = seen.init(SHAPE)
    a, b, c = (seen.update(one, x) for x in batches()[:3])
    assert_same(merge(one, a), a)
    assert_same(merge(a, one), a)
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)), tolerance(method))
    assert_same(seen.update(seen.update(a, batches()[1]), batches()[2]), merge(merge(a, b), c))
    empty = [i for i in range(3) if i not in [axis % 3 for axis in axes]]
    if empty:
        shape = [0 if i == empty[0] else n for i, n in enumerate(SHAPE)]
        assert_same(seen.update(a, np.zeros(shape, np.float32)), a)


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_traced_in_every_way(method):
    seen = observer(method, axes=(-1,), **OPTIONS[method])
    values = jnp.stack(batches())
    want = run(seen, values)
    rtol = tolerance(method)
    assert_same(jax.jit(lambda xs: run(seen, xs))(values), want, rtol)

    carried, stacked = lax.scan(
        lambda s, x: (seen.update(s, x), seen.update(seen.init(SHAPE), x)), seen.init(SHAPE), values
    )
    assert_same(carried, want, rtol)
    assert_same(jax.vmap(lambda x: seen.update(seen.init(SHAPE), x))(values), stacked, rtol)
    each = [seen.update(seen.init(SHAPE), x) for x in values]
    assert_same(stacked, jax.tree.map(lambda *xs: jnp.stack(xs), *each), rtol)
    assert_same(merge(stacked, stacked), jax.vmap(merge)(stacked, stacked), rtol)
    bounds = [seen.bounds(s) for s in each]
    for got in (seen.bounds(stacked), jax.vmap(seen.bounds)(stacked)):
        assert_same(got, jax.tree.map(lambda *xs: jnp.stack(xs), *bounds), 1e-6)

    _, looped = lax.while_loop(
        lambda c: c[0] < len(values),
        lambda c: (c[0] + 1, seen.update(c[1], values[c[0]])),
        (0, seen.init(SHAPE)),
    )
    assert_same(looped, want, rtol)
    branch = jax.jit(
        lambda p, x: lax.cond(p, lambda: seen.update(seen.init(SHAPE), x), lambda: seen.init(SHAPE))
    )
    assert_same(branch(True, values[0]), each[0], rtol)
    assert_same(branch(False, values[0]), seen.init(SHAPE))
    shapes = jax.eval_shape(lambda x: seen.bounds(seen.update(seen.init(SHAPE), x)), values[0])
    assert [s.shape for s in shapes] == [(1, 1, 7)] * 2


@pytest.mark.parametrize("axes", [(), (-1,), (0, 1)])
def test_exact_ends(axes):
    values = batches()
    along = tuple(i for i in range(3) if i not in [axis % 3 for axis in axes])
    low = np.min([x.min(along, keepdims=True) for x in values], axis=0)
    high = np.max([x.max(along, keepdims=True) for x in values], axis=0)
    got = observer("minmax", axes=axes)
    np.testing.assert_array_equal(got.bounds(run(got, values)), (low, high))
    got, most = observer("absmax", axes=axes), np.maximum(abs(low), abs(high))
    np.testing.assert_array_equal(got.bounds(run(got, values)), (-most, most))


def test_moving_average():
    rate, values = 0.3, batches((1.0, 40.0, 3.0, 0.5, 2.0))
    seen = observer("moving_average", axes=(1,), rate=rate)
    low, high = seen.bounds(run(seen, values))
    weights = rate * (1 - rate) ** np.arange(len(values))[::-1]
    for got, end in ((low, np.min), (high, np.max)):
        ends = np.array([end(x.astype(np.float64), axis=(0, 2)) for x in values])
        want = (weights[:, None] * ends).sum(0) / weights.sum()
        np.testing.assert_allclose(got[0, :, 0], want, rtol=1e-6)  # a few roundings of float32
    first = seen.bounds(run(seen, values[:1]))
    np.testing.assert_allclose(first[0][0, :, 0], values[0].min((0, 2)), rtol=1e-6)


@pytest.mark.parametrize("bins", [4, 64, 2048])
def test_histogram_is_that_of_all_values_at_once(bins):
    values = batches((1.0, 1e6, 0.0, 1e-3, 1e-20))
    seen = observer("percentile", axes=(1,), bins=bins)
    stats = run(seen, values)
    everything = np.concatenate([x.transpose(1, 0, 2).reshape(5, -1) for x in values], axis=1)
    exponent = stats.exponent[0, :, 0]
    np.testing.assert_array_equal(exponent, np.frexp(abs(everything).max(1))[1])
    for row in range(5):
        edges = np.arange(bins + 1) * 2.0 ** (int(exponent[row]) - np.log2(bins))
        want, _ = np.histogram(abs(everything[row].astype(np.float64)), edges)
        np.testing.assert_array_equal(_histogram.to_int(stats.bins)[0, row, 0], want)
    np.testing.assert_array_equal(_histogram.to_int(stats.count), np.full((1, 5, 1), 105))
    assert_same(run(seen, values[::-1]), stats)


@pytest.mark.parametrize("scale", [1.0, 3e38 / 50, 1e-29, 2.0**-101])
@pytest.mark.parametrize("percent", [3.0, 50.0, 99.0, 99.99, 100.0])
def test_percentile_within_a_bin(percent, scale):
    values = [np.clip(x, -49, 49) * np.float32(scale) for x in batches((1.0, 3.0, 9.0))]
    seen = observer("percentile", percent=percent, bins=256)
    stats = run(seen, values)
    low, high = (float(x.item()) for x in seen.bounds(stats))
    magnitude = np.sort(abs(np.stack(values).astype(np.float64).reshape(-1)))
    over = [int((magnitude > v).sum()) for v in magnitude]
    exact = min(
        v for v, n in zip(magnitude, over, strict=True) if n <= len(over) * (1 - percent / 100)
    )
    width = 2 * magnitude[-1] / 256
    clip = max(-low, high)
    assert exact <= clip <= exact + max(width, 2.0**-108)
    assert high == min(clip, max(x.max() for x in values))
    assert low == max(-clip, min(x.min() for x in values))


def squared_error(values, clip, levels, symmetric):
    low, high = (-clip, clip) if symmetric else (max(-clip, values.min()), min(clip, values.max()))
    step = (max(high, 0) - min(low, 0)) / (levels - 1)
    grid = np.round(np.clip(values, low, high) / step) * step
    return ((values - grid) ** 2).mean()


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("levels", [3, 15, 255])
def test_mse_is_near_the_best_clip_of_the_values(levels, symmetric, one_sided):
    values = data(4000, seed=3, scale=7.0)
    values = np.maximum(values, 0) if one_sided else values
    seen = observer("mse", levels=levels, symmetric=symmetric)
    low, high = seen.bounds(seen.update(seen.init((4000,)), values))
    clip = float(max(-low.item(), high.item()))
    most = float(abs(values).max())
    candidates = most * np.arange(1, 129) / 128
    assert min(abs(candidates - clip)) <= 1e-6 * most
    errors = [squared_error(values.astype(np.float64), c, levels, symmetric) for c in candidates]
    # Where in a bin the values lie is not known: the expected error is not quite the actual one.
    # Measured: at most 1.001.
    assert squared_error(values.astype(np.float64), clip, levels, symmetric) <= 1.01 * min(errors)
    if levels < 255:
        assert errors[-1] > 1.2 * min(errors)  # no clipping is worse: the search did something


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_integral(symmetric):
    """The expected error is that of many values spread evenly over each bin, in float64."""
    counts = np.random.default_rng(0).integers(0, 50, 16)
    counts[-1] = 1
    edges = np.arange(17) / 16 * 4.0
    points = (np.arange(200) + 0.5) / 200
    values = np.concatenate([edges[i] + points * 0.25 for i in range(16)])
    weights = np.repeat(counts / 200, 200)
    n, most = 7, 3.99
    values = np.minimum(values, most)
    errors = []
    for j in range(1, 129):
        clip = most * j / 128
        step = (2 * clip if symmetric else clip) / (n - 1)
        grid = np.round(np.minimum(values, clip) / step) * step
        errors.append((weights * (values - grid) ** 2).sum())
    count = _histogram.Count(jnp.zeros(16, jnp.uint32), jnp.asarray(counts, jnp.uint32))
    got = _histogram.best_clip(
        count, jnp.float32(0.25), jnp.float32(0), jnp.float32(most), n, symmetric
    )
    chosen = errors[round(float(got) / most * 128) - 1]
    assert chosen <= min(errors) * 1.001  # 200 points a bin stand for the integral


def test_counts_beyond_32_bits():
    half = _histogram.Count(jnp.uint32([0, 1]), jnp.uint32([2**32 - 1, 2**31]))
    got = _histogram.add(half, half)
    np.testing.assert_array_equal(_histogram.to_int(got), [2**33 - 2, 2**33 + 2**32])
    np.testing.assert_allclose(_histogram.to_float(got), [2.0**33, 1.5 * 2**33], rtol=2**-22)
    seen = observer("percentile", percent=50.0, bins=4)
    stats = seen.update(seen.init((2,)), np.array([0.1, 0.9], np.float32))
    for _ in range(40):
        stats = merge(stats, stats)
    assert _histogram.to_int(stats.count).item() == 2**41
    assert [x.item() for x in seen.bounds(stats)] == [np.float32(0.1), 0.25]


@pytest.mark.parametrize("method", OPTIONS)
def test_nonfinite_values_are_counted_and_in_no_range(method):
    seen = observer(method, axes=(-1,), **OPTIONS[method])
    good = data(4, 3)
    bad = np.concatenate([good, np.full((2, 3), np.nan, np.float32)])
    bad[4, 1], bad[5, 2] = np.inf, -np.inf
    a, b = (seen.update(seen.init((1, 3)), x) for x in (good, bad))
    assert_same(seen.bounds(a), seen.bounds(b))
    np.testing.assert_array_equal(_histogram.to_int(b.nonfinite), [[2, 2, 2]])
    assert problems(a, "fc") == []
    assert problems(b, "fc, batch 3") == ["fc, batch 3: 6 of 18 values are not finite"]
    none = bad.copy()
    none[:, 1] = np.nan
    stats = seen.update(seen.init((1, 3)), none)
    assert np.isnan([end[0, 1] for end in seen.bounds(stats)]).all()
    assert (
        "no finite value was seen for 1 of 3 channels, the first at (0, 1)"
        in problems(stats, "")[1]
    )
    assert problems(seen.init((1, 3)), "fc") == ["fc: no finite value was seen"]
    assert np.isnan(seen.bounds(seen.init((1, 3)))).all()


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_statistics_are_float32(method, dtype):
    seen = observer(method, **OPTIONS[method])
    x = jnp.asarray(data(50), dtype)
    stats = seen.update(seen.init((50,)), x)
    assert stats.low.dtype == jnp.float32
    assert_same(stats, seen.update(seen.init((50,)), x.astype(jnp.float32)))


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_small_shapes_and_zeros(method, shape):
    seen = observer(method, **OPTIONS[method])
    stats = seen.update(seen.init(shape), np.zeros(shape, np.float32))
    assert [x.tolist() for x in seen.bounds(stats)] == [np.zeros(shape).tolist()] * 2


@pytest.mark.slow
def test_no_channels():
    seen = observer("percentile", axes=(1,))
    low, high = seen.bounds(seen.update(seen.init((4, 0)), np.zeros((4, 0), np.float32)))
    assert low.shape == high.shape == (1, 0)


def test_trees():
    seen = {
        "a": observer("absmax"),
        "b": observer("mse", axes=(0,)),
        "c": observer("moving_average"),
    }
    one, two = (
        {k: s.update(s.init((3,)), data(3, seed=i)) for k, s in seen.items()} for i in (0, 1)
    )
    got = merge_trees({"x": [one]}, {"x": [two]})
    assert_same(got["x"][0], {k: seen[k].update(one[k], data(3, seed=1)) for k in seen})


@pytest.mark.slow
def test_with_64_bit_types():
    with jax.enable_x64(True):
        seen = observer("mse", axes=(0,))
        stats = run(seen, [np.array([[1.0, -3.0], [1e300, 2.0]])], (2, 2))
        assert {x.dtype.name for x in jax.tree.leaves(stats)} == {"float32", "int32", "uint32"}
        assert _histogram.to_int(stats.nonfinite).tolist() == [[0], [1]]  # beyond float32


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: observer("absmx"), InputError, "unknown method 'absmx'; try absmax"),
        (lambda: observer("absmax", rate=1), InputError, "rate"),
        (lambda: observer("moving_average", rate=0), InputError, r"in \(0, 1\], got 0"),
        (lambda: observer("percentile", percent=0), InputError, r"in \(0, 100\], got 0"),
        (lambda: observer("percentile", bins=100), InputError, "power of two.*got 100"),
        (lambda: observer("mse", bins=2), InputError, "power of two.*got 2"),
        (lambda: observer("mse", levels=16), InputError, "odd and at least 3.*got 16"),
        (lambda: observer("mse", levels=1, symmetric=False), InputError, "at least 2, got 1"),
        (lambda: observer("absmax", axes=(2,)).init((3, 4)), InputError, "rank 2"),
        (
            lambda: run(observer("absmax", axes=(1,)), [data(3, 5)], (3, 4)),
            InputError,
            r"shape \(1, 4\).*have \(1, 5\)",
        ),
        (lambda: run(observer("absmax"), [np.ones(3, int)], (3,)), InputTypeError, "float values"),
        (
            lambda: jax.eval_shape(
                lambda x: run(observer("absmax"), [x], (1, 1)),
                jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32),
            ),
            InputError,
            "smaller batches",
        ),
        (
            lambda: merge(observer("absmax").init(()), observer("mse").init(())),
            InputTypeError,
            "RangeStats and HistogramStats",
        ),
        (
            lambda: merge(observer("mse", bins=8).init(()), observer("mse").init(())),
            InputError,
            "8 and 2048 bins",
        ),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
