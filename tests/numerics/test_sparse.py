"""Compressed weights come back bit for bit, and take the bytes they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.numerics import masks, sparse

PATTERNS = [(1, 1), (1, 2), (2, 4), (4, 4), (5, 7), (2, 16), (7, 300)]
SHAPES = [
    ((1,), 0),
    ((13,), -1),
    ((7, 5), 0),
    ((7, 5), 1),
    ((3, 11, 2), -2),
    ((0, 5), 1),
    ((5, 0), 1),
]


def bits(x):
    return np.asarray(x).tobytes()


def weight(shape, dtype=jnp.float32, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    x.flat[::3] = -0.0
    return jnp.asarray(x, dtype)


def mask_of(w, n, m, axis):
    if not w.size:
        return jnp.ones(w.shape, bool)
    return masks.nm(masks.random(jax.random.key(1), w.shape), n, m, axis)


def slow_compress(w, mask, n, m, axis):
    """Values and the packed places of each line along the axis, bit by bit."""
    w, mask = (np.moveaxis(np.asarray(x), axis, -1) for x in (w, mask))
    width = max(0, int(np.ceil(np.log2(m))))
    values, indices = [], []
    for index in np.ndindex(w.shape[:-1]):
        line, stream = [], []
        for start in range(0, w.shape[-1], m):
            kept = [i for i in range(m) if start + i < w.shape[-1] and mask[index][start + i]]
            fill = [i for i in range(m) if i not in kept][: n - len(kept)]
            for i in sorted(kept + fill):
                line.append(w[index][start + i] if i in kept else 0)
                stream += [i >> bit & 1 for bit in range(width)]
        stream += [0] * (-len(stream) % 8)
        values.append(line)
        indices.append(
            [sum(stream[b + i] << i for i in range(8)) for b in range(0, len(stream), 8)]
        )
    lead = w.shape[:-1]
    groups = -(-w.shape[-1] // m)
    values = np.asarray(values, w.dtype).reshape(*lead, groups * n)
    indices = np.asarray(indices, np.uint8).reshape(*lead, -(-groups * n * width // 8))
    return np.moveaxis(values, -1, axis), np.moveaxis(indices, -1, axis)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_storage_and_inverse(shape, axis, n, m):
    w = weight(shape)
    mask = mask_of(w, n, m, axis)
    want = np.where(mask, w, np.float32(0))
    compress = lambda w, mask: sparse.compress(w, mask, n, m, axis)
    both = (compress(w, mask), *([jax.jit(compress)(w, mask)] if m in (4, 7) else []))
    for small in both:
        values, indices = slow_compress(w, mask, n, m, axis)
        assert bits(small.values) == bits(values)
        assert small.values.shape == values.shape
        assert small.indices.dtype == jnp.uint8
        np.testing.assert_array_equal(small.indices, indices)
        assert (small.shape, small.dtype, small.ndim) == (w.shape, w.dtype, w.ndim)
        assert small.size == w.size
        assert small.nbytes == small.values.nbytes + small.indices.nbytes
        got = small.materialize()
        assert (got.shape, got.dtype) == (w.shape, w.dtype)
        assert bits(got) == bits(want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "complex64", "bool"])
def test_dtypes(dtype):
    w = (weight((11, 3)) * 20).astype(dtype)
    mask = mask_of(w, 2, 4, 0)
    got = sparse.compress(w, mask, 2, 4, 0).materialize()
    assert got.dtype == w.dtype
    assert bits(got) == bits(jnp.where(mask, w, jnp.zeros((), w.dtype)))


def test_special_values_stay():
    w = jnp.array([jnp.nan, -0.0, jnp.inf, 1.0, jnp.nan, -jnp.inf])
    mask = jnp.array([True, True, False, False, False, True])
    got = sparse.compress(w, mask, 2, 4, 0).materialize()
    assert bits(got) == bits(np.array([np.nan, -0.0, 0, 0, 0, -np.inf], np.float32))


@pytest.mark.parametrize("kept", range(3))
def test_groups_that_keep_fewer(kept):
    w = jnp.arange(1.0, 10)
    for places in np.ndindex(*(4,) * kept):
        mask = jnp.zeros(9, bool).at[jnp.array(places, int)].set(True)
        small = sparse.compress(w, mask, 2, 4, 0)
        np.testing.assert_array_equal(small.materialize(), np.where(mask, w, 0))


def test_bytes_of_2_of_4():
    for dtype, share in ((jnp.bfloat16, 9 / 16), (jnp.float32, 17 / 32)):
        w = weight((64, 24), dtype)
        small = sparse.compress(w, mask_of(w, 2, 4, 0), 2, 4, 0)
        assert small.nbytes == share * w.nbytes
        compiled = jax.jit(sparse.decompress).lower(small).compile()
        assert compiled.memory_analysis().argument_size_in_bytes == small.nbytes


def test_stacked_layers():
    w = weight((3, 13, 5))
    stacked = sparse.compress(w, mask_of(w, 2, 4, 1), 2, 4, 1)
    assert stacked.axis == -2
    dense = stacked.materialize()

    def body(carry, layer):
        assert layer.shape == (13, 5)
        return carry + 1, layer.materialize()

    for scan in (jax.lax.scan, jax.jit(jax.lax.scan, static_argnums=0)):
        assert bits(scan(body, 0, stacked)[1]) == bits(dense)
    assert bits(jax.vmap(sparse.decompress)(stacked)) == bits(dense)
    each = jax.vmap(lambda w, mask: sparse.compress(w, mask, 2, 4, 0))(w, dense != 0)
    assert each.axis == -2
    assert bits(each.materialize()) == bits(jnp.where(dense != 0, dense, 0))


def test_gradient_reaches_the_values():
    w = weight((7, 5)) + 1
    mask = mask_of(w, 2, 4, 0)
    small = sparse.compress(w, mask, 2, 4, 0)
    grad = jax.grad(lambda s: (s.materialize() ** 2).sum(), allow_int=True)(small)
    np.testing.assert_array_equal(grad.values, 2 * small.values)


def test_tree_paths():
    small = sparse.compress(jnp.ones(4), jnp.array([True, False] * 2), 2, 4, 0)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(small)]
    assert paths == [".values", ".indices"]
    shapes = jax.eval_shape(sparse.decompress, small)
    assert (shapes.shape, shapes.dtype) == ((4,), jnp.float32)


def test_bad_input():
    w = jnp.ones((4, 6))
    mask = masks.nm(w, 2, 4, 0)
    with pytest.raises(InputError, match=r"keeps up to 4 of 4 along axis 0, required at most 2"):
        sparse.compress(w, w > 0, 2, 4, 0, path="p")
    with pytest.raises(InputError, match=r"mask of p: required the weight's shape \(4, 6\)"):
        sparse.compress(w, mask.T, 2, 4, 0, path="p")
    with pytest.raises(InputTypeError, match="mask of p: required bool, got float32"):
        sparse.compress(w, w, 2, 4, 0, path="p")
    with pytest.raises(InputError, match="5:4 mask of p"):
        sparse.compress(w, mask, 5, 4, 0, path="p")
    with pytest.raises(InputError, match="p: no axis 2"):
        sparse.compress(w, mask, 2, 4, 2, path="p")
