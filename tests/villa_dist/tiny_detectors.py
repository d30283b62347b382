"""Detectors of a few thousand random weights, one of each family, written as the folders save_pretrained makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as T

EDGES = {"shortest_edge": 64, "longest_edge": 106}
FIXED = {"height": 64, "width": 96}
SQUARE = {"height": 64, "width": 64}
DECODER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_labels": 5,
}
NO_TIMM = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
RT = {
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "encoder_layers": 1,
    "d_model": 32,
    "num_queries": 9,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "num_labels": 5,
}
LAST_THREE = ["stage2", "stage3", "stage4"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "object", "cat"]


def _resnet(kind: type, out_features: list[str]) -> T.PretrainedConfig:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return kind(**sizes, out_features=out_features)


def _detr() -> T.PreTrainedModel:
    backbone = _resnet(T.ResNetConfig, ["stage4"])
    return T.DetrForObjectDetection(T.DetrConfig(**NO_TIMM, **DECODER, backbone_config=backbone, num_queries=7))


def _yolos() -> T.PreTrainedModel:
    config = T.YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 96],
        patch_size=16,
        num_detection_tokens=6,
        num_labels=5,
    )
    return T.YolosForObjectDetection(config)


def _deformable() -> T.PreTrainedModel:
    backbone = _resnet(T.ResNetConfig, LAST_THREE)
    config = T.DeformableDetrConfig(**NO_TIMM, **DECODER, backbone_config=backbone, num_queries=7, num_feature_levels=3)
    return T.DeformableDetrForObjectDetection(config)


def _rt_detr() -> T.PreTrainedModel:
    backbone = _resnet(T.RTDetrResNetConfig, LAST_THREE)
    return T.RTDetrForObjectDetection(T.RTDetrConfig(**RT, backbone_config=backbone, encoder_in_channels=[8, 12, 16]))


def _d_fine() -> T.PreTrainedModel:
    backbone = T.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 12, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 12, 16, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[8, 12, 16, 16],
        depths=[1, 1, 1, 1],
        embedding_size=8,
        out_features=LAST_THREE,
    )
    return T.DFineForObjectDetection(T.DFineConfig(**RT, backbone_config=backbone, encoder_in_channels=[12, 16, 16]))


def _owlv2() -> T.PreTrainedModel:
    shared = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shared, "vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**shared, "image_size": 64, "patch_size": 16}
    return T.Owlv2ForObjectDetection(T.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16))


def _grounding_dino() -> T.PreTrainedModel:
    swin = T.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64, out_features=LAST_THREE
    )
    bert = T.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    sizes = {k: v for k, v in DECODER.items() if k != "num_labels"}
    config = T.GroundingDinoConfig(
        **NO_TIMM,
        **sizes,
        backbone_config=swin,
        text_config=bert,
        num_queries=8,
        num_feature_levels=3,
        max_text_len=16,
    )
    return T.GroundingDinoForObjectDetection(config)


KINDS: dict[str, tuple[Callable[[], T.PreTrainedModel], str, dict[str, int], int]] = {
    "detr": (_detr, "DetrImageProcessor", EDGES, 7),
    "yolos": (_yolos, "YolosImageProcessor", EDGES, 6),
    "deformable_detr": (_deformable, "DeformableDetrImageProcessor", EDGES, 7),
    "rt_detr": (_rt_detr, "RTDetrImageProcessor", FIXED, 9),
    "d_fine": (_d_fine, "RTDetrImageProcessor", FIXED, 9),
    "owlv2": (_owlv2, "Owlv2ImageProcessor", SQUARE, 16),
    "grounding-dino": (_grounding_dino, "GroundingDinoImageProcessor", EDGES, 8),
}  # how it is made, its processor, the input it asks for, boxes an image


def write(kind: str, folder: Path) -> Path:
    make, processor, size, _ = KINDS[kind]
    torch.manual_seed(0)
    make().save_pretrained(folder)
    getattr(T, processor)(size=size).save_pretrained(folder)
    if kind == "grounding-dino":
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
        )
    return folder
