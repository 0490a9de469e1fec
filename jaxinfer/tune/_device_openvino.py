"""OpenVINO's matrix product and convolution, in float32 and (fake-quantized) in int8."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino.loading import load_openvino

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}

Kernel = tuple[str, str, int, Callable[[], Any]]
"""Name of the dtype, shape, FLOPs, and a call that returns when it is done."""


def openvino_kernels(matmul: Sequence[int], image: Sequence[int]) -> list[Kernel]:
    """Compile the products, weights being constants as they are in a compiled model.

    Args:
      matmul: m, k, n.
      image: pixels of a side, and channels, of a 3 x 3 convolution (NCHW, as OpenVINO has it).

    Raises:
      MissingExtraError: OpenVINO is not installed.

    Cost: its import, and four compilations, together well under a second on a quiet machine.
    """
    core = load_openvino().Core()
    m, k, n = matmul
    pixels, channels = image
    plain = f"{m}x{k}x{n}", 2 * math.prod(matmul)
    conv = f"{pixels}x{channels} 3x3", 18 * (pixels * channels) ** 2
    found = []
    for name, int8 in (("float32", False), ("int8", True)):
        found.append((name, *plain, _call(core, (m, k), (k, n), int8)))
        image_shape, kernel = (1, channels, pixels, pixels), (channels, channels, 3, 3)
        found.append((name, *conv, _call(core, image_shape, kernel, int8)))
    return found


def _call(core: Any, shape: tuple[int, ...], weight: tuple[int, ...], int8: bool) -> Any:
    openvino = load_openvino()
    ops = openvino.opset15
    block = np.random.default_rng(0).uniform(-1, 1, 4099).astype(np.float32)
    given = ops.parameter(shape, np.float32)
    left, right = given, ops.constant(np.resize(block, weight))
    if int8:
        left, right = _quantized(ops, left, 256), _quantized(ops, right, 255)
    if len(shape) == 2:
        out = ops.matmul(left, right, False, False)
    else:
        out = ops.convolution(left, right, [1, 1], [1, 1], [1, 1], [1, 1])
    made = core.compile_model(openvino.Model([ops.result(out)], [given], "p"), "CPU", OPTIONS)
    request, value = made.create_infer_request(), np.resize(block, shape)
    return lambda: request.infer({0: value}, share_inputs=True, share_outputs=True)


def _quantized(ops: Any, value: Any, levels: int) -> Any:
    low = ops.constant(np.float32(-1 if levels == 255 else -128 / 127))
    high = ops.constant(np.float32(1))
    return ops.fake_quantize(value, low, high, low, high, levels)
