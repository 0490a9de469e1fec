"""Folded equals unfolded, within the derived bound where there is one, and the plan is data.

The bound of a case is f M: f from ``folding.rounding_bound``, M the sum of the magnitudes of all
terms, the same computation on absolute values in float64. Elsewhere it is the programs' own:
64 ulp of the largest value, for a few sums of at most 72 terms in another order. All programs of
``tests/laws`` are tried here for what is folded in them, and in the law suite for their values.
"""

import functools
import itertools
import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.selectors import rule
from jaxinfer.core.transform import TRANSFORMS
from jaxinfer.numerics.folding import rounding_bound
from jaxinfer.transforms._fold_flat import Step, flatten, needed
from jaxinfer.transforms._fold_rewrite import FoldRewrite
from jaxinfer.transforms.fold import fold
from tests.laws.programs import PROGRAMS

ULPS = 64 * float(jnp.finfo(jnp.float32).eps)


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    """Many small programs: what they compute is tried here, not how fast."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def rand(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def wide(x):
    return np.asarray(x).astype(np.float64)


def model_of(fn, params, *inputs):
    return ji.from_function(fn, params, inputs)


def primitives(fn, *args):
    """Return the names of the equations of a function that its results need."""
    closed = jax.make_jaxpr(fn)(*args)
    flat = flatten(closed.jaxpr, closed.consts)
    steps = [Step(node, node.inputs, node.outputs) for node in flat.nodes]
    return [step.node.name for step in needed(steps, flat.outputs)]


def count(name, model, *inputs):
    return primitives(model.apply, model.params, *inputs).count(name)


def assert_same(folded, model, *inputs, tol=ULPS, eager=False):
    want = jax.tree.leaves(jax.jit(model.apply)(model.params, *inputs))
    for fn in (jax.jit(folded.apply), *([folded.apply] if eager else [])):
        got = jax.tree.leaves(fn(folded.params, *inputs))
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            assert (g.shape, g.dtype) == (w.shape, w.dtype)
            np.testing.assert_allclose(wide(g), wide(w), rtol=0, atol=tol * abs(wide(w)).max())


def groups(model):
    (rewrite,) = (each for each in model.rewrites if each.kind == "fold")
    return [(group.kind, *(m.kernel for m in group.members)) for group in rewrite.plan.groups]


def computed(model):
    return [entry.name for entry in model.rewrites[-1].plan.computed]


def status(model, path):
    (entry,) = (entry for entry in model.audit()["fold"] if entry.path == path)
    return entry.status, entry.why


# The programs.

# (kind, kernels) of the groups, and names of what is computed once; none: left as they are.
FOLDED = {
    "conv_batch_norm": [("affine", "w")],
    "attention": [("merge", "query", "key", "value")],
    "gated": [("merge", "gate", "up")],
    "linen_attention": [("merge", "query.kernel", "key.kernel", "value.kernel")],
    "twins": [("merge", "a", "b")],
    "integers": [("affine", "q.folded")],
    "random_key": [("affine", "w")],
}
COMPUTED = {"composed": ["a&b"], "scaled": ["a&g"], "concatenated": ["a&b"]}
COMPUTED |= {"penalized": ["w.folded"], "integers": ["q.folded"]}
TOUCHED = sorted({*FOLDED, *COMPUTED})


@functools.cache
def folded_program(name):
    row = PROGRAMS[name]
    model = model_of(row.fn, row.params(), *row.inputs(2))
    return model, fold()(model)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_folded(name):
    """Sets, for the order of a pytree's leaves decides that of the members."""
    model, folded = folded_program(name)
    assert list(map(set, groups(folded))) == list(map(set, FOLDED.get(name, [])))
    assert computed(folded) == COMPUTED.get(name, [])
    assert len(folded.audit()["fold"].entries) == len(jax.tree.leaves(model.params))
    if name not in TOUCHED:
        inputs = PROGRAMS[name].inputs(5)
        same = (primitives(m.apply, m.params, *inputs) for m in (model, folded))
        assert next(same) == next(same)
        assert all(e.status != "changed" for e in folded.audit()["fold"])


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("name", TOUCHED)
def test_programs_compute_the_same(name, batch):
    model, folded = folded_program(name)
    inputs = PROGRAMS[name].inputs(batch)
    assert_same(folded, model, *inputs, eager=batch == 2)
    before, after = (primitives(m.apply, m.params, *inputs) for m in (model, folded))
    assert len([p for p in after if p != "split"]) < len(before)


def test_a_symbolic_batch():
    row = PROGRAMS["conv_batch_norm"]
    model, folded = folded_program("conv_batch_norm")
    specs = jax.export.symbolic_args_specs(row.inputs(2), row.symbolic)
    exported = jax.export.export(jax.jit(folded.apply))(folded.params, *specs)
    got, want = exported.call(folded.params, *row.inputs(5)), model(*row.inputs(5))
    np.testing.assert_allclose(got, want, rtol=0, atol=ULPS * abs(wide(want)).max())


@pytest.mark.parametrize("name", ["conv_batch_norm", "gated"])
def test_derivatives_and_vmap(name):
    model, folded = folded_program(name)
    (x,) = PROGRAMS[name].inputs(2)

    def slope(model):
        return jax.jit(jax.grad(lambda x: (model.apply(model.params, x) ** 2).sum()))(x)

    np.testing.assert_allclose(slope(folded), slope(model), rtol=0, atol=1e-4)
    many = jax.vmap(folded.apply, (None, 0))(folded.params, x[:, None])
    want = model.apply(model.params, x)
    np.testing.assert_allclose(many[:, 0], want, rtol=0, atol=ULPS * abs(wide(want)).max())


def test_derivatives_by_folded_parameters():
    _, folded = folded_program("gated")
    inputs = PROGRAMS["gated"].inputs(2)
    slopes = jax.jit(jax.grad(lambda params: folded.apply(params, *inputs).sum()))(folded.params)
    assert slopes.keys() == folded.params.keys()
    assert all(jnp.any(leaf != 0) for leaf in slopes.values())


# Affine maps.

CONVOLUTIONS = {
    "NHWC": (("NHWC", "HWIO", "NHWC"), (2, 5, 7, 6), (3, 2, 6, 4), 1),
    "NCHW": (("NCHW", "OIHW", "NCHW"), (2, 6, 5, 7), (4, 6, 3, 2), 1),
    "grouped": (("NHWC", "HWIO", "NHWC"), (2, 5, 7, 6), (3, 2, 2, 12), 3),
    "grouped NCHW": (("NCHW", "OIHW", "NCHW"), (2, 6, 5, 7), (12, 2, 3, 2), 3),
    "depthwise": (("NHWC", "HWIO", "NHWC"), (2, 5, 7, 6), (3, 2, 1, 6), 6),
    "one axis": (("NCH", "OIH", "NCH"), (2, 6, 9), (5, 6, 3), 1),
}


def conv_norm(case, dtype, dilated=False):
    numbers, x_shape, k_shape, count_groups = CONVOLUTIONS[case]
    channels = k_shape[numbers[1].index("O")]
    names = ("mean", "var", "gamma", "beta", "bias")
    params = {"kernel": rand(*k_shape, seed=1, dtype=dtype)}
    params |= {n: rand(channels, seed=i + 2, dtype=dtype) for i, n in enumerate(names)}
    params["var"] = abs(params["var"]) + jnp.asarray(0.1, dtype)
    axis = numbers[2].index("C")

    def spread(v):
        return jnp.expand_dims(v, [a for a in range(len(x_shape)) if a != axis])

    def convolve(x, kernel):
        rank = len(x_shape) - 2
        return lax.conv_general_dilated(
            x, kernel, (1,) * rank, ((1, 2),) * rank, dimension_numbers=numbers,
            feature_group_count=count_groups, lhs_dilation=(1 + dilated,) * rank,
        )  # fmt: skip

    def fn(p, x):
        y = convolve(x, p["kernel"]) + spread(p["bias"])
        scale = lax.rsqrt(p["var"] + 1e-3) * p["gamma"]
        return (y - spread(p["mean"])) * spread(scale) + spread(p["beta"])

    def magnitude(p, x):
        """M of the head of ``numerics.folding``, in float64."""
        with jax.enable_x64(True):
            p, x = jax.tree.map(lambda leaf: jnp.asarray(wide(leaf)), (p, x))
            a = abs(p["gamma"]) / jnp.sqrt(p["var"] + 1e-3)
            y = convolve(abs(x), abs(p["kernel"]))
            shift = (abs(p["bias"]) + abs(p["mean"])) * a + abs(p["beta"])
            return np.asarray(y * spread(a) + spread(shift))

    terms = int(np.prod(k_shape)) // channels
    return fn, params, rand(*x_shape, seed=9, dtype=dtype), magnitude, terms


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_batch_norm_after_a_convolution(case, dtype):
    fn, params, x, magnitude, terms = conv_norm(case, dtype)
    model = model_of(fn, params, x)
    folded = fold()(model)
    assert sorted(folded.params) == ["bias", "kernel"]
    assert count("mul", folded, x) == 0
    assert count("add", folded, x) == 1
    factor = rounding_bound(terms, dtype)
    got, want = (wide(jax.jit(m.apply)(m.params, x)) for m in (folded, model))
    assert (abs(got - want) <= factor * magnitude(params, x)).all()
    with jax.enable_x64(True):
        exact = wide(fn(jax.tree.map(lambda p: jnp.asarray(wide(p)), params), jnp.asarray(wide(x))))
    assert (abs(got - exact) <= factor * magnitude(params, x)).all()


def test_the_bound_finds_a_wrong_bias():
    fn, params, x, magnitude, terms = conv_norm("NHWC", "float32")
    model = model_of(fn, params, x)
    folded = fold()(model)
    wrong = {**folded.params, "bias": folded.params["bias"] * (1 + 2.0**-12)}
    error = abs(wide(folded.apply(wrong, x)) - wide(model.apply(params, x)))
    assert (error > rounding_bound(terms, "float32") * magnitude(params, x)).any()


def test_batch_norm_after_a_transposed_convolution():
    fn, params, x, magnitude, terms = conv_norm("NHWC", "float32", dilated=True)
    model = model_of(fn, params, x)
    folded = fold()(model)
    error = abs(wide(folded.apply(folded.params, x)) - wide(model.apply(params, x)))
    assert groups(folded) == [("affine", "kernel")]
    assert (error <= rounding_bound(terms, "float32") * magnitude(params, x)).all()


CHAINS = {
    "scale": lambda y, g, h: y * g,
    "scale on the left": lambda y, g, h: g * y,
    "div": lambda y, g, h: y / g + h,
    "negated": lambda y, g, h: -(y + h) * g,
    "from": lambda y, g, h: g - y * h,
    "two shifts": lambda y, g, h: y + g - h,
    "numbers": lambda y, g, h: (y + h) * 0.125 - 3.0,
    "turned between": lambda y, g, h: ((y * g).T - h[:, None]) * 2.0,
    "split between": lambda y, g, h: y.reshape(2, 3, 5) * g + h,
    "converted between": lambda y, g, h: (y.astype("bfloat16").astype("float32") * g) + h,
    "shared vector": lambda y, g, h: (y * g + g) * g + h,
}


@pytest.mark.parametrize("case", CHAINS)
def test_a_chain_of_any_kind(case):
    """Equal to float64 to 64 ulp: a chain has 4 roundings, a sum 7 terms; of bf16 where used."""
    params = {"w": rand(7, 5), "g": 1 + 0.2 * rand(5, seed=1), "h": rand(5, seed=2)}

    def fn(p, x):
        return CHAINS[case](x @ p["w"], p["g"], p["h"])

    x = rand(6, 7, seed=3)
    model = model_of(fn, params, x)
    folded = fold()(model)
    assert groups(folded) == [("affine", "w")]
    assert set(primitives(folded.apply, folded.params, x)).isdisjoint({"mul", "div", "sub", "neg"})
    tol = ULPS if case != "converted between" else 4 * float(jnp.finfo(jnp.bfloat16).eps)
    assert_same(folded, model, x, tol=tol)
    with jax.enable_x64(True):
        exact = wide(fn({k: jnp.asarray(wide(v)) for k, v in params.items()}, jnp.asarray(wide(x))))
    got = wide(folded.apply(folded.params, x))
    np.testing.assert_allclose(got, exact, rtol=0, atol=tol * abs(exact).max())


STORED = {
    "torch": ((5, 7), lambda x, w: x @ w.T),
    "left": ((5, 7), lambda x, w: (w @ x.T).T),
    "flipped": ((7, 5), lambda x, w: x @ w[:, ::-1]),
    "reshaped": ((7, 5), lambda x, w: x @ w.reshape(7, 1, 5)[:, 0]),
    "heads": ((7, 15), lambda x, w: jnp.einsum("bi,inh->bnh", x, w.reshape(7, 3, 5))),
    "half": ((7, 5), lambda x, w: (x.astype("bfloat16") @ w.astype("bfloat16")).astype("float32")),
}


@pytest.mark.parametrize("case", STORED)
def test_a_kernel_keeps_its_path_and_its_layout(case):
    shape, product = STORED[case]
    params = {"w": rand(*shape), "g": rand(5, seed=1), "h": rand(5, seed=2)}
    x = rand(6, 7, seed=3)
    model = model_of(lambda p, x: product(x, p["w"]) * p["g"] + p["h"], params, x)
    folded = fold()(model)
    assert folded.params["w"].shape == shape
    assert "mul" not in primitives(folded.apply, folded.params, x)
    eps = jnp.finfo(jnp.bfloat16 if case == "half" else jnp.float32).eps
    assert_same(folded, model, x, tol=float(eps) * (8 if case == "half" else 64))


def test_a_batch_axis_is_a_channel():
    params = {"w": rand(3, 7, 5), "g": rand(3, 5, seed=1), "e": rand(3, 1, 1, seed=2)}
    x = rand(3, 4, 7, seed=3)
    model = model_of(lambda p, x: (x @ p["w"]) * p["g"][:, None] + p["e"], params, x)
    folded = fold()(model)
    assert groups(folded) == [("affine", "w")]
    assert_same(folded, model, x)


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: x @ p["w"] * p["t"][:, None],
        lambda p, x: jnp.tanh(x @ p["w"]) * p["g"],
        lambda p, x: p["g"] / (x @ p["w"]),
        lambda p, x: x @ p["w"] + p["g"],
        lambda p, x: (x @ p["w"]) * x[:, :5],
        lambda p, x: (x @ p["w"]).reshape(6, 5)[::-1] * p["t"][:, None],
        lambda p, x: (x @ p["w"]).T.reshape(6, 5) * p["g"],
    ],
)
def test_what_is_no_map_by_channel(fn):
    params = {"w": rand(7, 5), "g": rand(5, seed=1), "t": rand(6, seed=2)}
    x = rand(6, 7, seed=3)
    model = model_of(fn, params, x)
    folded = fold()(model)
    assert groups(folded) == []
    assert_same(folded, model, x)


# Sharing.


def test_a_kernel_that_is_read_twice_is_left():
    params = {"w": rand(5, 5), "g": rand(5, seed=1)}
    x = rand(6, 5, seed=2)
    model = model_of(lambda p, x: jnp.tanh(x @ p["w"] * p["g"]) @ p["w"].T, params, x)
    folded = fold()(model)
    assert groups(folded) == []
    assert status(folded, "w") == ("blocked", "scaling by channel: it is read 2 times")
    assert_same(folded, model, x)
    with pytest.raises(InputError, match=r"fold: blocked:\n  w: scaling by channel"):
        fold(strict=True)(model)
    ignored = fold(strict=True, rules=[rule("w", ignore=True)])(model)
    assert status(ignored, "w") == ("ignored", "by a rule")


def test_a_product_that_is_read_twice_is_left():
    params = {"w": rand(5, 5), "g": rand(5, seed=1)}
    x = rand(6, 5, seed=2)

    def fn(p, x):
        y = x @ p["w"]
        return y * p["g"], y

    model = model_of(fn, params, x)
    folded = fold()(model)
    assert groups(folded) == []
    assert "its product is read 2 times" in status(folded, "w")[1]
    assert_same(folded, model, x)


def test_what_is_inside_a_loop_is_said():
    _, folded = folded_program("scan_stacked")
    assert status(folded, "w") == ("blocked", "inside scan: fold does not enter it")


def test_a_function_that_is_called_twice():
    """One jaxpr, two values for each of its variables."""
    scale = jax.jit(lambda x, w, g: x @ w * g)
    params = {"w": rand(5, 5), "g": rand(5, seed=1), "v": rand(5, 5, seed=2)}
    x = rand(6, 5, seed=3)

    def fn(p, x):
        return scale(jnp.tanh(scale(x, p["w"], p["g"])), p["v"], p["g"])

    model = model_of(fn, params, x)
    folded = fold()(model)
    assert groups(folded) == [("affine", "w"), ("affine", "v")]
    assert sorted(folded.params) == ["v", "w"]
    assert_same(folded, model, x)


# Values of parameters alone.


def test_computed_once_before_what_rearranges():
    params = {"a": {"log": rand(5)}, "w": rand(7, 5, seed=1)}
    x = rand(6, 7, seed=2)

    def fn(p, x):
        rate = -jnp.exp(p["a"]["log"])
        return jnp.tanh(x @ p["w"]) * jnp.broadcast_to(rate, (x.shape[0], 5))

    model = model_of(fn, params, x)
    folded = fold()(model)
    assert {path: leaf.shape for path, leaf in folded.params.items()} == {
        "a.log.folded": (5,),
        "w": (7, 5),
    }
    assert count("exp", folded, x) == 0
    for size in (6, 3):
        assert_same(folded, model, rand(size, 7, seed=4))


def test_weight_norm_and_a_scale_behind_it():
    params = {"v": rand(7, 5), "g": rand(5, seed=1), "gain": rand(5, seed=2)}
    x = rand(6, 7, seed=3)

    def fn(p, x):
        norm = jnp.sqrt(jnp.square(p["v"]).sum(0))
        return x @ (p["v"] * (p["g"] / norm)) * p["gain"]

    model = model_of(fn, params, x)
    folded = fold()(model)
    assert list(folded.params) == ["g&v"]
    assert primitives(folded.apply, folded.params, x) == ["dot_general"]
    assert_same(folded, model, x)


def test_values_that_look_the_same_keep_their_places():
    params = {"p": rand(5)}

    def fn(p, x):
        for gain in (2.0, 3.0, 5.0):
            x = jnp.tanh(x) * jnp.exp(p["p"] * gain)
        return x

    model = model_of(fn, params, rand(6, 5))
    folded = fold()(model)
    assert list(folded.params) == ["p.folded", "p.folded2", "p.folded3"]
    assert_same(folded, model, rand(6, 5))


def test_numbers_that_depend_on_sizes_are_left():
    params = {"w": rand(7, 5), "p": rand(5, seed=1)}

    def fn(p, x):
        return jnp.tanh(x @ p["w"] / x.shape[0]) * (p["p"] * x.shape[0])

    model = model_of(fn, params, rand(2, 7))
    folded = fold()(model)
    assert groups(folded) == computed(folded) == []
    assert "depends on the sizes of the inputs" in status(folded, "p")[1]
    for size in (2, 3):
        assert_same(folded, model, rand(size, 7))


def test_sizes_that_may_be_of_an_input_are_left():
    params = {"pos": rand(9, 5), "kind": rand(5, seed=1)}
    x = rand(2, 4, 5)
    model = model_of(lambda p, x: x + p["pos"][: x.shape[1]] + p["kind"], params, x)
    folded = fold()(model)
    model = model_of(lambda p, x: x + (p["pos"][: x.shape[1]] + p["kind"]), params, x)
    folded = fold()(model)
    assert computed(folded) == []
    for length in (4, 9):
        assert_same(folded, model, rand(2, length, 5))


def test_what_would_grow_is_left():
    params = {"q": jnp.ones((200, 200), jnp.int8), "s": rand(200)}
    x = rand(3, 200)
    model = model_of(lambda p, x: jnp.tanh(x @ (p["q"] * p["s"])), params, x)
    folded = fold()(model)
    assert folded.params.keys() == params.keys()
    assert "larger than what it is made of" in status(folded, "q")[1]
    assert_same(folded, model, x)


def test_dead_parameters_are_removed():
    params = {"w": rand(7, 5), "old": rand(4), "kept": rand(4)}
    x = rand(6, 7)
    model = model_of(lambda p, x: x @ p["w"], params, x)
    folded = fold(rules=[rule("kept", ignore=True)])(model)
    assert sorted(folded.params) == ["kept", "w"]
    assert status(folded, "old") == ("unused", "removed: nothing reads it")
    assert folded.audit()["fold"].after == folded.nbytes
    assert_same(folded, model, x)


# Merging.


def test_merged_with_biases():
    sizes = {"q": 8, "k": 4, "v": 6}
    params = {n: {"w": rand(7, size), "b": rand(size, seed=1)} for n, size in sizes.items()}
    x = rand(3, 4, 7, seed=2)

    def fn(p, x):
        return [x @ p[n]["w"] + p[n]["b"] for n in sizes]

    model = model_of(fn, params, x)
    folded = fold()(model)
    shapes = {path: leaf.shape for path, leaf in folded.params.items()}
    assert shapes == {"q&k&v.b": (18,), "q&k&v.w": (7, 18)}
    assert count("dot_general", folded, x) == count("add", folded, x) == 1
    assert_same(folded, model, x)


def test_merged_with_a_bias_and_a_scale_each():
    params = {"q": rand(7, 5), "k": rand(7, 5, seed=1), "g": rand(5, seed=2), "b": rand(5, seed=3)}
    x = rand(3, 7, seed=4)
    model = model_of(lambda p, x: (x @ p["q"] * p["g"] + p["b"], x @ p["k"]), params, x)
    folded = fold()(model)
    assert sorted(folded.params) == ["b", "q&k"]
    assert count("mul", folded, x) == 0
    assert_same(folded, model, x)


def test_torch_layout_and_heads_are_merged():
    params = {"q": rand(15, 7), "k": rand(10, 7, seed=1), "h": rand(7, 3, 5), "i": rand(7, 2, 5)}
    x = rand(4, 7, seed=2)

    def fn(p, x):
        y = jnp.sin(x)
        heads = (jnp.einsum("bd,dnh->bnh", y, p[n]) for n in "hi")
        return x @ p["q"].T, x @ p["k"].T, *heads

    model = model_of(fn, params, x)
    folded = fold()(model)
    assert {frozenset(group[1:]) for group in groups(folded)} == {frozenset("qk"), frozenset("hi")}
    assert {leaf.shape for leaf in folded.params.values()} == {(7, 25), (7, 5, 5)}
    assert_same(folded, model, x)


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: (x @ p["a"], jnp.sin(x) @ p["b"]),
        lambda p, x: (x @ p["a"], x.astype("bfloat16") @ p["b"].astype("bfloat16")),
        lambda p, x: (x @ p["a"], jnp.matmul(x, p["b"], precision="highest")),
        lambda p, x: (x @ p["a"], x @ p["b"], p["b"]),
        lambda p, x: (x @ p["a"], x.T @ jnp.tile(p["b"], (3, 1))[: x.shape[0]]),
    ],
)
def test_what_is_not_merged(fn):
    params = {"a": rand(7, 5), "b": rand(7, 5, seed=1)}
    model = model_of(fn, params, rand(4, 7))
    folded = fold()(model)
    assert groups(folded) == []
    assert_same(folded, model, rand(4, 7))


def test_dtypes_are_not_mixed():
    params = {"a": rand(7, 5), "b": rand(7, 5, dtype="bfloat16")}
    model = model_of(lambda p, x: (x @ p["a"], x @ p["b"].astype("float32")), params, rand(4, 7))
    assert groups(fold()(model)) == []


# Composition.


def dense(*sizes, bias=True):
    params = {}
    for number, (k, n) in enumerate(itertools.pairwise(sizes)):
        params[f"w{number}"] = rand(k, n, seed=number) / np.sqrt(k)
        if bias:
            params[f"b{number}"] = rand(n, seed=number + 9)

    def fn(p, x):
        for number in range(len(sizes) - 1):
            x = x @ p[f"w{number}"]
            x = x + p[f"b{number}"] if bias else x
        return x

    return model_of(fn, params, rand(3, 4, sizes[0], seed=5))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(7, 11, 5), (7, 11, 5, 6), (7, 11, 12, 13, 3)])
def test_dense_layers_in_a_row_are_composed(sizes, bias):
    """M of the bound by absolute values, k + m + ... terms; the parts' own bounds add."""
    model = dense(*sizes, bias=bias)
    folded = fold()(model)
    x = rand(3, 4, sizes[0], seed=6)
    assert count("dot_general", folded, x) == 1
    assert {leaf.shape for leaf in folded.params.values()} == {
        (sizes[0], sizes[-1]),
        *([(sizes[-1],)] if bias else []),
    }
    assert_same(folded, model, x)
    with jax.enable_x64(True):
        params = {k: jnp.asarray(abs(wide(v))) for k, v in model.params.items()}
        magnitude = wide(model.program.run(params, [jnp.asarray(abs(wide(x)))]))
    error = abs(wide(folded.apply(folded.params, x)) - wide(model.apply(model.params, x)))
    assert (error <= rounding_bound(sum(sizes[:-1]), "float32") * magnitude).all()


def test_a_narrow_middle_is_not_composed():
    model = dense(16, 3, 16)
    folded = fold()(model)
    assert groups(folded) == []
    assert folded.params.keys() == model.params.keys()


def test_a_scale_between_is_composed():
    params = {"a": rand(7, 11), "g": rand(11, seed=1), "b": rand(5, 11, seed=2)}
    x = rand(4, 7, seed=3)
    model = model_of(lambda p, x: ((x @ p["a"]) * p["g"] - 1.0) @ p["b"].T * 2.0, params, x)
    folded = fold()(model)
    assert groups(folded) == [("compose", "a", "b")]
    assert sorted(folded.params) == ["a&b", "b.bias"]
    assert_same(folded, model, x)


@pytest.mark.parametrize(
    "between",
    [jnp.tanh, lambda y: y.T, lambda y: y.reshape(11, 11).T, lambda y: y[::-1]],
)
def test_what_is_not_composed(between):
    params = {"a": rand(7, 11), "b": rand(11, 11, seed=2)}
    x = rand(11, 7, seed=3)
    model = model_of(lambda p, x: between(x @ p["a"]) @ p["b"], params, x)
    assert groups(fold()(model)) == []


def test_merging_and_composing_can_be_left_out():
    (model, _), composable = folded_program("gated"), dense(7, 11, 5)
    assert groups(fold(merge=False)(model)) == []
    assert groups(fold(compose=False)(composable)) == []


# The plan.


def rebuilt(plan):
    return FoldRewrite.from_json({"plan": plan})


def plan_of(model):
    return json.loads(json.dumps(fold().init(model)))["plan"]


def test_the_plan_is_json_and_deterministic():
    model, folded = folded_program("linen_attention")
    state = fold().init(model)
    assert json.loads(json.dumps(state)) == json.loads(json.dumps(fold().init(model)))
    again = fold().update(model, json.loads(json.dumps(state)))
    rewrite = rebuilt(plan_of(model))
    assert rewrite.plan == folded.rewrites[-1].plan == again.rewrites[-1].plan
    assert all((again.params[path] == leaf).all() for path, leaf in folded.params.items())
    assert json.loads(json.dumps(rewrite.to_json())) == {"plan": plan_of(model)}


def test_the_rewrite_says_what_it_reads():
    row = PROGRAMS["conv_batch_norm"]
    model = model_of(row.fn, row.params(), *row.inputs(2))
    rewrite = rebuilt(plan_of(model))
    specs = rewrite.param_specs(model.params)
    assert {path: spec.shape for path, spec in specs.items()} == {
        path: leaf.shape for path, leaf in fold()(model).params.items()
    }
    with pytest.raises(InputError, match=r"gamma: the function has no such parameter"):
        rewrite.param_specs({k: v for k, v in model.params.items() if k != "gamma"})
    with pytest.raises(InputError, match=r"extra: the plan knows no such"):
        rewrite.param_specs({**model.params, "extra": jnp.ones(2)})
    with pytest.raises(InputError, match=r"mean: required \(5,\), got \(3,\)"):
        rewrite.param_specs({**model.params, "mean": jnp.ones(3)})


NOTHING = {"name": "x", "paths": ["w"], "shape": [2], "dtype": "f", "ordinal": 0, "facts": ""}


def first_member(plan):
    return plan["groups"][0]["members"][0]


TAMPERED = {
    "another kernel": (lambda plan: first_member(plan).update(kernel="b"), "not the kernel"),
    "other equations": (lambda plan: first_member(plan).update(ops=["mul"]), "required mul"),
    "other numbers": (lambda plan: first_member(plan).update(facts="0" * 16), "other numbers"),
    "other parameters": (lambda plan: first_member(plan)["paths"].pop(), "w: required"),
    "no groups": (lambda plan: plan.update(groups=[]), "is read, but the plan removed it"),
    "an unknown value": (lambda plan: plan["computed"].append(NOTHING), "no value"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_plan_that_does_not_fit_is_refused(case):
    change, message = TAMPERED[case]
    fn, params, x, _, _ = conv_norm("NHWC", "float32")
    params = {("w" if path == "kernel" else path): leaf for path, leaf in params.items()}
    model = model_of(lambda p, x: fn({**p, "kernel": p["w"]}, x), params, x)
    plan = plan_of(model)
    folded = fold()(model)
    change(plan)
    wrong = rebuilt(plan).apply(model.program.run)
    with pytest.raises(InputError, match=rf"(?s)the plan does not fit the model:.*{message}"):
        wrong(folded.params, [x])


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.pop("groups"),
        lambda plan: plan["groups"][0].update(kind="other"),
        lambda plan: plan["groups"][0].update(members=[]),
        lambda plan: plan["groups"][0].update(axis="0"),
        lambda plan: plan["groups"][0].pop("name"),
        lambda plan: plan["params"].update(w=[[-1], "float32"]),
        lambda plan: plan.update(frozen="w"),
        lambda plan: plan.update(leaves=[]),
    ],
)
def test_a_malformed_plan_is_refused(change):
    model, _ = folded_program("gated")
    plan = plan_of(model)
    change(plan)
    with pytest.raises((ValueError, KeyError, TypeError)):
        rebuilt(plan)


def test_other_parameters_are_refused():
    _, folded = folded_program("gated")
    (x,) = PROGRAMS["gated"].inputs(2)
    with pytest.raises(InputError, match=r"gate&up: required float32\[7, 22\], missing|missing"):
        folded.apply({}, x)
    path = next(path for path in folded.params if "&" in path)
    with pytest.raises(InputError, match=r"got float32\[2\]"):
        folded.apply({**folded.params, path: jnp.ones(2)}, x)


def test_a_numeric_plan_at_a_size_that_has_other_numbers():
    """A number that depends on an axis that planning does not vary: refused, never wrong."""
    params = {"w": rand(7, 5)}
    model = model_of(lambda p, x: jnp.tanh((x @ p["w"]) / x.shape[1]), params, rand(2, 3, 7))
    folded = fold()(model)
    assert_same(folded, model, rand(4, 3, 7))
    with pytest.raises(InputError, match="with other numbers"):
        folded.apply(folded.params, rand(2, 6, 7))


def test_it_is_a_stage():
    _, folded = folded_program("gated")
    assert TRANSFORMS["fold"] is fold
    assert folded.provenance["stages"] == ["fold"]
    with pytest.raises(InputError, match="has been through it already"):
        fold()(folded)


def test_a_model_without_example_inputs_takes_a_batch():
    params = {"w": rand(7, 5), "g": rand(5, seed=1)}
    model = ji.from_function(lambda p, x: x @ p["w"] * p["g"], params)
    with pytest.raises(InputError, match="without example inputs"):
        fold()(model)
    folded = fold()(model, [rand(2, 7)])
    assert groups(folded) == [("affine", "w")]
    assert_same(folded, model, rand(4, 7))
    nested = ji.from_function(lambda p, x: x["x"] @ p["w"] * p["g"], params)
    with pytest.raises(InputError, match="a batch of arrays"):
        fold()(nested, [({"x": rand(2, 7)},)])


EDGES = {
    "no parameters": (lambda p, x: x * 2, {}, []),
    "one parameter": (lambda p, x: x @ p * 2.0, (7, 5), ["value"]),
    "no outputs": (lambda p, x: x @ p["w"] * p["g"], {"w": (7, 0), "g": (0,)}, ["g", "w"]),
    "one output": (lambda p, x: x @ p["w"] * p["g"], {"w": (7, 1), "g": (1,)}, ["w"]),
    "a vector": (lambda p, x: x @ p["w"] * p["g"], {"w": (7,), "g": ()}, ["w"]),
    "remat": (
        jax.checkpoint(lambda p, x: x @ p["w"] * p["g"]),
        {"w": (7, 5), "g": (5,)},
        ["w"],
    ),
    "a result twice": (lambda p, x: (x @ p["w"] * p["g"],) * 2, {"w": (7, 5), "g": (5,)}, ["w"]),
    "a parameter as it is": (
        lambda p, x: (jnp.exp(p["w"]), p["w"]),
        {"w": (7,)},
        ["w", "w.folded"],
    ),
    "a derivative": (
        jax.grad(lambda p, x: jnp.tanh(x @ p["w"] * p["g"]).sum(), 1),
        {"w": (7, 5), "g": (5,)},
        ["g", "w"],
    ),
}


@pytest.mark.parametrize("case", EDGES)
def test_edges(case):
    fn, shapes, names = EDGES[case]
    params = jax.tree.map(lambda s: rand(*s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    model = model_of(fn, params, rand(3, 7))
    folded = fold()(model)
    assert sorted(folded.params) == names
    if 0 not in folded.params.get("w", rand(1)).shape:
        assert_same(folded, model, rand(3, 7))


def test_effects_stay():
    seen = []

    def fn(p, x):
        jax.debug.callback(seen.append, x.sum())
        return x @ p["w"] * p["g"]

    model = model_of(fn, {"w": rand(7, 5), "g": rand(5, seed=1)}, rand(3, 7))
    folded = fold()(model)
    assert groups(folded) == [("affine", "w")]
    jax.jit(folded.apply)(folded.params, jnp.ones((3, 7))).block_until_ready()
    jax.effects_barrier()
    assert [float(value) for value in seen] == [21.0]


def test_nnx_batch_norm():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=nnx.Rngs(0))
            self.norm.mean[...] = rand(8)
            self.norm.var[...] = abs(rand(8, seed=1))

        def __call__(self, x):
            return jax.nn.relu(self.norm(self.conv(x)))

    graph, state = nnx.split(Net())
    x = rand(2, 5, 6, 3)
    model = model_of(lambda p, x: nnx.merge(graph, p)(x), state, x)
    folded = fold(strict=True)(model)
    assert sorted(folded.params) == ["conv.bias.value", "conv.kernel.value"]
    assert_same(folded, model, x)


def test_several_components_are_refused():
    model, _ = folded_program("gated")
    both = model.replace(program=MultiProgram({"prefill": model.program, "decode": model.program}))
    with pytest.raises(InputError, match=r"one function, got prefill, decode"):
        fold()(both)


def test_a_structure_is_no_data():
    _, folded = folded_program("nested")
    with pytest.raises(ArtefactError, match="no flat dict"):
        folded.rewrites[-1].to_json()


def test_a_function_is_saved_folded(tmp_path):
    model, folded = folded_program("linen_attention")
    (x,) = PROGRAMS["linen_attention"].inputs(2)
    folded.save(tmp_path / "model")
    np.testing.assert_allclose(ji.load(tmp_path / "model")(x), model(x), rtol=0, atol=1e-5)


# Branches.


def branching(p, x, other):
    first = functools.partial(lax.conv_general_dilated, window_strides=(1,), padding="VALID")
    turned = {"dimension_numbers": ("NWC", "WIO", "NWC"), "feature_group_count": 6}
    direct = functools.partial(first, **turned)
    y = lax.cond(x.sum() > 0, other, direct, x, p["k"])
    return y * p["g"] + p["h"]


def taps(x, k):
    return sum(x[:, i : i + 5] * jnp.squeeze(k[i], 0) for i in range(3))


BRANCHES = {
    "taps": (taps, True),
    "a bias": (lambda x, k: taps(x, k) + 1.0, False),
    "the kernel itself": (lambda x, k: taps(x, k) + k[0], True),
    "a square": (lambda x, k: taps(x, k * k), False),
    "turned": (lambda x, k: taps(x, k[..., ::-1]), False),
    "zeros around": (lambda x, k: taps(x, jnp.pad(k, ((0, 1), (0, 0), (0, 0)))), True),
    "ones around": (
        lambda x, k: taps(x, jnp.pad(k, ((1, 0), (0, 0), (0, 0)), constant_values=1)),
        False,
    ),
    "shifted channels": (
        lambda x, k: taps(x, jnp.pad(k[..., 1:], ((0, 0), (0, 0), (0, 1)))),
        False,
    ),
    "over channels": (lambda x, k: taps(x, k) + (x[:, :5] * k[0]).sum(-1, keepdims=True), False),
}


@pytest.mark.parametrize("case", BRANCHES)
def test_a_branch_is_a_product_if_each_scales_with_its_kernel(case):
    other, is_product = BRANCHES[case]
    params = {"k": rand(3, 1, 6), "g": rand(6, seed=1), "h": rand(6, seed=2)}
    x = rand(2, 7, 6, seed=3)
    model = model_of(functools.partial(branching, other=other), params, x)
    folded = fold()(model)
    assert groups(folded) == ([("affine", "k")] if is_product else [])
    for sign in (1, -1):
        assert_same(folded, model, sign * jnp.sign(x.sum()) * x)


# Converted models.


@pytest.fixture(scope="module")
def network():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
            self.stem = torch.nn.Sequential(conv(3, 8, 3, bias=False), norm(8), torch.nn.ReLU())
            self.deep = torch.nn.Sequential(conv(8, 8, 3, padding=1, groups=8), norm(8))
            self.head = torch.nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            return self.head(torch.relu(self.deep(x) + x).mean((2, 3)))

    net = Net().eval()
    for name, leaf in net.state_dict().items():
        if leaf.dtype == torch.float32 and ".1." in name:
            leaf.copy_(torch.rand(leaf.shape) + 0.3)
    batch = torch.export.Dim("batch", min=1, max=64)
    sample = torch.randn(2, 3, 7, 6)
    return net, ji.from_torch(net, (sample,), dynamic_shapes=({0: batch},))


def test_a_converted_network(network, tmp_path):
    torch = pytest.importorskip("torch")
    net, model = network
    folded = fold(strict=True)(model)
    assert sorted(folded.params) == [
        *("deep.0.bias", "deep.0.weight", "head.bias", "head.weight"),
        *("stem.0.weight", "stem.1.bias"),
    ]
    for size in (2, 5):
        x = np.asarray(rand(size, 3, 7, 6, seed=size))
        assert "mul" not in primitives(folded.apply, folded.params, x)
        assert_same(folded, model, x)
        with torch.no_grad():
            want = net(torch.from_numpy(np.array(x))).numpy()
        np.testing.assert_allclose(folded(x), want, rtol=0, atol=ULPS * abs(want).max())
    folded.save(tmp_path / "net")
    loaded = ji.load(tmp_path / "net")
    assert (loaded(x) == folded(x)).all()
    assert loaded.audit()["fold"] == folded.audit()["fold"]
    with pytest.raises(InputError, match="already"):
        fold()(loaded)


def test_a_buffer_that_changes_is_not_folded():
    torch = pytest.importorskip("torch")

    class Warm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(7, 5)
            self.register_buffer("gain", torch.full((5,), 2.0))

        def forward(self, x):
            y = self.dense(x) * self.gain
            self.gain.mul_(2)
            return y

    model = ji.from_torch(Warm().eval(), (torch.randn(3, 7),))
    folded = fold()(model)
    assert status(folded, "gain") == ("unfit", "the function gives it back changed")
    x = np.asarray(rand(3, 7))
    _, state = folded(x)
    assert_same(folded, model, x)
    later, _ = folded.apply({**folded.params, **state}, x)
    want, _ = model.apply({**model.params, **state}, x)
    np.testing.assert_allclose(later, want, rtol=0, atol=1e-5)


def test_a_model_of_64_bits():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(7, 9), torch.nn.Linear(9, 5)).double().eval()
    model = ji.from_torch(net, (torch.randn(3, 7, dtype=torch.float64),), x64=True)
    folded = fold()(model)
    assert groups(folded) == [("compose", "0.weight", "1.weight")]
    x = np.random.default_rng(0).normal(size=(3, 7))
    assert folded(x).dtype == np.float64
    np.testing.assert_allclose(folded(x), model(x), rtol=0, atol=1e-14)
