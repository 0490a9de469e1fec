"""Where torch would not differentiate: ``no_grad`` regions of an exported graph.

An export with gradients enabled wraps each ``no_grad`` region in a higher-order operator.
``inline_regions`` puts its operators back in line, with their own source lines, and a
``detach`` on what leaves the region; the rule of ``detach`` is ``stop_gradient``. A tensor that the
region changes in place keeps its history, as in torch; its gradient is that of the new value.

``GradMode`` finds what an export cannot tell: ``autograd.Function.forward`` runs with gradients
disabled from C++, so that a ``no_grad`` region in it seems never to end.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx import Node as FxNode
from torch.overrides import TorchFunctionMode

from jaxinfer.core.errors import ConversionError

WITHOUT_GRADIENTS = "exported without gradients"
"""Key of the graph module's ``meta``: why ``no_grad`` regions could not be seen, or ''."""

_REGION = "wrap_with_set_grad_enabled"
_DATA = torch.Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue]
_TRANSFORMS = ("_unwrap_for_grad", "_make_dual", "_unpack_dual")
TRANSFORM_ADVICE = (
    "torch.export does not capture torch.func.grad, jvp and their kind inside a forward (it takes "
    "what is differentiated for a constant). Convert the function inside as a module of its own, "
    "and differentiate that with jax.grad or jax.jvp; torch.vmap and functional_call convert."
)


class GradMode(TorchFunctionMode):
    """Follow the grad mode that a trace sees; ``lost`` says that it was not the real one.

    ``x.data``, which torch.export cannot trace, is read as ``x.detach()``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traced = torch.is_grad_enabled()
        self.lost = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if func is torch._C._set_grad_enabled:
            self.lost |= torch.is_grad_enabled() != self.traced
            self.traced = bool(args[0])
        if func == _DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def inline_regions(program: ExportedProgram, *, own: bool = False) -> ExportedProgram:
    """Return a program without ``no_grad`` regions: their results are detached instead.

    Args:
      own: the program may be changed; else one with regions is copied first (not its weights).

    Raises:
      ConversionError: the program holds a ``torch.func`` transform, which is not captured.
    """
    for node in _nodes(program):
        if getattr(node.target, "__name__", "") in _TRANSFORMS:
            raise ConversionError(TRANSFORM_ADVICE)
    if not has_regions(program):
        return program
    if not own:
        program = _copied(program)
    renamed: dict[str, str] = {}
    _inline(program.graph_module, renamed)
    for old, new in renamed.items():
        program.graph_signature.replace_all_uses(old, new)
    program.graph_module.recompile()
    return program


def gradient_notes(program: ExportedProgram, module: torch.nn.Module | None) -> dict[str, Any]:
    """Return what a model's provenance says about gradients: frozen parameters, lost regions."""
    notes: dict[str, Any] = {}
    if why := program.graph_module.meta.get(WITHOUT_GRADIENTS):
        notes["no_grad"] = f"not carried over: exported without gradients ({why})"
    parameters = [] if module is None else list(module.named_parameters())
    frozen = [name for name, parameter in parameters if not parameter.requires_grad]
    if frozen and len(frozen) < len(parameters):
        notes["frozen"] = frozen
    return notes


def has_regions(program: ExportedProgram) -> bool:
    """Return whether a program has regions of another grad mode."""
    return any(map(_is_region, _nodes(program)))


def _nodes(program: ExportedProgram) -> list[FxNode]:
    parts = [part for part in program.graph_module.modules() if isinstance(part, GraphModule)]
    return [node for part in parts for node in part.graph.nodes]


def _is_region(node: FxNode) -> bool:
    return isinstance(node.target, torch._ops.HigherOrderOperator) and (
        node.target.name() == _REGION
    )


def _copied(program: ExportedProgram) -> ExportedProgram:
    module = copy.deepcopy(program.graph_module)
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _inline(module: GraphModule, renamed: dict[str, str]) -> None:
    """Inline the regions of a module and of its branches and bodies, innermost first."""
    for child in module.children():
        if isinstance(child, GraphModule):
            _inline(child, {})
    for node in list(module.graph.nodes):
        if _is_region(node):
            for user, value in zip(*_spliced(module, node), strict=True):
                user.replace_all_uses_with(value)
                module.graph.erase_node(user)
                renamed[user.name] = value.name
            body = node.args[1]
            assert isinstance(body, FxNode)
            module.graph.erase_node(node)
            module.graph.erase_node(body)
    module.delete_all_unused_submodules()


def _spliced(module: GraphModule, region: FxNode) -> tuple[list[FxNode], list[FxNode]]:
    """Copy a region's operators before it; returns its ``getitem`` users and their values."""
    enabled, body_node, *operands = region.args
    assert isinstance(body_node, FxNode)
    body = module.get_submodule(str(body_node.target))
    assert isinstance(body, GraphModule)
    given = iter(operands)
    values: dict[FxNode, Any] = {}
    results: Any = ()
    with module.graph.inserting_before(region):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(given)
            elif inner.op == "output":
                results = inner.args[0]
            elif inner.op == "get_attr":
                name = f"{body_node.target}_{inner.target}"
                setattr(module, name, getattr(body, str(inner.target)))
                values[inner] = module.graph.get_attr(name)
                values[inner].meta = dict(inner.meta)
            else:
                values[inner] = module.graph.node_copy(inner, values.__getitem__)
        users = list(region.users)
        wanted = [results[int(str(user.args[1]))] for user in users]
        return users, [
            values[inner] if enabled or _keeps(inner, values) else _detached(module, values[inner])
            for inner in wanted
        ]


def _keeps(inner: FxNode, values: Mapping[FxNode, Any]) -> bool:
    """Whether a region's result has no gradient anyway, or a history from outside it."""
    value = inner.meta.get("val")
    if isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex()):
        return True
    while isinstance(inner.target, torch._ops.OpOverload):
        arguments = inner.target._schema.arguments
        written = arguments[0].alias_info if arguments else None
        if written is None or not written.is_write:
            return False
        (inner, *_) = inner.args  # pyright: ignore[reportAssignmentType]
    if inner.op != "placeholder":
        return False
    outer = values[inner]
    return outer.op != "placeholder" or outer.meta["val"].requires_grad


def _detached(module: GraphModule, value: FxNode) -> FxNode:
    node = module.graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta = dict(value.meta)
    return node
