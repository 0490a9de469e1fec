"""from_onnx: an ONNX model becomes a Model.

Order of work: read and check; inline functions; infer shapes; build the graph; pre-flight; an
abstract run of the whole function; and only then the weights, one at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference

import jaxinfer_converters.onnx.lower_control
import jaxinfer_converters.onnx.lower_nn
import jaxinfer_converters.onnx.lower_pointwise
import jaxinfer_converters.onnx.lower_shape  # noqa: F401  (each registers its operators)
from jaxinfer import __version__
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.arrays import owned
from jaxinfer.core.errors import ConversionError, listing
from jaxinfer.core.frontend import Progress
from jaxinfer.core.model import Model
from jaxinfer.core.ops import OPS
from jaxinfer.core.structure import LEAF, Structure
from jaxinfer.io.checkpoint import nonfinite
from jaxinfer_converters.graph import Aval, Graph, Ref, Result
from jaxinfer_converters.layout import channels_last, retaken
from jaxinfer_converters.onnx import build, known
from jaxinfer_converters.onnx.read import File, dtype_name, open_model, opsets
from jaxinfer_converters.onnx.rehearse import record
from jaxinfer_converters.onnx.signature import Argument, arguments, signature
from jaxinfer_converters.preflight import missing_rules
from jaxinfer_converters.program import GraphProgram

LAYOUTS = ("NCHW", "NHWC", "keep")


def from_onnx(
    source: str | os.PathLike[str] | onnx.ModelProto,
    *,
    inputs: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    dynamic: bool = True,
    layout: str = "NCHW",
    x64: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Convert an ONNX model to a pure function and its parameters.

    See ``jaxinfer.from_onnx`` for the arguments, the errors and an example.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: required one of {', '.join(LAYOUTS)}, got {layout!r}")
    if x64:  # the same where 64-bit types are on, and the program remembers it
        with x64_scope():
            model = from_onnx(
                source,
                inputs=inputs,
                fixed=fixed,
                dynamic=dynamic,
                layout=layout,
                progress=progress,
            )
        assert isinstance(model.program, GraphProgram)
        return model.replace(program=dataclasses.replace(model.program, x64=True))
    started = time.perf_counter()
    file = open_model(source)
    skeleton, weights = _skeleton(file, fixed or {})
    _give_shapes(skeleton.graph, inputs or {})
    own = onnx.GraphProto(input=[i for i in skeleton.graph.input if i.name not in weights])
    made, symbols = arguments(own, inputs or {}, dynamic=dynamic)
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # outputs without a type
        skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    _check(skeleton, file.label)
    skeleton = _inlined(skeleton)
    shared = known.Model(file, opsets(skeleton), _infos(skeleton), weights)
    builder = _build(skeleton, shared, made, fixed or {})
    names = [item.name for item in skeleton.graph.output]
    program = GraphProgram(builder.graph(names), signature(made, symbols), _structure(names))
    missing_rules(program.graph)
    program = record(program, shared.infos, builder.values)
    program = _flat_outputs(program, names)
    program = _arranged(program, layout)
    program.graph.verify()
    seconds = time.perf_counter() - started
    params, constants, notes = _weights(program.graph, shared, progress)
    versions = {"jaxinfer": __version__, "onnx": onnx.__version__, "jax": jax.__version__}
    provenance = {
        "source": file.label,
        "producer": f"{file.model.producer_name} {file.model.producer_version}".strip(),
        "opsets": {domain or "ai.onnx": v for domain, v in shared.opsets.items()},
        "versions": versions,
        "capture_seconds": round(seconds, 3),
        **notes,
    }
    if fixed:
        provenance["fixed_inputs"] = sorted(fixed)
    return Model(dataclasses.replace(program, constants=constants), params, provenance=provenance)


def _skeleton(
    file: File, fixed: Mapping[str, Any]
) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """Return a copy of the model without its large tensors, and those by name.

    Large initializers become inputs with a type, which is all that inference needs of them.
    """
    model, weights = file.model, {}
    # From version 4 on, initializers need not be listed among the inputs.
    small = onnx.ModelProto(ir_version=max(model.ir_version, 4), producer_name=model.producer_name)
    small.opset_import.extend(model.opset_import)
    small.functions.extend(model.functions)
    graph = small.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    if model.graph.sparse_initializer:
        raise ConversionError(f"{file.label}: sparse initializers are not supported; densify them")
    stored = {tensor.name for tensor in model.graph.initializer}
    known = {item.name for item in model.graph.input}
    if unknown := [name for name in fixed if name not in known]:
        raise ConversionError(
            f"fixed: no such input: {', '.join(unknown)}; the model has {', '.join(sorted(known))}"
        )
    graph.input.extend(i for i in model.graph.input if i.name not in stored and i.name not in fixed)
    for name, value in fixed.items():
        tensor = onnx.numpy_helper.from_array(np.asarray(value), name)
        graph.initializer.append(tensor)
    for tensor in model.graph.initializer:
        weights[tensor.name] = tensor
        if tensor.name in fixed:
            continue
        if np.prod(tensor.dims, dtype=np.int64) <= build.SMALL:
            values = file.read(tensor)
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), tensor.name))
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return small, weights


def _check(model: onnx.ModelProto, label: str) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        text = " ".join(str(error).split())[:400]
        raise ConversionError(f"{label}: not a valid ONNX model: {text}") from error


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace calls of functions by their bodies: the model's own, and the specification's.

    The specification's only for operators that have no rule here.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    for _ in range(8):  # bodies may call functions themselves
        chosen = sorted({key for key in map(_key, _nodes(model.graph)) if _has_body(key, model)})
        if not chosen:
            break
        model = _expanded(model, chosen)
    return model


def _expanded(model: onnx.ModelProto, chosen: Sequence[tuple[str, str]]) -> onnx.ModelProto:
    """Inline functions of the specification, whose bodies may depend on types and attributes."""
    versions = opsets(model)
    for node in _nodes(model.graph):
        if _key(node) in chosen:  # the inliner leaves defaults out
            schema = onnx.defs.get_schema(node.op_type, versions[_key(node)[0]], node.domain)
            present = {attribute.name for attribute in node.attribute}
            node.attribute.extend(
                item.default_value
                for name, item in schema.attributes.items()
                if name not in present and item.default_value.type
            )
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # reported in ``_infos``
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    known = {item.name for item in (*graph.value_info, *graph.input)}
    for tensor in graph.initializer:
        if tensor.name not in known:
            graph.value_info.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    # onnx 1.23 asks for the type of inputs that are left out, too.
    graph.value_info.append(onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, []))
    try:
        model = onnx.inliner.inline_selected_functions(
            model, list(chosen), inline_schema_functions=True
        )
    except RuntimeError as error:
        names = ", ".join(op for _, op in chosen)
        raise ConversionError(
            f"onnx cannot expand the function bodies of {names}: {str(error)[:200]}"
        ) from error
    kept = [item for item in model.graph.value_info if item.name]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def _key(node: onnx.NodeProto) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def _has_body(key: tuple[str, str], model: onnx.ModelProto) -> bool:
    domain, op = key
    name = f"{domain}.{op}" if domain else op
    if name in build.LOWER or (f"onnx.{op}" if not domain else name) in OPS:
        return False
    try:
        schema = onnx.defs.get_schema(op, opsets(model).get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    flags = ("has_function", "has_context_dependent_function")  # untyped in onnx 1.23
    return any(getattr(schema, flag) for flag in flags)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _nodes(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _give_shapes(graph: onnx.GraphProto, given: Mapping[str, Any]) -> None:
    """Write the shapes of tensors that the user gives into the graph's inputs."""
    for item in graph.input:
        if not item.type.HasField("tensor_type") or given.get(item.name) is None:
            continue
        shape = getattr(given[item.name], "shape", given[item.name])
        item.type.tensor_type.shape.SetInParent()
        declared = item.type.tensor_type.shape.dim
        if declared and len(declared) != len(shape):
            continue  # an error, which ``arguments`` reports
        for axis, size in enumerate(shape):
            dim = declared[axis] if axis < len(declared) else declared.add()
            if dim.HasField("dim_value") and dim.dim_value >= 0:
                continue  # a size that differs is an error, too
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = int(size)


def _infos(model: onnx.ModelProto) -> dict[str, known.Info]:
    """Return what ONNX's own shape inference says of each value, subgraphs included."""
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        text = " ".join(str(error).split())[:400]
        raise ConversionError(
            f"the model's types or shapes contradict each other: {text}"
        ) from error
    found: dict[str, known.Info] = {}
    _collect(model.graph, found)
    return found


def _collect(graph: onnx.GraphProto, found: dict[str, known.Info]) -> None:
    for item in (*graph.input, *graph.value_info, *graph.output):
        if item.type.HasField("tensor_type") and item.type.tensor_type.elem_type:
            kind = item.type.tensor_type
            if kind.elem_type == onnx.TensorProto.STRING:
                raise ConversionError(
                    f"{item.name}: a tensor of strings; JAX has none. Do the text processing "
                    "before the call, and convert the rest (onnx.utils.extract_model)"
                )
            shape = None
            if kind.HasField("shape"):
                shape = tuple(
                    d.dim_value if d.HasField("dim_value") else d.dim_param or None
                    for d in kind.shape.dim
                )
            found[item.name] = known.Info(dtype_name(kind.elem_type, item.name), shape)
    for tensor in graph.initializer:
        name = dtype_name(tensor.data_type, tensor.name)
        found[tensor.name] = known.Info(name, tuple(tensor.dims))
    for node in graph.node:
        for inner in _subgraphs(node):
            _collect(inner, found)


def _build(
    model: onnx.ModelProto,
    shared: known.Model,
    made: Sequence[Argument],
    fixed: Mapping[str, Any],
) -> build.Builder:
    builder = build.Builder(shared)
    shared.user |= {argument.name for argument in made}
    for argument in made:
        if argument.kind == "tensor":
            (leaf,) = argument.leaves
            builder.add_input(argument.name, Aval(leaf.shape, leaf.dtype))
        elif argument.kind == "none":
            builder.add_none(argument.name)
        else:
            builder.add_sequence(
                argument.name, [Aval(leaf.shape, leaf.dtype) for leaf in argument.leaves]
            )
    for tensor in model.graph.initializer:
        if tensor.name in fixed:
            builder.add_known(tensor.name, onnx.numpy_helper.to_array(tensor))
        else:
            builder.add_tensor(tensor.name, shared.weights.get(tensor.name, tensor))
    builder.add_nodes(model.graph.node)
    return builder


def _structure(names: Sequence[str]) -> Structure:
    if len(names) == 1:
        return LEAF
    return Structure("record", (LEAF,) * len(names), tuple(names), "Output")


def _flat_outputs(program: GraphProgram, names: Sequence[str]) -> GraphProgram:
    """Give outputs that are sequences one result for each tensor."""
    lengths = program.outputs.children if len(names) > 1 else (program.outputs,)
    if all(child.kind == "leaf" for child in lengths):
        return program
    nodes, results = list(program.graph.nodes), []
    for result, child in zip(program.graph.results, lengths, strict=True):
        if child.kind == "leaf":
            results.append(result)
            continue
        for index in range(len(child.children)):
            item = build.item_node(result.value, index, len(nodes))
            nodes.append(item)
            results.append(Result("output", Ref(item.name)))
    graph = dataclasses.replace(program.graph, nodes=tuple(nodes), results=tuple(results))
    return dataclasses.replace(program, graph=graph)


def _arranged(program: GraphProgram, layout: str) -> GraphProgram:
    """Run convolutions channels-last, as for models from PyTorch."""
    if layout == "keep":
        return program
    graph = channels_last(program.graph, nhwc=layout == "NHWC")
    return dataclasses.replace(program, graph=graph, signature=retaken(program.signature, graph))


def _weights(
    graph: Graph, shared: known.Model, progress: Progress | None
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors that the graph needs, one at a time."""
    params: dict[str, Any] = {}
    constants: dict[str, np.ndarray] = {}
    notes: dict[str, Any] = {}
    odd: list[str] = []
    problems: list[str] = []
    wanted = [item for item in graph.inputs if item.kind != "input"]
    for done, item in enumerate(wanted):
        if progress is not None:
            progress(item.target, done, len(wanted))
        array = shared.file.read(shared.weights[item.target])
        if dtypes.kind(array.dtype) in ("float", "complex") and (
            text := nonfinite(item.target, array)
        ):
            odd.append(text)
        try:
            array = dtypes.narrow(array, item.target)
        except OverflowError as error:
            problems.append(str(error))
            continue
        if item.perm:
            array = array.transpose(item.perm)
        if item.kind == "constant":
            constants[item.target] = np.array(array, order="C")
        else:
            params[item.target] = owned(array)
    if problems:
        raise ConversionError(listing("tensors that cannot be converted:", problems))
    if odd:
        notes["nonfinite"] = odd
    read = {item.target for item in graph.inputs}
    stored = [tensor.name for tensor in shared.file.model.graph.initializer]
    folded = [name for name in stored if name not in read]
    if folded:
        notes["constants_of_the_graph"] = len(folded)
    return params, constants, notes
