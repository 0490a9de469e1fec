"""An abstract run of a built graph: every rule is called once, and every shape is recorded.

A model with symbolic sizes runs at two choices of them: sizes that agree in both are recorded
as numbers, those that are a symbol's in both as that symbol, others as unknown. What ONNX's own
shape inference says of a value must agree, or the conversion stops: a second opinion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import ConversionError, JaxinferError
from jaxinfer.core.structure import LEAF, Structure
from jaxinfer.core.symbols import evaluate
from jaxinfer_converters.graph import Aval, Ref, Result
from jaxinfer_converters.onnx.known import Info
from jaxinfer_converters.program import GraphProgram

_FIRST = (5, 7, 11, 13, 17, 19, 23, 29)
_SECOND = (31, 37, 41, 43, 47, 53, 59, 61)


def record(
    program: GraphProgram, infos: Mapping[str, Info], values: Mapping[str, Ref]
) -> GraphProgram:
    """Return the program with the shape of every value, and the structure of its outputs.

    Args:
      infos: what ONNX says of each of its values.
      values: the node of each of them.

    Raises:
      ConversionError: a rule fails at sizes that the model declares, or does not give what
        ONNX's shape inference says.
    """
    symbols = program.signature.symbols
    choices = [{name: _FIRST[i % 8] for i, name in enumerate(symbols)}]
    if symbols:
        choices.append({name: _SECOND[i % 8] for i, name in enumerate(symbols)})
    runs = [_run(program, sizes) for sizes in choices]
    meant = {ref.name: name for name, ref in values.items() if isinstance(ref, Ref)}
    nodes = []
    for index, node in enumerate(program.graph.nodes):
        got = [run[index] for run in runs]
        avals = _avals(got, choices)
        name = meant.get(node.name, "")
        if len(avals) == 1 and (info := infos.get(name)) is not None:
            _agree(name, node.op, avals[0], info, got[0])
        nodes.append(dataclasses.replace(node, avals=avals))
    by_name = {node.name: runs[0][i] for i, node in enumerate(nodes)}
    children = [
        Structure("list", (LEAF,) * len(value)) if isinstance(value, list) else LEAF
        for value in (by_name.get(getattr(r.value, "name", "")) for r in program.graph.results)
    ]
    outputs = program.outputs
    outputs = (
        children[0]
        if len(children) == 1
        else dataclasses.replace(outputs, children=tuple(children))
    )
    graph = dataclasses.replace(program.graph, nodes=tuple(nodes))
    return dataclasses.replace(program, graph=graph, outputs=outputs)


def _run(program: GraphProgram, sizes: Mapping[str, int]) -> list[Any]:
    """Trace on shapes alone; returns what each node gave (numpy for static values)."""
    graph = program.graph
    whole = dataclasses.replace(
        program,
        graph=dataclasses.replace(
            graph,
            inputs=tuple(
                dataclasses.replace(i, kind="buffer") if i.kind == "constant" else i
                for i in graph.inputs
            ),
            results=tuple(Result("output", Ref(node.name)) for node in graph.nodes),
        ),
    )
    params = {name: _struct(aval, sizes) for name, aval in whole.param_specs.items()}
    leaves = [
        _struct(Aval(leaf.shape, leaf.dtype), sizes) if leaf.is_array else leaf.value
        for leaf in program.signature.leaves
    ]
    statics: dict[int, Any] = {}

    def run(params: Any, arrays: Any, key: Any) -> Any:
        filled = iter(arrays)
        values = whole.run(
            params,
            [next(filled) if isinstance(x, jax.ShapeDtypeStruct) else x for x in leaves],
            key if whole.random else None,
        )
        for index, value in enumerate(values):
            if isinstance(value, np.ndarray) or value is None:
                statics[index] = value
                values[index] = 0
        return values

    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        out = jax.eval_shape(run, params, arrays, key)
    except JaxinferError as error:
        if not sizes:
            raise
        at = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ConversionError(
            f"{error}\nThis was tried with {at}, sizes that the model declares as free. If it "
            "works at one size only, fix it: inputs={'name': (1, 3, 224, 224)}, or --dynamic none"
        ) from error
    return [statics.get(index, value) for index, value in enumerate(out)]


def _struct(aval: Aval, sizes: Mapping[str, int]) -> jax.ShapeDtypeStruct:
    shape = [evaluate(dim, sizes) for dim in aval.shape]
    if any(dim is None for dim in shape):
        raise ConversionError(f"a size of {aval} is an expression that jaxinfer cannot evaluate")
    return jax.ShapeDtypeStruct(
        tuple(d for d in shape if d is not None), dtypes.canonical(aval.dtype)
    )


def _avals(values: Sequence[Any], choices: Sequence[Mapping[str, int]]) -> tuple[Aval | None, ...]:
    first = values[0]
    if isinstance(first, np.ndarray) or first is None:
        return (None,)
    if isinstance(first, (list, tuple)):
        inner = zip(*values, strict=False)
        return tuple(_avals(list(item), choices)[0] for item in inner)
    if any(len(value.shape) != len(first.shape) for value in values):
        return (None,)
    shape = tuple(
        _dim([value.shape[axis] for value in values], choices) for axis in range(len(first.shape))
    )
    return (Aval(shape, first.dtype.name),)


def _dim(got: Sequence[int], choices: Sequence[Mapping[str, int]]) -> int | str:
    if len(set(got)) == 1:
        return got[0]
    for name in choices[0]:
        if all(size == sizes[name] for size, sizes in zip(got, choices, strict=True)):
            return name
    return "?"


def _agree(name: str, op: str, aval: Aval | None, info: Info, got: Any) -> None:
    if aval is None or info.dtype is None:
        return
    want, have = dtypes.dtype_of(info.dtype), np.dtype(got.dtype)
    same = dtypes.canonical(info.dtype) == have
    if info.shape is not None:
        same = same and len(info.shape) == len(aval.shape)
        same = same and all(
            not isinstance(w, int) or not isinstance(g, int) or w == g
            for w, g in zip(info.shape, aval.shape, strict=False)
        )
    if not same:
        shape = "?" if info.shape is None else ", ".join(map(str, info.shape))
        raise ConversionError(
            f"{op}, {name!r}: ONNX's shape inference says {want.name}[{shape}], the rule gives "
            f"{aval}. This is a fault of jaxinfer's rule, or of the model's declared shapes"
        )
