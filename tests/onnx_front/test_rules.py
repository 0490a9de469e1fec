"""Every rule of ONNX's own against ONNX's recorded outputs, or its Python reference.

The table is closed: a rule without an entry in tables.py fails here.
"""

import functools
import warnings

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import jaxinfer as ji  # noqa: E402
import jaxinfer_converters.program  # noqa: E402, F401
from jaxinfer.core import parity  # noqa: E402
from jaxinfer.core.ops import OPS  # noqa: E402
from jaxinfer_converters.onnx.known import DynamicValueError  # noqa: E402
from tests.onnx_front.tables import CALLS, HOST, NODES  # noqa: E402

RULES = [
    name
    for name, rule in OPS.items()
    if rule.__module__.startswith("jaxinfer_converters.onnx_rules.")
]


@functools.cache
def cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name.removeprefix("test_"): case for case in collect_testcases(None)}


def shape(value):
    if value is None:
        return None
    return [np.shape(x) for x in value] if isinstance(value, list) else np.shape(value)


def convert(model, values):
    """Convert, fixing the inputs that the error names."""
    fixed = {}
    for _ in range(8):
        shapes = {name: shape(v) for name, v in values.items() if name not in fixed}
        try:
            return ji.from_onnx(model, inputs=shapes, fixed=fixed), fixed
        except DynamicValueError as error:
            fixed |= {name: values[name] for name in error.inputs}
    raise AssertionError("inputs are asked for again and again")


def agree(model, values, wanted, rtol=1e-4, rng_key=None):
    converted, fixed = convert(model, values)
    arguments = (value for name, value in values.items() if name not in fixed)
    got = converted(*arguments, rng_key=rng_key)
    flat = [x for out in wanted for x in (out if isinstance(out, list) else [out])]
    reports = parity.compare(
        flat,
        list(parity.outputs_of(converted, got).values()),
        values=not converted.program.random,
    )
    for report in reports:
        assert not report.problem, report
        assert not report.mismatches, report
        assert report.max_abs <= max(report.tolerance, rtol * bool(report.tolerance)) * report.scale
    return converted


def one_node(op, opset, inputs, attributes):
    domain, _, name = op.rpartition(".")
    names = [f"x{i}" for i in range(len(inputs))]
    node = onnx.helper.make_node(name, names, ["y"], domain=domain, **attributes)
    values = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.shape(x)
        )
        for n, x in zip(names, inputs, strict=True)
    ]
    result = onnx.ValueInfoProto(name="y")
    if domain:  # not inferred
        result = onnx.helper.make_tensor_value_info(
            "y", onnx.TensorProto.FLOAT, ["rows", "columns"]
        )
    graph = onnx.helper.make_graph([node], op, values, [result])
    versions = [onnx.helper.make_opsetid(domain, opset)]
    if domain:
        versions.append(onnx.helper.make_opsetid("", 20))
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    return model, dict(zip(names, inputs, strict=True))


def reference(model, values):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, values)


@pytest.mark.parametrize("rule", sorted(NODES))
def test_node_case(rule):
    import jax

    case = cases()[NODES[rule]]
    for inputs, outputs in case.data_sets:
        values = dict(zip((i.name for i in case.model.graph.input), inputs, strict=False))
        model = agree(case.model, values, outputs, case.rtol, jax.random.key(0))
    assert rule in {node.op for node in model.program.graph.walk()}


@pytest.mark.parametrize("rule", sorted(rule for rule, call in CALLS.items() if call))
def test_one_node_model(rule):
    op, opset, inputs, attributes = CALLS[rule]
    model, values = one_node(op, opset, inputs, attributes)
    if op == "ai.onnx.ml.Scaler":
        wanted = [(inputs[0] - attributes["offset"]) * np.float32(attributes["scale"])]
        wanted = [wanted[0].astype(np.float32)]
    elif op == "Hardmax":
        rows = inputs[0].reshape(len(inputs[0]), -1)
        wanted = [(rows.argmax(1)[:, None] == np.arange(rows.shape[1])).astype(np.float32)]
        wanted = [wanted[0].reshape(inputs[0].shape)]
    elif op.endswith("oftmax"):
        axis = attributes["axis"]
        rows = inputs[0].reshape(int(np.prod(inputs[0].shape[:axis])), -1).astype(np.float64)
        y = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        y = y if op == "LogSoftmax" else np.exp(y)
        wanted = [y.reshape(inputs[0].shape).astype(np.float32)]
    elif op == "GlobalLpPool":
        wanted = [(np.abs(inputs[0]) ** 3).sum((2, 3), keepdims=True) ** (1 / 3)]
    elif op == "ReduceMean":
        wanted = [np.trunc(inputs[0].mean(1, keepdims=True)).astype(np.int32)]
    elif op == "Conv":
        wanted = [same_lower(*inputs)]
    elif op == "Pow":
        x, y = inputs
        wanted = [np.trunc(x.astype(np.float64) ** y).astype(np.int64)]
    else:
        wanted = reference(model, values)
    converted = agree(model, values, wanted)
    assert rule in {node.op for node in converted.program.graph.walk()}


def same_lower(x, w):
    """Stride 2, output ceil(n / 2), the odd row of padding first: the sum, written out."""
    outs = [-(-n // 2) for n in x.shape[2:]]
    total = [
        max((o - 1) * 2 + k - n, 0) for o, k, n in zip(outs, w.shape[2:], x.shape[2:], strict=True)
    ]
    x = np.pad(x, [(0, 0), (0, 0), *((t - t // 2, t // 2) for t in total)])
    y = np.zeros((len(x), len(w), *outs), np.float32)
    for i, j in np.ndindex(*outs):
        window = x[:, :, 2 * i : 2 * i + w.shape[2], 2 * j : 2 * j + w.shape[3]]
        y[:, :, i, j] = np.einsum("bchw,ochw->bo", window, w)
    return y


@pytest.mark.parametrize("op", sorted(HOST))
def test_host_rule(op):
    inputs, attributes = HOST[op]
    model, values = one_node(op, 20, inputs, attributes)
    if op == "Split":
        wanted = np.split(inputs[0], [1])
    else:
        wanted = reference(model, values)
    got = OPS[f"onnx.host.{op}"](*inputs, **attributes)
    for w, g in zip(wanted, got if isinstance(got, list) else [got], strict=True):
        assert (w.shape, w.dtype) == (g.shape, g.dtype)
        np.testing.assert_allclose(g, w, rtol=1e-6)


def test_range_and_cast_like_as_arrays():
    got = OPS["onnx.Range"](np.int64(3), np.int64(-4), np.int64(-2))
    np.testing.assert_array_equal(got, [3, 1, -1, -3])
    got = OPS["onnx.CastLike"](np.float32([1.7, -1.7]), np.zeros((), np.int32))
    np.testing.assert_array_equal(got, [1, -1])


def test_every_rule_is_tested():
    tested = {*NODES, *CALLS, *(f"onnx.host.{op}" for op in HOST)}
    assert not sorted(set(RULES) - tested)
    assert not sorted(tested - set(RULES)), "entries without a rule"
