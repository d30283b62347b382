"""Claim: dense regions (one map an image, RoIAlign) cost a fraction of encoding each region as an image of its own.

    python -m benchmarks.encoders [ROUNDS]

CPU milliseconds (this process, one thread, median of rounds, each tower's variants in turn within a round) for one photo
of 480 x 640 with 8 regions, on towers of real size with random weights: CLIP RN50 and ViT-B/16 of CLIP and SigLIP at
224 pixels. `whole` is the whole image alone, resizing included; a dense input has about as many pixels as a whole one.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from villa_dist.config import ModelConfig
from villa_dist.encoders.clip_rn50 import ResNetSizes
from villa_dist.encoders.clip_text import TextSizes
from villa_dist.encoders.hf_library import config_class
from villa_dist.encoders.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from villa_dist.encoders.published import Family, Published
from villa_dist.encoders.tokenizer import bpe_tokenizer
from villa_dist.vlm.model import RegionVLM

REGIONS = 8
HALF = (0.5, 0.5, 0.5)


def tower(name: str, regions: str) -> RegionVLM:
    """Of real size where it is measured, and with a small text tower, which is not."""
    tokenizer = bpe_tokenizer([], 16)
    image = {"regions": regions, "kind": "clip_rn50" if name == "clip_rn50" else "hf"}
    values = {"image": image, "weights": "random", "text": {"vocabulary": "none"}}
    config = ModelConfig.model_validate(values)
    if name == "clip_rn50":
        sizes = ResNetSizes((3, 4, 6, 3), 64, 32, 224, 1024)
        text = TextSizes(1, 64, 1, 16, 514, 1024)
        architecture = {"image": sizes.as_json(), "text": text.as_json()}
        published = Published(
            "clip_resnet", architecture, Preprocess(224, CLIP_MEAN, CLIP_STD, 224), 1024, 4.6, tokenizer
        )
    else:
        family: Family = "clip" if name == "clip_vit_b16" else "siglip"
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
        library = config_class(family)(
            text_config={**small, "vocab_size": 600, "projection_size": 768},
            vision_config={**vision, "patch_size": 16, "image_size": 224},
        )
        mean, std, short = (CLIP_MEAN, CLIP_STD, 224) if family == "clip" else (HALF, HALF, None)
        dim = 512 if family == "clip" else 768
        published = Published(family, library.to_dict(), Preprocess(224, mean, std, short), dim, 4.6, tokenizer)
    return RegionVLM(config, published).eval()


def cpu_ms(work: Callable[[], torch.Tensor]) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def measure(name: str, rounds: int) -> dict[str, float]:
    make = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, 480, 640), dtype=torch.uint8, generator=make)
    low = torch.rand(REGIONS, 2, generator=make) * torch.tensor([440.0, 280.0])
    boxes = torch.cat([low, low + 60 + torch.rand(REGIONS, 2, generator=make) * 140], 1)
    image_of = torch.zeros(REGIONS, dtype=torch.int64)
    dense, crops = tower(name, "dense"), tower(name, "crops")
    works: dict[str, Callable[[], torch.Tensor]] = {
        "whole": lambda: dense.embed_whole(pixels),
        "dense": lambda: dense.embed_regions(pixels, boxes, image_of),
        "crops": lambda: crops.embed_regions(pixels, boxes, image_of),
    }
    found: dict[str, list[float]] = {key: [] for key in works}
    with torch.inference_mode():
        for work in works.values():
            work()
        for _ in range(rounds):
            for key, work in works.items():
                found[key].append(cpu_ms(work))
    ratios = [c / d for c, d in zip(found["crops"], found["dense"], strict=True)]
    result = {f"{key}_ms": round(statistics.median(values), 1) for key, values in found.items()}
    result["dense_ms_a_region"] = round(result["dense_ms"] / REGIONS, 1)
    result["crops_ms_a_region"] = round(result["crops_ms"] / REGIONS, 1)
    result["crops_over_dense"] = round(statistics.median(ratios), 2)
    result["ratio_low"], result["ratio_high"] = round(min(ratios), 2), round(max(ratios), 2)
    return result


def main() -> None:
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    names = ("clip_rn50", "clip_vit_b16", "siglip_b16")
    print(json.dumps({"regions": REGIONS, "rounds": rounds, **{n: measure(n, rounds) for n in names}}))


if __name__ == "__main__":
    main()
