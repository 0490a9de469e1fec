"""torch.export, one decomposition pass, and errors that say what to do.

``export`` runs non-strict; ``decompose`` runs ``run_decompositions`` once with a table from
which every operator that has a lowering rule is removed: what the rules know stays whole
(attention, norms, convolutions, LSTM), the rest is taken apart by torch's own decompositions.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._decomp import decomposition_table as python_decompositions
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from jaxinfer.core.errors import ConversionError, listing
from jaxinfer.core.ops import OPS
from jaxinfer_converters.torch.diagnose import caused_by, data_dependence, fixed_sizes, quiet
from jaxinfer_converters.torch.gradients import (
    TRANSFORM_ADVICE,
    WITHOUT_GRADIENTS,
    GradMode,
    has_regions,
    inline_regions,
)

FIXED_SIZE = "The module fixes a size that dynamic_shapes declares dynamic"
NUMPY_ADVICE = (
    "What numpy computes cannot be captured: write it with torch, or as a custom operator "
    "(torch.library.custom_op) with a rule (jaxinfer.register)."
)
DATA_DEPENDENT_ADVICE = (
    "A jitted JAX function has static shapes and no Python branch on values. Rewrite the line "
    "with torch.where or torch.cond (for a branch), or with masks and padding (for a shape)."
)


def _apart(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Clone tensors that are passed twice: torch.export takes both inputs for one."""
    seen: set[int] = set()

    def apart(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in seen:
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        seen.add(id(leaf))
        return leaf

    return pytree.tree_map(apart, (args, kwargs))


def export(
    module: torch.nn.Module,
    args: Any,
    kwargs: Any,
    dynamic_shapes: Any,
) -> ExportedProgram:
    """Export a module, non-strict, as it stands (train or eval).

    Gradients are enabled, so that ``no_grad`` regions are seen (``gradients.inline_regions``).
    Where the module does not export so (``.data``, leaves changed in place), they are not.

    Args:
      args, kwargs: example inputs.
      dynamic_shapes: as torch.export's, where a string may stand for a ``Dim`` of that name;
        ``"batch"``-like string alone: that name for axis 0 of every tensor; ``"auto"``: every
        axis of every tensor as dynamic as the module allows; None: static.

    Raises:
      ConversionError: the export fails: which line or layer, and what to do.
    """
    args, kwargs = _apart(tuple(args), dict(kwargs or {}))
    dims: dict[str, Any] = {}
    if isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = _with_static_rest(module, args, kwargs, dynamic_shapes)
    why_not = ""  # why gradients are off
    for _ in range(5):  # torch names one round of ranges at a time
        shapes = dynamic_spec(dynamic_shapes, args, kwargs, dims)
        try:
            mode = GradMode()
            with _weights_on_cpu(module), torch.set_grad_enabled(not why_not), quiet(), mode:
                program = torch.export.export(
                    module, args, kwargs, dynamic_shapes=shapes, strict=False
                )
            if not why_not and mode.lost and has_regions(program):
                why_not = "an autograd.Function changes the grad mode in its forward"
                continue
            program.graph_module.meta[WITHOUT_GRADIENTS] = why_not
            return inline_regions(program, own=True)
        except Exception as error:
            ranges = suggested_ranges(str(error), dims)
            if not ranges:
                if why_not or _depends_on_data(error):
                    raise _explained(module, args, kwargs, shapes, error) from error
                why_not = f"{type(error).__name__}: {_first_line(error)}"
            dims |= ranges
    raise ConversionError(
        "torch.export keeps narrowing the dynamic sizes; give them as torch.export.Dim with "
        f"min and max instead of names ({', '.join(dims)})"
    )


def _with_static_rest(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """Let arguments that a dict of dynamic shapes does not name be static.

    Raises:
      ConversionError: the dict names an argument that is not given.
    """
    names = [*list(inspect.signature(module.forward).parameters)[: len(args)], *kwargs]
    unknown = [name for name in spec if name not in names]
    if unknown:
        raise ConversionError(
            f"dynamic_shapes names {', '.join(unknown)}, which the example inputs do not have "
            f"({', '.join(names)})"
        )
    return {name: spec.get(name) for name in names}


def suggested_ranges(text: str, dims: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dims that torch suggests for names that were given without a range.

    A name alone leaves the range to the module: where that has a longest sequence, or needs a
    multiple of 8, torch says so in its error, and the signature of the model then shows it.
    """
    found: dict[str, Any] = {}
    for name, inner, low, high in re.findall(
        r"^\s+(\w+) = Dim\('(\w+)'(?:, min=(\d+))?(?:, max=(\d+))?\)", text, re.MULTILINE
    ):
        bounds = {key: int(value) for key, value in (("min", low), ("max", high)) if value}
        if bounds or inner.startswith("_"):
            found[name] = Dim(inner, **bounds)
    for name, factor, inner in re.findall(r"^\s+(\w+) = (\d+)\*(_\w+)", text, re.MULTILINE):
        found[name] = int(factor) * found.get(inner, Dim(inner))
    return {name: dim for name, dim in found.items() if name in dims and dim != dims[name]}


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Functionalize and decompose everything that has no rule, in one pass."""
    try:
        with torch.no_grad():
            return program.run_decompositions(decomposition_table(_declined(program)))
    except Exception as error:
        raise ConversionError(
            f"torch could not decompose the exported program: {_first_line(error)}"
        ) from error


_WRITE_STATISTICS = ("aten.instance_norm.default", "aten.native_batch_norm.default")


def _declined(program: ExportedProgram) -> set[str]:
    """Return operators that a rule would take, but not as they are called here.

    ``instance_norm`` and ``native_batch_norm`` in training mode write to their running
    statistics without saying so in their schemas; taken apart, torch gives those back as new
    state.
    """
    return {
        str(node.target)
        for node in program.graph.nodes
        if str(node.target) in _WRITE_STATISTICS and node.args[3] is not None and node.args[5]
    }


def decomposition_table(declined: Collection[str] = ()) -> Any:
    """Return torch's decompositions without the operators that have a rule (and take it)."""
    table = torch.export.default_decompositions()
    for op, decomposition in python_decompositions.items():
        if isinstance(op, torch._ops.OpOverload) and op not in table:
            table[op] = decomposition
    for op in list(table):
        if str(op) in OPS and str(op) not in declined:
            table.pop(op)
    return table


def dynamic_spec(
    spec: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dims: dict[str, Any]
) -> Any:
    """Turn names into ``torch.export.Dim``, which are kept in ``dims``; see ``export``."""
    if spec is None:
        return None

    def dim(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        return Dim.AUTO if name == "auto" else dims.setdefault(name, Dim(name))

    if isinstance(spec, str):

        def axes(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0:
                return None
            return dict.fromkeys(range(leaf.ndim), Dim.AUTO) if spec == "auto" else {0: dim(spec)}

        whole = (pytree.tree_map(axes, args), pytree.tree_map(axes, kwargs))
        if not kwargs:
            return whole[0]
        return whole[1] if not args else {**_by_name(args, whole[0]), **whole[1]}

    def walk(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, (tuple, list)):
            return type(node)(walk(value) for value in node)
        return dim(node)

    return walk(spec)


def _by_name(args: Sequence[Any], specs: Sequence[Any]) -> dict[str, Any]:
    raise ConversionError(
        "a single name for dynamic_shapes needs all example inputs by position or all by name; "
        f"got {len(args)} by position and others by name: write the dict "
        "{'input': {0: 'batch'}, ...} instead"
    )


@contextlib.contextmanager
def _weights_on_cpu(module: torch.nn.Module) -> Iterator[None]:
    """Let meta and fake parameters stand as uninitialized CPU tensors while exporting.

    ``torch.empty`` reserves address space and touches no page, so no memory is used.
    """
    swapped: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    made: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is None or not is_placeholder(tensor):
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    if isinstance(tensor, torch.nn.Parameter):
                        empty = torch.nn.Parameter(empty, tensor.requires_grad)
                    made[id(tensor)] = empty
                swapped.append((table, name, tensor))
    for table, name, tensor in swapped:
        table[name] = made[id(tensor)]
    try:
        yield
    finally:
        for table, name, tensor in swapped:
            table[name] = tensor


def is_placeholder(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has no values: on the meta device, or fake."""
    return tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor)


def _explained(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: Any,
    error: Exception,
) -> ConversionError:
    """Turn a failure of torch.export into one that names the lines or the layer, and the cure."""
    if isinstance(error, ConversionError):
        return error

    def again() -> ExportedProgram:
        with _weights_on_cpu(module), torch.no_grad():
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)

    if _depends_on_data(error):
        return ConversionError(_data_text(module, again, error))
    if "Constraints violated" in str(error) or "pecializ" in str(error):
        return ConversionError(_sizes_text(again, error))
    if "functorch" in str(error):
        return ConversionError(f"torch.export failed: {_first_line(error)}\n{TRANSFORM_ADVICE}")
    if layer := failing_layer(module, args, kwargs):
        return ConversionError(layer)
    return ConversionError(
        f"torch.export failed: {type(error).__name__}: {_first_line(error)}\n"
        "The module must run on the example inputs; if it does, see "
        "torch.export.draft_export for a report."
    )


def _data_text(
    module: torch.nn.Module, again: Callable[[], ExportedProgram], error: Exception
) -> str:
    """Say which lines depend on values; all of them, if the weights have values to go on with."""
    state = (*module.parameters(), *module.buffers())
    lines = [] if any(map(is_placeholder, state)) else data_dependence(again)
    if not lines:
        line = caused_by(error).removeprefix(" at ")
        lines = [f"{line}: {_first_line(error)}".removeprefix(": ")]
    title = "the module's control flow or shapes depend on values:"
    return listing(title, lines, DATA_DEPENDENT_ADVICE)


def _sizes_text(again: Callable[[], ExportedProgram], error: Exception) -> str:
    """Say which constraint on which size comes from which line, and what torch suggests."""
    text = str(error)
    names = re.search(r"Constraints violated \(([^)]*)\)", text)
    title = f"torch.export refused dynamic_shapes{f' ({names[1]})' if names else ''}:"
    fixes = re.search(r"Suggested fixes:\n((?:\s+.*\n?)+?)(?:\n|$)", text)
    advice = (
        f"{FIXED_SIZE} (examples of size 0 or 1 are always fixed). Use example inputs of size 2 "
        "or more, give that axis a number, or pass dynamic_shapes='auto' to keep dynamic only "
        "what can be."
    )
    if fixes:
        suggested = "; ".join(line.strip() for line in fixes[1].splitlines() if line.strip())
        advice = f"torch suggests {suggested}.\n{advice}"
    return listing(title, fixed_sizes(again) or [_first_line(error)], advice)


def _depends_on_data(error: Exception) -> bool:
    return "data-dependent" in str(error) or "GuardOnDataDependent" in type(error).__name__


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__


def failing_layer(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Run the module on shapes only; return which layer fails and why, or ''.

    For Linear and convolutions, the features that it gets and wants are named.
    """
    stack: list[tuple[str, torch.nn.Module, tuple[Any, ...]]] = []
    handles = []
    for name, layer in module.named_modules():
        handles.append(layer.register_forward_pre_hook(
            lambda layer, inputs, name=name: stack.append((name, layer, inputs))
        ))  # fmt: skip
        handles.append(layer.register_forward_hook(lambda *_: stack.pop() and None))
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _weights_on_cpu(module), mode, torch.no_grad(), quiet():
            fake = pytree.tree_map_only(torch.Tensor, mode.from_tensor, (tuple(args), dict(kwargs)))
            module(*fake[0], **fake[1])
    except Exception as error:
        return _layer_text(stack[-1], error) if stack else ""
    finally:
        for handle in handles:
            handle.remove()
    return ""


def _layer_text(entry: tuple[str, torch.nn.Module, tuple[Any, ...]], error: Exception) -> str:
    name, layer, inputs = entry
    shapes = [list(x.shape) for x in inputs if isinstance(x, torch.Tensor)]
    title = f"layer {name or '(the module itself)'!r}"
    if isinstance(layer, torch.nn.Linear) and shapes:
        got, want = shapes[0][-1], layer.in_features
        if got != want:
            return (
                f"{title} ({layer}) gets {got:,} features and wants {want:,}: its input is "
                f"{shapes[0]}. Give it in_features={got}, or reduce the features before it "
                "(for example nn.AdaptiveAvgPool2d(1) before nn.Flatten)."
            )
    channels = getattr(layer, "in_channels", None)
    if channels is not None and shapes and len(shapes[0]) > 1:
        axis = -(len(getattr(layer, "kernel_size", ())) + 1)
        got = shapes[0][axis] if len(shapes[0]) >= -axis else None
        if got != channels:
            return (
                f"{title} ({layer}) gets {got} channels and wants {channels}: its input is "
                f"{shapes[0]}."
            )
    kind, fault = type(layer).__name__, f"{type(error).__name__}: {_first_line(error)}"
    text = f"{title} ({kind}) fails{caused_by(error)} on inputs of shape {shapes}: {fault}"
    return f"{text}\n{NUMPY_ADVICE}" if ".numpy()" in fault else text
