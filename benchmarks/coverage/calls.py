"""Convert a small module, and hold calls of it, their new state included, against torch's."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.coverage.common import (
    Case,
    failed,
    first_lines,
    largest_error,
    numpy_leaves,
    trivial,
)

DATA = ("depend on the data", "data-dependent", "Data-dependent", "GuardOnDataDependent")


def check(
    name: str,
    module: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    more_args: Sequence[Sequence[Any]] = (),
    must_vary: bool = True,
    group: str = "",
) -> Case:
    """Return the case of a module, as it stands (train or eval).

    Each call, of torch and of JAX, starts from the same state and from inputs of its own.

    Args:
      more_args: other inputs at which the converted model is called as well.
      must_vary: constant outputs prove nothing, and fail (NaN and emptiness are compared).
    """
    started = time.perf_counter()
    case = _check(name, module, args, dict(kwargs or {}), dynamic_shapes, more_args, must_vary)
    seconds = time.perf_counter() - started
    return Case(name, case.status, case.reason, case.error, seconds, group)


def _check(
    name: str,
    module: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    more_args: Sequence[Sequence[Any]],
    must_vary: bool,
) -> Case:
    import jaxinfer as ji
    from jaxinfer.core.errors import ConversionError
    from jaxinfer_converters.program import GraphProgram

    try:
        wanted = [_call(module, inputs, kwargs) for inputs in (args, *more_args)]
    except Exception as error:
        return Case(name, "excluded", f"torch fails: {first_lines(error)}")
    copied = copy.deepcopy((module, tuple(args), kwargs))
    try:
        model = ji.from_torch(*copied, dynamic_shapes=copy.deepcopy(dynamic_shapes))
    except ConversionError as error:
        if reason := _refused(module, args, kwargs, dynamic_shapes, str(error)):
            return Case(name, "excluded", reason)
        return failed(name, error)
    except Exception as error:
        return failed(name, error)
    if model.program.random:
        return Case(name, "excluded", "random")
    numbers = [leaf for out, _, _ in wanted for leaf in numpy_leaves(out)]
    finite = any(np.isfinite(leaf.astype(np.complex128)).any() for leaf in numbers)
    if must_vary and finite and (why := trivial([out for out, _, _ in wanted])):
        return Case(name, "fail", why)
    worst = 0.0
    for inputs, (out, state, changed) in zip((args, *more_args), wanted, strict=True):
        try:
            got = model(*copy.deepcopy(tuple(inputs)), **copy.deepcopy(kwargs))
        except Exception as error:
            return failed(name, error)
        new: Mapping[str, Any] = {}
        if isinstance(model.program, GraphProgram) and model.program.mutates:
            got, new = got
        state = {**state, **changed}
        pairs = [(out, got), *((state[key], new[key]) for key in new if key in state)]
        if lacking := [key for key in new if key not in state]:
            return Case(name, "fail", f"new state that torch does not have: {lacking}")
        for want, value in pairs:
            error, text = largest_error(want, value)
            if text:
                return Case(name, "fail", text)
            worst = max(worst, error)
    return Case(name, "pass", error=worst)


def _call(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return a call's outputs, the module's state after it, and the inputs by their path."""
    import inspect

    import torch
    from torch.utils import _pytree as pytree

    module, args, kwargs = copy.deepcopy((module, tuple(args), dict(kwargs)))
    with torch.no_grad():
        out = copy.deepcopy(module(*args, **kwargs))
    parameters = inspect.signature(module.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [item.name for item in parameters if item.kind in named][: len(args)]
    names += [f"x{index}" for index in range(len(names), len(args))]
    inputs = {}
    for name, value in (*zip(names, args, strict=True), *kwargs.items()):
        for path, leaf in pytree.tree_leaves_with_path(value):
            inputs[".".join([name, *(str(key).strip("[]'.") for key in path)])] = leaf
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return out, state, inputs


def _refused(
    module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any, text: str
) -> str:
    """Return why a case whose conversion failed is excluded: torch's own reason, or ''."""
    import torch

    copied = copy.deepcopy((module, tuple(args), dict(kwargs)))
    try:
        torch.export.export(*copied, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        return f"torch.export refuses: {first_lines(error)}"
    return "data-dependent shape" if any(mark in text for mark in DATA) else ""
