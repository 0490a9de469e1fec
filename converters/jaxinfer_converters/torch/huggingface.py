"""Checkpoint directories of transformers models: built without weights, streamed into params.

The module is built with its parameters on the meta device (buffers are computed for real), so
torch never holds the weights; they are read from safetensors leaf by leaf under their own
names. Where the checkpoint's names are not the module's (an older layout that transformers
renames on load), transformers loads it instead, and a note says so.
"""

from __future__ import annotations

import contextlib
import inspect
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from jaxinfer.core.errors import CheckpointError, ConversionError
from jaxinfer.core.frontend import Options, Source
from jaxinfer.io.checkpoint import Checkpoint, open_checkpoint
from jaxinfer_converters.torch.sources import module_source

Sizes = Mapping[str, Mapping[int, str]]


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules with parameters on the meta device and buffers on the CPU, with values."""
    original = torch.nn.Module.register_parameter

    def register(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        original(self, name, param)
        if param is not None and not param.is_meta:
            meta = torch.nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
            self._parameters[name] = meta

    torch.nn.Module.register_parameter = register  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = original


def open_checkpoint_directory(
    path: pathlib.Path, raw_config: Mapping[str, Any], options: Options
) -> Source:
    """Open a directory; reads names and shapes, no weights.

    Raises:
      CheckpointError: no usable weights, or a config that transformers does not know.
      ConversionError: a class without known example inputs.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}/config.json: {str(error).splitlines()[0]}") from error
    cls = _model_class(path, raw_config, config, options)
    weights = options.weights or str(path)
    checkpoint = open_checkpoint(weights)
    dtype = getattr(torch, options.dtype) if options.dtype else _float_dtype(config, checkpoint)
    with parameters_on_meta():
        module = cls(config).to(dtype).eval()
    notes: list[str] = []
    renamed = _under_own_names(checkpoint, module, cls)
    load = lambda: _load(cls, path, config, dtype)
    if renamed is None:
        module = load()
        notes.append(
            "the checkpoint's names are not the module's; transformers loaded and renamed it "
            "(torch held the weights once)"
        )
    args, sizes, fixed = _example_shapes(module, config, dtype)
    label = f"{cls.__name__} from {path.name}"
    return module_source(
        label,
        module,
        lambda seed: ((), _draw(args, config, seed)),
        sizes,
        options,
        weights=renamed,
        loaded=load if renamed is not None else None,
        notes=notes,
        fixed_kwargs=fixed,
    )


def _model_class(path: pathlib.Path, raw: Mapping[str, Any], config: Any, options: Options) -> Any:
    named = raw.get("architectures") or []
    name = options.class_name or (named[0] if isinstance(named, list) and named else None)
    if name is None:
        mapping = transformers.MODEL_MAPPING
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
        raise CheckpointError(f"{path}/config.json names no architecture; pass --class NAME")
    cls = getattr(transformers, str(name), None)
    if not (inspect.isclass(cls) and issubclass(cls, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"{path}/config.json: {name!r} is not a transformers model class; pass --class NAME"
        )
    return cls


def _float_dtype(config: Any, checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype that most float weights are stored in."""
    counts: dict[str, int] = {}
    for name in checkpoint:
        shape, dtype = checkpoint.spec(name)
        if dtype in ("float32", "bfloat16", "float16"):
            counts[dtype] = counts.get(dtype, 0) + int(np.prod(shape))
    if counts:
        return getattr(torch, max(counts, key=lambda d: counts[d]))
    stated = getattr(config, "dtype", None)
    return stated if isinstance(stated, torch.dtype) else torch.float32


def _load(cls: Any, path: pathlib.Path, config: Any, dtype: torch.dtype) -> torch.nn.Module:
    try:
        return cls.from_pretrained(str(path), config=config, dtype=dtype).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: transformers cannot load it: {error}") from error


class _Renamed(Mapping[str, np.ndarray]):
    """Some weights of a checkpoint under other names."""

    def __init__(self, inner: Checkpoint, names: Mapping[str, str]):
        self._inner, self._names = inner, dict(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._inner[self._names[name]]

    def spec(self, name: str) -> Any:
        """Return shape and dtype name without reading."""
        return self._inner.spec(self._names[name])

    def release(self, name: str) -> None:
        """Drop a weight's pages from memory."""
        self._inner.release(self._names[name])


def _under_own_names(
    checkpoint: Checkpoint, module: torch.nn.Module, cls: Any
) -> Checkpoint | None:
    """Return the checkpoint under the module's names, or None if it needs transformers.

    Keys that the class itself declares unexpected, and parts of a larger model than ``cls``
    (a language-model head where the base model is built), are left out.
    """
    wanted = dict(module.state_dict(keep_vars=True))
    parameters = {n for n, _ in module.named_parameters()}  # tied ones once
    prefix = getattr(cls, "base_model_prefix", "")
    for rename in (
        lambda name: name,
        lambda name: name.removeprefix(f"{prefix}."),
        lambda name: f"{prefix}.{name}",
    ):
        names = {rename(name): name for name in checkpoint}
        tied_ok = set(getattr(cls, "_tied_weights_keys", None) or ())
        missing = [n for n in parameters if n not in names and n not in tied_ok]
        if not missing and all(
            tuple(wanted[n].shape) == checkpoint.spec(names[n])[0] for n in parameters if n in names
        ):
            kept = {n: o for n, o in names.items() if n in wanted}
            return Checkpoint([(checkpoint.files[0], _Renamed(checkpoint, kept))])
    return None


def _example_shapes(
    module: torch.nn.Module, config: Any, dtype: torch.dtype
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, dict[int, str]], dict[str, Any]]:
    """Return inputs by name (dtype, shape), their dynamic sizes, and fixed arguments."""
    parameters = inspect.signature(module.forward).parameters
    floats = str(dtype).removeprefix("torch.")
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    text = lambda: int(min(8, getattr(config, "max_position_embeddings", None) or 8))
    if "input_ids" in parameters:
        inputs["input_ids"] = ("int64", (2, text()))
        if "attention_mask" in parameters:
            inputs["attention_mask"] = ("int64", (2, text()))
    if "pixel_values" in parameters:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 224)
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        inputs["pixel_values"] = (floats, (2, getattr(vision, "num_channels", 3), height, width))
    if "input_features" in parameters:
        audio = getattr(config, "audio_config", config)
        frames = 2 * getattr(audio, "max_source_positions", 50)
        inputs["input_features"] = (floats, (2, getattr(audio, "num_mel_bins", 80), frames))
    if "input_values" in parameters:
        inputs["input_values"] = (floats, (2, 4000))
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = ("int64", (2, 5))
    if not inputs:
        raise ConversionError(
            f"{type(module).__name__}: no known example inputs for forward("
            f"{', '.join(parameters)}); convert it by package.module:factory with its own"
        )
    sizes: dict[str, dict[int, str]] = {}
    for name in inputs:
        sizes[name] = {0: "batch"}
        if name in ("input_ids", "attention_mask"):
            sizes[name][1] = "sequence"
        elif name == "decoder_input_ids":
            sizes[name][1] = "decoder_sequence"
    fixed = {"use_cache": False} if "use_cache" in parameters else {}
    return inputs, sizes, fixed


def _draw(
    inputs: Mapping[str, tuple[str, tuple[int, ...]]], config: Any, seed: int
) -> dict[str, np.ndarray]:
    """Draw inputs that the model accepts: ids below the vocabulary, masks with padding."""
    from jaxinfer.core.dtypes import dtype_of

    rng = np.random.default_rng(seed)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = int(getattr(text, "vocab_size", 2))
    drawn: dict[str, np.ndarray] = {}
    for name, (dtype, shape) in inputs.items():
        if name.endswith("mask"):
            lengths = rng.integers(1, shape[1] + 1, shape[0])
            lengths[0] = shape[1]
            drawn[name] = (np.arange(shape[1]) < lengths[:, None]).astype(dtype)
        elif dtype == "int64":
            drawn[name] = rng.integers(0, vocabulary, shape).astype(dtype)
        else:
            drawn[name] = rng.standard_normal(shape).astype(dtype_of(dtype))
    return drawn
