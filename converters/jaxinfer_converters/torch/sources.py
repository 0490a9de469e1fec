"""Sources for the command line: ``model.pt2``, ``timm:NAME``, ``package.module:factory``."""

from __future__ import annotations

import copy
import importlib
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from jaxinfer.core.errors import CheckpointError, ConversionError, MissingExtraError
from jaxinfer.core.frontend import Options, Progress, Source
from jaxinfer.core.model import Model
from jaxinfer.io.checkpoint import Checkpoint, match, open_checkpoint
from jaxinfer_converters.torch import examples
from jaxinfer_converters.torch.convert import from_torch
from jaxinfer_converters.torch.export import FIXED_SIZE
from jaxinfer_converters.torch.readers import READERS, refuse_code
from jaxinfer_converters.torch.weights import tied_names

_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


class TorchFrontEnd:
    """Modules by factory, timm models by name, and saved exported programs."""

    name = "torch"
    forms = (
        "model.pt2                      a program saved by torch.export.save",
        "timm:resnet50                  a timm architecture (with --weights, else random)",
        "package.module:factory         a function that returns a module, or (module, args), "
        "(module, args, kwargs[, dynamic_shapes])",
    )
    convert = staticmethod(from_torch)

    def convert_generative(self, *args: Any, **kwargs: Any) -> Model:
        """Convert a generative transformers model; see ``jaxinfer.from_generative``."""
        try:
            from jaxinfer_converters.torch.generative import from_generative
        except ImportError as error:
            raise MissingExtraError(
                "from_generative needs transformers with its exporters (transformers.exporters): "
                f"pip install 'jaxinfer[huggingface]', torch 2.11 or newer ({error})"
            ) from error

        return from_generative(*args, **kwargs)

    def accepts(self, source: str) -> bool:
        """Return whether the source has one of the three forms."""
        return source.endswith(".pt2") or bool(_FACTORY.match(source))

    def open(self, source: str, options: Options) -> Source:
        """Open a source; see ``jaxinfer.core.frontend.Source``."""
        if source.endswith(".pt2"):
            return _open_pt2(source, options)
        if source.startswith("timm:"):
            return _open_timm(source.removeprefix("timm:"), options)
        return _open_factory(source, options)


FRONT_END = TorchFrontEnd()


def module_source(
    label: str,
    module: torch.nn.Module,
    draw: Any,
    dynamic: Any,
    options: Options,
    *,
    weights: Any = None,
    loaded: Any = None,
    notes: Sequence[str] = (),
    fixed_kwargs: Mapping[str, Any] | None = None,
) -> Source:
    """Make a Source of a module.

    Args:
      draw: ``draw(seed) -> (args, kwargs)`` of numpy arrays.
      dynamic: dynamic shapes as ``from_torch`` takes them, or None. If the module fixes one
        of these sizes the conversion falls back to ``"auto"``, and says so in a note.
      weights: a checkpoint for the conversion to read (``module`` may be without values).
      loaded: ``loaded() -> module`` with values, for the reference (default: the module).
      fixed_kwargs: arguments that are no arrays, passed in every call.
    """
    fixed = dict(fixed_kwargs or {})
    messages = list(notes)
    reference_module: list[torch.nn.Module] = []

    def convert(progress: Progress | None) -> Model:
        args, kwargs = examples.to_torch(draw(options.seed))
        kwargs = {**kwargs, **fixed}
        model = None
        for spec in [None] if options.dynamic == "none" else _less_and_less(dynamic):
            try:
                model = from_torch(
                    module,
                    args,
                    kwargs,
                    spec,
                    weights=weights,
                    x64=options.x64,
                    layout=options.layout,
                    scan_layers=options.scan_layers,
                    progress=progress,
                )
                break
            except ConversionError as error:
                if FIXED_SIZE not in str(error):
                    raise
                messages.append(
                    f"the module fixes a size that was to be dynamic ({spec}): "
                    f"{_shortly(error)}; converted with fewer dynamic sizes"
                )
        assert model is not None
        changes = {**model.provenance, "source": label, "notes": list(messages)}
        return model.replace(provenance=changes)

    def reference(
        args: Sequence[Any], kwargs: Mapping[str, Any], state: Sequence[str] = ()
    ) -> list[np.ndarray]:
        if not reference_module:
            reference_module.append(loaded() if loaded is not None else module)
        return _call(reference_module[0], args, {**kwargs, **fixed}, state)

    return Source(label, convert, draw, reference, tuple(messages))


def _shortly(error: ConversionError) -> str:
    """Return the title and the problems of an error on one line, without its advice."""
    title, *rest = str(error).splitlines()
    return " ".join([title, *(line.strip() for line in rest if line.startswith("  "))])[:400]


def _call(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], state: Sequence[str]
) -> list[np.ndarray]:
    """Call a module on numpy inputs; return its outputs, then the new values of ``state``.

    A module that changes its buffers is copied first, so that every call starts alike.
    """
    module = copy.deepcopy(module) if state else module
    given_args, given_kwargs = examples.to_torch(tuple(args)), examples.to_torch(dict(kwargs))
    with torch.no_grad():
        outputs = examples.flat_outputs(module(*given_args, **given_kwargs))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    inputs = examples.by_path(module, given_args, given_kwargs)
    return outputs + examples.flat_outputs([{**inputs, **buffers}[name] for name in state])


def _less_and_less(dynamic: Any) -> list[Any]:
    """Return dynamic shapes to try in order: as asked, axis 0 alone, what the module allows."""
    if not isinstance(dynamic, (Mapping, tuple)):
        return [dynamic] if dynamic is None else [dynamic, None]

    def first(axes: Any) -> Any:
        return {0: axes[0]} if isinstance(axes, Mapping) and 0 in axes else None

    if isinstance(dynamic, Mapping):
        batch: Any = {name: first(axes) for name, axes in dynamic.items()}
    else:
        batch = tuple(first(axes) for axes in dynamic)
    return [dynamic, *([batch] if batch != dynamic else []), "auto"]


def _open_factory(source: str, options: Options) -> Source:
    module_name, _, attribute = source.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's own files come first
    try:
        made: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            made = getattr(made, part)
    except ModuleNotFoundError as error:
        raise ConversionError(f"{source}: cannot import {error.name!r} from here") from error
    except AttributeError as error:
        raise ConversionError(f"{source}: {error}") from error
    made = made() if not isinstance(made, torch.nn.Module) else made
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 4 or not isinstance(parts[0], torch.nn.Module):
        raise ConversionError(
            f"{source}: required a torch.nn.Module, or (module, args[, kwargs[, dynamic_shapes]]),"
            f" got {type(made).__name__}"
        )
    four: tuple[Any, ...] = (*parts, *(None,) * (4 - len(parts)))
    module, args, kwargs, dynamic = four
    args = args if isinstance(args, (tuple, list)) or args is None else (args,)
    if options.inputs:
        texts, dynamic = examples.from_texts(options.inputs)
        draw = lambda seed: examples.draw(texts, seed)
        dynamic = _joined(dynamic)
    elif args is not None or kwargs is not None:
        example = (tuple(args or ()), dict(kwargs or {}))
        draw = lambda seed: examples.like(example, seed)
    else:
        raise ConversionError(
            f"{source}: give example inputs: --input 'float32[batch=2,3,224,224]' (one for each "
            "input), or let the factory return (module, args)"
        )
    module = _with_weights(module, options)
    label = f"{type(module).__name__} from {source}"
    return module_source(label, module, draw, dynamic, options)


def _joined(dynamic: tuple[Any, dict[str, Any]]) -> Any:
    args, kwargs = dynamic
    if not any(args) and not any(kwargs.values()):
        return None
    if args and kwargs:
        raise ConversionError("--input: give all inputs a name, or none")
    return kwargs or args


def _with_weights(module: torch.nn.Module, options: Options) -> torch.nn.Module:
    """Bring the module to ``--dtype``, and load ``--weights`` into it (strictly)."""
    if options.dtype:
        module = module.to(getattr(torch, options.dtype))
    if options.weights is not None:
        fill(module, open_checkpoint(options.weights, readers=READERS))
    return module


def fill(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint into a module, so that the reference has the weights too.

    Raises:
      CheckpointError: missing, unread and misshapen names, all of them.
    """
    state = module.state_dict(keep_vars=True)
    tied = tied_names(dict(state), prefer=lambda name: name in checkpoint)
    wanted = {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in state.items()
        if name not in tied or name in checkpoint
    }
    report = match(checkpoint, wanted)
    with torch.no_grad():
        for name, (_, dtype) in wanted.items():
            state[name].copy_(examples.to_torch(checkpoint.read(name, dtype, report)))


def _open_timm(name: str, options: Options) -> Source:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(f"timm:{name} needs timm: pip install 'jaxinfer[timm]'") from error
    except RuntimeError as error:  # a torchvision wheel that does not fit the installed torch
        raise MissingExtraError(
            f"timm does not import here: {error}. If it names torchvision operators, the "
            "installed torchvision was built for another torch: install a pair that fits"
        ) from error
    if name not in timm.list_models():
        near = timm.list_models(f"*{name}*")[:5]
        raise ConversionError(
            f"timm has no architecture {name!r}" + (f"; near: {', '.join(near)}" if near else "")
        )
    torch.manual_seed(options.seed)
    module = timm.create_model(name, pretrained=False).eval()
    notes = [] if options.weights else [
        f"random weights (seed {options.seed}): pass --weights for trained ones"
    ]  # fmt: skip
    module = _with_weights(module, options)
    size = module.default_cfg.get("input_size", (3, 224, 224))  # pyright: ignore
    dtype = options.dtype or "float32"
    texts = options.inputs or (f"{dtype}[batch=2,{','.join(map(str, size))}]",)
    inputs, dynamic = examples.from_texts(texts)
    draw = lambda seed: examples.draw(inputs, seed)
    return module_source(f"timm:{name}", module, draw, _joined(dynamic), options, notes=notes)


def _open_pt2(source: str, options: Options) -> Source:
    path = pathlib.Path(source)
    if not path.is_file():
        raise ConversionError(f"{source}: no such file")
    if options.inputs or options.class_name or options.dtype:
        raise ConversionError(
            f"{source}: an exported program has its inputs, class and dtype already; drop "
            "--input, --class and --dtype"
        )
    refuse_code(path)
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise CheckpointError(
            f"{source}: torch.export.load cannot read it ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200] if str(error) else ''})"
        ) from error
    if program.example_inputs is None:
        raise ConversionError(f"{source}: it was saved without example inputs")
    example = program.example_inputs
    label = f"ExportedProgram from {path.name}"

    def convert(progress: Progress | None) -> Model:
        model = from_torch(
            program,
            weights=options.weights,
            x64=options.x64,
            layout=options.layout,
            scan_layers=options.scan_layers,
            progress=progress,
        )
        return model.replace(provenance={**model.provenance, "source": label})

    def reference(
        args: Sequence[Any], kwargs: Mapping[str, Any], state: Sequence[str] = ()
    ) -> list[np.ndarray]:
        return _call(program.module(), args, kwargs, state)

    return Source(label, convert, lambda seed: examples.like(example, seed), reference)
