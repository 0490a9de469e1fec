"""Sources for the command line: ``model.onnx``, held against onnxruntime or onnx's reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from jaxinfer.core import dtypes
from jaxinfer.core.errors import ConversionError
from jaxinfer.core.examples import InputText, from_texts
from jaxinfer.core.frontend import Options, Progress, Source
from jaxinfer.core.model import Model
from jaxinfer.core.signature import LeafSpec
from jaxinfer.core.symbols import evaluate
from jaxinfer_converters.onnx.convert import from_onnx
from jaxinfer_converters.onnx.read import File, open_model
from jaxinfer_converters.onnx.signature import arguments


def open_file(source: str, options: Options) -> Source:
    """Open a model: its inputs are drawn by its own signature, or by ``--input``.

    Raises:
      CheckpointError, ConversionError: the file is not readable, or not to be converted so.
    """
    given = {"--weights": options.weights, "--class": options.class_name, "--dtype": options.dtype}
    if wrong := [flag for flag, value in given.items() if value]:
        raise ConversionError(
            f"{source}: an ONNX file has its weights, class and dtype already; drop "
            f"{' and '.join(wrong)}"
        )
    if options.scan_layers:
        raise ConversionError(f"{source}: scan_layers is for PyTorch models so far; drop it")
    file = open_model(source)
    texts, _ = from_texts(options.inputs)
    inputs = _shapes(file, texts)
    dynamic = options.dynamic != "none"
    drawn = _leaves(file, inputs, dynamic)
    below = {item.name: item.below for item in texts if item.name}
    notes = [f"inputs are random; integers are 0 or 1 (--input '{leaf.path}={leaf.dtype}[...]<n')"
             for leaf in drawn if _integer(leaf) and leaf.path not in below][:1]  # fmt: skip
    label = f"ONNX model {file.label}"

    def convert(progress: Progress | None) -> Model:
        model = from_onnx(
            source,
            inputs=inputs,
            dynamic=dynamic,
            layout=options.layout,
            x64=options.x64,
            progress=progress,
        )
        return model.replace(provenance={**model.provenance, "source": label, "notes": notes})

    def examples(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rng = np.random.default_rng(seed)
        sizes = _sizes(drawn, texts)
        return tuple(_draw(leaf, sizes, below, rng) for leaf in drawn), {}

    session: list[Any] = []

    def reference(
        args: Sequence[Any], kwargs: Mapping[str, Any], state: Sequence[str] = ()
    ) -> list[np.ndarray]:
        del kwargs, state
        if not session:
            session.append(_reference(source))
        feed = {leaf.path: array for leaf, array in zip(drawn, args, strict=True)}
        return [np.asarray(out) for out in session[0](feed)]

    return Source(label, convert, examples, reference, tuple(notes))


def _shapes(file: File, texts: Sequence[InputText]) -> dict[str, Any]:
    """Return the shapes of ``--input`` by name; unnamed ones in the model's order.

    Raises:
      ConversionError: a dtype that is not the model's.
    """
    stored = {tensor.name for tensor in file.model.graph.initializer}
    own = [item for item in file.model.graph.input if item.name not in stored]
    free = [item.name for item in own if item.name not in {text.name for text in texts}]
    shapes: dict[str, Any] = {}
    for text in texts:
        name = text.name or (free.pop(0) if free else None)
        if name is None:
            raise ConversionError(f"--input: the model has {len(own)} inputs, more are given")
        for item in own:
            if item.name == name and item.type.HasField("tensor_type"):
                kind = item.type.tensor_type.elem_type
                want = onnx.helper.tensor_dtype_to_np_dtype(kind).name
                if want != text.dtype:
                    raise ConversionError(f"--input {name}: the model takes {want}")
        shapes[name] = tuple(text.dynamic.get(axis, size) for axis, size in enumerate(text.shape))
    return shapes


def _leaves(file: File, inputs: Mapping[str, Any], dynamic: bool) -> list[LeafSpec]:
    stored = {tensor.name for tensor in file.model.graph.initializer}
    graph = onnx.GraphProto()
    graph.input.extend(item for item in file.model.graph.input if item.name not in stored)
    made, _ = arguments(graph, inputs, dynamic=dynamic)
    if any(argument.kind == "sequence" for argument in made):
        raise ConversionError(
            f"{file.label}: takes sequences of tensors; convert it in Python with from_onnx"
        )
    return [leaf for argument in made for leaf in argument.leaves]


def _sizes(leaves: Sequence[LeafSpec], texts: Sequence[InputText]) -> dict[str, int]:
    """Return sizes for the symbols: those of ``--input``, else 2, 3, 4, ... in order."""
    sizes = {name: text.shape[axis] for text in texts for axis, name in dict(text.dynamic).items()}
    for leaf in leaves:
        for dim in leaf.shape:
            if isinstance(dim, str) and dim.isidentifier() and dim not in sizes:
                sizes[dim] = len(sizes) + 2
    return sizes


def _integer(leaf: LeafSpec) -> bool:
    return leaf.is_array and dtypes.kind(dtypes.dtype_of(leaf.dtype)) == "integer"


def _draw(
    leaf: LeafSpec, sizes: Mapping[str, int], below: Mapping[str, int], rng: np.random.Generator
) -> Any:
    if not leaf.is_array:
        return leaf.value
    shape = tuple(int(evaluate(dim, sizes) or 0) for dim in leaf.shape)
    plain = InputText(leaf.path, leaf.dtype, shape, {}, below.get(leaf.path, 2))
    return plain.draw(rng)


def _reference(source: str) -> Any:
    """Return ``run(feed) -> outputs`` by onnxruntime where it is installed, else by onnx."""
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(None, feed)
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(source)
    return lambda feed: evaluator.run(None, feed)
