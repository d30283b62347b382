"""A small data set of coloured squares with known boxes, and models of known quality, on which detection is evaluated."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from villa_dist import models
from villa_dist.config import Config
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.train.jobs import model_folder
from villa_dist.vlm.model import RegionVLM

COLOURS = ("red", "green", "blue")
SIDE, IMAGES, SHARDS = 48, 10, 3
IDS = {"red": 7, "green": 3, "blue": 12}


def squares(seed: int) -> tuple[np.ndarray, list[list[int]], list[str]]:
    """Pixels, corners and colours of up to four squares, one in each quarter of an image."""
    r = np.random.default_rng(seed)
    pixels = np.full((SIDE, SIDE, 3), 20, np.uint8)
    boxes, names = [], []
    for quarter in range(4):
        if r.random() < 0.3:
            continue
        side = int(r.integers(9, 20))
        x, y = (int(r.integers(0, 24 - side)) + 24 * (quarter >> i & 1) for i in (0, 1))
        colour = int(r.integers(0, 3))
        pixels[y : y + side, x : x + side] = 0
        pixels[y : y + side, x : x + side, colour] = 250
        boxes.append([x, y, x + side, y + side])
        names.append(COLOURS[colour])
    return pixels, boxes, names


def write_data(folder: Path, shards: int = SHARDS) -> dict[str, Any]:
    """Two shards' folders (train, test) of tars, and the same boxes as a COCO truth."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": n, "name": c} for c, n in IDS.items()]
    for split, first in (("train", 1000), ("test", 1)):
        (folder / split).mkdir(parents=True)
        for shard in range(shards):
            with tarfile.open(folder / split / f"{shard}.tar", "w") as tar:
                for n in range(shard * IMAGES, (shard + 1) * IMAGES):
                    number = first + n
                    pixels, boxes, names = squares(number)
                    meta = {"image_id": number, "boxes": boxes, "categories": names, "crowd": [0] * len(boxes)}
                    if split == "test":
                        truth["images"].append({"id": number})
                        truth["annotations"] += [
                            {"image_id": number, "category_id": IDS[c], "bbox": [x, y, right - x, low - y]}
                            for (x, y, right, low), c in zip(boxes, names, strict=True)
                        ]
                    sink = io.BytesIO()
                    Image.fromarray(pixels).save(sink, "PNG")
                    text = " and ".join(f"a {c} square" for c in names) or "an empty picture"
                    for suffix, data in (
                        ("png", sink.getvalue()),
                        ("txt", text.encode()),
                        ("json", json.dumps(meta).encode()),
                    ):
                        info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    return truth


def config_of(folder: Path, **detection: Any) -> Config:
    """`folder` may be a copy: its shards are bound to where they were first."""
    data = (folder / "where").read_text()
    return Config.model_validate(
        {
            "run": str(folder / "run"),
            "data": {"source": "shards", "train": f"{data}/train", "test": f"{data}/test"},
            "vocabulary": {"attributes": [{"phrase": c} for c in COLOURS]},
            "model": {"image": {"width": 8}, "text": {"buckets": 256}},
            "regions": {"proposals": "grid", "grid": [2, 2], "grid_levels": 2},
            "evaluate": {"detection": {"bootstrap": 20, **detection}},
        }
    )


def prepared(folder: Path) -> dict[str, Any]:
    """Ingested, with one-to-one and ViLLA of random weights. Returns the truth."""
    truth = write_data(folder)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "where").write_text(str(folder))
    config = config_of(folder)
    Pipeline(config, LocalRunner()).run(["ingest", "vocabulary"])
    for seed, job in enumerate(("one_to_one", "villa")):
        torch.manual_seed(seed)
        models.write(model_folder(config, job), RegionVLM(config.model).eval(), "f" * 16)
    return truth


class Seer(nn.Module):
    """Knows the colour of what is in a box and in a text. right: the share of boxes that it sees as they are."""

    def __init__(self, right: float) -> None:
        super().__init__()
        self.right, self.dim = right, 3
        self.unused = nn.Parameter(torch.zeros(1))

    def embed_regions(self, pixels: Tensor, boxes: Tensor, image_of: Tensor, sizes: Tensor) -> Tensor:
        found = torch.zeros(len(boxes), 3)
        for n, (x, y, right, low) in enumerate(boxes.round().long().tolist()):
            colour = pixels[image_of[n], :, y:low, x:right].float().mean((1, 2))
            wrong = (x * 7 + y * 3 + right) % 10 >= 10 * self.right
            found[n] = torch.roll(colour, 1) if wrong else colour
        return torch.nn.functional.normalize(found + 1e-3, dim=1)

    def tokenize(self, texts: list[str]) -> list[str]:
        return texts

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(c in t) for c in COLOURS] for t in texts])
