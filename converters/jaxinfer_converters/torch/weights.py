"""State of an exported program -> ``params`` and constants, leaf by leaf.

Values come from the module itself, or from a checkpoint: then torch holds none of them. Tied
parameters (one storage, several names) are one leaf under the name that the module lists
first, or that the checkpoint has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.export import ExportedProgram

from jaxinfer.core import dtypes
from jaxinfer.core.arrays import aligned, from_torch_tensor, hand_over, owned
from jaxinfer.core.errors import ConversionError, listing
from jaxinfer.core.frontend import Progress
from jaxinfer.io.checkpoint import Checkpoint, Report, match, nonfinite
from jaxinfer_converters.graph import Aval, Graph, Input, refs
from jaxinfer_converters.torch.capture import Captured
from jaxinfer_converters.torch.export import is_placeholder

INLINE_LIMIT = 1 << 20
"""Bytes up to which a tensor that is not in the state_dict is a constant of the function."""


@dataclasses.dataclass(frozen=True)
class State:
    """The tensors of a converted model.

    Attributes:
      params: flat dict by state_dict name.
      constants: small tensors that are not in the state_dict, by name.
      graph: the graph, with tied names pointing to one leaf and constants marked.
      notes: what was tied, left out or cast, for the model's provenance.
    """

    params: dict[str, Any]
    constants: dict[str, np.ndarray]
    graph: Graph
    notes: dict[str, Any]


def tensors_of(program: ExportedProgram, module: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    """Return every named tensor that the program or the module holds (maybe without values)."""
    found: dict[str, Any] = dict(program.constants)
    found |= program.state_dict
    if module is not None:
        found |= dict(module.named_parameters(remove_duplicate=False))
        found |= dict(module.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def tied_names(
    tensors: Mapping[str, torch.Tensor], prefer: Callable[[str], bool] = lambda name: True
) -> dict[str, str]:
    """Return ``{alias: canonical}`` for names of one and the same tensor.

    Two names are one tensor if they are the same object, or share storage, offset, shape and
    strides. The canonical name is the first that ``prefer`` accepts, else the first.
    """
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(identity(tensor), []).append(name)
    tied = {}
    for names in groups.values():
        canonical = next((name for name in names if prefer(name)), names[0])
        tied |= {name: canonical for name in names if name != canonical}
    return tied


def identity(tensor: torch.Tensor) -> Any:
    """Return what two names of one tensor have in common: its object, or its storage and view."""
    if is_placeholder(tensor) or not tensor.numel() or tensor.layout != torch.strided:
        return id(tensor)
    view = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return tensor.untyped_storage().data_ptr(), view


def collect(
    captured: Captured,
    tensors: Mapping[str, torch.Tensor],
    checkpoint: Checkpoint | None,
    *,
    progress: Progress | None = None,
    made: dict[Any, Any] | None = None,
) -> State:
    """Read every tensor that the graph needs.

    Args:
      captured: the program.
      tensors: tensors by name; placeholders (meta, fake) need the checkpoint.
      checkpoint: where parameters and persistent buffers come from, if given.
      progress: called as ``progress(name, done, total)``.
      made: leaves by what they were made of; those in it are shared, and others are added
        (several components of one model).

    Raises:
      CheckpointError: missing, extra or wrong-shaped keys, all of them.
      ConversionError: tensors without values, integers that do not fit; all of them.
    """
    read = {name for node in captured.graph.nodes for name in refs((node.args, node.kwargs))}
    read |= {r.value.name for r in captured.graph.results if hasattr(r.value, "name")}
    homes = {
        part: _Home(item, place if item.parts else None)
        for item in captured.graph.inputs
        if item.kind != "input"
        for place, part in enumerate(item.sources)
    }
    tied = tied_names(
        {name: t for name, t in tensors.items() if captured.state.get(name) == "parameter"},
        prefer=(lambda name: name in checkpoint) if checkpoint is not None else lambda name: True,
    )
    unread = [
        name
        for name, kind in captured.state.items()
        if kind != "parameter" and homes[name].item.name not in read
    ]
    wanted = [n for n in captured.state if n not in unread and n not in tied]
    notes: dict[str, Any] = {}
    if tied:
        notes["tied"] = tied
    if unread:
        notes["unread_buffers"] = unread
    stored: set[str] = set()
    report = Report()
    if checkpoint is not None:
        stored = {
            name
            for name in wanted
            if captured.state[name] == "parameter" or name in captured.persistent
        }
        specs = {name: _spec(homes[name].item.source_aval()) for name in stored}
        also = {*tied, *unread, *(n for n in tensors if n not in captured.state)}
        extra_ok = [name for name in checkpoint if name in also]
        report = match(checkpoint, specs, allow_unread=extra_ok)
    params: dict[str, Any] = {}
    constants: dict[str, np.ndarray] = {}
    stacks: dict[str, tuple[np.ndarray, set[str]]] = {}
    problems: list[str] = []
    ends: list[str] = []
    for done, name in enumerate(wanted):
        if progress is not None:
            progress(name, done, len(wanted))
        source = checkpoint if name in stored else None
        item, place = homes[name]
        key = (identity(tensors[name]), item.perm) if name in tensors and place is None else None
        if made is not None and key in made:
            params[name] = made[key]
            continue
        free = captured.state[name] != "parameter" and name not in captured.persistent
        aval = item.source_aval()
        value = _read(name, source, tensors, aval, report, problems, ends if free else None)
        if value is None:
            continue
        small = value.nbytes <= INLINE_LIMIT
        if item.perm:
            value = value.transpose(item.perm)
        if place is not None:
            params.setdefault(item.target)  # in the order of the first part
            shape = (len(item.parts), *value.shape)
            stack, left = stacks.get(item.target) or (aligned(shape, value.dtype), {*item.parts})
            stack[place] = value
            left.discard(name)
            stacks[item.target] = stack, left
            if not left:
                params[item.target] = hand_over(stacks.pop(item.target)[0])
            del stack
        elif free and small:
            constants[name] = np.array(value, order="C")
        else:
            params[name] = owned(value)  # torch may go on writing to its own
            if made is not None and key is not None:
                made[key] = params[name]
        del value
        if source is not None:
            source.release(name)
    if ends:
        notes["narrowed"] = ends
    if report.casts:
        notes["cast"] = [list(record) for record in report.casts]
    if report.warnings:
        notes["nonfinite"] = report.warnings
    if problems:
        raise ConversionError(listing("tensors that cannot be converted:", problems))
    return State(params, constants, _point(captured.graph, tied, constants, set(unread)), notes)


class _Home(NamedTuple):
    """The graph input that a tensor of the checkpoint goes to, and its place in a stack."""

    item: Input
    place: int | None


def _spec(aval: Aval | None) -> tuple[tuple[int, ...], str]:
    assert aval is not None
    return tuple(int(d) for d in aval.shape), aval.dtype


def _read(
    name: str,
    checkpoint: Checkpoint | None,
    tensors: Mapping[str, torch.Tensor],
    aval: Aval | None,
    report: Report,
    problems: list[str],
    ends: list[str] | None,
) -> np.ndarray | None:
    """Read one tensor; ``ends`` (constants) lists those whose int64 ends became int32's."""
    if checkpoint is not None:
        assert aval is not None
        array = checkpoint.read(name, aval.dtype, report)
    else:
        tensor = tensors.get(name)
        if tensor is None or is_placeholder(tensor):
            problems.append(
                f"{name}: has no values (it is on the meta device, or fake) and is not in a "
                "checkpoint; pass weights=, or build this tensor on the CPU"
            )
            return None
        array = from_torch_tensor(tensor)
        if odd := nonfinite(name, array):
            report.warnings.append(odd)
    if ends is not None and (met := dtypes.meet_ends(array)) is not array:
        ends.append(f"{name}: the ends of int64 stand for the ends of int32 (x64 is off)")
        array = met
    try:
        return dtypes.narrow(array, name)
    except OverflowError as error:
        problems.append(str(error))
        return None


def _point(
    graph: Graph, tied: Mapping[str, str], constants: Mapping[str, Any], unread: set[str]
) -> Graph:
    """Point tied inputs to their one leaf, mark constants, and drop what nothing reads."""
    inputs = []
    for item in graph.inputs:
        if item.kind != "input" and item.target in unread:
            continue
        if item.kind != "input":
            kind = "constant" if item.target in constants else item.kind
            kind = "buffer" if kind == "constant" and item.target not in constants else kind
            item = dataclasses.replace(item, target=tied.get(item.target, item.target), kind=kind)
        inputs.append(item)
    return dataclasses.replace(graph, inputs=tuple(inputs))
