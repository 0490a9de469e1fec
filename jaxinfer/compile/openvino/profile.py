"""How long each product of an OpenVINO function takes, by OpenVINO's own counters.

The graph is compiled once more with counters. A layer that runs is one or several nodes of the
graph; one that holds a product, or what follows it alone (bias, activation), is the product's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino.function import OpenVINOFunction
from jaxinfer.compile.openvino.loading import load_openvino

_FOLLOW = ("Add", "Multiply", "Subtract", "Convert", "Relu", "Gelu", "Clamp", "Swish",
           "FakeQuantize", "Reshape")  # fmt: skip
_STEPS = 4
_MARK = "~then~"


def product_times(
    function: OpenVINOFunction, arrays: Sequence[Any], calls: int = 7
) -> dict[str, float]:
    """Return the milliseconds of each product with a parameter, by its name.

    Args:
      function: compiled.
      arrays: its inputs.
      calls: of which the median is taken.

    Returns:
      ``{name: ms}`` of the layers that ran and hold it; a product that OpenVINO joined with others
      under another name is missing. The names are those of ``Built.products``. Cost: one
      compilation, and the calls.
    """
    built = function._built
    if built.model is None or not built.products:
        return {}
    openvino = load_openvino()
    model = built.model.clone()
    _name_followers(model, built.products)
    options = {**function._options, "PERF_COUNT": "YES"}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    originals = {
        node.get_friendly_name(): str(_plain(node.get_rt_info()["originalLayersNames"])).split(",")
        for node in compiled.get_runtime_model().get_ops()
        if "originalLayersNames" in node.get_rt_info()
    }
    given = function._given(arrays)
    inputs = {place: given[index] for place, index in enumerate(built.inputs)}
    request = compiled.create_infer_request()
    runs: list[dict[str, float]] = []
    for number in range(calls + 1):
        request.infer(inputs)
        if number:  # the first one warms up
            runs.append(_by_product(request.profiling_info, originals, built.products))
    return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


def _name_followers(model: Any, products: Mapping[str, Any]) -> None:
    """Name what alone follows a product after it, in a copy of the graph."""
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    for name in products:
        node = nodes.get(name)
        for step in range(_STEPS):
            users = list(node.output(0).get_target_inputs()) if node is not None else []
            if len(users) != 1 or users[0].get_node().get_type_name() not in _FOLLOW:
                break
            node = users[0].get_node()
            if node.get_friendly_name() in products or _MARK in node.get_friendly_name():
                break
            node.set_friendly_name(f"{name}{_MARK}{step}")


def _by_product(
    found: Sequence[Any], originals: Mapping[str, Sequence[str]], products: Mapping[str, Any]
) -> dict[str, float]:
    times: dict[str, float] = {}
    for info in found:
        if "EXECUTED" not in str(info.status):
            continue
        names = {info.node_name, *originals.get(info.node_name, ())}
        own = {each.split(_MARK)[0] for each in names} & set(products)
        for name in own:  # products that run as one layer have an equal part of it each
            part = info.real_time.total_seconds() * 1e3 / len(own)
            times[name] = times.get(name, 0.0) + part
    return times


def _plain(value: Any) -> Any:
    return value.value if hasattr(value, "value") else value
