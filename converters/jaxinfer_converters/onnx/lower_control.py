"""If, Loop and Scan: their subgraphs become Graphs that take what they read from outside."""

from __future__ import annotations

import numpy as np
import onnx

from jaxinfer_converters.graph import Ref
from jaxinfer_converters.onnx.build import Builder, lowers
from jaxinfer_converters.onnx.call import Call
from jaxinfer_converters.onnx.known import DynamicValueError


@lowers("If")
def _if(b: Builder, n: Call) -> list[Ref | None]:
    condition = b.value(n.inputs[0])
    if condition is not None:  # known: only one branch exists
        taken = n.attrs["then_branch" if bool(condition.reshape(())) else "else_branch"]
        for tensor in taken.initializer:
            b.add_tensor(tensor.name, tensor)
        b.add_nodes(taken.node)
        for name, item in zip(n.outputs, taken.output, strict=True):
            if name:
                b.alias(name, item.name)
        return []
    go = b.either(n.inputs[0])
    then, then_values = b.subgraph(n.attrs["then_branch"])
    other, other_values = b.subgraph(n.attrs["else_branch"])
    out = b.emit("onnx.If", go, then, other, then_values, other_values)
    return [b.item(out, i) if name else None for i, name in enumerate(n.outputs)]


def _endless(b: Builder, n: Call) -> bool:
    """Return whether a Loop runs until its count: its condition is always true."""
    body: onnx.GraphProto = n.attrs["body"]
    given = b.value(n.input(1)) if n.input(1) else np.asarray(True)
    if given is None or not bool(given.reshape(())):
        return False
    name, source = body.output[0].name, body.input[1].name
    producers = {out: node for node in body.node for out in node.output}
    while name in producers and producers[name].op_type == "Identity":
        name = producers[name].input[0]
    if name == source:
        return True
    node = producers.get(name)
    if node is not None and node.op_type == "Constant" and node.attribute[0].HasField("t"):
        return bool(onnx.numpy_helper.to_array(node.attribute[0].t).reshape(()))
    for tensor in body.initializer:
        if tensor.name == name:
            return bool(onnx.numpy_helper.to_array(tensor).reshape(()))
    known = b.value(name)
    return known is not None and bool(known.reshape(()))


@lowers("Loop")
def _loop(b: Builder, n: Call) -> list[Ref | None]:
    body, trip = n.attrs["body"], n.input(0)
    endless = _endless(b, n)
    count = b.either(trip) if trip else None
    go = b.either(n.input(1)) if n.input(1) else None
    state = [b.array(name) for name in n.inputs[2:]]
    static_step = False
    if trip and len(body.output) - 1 > len(state):
        count = b.host(trip)  # the number of the outputs' steps is a shape
    try:
        sub, captured = b.subgraph(body)
    except DynamicValueError as error:
        step = body.input[0].name
        if trip and not b.is_static(trip):
            b.host(trip)  # raises, and names the inputs that the count comes from
        if not endless and n.input(1) and not b.is_static(n.input(1)):
            b.host(n.input(1))  # as well: a condition that is known lets it be unrolled
        if not trip or not endless:
            raise
        try:
            sub, captured = b.subgraph(body, static=[step])
        except DynamicValueError:
            raise error from None
        static_step = True
    out = b.emit(
        "onnx.Loop", count, go, sub, state, captured, endless=endless,
        static_step=True if static_step else None,
    )  # fmt: skip
    return [b.item(out, i) if name else None for i, name in enumerate(n.outputs)]


@lowers("Scan")
def _scan(b: Builder, n: Call) -> list[Ref | None]:
    if n.version < 9:
        return _batched_scan(b, n)
    body, count = n.attrs["body"], n.attrs["num_scan_inputs"]
    states = len(n.inputs) - count
    outputs = len(n.outputs) - states
    state = [b.array(name) for name in n.inputs[:states]]
    xs = [b.array(name) for name in n.inputs[states:]]
    sub, captured = b.subgraph(body)
    out = b.emit(
        "onnx.Scan", sub, state, xs, captured,
        input_axes=n.attrs.get("scan_input_axes") or [0] * count,
        input_reverse=n.attrs.get("scan_input_directions") or [0] * count,
        output_axes=n.attrs.get("scan_output_axes") or [0] * outputs,
        output_reverse=n.attrs.get("scan_output_directions") or [0] * outputs,
        outputs=len(n.outputs),
    )  # fmt: skip
    return [b.item(out, i) if name else None for i, name in enumerate(n.outputs)]


def _batched_scan(b: Builder, n: Call) -> list[Ref | None]:
    """Opset 8: a leading batch axis on everything, and optional sequence lengths."""
    from jaxinfer.core.errors import ConversionError

    if n.inputs[0]:
        raise ConversionError(
            f"Scan ({n.name}): sequence lengths of opset 8 are not supported; bring the model to "
            "opset 9 or newer with onnx.version_converter.convert_version"
        )
    body, count = n.attrs["body"], n.attrs["num_scan_inputs"]
    states = len(n.inputs) - 1 - count
    state = [b.array(name) for name in n.inputs[1 : 1 + states]]
    xs = [b.array(name) for name in n.inputs[1 + states :]]
    sub, captured = b.subgraph(body)
    reverse = n.attrs.get("directions") or [0] * count
    out = b.emit("onnx.BatchedScan", sub, state, xs, captured, input_reverse=reverse)
    return [b.item(out, i) if name else None for i, name in enumerate(n.outputs)]
