"""Configurations of transformers models, shrunk: the same wiring with small sizes.

Every field of a default configuration is mapped by its name: widths to 64, heads to 4, layers
to 2, vocabularies to 128. Fields that the class derives itself (default None) are left to it.
Lists with one entry a layer keep the first layers that show each kind (sliding and full
attention, dense and sparse). Token ids keep their identity. ``FAMILIES`` holds what no rule of
thumb can know.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.coverage.hf_families import FAMILIES

WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, VOCAB = 64, 4, 2, 16, 96, 2, 128
FIRST_SPECIAL = 100  # token ids from here on are special; inputs are drawn below

# The first pattern that fits a field's name decides; the number is the largest value allowed.
LIMITS: tuple[tuple[str, int], ...] = (
    (r"(^|_)(bos|eos|pad|sep|cls|mask|unk)_(token_)?(id|index)$", FIRST_SPECIAL - 1),
    (r"chunk_size_feed_forward|_kernel|kernel_|stride|dilation|padding|dropout|_scale$", 0),
    (r"num_experts_per_tok|experts_per_token|moe_topk|moe_top_k|moe_k$|top_k_experts", 2),
    (r"(num|n)_(group|expert_group)s?$|^n_group$", 2),
    (r"topk_group", 1),
    (r"n_shared_experts|num_shared_experts", 1),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|zero_expert_num", 4),
    (r"(key_value|kv|key)_(attention_)?heads$|multi_query_group_num|^kv_n_heads$", KV_HEADS),
    (r"index_n_heads", 16),
    (r"resampler_n_heads", 2),
    (r"head_dim$|d_kv$|attention_head_size|kv_channels|mamba_d_head|headdim$", HEAD_DIM),
    (r"(^|_)heads?$|num_attention_heads|num_heads|n_heads?", HEADS),
    (r"qk_rope_head_dim", 8),
    (r"(hidden_layers|_layers|num_layers|n_layers?|^layers|^depth|num_blocks)$", LAYERS),
    (r"vocab_size|codebook_size|num_embeddings$|hash_buckets|_vocab$", VOCAB),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_source_pos|max_target_pos", 512),
    (r"intermediate|ffn|feed_?forward|mlp_(hidden_)?dim|d_ff$|dff$|dim_ff|d_inner$|inner_dim", MLP),
    (r"(^|_)rank$|lora", 16),
    (r"d_state|state_size", 16),
    (r"index_topk", 4),
    (r"sliding_window|window_size$|attention_window|local_attention|chunk_size", 8),
    (r"num_queries|num_query_tokens|n_latents|num_latents|latent_query_num", 8),
    (r"hidden_size|d_model|n_embd|embed_dim|embedding_size|project\w*_(dim|size)$", WIDTH),
    (r"(_dim|_size|_channels|_filters|channels|filters|_width)$|^dim$|units$|inplanes$", WIDTH),
)
# Sizes that are no widths: they are left as they are unless a rule above took them.
KEPT = re.compile(
    r"image_size|img_size|patch_size|tubelet|sampling|num_channels|in_chans|audio_channels|"
    r"type_vocab|rate|spectrogram|hop_length|num_mel|n_mels|mel_bins|resolution|block_size|"
    r"feature_size|conv_kernel_dim|merge_size|_ratio|crop|pool|seq_length|context_length|"
    r"position_embedding|num_position|max_2d|grid|window|input_channels|query_dim|cutoff"
)


def shrunk(model_type: str) -> PreTrainedConfig:
    """Return a small configuration of a model type; every field of it is the same each time."""
    default = CONFIG_MAPPING[model_type]()
    return _shrink(default, FAMILIES.get(model_type, {}), {})


def _shrink(
    config: PreTrainedConfig, given: Mapping[str, Any], tokens: dict[int, int]
) -> PreTrainedConfig:
    cls, old = type(config), vars(config)
    defaults = {f.name: _default(f) for f in dataclasses.fields(cls)}
    keep = re.compile(given.get("_keep", "(?!)"))
    layers = _kept_layers(old)
    values: dict[str, Any] = {}
    for name, value in old.items():
        if name.startswith("_") or name not in defaults:
            continue
        if isinstance(value, PreTrainedConfig):
            values[name] = value
        elif name in given:
            continue
        elif keep.search(name):
            values[name] = value
        elif name in layers:
            values[name] = layers[name]
        elif isinstance(value, dict) and "mrope_section" in value:
            values[name] = {**value, "mrope_section": _sections(value["mrope_section"])}
        elif name == "head_dim" and value is None:
            values[name] = HEAD_DIM  # some classes forget to derive it
        elif defaults[name] is None and value is not None:
            continue  # derived from other fields
        else:
            values[name] = _small(name, value, tokens)
    heads = old.get("num_attention_heads", 0)
    if heads and old.get("num_key_value_heads", 0) == heads:
        same = given.get("num_attention_heads") or values.get("num_attention_heads", HEADS)
        values["num_key_value_heads"] = same
    if "depths" in old and getattr(config, "out_features", None):
        values["out_features"] = list(config.out_features)  # stages, whose number stays
    values |= {k: v for k, v in given.items() if k[0] != "_" and not _is_part(v, values.get(k))}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig) and value is old.get(name):
            values[name] = _shrink(value, given.get(name, {}), tokens)
    return cls(**values)


def _is_part(given: Any, value: Any) -> bool:
    """Whether what is given is for the fields of a nested configuration, not in its place."""
    nested = isinstance(given, Mapping) and "model_type" not in given
    return nested and isinstance(value, PreTrainedConfig)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    made = field.default_factory
    return None if made is dataclasses.MISSING else made()


def _kept_layers(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the per-layer lists of the layers to keep, and their number, by field name."""
    names = ("num_hidden_layers", "n_layer", "num_layers")
    count_name = next((n for n in names if isinstance(old.get(n), int)), "")
    count = old.get(count_name, 0)
    if "depths" in old or count <= LAYERS:
        return {}
    lists = {
        name: list(value)
        for name, value in old.items()
        if isinstance(value, (list, tuple)) and len(value) == count
    }
    kept: list[int] = []
    seen: set[str] = set()
    for index in range(count):
        kind = repr([values[index] for name, values in sorted(lists.items())])
        if kind not in seen and len(kept) < 6:
            seen.add(kind)
            kept.append(index)
    for index in range(count):
        if len(kept) < min(LAYERS, count) and index not in kept:
            kept.append(index)
    kept.sort()
    found: dict[str, Any] = {name: [values[i] for i in kept] for name, values in lists.items()}
    return {**found, count_name: len(kept)} if lists else {}


def _small(name: str, value: Any, tokens: dict[int, int]) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if re.search(r"token_(id|index)s?$|(?<!_)index$", name) and name.count("token"):
        return _token(value, tokens)
    if isinstance(value, int):
        limit = _limit(name)
        return min(value, limit) if limit else value
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        return type(value)(_small_list(name, list(value)))
    return value


def _limit(name: str) -> int:
    for pattern, limit in LIMITS:
        if re.search(pattern, name):
            return 0 if limit == WIDTH and KEPT.search(name) else limit
    return 0


def _small_list(name: str, values: list[int]) -> list[int]:
    """Shrink a list with one entry a stage: depths to 2 and 1, widths by one factor."""
    if re.search(r"depths?$|num_blocks|layers$|blocks_per_stage|block_repeats", name):
        return [min(v, 2 if i == 0 else 1) for i, v in enumerate(values)]
    if re.search(r"indexes|indices|_idx$|hook_ids|_layer$", name):
        return sorted({min(v, LAYERS - 1) if v >= 0 else max(v, -LAYERS) for v in values})
    if _limit(name) not in (WIDTH, MLP) and not re.search(r"hidden_sizes|embed_dims?", name):
        if re.search("heads", name):
            return [min(v, 2) for v in values]
        return values
    largest = max(values)
    return values if largest <= WIDTH else [max(8, v * WIDTH // largest // 8 * 8) for v in values]


def _sections(section: list[int]) -> list[int]:
    """Scale the parts of a rotary embedding so that they sum to half the head's width."""
    half = HEAD_DIM // 2
    scaled = [max(1, v * half // sum(section)) for v in section]
    return [half - sum(scaled[1:]), *scaled[1:]]


def _token(value: Any, tokens: dict[int, int]) -> Any:
    """Map a special token's id into the small vocabulary; equal ids stay equal."""
    if isinstance(value, (list, tuple)):
        return type(value)(_token(v, tokens) for v in value)
    if not isinstance(value, int) or value < FIRST_SPECIAL:
        return value
    return tokens.setdefault(value, FIRST_SPECIAL + len(tokens))
