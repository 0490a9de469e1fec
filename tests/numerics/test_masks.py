"""Masks are those of slow loops, exactly, ties and all."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.numerics import _select, masks

SHAPES = [(), (1,), (7,), (2, 3, 5), (31, 37)]
SPARSITIES = [0.0, 0.1, 0.5, 2 / 3, 0.99]
UNSTRUCTURED = jax.jit(masks.unstructured, static_argnums=1)
KINDS = ("normal", "equal", "few", "zeros", "infinite")


def scores_of(kind, shape, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape)
    if kind == "equal":
        x = np.full(shape, -2.5)
    elif kind == "few":
        x = generator.integers(-1, 2, shape)
    elif kind == "zeros":
        x = np.where(x > 0, 0.0, -0.0)
    elif kind == "infinite":
        x = generator.choice([-np.inf, -1.0, 0.5, np.inf], shape)
    return jnp.asarray(np.asarray(x).astype(dtype))


def slow_best(values, keep):
    """Indices of the ``keep`` best of a list: higher first, then earlier."""
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep])


def slow_unstructured(x, sparsity):
    x = np.asarray(x, np.float64)
    kept = slow_best(x.ravel().tolist(), x.size - round(sparsity * x.size))
    return np.array([i in kept for i in range(x.size)], bool).reshape(x.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unstructured(shape, kind):
    x = scores_of(kind, shape)
    for sparsity in SPARSITIES:
        want = slow_unstructured(x, sparsity)
        got = masks.unstructured(x, sparsity)
        assert got.dtype == bool
        np.testing.assert_array_equal(got, want)
        if sparsity == 0.5:
            np.testing.assert_array_equal(UNSTRUCTURED(x, sparsity), want)
        assert int(got.sum()) == x.size - round(sparsity * x.size)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_narrow_scores(dtype):
    x = scores_of("normal", (31, 37)).astype(dtype)  # rounding makes ties
    want = slow_unstructured(x.astype(jnp.float32), 0.7)
    np.testing.assert_array_equal(masks.unstructured(x, 0.7), want)
    want = slow_nm(np.asarray(x.astype(jnp.float32)), 2, 4, 0)
    np.testing.assert_array_equal(masks.nm(x, 2, 4, 0), want)


def test_float64_scores():
    with jax.enable_x64(True):
        x = jnp.asarray(1 + np.random.default_rng(0).permutation(101) * 1e-12)
        assert x.dtype == jnp.float64
        np.testing.assert_array_equal(masks.unstructured(x, 0.5), slow_unstructured(x, 0.5))


def test_range_of_the_threshold():
    x = jnp.array([-3.4e38, 3.4e38, -np.inf, np.inf, 1e-37, -1e-37, 0.0, -0.0, 1.0, -1.0])
    for keep in range(1, 11):
        want = slow_unstructured(x, 1 - keep / 10)
        np.testing.assert_array_equal(masks.unstructured(x, 1 - keep / 10), want)


@pytest.mark.parametrize("kind", KINDS)
def test_traced_sparsity(kind):
    x = scores_of(kind, (31, 37))
    traces = []
    traced = jax.jit(lambda x, s: traces.append(1) or masks.unstructured(x, s))
    for sparsity in SPARSITIES:
        value = jnp.float32(sparsity)
        want = slow_unstructured(x, float(value))
        np.testing.assert_array_equal(traced(x, value), want)
        np.testing.assert_array_equal(masks.unstructured(x, value), want)
    assert len(traces) == 1


def test_traced_values_out_of_range_are_clipped():
    x = scores_of("normal", (7,))
    traced = jax.jit(masks.unstructured)
    assert traced(x, jnp.float32(-1)).all()
    assert not traced(x, jnp.float32(2)).any()


def test_nan_under_jit_is_lowest():
    x = jnp.array([np.nan, 1.0, -np.inf, np.nan, -5.0])
    traced = jax.jit(masks.unstructured, static_argnums=1)
    assert traced(x, 0.6).tolist() == [False, True, False, False, True]
    assert traced(x, 0.2).tolist() == [True, True, True, False, True]
    counted = jax.jit(lambda x: masks.nm(x, 3, 5, 0))(x)
    assert counted.tolist() == [True, True, False, False, True]


@pytest.mark.parametrize("map_", [jax.vmap, lambda f: lambda x: jax.lax.map(f, x)])
@pytest.mark.parametrize("kind", ["normal", "few"])
def test_stacked_layers(kind, map_):
    x = scores_of(kind, (3, 5, 7))
    for pattern in (
        lambda x: masks.unstructured(x, 0.4),
        lambda x: masks.nm(x, 2, 4, 0),
        lambda x: masks.channel(x, 0.4, 1),
        lambda x: masks.block(x, 0.4, (2, 3)),
    ):
        want = jnp.stack([pattern(layer) for layer in x])
        np.testing.assert_array_equal(map_(pattern)(x), want)


def test_eval_shape_and_grad():
    x = scores_of("normal", (5, 3))
    out = jax.eval_shape(lambda x: masks.unstructured(x, 0.5), x)
    assert (out.shape, out.dtype) == ((5, 3), bool)

    def loss(w):
        mask = masks.unstructured(masks.magnitude(w), 0.5) & masks.nm(masks.magnitude(w), 2, 3, 0)
        return (masks.Masked(w, mask).materialize() ** 2).sum(), mask

    grad, mask = jax.grad(loss, has_aux=True)(x)
    np.testing.assert_array_equal(grad, np.where(mask, 2 * x, 0))


def slow_nm(x, n, m, axis):
    moved = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    out = np.zeros(moved.shape, bool)
    for index in np.ndindex(moved.shape[:-1]):
        for start in range(0, moved.shape[-1], m):
            group = moved[index][start : start + m].tolist()
            for i in slow_best(group, math.ceil(n * len(group) / m)):
                out[(*index, start + i)] = True
    return np.moveaxis(out, -1, axis)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 4), (3, 4), (5, 7), (4, 8), (3, 32)])
@pytest.mark.parametrize(("shape", "axis"), [((1,), 0), ((5, 7), 0), ((5, 7), -1), ((2, 11, 3), 1)])
def test_nm(shape, axis, n, m, kind):
    x = scores_of(kind, shape)
    want = slow_nm(x, n, m, axis)
    np.testing.assert_array_equal(masks.nm(x, n, m, axis), want)
    if (n, m) == (2, 4):
        np.testing.assert_array_equal(jax.jit(lambda x: masks.nm(x, n, m, axis))(x), want)


def slow_blocks(x, sparsity, sizes):
    x = np.asarray(x, np.float64)
    starts = [range(0, s, b) for s, b in zip(x.shape, sizes, strict=True)]
    parts = [
        tuple(slice(i, i + b) for i, b in zip(start, sizes, strict=True))
        for start in itertools.product(*starts)
    ]
    kept = slow_best([x[part].sum() for part in parts], len(parts) - round(sparsity * len(parts)))
    out = np.zeros(x.shape, bool)
    for i in kept:
        out[parts[i]] = True
    return out


@pytest.mark.parametrize("kind", ["normal", "equal", "few"])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((), ()), ((1,), (4,)), ((7, 11), (2, 3)), ((7, 11), (16,)), ((3, 4, 6), (2, 3))],
)
def test_block(shape, sizes, kind):
    x = masks.magnitude(scores_of(kind, shape))
    for sparsity in SPARSITIES:
        want = slow_blocks(x, sparsity, (1,) * (len(shape) - len(sizes)) + sizes)
        np.testing.assert_array_equal(masks.block(x, sparsity, sizes), want)
    got = jax.jit(lambda x: masks.block(x, sparsity, sizes))(x)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["normal", "equal", "few"])
@pytest.mark.parametrize("axes", [0, -1, (1,), (0, 2), (0, 1, 2)])
def test_channel(axes, kind):
    x = masks.magnitude(scores_of(kind, (2, 5, 7)))
    whole = {a % 3 for a in np.atleast_1d(axes)}
    sizes = tuple(1 if a in whole else x.shape[a] for a in range(3))
    for sparsity in SPARSITIES:
        want = slow_blocks(x, sparsity, sizes)
        np.testing.assert_array_equal(masks.channel(x, sparsity, axes), want)
    got = jax.jit(lambda x: masks.channel(x, sparsity, axes))(x)
    np.testing.assert_array_equal(got, want)


def test_sums_of_half_scores_are_those_of_float32():
    # 257 and 257.5 are both 256 in bfloat16, whose neighbours there lie 2 apart
    x = jnp.ones((2, 257), jnp.bfloat16).at[1, 0].set(1.5)
    assert masks.channel(x, 0.5, 0)[:, 0].tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_global_masks(kind):
    leaves = {
        "b.w": scores_of(kind, (5, 7), 1),
        "a.w": scores_of(kind, (31,), 2).astype(jnp.bfloat16),
        "c": scores_of(kind, (), 3),
        "a.b": scores_of(kind, (1, 3, 2), 4).astype(jnp.float16),
    }
    joined = np.concatenate([np.asarray(leaves[p], np.float64).ravel() for p in sorted(leaves)])
    for sparsity in SPARSITIES:
        got = masks.global_masks(leaves, sparsity)
        assert list(got) == list(leaves)
        assert all(got[path].shape == leaves[path].shape for path in leaves)
        flat = np.concatenate([np.asarray(got[path]).ravel() for path in sorted(got)])
        np.testing.assert_array_equal(flat, slow_unstructured(joined, sparsity))
    under_jit = jax.jit(lambda x: masks.global_masks(x, sparsity))(leaves)
    for path in leaves:
        np.testing.assert_array_equal(under_jit[path], got[path])


def test_memory_of_global_masks():
    leaves = {path: jax.ShapeDtypeStruct((1000, 1000), jnp.float32) for path in "abc"}
    total = 3 * 1000 * 1000
    compiled = jax.jit(masks.global_masks).lower(leaves, jnp.float32(0.5)).compile()
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes >= total  # that the numbers are these arrays'
    assert memory.temp_size_in_bytes <= 6 * total + 2**16


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 7_000_000_007, 2**40])
@pytest.mark.parametrize("other", [0, 1, 2**16, 2**31 - 1, 5_000_000_001])
def test_counts_beyond_32_bits(size, other):
    def value(count):
        return (int(count.high) << 16) + int(count.low)

    a, b = _select.count(size), _select.count(other)
    assert value(a) == size
    assert bool(_select._at_least(a, b)) == (size >= other)
    assert value(_select._minus(a, b)) == max(size - other, 0)
    assert value(_select.kept(size, 0.25)) == size - round(0.25 * size)
    # float32 holds 24 bits of the size, and of the product
    near = value(_select.kept(size, jnp.float32(0.25)))
    assert abs(near - (size - size / 4)) <= max(0.5, size * 2.0**-24)


def test_totals_carry():
    parts = [2**31 - 1, 2**16 - 1, 65535, 1, 0, 2**31 - 1]
    total = _select._total([jnp.int32(x) for x in parts])
    assert (int(total.high) << 16) + int(total.low) == sum(parts)


def test_random_scores():
    key = jax.random.key(0)
    x = masks.random(key, (31, 37))
    assert (x.shape, x.dtype) == ((31, 37), jnp.float32)
    np.testing.assert_array_equal(x, masks.random(key, (31, 37)))
    mask = masks.unstructured(x, 0.5)
    # rows of 37 draws at one half: within 5 standard deviations (3.04) of 18.5
    assert (np.abs(np.asarray(mask).sum(1) - 18.5) < 5 * 3.05).all()


def test_magnitude():
    np.testing.assert_array_equal(masks.magnitude(jnp.array([-128, 3], jnp.int8)), [128.0, 3.0])
    np.testing.assert_allclose(masks.magnitude(jnp.array([3 + 4j])), [5.0], rtol=1e-6)
    assert masks.magnitude(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


SMALL = {"conv": (3, 3, 7, 11), "up": (31, 127), "down": (127, 31), "head": (2, 2), "scale": (5,)}


def slow_erk_densities(shapes, sparsity):
    """eps by bisection: density min(1, eps raw) grows with it; no iteration over dense leaves."""
    raw = {p: sum(s) / math.prod(s) for p, s in shapes.items()}
    target = sum(map(math.prod, shapes.values())) * (1 - sparsity)
    low, high = 0.0, 1e9
    for _ in range(200):
        eps = (low + high) / 2
        kept = sum(min(1, eps * raw[p]) * math.prod(s) for p, s in shapes.items())
        low, high = (eps, high) if kept < target else (low, eps)
    return {p: min(1, high * raw[p]) for p in shapes}


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.2, 0.5, 0.8, 0.95, 0.999])
def test_erk(sparsity):
    got = masks.allocate(SMALL, sparsity, "erk")
    assert list(got) == list(SMALL)
    want = slow_erk_densities(SMALL, sparsity)
    sizes = {path: math.prod(shape) for path, shape in SMALL.items()}
    pruned = {path: round(got[path] * sizes[path]) for path in SMALL}
    assert sum(pruned.values()) == round(sparsity * sum(sizes.values()))
    for path, size in sizes.items():
        assert 0 <= got[path] < 1
        # one element of rounding, and half an element of the total's shared by all
        assert abs(size - pruned[path] - want[path] * size) < 1.5


def test_erk_keeps_small_leaves_dense():
    got = masks.allocate(SMALL, 0.5, "erk")
    assert got["head"] == got["scale"] == 0.0
    assert got["up"] == pytest.approx(got["down"], abs=1 / 3937)  # of one element
    # densities as sum / prod: 24 / 693 and 158 / 3937; one element of conv is 1.5e-3
    ratio = (1 - got["conv"]) / (1 - got["up"])
    assert ratio == pytest.approx((24 / 693) / (158 / 3937), abs=4e-3)


def test_erk_of_leaves_that_vanish():
    shapes = {"a": (100, 100), "b": (1,), "c": (1,)}
    got = masks.allocate(shapes, 0.9999, "erk")
    kept = [int(masks.unstructured(jnp.ones(shapes[p]), got[p]).sum()) for p in shapes]
    assert sum(kept) == 10002 - round(0.9999 * 10002)


def test_uniform():
    assert masks.allocate(SMALL, 0.3) == dict.fromkeys(SMALL, 0.3)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf"), jnp.float32(1)])
def test_sparsity_out_of_range(sparsity):
    x = jnp.ones((4, 4))
    for call in (
        lambda: masks.unstructured(x, sparsity, path="layer.w"),
        lambda: masks.block(x, sparsity, (2, 2), path="layer.w"),
        lambda: masks.channel(x, sparsity, 0, path="layer.w"),
        lambda: jax.eval_shape(lambda x: masks.unstructured(x, sparsity, path="layer.w"), x),
    ):
        if call.__code__.co_names[:1] == ("jax",) and isinstance(sparsity, jax.Array):
            continue  # a JAX array compared under a trace may be traced itself
        with pytest.raises(InputError, match=r"layer\.w: sparsity must be in \[0, 1\)"):
            call()
    with pytest.raises(InputError, match=r"all leaves: sparsity must be in \[0, 1\)"):
        masks.global_masks({"a": x}, sparsity)
    with pytest.raises(InputError, match=r"sparsity must be in \[0, 1\)"):
        masks.allocate(SMALL, sparsity)


def test_bad_input():
    x = jnp.ones((4, 6))
    nan = x.at[1, 2].set(jnp.nan)
    cases = {
        r"w: 1 of 24 scores are NaN": lambda: masks.unstructured(nan, 0.5, path="w"),
        r"w: 1 of 24 scores are NaN ": lambda: masks.nm(nan, 2, 4, 0, path="w"),
        r"w: shape \(0, 3\) has no elements": lambda: masks.unstructured(
            jnp.ones((0, 3)), 0.5, path="w"
        ),
        r"5:4 mask of w: required 1 <= n <= m": lambda: masks.nm(x, 5, 4, 0, path="w"),
        r"0:4 mask of w": lambda: masks.nm(x, 0, 4, 0, path="w"),
        r"w: no axis 2 in an array of shape \(4, 6\)": lambda: masks.nm(x, 2, 4, 2, path="w"),
        r"w: no axis -3": lambda: masks.channel(x, 0.5, -3, path="w"),
        r"at most the 2 axes of the scores \(4, 6\).* got \(1, 2, 2\)": lambda: masks.block(
            x, 0.5, (1, 2, 2)
        ),
        r"sizes of at least 1, got \(0, 2\)": lambda: masks.block(x, 0.5, (0, 2)),
        r"w, summed over blocks: 1 of 1 scores are NaN": lambda: masks.block(
            jnp.array([jnp.inf, -jnp.inf]), 0.5, (2,), path="w"
        ),
        r"w, summed over channels: 2 of 2 scores": lambda: masks.channel(
            jnp.array([[jnp.inf] * 2, [-jnp.inf] * 2]), 0.5, 1, path="w"
        ),
        r"sparsity must be one number": lambda: masks.unstructured(x, jnp.array([0.5, 0.5])),
        r"required scores of at least one leaf": lambda: masks.global_masks({}, 0.5),
        r"(?s)b: 1 of 24 .*\n.*c: shape \(0,\)": lambda: masks.global_masks(
            {"c": jnp.ones(0), "b": nan, "a": x}, 0.5
        ),
        r"one of uniform, erk, got 'erks'; did you mean 'erk'": lambda: masks.allocate(
            SMALL, 0.5, "erks"
        ),
        r"z: shape \(3, 0\) has no elements": lambda: masks.allocate({"z": (3, 0)}, 0.5),
        r"required a leaf, got none": lambda: masks.allocate({}, 0.5, "erk"),
    }
    for match, call in cases.items():
        with pytest.raises(InputError, match=match.rstrip()):
            call()
    for call in (
        lambda: masks.unstructured(jnp.arange(3), 0.5, path="w"),
        lambda: masks.global_masks({"w": jnp.ones(3, bool)}, 0.5),
        lambda: masks.nm(jnp.ones(3, complex), 1, 2, 0, path="w"),
    ):
        with pytest.raises(InputTypeError, match="w: scores must be floating, got "):
            call()


def masked(shape, seed=0):
    w = scores_of("normal", shape, seed)
    return masks.Masked.create(w, masks.unstructured(masks.magnitude(w), 0.5))


def test_masked_is_an_array_type():
    x = masked((5, 7)).both(lambda x: x)
    assert (x.shape, x.dtype, x.ndim, x.size, x.nbytes) == ((5, 7), jnp.float32, 2, 35, 175)
    want = np.where(x.mask, x.weight, 0)
    np.testing.assert_array_equal(x.materialize(), want)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(x)]
    assert paths == [".weight", ".mask"]
    half = masks.Masked(x.weight.astype(jnp.bfloat16), x.mask).materialize()
    assert half.dtype == jnp.bfloat16


def test_pruned_weights_may_be_anything():
    x = masks.Masked(jnp.array([jnp.nan, 2.0, jnp.inf]), jnp.array([False, True, False]))
    assert x.materialize().tolist() == [0.0, 2.0, 0.0]
    grad = jax.grad(lambda w: masks.Masked(w, x.mask).materialize().sum())(x.weight)
    assert grad.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        (lambda x: x.transpose(), lambda x: x.T),
        (lambda x: x.transpose(2, 0, 1), lambda x: x.transpose(2, 0, 1)),
        (lambda x: x.reshape(5, -1), lambda x: x.reshape(5, -1)),
        (lambda x: x.slice((0, 1, 2), (2, 5, 7)), lambda x: x[0:2, 1:5, 2:7]),
        (lambda x: x.slice((0, 0, 0), (2, 5, 7), (1, 2, 3)), lambda x: x[:, ::2, ::3]),
        (lambda x: x.both(lambda x: x[1]), lambda x: x[1]),
    ],
)
def test_layouts_of_masked(method, layout):
    x = masked((2, 5, 7))
    got = method(x)
    np.testing.assert_array_equal(got.mask, layout(np.asarray(x.mask)))
    np.testing.assert_array_equal(got.weight, layout(np.asarray(x.weight)))
    np.testing.assert_array_equal(got.materialize(), layout(np.asarray(x.materialize())))


def test_concatenate_masked():
    a, b, c = masked((5, 2), 1), masked((5, 3), 2), jnp.ones((5, 1))
    got = masks.Masked.concatenate([a, c, b], 1)
    want = np.concatenate([a.materialize(), c, b.materialize()], 1)
    np.testing.assert_array_equal(got.materialize(), want)
    assert got.mask[:, 2].all()


def test_masked_in_scan_vmap_and_jit():
    x = masked((3, 5, 5))
    vector = scores_of("normal", (5,), 9)
    dense = np.asarray(x.materialize(), np.float64)
    want = np.asarray(vector, np.float64)
    for layer in dense:
        want = want @ layer

    def body(carry, layer):
        assert layer.shape == (5, 5)
        return carry @ layer.materialize(), layer.transpose()

    for scan in (jax.lax.scan, jax.jit(jax.lax.scan, static_argnums=0)):
        got, turned = scan(body, vector, x)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)  # float32 sums of 5 terms
        np.testing.assert_array_equal(turned.materialize(), dense.astype(np.float32).swapaxes(1, 2))
    mapped = jax.vmap(lambda w: w.materialize().sum())(x)
    np.testing.assert_allclose(mapped, dense.sum((1, 2)), rtol=1e-5, atol=1e-6)


def test_masked_rejects():
    w = jnp.ones((2, 3))
    with pytest.raises(InputError, match=r"mask of p: required the weight's shape \(2, 3\)"):
        masks.Masked.create(w, jnp.ones((3, 2), bool), path="p")
    with pytest.raises(InputTypeError, match="mask of p: required bool, got float32"):
        masks.Masked.create(w, w, path="p")
