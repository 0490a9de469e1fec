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


def _image(height: int, width: int = 0) -> Callable[[Any], Any]:
    """Images [b, 3, height, width] of a size that the configuration does not name."""
    return lambda m: {"pixel_values": m.normal(BATCH, 3, height, width or height)}


def _pair(m: Any) -> Any:
    return {"pixel_values": m.normal(BATCH, 2, 3, 64, 64)}


def _masked_frames(count: int, bins: int, *, last: bool = False) -> Callable[[Any], Any]:
    """Spectrograms [b, frames, bins] ([b, bins, frames] if ``last``) and ones for every frame."""
    shape = (BATCH, bins, count) if last else (BATCH, count, bins)
    return lambda m: {
        "input_features": m.normal(*shape),
        "input_features_mask": torch.ones(BATCH, count, dtype=torch.long),
    }


def _clvp(m: Any) -> Any:
    bins = m.config.decoder_config.feature_size
    return {"input_ids": m.tokens(BATCH, LENGTH), "input_features": m.normal(BATCH, bins, 40)}


def _codec(m: Any) -> Any:
    """Waveforms and, for each 320 samples, the features of the semantic encoder."""
    bins = m.config.semantic_model_config.feature_projection_input_dim
    return {
        "input_values": m.normal(BATCH, 1, 4800),
        "input_features": m.normal(BATCH, 15, bins),
    }


def _positions(m: Any) -> Any:
    """Gemma 4: 6 x 6 flattened patches with the place of each."""
    y, x = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    places = torch.stack([x, y], -1).reshape(1, 36, 2).repeat(BATCH, 1, 1)
    width = 3 * m.config.patch_size**2
    return {"pixel_values": m.normal(BATCH, 36, width), "pixel_position_ids": places}


def _grid(*patch: int) -> Callable[[Any], Any]:
    """Patches [b * 16, *patch] of images of 4 x 4 patches."""
    return lambda m: {
        "pixel_values": m.normal(BATCH * 16, *patch),
        "grid_thw": torch.tensor([[1, 4, 4]] * BATCH),
    }


def _strip(m: Any) -> Any:
    """MiniCPM: the patches of two images of 4 x 4 in one row."""
    size = m.config.patch_size
    return {
        "pixel_values": m.normal(1, 3, size, BATCH * 16 * size),
        "target_sizes": torch.tensor([[4, 4]] * BATCH, dtype=torch.int32),
    }


def _inkling2(m: Any) -> Any:
    """Blocks of merged patches [b * 16, h, w, 3] of images of 4 x 4 blocks."""
    size = m.config.patch_size * m.config.spatial_merge_size
    return {
        "pixel_values": m.normal(BATCH * 16, size, size, 3),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * BATCH),
    }


def _drafter(m: Any) -> Any:
    c = m.config
    return {
        "noise_embeds": m.normal(BATCH, c.block_size, c.hidden_size),
        "context_hidden_states": m.normal(BATCH, 7, c.hidden_size * len(c.target_layer_ids)),
        "attention_mask": torch.ones(BATCH, 7 + c.block_size, dtype=torch.long),
    }


def _audio_video(m: Any) -> Any:
    """PE: waveforms, frames of videos, and text if it takes any."""
    made = {
        "input_values": m.normal(BATCH, 1, 7680),
        "pixel_values_videos": m.normal(BATCH, 4, 3, 64, 64),
    }
    return {**made, "input_ids": m.tokens(BATCH, LENGTH)} if m.takes("input_ids") else made


def _blip_video(m: Any) -> Any:
    size, frames = m.config.vision_config.image_size, 2
    ids = m.tokens(BATCH, LENGTH)
    videos = torch.full((BATCH, frames * m.config.num_query_tokens), m.config.video_token_index)
    return {
        "pixel_values": m.normal(BATCH, frames, 3, size, size),
        "input_ids": torch.cat([videos, ids], 1),
        "attention_mask": torch.ones(BATCH, videos.shape[1] + LENGTH, dtype=torch.long),
        "qformer_input_ids": ids,
        "qformer_attention_mask": torch.ones_like(ids),
        "use_cache": False,
    }


def _omdet(m: Any) -> Any:
    size, classes = 64, BATCH * 3
    return {
        "pixel_values": m.normal(BATCH, 3, size, size),
        "classes_input_ids": m.tokens(classes, LENGTH),
        "classes_attention_mask": torch.ones(classes, LENGTH, dtype=torch.long),
        "tasks_input_ids": m.tokens(BATCH, LENGTH),
        "tasks_attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
        "classes_structure": torch.tensor([3] * BATCH),
    }


def _tvp(m: Any) -> Any:
    """One video: torch itself fails on two."""
    size = m.config.max_img_size
    return {
        "input_ids": m.tokens(1, LENGTH),
        "pixel_values": m.normal(1, 2, 3, size, size),
        "attention_mask": torch.ones(1, LENGTH, dtype=torch.long),
    }


def _voxtral_realtime(m: Any) -> Any:
    frames = LENGTH * m.config.audio_length_per_tok
    return {
        "input_ids": m.tokens(BATCH, LENGTH),
        "input_features": m.normal(BATCH, m.config.audio_config.num_mel_bins, frames),
        "use_cache": False,
    }


def _pi0(m: Any) -> Any:
    c = m.config.vlm_config
    count = (c.vision_config.image_size // c.vision_config.patch_size) ** 2
    images = torch.full((BATCH, count), c.image_token_id)
    return {
        "action_embeds": m.normal(BATCH, 5, m.config.dit_config.hidden_size),
        "input_ids": torch.cat([images, m.tokens(BATCH, LENGTH)], 1),
        "pixel_values": m.normal(BATCH, 1, 3, *[c.vision_config.image_size] * 2),
        "pixel_attention_mask": torch.ones(BATCH, 1, dtype=torch.bool),
        "attention_mask": torch.ones(BATCH, count + LENGTH, dtype=torch.long),
    }


SPECIAL: dict[str, Callable[[Any], Any]] = {
    "audio-spectrogram-transformer": lambda m: {
        "input_values": m.normal(BATCH, m.config.max_length, m.config.num_mel_bins)
    },
    "audioflamingo3_encoder": _masked_frames(1024, 128, last=True),
    "autoformer": _series,
    "blip-2": _blip2,
    "blip_2_qformer": _qformer,
    "clap": _clap,
    "clvp": _clvp,
    "decision_transformer": _decision,
    "depth_pro": _image(128),
    "dia": _dia,
    "edgetam": _image(64),
    "edgetam_vision_model": _image(64),
    "efficientloftr": _pair,
    "fun_asr_nano_encoder": _masked_frames(24, 560),
    "gemma3n_audio": lambda m: {
        "audio_mel": m.normal(BATCH, 64, m.config.input_feat_size),
        "audio_mel_mask": torch.zeros(BATCH, 64, dtype=torch.bool),
    },
    "gemma4_audio": lambda m: {"input_features": m.normal(BATCH, 64, 128)},
    "gemma4_vision": _positions,
    "glmasr_encoder": _whisper_like,
    "granite_speech5_ctc": lambda m: {"input_features": m.normal(BATCH, 64, 320)},
    "granite_speech5_encoder": lambda m: {"input_features": m.normal(BATCH, 64, 320)},
    "idefics": _idefics,
    "idefics2": _images5,
    "idefics3": _images5,
    "informer": _series,
    "inkling2_vision": _inkling2,
    "instructblip": _blip2,
    "instructblipvideo": _blip_video,
    "kimi_k25_vision": _grid(3, 14, 14),
    "kosmos-2": _kosmos2,
    "kyutai_speech_to_text": _kyutai,
    "lightglue": _pair,
    "lxmert": _lxmert,
    "mimi_decoder": _latents,
    "minicpm_ocr_vision": _strip,
    "minicpmv4_7_vision": _strip,
    "modernvbert": _images5,
    "muse_glimmer_assistant": _drafter,
    "muse_glimmer_vision": _grid(3 * 2 * 14 * 14),
    "muse_spark_audio": lambda m: {"input_values": m.normal(BATCH, 3840)},
    "muse_spark_vision": _grid(3 * 2 * 14 * 14),
    "nemotron3_5_transcribe_audio": _masked_frames(64, 128),
    "neucodec": _codec,
    "omdet-turbo": _omdet,
    "oneformer": _oneformer,
    "owlv2": _owl,
    "owlvit": _owl,
    "patchtsmixer": _past("context_length", "num_input_channels"),
    "patchtst": _past("context_length", "num_input_channels"),
    "pe_audio_video": _audio_video,
    "pe_audio_video_encoder": _audio_video,
    "perceiver": _perceiver,
    "pi0": _pi0,
    "pocket_tts_audio_tokenizer_decoder": _latents,
    "pp_ocrv5_mobile_rec": _image(96, 160),
    "qwen3_asr_encoder": _masked_frames(200, 128, last=True),
    "reformer": _reformer,
    "sam2": _image(128),
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
    "tvp": _tvp,
    "udop": _udop,
    "ultravbert": _images5,
    "vibevoice_acoustic_tokenizer": lambda m: {"input_values": m.normal(BATCH, 1, 6400)},
    "vibevoice_acoustic_tokenizer_decoder": lambda m: {"hidden_states": m.normal(BATCH, 64, 2)},
    "vibevoice_acoustic_tokenizer_encoder": lambda m: {"hidden_states": m.normal(BATCH, 1, 6400)},
    "videomae": _video,
    "vilt": _vilt,
    "vivit": _video,
    "voxtral_realtime": _voxtral_realtime,
    "voxtral_realtime_encoder": _whisper_like,
    "wav2vec2-bert": _frames("feature_projection_input_dim"),
    "xclip": _xclip,
    "xcodec2": _codec,
}
