"""Running what OpenVINO has converted, for the sides ``openvino`` and ``openvino-int8``."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino.function import DEFAULTS
from jaxinfer.compile.openvino.loading import load_openvino, without_telemetry
from jaxinfer.core.errors import InputError
from jaxinfer.tune.bench.side import Prepared


def prepared(
    model: Any,
    arrays: Sequence[np.ndarray],
    outputs: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
    threads: int,
    notes: Sequence[str] = (),
) -> Prepared:
    """Compile an OpenVINO model for the CPU: float32 is float32, latency first.

    Args:
      model: of ``openvino.convert_model``; its inputs in the order of ``arrays``.
      arrays: read where they are in every call.
      outputs: puts the results in the model's order of axes.
      threads: that a call uses.
    """
    openvino = load_openvino()
    properties = {**DEFAULTS, "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(model, "CPU", properties)
    if len(compiled.inputs) != len(arrays):
        raise InputError(
            f"OpenVINO's model takes {len(compiled.inputs)} inputs, the module {len(arrays)}"
        )
    request = compiled.create_infer_request()
    tensors = [openvino.Tensor(array, True) for array in arrays]
    for place, tensor in enumerate(tensors):
        request.set_input_tensor(place, tensor)
    count = len(compiled.outputs)

    def read(_: Any) -> Sequence[np.ndarray]:
        return outputs([np.array(request.get_output_tensor(i).data) for i in range(count)])

    def run(kept: Any = tensors) -> Any:
        """Compute; the request reads the memory of its inputs, and does not keep it itself."""
        del kept
        return request.infer()

    return Prepared(run, read, notes)


def quantized(model: Any, batches: Sequence[Sequence[np.ndarray]]) -> tuple[Any, str]:
    """Quantize a converted model to int8 by NNCF; returns it with what was done, in words.

    Args:
      model: of ``openvino.convert_model``.
      batches: calibration data: the inputs of a call, each.
    """
    nncf = load_openvino("nncf")
    attends = _attends(model)
    quiet = contextlib.redirect_stdout(io.StringIO())  # of progress bars
    with without_telemetry(), warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        nncf.set_log_level(40)
        made = nncf.quantize(
            model,
            nncf.Dataset([list(batch) for batch in batches]),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
        )
    kind = "a transformer" if attends else "no transformer"
    return made, f"quantized by NNCF as {kind} on {len(batches)} batches"


def _attends(model: Any) -> bool:
    """Return whether activations are multiplied by each other."""

    def constant(node: Any) -> bool:
        if node.get_type_name() in ("Convert", "Reshape", "Transpose"):
            return constant(node.input_value(0).get_node())
        return node.get_type_name() == "Constant"

    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            return True
        if node.get_type_name() == "MatMul":
            sides = [node.input_value(i).get_node() for i in (0, 1)]
            if not any(map(constant, sides)):
                return True
    return False
