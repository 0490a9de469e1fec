"""What families of transformers models need beyond the rules of ``hf_config``.

A nested dict is for a part of the configuration, or stands in its place if it names a
``model_type``. ``_keep`` is a pattern of fields that stay as they are by default.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

RESNET: Fields = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 32, 64],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage4"],
}
MROPE: Fields = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
}
HALF_MROPE: Fields = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 2],
    }
}
MUSE_AUDIO: Fields = {
    "_keep": "depths|num_hidden",
    "depths": (1, 1, 1, 1),
    "hidden_sizes": (8, 16, 32, 64),
}
MAMBA: Fields = {"mamba_n_heads": 8, "mamba_d_head": 16}
HGNET: Fields = {"_keep": "stem_|stage_|hidden_sizes", "stage_numb_of_layers": (2, 2, 2, 2)}
SERIES: Fields = {"prediction_length": 4, "context_length": 8}
EFFICIENTNET: Fields = {
    "_keep": "channels|hidden_dim",
    "width_coefficient": 1.0,
    "depth_coefficient": 0.1,
    "hidden_dim": 1280,
    "image_size": 64,
}
COMPASS: Fields = {
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
        for kind in ("sliding_attention", "full_attention")
    },
}
HIERA: Fields = {
    "hidden_size": 8,
    "embed_dim_per_stage": [8, 16, 32, 64],
    "blocks_per_stage": [1, 2, 2, 1],
    "image_size": [128, 128],
    "global_attention_blocks": [4],
    "window_size_per_stage": [8, 4, 4, 2],
}
HIERA_FPN: Fields = {
    "backbone_config": HIERA,
    "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
}
INDEXER: Fields = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 100,
}
XDROPE: Fields = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "xdrope_section": [2, 2, 2, 2]}
}
SAM: Fields = {
    "vision_config": {
        "image_size": 128,
        "window_size": 4,
        "global_attn_indexes": (1,),
        "num_pos_feats": 32,
    },
    "prompt_encoder_config": {"image_size": 128, "image_embedding_size": 8},
}
TILE: Fields = {"image_size": 32, "patch_size": 8}
TOKENIZER: Fields = {"num_filters": 4, "depths": (1, 1, 1, 1, 1, 1, 1)}
MIMI: Fields = {"upsample_groups": 64, "vector_quantization_hidden_dimension": 64}
MOBILENET: Fields = {
    "architecture": "mobilenetv5_300m_enc",
    "model_args": {"channel_multiplier": 0.1},
}
PE_VISION: Fields = {
    "vision_config": {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_large_patch14_336",
        "model_args": {
            "depth": 2,
            "embed_dim": 64,
            "num_heads": 4,
            "img_size": 64,
            "patch_size": 16,
        },
    }
}
REPVIT: Fields = {
    "backbone_config": {
        "architecture": "repvit_m1",
        "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    },
    "backbone_channel_list": [384, 192, 96, 48],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}
FULL_VISION: Fields = {"vision_config": {"fullatt_block_indexes": (1,), "window_size": 56}}

FAMILIES: dict[str, Fields] = {
    "align": {"vision_config": EFFICIENTNET, "projection_dim": 320},
    "aria": {
        "projector_patch_to_query_dict": {16: 4},
        "vision_config": {"image_size": 64, "patch_size": 16},
    },
    "autoformer": {"prediction_length": 4, "context_length": 12, "label_length": 6},
    "aya_vision": {"vision_config": {"image_size": 64, "patch_size": 16}},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "blip-2": {"image_token_id": 99},
    "chameleon": {"vocabulary_map": {"<image>": 8}, "image_token_id": 8},
    "clap": {"audio_config": {"_keep": "spec_size", "hidden_size": 512}},
    "clvp": {
        "text_config": {"num_attention_heads": 2},
        "speech_config": {"num_attention_heads": 2},
    },
    "codegen": {"rotary_dim": 8},
    "cohere_compass": {"text_config": COMPASS},
    "cohere_compass_text": COMPASS,
    "conditional_detr": {"backbone_config": RESNET},
    "csm": {"codec_config": MIMI},
    "cvt": {"depth": (1, 2, 3)},
    "d_fine": {"backbone_config": HGNET, "_keep": "encoder_in_channels|stage"},
    "dab-detr": {"backbone_config": RESNET},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_ocr2": {
        "text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]}
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deformable_detr": {
        "backbone_config": {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}
    },
    "deimv2": {"backbone_config": HGNET, "_keep": "encoder_in_channels|stage"},
    "depth_pro": {
        "patch_size": 32,
        "image_model_config": TILE,
        "patch_model_config": TILE,
        "fov_model_config": TILE,
        "intermediate_hook_ids": (1, 0),
        "intermediate_feature_dims": (64, 64),
        "scaled_images_feature_dims": (64, 64, 32),
    },
    "detr": {"backbone_config": RESNET},
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "edgetam": {"vision_config": REPVIT, "prompt_encoder_config": {"image_size": 64}},
    "edgetam_vision_model": REPVIT,
    "efficientloftr": {
        "out_features": [8, 16, 32, 64],
        "stage_num_blocks": [1, 1, 1, 1],
        "num_attention_heads": 8,
    },
    "efficientnet": EFFICIENTNET,
    "emu3": {"vocabulary_map": {"<image>": 8}, "image_token_id": 8},
    "ernie4_5_vl_moe": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [3, 3, 2],
            }
        }
    },
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "exaone4_5": FULL_VISION,
    "exaone4_5_vision": {"fullatt_block_indexes": (1,), "window_size": 56},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "fast_vlm": {
        "vision_config": {"architecture": "fastvit_t8", "_keep": "model_args", "hidden_size": 768}
    },
    "fastspeech2_conformer_with_hifigan": {
        "vocoder_config": {"_keep": "model_in_dim", "upsample_initial_channel": 32}
    },
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "funnel": {"block_sizes": (1, 1, 1), "architectures": []},
    "fuyu": {"patch_size": 8},
    "gemma3": {"vision_config": {"image_size": 64, "patch_size": 16}, "mm_tokens_per_image": 4},
    "gemma3n": {"vision_config": MOBILENET},
    "gemma3n_vision": MOBILENET,
    "glm46v": {"text_config": MROPE},
    "glm4v": {"text_config": MROPE},
    "glm4v_moe": {"text_config": HALF_MROPE},
    "glm4v_moe_text": HALF_MROPE,
    "glm4v_text": MROPE,
    "glm5_next": {"text_config": {"index_topk": 16}},
    "glm5_next_text": {"index_topk": 16},
    "glm_image": {"text_config": MROPE},
    "glm_image_text": MROPE,
    "glm_ocr": {"text_config": MROPE},
    "glm_ocr_text": MROPE,
    "glmga": {"text_config": MROPE},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granite4_vision": {
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1],
        "vision_config": {"image_size": 64, "patch_size": 16},
    },
    "granitemoehybrid": MAMBA,
    "grounding-dino": {"_keep": "num_heads"},
    "hgnet_v2": HGNET,
    "hunyuan_vl": {"text_config": XDROPE},
    "hunyuan_vl_text": XDROPE,
    "hyperclovax_vision_v2": FULL_VISION,
    "informer": {"prediction_length": 4, "context_length": 12, "label_length": 6},
    "inkling_mm_model": {"vision_config": {"num_hidden_layers": 4}},
    "instructblip": {"image_token_id": 99},
    "instructblipvideo": {"video_token_index": 99, "vision_config": {"image_size": 28}},
    "layoutlmv3": {
        "_keep": "coordinate_size|shape_size",
        "coordinate_size": 10,
        "shape_size": 12,
        "input_size": 64,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lightglue": {"keypoint_detector_config": {"_keep": "keypoint_decoder_dim"}},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 96, "num_attention_heads": 4},
    "llava": {"vision_config": {"image_size": 64}},
    "lw_detr": {
        "projector_scale_factors": [2.0, 0.5],
        "backbone_config": {
            "image_size": 64,
            "num_windows": 4,
            "num_windows_side": 2,
            "window_block_indices": [0],
            "out_indices": [1, 2],
        },
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "mask2former": {"_keep": "num_attention_heads", "feature_size": 64},
    "mimi": MIMI,
    "mimi_decoder": MIMI,
    "mistral3": {"vision_config": {"image_size": 64}},
    "minicpm_ocr_vision": {"insert_layer_id": 0},
    "minicpmv4_7_vision": {"insert_layer_id": 0},
    "mllama": {
        "vision_config": {
            "image_size": 56,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 192,
            "num_global_layers": 1,
        },
        "text_config": {"cross_attention_layers": [1]},
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_glimmer_assistant": {"target_layer_ids": [0, 1]},
    "muse_spark": {"audio_config": MUSE_AUDIO},
    "muse_spark_audio": MUSE_AUDIO,
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "neucodec": {"quantization_dim": 128},
    "omdet-turbo": {
        "apply_layernorm_after_vision_backbone": False,
        "d_model": 64,
        "task_encoder_hidden_dim": 128,
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 2],
            "out_features": ["stage2", "stage3", "stage4"],
            "image_size": 64,
        },
        "encoder_in_channels": [32, 64, 128],
        "vision_features_channels": [64, 64, 64],
    },
    "paddleocr_vl": {"text_config": MROPE},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
    },
    "pe_audio_video": {"audio_video_config": {"video_config": PE_VISION}},
    "pe_audio_video_encoder": {"video_config": PE_VISION},
    "pe_video": {"video_config": PE_VISION},
    "pe_video_encoder": PE_VISION,
    "perception_lm": PE_VISION,
    "pi0": {"vlm_config": {"vision_config": {"image_size": 28}}},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 64},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 64},
    "pp_doclayout_v3": {"backbone_config": HGNET, "_keep": "encoder_in_channels|stage|x4_feat_dim"},
    "pp_doclayout_v4": {"backbone_config": HGNET, "_keep": "encoder_in_channels|stage"},
    "pp_ocrv5_server_rec": {"backbone_config": HGNET, "_keep": "stage"},
    "pp_ocrv6_small_det": {
        "backbone_config": {
            "_keep": "stem|stage|channels",
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "layer_list_out_channels": (96, 96, 192, 384),
    },
    "pp_ocrv6_small_rec": {"backbone_config": {"_keep": "stem|stage|channels"}},
    "pp_ocrv6_tiny_rec": {"backbone_config": {"_keep": "stem|stage|channels"}},
    "qwen2_5_omni_thinker": {"text_config": MROPE, **FULL_VISION, "vision_start_token_id": 90},
    "qwen2_5_vl": {"text_config": MROPE, **FULL_VISION},
    "qwen2_5_vl_text": MROPE,
    "qwen2_5_vl_vision": {"fullatt_block_indexes": (1,), "window_size": 56},
    "qwen2_vl": {"text_config": MROPE},
    "qwen2_vl_text": MROPE,
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 90},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "reformer": {
        "axial_pos_shape": (4, 8),
        "axial_pos_embds_dim": (16, 48),
        "attn_layers": ["local", "lsh"],
        "num_hashes": 1,
        "hash_seed": 0,
        "num_buckets": 4,
    },
    "rf_detr": {
        "backbone_config": {"image_size": 112, "num_windows": 2, "window_block_indexes": [0]}
    },
    "rt_detr": {
        "backbone_config": {"hidden_sizes": [16, 32, 64, 128]},
        "encoder_in_channels": [32, 64, 128],
    },
    "rt_detr_v2": {
        "backbone_config": {"hidden_sizes": [16, 32, 64, 128]},
        "encoder_in_channels": [32, 64, 128],
    },
    "sam": SAM,
    "sam2": {"vision_config": HIERA_FPN, "prompt_encoder_config": {"image_size": 128}},
    "sam2_hiera_det_model": HIERA,
    "sam2_vision_model": HIERA_FPN,
    "sam_hq": SAM,
    "sapiens2": {
        "num_key_value_heads_per_layer": [4, 2],
        "num_key_value_attention_heads": 2,
        "num_first_full_attention_layers": 1,
        "num_last_full_attention_layers": 0,
    },
    "seggpt": {
        "merge_index": 0,
        "intermediate_hidden_state_indices": (1,),
        "image_size": (64, 32),
        "pretrain_image_size": 32,
    },
    "siglip2": {"vision_config": {"patch_size": 8}},
    "step3p7": {"text_config": {"sliding_window": 8}, "vision_config": {"image_size": 56}},
    "table-transformer": {"backbone_config": RESNET},
    "textnet": {"_keep": "hidden_sizes|depths", "image_size": (64, 64)},
    "time_series_transformer": SERIES,
    "timm_backbone": {"backbone": "resnet18"},
    "timm_wrapper": {"architecture": "resnet18"},
    "tvp": {"num_frames": 2, "max_img_size": 128, "visual_prompt_size": 8},
    "uvdoc": {
        "backbone_config": {"_keep": "depths", "out_features": [f"stage{i}" for i in range(1, 7)]}
    },
    "vibevoice": {"audio_config": TOKENIZER, "semantic_model_config": TOKENIZER},
    "vibevoice_acoustic_tokenizer": TOKENIZER,
    "vibevoice_acoustic_tokenizer_decoder": TOKENIZER,
    "vibevoice_acoustic_tokenizer_encoder": TOKENIZER,
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config": TOKENIZER,
        "semantic_tokenizer_encoder_config": TOKENIZER,
        "acoustic_tokenizer_chunk_size": 6400,
    },
    "vits": {"noise_scale": 0.0, "noise_scale_duration": 0.0},
    "xcodec2": {"quantization_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
}
