"""PyTorch's database of higher-order operators."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.coverage.calls import check
from benchmarks.coverage.common import Case, first_lines

TITLE = "hop_db"
INTRO = """
PyTorch's own database of higher-order operators, `torch.testing._internal.hop_db`: control flow,
subgraphs, operators that write to their arguments, flex_attention. Each sample in float32 is a
module whose leading tensors are inputs, and whose other arguments (functions, masks) are closed
over. The one custom operator among them, which writes to both its arguments, has a rule registered
here, as its user would. Excluded is what torch.export refuses, or does not run on a CPU.
"""
TIMEOUT = 120.0
TARGET = 1.0


@functools.cache
def _infos() -> dict[str, Any]:
    from torch.testing._internal.hop_db import hop_db

    import jaxinfer as ji

    @ji.register("testlib.mutating_custom_op.default", replace=True)
    def mutating_custom_op(x: Any, z: Any) -> tuple[Any, ...]:
        x, z = x + 5, z + 5
        return x, z, x + z, x, z  # three outputs, and the new values of x and z

    return {f"{info.name}.{info.variant_test_name}": info for info in hop_db}


def names() -> list[str]:
    """Return the operators, ``name.variant``."""
    return list(_infos())


def run(name: str) -> list[Case]:
    """Convert an operator at each of its samples."""
    import torch

    info = _infos()[name]
    torch.manual_seed(0)
    try:
        samples = list(info.sample_inputs("cpu", torch.float32, requires_grad=False))
    except Exception as error:
        return [Case(name, "excluded", f"torch fails: {first_lines(error)}")]
    return [_check(f"{name}[{index}]", info, sample) for index, sample in enumerate(samples)]


def _check(name: str, info: Any, sample: Any) -> Case:
    import torch
    from torch.utils import _pytree as pytree

    class Operator(torch.nn.Module):
        def forward(self, *tensors: Any) -> Any:
            return info.op(*tensors, *rest, **sample.kwargs)

    values = (sample.input, *sample.args)
    leaves = [pytree.tree_leaves(value) for value in values]
    inputs = [all(isinstance(x, torch.Tensor) for x in each) for each in leaves]
    count = inputs.index(False) if False in inputs else len(values)
    rest = values[count:]
    return check(name, Operator(), values[:count])
