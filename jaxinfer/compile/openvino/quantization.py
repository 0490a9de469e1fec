"""int8 by NNCF: a converted model with quantizers on weights and activations.

    model, calibration data -> ranges of activations -> [SmoothQuant] -> quantizers -> biases

Which products are left in float32 is said by the paths of their parameters.

Source: NNCF, https://github.com/openvinotoolkit/nncf; SmoothQuant: G. Xiao et al., 2022,
https://arxiv.org/abs/2211.10438.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxinfer.compile.openvino.loading import load_openvino, without_telemetry
from jaxinfer.compile.openvino.model import Built, held_as
from jaxinfer.core.errors import InputError, listing

MOVES = (
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Convert", "Broadcast", "Tile"),
    *("Slice", "StridedSlice", "VariadicSplit", "Split", "MaxPool", "Pad"),
)
"""Operators between a quantizer and a product that leave int8 as it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class Quantization:
    """How NNCF quantizes a converted model to int8: weights and activations, symmetric or not.

    Attributes:
      batches: calibration data: the inputs of a call, as lists of arrays, one after the other.
      preset: ``performance`` (all symmetric) or ``mixed`` (activations asymmetric).
      transformer: keep what transformers are sensitive in out of int8; None: if the program
        multiplies activations by each other (attention).
      subset: at most how many batches are looked at.
      fast_bias: correct biases by an estimate, not layer by layer.
      ignore: parameter paths; products with these parameters stay float32.
      smooth_quant: of transformers: how far the outliers of activations are moved into the
        weights, from 0 to 1, or -1: not at all; None: NNCF's own, 0.95.
    """

    batches: Iterable[Sequence[Any]]
    preset: str = "performance"
    transformer: bool | None = None
    subset: int = 300
    fast_bias: bool = True
    ignore: Sequence[str] = ()
    smooth_quant: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.preset not in ("performance", "mixed"):
            problems.append(f"preset: required performance or mixed, got {self.preset!r}")
        if type(self.subset) is not int or self.subset < 1:
            problems.append(f"subset: required a number from 1 on, got {self.subset!r}")
        for name in ("transformer", "fast_bias"):
            value = getattr(self, name)
            if type(value) is not bool and (name == "fast_bias" or value is not None):
                problems.append(f"{name}: required True or False, got {value!r}")
        names = self.ignore
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            problems.append(f"ignore: required a list of parameter paths, got {names!r}")
        alpha = self.smooth_quant
        if alpha is not None and not (
            isinstance(alpha, (int, float)) and (alpha == -1 or 0 <= alpha <= 1)
        ):
            problems.append(f"smooth_quant: required 0 to 1, or -1 for none, got {alpha!r}")
        if problems:
            raise InputError(listing("quantization by NNCF:", problems))


def quantized(built: Built, how: Quantization) -> tuple[Built, dict[str, Any]]:
    """Quantize a model by NNCF; returns what was done, too.

    Raises:
      InputError: no batches, batches that do not fit, paths of no parameter.
      MissingExtraError: NNCF is not installed.
    """
    nncf = load_openvino("nncf")
    if built.model is None:
        raise InputError("quantize: every output of this program is a constant")
    ignored = _ignored(built, how.ignore)
    few = itertools.islice(how.batches, how.subset)
    batches = [_calibration_batch(built, number, batch) for number, batch in enumerate(few)]
    if not batches:
        raise InputError("quantize: required at least one batch of calibration data, got none")
    transformer = how.transformer
    if transformer is None:
        transformer = bool(built.facts["products"].get("activation"))
    started = time.perf_counter()
    quiet = contextlib.redirect_stdout(io.StringIO())  # of progress bars
    with without_telemetry(), warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        nncf.set_log_level(40)
        model = nncf.quantize(
            built.model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset(how.preset),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(batches),
            fast_bias_correction=how.fast_bias,
            # a product in the body of a loop is not in NNCF's graph: it stays float32 by itself
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False) if ignored else None,
            advanced_parameters=_advanced(how),
        )
    kinds = Counter(node.get_type_name() for node in model.get_ops())
    done = {
        "preset": how.preset,
        "transformer": transformer,
        "batches": len(batches),
        "quantizers": kinds["FakeQuantize"],
        "ignored": ignored,
        "smooth_quant": how.smooth_quant,
        "products": _by_type(model, built.products),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return built._replace(model=model), done


def _advanced(how: Quantization) -> Any:
    if how.smooth_quant is None:
        return None
    with without_telemetry():
        from nncf.quantization import advanced_parameters as advanced
    alphas = advanced.AdvancedSmoothQuantParameters(
        convolution=how.smooth_quant, matmul=how.smooth_quant
    )
    return advanced.AdvancedQuantizationParameters(smooth_quant_alphas=alphas)


def _ignored(built: Built, paths: Sequence[str]) -> list[str]:
    """Return the names of products with these parameters.

    Raises:
      InputError: paths that no parameter has; all of them.
    """
    problems = []
    for path in paths:
        if path not in built.params:
            near = difflib.get_close_matches(path, built.params, 3)
            problems.append(f"{path}" + (f": did you mean {', '.join(near)}?" if near else ""))
    if problems:
        known = ", ".join(built.params[:8]) + (", .." if len(built.params) > 8 else "")
        advice = f"Parameters: {known or 'none: the program has them as constants'}."
        raise InputError(listing("ignore: no parameter has the path:", problems, advice))
    wanted = set(paths)
    return [name for name, own in built.products.items() if wanted.intersection(own)]


def _by_type(model: Any, names: Iterable[str]) -> dict[str, list[str]]:
    """Return which products compute in int8, all operands quantized, and which in float32."""
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    found: dict[str, list[str]] = {"int8": [], "float32": []}
    for name in names:
        node = nodes.get(name)  # None: in the body of a loop, where nothing is quantized
        ports = range(1 if node is not None and node.get_type_name() == "Gather" else 2)
        done = node is not None and all(_is_quantized(node.input_value(port)) for port in ports)
        found["int8" if done else "float32"].append(name)
    return found


def _is_quantized(out: Any) -> bool:
    """Return whether an operand comes from a quantizer, or is a weight that is kept in int8."""
    node, scaled = out.get_node(), False
    while node.get_type_name() in (*MOVES, "Multiply", "Subtract"):
        scaled = scaled or node.get_type_name() in ("Multiply", "Subtract")
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Constant":
        return node.get_element_type().get_type_name() in ("i8", "u8")
    return node.get_type_name() == "FakeQuantize" and not scaled


def _calibration_batch(built: Built, number: int, batch: Sequence[Any]) -> list[np.ndarray]:
    arrays = [np.asarray(value) for value in batch]
    got = [(array.shape, str(array.dtype)) for array in arrays]
    if got != list(built.in_avals):
        text = lambda avals: ", ".join(f"{dtype}{list(shape)}" for shape, dtype in avals)
        raise InputError(
            f"quantize: calibration batch {number}: required {text(built.in_avals)}, "
            f"got {text(got)}"
        )
    return [
        np.array(arrays[index], held_as(str(arrays[index].dtype)), order="C")
        for index in built.inputs
    ]
