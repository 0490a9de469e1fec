"""An OpenVINO model of a whole jaxpr, and how its inputs and outputs are those of the jaxpr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.compile.openvino.graph import (
    TAKEN,
    Graph,
    OpenVINOUnsupported,
    Operand,
    host,
    is_const,
)
from jaxinfer.compile.openvino.loading import load_openvino
from jaxinfer.core import dtypes
from jaxinfer.core._compat import inner


class Input(NamedTuple):
    """An output that is an input as it is."""

    index: int


class Built(NamedTuple):
    """A model, and how its inputs and outputs are those of the jaxpr.

    Attributes:
      model: OpenVINO's; None if every output is a constant.
      inputs: the jaxpr's inputs that the model takes, in its order.
      outputs: for each output of the jaxpr: its number in the model, an array (a constant), or
        ``Input``: an input as it is (OpenVINO mixes up the memory of such).
      in_avals, out_avals: (shape, dtype name) of the jaxpr's inputs and outputs.
      facts: what was folded, and computed in another dtype.
      held: the arrays whose memory the model shares.
      products: parameter paths by the name of the node that multiplies (or gathers) with them.
      params: all parameter paths.
    """

    model: Any
    inputs: tuple[int, ...]
    outputs: tuple[Any, ...]
    in_avals: tuple[tuple[tuple[int, ...], str], ...]
    out_avals: tuple[tuple[tuple[int, ...], str], ...]
    facts: Mapping[str, Any]
    held: Sequence[np.ndarray] = ()
    products: Mapping[str, tuple[str, ...]] = {}
    params: tuple[str, ...] = ()


def held_as(dtype: str) -> np.dtype:
    """Return the dtype in which OpenVINO is given a value: narrow floats in float32."""
    return np.dtype(np.float32 if dtype in ("bfloat16", "float16") else dtypes.dtype_of(dtype))


def build(closed: Any, constants: Sequence[tuple[str, Any]] = ()) -> Built:
    """Return the OpenVINO model of a closed jaxpr.

    Args:
      closed: of ``jax.make_jaxpr``.
      constants: what its first inputs are fixed to, each with the path of the parameter that it
        is (or is a part of).

    Raises:
      OpenVINOUnsupported: equations, inputs or outputs that it cannot take; all at once.
    """
    openvino = load_openvino()
    built, graph, outs = _run(closed, constants)
    missing = refusals(graph)
    if missing:
        raise OpenVINOUnsupported(missing)
    results: list[Any] = []
    places: list[Any] = []
    given = {p.get_name(): i for p, i in zip(graph.parameters, built.inputs, strict=True)}
    for out, (shape, dtype) in zip(outs, built.out_avals, strict=True):
        if is_const(out):
            places.append(np.asarray(out, dtypes.dtype_of(dtype)).reshape(shape))
            continue
        port = graph.full(out)
        name = port.get_node().get_name()
        if name in given and built.in_avals[given[name]] == (shape, dtype):
            places.append(Input(given[name]))
            continue
        if name in given:  # its dtype is another one: the bits are converted by the caller
            port = graph.op.multiply(port, graph.op.constant(np.float32(1))).output(0)
        places.append(len(results))
        results.append(graph.op.result(port))
    if not results:
        return built._replace(outputs=tuple(places), inputs=())
    model = openvino.Model(results, graph.parameters, "jaxinfer")
    return built._replace(
        model=model,
        outputs=tuple(places),
        held=tuple(graph.held),
        products=dict(graph.names.products),
    )


def refusals(graph: Graph) -> list[str]:
    """Return the texts of what was refused, with how often each came up."""
    return [f"{text} ({n} times)" if n > 1 else text for text, n in graph.refused.items()]


def _run(
    closed: Any, constants: Sequence[tuple[str, Any]] = ()
) -> tuple[Built, Graph, list[Operand]]:
    graph, taken = Graph(), []
    jaxpr, consts = inner(closed)
    args: list[Any] = [graph.names.mark(host(array), [path]) for path, array in constants]
    invars = jaxpr.invars[len(args) :]
    in_avals = tuple(map(_described, invars))
    for index, (var, (shape, dtype)) in enumerate(zip(invars, in_avals, strict=True)):
        if not all(isinstance(size, int) for size in shape):
            graph.refused[f"input {index}: shape {shape}: sizes have to be numbers"] += 1
            args.append(graph._stand_in(jax.ShapeDtypeStruct((1,) * len(shape), np.float32)))
        elif dtype not in TAKEN:
            graph.refused[f"input {index}: dtype {dtype} is not taken"] += 1
            args.append(graph._stand_in(var.aval))
        elif 0 in shape:
            args.append(np.zeros(shape, dtypes.dtype_of(dtype)))
        else:
            args.append(graph.parameter(shape, dtype))
            taken.append(index)
    outs = graph.run(jaxpr, consts, args)
    out_avals = tuple(map(_described, jaxpr.outvars))
    for index, ((_, dtype), out) in enumerate(zip(out_avals, outs, strict=True)):
        if not is_const(out) and dtype not in TAKEN:
            graph.refused[f"output {index}: dtype {dtype} is not taken"] += 1
    facts = {
        "folded": dict(graph.folded),
        "computed_in_float32": dict(graph.narrow_floats),
        "products": dict(graph.products),
    }
    paths = tuple(dict.fromkeys(path for path, _ in constants))
    built = Built(None, tuple(taken), (), in_avals, out_avals, facts, (), {}, paths)
    return built, graph, outs


def _described(var: Any) -> tuple[tuple[int, ...], str]:
    aval = var.aval
    return tuple(getattr(aval, "shape", ())), str(getattr(aval, "dtype", type(aval).__name__))


def unsupported(closed: Any) -> list[str]:
    """Return what ``build`` would refuse: ``primitive at file:line (function): reason``.

    The rules are run to find out; nothing is compiled.
    """
    return refusals(_run(closed)[1])
