"""Masked and compressed weights through every primitive that has a rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.core.array_types import RULES, array_rule, is_array_type, materialize
from jaxinfer.core.interpret import Interpreter
from jaxinfer.numerics.masks import Masked, nm
from jaxinfer.numerics.sparse import Compressed, compress
from jaxinfer.rules.masked import MOVES, PRODUCTS, VALUES


def masked(shape=(5, 8, 3), seed=0, dtype=jnp.float32):
    """A masked weight; what is under the mask is NaN, so that nothing can use it unseen."""
    generator = np.random.default_rng(seed)
    mask = generator.random(shape) < 0.6
    weight = np.where(mask, generator.standard_normal(shape), np.nan)
    return Masked.create(jnp.asarray(weight, dtype), jnp.asarray(mask))


def small(shape=(5, 8, 3), axis=1, seed=0):
    weight = jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
    return compress(weight, nm(jnp.abs(weight), 2, 4, axis), 2, 4, axis)


def run(fn, *values):
    """Evaluate with the rules; returns results as they are, and what was materialized."""
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
    closed = jax.make_jaxpr(fn)(*shapes)
    interpreter = Interpreter(array_rule)
    outs = interpreter.run(closed.jaxpr, closed.consts, values)
    return outs, [equation.name for equation in interpreter.materialized]


START = jnp.int32(1)
LAYOUTS = {
    "transpose": (lambda w: lax.transpose(w, (2, 0, 1)), ()),
    "reshape": (lambda w: lax.reshape(w, (10, 4, 3)), ()),
    "broadcast_in_dim": (lambda w: lax.broadcast_in_dim(w, (2, 5, 8, 3), (1, 2, 3)), ()),
    "squeeze": (lambda w: lax.squeeze(lax.slice(w, (0, 0, 1), (5, 8, 2)), (2,)), ()),
    "slice": (lambda w: lax.slice(w, (1, 0, 0), (5, 7, 3), (2, 3, 1)), ()),
    "dynamic_slice": (lambda w, i: lax.dynamic_slice(w, (i, i, 0), (2, 4, 3)), (START,)),
    "rev": (lambda w: lax.rev(w, (0, 2)), ()),
    "split": (lambda w: lax.split(w, (2, 5, 1), 1), ()),
    "copy": (jnp.copy, ()),
    "stop_gradient": (lax.stop_gradient, ()),
    "convert_element_type": (lambda w: w.astype(jnp.bfloat16), ()),
    "reduce_precision": (lambda w: lax.reduce_precision(w, 5, 10), ()),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_masked_stay_masked(name):
    fn, rest = LAYOUTS[name]
    weight = masked()
    outs, used = run(fn, weight, *rest)
    assert used == []
    want = fn(weight.materialize(), *rest)
    want = want if isinstance(want, (list, tuple)) else [want]
    assert len(outs) == len(want)
    for got, each in zip(outs, want, strict=True):
        assert isinstance(got, Masked)
        assert got.shape == got.mask.shape == each.shape
        assert got.dtype == each.dtype
        np.testing.assert_array_equal(got.materialize(), each)


def test_concatenate():
    a, b, plain = masked(), masked((2, 8, 3), 1), jnp.ones((2, 8, 3))
    join = lambda *parts: lax.concatenate(parts, 0)
    (got,), used = run(join, a, b)
    assert isinstance(got, Masked)
    assert used == []
    np.testing.assert_array_equal(got.materialize(), join(a.materialize(), b.materialize()))
    (got,), used = run(join, a, plain)
    assert not is_array_type(got)
    assert used == ["concatenate"]
    np.testing.assert_array_equal(got, join(a.materialize(), plain))


def test_a_sharding_constraint_holds_for_both_parts():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    weight = masked()
    (got,), used = run(lambda w: lax.with_sharding_constraint(w, where), weight)
    assert isinstance(got, Masked)
    assert used == []
    np.testing.assert_array_equal(got.materialize(), weight.materialize())


IDS = jnp.array([[1, 0], [3, 9]])
SIZES = jnp.array([2, 0, 3, 1, 1], jnp.int32)
X = jnp.asarray(np.random.default_rng(9).standard_normal((7, 8)), jnp.float32)
IMAGE = jnp.asarray(np.random.default_rng(8).standard_normal((2, 6, 5)), jnp.float32)
ROWS = jnp.asarray(np.random.default_rng(7).standard_normal((7, 3)), jnp.float32)
PRODUCT = {
    "dot_general": lambda w: jnp.einsum("xk,ako->xao", X, w),
    "conv_general_dilated": lambda w: lax.conv_general_dilated(
        IMAGE, lax.slice(w, (0, 0, 0), (5, 6, 3)), (1,), "SAME",
        dimension_numbers=("NCH", "OIH", "NCH"),
    ),
    "ragged_dot_general": lambda w: lax.ragged_dot(X, w, SIZES),
    "gather": lambda w: jnp.take(w, IDS, axis=0),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Masked", "Compressed"])
@pytest.mark.parametrize("name", PRODUCT)
def test_products_are_those_of_the_materialized_weight(name, kind):
    fn = PRODUCT[name]
    weight = masked() if kind == "Masked" else small()
    (got,), used = run(fn, weight)
    assert used == ([] if kind == "Masked" or "conv" not in name else ["slice"])
    assert not is_array_type(got)
    np.testing.assert_array_equal(got, fn(weight.materialize()))


def test_a_product_of_two_masked_weights():
    a, b = masked((3, 4)), masked((4, 6), 1)
    (got,), used = run(jnp.dot, a, b)
    assert used == []
    np.testing.assert_array_equal(got, jnp.dot(a.materialize(), b.materialize()))


def test_compressed_converts_and_declines_other_layouts():
    weight = small()
    (got,), used = run(lambda w: w.astype(jnp.bfloat16), weight)
    assert isinstance(got, Compressed)
    assert got.dtype == jnp.bfloat16
    assert used == []
    np.testing.assert_array_equal(got.materialize(), weight.materialize().astype(jnp.bfloat16))
    (got,), used = run(lambda w: w.transpose(2, 1, 0), weight)
    assert used == ["transpose"]
    np.testing.assert_array_equal(got, weight.materialize().transpose(2, 1, 0))


def test_an_unknown_use_is_computed_and_recorded():
    weight = masked()
    (got,), used = run(jnp.tanh, weight)
    assert used == ["tanh"]
    np.testing.assert_array_equal(got, jnp.tanh(weight.materialize()))


def test_every_rule_is_tested():
    tested = {f"Masked.{name}" for name in (*LAYOUTS, "concatenate", "sharding_constraint")}
    tested |= {f"{kind}.{name}" for name in PRODUCT for kind in ("Masked", "Compressed")}
    tested |= {f"Compressed.{name}" for name in VALUES}
    manual = {f"Masked.{name}" for name in ("reshard", "pvary", "pcast")}  # below, in a shard_map
    registered = {name for name in RULES if name.startswith(("Masked.", "Compressed."))}
    assert registered <= tested | manual
    assert set(PRODUCT) == set(PRODUCTS)
    assert set(MOVES) >= set(LAYOUTS) - set(VALUES)


def test_stacked_layers_under_scan_vmap_and_jit():
    stack = masked((4, 3, 3))

    def fn(params, x):
        return lax.scan(lambda y, w: (jnp.tanh(y @ w.T), y[:, 0]), x, params)

    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3)), jnp.float32)
    model = ji.from_function(fn, stack, (x,))
    want = fn(stack.materialize(), x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(model.apply)(stack, x), want)
    many = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), stack)  # two models at once
    got = jax.vmap(model.apply, (0, None))(many, x)
    want = jax.vmap(fn, (0, None))(jax.vmap(materialize)(many), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)


def test_weights_within_shard_map():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    weight = masked((4, 6))

    def fn(w, x):
        body = lambda w, x: lax.psum(x @ w, "x")
        return jax.shard_map(body, mesh=mesh, in_specs=(spec(), spec()), out_specs=spec())(w, x)

    x = jnp.ones((2, 4))
    (got,), used = run(fn, weight, x)
    assert used == []
    np.testing.assert_array_equal(got, fn(weight.materialize(), x))


def test_gradients_reach_the_kept_elements_only():
    weight = masked((4, 6))
    weight = Masked(jnp.where(weight.mask, weight.weight, 7.0), weight.mask)
    model = ji.from_function(lambda w, x: x @ w, weight, (jnp.ones((2, 4)),))
    fn = lambda values: model.apply(Masked(values, weight.mask), jnp.ones((2, 4))).sum()
    np.testing.assert_array_equal(jax.grad(fn)(weight.weight) != 0, weight.mask)
