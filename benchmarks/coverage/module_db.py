"""PyTorch's ModuleInfo database: every module of torch.nn, with samples of its inputs."""

from __future__ import annotations

import copy
import functools
from typing import Any

from benchmarks.coverage.calls import check
from benchmarks.coverage.common import Case, randomize

TITLE = "module_db"
INTRO = """
PyTorch's own database of modules, `torch.testing._internal.common_modules.module_db`: each module
with up to 40 of its sample inputs in float32, spread over their list (transformers and cross
entropies have more), in evaluation mode, and in training mode where the database says that it
differs. Parameters and statistics are random. Compared are the outputs and the new state (running
statistics, inputs changed in place), at the tolerance of `jaxinfer convert`. Excluded are modules
that sample, and those that torch.export refuses.
"""
TIMEOUT = 600.0
TARGET = 0.98
SAMPLES = 40


@functools.cache
def _infos() -> dict[str, Any]:
    from torch.testing._internal.common_modules import module_db

    return {info.name: info for info in module_db}


def names() -> list[str]:
    """Return the modules' names."""
    return list(_infos())


def run(name: str) -> list[Case]:
    """Convert a module at each of its samples."""
    import torch

    info = _infos()[name]
    cases = []
    for training in (False, True) if info.train_and_eval_differ else (False,):
        torch.manual_seed(0)
        samples = info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
        )
        chosen = range(len(samples))
        if len(samples) > SAMPLES:
            chosen = [round(i * (len(samples) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)]
        for index in chosen:
            sample = samples[index]
            title = f"{name}[{index}]{'.train' if training else ''}"
            group = "train" if training else "eval"
            if sample.forward_input is None:
                cases.append(Case(title, "excluded", "not a model: no input", group=group))
                continue
            try:
                module = _build(info, sample, training)
            except Exception as error:
                reason = f"torch fails: {type(error).__name__}: {error}"
                cases.append(Case(title, "excluded", reason, group=group))
                continue
            inputs = sample.forward_input
            cases.append(check(title, module, inputs.args, inputs.kwargs, group=group))
    return cases


def _build(info: Any, sample: Any, training: bool) -> Any:
    """Return the module with random weights; a lazy one has seen its input."""
    import torch

    torch.manual_seed(0)
    given = sample.constructor_input
    module = info.module_cls(*given.args, **given.kwargs).to(torch.float32).train(training)
    if info.is_lazy:
        inputs = copy.deepcopy(sample.forward_input)
        module(*inputs.args, **inputs.kwargs)
    return randomize(module)
