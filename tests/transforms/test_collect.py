"""Calibration sees what each parameter is multiplied by: loops and branches by hand in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.core.leaves import leaves
from jaxinfer.numerics._histogram import to_int
from jaxinfer.numerics.calibration import METHODS, observer, unseen
from jaxinfer.transforms.quantize import quantize


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


W, V, X = normal((7, 11)) / 3, normal((11, 7), 1) / 3, normal((4, 7), 2)
STACK = normal((3, 7, 7), 3) / 3


def model_of(fn, params, *inputs):
    return ji.from_function(fn, params, inputs)


def ranges(stats, path):
    return np.asarray(stats[path].low).ravel(), np.asarray(stats[path].high).ravel()


def assert_range(stats, path, *seen):
    """Compare with the least and the largest of arrays, one for each layer.

    They are the values themselves up to the rounding of tanh and products: 16 ulp.
    """
    low, high = ranges(stats, path)
    np.testing.assert_allclose(low, [np.min(x) for x in seen], rtol=2**-19, atol=1e-6)
    np.testing.assert_allclose(high, [np.max(x) for x in seen], rtol=2**-19, atol=1e-6)


def test_products_one_after_the_other():
    model = model_of(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], {"w": W, "v": V}, X)
    batches = [np.asarray(normal((n, 7), n)) for n in (4, 2, 5)]  # three shapes
    stats = ji.calibrate(model, batches)
    assert_range(stats, "w", np.concatenate(batches))
    assert_range(stats, "v", np.tanh(np.concatenate(batches) @ np.asarray(W)))
    assert int(to_int(stats["v"].count).sum()) == 11 * 11
    assert not any(map(unseen, stats.values()))


def layers(x, stack):
    """Return what goes into each layer of a stack."""
    seen = []
    for w in np.asarray(stack):
        seen.append(x)
        x = np.tanh(x @ w)
    return seen


def scan(params, x):
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])[0]


def test_a_scan_over_layers_keeps_them_apart():
    stats = ji.calibrate(model_of(scan, {"w": STACK}, X), [X, 2 * X])
    one, two = layers(np.asarray(X), STACK), layers(np.asarray(2 * X), STACK)
    assert stats["w"].low.shape == (3, 1)
    assert_range(stats, "w", *map(np.concatenate, zip(one, two, strict=True)))


def test_a_reversed_scan():
    def fn(params, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"], reverse=True)[0]

    stats = ji.calibrate(model_of(fn, {"w": STACK}, X), [X])
    assert_range(stats, "w", *layers(np.asarray(X), STACK[::-1])[::-1])


def test_a_scan_in_a_scan():
    stack = normal((2, 3, 7, 7), 4) / 3
    fn = lambda p, x: lax.scan(lambda h, w: (scan({"w": w}, h), None), x, p["w"])[0]
    stats = ji.calibrate(model_of(fn, {"w": stack}, X), [X])
    assert stats["w"].low.shape == (2, 3, 1)
    assert_range(stats, "w", *layers(np.asarray(X), stack.reshape(6, 7, 7)))


def test_a_weight_that_a_scan_does_not_slice_has_one_range():
    fn = lambda p, x: lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, length=3)[0]
    stats = ji.calibrate(model_of(fn, {"w": STACK[0]}, X), [X])
    seen = layers(np.asarray(X), [STACK[0]] * 3)
    assert stats["w"].low.shape == (1,)
    assert_range(stats, "w", np.concatenate(seen))


def test_a_while_loop_of_data():
    def fn(params, x, count):
        step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ params["w"]))
        return lax.while_loop(lambda c: c[0] < count, step, (0, x))[1]

    model = model_of(fn, {"w": STACK[0]}, X, jnp.int32(2))
    stats = ji.calibrate(model, [(X, jnp.int32(3))])
    assert_range(stats, "w", np.concatenate(layers(np.asarray(X), [STACK[0]] * 3)))
    none = ji.calibrate(model, [(X, jnp.int32(0))])
    assert unseen(none["w"])
    both = ji.calibrate(model, [(X, jnp.int32(0)), (X, jnp.int32(1))])
    assert_range(both, "w", np.asarray(X))


def branches(params, x):
    return lax.cond(x.sum() > 0, lambda: x @ params["a"], lambda: jnp.tanh(2 * x) @ params["b"])


def test_branches_and_one_that_is_never_taken():
    model = model_of(branches, {"a": W, "b": W + 1}, X)
    up, down = jnp.abs(X), -jnp.abs(X)
    stats = ji.calibrate(model, [up, 2 * up])
    assert float(stats["a"].high[0]) == float((2 * up).max())
    assert float(stats["a"].low[0]) == float(up.min())
    assert unseen(stats["b"])
    small = quantize("W8A8", activation="static")(model, [up, 2 * up])
    of = {entry.path: entry.why for entry in small.audit()["quantize"]}
    assert "activations, static" in of["a"]
    assert "activations, dynamic (no batch reaches it)" in of["b"]
    named = leaves(small.params)
    assert named["a"].scale.shape == (1, 1)
    assert named["b"].scale is None
    np.testing.assert_allclose(small(down), branches({"a": W, "b": W + 1}, down), atol=0.1)
    both = ji.calibrate(model, [up, down])
    assert_range(both, "b", np.tanh(2 * np.asarray(down)))


def test_a_shared_parameter_has_the_range_of_all_its_products():
    fn = lambda p, x: jnp.tanh(10 * x @ p["w"]) @ p["w"].T
    stats = ji.calibrate(model_of(fn, {"w": W}, X / 10), [X / 10])
    second = np.tanh(np.asarray(X) @ np.asarray(W))
    low, high = ranges(stats, "w")
    first = np.asarray(10 * (X / 10))
    assert np.isclose(high, max(first.max(), second.max()), rtol=1e-5)
    assert np.isclose(low, min(first.min(), second.min()), rtol=1e-5)


def test_calls_convolutions_and_rows_of_groups():
    def fn(params, x, ids):
        h = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(params["w"], x)
        h = jax.jit(
            lambda h: lax.conv_general_dilated(
                h[:, :, None], params["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
        )(h)
        return lax.ragged_dot(h[:, 0], params["e"], ids)  # fmt: skip

    params = {"w": W, "k": normal((3, 1, 5), 5), "e": normal((2, 5, 3), 6)}
    sizes = jnp.array([1, 3], jnp.int32)
    stats = ji.calibrate(model_of(fn, params, X, sizes), [(X, sizes)])
    hidden = np.tanh(np.asarray(X) @ np.asarray(W))
    assert_range(stats, "k", hidden)
    k = np.asarray(params["k"])
    first = hidden[:, :1] * k[1, 0] + hidden[:, 1:2] * k[2, 0]  # SAME: one is padded before
    assert_range(stats, "e", first)


def test_values_that_are_not_finite_are_named():
    model = model_of(lambda p, x: jnp.log(x @ p["w"]) @ p["v"], {"w": W * 0 + 1, "v": V}, X)
    good, bad = jnp.abs(X), jnp.abs(X).at[1].set(0)
    with pytest.raises(InputError) as error:
        ji.calibrate(model, [good, good, bad])
    assert "v, input, batch 2: 11 of 44 values are not finite" in str(error.value)
    assert "w," not in str(error.value)
    with pytest.raises(InputError, match="w, input, batch 0: 1 of 28 values is not finite"):
        ji.calibrate(model, [good.at[0, 0].set(jnp.nan)])


@pytest.mark.parametrize(
    ("data", "kind", "word"),
    [
        ([], InputError, "hold no batch"),
        (X, InputTypeError, "got one array of shape"),
        ({"x": X}, InputTypeError, "got dict"),
        (3, InputTypeError, "got int"),
        ([(X, X)], InputError, "batch 0"),
        ([X, X[:, :3]], TypeError, "dot_general"),
    ],
)
def test_data_that_do_not_fit(data, kind, word):
    model = model_of(lambda p, x: x @ p["w"], {"w": W}, X)
    with pytest.raises(kind, match=word):
        ji.calibrate(model, data)
    with pytest.raises(kind, match=word):
        quantize("W8A8", activation="static")(model, data)


def test_no_data_or_too_much():
    model = model_of(lambda p, x: x @ p["w"], {"w": W}, X)
    for data in ((), ([X], [X])):
        with pytest.raises(InputError, match="required one iterable of batches"):
            ji.calibrate(model, *data)


@pytest.mark.parametrize(
    "method", [m if m == "absmax" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_all_observers_and_the_static_scales_that_follow(method):
    batches = [X, 3 * X[:2]]
    model = model_of(scan, {"w": STACK}, X)
    stats = ji.calibrate(model, batches, methods=method)
    seen = [layers(np.asarray(x), STACK) for x in batches]
    one = observer(method, **({"levels": 255} if method == "mse" else {}))
    small = quantize("W8A8", activation="static", calibration=method)(model, batches)
    again = quantize("W8A8", activation="static", calibration=method, stats=stats)(model)
    scale = small.params["w"].scale
    np.testing.assert_array_equal(scale, again.params["w"].scale)
    assert scale.shape == (3, 1, 1)
    for layer in range(3):
        by_hand = one.init((1,))
        for x in seen:
            by_hand = one.update(by_hand, jnp.asarray(x[layer].reshape(-1)))
        low, high = one.bounds(by_hand)
        want = max(abs(float(low[0])), abs(float(high[0]))) / 127
        # a value may fall on the other side of a bin's edge by rounding: one bin of 2048
        np.testing.assert_allclose(float(scale[layer, 0, 0]), want, rtol=2 / 2048)
    record = small.provenance["calibration"]["w"]
    assert record["method"] == method
    assert len(record["low"]) == 3


def test_statistics_of_another_method_are_refused():
    model = model_of(lambda p, x: x @ p["w"], {"w": W}, X)
    stats = ji.calibrate(model, [X], methods="absmax")
    with pytest.raises(InputError, match="statistics of RangeStats are not those of the method"):
        quantize("W8A8", activation="static", calibration="percentile", stats=stats)(model)


def test_observing_changes_no_result():
    """The static model is near to the float one: int8 of both sides, under 4 % of the largest."""
    model = model_of(scan, {"w": STACK}, X)
    small = quantize("W8A8", activation="static")(model, [X])
    want = np.asarray(model(X))
    np.testing.assert_allclose(small(X), want, rtol=0, atol=0.04 * np.abs(want).max())


def test_a_shard_map_is_not_calibrated_and_said_so():
    mesh = jax.make_mesh((1,), ("m",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def fn(p, x):
        body = lambda x, w: lax.psum(x @ w, "m")
        return jax.shard_map(body, mesh=mesh, in_specs=(spec(None, "m"), spec("m")),
                             out_specs=spec())(x, p["w"]) @ p["v"]  # fmt: skip

    model = model_of(fn, {"w": W, "v": V}, X)
    small = quantize("W8A8", activation="static")(model, [X])
    of = {entry.path: entry.why for entry in small.audit()["quantize"]}
    assert "dynamic (not calibrated inside shard_map)" in of["w"]
    assert "activations, static" in of["v"]
