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
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from jaxinfer.core.errors import CheckpointError, ConversionError, listing
from jaxinfer.core.frontend import Options, Source
from jaxinfer.io.checkpoint import Checkpoint, open_checkpoint
from jaxinfer_converters.torch.readers import READERS
from jaxinfer_converters.torch.sources import fill, module_source

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
    checkpoint = open_checkpoint(weights, readers=READERS)
    dtype = getattr(torch, options.dtype) if options.dtype else _float_dtype(config, checkpoint)
    with parameters_on_meta():
        module = cls(config).to(dtype).eval()
    notes: list[str] = []
    renamed, unread = _under_own_names(checkpoint, module, cls)
    load = lambda: _load(cls, path, config, dtype)[0]
    if options.weights and renamed is None:
        raise CheckpointError(
            f"{options.weights}: these are not the weights of {cls.__name__} by their names; "
            "put them in a directory with their own config.json"
        )
    if options.weights:
        load = lambda: _filled(cls(config).to(dtype).eval(), renamed)
    if renamed is None:
        module, unread = _load(cls, path, config, dtype)
        notes.append(
            "the checkpoint's names are not the module's; transformers loaded and renamed it "
            "(torch held the weights once)"
        )
    if unread and not options.class_name:
        title = f"{path}: {len(unread)} weights are not read by {cls.__name__}:"
        advice = (
            f"Pass --class {cls.__name__} to leave them out knowingly, or the class that has them."
        )
        raise CheckpointError(listing(title, unread, advice))
    if unread:
        notes.append(f"left out, {cls.__name__} does not have them: {', '.join(unread)}")
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


def _filled(module: torch.nn.Module, checkpoint: Checkpoint | None) -> torch.nn.Module:
    assert checkpoint is not None
    fill(module, checkpoint)
    return module


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


def _load(
    cls: Any, path: pathlib.Path, config: Any, dtype: torch.dtype
) -> tuple[torch.nn.Module, list[str]]:
    """Let transformers load a checkpoint; return the module and the names it did not read.

    Raises:
      CheckpointError: it cannot, or would make up missing weights; all of them.
    """
    bars = transformers.utils.logging.is_progress_bar_enabled()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # its report of keys is raised below
    try:
        module, info = cls.from_pretrained(
            str(path), config=config, dtype=dtype, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: transformers cannot load it: {error}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()
    faults = [f"{name}: missing" for name in sorted(info["missing_keys"])]
    faults += [f"{name[0]}: wrong shape {name[1:]}" for name in sorted(info["mismatched_keys"])]
    if faults:
        advice = "Convert the class whose weights these are: --class NAME."
        title = f"{path}: weights that {cls.__name__} needs and the checkpoint lacks:"
        raise CheckpointError(listing(title, faults, advice))
    return module.eval(), sorted(info["unexpected_keys"])


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
) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint under the module's names, and the names that it does not have.

    The base model's prefix (``bert.``) is added or taken away if all names then fit; None if
    no such way does. Names that the class itself expects to find unread, and buffers that
    are computed (``position_ids`` in old checkpoints), do not count as unread.
    """
    wanted = dict(module.state_dict(keep_vars=True))
    parameters = {n for n, _ in module.named_parameters()}  # tied ones once
    computed = {n for n, _ in module.named_buffers()}
    tied = set(getattr(cls, "_tied_weights_keys", None) or ())
    ignored = getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or []
    prefix = f"{getattr(cls, 'base_model_prefix', '')}."
    for rename in (
        lambda name: name,
        lambda name: name.removeprefix(prefix),
        lambda name: prefix + name,
    ):
        names = {rename(name): name for name in checkpoint}
        present = parameters & names.keys()
        if parameters <= present | tied and all(
            tuple(wanted[n].shape) == checkpoint.spec(names[n])[0] for n in present
        ):
            kept = {n: o for n, o in names.items() if n in wanted}
            unread = [
                original
                for name, original in names.items()
                if name not in wanted
                and name not in computed
                and not any(re.search(pattern, original) for pattern in ignored)
            ]
            return Checkpoint([(checkpoint.files[0], _Renamed(checkpoint, kept))]), unread
    return None, []


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
