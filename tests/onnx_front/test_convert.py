"""from_onnx: sizes, parameters, control flow, functions, layouts, saving; no torch is needed."""

import subprocess
import sys

import jax
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import parser  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import jaxinfer as ji  # noqa: E402
from jaxinfer.core.errors import ConversionError, MissingRulesError  # noqa: E402
from tests.aten.harness import rand  # noqa: E402


def model_of(text):
    return parser.parse_model('<ir_version: 8, opset_import: ["" : 18]>\n' + text)


def with_weights(model, **weights):
    """Add initializers."""
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def check(model, *inputs, converted=None, atol=1e-5):
    converted = converted or ji.from_onnx(model)
    names = [item.name for item in model.graph.input]
    wanted = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    got = converted(*inputs)
    got = got.to_tuple() if hasattr(got, "to_tuple") else [got]
    for w, g in zip(wanted, got, strict=True):
        assert np.shape(g) == np.shape(w)
        np.testing.assert_allclose(g, w, rtol=0, atol=atol)
    return converted


def shapes_model():
    """Reshape by sizes that are computed, as exporters write it."""
    return model_of("""
agraph (float[batch, seq, 12] x) => (y, z) {
    first = Constant<value_ints = [0]>()
    three = Constant<value_ints = [3]>()
    rest = Constant<value_ints = [-1]>()
    s = Shape(x)
    zero = Constant<value_int = 0>()
    b = Gather(s, zero)
    b1 = Unsqueeze(b, first)
    n = Shape<start = 1, end = 2>(x)
    to = Concat<axis = 0>(b1, n, three, rest)
    y = Reshape(x, to)
    flat = Mul(b1, n)
    both = Concat<axis = 0>(flat, rest)
    z = Reshape(x, both)
}
""")


def test_sizes_that_are_computed_stay_dynamic():
    model = ji.from_onnx(shapes_model())
    assert str(model.inputs[0]) == "x: float32[batch, seq, 12]"
    for shape in ((2, 5, 12), (3, 1, 12)):
        x = rand(*shape)
        y, z = model(x).to_tuple()
        np.testing.assert_array_equal(y, x.reshape(*shape[:2], 3, 4))
        np.testing.assert_array_equal(z, x.reshape(-1, 12))


def test_dynamic_false_fixes_every_size():
    model = ji.from_onnx(shapes_model(), inputs={"x": (2, "seq", 12)}, dynamic=False)
    assert model.inputs[0].shape == (2, 1, 12)


def linear():
    model = model_of("""
agraph (float[batch, 37] x) => (float[batch, 41] y) {
    h = MatMul(x, w)
    y = Add(h, b)
}
""")
    return with_weights(model, w=rand(37, 41), b=rand(41))


def test_parameters_have_the_initializers_names_and_gradients():
    model = check(linear(), rand(3, 37))
    assert sorted(model.params) == ["b", "w"]
    gradient = jax.grad(lambda p: model.apply(p, rand(3, 37)).sum())(model.params)
    np.testing.assert_allclose(gradient["b"], np.full(41, 3.0), rtol=1e-6)
    np.testing.assert_allclose(gradient["w"][:, 0], rand(3, 37).sum(0), rtol=1e-4)


def test_a_saved_model_loads_without_onnx(tmp_path):
    model = ji.from_onnx(linear())
    model.save(tmp_path / "model")
    np.save(tmp_path / "x.npy", rand(3, 37))
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "import numpy as np, jaxinfer as ji\n"
        f"model = ji.load({str(tmp_path / 'model')!r})\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, model(np.load({str(tmp_path / 'x.npy')!r})))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model(rand(3, 37)))


def test_external_data_is_read_from_the_folder(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save_model(linear(), path, save_as_external_data=True, location="w.bin", size_threshold=64)
    check(linear(), rand(2, 37), converted=ji.from_onnx(path))


def convolution():
    model = model_of("""
agraph (float[batch, 3, 16, 16] x) => (float[batch, 5, 1, 1] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w)
    r = Relu(a)
    c = Conv<pads = [1, 0, 0, 1], strides = [2, 2]>(r, v)
    y = GlobalAveragePool(c)
}
""")
    return with_weights(model, w=rand(16, 3, 5, 5), v=rand(5, 16, 4, 4, seed=1))


def test_convolutions_run_channels_last():
    model = check(convolution(), rand(2, 3, 16, 16), atol=1e-3)
    assert model.params["w"].shape == (5, 5, 3, 16)
    kept = ji.from_onnx(convolution(), layout="keep")
    assert kept.params["w"].shape == (16, 3, 5, 5)
    np.testing.assert_allclose(
        kept(rand(2, 3, 16, 16)), model(rand(2, 3, 16, 16)), rtol=1e-4, atol=1e-3
    )
    nhwc = ji.from_onnx(convolution(), layout="NHWC")
    assert nhwc.inputs[0].shape == ("batch", 16, 16, 3)
    with pytest.raises(ValueError, match="layout: required one of"):
        ji.from_onnx(convolution(), layout="NCWH")


def test_if_on_data_and_on_sizes():
    branches = """
    y = If(go) <
        then_branch = yes () => (float[batch, 4] t) { t = Add(x, x) },
        else_branch = no () => (float[batch, 4] e) { e = Neg(x) }
    >
}
"""
    data = model_of("agraph (float[batch, 4] x, bool go) => (float[batch, 4] y) {" + branches)
    model = ji.from_onnx(data)
    x = rand(3, 4)
    np.testing.assert_array_equal(model(x, np.array(True)), x + x)
    np.testing.assert_array_equal(model(x, np.array(False)), -x)
    assert "onnx.If" in {node.op for node in model.program.graph.nodes}
    sizes = model_of(
        "agraph (float[batch, 4] x) => (float[batch, 4] y) {"
        "n = Size(x) limit = Constant<value_int = 12>() go = Less(n, limit)" + branches
    )
    model = ji.from_onnx(sizes)
    np.testing.assert_array_equal(model(x[:2]), x[:2] + x[:2])
    np.testing.assert_array_equal(model(x), -x)


LOOP = """
agraph (float[4] x) => (float[4] y, float[5, 4] all) {
    count = Constant<value_int = 5>()
    go = Constant<value = bool {1}>()
    y, all = Loop(count, go, x) <
        body = step (int64 i, bool c, float[4] h) => (bool d, float[4] g, float[4] out) {
            d = Identity(c)
            f = Cast<to = 1>(i)
            s = Add(h, f)
            g = Mul(s, x)
            out = Identity(g)
        }
    >
}
"""


def test_a_counted_loop_is_a_scan():
    x = rand(4, low=0.5, high=1.0)
    h, rows = x, []
    for i in range(5):
        h = (h + i) * x
        rows.append(h)
    model = ji.from_onnx(model_of(LOOP))
    y, every = model(x).to_tuple()
    np.testing.assert_allclose(y, h, rtol=1e-6)
    np.testing.assert_allclose(every, rows, rtol=1e-6)
    assert " scan[" in str(jax.make_jaxpr(model.apply)(model.params, x))


def test_a_loop_until_a_condition():
    model = ji.from_onnx(
        model_of("""
agraph (float[4] x) => (float[4] y) {
    none = Constant<value_int = 1000>()
    go = Constant<value = bool {1}>()
    y = Loop(none, go, x) <
        body = step (int64 i, bool c, float[4] h) => (bool d, float[4] g) {
            g = Add(h, h)
            m = ReduceMax<keepdims = 0>(g)
            limit = Constant<value_float = 100.0>()
            d = Less(m, limit)
        }
    >
}
""")
    )
    x = rand(4, low=0.5, high=1.0)
    want = x
    while True:
        want = want + want
        if want.max() >= 100:
            break
    np.testing.assert_allclose(model(x), want, rtol=1e-6)


def test_sequences_and_optionals():
    model = model_of("""
agraph (float[2, 3] x, float[2, 3] z) => (float[4, 3] y, float[2, 3] last) {
    s = SequenceConstruct(x, z, x)
    t = SequenceErase(s)
    y = ConcatFromSequence<axis = 0>(t)
    o = Optional(z)
    last = OptionalGetElement(o)
}
""")
    x, z = rand(2, 3), rand(2, 3, seed=1)
    y, last = ji.from_onnx(model)(x, z).to_tuple()
    np.testing.assert_array_equal(y, np.concatenate([x, z]))
    np.testing.assert_array_equal(last, z)


def test_scan_of_opset_8_has_a_batch():
    from tests.onnx_front.test_rules import cases

    case = cases()["scan_sum"]
    model = ji.from_onnx(case.model)
    inputs, outputs = case.data_sets[0]
    got = model(*[np.asarray(x) for x in inputs if not isinstance(x, str)][-2:]).to_tuple()
    for w, g in zip(outputs, got, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-6)
    assert "onnx.BatchedScan" in {node.op for node in model.program.graph.nodes}


@pytest.mark.parametrize(
    ("op", "attributes", "mean", "spread"),
    [
        ("RandomNormal", {"shape": [64, 64], "mean": 2.0, "scale": 0.5}, 2.0, 0.5),
        ("RandomUniform", {"shape": [64, 64], "low": 1.0, "high": 3.0}, 2.0, 2 / np.sqrt(12)),
        ("RandomNormalLike", {"mean": -1.0}, -1.0, 1.0),
    ],
)
def test_random_numbers_need_a_key(op, attributes, mean, spread):
    like = op.endswith("Like")
    node = onnx.helper.make_node(op, ["x"] if like else [], ["y"], **attributes)
    info = lambda name: onnx.helper.make_tensor_value_info(name, 1, [64, 64])
    graph = onnx.helper.make_graph([node], op, [info("x")], [info("y")])
    model = ji.from_onnx(onnx.helper.make_model(graph, ir_version=8))
    x = np.zeros((64, 64), np.float32)
    with pytest.raises(ValueError, match="rng_key"):
        model(x)
    y = np.asarray(model(x, rng_key=jax.random.key(0)))
    assert abs(y.mean() - mean) < 0.05
    assert abs(y.std() - spread) < 0.05
    assert not np.array_equal(y, model(x, rng_key=jax.random.key(1)))


def test_multinomial_draws_by_weight():
    node = onnx.helper.make_node("Multinomial", ["x"], ["y"], sample_size=4000)
    graph = onnx.helper.make_graph(
        [node],
        "multinomial",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 3])],
        [onnx.helper.make_tensor_value_info("y", 6, [1, 4000])],
    )
    model = ji.from_onnx(onnx.helper.make_model(graph, ir_version=8))
    y = np.asarray(model(np.log(np.float32([[1, 2, 5]])), rng_key=jax.random.key(0)))
    np.testing.assert_allclose(np.bincount(y[0]) / 4000, [1 / 8, 2 / 8, 5 / 8], atol=0.03)


def test_functions_of_the_model_and_of_the_specification():
    model = parser.parse_model("""
<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
agraph (float[2, 5] x) => (float[2, 5] y) {
    h = local.twice(x)
    y = MeanVarianceNormalization<axes = [1]>(h)
}
<domain: "local", opset_import: ["" : 18]>
twice (x) => (y) { y = Add(x, x) }
""")
    x = rand(2, 5)
    y = np.asarray(ji.from_onnx(model)(x))
    want = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    np.testing.assert_allclose(y, want, atol=1e-4)


def test_every_operator_without_a_rule_is_named():
    model = parser.parse_model("""
<ir_version: 8, opset_import: ["" : 18, "com.example" : 1]>
agraph (float[2] x) => (float[2] y) {
    a = com.example.Frob<gain = 2.0>(x)
    y = com.example.Unfrob(a)
}
""")
    with pytest.raises(MissingRulesError, match=r"(?s)2 operators.*Frob.*Unfrob"):
        ji.from_onnx(model)


def test_a_custom_operator_is_registered():
    from jaxinfer.core.ops import OPS

    model = parser.parse_model("""
<ir_version: 8, opset_import: ["" : 18, "com.example" : 1]>
agraph (float[2] x) => (float[2] y) { y = com.example.Scale<gain = 2.5>(x) }
""")
    ji.register("com.example.Scale")(lambda x, *, gain: x * gain)
    try:
        np.testing.assert_array_equal(ji.from_onnx(model)(np.float32([1, 2])), [2.5, 5.0])
    finally:
        OPS.unregister("com.example.Scale")


def test_a_shape_that_is_an_input_is_fixed():
    model = model_of("""
agraph (float[2, 6] x, int64[2] shape) => (y) { y = Reshape(x, shape) }
""")
    with pytest.raises(ConversionError, match=r"comes from the data \(shape\).*fixed=\{'shape'"):
        ji.from_onnx(model)
    fixed = ji.from_onnx(model, fixed={"shape": np.array([3, -1])})
    assert [spec.path for spec in fixed.inputs] == ["x"]
    assert fixed(rand(2, 6)).shape == (3, 4)
    with pytest.raises(ConversionError, match="no such input: shap"):
        ji.from_onnx(model, fixed={"shap": 1})


def test_integers_that_would_wrap_are_refused():
    model = model_of("""
agraph (int64[2] x) => (int64[2] y) {
    big = Constant<value_int = 9000000000>()
    y = Add(x, big)
}
""")
    with pytest.raises(ValueError, match="9000000000 does not fit int32"):
        ji.from_onnx(model)
