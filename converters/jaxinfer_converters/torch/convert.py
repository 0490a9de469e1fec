"""from_torch: a module or an exported program becomes a Model.

Order of work: export, decompose, capture; pre-flight (operators without a rule, shapes that
depend on data); an abstract run of the whole function; and only then the weights.
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
from jaxinfer.core import dtypes
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.errors import ConversionError
from jaxinfer.core.frontend import Progress
from jaxinfer.core.model import Model
from jaxinfer.io.checkpoint import Checkpoint, open_checkpoint
from jaxinfer_converters.graph import Aval
from jaxinfer_converters.preflight import missing_rules
from jaxinfer_converters.program import GraphProgram
from jaxinfer_converters.torch.arrange import arrange
from jaxinfer_converters.torch.capture import Captured, capture
from jaxinfer_converters.torch.effects import refuse_lost, watched
from jaxinfer_converters.torch.export import decompose, export
from jaxinfer_converters.torch.functional import as_it_stands
from jaxinfer_converters.torch.gradients import gradient_notes, inline_regions
from jaxinfer_converters.torch.quantized import refuse_quantized
from jaxinfer_converters.torch.readers import READERS
from jaxinfer_converters.torch.weights import State, collect, tensors_of, tied_names


def from_torch(
    module: torch.nn.Module | ExportedProgram,
    example_args: Sequence[Any] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    weights: Any = None,
    layout: str = "NCHW",
    scan_layers: bool = False,
    x64: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Convert a PyTorch module to a pure function and its parameters.

    See ``jaxinfer.from_torch`` for the arguments, the errors and an example.
    """
    if x64:  # the same where 64-bit types are on, and the program remembers it
        with x64_scope():
            model = from_torch(
                module,
                example_args,
                example_kwargs,
                dynamic_shapes,
                weights=weights,
                layout=layout,
                scan_layers=scan_layers,
                progress=progress,
            )
        assert isinstance(model.program, GraphProgram)
        return model.replace(program=dataclasses.replace(model.program, x64=True))
    with warnings.catch_warnings():
        # torch 2.13's run_decompositions copies tree specs through a deprecated check
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        started = time.perf_counter()
        if isinstance(module, ExportedProgram):
            if example_args or example_kwargs or dynamic_shapes is not None:
                raise ConversionError(
                    "an ExportedProgram has its example inputs and dynamic shapes already; "
                    "pass it alone"
                )
            program, owner, forward, effects = inline_regions(module), None, None, []
        else:
            if not isinstance(module, torch.nn.Module):
                raise TypeError(
                    f"from_torch takes a torch.nn.Module or ExportedProgram, got "
                    f"{type(module).__name__}; for a JAX function use jaxinfer.from_function"
                )
            args = example_args if isinstance(example_args, (tuple, list)) else (example_args,)
            refuse_quantized(module)
            with watched(module) as effects:
                program = export(module, args, example_kwargs, dynamic_shapes)
            owner, forward = module, module.forward
        captured = _captured(program, forward)
        refuse_lost(program, captured.graph)
    missing_rules(captured.graph)
    tensors = tensors_of(program, owner)
    tied = tied_names(tensors)
    captured = arrange(
        captured, layout=layout, scan_layers=scan_layers, tied={*tied, *tied.values()}
    )
    rehearse(captured)
    seconds = time.perf_counter() - started
    checkpoint = _checkpoint(weights)
    state = collect(captured, tensors, checkpoint, progress=progress)
    notes = gradient_notes(program, owner) | ({"effects": effects} if effects else {})
    return _model(captured, state, module, seconds, notes)


def _captured(program: ExportedProgram, forward: Any) -> Captured:
    """Read a program, decomposed first if it needs that."""
    writes = as_it_stands(program)
    if writes is not None:
        return capture(program, forward, writes)
    return capture(decompose(program), forward)


def _checkpoint(weights: Any) -> Checkpoint | None:
    if weights is None or isinstance(weights, Checkpoint):
        return weights
    return open_checkpoint(weights, readers=READERS)


def _model(
    captured: Captured, state: State, source: Any, seconds: float, notes: Mapping[str, Any]
) -> Model:
    program = GraphProgram(state.graph, captured.signature, captured.outputs, state.constants)
    provenance = {
        "source": f"{type(source).__module__}.{type(source).__qualname__}",
        "versions": {"jaxinfer": __version__, "torch": torch.__version__, "jax": jax.__version__},
        "training": bool(getattr(source, "training", False)),
        "capture_seconds": round(seconds, 3),
        **captured.notes,
        **state.notes,
        **notes,
    }
    if narrowed := [*_narrowed(captured), *state.notes.get("narrowed", ())]:
        provenance["narrowed"] = narrowed
    return Model(program, state.params, provenance=provenance)


def _narrowed(captured: Captured) -> list[str]:
    """Return the 64-bit float dtypes of the model that are computed in 32 bits, with counts.

    Integers are not named: nearly every model has int64 indices, and they are range-checked.
    """
    counts: dict[str, int] = {}
    for node in captured.graph.walk():
        for aval in node.avals:
            if aval is not None and aval.dtype in ("float64", "complex128"):
                counts[aval.dtype] = counts.get(aval.dtype, 0) + 1
    return [
        f"{count} values of {name} are computed in {dtypes.canonical(name).name} (x64 is off)"
        for name, count in counts.items()
        if dtypes.canonical(name).name != name
    ]


def rehearse(captured: Captured) -> None:
    """Trace the function on shapes alone, so that a rule that fails does so before any weight.

    Symbolic sizes get a value within their range.
    """
    sizes = {
        name: _some_size(low, high) for name, (low, high) in captured.signature.symbols.items()
    }
    program = GraphProgram(
        dataclasses.replace(
            captured.graph,
            inputs=tuple(
                dataclasses.replace(i, kind="buffer") if i.kind == "constant" else i
                for i in captured.graph.inputs
            ),
        ),
        captured.signature,
        captured.outputs,
    )
    params = {name: _struct(aval, sizes) for name, aval in program.param_specs.items()}
    leaves = [
        _struct(Aval(leaf.shape, leaf.dtype), sizes) if leaf.is_array else leaf.value
        for leaf in captured.signature.leaves
    ]
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]

    def run(params: Any, arrays: Any, key: Any) -> Any:
        filled = iter(arrays)
        return program.run(
            params,
            [next(filled) if isinstance(x, jax.ShapeDtypeStruct) else x for x in leaves],
            key if program.random else None,
        )

    jax.eval_shape(run, params, arrays, jax.eval_shape(lambda: jax.random.key(0)))


def _some_size(low: int, high: int | None) -> int:
    """Return a size away from 0 and 1 where the range allows."""
    size = max(low, 4)
    return size if high is None else min(size, high)


def _struct(aval: Aval, sizes: Mapping[str, int]) -> jax.ShapeDtypeStruct:
    from jaxinfer.core.symbols import evaluate

    shape = [evaluate(dim, sizes) for dim in aval.shape]
    if any(dim is None for dim in shape):
        raise ConversionError(f"a size of {aval} is an expression that jaxinfer cannot evaluate")
    return jax.ShapeDtypeStruct(
        tuple(d for d in shape if d is not None), dtypes.canonical(aval.dtype)
    )
