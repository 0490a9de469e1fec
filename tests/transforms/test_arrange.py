"""arrange: the same numbers another way; what was changed is said, and what was not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.core.transform import chain
from jaxinfer.transforms._arrange_layout import MOVERS, SPECS, Moved, stored
from jaxinfer.transforms._arrange_trace import layer_loops
from jaxinfer.transforms.arrange import ArrangeRewrite, arrange
from jaxinfer.transforms.cast import cast
from jaxinfer.transforms.fold import fold
from jaxinfer.transforms.prune import prune
from jaxinfer.transforms.quantize import quantize
from tests.transforms.arranging import convolve, image, near, network, normal, of, weights


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# Layout.


def kernel(layout, *shape, seed=1):
    w = normal(*shape, seed=seed)  # height, width, input, output
    return w if layout == "NHWC" else np.transpose(w, (3, 2, 0, 1))


OPTIONS = {
    "plain": ((3, 3, 4, 6), {}),
    "strided": ((3, 2, 4, 6), {"window_strides": (2, 3), "padding": ((1, 2), (0, 3))}),
    "dilated": (
        (3, 2, 4, 6),
        {"rhs_dilation": (2, 1), "lhs_dilation": (1, 2), "padding": ((1, 1), (0, 2))},
    ),
    "grouped": ((3, 3, 2, 6), {"feature_group_count": 2}),
    "batches": ((3, 3, 4, 6), {"batch_group_count": 2}),
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("layout", SPECS)
def test_a_convolution_in_the_other_layout(layout, case):
    old = "NCHW" if layout == "NHWC" else "NHWC"
    shape, options = OPTIONS[case]
    x, params = image(old), {"w": kernel(old, *shape)}
    model = ji.from_function(lambda p, x: convolve(x, p["w"], old, **options), params, (x,))
    made = arrange(layout=layout)(model)
    (eqn,) = of(made, "conv_general_dilated", x)
    numbers = eqn.params["dimension_numbers"]
    assert (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) == SPECS[layout]
    assert made.params is model.params
    near(made(x), model(x))
    (entry,) = made.audit()["arrange"]
    assert (entry.path, entry.status, entry.why) == ("w", "changed", f"convolution in {layout}")
    assert "(convolve)" in entry.source


def test_odd_dimension_numbers_become_a_layout():
    x, params = normal(5, 2, 4, 7), {"w": normal(6, 3, 3, 4)}  # [w, n, c, h] and [o, w, h, i]
    numbers = lax.ConvDimensionNumbers((1, 2, 3, 0), (0, 3, 2, 1), (3, 0, 2, 1))

    def fn(p, x):
        return lax.conv_general_dilated(x, p["w"], (1, 2), "SAME", dimension_numbers=numbers)

    model = ji.from_function(fn, params, (x,))
    for layout in SPECS:
        near(arrange(layout=layout)(model)(x), model(x))


def test_images_stay_as_they_are_stored_between_convolutions():
    x = image("NHWC")
    model = ji.from_function(network, weights(), (x,))
    made = arrange(layout="NCHW")(model)
    near(made(x), model(x))
    images = [e for e in of(made, "transpose", x) if e.invars[0].aval.shape[0] == len(x)]
    assert len(images) == 1  # what comes in; what else is transposed are vectors and kernels
    statuses = {e.path: (e.status, e.why) for e in made.audit()["arrange"]}
    assert statuses["two"] == ("changed", "convolution in NCHW")
    assert statuses["head"] == ("unfit", "nothing to arrange")


def test_what_has_the_layout_is_left_and_has_no_rewrite():
    model = ji.from_function(network, weights(), (image("NHWC"),))
    made = arrange(layout="NHWC")(model)
    assert made.rewrites == ()
    assert made.audit()["arrange"].of("changed") == ()
    assert {e.why for e in made.audit()["arrange"] if e.path in ("one", "two")} == {"NHWC already"}
    assert made.provenance["arrange"]["changed"] is False


def test_convolutions_over_one_dimension_and_of_computed_kernels_are_said():
    def fn(p, x):
        y = convolve(x, p["a"][..., None] * jnp.ones(6))
        line = lax.conv_general_dilated(
            x[:, 0], p["line"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y.sum() + line.sum()

    params = {"a": normal(3, 3, 4), "line": normal(3, 4, 5), "idle": normal(2)}
    model = ji.from_function(fn, params, (image("NHWC"),))
    made = arrange(layout="NCHW")(model)
    found = {e.path: (e.status, e.why) for e in made.audit()["arrange"]}
    assert found["line"] == ("unfit", "a convolution over 1 dimensions")
    assert found["idle"] == ("unused", "the function does not read it")
    assert found["(convolution, 1 of no parameter)"] == ("changed", "convolution in NCHW")
    near(made(image("NHWC")), model(image("NHWC")))


CASES = {
    "unary": lambda x: jnp.tanh(x).astype(jnp.int32),
    "scalars": lambda x: jnp.clip(x * 2.0, -1.0, 0.5) ** 3,
    "broadcast": lambda x: x + jnp.arange(6.0) * jnp.arange(7.0)[:, None, None],
    "select": lambda x: jnp.where(x > 0, x, normal(2, 7, 5, 6, seed=9)),
    "sum": lambda x: x.sum((1, 3)),
    "max of one": lambda x: x.max(2),
    "all": lambda x: x.sum(),
    "any": lambda x: jnp.any(x > 1, (0, 2)),
    "window": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 0), (0, 1), (0, 0))
    ),
    "pad": lambda x: lax.pad(x, 1.5, ((0, 0, 0), (1, 2, 1), (0, -1, 0), (2, 0, 0))),
    "join": lambda x: jnp.concatenate([x, normal(2, 7, 5, 2, seed=9), x * 2], 3),
    "slice": lambda x: x[:, 1:6:2, :, 2:],
    "split": lambda x: jnp.split(x, [1, 4], 3)[1] * 2,
    "transpose": lambda x: jnp.transpose(x, (3, 0, 2, 1)) * 2,
    "reshape": lambda x: x.reshape(2, -1),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "argmax": lambda x: jnp.argmax(x, 3),
    "itself": lambda x: x,
    "jit": lambda x: jax.jit(lambda x: jnp.sin(x) + 1)(x),
    "checkpoint": lambda x: jax.checkpoint(jnp.cos)(x),
    "cond": lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    "while": lambda x: lax.while_loop(lambda x: x.sum() < 0, lambda x: x + 1, x),
    "scan carry": lambda x: lax.scan(lambda x, _: (x * 2, x[0, 0]), x, None, length=2),
    # stored as [n, c, h, w]: an axis 0 of the same length, and other slices
    "scan slices": lambda x: lax.scan(lambda c, x: (c, x[0] * 2), 0.0, x)[1],
    "vmap": jax.vmap(lambda x: x - x.max()),
    "outputs": lambda x: {"a": x, "b": (x, x[0])},
}


@pytest.mark.parametrize("case", CASES)
def test_what_follows_a_moved_image(case):
    x, params = image("NHWC"), {"w": kernel("NHWC", 3, 3, 4, 6)}
    model = ji.from_function(lambda p, x: CASES[case](convolve(x, p["w"])), params, (x,))
    made = arrange(layout="NCHW")(model)
    assert made.rewrites
    near(made.apply(params, x), model.apply(params, x))


def test_every_family_of_rules_has_a_case(monkeypatch):
    taken = set()

    def spy(name, rule):
        def run(equation, values):
            out = rule(equation, values)
            taken.add(rule.__name__ if out is not None else None)
            return out

        return run

    rules = set(MOVERS.values())
    monkeypatch.setattr(MOVERS, "_rules", {name: spy(name, rule) for name, rule in MOVERS.items()})
    x, params = image("NHWC"), {"w": kernel("NHWC", 3, 3, 4, 6)}
    for case in ("unary", "sum", "window", "pad", "join", "split", "slice", "transpose"):
        fn = lambda p, x, case=case: CASES[case](convolve(x, p["w"]))
        arrange(layout="NCHW")(ji.from_function(fn, params, (x,)))
    assert taken == {rule.__name__ for rule in rules}


def test_moved_is_its_array():
    x = normal(2, 3, 5, 7)
    moved = Moved(jnp.transpose(x, (3, 0, 2, 1)), (3, 0, 2, 1))
    assert moved.shape == x.shape
    assert moved.dtype == x.dtype
    np.testing.assert_array_equal(moved.materialize(), x)
    np.testing.assert_array_equal(stored(moved, (0, 2, 1, 3)), np.transpose(x, (0, 2, 1, 3)))
    assert stored(moved, (3, 0, 2, 1)) is moved.value


# Loops over layers.


def layers(p, x):
    def step(x, layer):
        return jnp.tanh(x @ layer["w"] + layer["b"]), x.sum()

    return lax.scan(step, x, p)


def stack(count=3):
    return {"w": normal(count, 4, 4), "b": normal(count, 4, seed=1)}


def test_a_loop_over_layers_is_unrolled():
    x = normal(2, 4)
    model = ji.from_function(layers, stack(), (x,))
    made = arrange(unroll=True)(model)
    near(made(x), model(x))
    assert "while" in jax.jit(model.apply).lower(model.params, x).as_text()
    assert "while" not in jax.jit(made.apply).lower(made.params, x).as_text()
    entries = {e.path: (e.status, e.why) for e in made.audit()["arrange"]}
    assert entries == dict.fromkeys(("w", "b"), ("changed", "a loop of 3 layers, unrolled"))
    slope = lambda model: jax.grad(lambda x: model.apply(model.params, x)[0].sum())(x)
    near(slope(made), slope(model))


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8"])
def test_quantized_layers_are_unrolled(scheme):
    x = normal(2, 4)
    small = quantize(scheme)(ji.from_function(layers, stack(), (x,)))
    made = arrange(unroll=True)(small)
    near(made(x), small(x))
    assert "while" not in jax.jit(made.apply).lower(made.params, x).as_text()


def test_a_loop_over_time_stays():
    def fn(p, x):
        return lax.scan(lambda h, x: (jnp.tanh(x @ p["w"] + h), h), jnp.zeros(4), x)

    model = ji.from_function(fn, {"w": normal(4, 4)}, (normal(9, 4),))
    made = arrange(unroll=True)(model)
    assert made.rewrites == ()
    assert [e.status for e in made.audit()["arrange"]] == ["unfit"]


def test_loops_are_found_by_what_they_slice():
    def fn(p, q, x):
        both = p.reshape(2, 3, 4) * 2 + q  # of parameters alone: layers
        inner = lambda x, w: (x * w, None)
        outer = lambda x, ws: (lax.scan(inner, x, ws)[0], None)
        x = jax.jit(lambda x: lax.scan(outer, x, both)[0])(x)
        mixed = both[:, 0] * x  # of data as well
        return lax.scan(inner, x, mixed)[0]

    closed = jax.make_jaxpr(fn)(normal(6, 4), normal(4), normal(4))
    loops = layer_loops(closed.jaxpr, 2)
    assert list(loops.values()) == [frozenset({0, 1})] * 2
    first, second = sorted(loops, key=len)
    assert second[: len(first)] == first


def test_unrolled_already_is_said():
    def fn(p, x):
        return lax.scan(lambda x, w: (x * w, None), x, p["w"], unroll=True)[0]

    made = arrange(unroll=True)(ji.from_function(fn, {"w": normal(3, 4)}, (normal(4),)))
    (entry,) = made.audit()["arrange"]
    assert (entry.status, entry.why) == ("unfit", "a loop of 3, unrolled already")


# The transform.


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "other",
    [
        quantize("W8A16"),
        *(pytest.param(other, marks=slow) for other in (cast("bf16"), fold(), prune())),
    ],
)
def test_it_comes_before_or_after_the_others(other):
    x = image("NHWC")
    model = ji.from_function(network, weights(), (x,))
    want = np.asarray(other(model)(x))
    for order in ((other, arrange(layout="NCHW")), (arrange(layout="NCHW"), other)):
        made = chain(*order)(model)
        (first, second) = of(made, "conv_general_dilated", x)
        for eqn in (first, second):
            assert eqn.params["dimension_numbers"].lhs_spec == (0, 1, 2, 3)
        np.testing.assert_allclose(made(x), want, atol=0.01 * np.abs(want).max())


def test_once_is_enough():
    model = ji.from_function(network, weights(), (image("NHWC"),))
    made = arrange(layout="NCHW")(model)
    with pytest.raises(InputError, match="has been through it already"):
        arrange(layout="NHWC")(made)
    with pytest.raises(InputError, match="has been through it already"):
        chain(arrange(layout="NCHW"), arrange(unroll=True))


def test_settings_that_there_are_not_are_said_at_once():
    with pytest.raises(InputError) as caught:
        arrange(attention="odd", layout="CHWN", unroll=1)  # pyright: ignore
    for word in ("attention: required", "layout: required", "unroll: required"):
        assert word in str(caught.value)
    with pytest.raises(InputError, match="nothing is asked for"):
        arrange()


def test_a_model_without_example_inputs_takes_those_of_data():
    model = ji.from_function(layers, stack())
    with pytest.raises(InputError, match="without example inputs"):
        arrange(unroll=True)(model)
    made = arrange(unroll=True)(model, [(normal(2, 4),)])
    assert made.rewrites
    near(made(normal(5, 4)), model(normal(5, 4)))


def test_a_state_is_of_one_model():
    first = ji.from_function(layers, stack(), (normal(2, 4),))
    other = ji.from_function(network, weights(), (image("NHWC"),))
    transform = arrange(unroll=True)
    with pytest.raises(InputError, match="of a model with other parameters"):
        transform.update(other, transform.init(first))


def test_a_rewrite_in_a_file_is_checked():
    assert ArrangeRewrite.from_json(ArrangeRewrite("whole", "NHWC", True).to_json()).unroll
    for bad in ({"layout": "x"}, {"attention": 3}, {"unroll": "yes"}):
        with pytest.raises(ValueError, match="required"):
            ArrangeRewrite.from_json(bad)
    with pytest.raises(TypeError):
        ArrangeRewrite.from_json({"more": 1})


def test_an_export_is_not_looked_into(tmp_path):
    x = normal(2, 4)
    quantize("W8A16")(ji.from_function(layers, stack(), (x,))).save(tmp_path / "model")
    back = ji.load(tmp_path / "model")
    made = arrange(unroll=True)(back)
    assert made.rewrites == ()
    assert {e.why for e in made.audit()["arrange"]} == {
        "the program is an export, which is not looked into"
    }
    near(made(x), back(x))


def test_an_unknown_rewrite_names_arrange_among_the_known(tmp_path, monkeypatch):
    from jaxinfer.io import artefact

    with pytest.raises(ValueError, match="known: arrange, cast, fold"):
        artefact._rewrite_class("odd")
    assert issubclass(ArtefactError, ValueError)
