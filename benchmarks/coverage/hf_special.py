"""Inputs of the transformers models whose inputs no rule of thumb can draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

BATCH, LENGTH = 2, 11


def _frames(bins: str, count: int = 64) -> Callable[[Any], Any]:
    """Spectrograms [b, frames, bins], named as the model's main input."""
    return lambda m: {m.model.main_input_name: m.normal(BATCH, count, getattr(m.config, bins))}


def _series(m: Any) -> Any:
    past = m.config.context_length + max(m.config.lags_sequence)
    made = {
        "past_values": m.normal(BATCH, past),
        "past_time_features": m.normal(BATCH, past, m.config.num_time_features),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": m.normal(BATCH, m.config.prediction_length),
        "future_time_features": m.normal(
            BATCH, m.config.prediction_length, m.config.num_time_features
        ),
        "use_cache": False,
    }
    return {name: value for name, value in made.items() if m.takes(name)}


def _decision(m: Any) -> Any:
    c = m.config
    return {
        "states": m.normal(BATCH, 5, c.state_dim),
        "actions": m.normal(BATCH, 5, c.act_dim),
        "rewards": m.normal(BATCH, 5, 1),
        "returns_to_go": m.normal(BATCH, 5, 1),
        "timesteps": torch.arange(5).expand(BATCH, 5).contiguous(),
        "attention_mask": torch.ones(BATCH, 5, dtype=torch.long),
    }


def _video(m: Any) -> Any:
    from benchmarks.coverage.hf_inputs import video

    return {m.model.main_input_name: video(m)}


def _xclip(m: Any) -> Any:
    c = m.config.vision_config
    size = (BATCH, c.num_frames, 3, c.image_size, c.image_size)
    return {"input_ids": m.tokens(BATCH, LENGTH), "pixel_values": m.normal(*size)}


def _patches(m: Any) -> Any:
    """SigLIP 2: flattened patches [b, n, 3 p p] with the grid of each image."""
    c = getattr(m.config, "vision_config", m.config)
    made = {
        "pixel_values": m.normal(BATCH, 16, 3 * c.patch_size**2),
        "pixel_attention_mask": torch.ones(BATCH, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * BATCH),
    }
    return {**made, "input_ids": m.tokens(BATCH, LENGTH)} if m.takes("input_ids") else made


def _images5(m: Any) -> Any:
    """Idefics 2 and its kin: text alone (images are [b, n, c, h, w], and placed by value)."""
    return {"input_ids": m.tokens(BATCH, LENGTH), "use_cache": False}


def _lxmert(m: Any) -> Any:
    return {
        "input_ids": m.tokens(BATCH, LENGTH),
        "visual_feats": m.normal(BATCH, 4, m.config.visual_feat_dim),
        "visual_pos": m.normal(BATCH, 4, m.config.visual_pos_dim),
    }


def _past(length: str, *channels: str) -> Callable[[Any], Any]:
    """Time series [b, t, channels]."""

    def make(m: Any) -> Any:
        sizes = [getattr(m.config, name) for name in (length, *channels)]
        return {"past_values": m.normal(BATCH, *sizes)}

    return make


def _speech_to_text(m: Any) -> Any:
    return {
        "input_features": m.normal(BATCH, 40, m.config.input_feat_per_channel),
        "decoder_input_ids": m.tokens(BATCH, 5),
        "use_cache": False,
    }


def _owl(m: Any) -> Any:
    size = m.config.vision_config.image_size
    return {
        "input_ids": m.tokens(BATCH * 2, LENGTH),
        "pixel_values": m.normal(BATCH, 3, size, size),
        "attention_mask": torch.ones(BATCH * 2, LENGTH, dtype=torch.long),
    }


def _qformer(m: Any) -> Any:
    return {
        "query_embeds": m.normal(BATCH, 4, m.config.hidden_size),
        "encoder_hidden_states": m.normal(BATCH, 7, m.config.encoder_hidden_size),
    }


def _seggpt(m: Any) -> Any:
    height, width = m.config.image_size
    images = [m.normal(BATCH, 3, height // 2, width) for _ in range(3)]
    return dict(zip(("pixel_values", "prompt_pixel_values", "prompt_masks"), images, strict=True))


def _dia(m: Any) -> Any:
    channels = m.config.decoder_config.num_channels
    return {
        "input_ids": m.tokens(BATCH, LENGTH),
        "decoder_input_ids": m.tokens(BATCH, 5, channels),
        "use_cache": False,
    }


def _clap(m: Any) -> Any:
    c = m.config.audio_config
    frames = c.spec_size * (c.spec_size // c.num_mel_bins)
    return {
        "input_ids": m.tokens(BATCH, LENGTH),
        "input_features": m.normal(BATCH, 1, frames, c.num_mel_bins),
        "is_longer": torch.zeros(BATCH, 1, dtype=torch.bool),
    }


def _reformer(m: Any) -> Any:
    return {"input_ids": m.tokens(BATCH, 32), "attention_mask": torch.ones(BATCH, 32)}


def _lightglue(m: Any) -> Any:
    return {"pixel_values": m.normal(BATCH, 2, 3, 64, 64)}


def _latents(m: Any) -> Any:
    return {"latents": m.normal(BATCH, m.config.hidden_size, 6)}


def _kyutai(m: Any) -> Any:
    return {"input_ids": m.tokens(BATCH, LENGTH, m.config.num_codebooks + 1), "use_cache": False}


def _vilt(m: Any) -> Any:
    size = m.config.image_size
    return {
        "input_ids": m.tokens(BATCH, LENGTH),
        "pixel_values": m.normal(BATCH, 3, size, size),
        "pixel_mask": torch.ones(BATCH, size, size, dtype=torch.long),
    }


def _udop(m: Any) -> Any:
    return {
        "input_ids": m.tokens(BATCH, LENGTH),
        "bbox": torch.rand((BATCH, LENGTH, 4), generator=m.rng).sort(-1)[0],
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
        "decoder_input_ids": m.tokens(BATCH, 5),
        "use_cache": False,
    }


def _perceiver(m: Any) -> Any:
    return {"inputs": m.normal(BATCH, 12, m.config.d_model)}


def _whisper_like(m: Any) -> Any:
    positions, bins = m.config.max_position_embeddings, m.config.num_mel_bins
    return {"input_features": m.normal(BATCH, bins, 2 * min(positions, 64))}


def _speecht5(m: Any) -> Any:
    """What the prenets would give: [b, t, hidden]."""
    width = m.config.hidden_size
    return {
        "input_values": m.normal(BATCH, LENGTH, width),
        "decoder_input_values": m.normal(BATCH, 5, width),
        "use_cache": False,
    }


def _blip2(m: Any) -> Any:
    """Text and images of BLIP-2 and InstructBLIP, one image token a query."""
    size, count = m.config.vision_config.image_size, m.config.num_query_tokens
    ids = m.tokens(BATCH, LENGTH)
    images = torch.full((BATCH, count), m.config.image_token_id)
    made = {
        "pixel_values": m.normal(BATCH, 3, size, size),
        "input_ids": torch.cat([images, ids], 1),
        "attention_mask": torch.ones(BATCH, count + LENGTH, dtype=torch.long),
    }
    if m.takes("qformer_input_ids"):
        made["qformer_input_ids"] = ids
        made["qformer_attention_mask"] = torch.ones_like(ids)
    if m.takes("use_cache"):
        made["use_cache"] = False
    return made


def _oneformer(m: Any) -> Any:
    size = m.config.backbone_config.image_size
    return {
        "pixel_values": m.normal(BATCH, 3, size, size),
        "task_inputs": m.tokens(BATCH, m.config.task_seq_len),
    }


def _idefics(m: Any) -> Any:
    size = m.config.vision_config.image_size
    return {
        "input_ids": m.tokens(BATCH, LENGTH),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
        "pixel_values": m.normal(BATCH, 1, 3, size, size),
        "image_attention_mask": torch.ones(BATCH, LENGTH, 1, dtype=torch.long),
        "use_cache": False,
    }


def _kosmos2(m: Any) -> Any:
    size, count = m.config.vision_config.image_size, m.config.latent_query_num
    where = torch.zeros(BATCH, LENGTH + count, dtype=torch.long)
    where[:, 1 : 1 + count] = 1
    return {
        "input_ids": m.tokens(BATCH, LENGTH + count),
        "pixel_values": m.normal(BATCH, 3, size, size),
        "image_embeds_position_mask": where,
        "use_cache": False,
    }


def _sam3(m: Any) -> Any:
    from benchmarks.coverage.hf_inputs import pixel_values

    return {"pixel_values": pixel_values(m), "input_ids": m.tokens(BATCH, LENGTH)}


SPECIAL: dict[str, Callable[[Any], Any]] = {
    "audio-spectrogram-transformer": lambda m: {
        "input_values": m.normal(BATCH, m.config.max_length, m.config.num_mel_bins)
    },
    "autoformer": _series,
    "blip-2": _blip2,
    "blip_2_qformer": _qformer,
    "clap": _clap,
    "decision_transformer": _decision,
    "dia": _dia,
    "glmasr_encoder": _whisper_like,
    "granite_speech5_ctc": lambda m: {"input_features": m.normal(BATCH, 64, 320)},
    "granite_speech5_encoder": lambda m: {"input_features": m.normal(BATCH, 64, 320)},
    "idefics": _idefics,
    "idefics2": _images5,
    "idefics3": _images5,
    "informer": _series,
    "instructblip": _blip2,
    "kosmos-2": _kosmos2,
    "kyutai_speech_to_text": _kyutai,
    "lightglue": _lightglue,
    "lxmert": _lxmert,
    "mimi_decoder": _latents,
    "modernvbert": _images5,
    "oneformer": _oneformer,
    "owlv2": _owl,
    "owlvit": _owl,
    "patchtsmixer": _past("context_length", "num_input_channels"),
    "patchtst": _past("context_length", "num_input_channels"),
    "perceiver": _perceiver,
    "pocket_tts_audio_tokenizer_decoder": _latents,
    "pp_ocrv5_mobile_rec": lambda m: {"pixel_values": m.normal(BATCH, 3, 48, 320)},
    "reformer": _reformer,
    "sam3": _sam3,
    "sam3_lite_text": _sam3,
    "sam3_lite_text_text_model": lambda m: {"input_ids": m.tokens(BATCH, LENGTH)},
    "seggpt": _seggpt,
    "siglip2": _patches,
    "siglip2_vision_model": _patches,
    "smolvlm": _images5,
    "speech_to_text": _speech_to_text,
    "speecht5": _speecht5,
    "time_series_transformer": _series,
    "timesfm": lambda m: {
        "past_values": m.normal(BATCH, m.config.context_length),
        "past_values_padding": torch.zeros(BATCH, m.config.context_length),
        "freq": torch.tensor([[0], [1]]),
    },
    "timesfm2_5": lambda m: {"past_values": m.normal(BATCH, m.config.context_length)},
    "timesformer": _video,
    "udop": _udop,
    "ultravbert": _images5,
    "vibevoice_acoustic_tokenizer": lambda m: {"input_values": m.normal(BATCH, 1, 6400)},
    "vibevoice_acoustic_tokenizer_decoder": lambda m: {"hidden_states": m.normal(BATCH, 64, 2)},
    "vibevoice_acoustic_tokenizer_encoder": lambda m: {"hidden_states": m.normal(BATCH, 1, 6400)},
    "videomae": _video,
    "vilt": _vilt,
    "vivit": _video,
    "voxtral_realtime_encoder": _whisper_like,
    "wav2vec2-bert": _frames("feature_projection_input_dim"),
    "xclip": _xclip,
}
