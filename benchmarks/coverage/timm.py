"""timm: one architecture of every module of ``timm.models``, the smallest that it registers.

Smallest by parameters, without the toy architectures (``test_...``) that timm registers for its
own tests. A few modules have more than one, because their architectures differ in kind.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.coverage.common import Case
from benchmarks.coverage.vision import case, images, on_path

TITLE = "timm"
INTRO = (
    "Of every module of `timm.models` the smallest architecture, and a few more. All weights are "
    "random (also heads and layer scales that start at zero), batch-norm statistics are measured "
    "and disturbed; two random images, 128 x 128 where the architecture takes that and its own "
    "size where not. A case passes within 1e-4 of the largest output."
)
TIMEOUT = 900.0
TARGET = 1.0

SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
MORE = (
    *("byobnet/repvgg_a0", "convnext/convnext_atto", "efficientnet/efficientnet_b0"),
    *("efficientnet/tf_efficientnetv2_b0", "maxxvit/coatnet_nano_rw_224", "resnet/resnet50"),
    *("regnet/regnety_002", "vision_transformer/vit_base_patch32_224"),
)
SIZE = 128
DEPTH = {"deepseek_vit_412m": {"depth": 4}, "gemma4_vit_167m": {"depth": 4}}
"""Less deep than registered: their blocks are all alike, and large."""


def names() -> list[str]:
    """Return ``module/architecture``; a module that is not in the table gives its first."""
    on_path()
    from timm.models import _registry  # pyright: ignore

    registered: dict[str, list[str]] = defaultdict(list)
    for name, module in _registry._model_to_module.items():
        registered[module].append(name)
    chosen = {module: SMALLEST.get(module, min(found)) for module, found in registered.items()}
    return sorted([*(f"{module}/{name}" for module, name in chosen.items()), *MORE])


def run(name: str) -> list[Case]:
    """Convert one architecture, and compare."""
    on_path()
    import timm
    import torch

    torch.manual_seed(0)
    architecture = name.split("/")[-1]
    build: Any = timm.create_model  # pyright: ignore
    module = build(architecture, **DEPTH.get(architecture, {})).eval()
    return [case(name, module, (image_pair(module),))]


def image_pair(module: Any) -> Any:
    """Return two random images of a size that the module takes."""
    import torch

    config = module.pretrained_cfg
    channels, *own = config.get("input_size", (3, 224, 224))
    small = [min(SIZE, size) for size in own]
    if not config.get("fixed_input_size"):
        try:
            with torch.no_grad():
                module(images(2, channels, *small))
        except (AssertionError, RuntimeError, ValueError):
            small = own  # windows and strides that need its own size
        return images(2, channels, *small)
    return images(2, channels, *own)
