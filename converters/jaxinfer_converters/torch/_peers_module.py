"""The torch module of a source, with the weights of a model directory."""

from __future__ import annotations

import importlib
import pathlib
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from jaxinfer.core.errors import CheckpointError, ConversionError, InputError, MissingExtraError
from jaxinfer.core.frontend import Options
from jaxinfer.core.state_dict import to_state_dict
from jaxinfer.io.artefact import load
from jaxinfer.io.checkpoint import open_checkpoint
from jaxinfer_converters.torch.examples import to_torch
from jaxinfer_converters.torch.readers import READERS, refuse_code
from jaxinfer_converters.torch.sources import fill


def open_module(source: str, options: Mapping[str, Any]) -> torch.nn.Module:
    """Return the module of a source in evaluation mode: the forms that ``convert`` takes.

    Args:
      source: ``timm:NAME``, ``package.module:factory``, ``model.pt2`` or a checkpoint directory.
      options: ``weights``, ``class_name``, ``dtype`` and ``seed``, as for ``convert``.

    Raises:
      ConversionError, CheckpointError: there is no such source, or it cannot be read.
      MissingExtraError: it needs a package that is not installed.
    """
    if source.endswith(".pt2"):
        return _exported(pathlib.Path(source))
    if source.startswith("timm:"):
        module = _timm(source.removeprefix("timm:"), int(options.get("seed") or 0))
    elif pathlib.Path(source).is_dir() or source.endswith("/"):
        return _checkpoint(pathlib.Path(source), options).eval()
    else:
        module = _factory(source)
    if options.get("dtype"):
        module = module.to(getattr(torch, str(options["dtype"])))
    if options.get("weights"):
        fill(module, open_checkpoint(str(options["weights"]), readers=READERS))
    return module.eval()


def _exported(path: pathlib.Path) -> torch.nn.Module:
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    refuse_code(path)
    module = torch.export.load(path).module()
    # an exported program has one mode; exporters set it on what they get, and it would raise
    module.train = types.MethodType(lambda self, mode=True: self, module)  # pyright: ignore
    module.eval = types.MethodType(lambda self: self, module)  # pyright: ignore
    return module


def _timm(name: str, seed: int) -> torch.nn.Module:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"timm:{name} needs timm ({error}): pip install 'jaxinfer[timm]'"
        ) from error
    if name not in timm.list_models():
        raise ConversionError(f"timm has no architecture {name!r}")
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False)


def _factory(source: str) -> torch.nn.Module:
    module_name, _, attribute = source.partition(":")
    if not attribute:
        raise ConversionError(
            f"{source}: not a source of a torch module: a checkpoint directory, timm:NAME, "
            "package.module:factory or model.pt2"
        )
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        made: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            made = getattr(made, part)
    except ModuleNotFoundError as error:
        raise ConversionError(f"{source}: cannot import {error.name!r} from here") from error
    except AttributeError as error:
        raise ConversionError(f"{source}: {error}") from error
    made = made() if not isinstance(made, torch.nn.Module) else made
    module = made[0] if isinstance(made, tuple) and made else made
    if not isinstance(module, torch.nn.Module):
        raise ConversionError(f"{source}: required a torch.nn.Module, got {type(module).__name__}")
    return module


def _checkpoint(path: pathlib.Path, options: Mapping[str, Any]) -> torch.nn.Module:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory")
    from jaxinfer_converters.huggingface import _read_config

    raw = _read_config(path)  # refuses directories that name code
    try:
        import transformers

        from jaxinfer_converters.torch import huggingface
    except ImportError as error:
        raise MissingExtraError(
            f"{path} needs transformers ({error}): pip install 'jaxinfer[huggingface]'"
        ) from error
    config = transformers.AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    named = Options(class_name=options.get("class_name") or None)
    cls = huggingface._model_class(path, raw, config, named)
    checkpoint = open_checkpoint(str(path), readers=READERS)
    dtype = options.get("dtype")
    kind = getattr(torch, str(dtype)) if dtype else huggingface._float_dtype(config, checkpoint)
    return huggingface._load(cls, path, config, kind)[0]


def with_weights_of(module: torch.nn.Module, model_dir: str) -> tuple[torch.nn.Module, list[str]]:
    """Put the weights of a model directory into a module, and say where that was not possible.

    A tensor takes the directory's dtype as well. Buffers that the directory does not hold (what
    the model does not read) stay.
    """
    own = "the weights differ: the peer has those of its source"
    try:
        state = to_state_dict(load(model_dir, verify=False))
    except InputError as error:
        return module, [f"{own}, perhaps ({str(error).splitlines()[0]})"]
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    wrong = [name for name in parameters if name not in state]
    with torch.no_grad():
        for name, tensor in {**parameters, **buffers}.items():
            if name not in state:
                continue
            array = np.asarray(state[name])
            if tuple(array.shape) != tuple(tensor.shape):
                wrong.append(f"{name} ({list(array.shape)} for {list(tensor.shape)})")
                continue
            given = to_torch(array)
            if tensor.is_floating_point():
                tensor.data = given
            else:
                tensor.data = given.to(tensor.dtype)
    unknown = [name for name in state if name not in parameters and name not in buffers]
    if wrong or unknown:
        shown = ", ".join([*wrong, *unknown][:5])
        return module, [f"{own} in {len(wrong) + len(unknown)} places: {shown}"]
    return module, []
