"""Suite ``transformers``: every base model that the package registers, shrunk, against torch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import time
import warnings
from typing import Any

import numpy as np
import torch

import jaxinfer as ji
from benchmarks.coverage.common import (
    Case,
    failed,
    first_lines,
    judge,
    numpy_leaves,
    randomize,
    trivial,
)
from benchmarks.coverage.vision import ROUNDINGS, TOLERANCE, on_path

with contextlib.suppress(SystemExit):
    on_path()  # timm and torchvision, before transformers looks which packages there are

import transformers
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_MAPPING,
    MODEL_MAPPING_NAMES,
)

from benchmarks.coverage.hf_config import shrunk
from benchmarks.coverage.hf_inputs import Inputs, candidates

TITLE = "transformers: base models"
INTRO = """\
Every model type that `AutoModel` of transformers registers, built from its default configuration
shrunk to two layers and widths of 64 (`benchmarks/coverage/hf_config.py`), with random weights and
statistics, in eval mode, `use_cache=False`, and the attention implementation that transformers
chooses. Inputs are drawn for the model's main input and whatever else forward requires; a model of
text and images gets both, or text alone where `torch.export` does not accept the images. All
outputs are compared; where torch's own float32 is far from its float64, four times that distance
is allowed, if it is less than a tenth of what the outputs of two inputs differ by. Excluded are
models that torch itself does not run from their configuration (a package is not there, the
registered class does not take the registered configuration; omdet-turbo: shrunk widths do not fit
each other yet), those without a forward that takes arrays, and those that `torch.export`
(non-strict) refuses: the rest is what the percentage is of.
"""
TIMEOUT = 400.0
TARGET = 0.97
LARGEST = 60_000_000  # parameters: what is larger has not been shrunk


def names() -> list[str]:
    """Return the model types."""
    return list(MODEL_MAPPING_NAMES)


def run(name: str) -> list[Case]:
    """Convert one model and compare; see ``INTRO``."""
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()
    try:
        model = build(name)
        if why := _unlike_a_model(model):
            return [Case(name, "excluded", f"not a model: {why}")]
        found = candidates(model)
    except Exception as error:
        return [Case(name, "excluded", f"torch fails: not built: {first_lines(error)}")]
    tried: list[Case] = []
    for group, inputs in found:
        tried.append(_case(name, model, inputs, group=group))
        if tried[-1].status != "excluded":
            break
    refused = [case for case in tried if case.reason.startswith("torch.export refuses")]
    case = tried[-1] if tried[-1].status != "excluded" or not refused else refused[0]
    return [dataclasses.replace(case, seconds=round(time.perf_counter() - started, 1))]


def build(name: str) -> PreTrainedModel:
    """Return the model of a type in eval mode, small, with random weights.

    Raises:
      ValueError: it has more than ``LARGEST`` parameters.
    """
    config = shrunk(name)
    _no_cache(config)
    make: Any = AutoModel.from_config
    if type(config) not in MODEL_MAPPING:  # the name of its class is registered twice
        make = getattr(transformers, MODEL_MAPPING_NAMES[name])
    with torch.device("meta"):
        try:
            size = sum(p.numel() for p in make(config).parameters())
        except Exception:
            size = 0  # some read values while they are built
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    return randomize(make(config).eval())


def _unlike_a_model(model: PreTrainedModel) -> str:
    """Return why there is nothing to call with arrays, or ''."""
    if type(model).forward is torch.nn.Module.forward:
        return "it has no forward, only methods for its parts"
    if "inference_session" in inspect.signature(model.forward).parameters:
        return "forward takes an inference session, an object whose state it changes"
    return ""


def _no_cache(config: PreTrainedConfig) -> None:
    if hasattr(config, "use_cache"):
        config.use_cache = False
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            _no_cache(value)


def _case(name: str, model: PreTrainedModel, inputs: Inputs, **fields: Any) -> Case:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            want = model(**inputs)
        except Exception as error:
            return Case(name, "excluded", f"torch fails: {first_lines(error)}", **fields)
        if why := trivial(want):
            return Case(name, "fail", f"the comparison would prove nothing: {why}", **fields)
        try:
            converted = ji.from_torch(model, (), inputs)
        except Exception as error:
            if refusal := _refused(model, inputs):
                return Case(name, "excluded", f"torch.export refuses: {refusal}", **fields)
            return failed(name, error, **fields)
        if converted.program.random:
            return Case(name, "excluded", "random", **fields)
        try:
            got = converted(**inputs)
        except Exception as error:
            return failed(name, error, **fields)
    got = got[0] if getattr(converted.program, "mutates", ()) else got
    case = judge(name, want, got, **fields)
    if case.status == "fail" and case.error is not None and _is_rounding(model, inputs, want, got):
        return dataclasses.replace(case, status="pass", reason="", error=None)
    return case


def _is_rounding(model: PreTrainedModel, inputs: Inputs, want: Any, got: Any) -> bool:
    """Whether every output y is as near as ``INTRO`` asks, with z torch's in float64.

    ``max|y - want| <= max(1e-4 max(1, max|want|), 4 max|z - want|)``, and the latter is less
    than a tenth of ``max|want[0] - want[1]|``, axis 0 being the batch.
    """
    wide = {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }  # fmt: skip
    try:
        with torch.no_grad():
            double = copy.deepcopy(model).double()(**wide)
    except RuntimeError:  # float32 is written into the model
        return False
    for a, b, z in zip(*map(numpy_leaves, (want, got, double)), strict=True):
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                return False
            continue
        error, own = np.abs(a - b).max(initial=0), ROUNDINGS * np.abs(a - z).max(initial=0)
        spread = np.abs(a[0] - a[1]).max(initial=0) if a.shape[:1] == (2,) else np.abs(a).max()
        if error > TOLERANCE * max(1.0, np.abs(a).max()) and not (error <= own <= spread / 10):
            return False
    return True


def _refused(model: PreTrainedModel, inputs: Inputs) -> str:
    """Return torch's reason if torch.export alone refuses the model, or ''."""
    try:
        torch.export.export(model, (), inputs, strict=False)
    except Exception as error:
        return first_lines(error)
    return ""
