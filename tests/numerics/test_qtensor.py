"""QTensor: layout methods against the same operation on what it stands for."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core.errors import InputError
from jaxinfer.numerics import _tiling
from jaxinfer.numerics.concatenate import concatenate
from jaxinfer.numerics.formats import FORMATS
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.numerics.quantize import quantize
from tests.aten.harness import rand


def is_quantized(leaf):
    return isinstance(leaf, QTensor)


KINDS = ("int8", "uint4")  # one byte; packed with a zero point
values = jax.jit(lambda tree: jax.tree.map(QTensor.materialize, tree, is_leaf=is_quantized))


def make(shape, axes, tiles=None, name="int4", seed=0):
    return quantize(rand(*shape, seed=seed), name, axes=axes, tiles=tiles)


def same(got, want, before=None):
    """Assert that a QTensor is valid and stands for exactly ``want``."""
    assert isinstance(got, QTensor)
    got.validate()
    assert got.shape == want.shape
    np.testing.assert_array_equal(values(got), want)
    if before is not None and got.size:
        assert got.scale.size <= max(before.scale.size, got.size // 4)


def reference(q):
    """Decode tile by tile with numpy."""
    fmt = q.spec
    codes = np.asarray(q.codes()).astype(np.float32)
    if fmt.levels:
        codes = np.array(fmt.levels, np.float32)[codes.astype(int)]
    scale, zero = (
        None if x is None else np.asarray(x, np.float32) for x in (q.scale, q.zero_point)
    )
    for axis, (size, count) in enumerate(zip(q.stored, q.scale.shape, strict=True)):
        index = np.arange(size) // (size // count if count else 1)
        scale = np.take(scale, index, axis)
        zero = None if zero is None else np.take(zero, index, axis)
    values = (codes if zero is None else codes - zero) * scale
    return values[tuple(slice(0, n) for n in q.shape)]


SHAPES = [
    ((), (), None),
    ((7,), (0,), {0: 4}),
    ((1, 1), (0,), None),
    ((0, 3), (0,), None),
    ((3, 0), (0,), None),
    ((13, 6), (0,), None),
    ((13, 6), (0, 1), {0: 4}),
    ((2, 9, 5), (1,), {1: 4}),
    ((3, 3, 1, 8), (0, 1, 2), None),
    ((2, 3, 4, 5, 3), (2, 4), {2: 2}),
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("shape", "axes", "tiles"), SHAPES)
def test_materialize(name, shape, axes, tiles):
    x = rand(*shape) if shape else np.float32(0.7)
    q = quantize(x, name, axes=axes, tiles=tiles)
    same(q, reference(q))
    np.testing.assert_array_equal(jax.jit(lambda q: q.materialize())(q), q.materialize())
    leaves = jax.tree.leaves(q)
    assert q.nbytes == sum(leaf.nbytes for leaf in leaves)
    assert len(leaves) == 2 + (q.zero_point is not None)
    for whole in (q.unpacked(), q.unpacked().repacked()):
        same(whole, np.asarray(q.materialize()))
    assert q.unpacked().packed is None
    assert q.unpacked().repacked().nbytes <= q.nbytes
    assert q.astype("bfloat16").materialize().dtype == jnp.bfloat16


def test_it_is_small_and_says_what_it_is():
    q = make((128, 64), (0,), {0: 32})
    assert (q.nbytes, q.tiles, q.packed) == (128 * 32 + 4 * 64 * 4, (32, 1), -2)
    assert repr(q) == "QTensor(int4[128,64], float32, tiles=(32, 1), packed=-2)"
    assert "None" in repr(jax.tree.map(lambda _: None, q))
    half = jax.tree.map(lambda leaf: leaf, q)
    assert jax.tree.structure(half) == jax.tree.structure(q)
    assert hash(jax.tree.structure(q)) == hash(jax.tree.structure(half))


def test_odd_sizes_are_kept_apart_from_padding():
    q = make((13, 5), (0,))
    assert (q.qvalue.shape, q.shape, q.sizes) == ((7, 5), (13, 5), ((-2, 13),))
    q = make((67, 5), (0,), {0: 32})
    assert (q.qvalue.shape, q.scale.shape, q.sizes) == ((48, 5), (3, 5), ((-2, 67),))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("axes", [(1,), (1, 2), (2,)])
@pytest.mark.parametrize("tiles", [None, {-2: 4}])
def test_a_leading_axis_comes_and_goes(name, axes, tiles):
    if tiles and 1 not in axes:
        tiles = {-1: 2}
    x = rand(3, 9, 5)
    q = quantize(x, name, axes=axes, tiles=tiles)
    want = np.asarray(q.materialize())
    assert q.independent(0)
    assert not q.independent(axes[0])
    # scan over the children of the stack
    _, got = jax.lax.scan(lambda c, one: (c, one.materialize()), 0, q)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(jax.vmap(lambda one: one.materialize())(q), want)
    layers = [jax.tree.map(lambda leaf, k=k: leaf[k], q) for k in range(3)]
    for k, layer in enumerate(layers):
        same(layer, want[k])
        alone = quantize(x[k], name, axes=[a - 1 for a in axes], tiles=tiles)
        assert jax.tree.structure(alone) == jax.tree.structure(layer)
        jax.tree.map(np.testing.assert_array_equal, alone, layer)
    again = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    same(again, want)
    # methods within the scan act on one layer
    turn = lambda c, one: (c, one.transpose((1, 0)).materialize())
    _, turned = jax.lax.scan(turn, 0, q)
    np.testing.assert_array_equal(turned, want.transpose(0, 2, 1))


def test_independent_is_false_where_children_cannot_be_indexed():
    assert not make((4, 6), (0, 1)).independent(0)  # one scale for all
    packed = make((4, 5), (1,), name="int4")
    assert (packed.packed, packed.independent(0), packed.independent(-1)) == (-2, False, False)
    assert packed.unpacked().independent(0)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("shape", "axes", "tiles"), SHAPES)
def test_transpose_and_unit_axes(name, shape, axes, tiles):
    x = rand(*shape) if shape else np.float32(0.7)
    q = quantize(x, name, axes=axes, tiles=tiles)
    want = np.asarray(q.materialize())
    for perm in list(itertools.permutations(range(len(shape))))[1::47]:
        same(jax.jit(lambda q, perm=perm: q.transpose(perm))(q), want.transpose(perm), q)
    for new in ((0,), (0, -1)):
        more = jax.jit(lambda q, new=new: q.expand_dims(new))(q)
        same(more, np.expand_dims(want, new))
        same(more.squeeze(new), want)
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    same(q.squeeze(ones), want.squeeze(tuple(ones)))


def test_squeeze_of_what_a_slice_left():
    for axes, tiles in (((0,), None), ((0,), {0: 4}), ((1,), None)):
        q = make((12, 6), axes, tiles)
        part = q.slice((5, 0), (6, 6)).squeeze([0])
        same(part, np.asarray(q.materialize())[5])


SLICES = [
    (((12, 6), (0,), None), (0, 2), (12, 5), True),
    (((12, 6), (0,), None), (3, 0), (8, 6), True),
    (((12, 6), (0,), None), (2, 1), (7, 2), True),
    (((12, 6), (1,), None), (1, 1), (11, 6), True),
    (((12, 6), (0,), {0: 4}), (4, 0), (12, 6), True),
    (((12, 6), (0,), {0: 4}), (4, 0), (10, 6), True),
    (((12, 6), (0,), {0: 4}), (5, 0), (7, 6), True),
    (((48, 6), (0,), {0: 16}), (8, 0), (48, 6), True),
    (((48, 6), (0,), {0: 16}), (3, 0), (48, 6), False),  # a scale for each element
    (((13, 6), (0,), {0: 4}), (8, 0), (13, 6), True),
    (((13, 6), (0,), None), (0, 0), (12, 6), True),
    (((13, 6), (0,), None), (4, 0), (13, 3), True),
    (((12, 6), (0,), None), (4, 2), (4, 6), True),
    (((12, 6), (0,), {0: 4}), (5, 0), (5, 6), True),
    (((12, 6), (0, 1), {0: 3}), (3, 1), (9, 4), True),
    (((6, 5), (0,), {0: 3}), (0, 0), (3, 5), True),
    (((2, 3, 4, 5), (2,), {2: 2}), (1, 0, 2, 1), (2, 3, 4, 4), True),
]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("spec", "starts", "limits", "possible"), SLICES)
def test_slice(name, spec, starts, limits, possible):
    q = make(*spec, name=name)
    got = jax.jit(lambda q: q.slice(starts, limits))(q)
    assert (got is not None) is possible
    if got is not None:
        want = np.asarray(q.materialize())[tuple(map(slice, starts, limits))]
        same(got, want, q)
        assert got.nbytes <= q.nbytes or name != "int8"


def test_every_slice_is_right_or_none():
    q = make((13, 4), (0,), {0: 4})
    want, made = np.asarray(q.materialize()), 0
    ranges = list(itertools.combinations_with_replacement(range(14), 2))[::2]
    slices = jax.jit(lambda q: [q.slice((a, 1), (b, 3)) for a, b in ranges])(q)
    for got, full, (a, b) in zip(slices, values(slices), ranges, strict=True):
        if got is not None:
            got.validate()
            np.testing.assert_array_equal(full, want[a:b, 1:3])
            made += 1
    assert made > 20


RESHAPES = [
    (((12, 6), (0,), None), (12, 2, 3), True),  # heads
    (((12, 6), (0,), None), (3, 4, 6), True),
    (((12, 6), (0,), None), (2, 6, 3, 2), True),
    (((12, 6), (0,), {0: 4}), (3, 4, 6), True),
    (((12, 6), (0,), {0: 4}), (6, 2, 6), True),
    (((12, 6), (0,), {0: 4}), (2, 6, 6), False),  # three scales in two rows: not boxes
    (((12, 6), (0,), None), (72,), False),  # a scale for each element
    (((12, 6), (1,), None), (72,), True),
    (((12, 6), (1,), None), (4, 18), True),
    (((12, 6), (0, 1), None), (8, 9), True),
    (((12, 6), (1,), None), (8, 9), False),
    (((12, 6), (0,), None), (1, 12, 1, 6, 1), True),
    (((12, 1, 6), (0,), None), (12, 6), True),
    (((13, 6), (0,), None), (13, 2, 3), True),  # an odd packed axis is left alone
    (((13, 6), (0,), {0: 4}), (13, 3, 2), True),
    (((13, 6), (0,), {0: 4}), (1, 13, 6), True),
    (((14, 6), (0,), {0: 4}), (7, 2, 6), False),  # padded
    (((3, 5, 8), (0, 1), None), (15, 8), True),
    (((3, 4, 8), (0, 1), None), (12, 8), True),
    (((3, 2, 8), (1,), None), (6, 8), True),
    (((4, 6, 8), (0, 2), None), (192,), True),  # scale repeated: an eighth
    (((4, 6, 2), (0, 2), None), (48,), False),  # a half
    (((4, 4, 4, 8), (1, 2), None), (64, 8), True),
    (((2, 3, 8), (2,), {2: 4}), (6, 2, 4), True),
    (((2, 3, 8), (2,), {2: 4}), (48,), True),
    (((8, 0), (0,), None), (0, 2, 4), True),
    (((1, 1), (0,), None), (), True),
    (((0, 3), (1,), None), (0,), True),
]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("spec", "shape", "possible"), RESHAPES)
def test_reshape(name, spec, shape, possible):
    q = make(*spec, name=name)
    got = jax.jit(lambda q: q.reshape(shape))(q)
    assert (got is not None) is possible
    if got is not None:
        want = np.asarray(q.materialize()).reshape(shape)
        same(got, want, q)


def test_reshape_keeps_packing_where_it_can():
    q = make((12, 6), (0,))
    assert q.reshape((12, 2, 3)).packed == -3
    assert q.reshape((3, 4, 6)).packed == -2
    assert q.reshape((4, 3, 6)).packed is None
    q = make((3, 4, 8), (0, 1))
    assert (q.packed, q.reshape((12, 8)).packed) == (-2, -2)


def factorings(total, most=3):
    """Return all shapes of a size with at most ``most`` axes."""
    if most == 1:
        return [(total,)]
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return [(total,), *((d, *rest) for d in divisors for rest in factorings(total // d, most - 1))]


def test_every_reshape_is_right_or_none():
    made = 0
    for axes, tiles in (((0,), None), ((1,), None), ((0, 1), None), ((1,), {1: 2}), ((), None)):
        x = rand(6, 4)
        q = quantize(x, "int8", axes=axes, tiles=tiles)
        want = np.asarray(q.materialize())
        shapes = list(dict.fromkeys(factorings(24)))[::2]
        reshaped = jax.jit(lambda q, shapes=shapes: [q.reshape(shape) for shape in shapes])(q)
        for got, full, shape in zip(reshaped, values(reshaped), shapes, strict=True):
            if got is not None:
                got.validate()
                assert got.scale.size <= max(q.scale.size, 6)
                np.testing.assert_array_equal(full, want.reshape(shape))
                made += 1
    assert made > 50


def test_regroup_finds_boxes_and_only_boxes():
    """Against a search: an array of scale numbers, reshaped, must be constant on the tiles."""
    for sizes, new in itertools.product([(4, 6), (2, 3, 4), (24,)], repeat=2):
        for groups in itertools.product(
            *([d for d in (1, 2, 3, 4, 6) if n % d == 0] for n in sizes)
        ):
            got = _tiling.regroup(sizes, groups, new)
            number = np.arange(int(np.prod(groups))).reshape(groups)
            if got is None:
                assert sizes != new
                continue
            full = number
            for axis, (size, count) in enumerate(zip(sizes, groups, strict=True)):
                full = np.repeat(full, size // count, axis)
            moved = np.broadcast_to(number.reshape(got.parts), got.spread).reshape(got.groups)
            for axis, (size, count) in enumerate(zip(new, got.groups, strict=True)):
                moved = np.repeat(moved, size // count, axis)
            np.testing.assert_array_equal(moved, full.reshape(new))


CONCATENATIONS = [
    ([((8, 3), (0,), None), ((8, 5), (0,), None)], 1, True),  # channels
    ([((8, 4), (0,), None), ((8, 4), (0,), None)], 0, True),
    ([((8, 4), (0,), None), ((12, 4), (0,), None)], -2, True),
    ([((8, 4), (0,), None), ((5, 4), (0,), None)], 0, False),  # no common tile
    ([((8, 4), (0,), {0: 4}), ((8, 3), (0,), {0: 8})], 1, True),
    ([((8, 4), (0,), {0: 2}), ((8, 4), (0,), None)], 1, False),
    ([((13, 4), (0,), None), ((13, 3), (0,), None)], 1, True),
    ([((8, 4), (0,), {0: 4}), ((14, 4), (0,), {0: 4})], 0, True),  # padding at the end
    ([((14, 4), (0,), {0: 4}), ((8, 4), (0,), {0: 4})], 0, False),  # and in the middle
    ([((8, 3), (0,), None), ((8, 0), (0,), None)], 1, True),
    ([((0, 3), (0,), None), ((0, 2), (0,), None)], 1, True),
    ([((8, 3), (0, 1), None)], 1, True),
    ([((4, 8), (1,), None), ((3, 8), (1,), None), ((1, 8), (1,), None)], 0, True),
    ([((2, 8, 3), (1,), {1: 4}), ((2, 8, 5), (1,), {1: 4})], 2, True),
    ([((9, 4), (1,), None), ((9, 5), (1,), None)], 1, False),
]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("specs", "axis", "possible"), CONCATENATIONS)
def test_concatenate(name, specs, axis, possible):
    parts = [make(*spec, name=name, seed=seed) for seed, spec in enumerate(specs)]
    got = jax.jit(lambda parts: concatenate(parts, axis))(parts)
    assert (got is not None) is possible
    if got is not None:
        want = np.concatenate([np.asarray(q.materialize()) for q in parts], axis)
        same(got, want)
        before = sum(q.scale.size for q in parts)
        assert got.scale.size <= max(before, got.size // 4)


def test_concatenate_stays_packed_where_it_can():
    parts = [make((8, n), (0,)) for n in (3, 5)]
    assert concatenate(parts, 1).packed == -2
    parts = [make((n, 4), (0,)) for n in (16, 8)]
    assert concatenate(parts, 0).packed == -2


def test_concatenate_refuses_other_kinds():
    q = make((8, 3), (0,))
    assert concatenate([q, make((8, 3), (0,), name="int8")], 0) is None
    assert concatenate([q, q.astype("bfloat16")], 0) is None
    signed = quantize(rand(8, 3), "int4", axes=(0,), symmetric=False)
    assert concatenate([q, signed], 0) is None
    with pytest.raises(InputError, match="at least one"):
        concatenate([], 0)
    with pytest.raises(InputError, match=r"\(8, 3\), \(9, 3\)"):
        concatenate([q, make((9, 3), (0,))], 1)


@pytest.mark.parametrize("name", FORMATS)
def test_gradient_of_the_scale(name):
    x = rand(9, 4)
    q = quantize(x, name, axes=(0,), tiles={0: 3})
    weight = rand(9, 4, seed=1)

    def loss(scale):
        return (dataclasses.replace(q, scale=scale).materialize() * weight).sum()

    got = jax.grad(loss)(q.scale)
    unit = reference(dataclasses.replace(q, scale=jnp.ones_like(q.scale)))
    want = (unit * weight).reshape(3, 3, 4).sum(1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4 * np.abs(unit).max())


def test_eval_shape_and_tree_map():
    q = jax.eval_shape(
        lambda x: quantize(x, "int4", axes=(0,)), jax.ShapeDtypeStruct((13, 5), "bfloat16")
    )
    assert (q.shape, q.dtype, q.nbytes) == ((13, 5), jnp.bfloat16, 7 * 5 + 4 * 5)
    out = jax.eval_shape(lambda q: q.transpose((1, 0)).materialize(), q)
    assert (out.shape, out.dtype) == ((5, 13), jnp.bfloat16)
    q = make((12, 6), (0,))
    double = jax.tree.map(lambda leaf: leaf * 2 if leaf.dtype == jnp.float32 else leaf, q)
    same(double, 2 * np.asarray(q.materialize()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "int9"}, "required one of"),
        ({"packed": 1}, "counted from the right"),
        ({"sizes": ((-3, 1),)}, "axis -3: required -2 to -1"),
        ({"format": "int8"}, "required a format of 4 bits"),
        ({"packed": None}, "qvalue: required int8"),
        ({"scale": jnp.ones((1, 6), jnp.int32)}, "scale: required floats"),
        ({"scale": jnp.ones((6,))}, "required rank 2"),
        ({"scale": jnp.ones((5, 6))}, r"required divisors of \(12, 6\)"),
        ({"zero_point": jnp.ones((12, 6), jnp.int8)}, "zero_point: required"),
        ({"sizes": ((-2, 12),)}, "required less than 12"),
    ],
)
def test_validate_finds(change, text):
    q = make((12, 6), (0,))
    q.validate()
    with pytest.raises(InputError, match=text) as caught:
        dataclasses.replace(q, **change).validate("layer.weight")
    assert str(caught.value).startswith("layer.weight: ")


def test_bad_arguments():
    q = make((12, 6), (0,))
    for call, text in (
        (lambda: q.transpose((0, 0)), "permutation of 2 axes"),
        (lambda: q.transpose((0,)), "permutation"),
        (lambda: q.expand_dims([0, 0]), "different axes"),
        (lambda: q.expand_dims([3]), "of rank 3"),
        (lambda: q.squeeze([0]), "required size 1, got 12"),
        (lambda: q.squeeze([2]), "axis 2"),
        (lambda: q.slice((0,), (1,)), "required 2 starts"),
        (lambda: q.slice((0, 0), (13, 6)), "limit <= 12 along axis 0"),
        (lambda: q.slice((5, 0), (4, 6)), "got 5 and 4"),
        (lambda: q.reshape((12, 7)), "required 72 elements"),
    ):
        with pytest.raises(InputError, match=text):
            call()
