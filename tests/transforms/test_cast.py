"""cast: near the float32 numbers, products in half precision, islands in float32."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram
from jaxinfer.core.selectors import rule
from jaxinfer.core.transform import TRANSFORMS
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.transforms._cast_rules import CLASSES
from jaxinfer.transforms.cast import Policy, cast
from tests.laws.programs import PROGRAMS
from tests.transforms.casting import (
    UNIT,
    cast_of,
    dtypes,
    equations,
    error,
    linear,
    model_of,
    normal,
    products,
)

NAMES = (
    *("matmul", "left", "batched", "einsum_three", "concatenated", "tied", "indexed", "experts"),
    *("scan_stacked", "scan_carried", "scan_nested", "while_condition", "fori_loop", "cond"),
    *("conv_nhwc", "conv_transposed_nchw", "conv_batch_norm", "norm_and_dense", "attention"),
    *("qkv_split", "checkpointed", "vmap_both", "sharded", "ragged_dot", "opaque_solve"),
    *("random_key", "inner_grad", "platforms"),
)
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# Numbers.


@functools.cache
def expected(name):
    return model_of(name)(*PROGRAMS[name].inputs(2))


CASES = [(name, "bf16") for name in NAMES] + [(name, "f16") for name in NAMES[::3]]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_near_float32(name, policy):
    """A few roundings follow each other: over all 106 programs at most 3.0 units were measured
    (bf16) and 2.8 (f16), of the largest value; 5 are allowed, and exactly none would be wrong.
    """
    got, want = cast_of(name, policy)(*PROGRAMS[name].inputs(2)), expected(name)
    assert dtypes(got) == dtypes(want)
    assert 0 < error(got, want) < 5 * UNIT[policy]


@each
def test_products_run_in_half_and_islands_in_float32(name):
    inputs = PROGRAMS[name].inputs(2)
    half = cast_of(name)
    assert set(products(half, *inputs)) <= {"bfloat16*bfloat16"}
    assert "bfloat16" in dtypes(half.params)
    for eqn in equations(half, *inputs):
        floats = [v.aval.dtype for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
        if CLASSES.get(eqn.primitive.name, "island") == "island" and floats:
            known = eqn.primitive.name in CLASSES
            assert set(floats) == {jnp.dtype("float32")} or not known, eqn


@pytest.mark.parametrize("name", ["left", "conv_nhwc", "cond"])
def test_jit_is_eager(name):
    half, inputs = cast_of(name), PROGRAMS[name].inputs(2)
    jitted = half(*inputs)
    assert error(jitted, half.apply(half.params, *inputs)) < UNIT["bf16"]
    again = cast("bf16")(model_of(name))
    assert (np.asarray(again(*inputs)) == np.asarray(jitted)).all()


@pytest.mark.parametrize("name", ["attention", "scan_stacked", "tied"])
def test_other_batches_fit(name):
    inputs = PROGRAMS[name].inputs(5)
    assert error(cast_of(name)(*inputs), model_of(name)(*inputs)) < 5 * UNIT["bf16"]


@pytest.mark.parametrize("name", ["scan_stacked", "conv_nhwc", "experts", "sharded"])
def test_gradients_by_the_inputs(name):
    """The backward pass rounds as often as the forward pass: twice the error is allowed."""
    (x,) = PROGRAMS[name].inputs(2)
    loss = lambda model: jax.jit(jax.grad(lambda x: (model.apply(model.params, x) ** 2).sum()))
    got, want = loss(cast_of(name))(x), loss(model_of(name))(x)
    assert got.dtype == want.dtype
    assert error(got, want) < 10 * UNIT["bf16"]


@pytest.mark.parametrize("name", ["qkv_split", "scan_stacked", "experts"])
def test_vmap_and_shapes(name):
    half, (x,) = cast_of(name), PROGRAMS[name].inputs(2)
    many = jnp.stack([x, 2 * x], -1)
    got = jax.jit(jax.vmap(half.apply, (None, -1)))(half.params, many)
    assert error(got[1], half(2 * x)) < 2 * UNIT["bf16"]
    shape = jax.eval_shape(half.apply, half.params, x)
    assert (shape.shape, shape.dtype) == (got[0].shape, got.dtype)


@pytest.mark.parametrize("name", ["qkv_split", "while_condition"])
def test_exports_at_a_symbolic_batch(name):
    half, row = cast_of(name), PROGRAMS[name]
    specs = jax.export.symbolic_args_specs(row.inputs(2), row.symbolic)
    exported = jax.export.export(jax.jit(half.apply))(half.params, *specs)
    inputs = row.inputs(5)
    assert error(exported.call(half.params, *inputs), half(*inputs)) < 2 * UNIT["bf16"]


@pytest.mark.parametrize("name", ["conv_nhwc", "cond", "scan_carried"])
def test_float32_changes_nothing(name):
    inputs = PROGRAMS[name].inputs(2)
    same = cast("f32")(model_of(name))
    want = model_of(name)
    assert (np.asarray(same(*inputs)) == np.asarray(want(*inputs))).all()
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (same.params, want.params))))  # noqa: B905
    assert {entry.status for entry in same.audit()["cast"]} == {"ignored"}


# The layouts in which XLA on CPU has no kernel for bf16 x bf16 = f32.


@pytest.mark.parametrize("right", ["kbn", "knb", "nbk", "nkb"])
def test_layouts_without_a_kernel(right):
    a, b = normal(3, 7, 5), normal(*({"b": 3, "k": 7, "n": 11}[axis] for axis in right))
    sides = ((1,), (right.index("k"),)), ((0,), (right.index("b"),))
    fn = lambda p, x: lax.dot_general(x, p["w"], sides)
    model = ji.from_function(fn, {"w": b}, (a,))
    assert error(cast("bf16")(model)(a), model(a)) < 3 * UNIT["bf16"]
    if right in ("knb", "nkb"):  # the same, made by vmap
        sides = ((0,), (right.index("k"),)), ((), ())
        model = ji.from_function(lambda p, x: lax.dot_general(x, p["w"], sides), {"w": b[..., 0]})
        half = cast("bf16")(model)
        got = jax.jit(jax.vmap(half.apply, (-1, 0)))({"w": b.astype("bfloat16")}, a)
        want = jax.vmap(model.apply, (-1, 0))({"w": b}, a)
        assert error(got, want) < 3 * UNIT["bf16"]


# Scalars.


def masked(p, x):
    scores = (x @ p["w"]) * 0.3
    scores = jnp.where(jnp.arange(5) < 2, jnp.finfo("float32").min, scores)
    return jax.nn.relu(scores), jax.nn.softmax(jnp.where(x[:, :1] > 9, scores, -3.4e38))


def test_scalars_that_do_not_fit_stay_in_float32():
    """-3.4e38 is -inf in bfloat16, and a row of them only would be NaN."""
    model = linear(masked, w=normal(3, 5))
    half = cast("bf16")(model)
    want, got = model(normal(2, 3)), half(normal(2, 3))
    assert np.isfinite(np.asarray(got[1])).all()
    assert error(got, want) < 3 * UNIT["bf16"]


def test_an_epsilon_does_not_vanish():
    def fn(p, x):
        y = x @ p["w"] * 0
        return y / (y + 1e-9)  # in float16 the epsilon is 0, and this is NaN

    assert (np.asarray(cast("f16")(linear(fn, w=normal(3, 5)))(normal(2, 3))) == 0).all()


def test_elementwise_operations_follow_the_products():
    def fn(p, x):
        y = x @ p["w"]
        return jax.nn.relu(jnp.where(y > 0.5, y, 0.0) * 2 + p["b"] / 0.3)

    half = cast("bf16")(linear(fn, w=normal(3, 5), b=normal(5)))
    found = {
        (e.primitive.name, e.outvars[0].aval.dtype.name) for e in equations(half, normal(2, 3))
    }
    assert {("mul", "bfloat16"), ("add", "bfloat16"), ("max", "bfloat16")} <= found
    assert ("select_n", "bfloat16") in found
    assert ("div", "float32") in found  # by a scalar that bfloat16 rounds


def test_squares_are_summed_in_float32():
    for square in (lambda y: y * y, jnp.square, lambda y: y**2):
        fn = lambda p, x: square(1e4 * (x @ p["w"])).sum(-1) ** 0.5  # noqa: B023
        model = linear(fn, w=normal(3, 5))
        got, want = cast("f16")(model)(normal(2, 3)), model(normal(2, 3))
        assert error(got, want) < 3 * UNIT["f16"]


# Policies and rules.


@pytest.mark.parametrize(
    ("policy", "stored", "operands", "output"),
    [
        ("params=bf16,compute=f32", "bfloat16", "float32*float32", "float32"),
        ("params=f32,compute=bf16", "float32", "bfloat16*bfloat16", "float32"),
        ("params=bf16, compute=f16, output=bf16", "bfloat16", "float16*float16", "bfloat16"),
        ("output=f16,compute=f32", "float32", "float32*float32", "float16"),
        ("half", "float16", "float16*float16", "float32"),
    ],
)
def test_policies(policy, stored, operands, output):
    model = linear()
    half, x = cast(policy)(model), normal(2, 3)
    assert set(dtypes(half.params)) == {stored}
    assert products(half, x) == {operands: 2}
    assert half(x).dtype == output
    assert error(half(x), model(x)) < 4 * UNIT["bf16"]


@pytest.mark.parametrize(
    ("settings", "stored", "operands"),
    [
        ({"ignore": True}, "float32", "float32*float32"),
        ({"compute": "f32"}, "bfloat16", "float32*float32"),
        ({"params": "f32"}, "float32", "bfloat16*bfloat16"),
        ({"params": "f16", "compute": "f16"}, "float16", "float16*float16"),
    ],
)
@pytest.mark.parametrize("name", ["scan_stacked", "conv_nhwc", "nested_jit", "tied"])
def test_rules_by_path(name, settings, stored, operands):
    row = PROGRAMS[name]
    half = cast("bf16", rules=[rule("w", **settings)], strict=True)(model_of(name))
    assert half.params["w"].dtype == stored
    found = products(half, *row.inputs(2))
    count = len(row.weights) - (name == "conv_nhwc")  # a product for each weight, and a bias
    assert sum(found.values()) == count
    assert found[operands] == (count if operands == "bfloat16*bfloat16" else 1)
    assert error(half(*row.inputs(2)), model_of(name)(*row.inputs(2))) < 5 * UNIT["bf16"]
    entry = next(e for e in half.audit()["cast"] if e.path == "w")
    assert entry.status == ("changed" if stored != "float32" else "ignored")


@pytest.mark.parametrize(("name", "path"), [("scaled", "w"), ("scan_carried", "w")])
def test_products_that_a_rule_cannot_reach_are_told(name, path):
    path = next(iter(PROGRAMS[name].weights)) if path not in PROGRAMS[name].weights else path
    transform = cast(rules=[rule(path, compute="f32")])
    entry = next(e for e in transform(model_of(name)).audit()["cast"] if e.path == path)
    assert entry.status == "blocked"
    assert "products after it are not in float32" in entry.why
    assert entry.before == entry.after
    with pytest.raises(InputError, match="cast: blocked:"):
        cast(rules=[rule(path, compute="f32")], strict=True)(model_of(name))


def test_both_factors_by_rule():
    """A product of two parameters, of which one is to be computed in float32."""
    model = linear(lambda p, x: x @ (p["w"] @ p["v"]), w=normal(3, 5), v=normal(5, 4))
    half = cast(rules=[rule("v", compute="f32")], strict=True)(model)
    assert products(half, normal(2, 3)) == {"float32*float32": 1, "bfloat16*bfloat16": 1}


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("bf17", ["unknown dtype 'bf17'", "known: bf16"]),
        ("float8_e4m3fn", ["unknown dtype"]),
        ("parms=bf16,compute=f61", ["parms=bf16: unknown name; known: params", "compute=f61"]),
        ("output=f32", ["required params or compute"]),
        ("params=bf16,params=f16,output=", ["params: given twice", "output: required a value"]),
        ("params=bf16,float64=maybe", ["float64=maybe: required true or false"]),
    ],
)
def test_bad_policies(policy, words):
    with pytest.raises(InputError, match="cast: a policy that cannot be used") as caught:
        cast(policy)
    assert all(word in str(caught.value) for word in words), caught.value


def test_policies_read_and_come_back():
    for text in ("params=bfloat16,compute=float16,output=float32,float64=true",
                 "params=float32,compute=bfloat16"):  # fmt: skip
        assert str(Policy.parse(text)) == text
    assert Policy("bf16") == Policy.parse("compute=bf16") == Policy.parse("bfloat16")
    assert TRANSFORMS["cast"] is cast
    with pytest.raises(InputTypeError, match="required a policy or its text"):
        cast(16)  # pyright: ignore[reportArgumentType]


def test_bad_rules():
    with pytest.raises(InputError, match="rules that cannot be used") as caught:
        cast(rules=[rule("w", compute="f33"), rule("v", params="int8")])
    assert "compute=f33: unknown dtype 'f33'; known: f32" in str(caught.value)
    assert "'int8'" in str(caught.value)
    with pytest.raises(InputError, match="unknown setting 'computes'; known: compute"):
        cast(rules=[rule("w", computes="f32")])(linear())
    with pytest.raises(InputError, match="rules that decide no parameter"):
        cast(rules=[rule("u", ignore=True)])(linear())


# What is left alone.


def test_other_types_are_left_alone():
    def fn(p, x):
        y = (x @ p["w"]).astype(jnp.complex64) * p["c"]
        return y, p["i"][jnp.argsort(y.real)], p["h"] @ p["h"].T, p["b"]

    model = linear(
        fn,
        w=normal(3, 5),
        c=jnp.ones(5, jnp.complex64) * 1j,
        i=jnp.arange(5),
        h=normal(2, 3).astype("float16"),
        b=jnp.array([True]),
        unused=normal(2),
    )
    half, x = cast("bf16")(model), normal(2, 3)
    status = {entry.path: entry.status for entry in half.audit()["cast"]}
    assert status == dict.fromkeys("cihb", "unfit") | {"w": "changed", "unused": "unused"}
    assert dtypes(half(x)) == dtypes(model(x))
    assert products(half, x) == {"bfloat16*bfloat16": 1, "float16*float16": 1}
    assert half.params["unused"].dtype == "float32"


def test_float64_stays_unless_asked():
    with jax.enable_x64(True):
        params = {"w": np.linspace(0, 1, 15).reshape(3, 5), "v": np.ones((5, 4), "float32")}
        fn = lambda p, x: (x @ p["w"]).astype(jnp.float32) @ p["v"]
        x = np.linspace(-1, 1, 6).reshape(2, 3)
        model = ji.from_function(fn, params, (jnp.asarray(x),))
        half = cast("bf16")(model)
        assert dtypes(half.params) == ["bfloat16", "float64"]
        assert products(half, x) == {"bfloat16*bfloat16": 1, "float64*float64": 1}
        both = cast("params=bf16,float64=true")(model)
        assert dtypes(both.params) == ["bfloat16"] * 2
        assert products(both, x) == {"bfloat16*bfloat16": 2}
        assert both(x).dtype == model(x).dtype
        assert error(both(x), model(x)) < 5 * UNIT["bf16"]


def test_tied_and_masked_leaves():
    weight = normal(3, 5)
    masks = Masked(weight, jnp.arange(15).reshape(3, 5) % 2 == 0)
    fn = lambda p, x: x @ p["a"] + x @ p["b"] - x @ p["m"]
    model = linear(fn, a=weight, b=weight, m=masks)
    half = cast("bf16")(model)
    assert half.params["a"] is half.params["b"]
    assert isinstance(half.params["m"], Masked)
    assert half.params["m"].weight.dtype == "bfloat16"
    assert error(half(normal(2, 3)), model(normal(2, 3))) < 3 * UNIT["bf16"]


def test_scales_are_never_touched():
    q = QTensor(jnp.ones((3, 5), jnp.int8), jnp.full((1, 5), 0.3), None, "int8", "float32")
    half = cast("bf16")(linear(lambda p, x: x @ p["w"], w=q))
    assert half.params["w"].dtype == "bfloat16"
    assert (half.params["w"].scale.dtype, half.params["w"].qvalue.dtype) == ("float32", "int8")


def test_quantized_afterwards():
    """A QTensor at a leaf of a model that was cast."""
    half = cast("bf16")(linear())
    q = QTensor(jnp.ones((3, 5), jnp.int8), jnp.full((1, 5), 0.3), None, "int8", "float32")
    params = {**half.params, "w": q.astype("bfloat16")}
    same = {**half.params, "w": jnp.full((3, 5), 0.3, "bfloat16")}
    x = normal(2, 3)
    assert error(half.apply(params, x), half.apply(same, x)) < 2 * UNIT["bf16"]


class Counter(FunctionProgram):
    """Changes its buffer, as a converted module does."""

    mutates = ("total",)


def test_state_keeps_its_dtype():
    def fn(p, x):
        y = x @ p["w"]
        return [y, p["total"] + y.sum()]

    signature = linear().signature
    params = {"w": normal(3, 5), "total": jnp.zeros(())}
    model = Model(Counter(fn, signature), params)
    half = cast("bf16")(model)
    assert dtypes(half.params) == ["float32", "bfloat16"]
    assert dtypes(half(normal(2, 3))) == ["float32", "float32"]
    entry = next(e for e in half.audit()["cast"] if e.path == "total")
    assert (entry.status, "the model changes it" in entry.why) == ("unfit", True)
    with pytest.raises(InputError, match=r"output=bfloat16: this model gives back .*\(total\)"):
        cast("bf16,output=bf16".replace("bf16,", "params=bf16,"))(model)
