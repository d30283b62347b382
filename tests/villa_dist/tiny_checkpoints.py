"""Tiny random checkpoints, written by the library itself, tokenizers included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

SIDE, PATCH, DIM = 48, 8, 24
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FAMILIES = ("clip", "siglip", "siglip2")


def write(family: str, folder: Path) -> tuple[Any, Any]:
    """(model, image processor) as saved in `folder`."""
    torch.manual_seed(7)
    model, processor, tokenizer = {"clip": clip, "siglip": siglip, "siglip2": siglip2}[family]()
    with torch.no_grad():  # the library starts biases and norms at 0 and 1, where much goes unseen
        for name, parameter in model.named_parameters():
            if parameter.ndim and not name.startswith("logit"):
                parameter += 0.1 * torch.randn_like(parameter)
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return model.eval(), processor


def clip() -> tuple[Any, Any, Any]:
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {w: i for i, w in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=12)
    text = {**TINY, "vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config=text, vision_config={**TINY, "image_size": SIDE, "patch_size": PATCH}, projection_dim=DIM
    )
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return CLIPModel(config), CLIPImageProcessorPil(**size), tokenizer


def siglip() -> tuple[Any, Any, Any]:
    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "a", "cat", "dog", "red", "two"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="</s>", eos_token="</s>", unk_token="<unk>", model_max_length=9
    )
    text = {**TINY, "vocab_size": len(words), "max_position_embeddings": 9, "projection_size": TINY["hidden_size"]}
    config = SiglipConfig(text_config=text, vision_config={**TINY, "image_size": SIDE, "patch_size": PATCH})
    return SiglipModel(config), SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer


def siglip2() -> tuple[Any, Any, Any]:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "ca", "cat"]
    vocabulary = {w: i for i, w in enumerate(words)}
    tokenizer = Siglip2Tokenizer(
        vocab=vocabulary, merges=[("c", "a"), ("ca", "t")], model_max_length=14, padding_side="right"
    )
    text = {**TINY, "vocab_size": len(words), "max_position_embeddings": 14, "projection_size": TINY["hidden_size"]}
    config = Siglip2Config(text_config=text, vision_config={**TINY, "num_patches": 36, "patch_size": PATCH})
    processor = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=36)
    return Siglip2Model(config), processor, tokenizer
