"""What a module does besides computing its result: seen while it is exported, and said.

A pure function prints nothing, seeds no generator and counts no calls. ``watched`` records
what forward did of that kind, for the model's provenance (``effects``); ``refuse_lost`` stops
at operators that return nothing, and that torch drops for it. Not seen: what forward does to
files, sockets and objects outside the module.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from jaxinfer.core.errors import ConversionError, listing
from jaxinfer_converters.graph import Graph
from jaxinfer_converters.torch.diagnose import source_line

_ASSIGNED = re.compile(r"The tensor attributes? (.*) (?:was|were) assigned during export")
_OF_TORCH = re.compile(r"\._flat_weights\[\d+\]$")  # how torch's LSTM holds its parameters
_OWN = frozenset(("aten", "prim", "prims", "profiler"))
"""Namespaces whose operators without a result are assertions and marks."""


@contextlib.contextmanager
def watched(module: torch.nn.Module) -> Iterator[list[str]]:
    """Give a list that holds, after the export within, what forward did besides computing.

    What it prints goes to stderr; torch's generator is set back to where it was.
    """
    effects: list[str] = []
    plain, drawn, state = _plain(module), _generators(), torch.random.get_rng_state()
    after: dict[str, Any] = {}  # at the end of forward: torch.export puts attributes back
    hook = module.register_forward_hook(lambda *_: after.update(_plain(module)))
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", _ASSIGNED.pattern)
        try:
            with contextlib.redirect_stdout(printed):
                yield effects
        finally:
            hook.remove()
            sys.stderr.write(printed.getvalue())
    for item in caught:
        if assigned := _ASSIGNED.match(str(item.message)):
            names = [name for name in assigned[1].split(", ") if not _OF_TORCH.search(name)]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            text = "assigned in forward, and not by the converted model"
            effects += [f"{', '.join(names[:5])}{more}: {text}"] if names else []
        else:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
    if printed.getvalue():
        effects.append("forward prints, and the converted model does not")
    if not torch.equal(state, torch.random.get_rng_state()):
        torch.random.set_rng_state(state)
        effects.append(
            "forward seeds torch's generator, or draws from it outside the graph; the converted "
            "model draws from rng_key alone"
        )
    effects += [
        f"forward draws from {name}: what it drew at conversion is fixed in the converted model "
        "(torch.rand would become draws from rng_key)"
        for name, before in drawn.items()
        if before != _generators()[name]
    ]
    effects += [
        f"forward changes self.{name} ({plain[name]!r} to {value!r}): the converted model computes "
        "with what it was at conversion"
        for name, value in after.items()
        if name in plain and plain[name] != value
    ]


def _plain(module: torch.nn.Module) -> dict[str, Any]:
    """Return the public attributes of all layers that are numbers or words, by path."""
    found: dict[str, Any] = {}
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            if not name.startswith("_") and isinstance(value, (bool, int, float, str)):
                found[f"{path}.{name}" if path else name] = value
    return found


def _generators() -> dict[str, Any]:
    """Return the states of Python's and numpy's global generators."""
    words: Any = np.random.get_state(legacy=False)
    numpy_state = (bytes(words["state"]["key"]), words["state"]["pos"], words["has_gauss"])
    return {"Python's random": random.getstate(), "numpy.random": numpy_state}


def refuse_lost(program: ExportedProgram, graph: Graph) -> None:
    """Raise if an operator that returns nothing is called in forward and not in the graph.

    Raises:
      ConversionError: each such operator and its line.
    """
    kept = {node.op for node in graph.walk()}
    lost: dict[str, None] = {}
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            op = node.target
            if not isinstance(op, torch._ops.OpOverload) or op.namespace in _OWN:
                continue
            if not op._schema.returns and not op._schema.is_mutable and str(op) not in kept:
                lost[f"{op}: {source_line(node)}".rstrip(": ")] = None
    if lost:
        raise ConversionError(
            listing(
                "operators that return nothing work by side effects, which torch.export drops:",
                list(lost),
                "Take the call out of forward, or let the operator return its input, use that, "
                "and register a rule for it (jax.debug.callback calls Python from a jitted "
                "function).",
            )
        )
