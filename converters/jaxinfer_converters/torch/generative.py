"""A generative transformers model as one Model with components: encoder, prefill, decode.

``transformers.exporters`` runs ``generate`` once on a short example, takes down what it passes
to the model in the first and in a later step, and traces both. What changes here: masks come
in as ``[batch, max_cache_len]`` of tokens, not as prepared matrices, and the model's own code
makes of them what each layer needs (causal, sliding); batch and prompt length are dynamic; the
prefill makes its empty cache itself. Source: https://huggingface.co/docs/transformers/exporters.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree
from transformers import GenerationConfig, PreTrainedModel
from transformers.exporters.configs import DynamoConfig
from transformers.exporters.exporter_dynamo import DynamoExporter, register_cache_pytrees_for_model
from transformers.exporters.utils import decompose_for_generation, prepare_for_export

from jaxinfer.core.errors import ConversionError, JaxinferError
from jaxinfer.core.frontend import Progress
from jaxinfer.core.model import Model
from jaxinfer.io.checkpoint import open_checkpoint
from jaxinfer_converters.torch.components import Shared, component, joined
from jaxinfer_converters.torch.exporters import counters_of, full_cache, refuse_sliding
from jaxinfer_converters.torch.readers import READERS

CACHE = "past_key_values"
BATCH, PROMPT = 2, 5  # of the example; they differ, or torch would take one for the other


def from_generative(
    module: PreTrainedModel,
    example_inputs: Mapping[str, Any] | None = None,
    *,
    max_cache_len: int,
    weights: Any = None,
    progress: Progress | None = None,
) -> Model:
    """Convert a generative model; see ``jaxinfer.from_generative``."""
    if not isinstance(module, PreTrainedModel) or not module.can_generate():
        raise TypeError(
            "from_generative takes a transformers model that can generate "
            f"(AutoModelForCausalLM and the like), got {type(module).__name__}"
        )
    given = dict(example_inputs) if example_inputs is not None else _example(module, max_cache_len)
    if module.training:
        raise ConversionError("the module is in training mode; call module.eval() first")
    shared = Shared.of(module, open_checkpoint(weights, readers=READERS) if weights else None)
    parts: dict[str, Model] = {}
    if module.config.is_encoder_decoder:
        parts["encoder"] = _encoder(module, given, shared, progress)
    for name, (stage, inputs) in _stages(module, given, max_cache_len).items():
        parts[name] = _stage(name, stage, inputs, shared, max_cache_len, progress)
    return joined(parts, _settings(module, max_cache_len))


def _example(module: PreTrainedModel, max_cache_len: int) -> dict[str, Any]:
    """Return a prompt of arbitrary tokens.

    Raises:
      ConversionError: the model reads no token ids, or the cache is too short for any prompt.
    """
    if module.main_input_name != "input_ids":
        raise ConversionError(
            f"{type(module).__name__} reads {module.main_input_name}: pass an example, "
            f"example_inputs={{{module.main_input_name!r}: ...}}, with a batch of 2"
        )
    if max_cache_len < PROMPT + 3:
        raise ConversionError(f"max_cache_len: required {PROMPT + 3} or more, got {max_cache_len}")
    vocabulary = module.config.get_text_config(decoder=True).vocab_size
    ids = torch.arange(BATCH * PROMPT).reshape(BATCH, PROMPT) % vocabulary
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _stages(
    module: PreTrainedModel, example: Mapping[str, Any], max_cache_len: int
) -> Mapping[str, tuple[Any, MutableMapping[str, Any]]]:
    """Return what ``generate`` passes in its first and in a later step."""
    own = module.generation_config
    eos = own.eos_token_id
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        bos_token_id=own.bos_token_id,
        eos_token_id=eos,
        pad_token_id=_pad(own),
        decoder_start_token_id=own.decoder_start_token_id,
    )
    inputs = dict(example)
    if module.config.is_encoder_decoder:
        settings.cache_implementation = "static"
        settings.max_cache_len = max_cache_len
    else:
        inputs[CACHE] = full_cache(module, max_cache_len)
    try:
        stages = decompose_for_generation(module, inputs, generation_config=settings)
    except Exception as error:
        raise ConversionError(
            f"{type(module).__name__} does not generate with a static cache of length "
            f"{max_cache_len}: {_reason(error)}"
        ) from error
    if set(stages) != {"prefill", "decode"}:
        raise ConversionError(
            f"{type(module).__name__} is taken apart into {', '.join(stages)}; from_generative "
            "joins only prefill and decode. JaxExporter().export_for_generation converts the "
            "components one by one (docs/huggingface_export.md)"
        )
    return stages


def _pad(config: GenerationConfig) -> Any:
    if config.pad_token_id is not None or config.eos_token_id is None:
        return config.pad_token_id
    eos = config.eos_token_id
    return eos[0] if isinstance(eos, (list, tuple)) else eos


def _stage(
    name: str,
    module: Any,
    inputs: MutableMapping[str, Any],
    shared: Shared,
    max_cache_len: int,
    progress: Progress | None,
) -> Model:
    """Convert prefill or decode."""
    decoder = "decoder_" if module.config.is_encoder_decoder else ""
    batch = inputs[f"{decoder}input_ids"].shape[0]
    inputs[f"{decoder}attention_mask"] = torch.ones(batch, max_cache_len, dtype=torch.int64)
    accepted = inspect.signature(module.forward).parameters
    if name == "prefill" and "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1  # only the last position's logits are read
    refuse_sliding(inputs)
    prompt = [] if decoder or name == "decode" else ["input_ids", "position_ids", "token_type_ids"]
    register_cache_pytrees_for_model(module)
    counters = counters_of(inputs[CACHE])
    program = _export(name, module, inputs, prompt, max_cache_len)
    empty = name == "prefill" and counters is not None
    return component(
        program,
        module,
        shared,
        counters={CACHE: counters} if empty and counters is not None else None,
        progress=progress,
    ).model


def _encoder(
    module: Any, example: Mapping[str, Any], shared: Shared, progress: Progress | None
) -> Model:
    """Convert the encoder, whose output prefill and decode take as ``encoder_outputs``."""
    encoder = module.get_encoder()
    accepted = inspect.signature(encoder.forward).parameters
    inputs = {key: value for key, value in example.items() if key in accepted}
    program = _export("encoder", encoder, inputs, [], 0)
    return component(program, encoder, shared, progress=progress).model


def _export(
    name: str, module: Any, inputs: MutableMapping[str, Any], prompt: list[str], longest: int
) -> ExportedProgram:
    """Trace one component, batch dynamic, and the prompt's length in the inputs named."""
    flags = prepare_for_export(module, dict(inputs))[2]
    batch, length = Dim("batch"), Dim("prompt", max=longest or None)
    shapes: dict[str, Any] = {}
    for key, value in inputs.items():
        if key in flags:
            continue
        axes = [{0: batch} if leaf.ndim else {} for leaf in pytree.tree_leaves(value)
                if isinstance(leaf, torch.Tensor)]  # fmt: skip
        if isinstance(value, torch.Tensor):
            shapes[key] = axes[0] | ({1: length} if key in prompt else {})
        else:
            shapes[key] = axes or None
    try:
        config = DynamoConfig(dynamic_shapes=shapes)
        return DynamoExporter().export_program(module, inputs, config)[0]
    except JaxinferError:
        raise
    except Exception as error:
        raise ConversionError(
            f"transformers' exporter cannot trace {name} of {type(module).__name__}: "
            f"{_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {' '.join(lines[:3])[:600]}"


def _settings(module: PreTrainedModel, max_cache_len: int) -> dict[str, Any]:
    """Return what a decoding loop has to know, as plain data."""
    own = module.generation_config
    eos = own.eos_token_id if isinstance(own.eos_token_id, (list, tuple)) else [own.eos_token_id]
    return {
        "max_cache_len": max_cache_len,
        "eos_token_id": [int(token) for token in eos if token is not None],
        "pad_token_id": _pad(own),
        "decoder_start_token_id": own.decoder_start_token_id,
    }
