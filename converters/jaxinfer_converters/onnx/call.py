"""Call: an ONNX node in plain Python, the same for every opset.

Attributes that later opsets made inputs (the axes of Squeeze, the bounds of Clip, the pads of
Pad) are inputs here, and element types are jaxinfer's dtype names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from jaxinfer.core.errors import ConversionError
from jaxinfer_converters.onnx.read import dtype_name

Kind = onnx.AttributeProto

DTYPES = ("to", "dtype", "stash_type", "output_dtype", "output_datatype", "softmax_precision")

# Attribute -> the input that took its place: {operator: ((attribute, position, dtype), ...)}.
_INPUTS: Mapping[str, tuple[tuple[str, int, str], ...]] = {
    "Clip": (("min", 1, ""), ("max", 2, "")),
    "Dropout": (("ratio", 1, "float32"),),
    "Pad": (("pads", 1, "int64"), ("value", 2, "")),
    "Slice": (("starts", 1, "int64"), ("ends", 2, "int64"), ("axes", 3, "int64")),
    "Split": (("split", 1, "int64"),),
    "Squeeze": (("axes", 1, "int64"),),
    "TopK": (("k", 1, "int64"),),
    "Unsqueeze": (("axes", 1, "int64"),),
    "Upsample": (("scales", 1, "float32"),),
    "DFT": (("axis", 2, "int64"),),
    **{
        f"Reduce{name}": (("axes", 1, "int64"),)
        for name in (
            *("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum"),
            "SumSquare",
        )
    },
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One operator call.

    Attributes:
      op: the operator; with its domain in front unless that is the standard one.
      version: the opset that its domain is imported at.
      inputs, outputs: value names; "" where an optional one is left out.
      constants: values of inputs that were attributes, by name.
      attrs: plain values; tensors are numpy arrays, subgraphs protobufs.
    """

    op: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    constants: Mapping[str, np.ndarray]
    name: str

    def input(self, index: int) -> str:
        """Return the name of an input, or "" if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def has_output(self, index: int) -> bool:
        """Return whether an output is asked for."""
        return index < len(self.outputs) and bool(self.outputs[index])


def read_call(
    node: onnx.NodeProto,
    opsets: Mapping[str, int],
    read: Callable[[onnx.TensorProto], np.ndarray],
    dtype_of: Callable[[str], str | None],
) -> Call:
    """Read a node.

    Args:
      read: gives the values of a tensor attribute.
      dtype_of: dtype name of a value, for constants that take it over.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    op = f"{domain}.{node.op_type}" if domain else node.op_type
    attrs = {a.name: attribute(a, op, read) for a in node.attribute}
    for key in DTYPES:
        if isinstance(attrs.get(key), int):
            attrs[key] = dtype_name(attrs[key], f"{op}.{key}") if attrs[key] else None
    inputs, constants = list(node.input), {}
    for key, position, dtype in _INPUTS.get(op, ()):
        if key in attrs and (len(inputs) <= position or not inputs[position]):
            inputs += [""] * (position + 1 - len(inputs))
            name = f"{node.output[0]}.{key}"
            dtype = dtype or dtype_of(node.input[0]) or "float32"
            constants[name] = np.asarray(attrs.pop(key), np.dtype(dtype))
            inputs[position] = name
    outputs = tuple(node.output)
    label = node.name or f"{node.op_type} {next(filter(None, outputs), '')}"
    return Call(op, opsets.get(domain, 0), tuple(inputs), outputs, attrs, constants, label)


def attribute(
    item: onnx.AttributeProto, op: str, read: Callable[[onnx.TensorProto], np.ndarray]
) -> Any:
    """Return an attribute's value in Python."""
    plain = {
        Kind.FLOAT: lambda: item.f,
        Kind.INT: lambda: item.i,
        Kind.STRING: lambda: item.s.decode("utf-8", "replace"),
        Kind.TENSOR: lambda: read(item.t),
        Kind.GRAPH: lambda: item.g,
        Kind.FLOATS: lambda: list(item.floats),
        Kind.INTS: lambda: list(item.ints),
        Kind.STRINGS: lambda: [text.decode("utf-8", "replace") for text in item.strings],
        Kind.TENSORS: lambda: [read(tensor) for tensor in item.tensors],
        Kind.TYPE_PROTO: lambda: None,
    }
    if item.type not in plain:
        kind = Kind.AttributeType.Name(item.type)
        raise ConversionError(f"{op}: attribute {item.name!r} of kind {kind} is not supported")
    return plain[item.type]()
