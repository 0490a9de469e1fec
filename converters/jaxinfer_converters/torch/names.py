"""What torch calls its operators, dtypes, modules and sizes, in this package's words."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from jaxinfer.core.dtypes import NAMES
from jaxinfer.core.errors import ConversionError


def op_name(target: Any) -> str:
    """Return the operator's name: overload name, ``higher_order.x``, or ``operator.x``."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    module = getattr(target, "__module__", "") or ""
    module = {"_operator": "operator"}.get(module, module.split(".")[0])
    return f"{module}.{target.__name__}"


def functional_name(target: Any) -> str:
    """Return the name of an in-place operator's functional form.

    >>> functional_name(torch.ops.aten.add_.Tensor)
    'aten.add.Tensor'
    """
    namespace, name, overload = op_name(target).split(".")
    return f"{namespace}.{name.removesuffix('_')}.{overload}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a torch dtype, as ``jaxinfer.core.dtypes`` spells it.

    Raises:
      ConversionError: quantized and complex32 dtypes, which JAX does not have.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in NAMES:
        raise ConversionError(f"dtype {name} does not exist in JAX; cast it in the module first")
    return name


def module_path(node: Node) -> str:
    """Return the path of the innermost module a node came from; empty for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    path = re.sub(r"^L\['self'\]\.?|^L__self__\.?", "", str(path))
    return re.sub(r"\._modules\['([^']+)'\]", r".\1", path).split("@")[0]


def declared_names(program: ExportedProgram) -> dict[str, str]:
    """Return the user's ``Dim`` name of each symbol, as export recorded it."""
    names: dict[str, str] = {}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder":
            break
        if not isinstance(value, torch.Tensor):
            continue
        for size in value.shape:
            if isinstance(size, int):
                continue
            symbol = str(size.node.expr)
            env = size.node.shape_env
            for source in getattr(env, "var_to_sources", {}).get(size.node.expr, ()):
                name = getattr(env, "source_name_to_debug_name", {}).get(_source_name(source))
                if name and name.isidentifier() and not name.startswith("_"):
                    names[symbol] = name
    return names


def _source_name(source: Any) -> str:
    name = source.name
    return str(name() if callable(name) else name)
