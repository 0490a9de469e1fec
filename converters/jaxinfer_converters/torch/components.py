"""A component of a model (prefill, decode, encoder): an exported program as a Model.

Components of one model share leaves: a tensor that two of them read is read once, and has
the name that it has in the whole model.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import torch
from torch.export import ExportedProgram

from jaxinfer import __version__
from jaxinfer.core.errors import ConversionError
from jaxinfer.core.frontend import Progress
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.symbols import Dim
from jaxinfer.io.checkpoint import Checkpoint
from jaxinfer_converters.graph import Graph
from jaxinfer_converters.preflight import missing_rules
from jaxinfer_converters.program import GraphProgram
from jaxinfer_converters.torch.arrange import arrange
from jaxinfer_converters.torch.capture import capture
from jaxinfer_converters.torch.convert import rehearse
from jaxinfer_converters.torch.export import decompose
from jaxinfer_converters.torch.interface import fixed, without_copies, without_sizes
from jaxinfer_converters.torch.weights import collect, identity, tensors_of


@dataclasses.dataclass
class Shared:
    """What the components of one model have in common.

    Attributes:
      names: the whole model's name of each tensor, by ``identity``.
      leaves: parameters that were read, by what they were made of (``weights.collect``).
      checkpoint: where parameters come from instead of the module, if given.
    """

    names: dict[Any, str] = dataclasses.field(default_factory=dict)
    leaves: dict[Any, Any] = dataclasses.field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    @classmethod
    def of(cls, module: torch.nn.Module, checkpoint: Checkpoint | None = None) -> Shared:
        """Return the names of a whole model; a tied tensor has the first of its names."""
        names: dict[Any, str] = {}
        tables = (module.named_parameters(remove_duplicate=False), module.named_buffers())
        for table in tables:
            for name, tensor in table:
                names.setdefault(identity(tensor), name)
        return cls(names, checkpoint=checkpoint)


@dataclasses.dataclass(frozen=True)
class Component:
    """A converted component.

    Attributes:
      sizes: outputs of the original that are sizes, by their place, and which size each is;
        the Model does not return them.
    """

    model: Model
    sizes: Mapping[int, Dim]


def component(
    program: ExportedProgram,
    module: torch.nn.Module,
    shared: Shared,
    *,
    counters: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Component:
    """Convert one exported component.

    A state that is written in place and returned as well comes back once, as an output.

    Args:
      program: of ``module``.
      shared: what was read for other components; added to.
      counters: arguments to take into the graph, with the integers to put there, leaf by leaf
        (the empty cache of a prefill).

    Raises:
      MissingRulesError, ConversionError: as ``from_torch``.
    """
    started = time.perf_counter()
    with warnings.catch_warnings():
        # torch 2.13's run_decompositions copies tree specs through a deprecated check
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        captured = capture(decompose(program))
    missing_rules(captured.graph)
    captured, sizes = without_sizes(without_copies(captured))
    for argument, values in (counters or {}).items():
        captured = fixed(captured, argument, values)
    captured = arrange(captured, layout="keep")
    rehearse(captured)
    seconds = time.perf_counter() - started
    tensors = tensors_of(program, module)
    state = collect(captured, tensors, shared.checkpoint, progress=progress, made=shared.leaves)
    whole = {
        name: shared.names.get(identity(tensors[name]), name)
        for name in state.params
        if name in tensors
    }
    graph = _renamed(state.graph, whole)
    params = {whole.get(name, name): leaf for name, leaf in state.params.items()}
    made = GraphProgram(graph, captured.signature, captured.outputs, state.constants)
    provenance = {
        "source": f"{type(module).__module__}.{type(module).__qualname__}",
        "versions": {"jaxinfer": __version__, "torch": torch.__version__, "jax": jax.__version__},
        "training": bool(module.training),
        "capture_seconds": round(seconds, 3),
        **state.notes,
    }
    return Component(Model(made, params, provenance=provenance), sizes)


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    inputs = tuple(
        dataclasses.replace(item, target=names.get(item.target, item.target))
        if item.kind in ("parameter", "buffer")
        else item
        for item in graph.inputs
    )
    return dataclasses.replace(graph, inputs=inputs)


def joined(parts: Mapping[str, Model], settings: Mapping[str, Any]) -> Model:
    """Return one Model of several components over the union of their parameters.

    Raises:
      ConversionError: two components have different arrays under one name.
    """
    params: dict[str, Any] = {}
    for name, part in parts.items():
        for key, leaf in part.params.items():
            if params.setdefault(key, leaf) is not leaf:
                raise ConversionError(f"{key}: {name} reads another array than the rest under it")
    program = MultiProgram({name: part.program for name, part in parts.items()}, settings)
    first = next(iter(parts.values()))
    return Model(program, params, provenance=first.provenance)
