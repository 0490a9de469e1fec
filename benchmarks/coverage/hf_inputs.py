"""Example inputs for a transformers model, from its forward's signature and its configuration.

Several candidates are given, the fullest first: a model of images and text gets both, and text
alone in case torch.export does not accept the images (their placement depends on data).
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.coverage.hf_config import FIRST_SPECIAL
from benchmarks.coverage.hf_special import SPECIAL

BATCH, LENGTH = 2, 11
Inputs = dict[str, Any]


class Maker:
    """Draws inputs for one model."""

    def __init__(self, model: PreTrainedModel, seed: int = 0):
        self.model, self.config = model, model.config
        self.parameters = inspect.signature(model.forward).parameters
        self.rng = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.rng)

    def tokens(self, *shape: int, below: int = 0) -> torch.Tensor:
        top = min(below or FIRST_SPECIAL, FIRST_SPECIAL)
        return torch.randint(min(4, top - 1), top, shape, generator=self.rng)

    def find(self, *names: str, default: Any = None, within: tuple[str, ...] = ()) -> Any:
        """Return the first of the fields that the configuration or a part of it has."""
        parts = [getattr(self.config, part, None) for part in within]
        for config in (*parts, self.config):
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return default

    def takes(self, name: str) -> bool:
        return name in self.parameters

    def required(self) -> list[str]:
        return [
            name
            for name, p in self.parameters.items()
            if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD
        ]


VISION = ("vision_config", "vision_tower_config", "image_config", "vit_config", "backbone_config",
          "vision_encoder_config", "encoder_config", "encoder")  # fmt: skip
AUDIO = ("audio_config", "audio_encoder_config", "encoder_config", "speech_config")


def image_size(m: Maker) -> tuple[int, int]:
    """Return the height and width of images."""
    size = m.find("image_size", "img_size", "input_size", within=VISION, default=64)
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    return (size, size) if isinstance(size, int) else (size[-2], size[-1])


def pixel_values(m: Maker) -> torch.Tensor:
    """Images; flattened patches where a grid goes with them."""
    channels = m.find("num_channels", "in_channels", "in_chans", within=VISION, default=3)
    channels = channels if isinstance(channels, int) else 3
    grid = next((n for n in ("grid_thw", "image_grid_thw") if m.takes(n)), None)
    if grid:
        patch = m.find("patch_size", within=VISION)
        frames = m.find("temporal_patch_size", within=VISION, default=1)
        return m.normal(BATCH * 16, channels * frames * patch * patch)
    return m.normal(BATCH, channels, *image_size(m))


def video(m: Maker) -> torch.Tensor:
    """Frames of videos [b, frames, channels, height, width]."""
    frames = m.find("num_frames", "frames_per_clip", within=VISION, default=4)
    channels = m.find("num_channels", "in_chans", within=VISION, default=3)
    return m.normal(BATCH, frames, channels, *image_size(m))


def input_features(m: Maker) -> torch.Tensor:
    """Spectrograms: [b, mel bins, frames] for Whisper's kin, else [b, frames, mel bins]."""
    bins = m.find(
        "num_mel_bins", "n_mels", "input_feat_size", "feature_size", "feature_projection_input_dim",
        "input_feat_per_channel", "input_dim", within=AUDIO, default=80,
    )  # fmt: skip
    positions = m.find("max_source_positions", within=AUDIO)
    if positions is not None and m.find("encoder_layers", "num_hidden_layers", within=AUDIO):
        return m.normal(BATCH, bins, 2 * positions)
    return m.normal(BATCH, 64, bins)


def input_values(m: Maker) -> torch.Tensor:
    """Waveforms: [b, samples]; [b, 1, samples] for codecs."""
    codec = any(m.takes(n) for n in ("padding_mask", "n_quantizers", "bandwidth"))
    samples = 4800 if codec else 4000
    return m.normal(BATCH, 1, samples) if codec else m.normal(BATCH, samples)


def vocabulary(m: Maker) -> int:
    """Return the number of tokens."""
    return m.find("vocab_size", within=("model_config", "text_config"), default=FIRST_SPECIAL)


def features_mask(m: Maker) -> torch.Tensor:
    """Ones for every frame of ``input_features``."""
    features = input_features(m)
    frames = 64 if features.shape[1] == 64 else features.shape[2]
    return torch.ones(BATCH, frames, dtype=torch.long)


def mask(m: Maker) -> torch.Tensor:
    """Ones, but for two padded positions of the last row."""
    made = torch.ones(BATCH, LENGTH, dtype=torch.long)
    made[-1, -2:] = 0
    return made


MAKERS: dict[str, Callable[[Maker], Any]] = {
    "input_ids": lambda m: m.tokens(BATCH, LENGTH, below=vocabulary(m)),
    "decoder_input_ids": lambda m: m.tokens(BATCH, 5),
    "pixel_values": pixel_values,
    "pixel_values_videos": video,
    "input_features": input_features,
    "input_features_mask": features_mask,
    "merge_sizes": lambda m: torch.tensor([1] * BATCH),
    "input_values": input_values,
    "attention_mask": mask,
    "bbox": lambda m: torch.randint(0, 50, (BATCH, LENGTH, 4), generator=m.rng).sort(-1)[0],
    "hidden_states": pixel_values,
    "grid_thw": lambda m: torch.tensor([[1, 4, 4]] * BATCH),
    "image_grid_thw": lambda m: torch.tensor([[1, 4, 4]] * BATCH),
    "inputs_embeds": lambda m: m.normal(BATCH, LENGTH, m.find("hidden_size")),
}


def kind(main: str) -> str:
    """Return what a main input is."""
    parts = {"input_ids": "text", "pixel": "images", "input_": "audio"}
    return next((k for part, k in parts.items() if main.startswith(part)), "other")


def candidates(model: PreTrainedModel) -> list[tuple[str, Inputs]]:
    """Return keyword arguments to call the model with, and what kind of input they are."""
    m = Maker(model)
    main = model.main_input_name
    main = main if isinstance(main, str) else main[0]
    special = SPECIAL.get(model.config.model_type)
    if special is not None:
        return [(kind(main), special(m))]
    names = dict.fromkeys([main, *m.required()])
    made = {name: MAKERS[name](m) for name in names if name in MAKERS}
    missing = [name for name in names if name not in MAKERS]
    if missing:
        raise NotImplementedError(f"no example for the inputs {', '.join(missing)}")
    if "input_ids" in made and m.takes("attention_mask"):
        made["attention_mask"] = mask(m)
    if m.takes("decoder_input_ids"):
        made["decoder_input_ids"] = MAKERS["decoder_input_ids"](m)
    if m.takes("bbox"):
        made["bbox"] = MAKERS["bbox"](m)
    if m.takes("use_cache"):
        made["use_cache"] = False
    found = [(kind(main), made)]
    if main == "input_ids" and m.takes("pixel_values"):
        found[0] = ("text alone, to a model of text and images", made)
        with contextlib.suppress(Exception):  # its images need more than a rule can know
            found.insert(0, ("text and images", _with_images(m, made)))
    return found


def _with_images(m: Maker, text: Inputs) -> Inputs:
    """Put image tokens before the text, as many as the images have features."""
    made = dict(text)
    made["pixel_values"] = pixel_values(m)
    if m.takes("image_grid_thw"):
        made["image_grid_thw"] = MAKERS["image_grid_thw"](m)
    if m.takes("image_sizes"):
        made["image_sizes"] = torch.tensor([image_size(m)] * BATCH)
    token = m.find("image_token_id", "image_token_index")
    features = getattr(m.model, "get_image_features", None)
    if token is None or features is None:
        return made
    keys = inspect.signature(features).parameters
    given = {k: v for k, v in made.items() if k in keys and k.startswith(("pixel", "image"))}
    with torch.no_grad():
        out = features(**given)
    out = getattr(out, "pooler_output", out)
    parts = [out] if isinstance(out, torch.Tensor) else list(out)
    count = sum(math.prod(part.shape[:-1]) for part in parts) // BATCH
    images = torch.full((BATCH, count), token)
    made["input_ids"] = torch.cat([text["input_ids"][:, :1], images, text["input_ids"][:, 1:]], 1)
    if "attention_mask" in made:
        made["attention_mask"] = torch.ones_like(made["input_ids"])
    if m.takes("mm_token_type_ids"):
        made["mm_token_type_ids"] = (made["input_ids"] == token).long()
    if m.takes("token_type_ids"):
        made["token_type_ids"] = (made["input_ids"] == token).long()
    return made
