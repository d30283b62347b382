"""A small data set of coloured squares with known boxes, and models of known quality, for evaluation as a part of a run."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from shards.work import Job
from villa_dist import models
from villa_dist.config import Config
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.train.jobs import model_folder
from villa_dist.vlm.model import RegionVLM

COLOURS = ("red", "green", "blue")
SIDE, IMAGES, SHARDS = 48, 10, 3
TEST = range(1, SHARDS * IMAGES + 1)
PROMPTS = {c: [f"a {c} square", c] for c in COLOURS}
QUALITY = {"one_to_one": 0.5, "villa": 1.0}  # of `Seer`, by model
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
                    meta["first"] = names[0] if names else None
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
            "evaluate": {"recall": [], "detection": {"bootstrap": 20, **detection}},
        }
    )


def evaluating(folder: Path, **evaluate: Any) -> Config:
    """`config_of` with other parts of evaluation."""
    values = config_of(folder).model_dump(mode="json") | {"evaluate": {"bootstrap": 20, "recall": [], **evaluate}}
    return Config.model_validate(values)


def evaluated(config: Config, runner: Any = None, *, force: bool = False) -> dict[str, Any]:
    result: dict[str, Any] = Pipeline(config, runner or LocalRunner(), force=force).run(["evaluate"])
    return result


def whole_of(number: int, right: float) -> np.ndarray:
    pixels = torch.from_numpy(squares(number)[0]).permute(2, 0, 1)[None]
    return Seer(right).embed_whole(pixels, torch.tensor([[48, 48]]))[0].double().numpy()


def words_of(text: str) -> np.ndarray:
    found = np.array([float(c in text) for c in COLOURS])
    return found / max(float(np.linalg.norm(found)), 1e-12)


def cosines(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    return np.round(np.array([[x @ y for y in b] for x in a]), 6)


def question(number: int, box: list[int], colour: str) -> dict[str, Any]:
    x, y, right, low = box
    wrong = [f"a {c} square" for c in COLOURS if c != colour]
    row = {"img_path": f"val/{number:06d}.png", "bbox": [x, y, right - x, low - y], "image_id": number}
    return {**row, "pos_expression": [f"a {colour} square"], "neg_expression": wrong, "width": 48, "height": 48}


def questions(numbers: range = TEST) -> list[dict[str, Any]]:
    return [question(n, b, c) for n in numbers for b, c in zip(*squares(n)[1:], strict=True)]


def annotations(folder: Path, rows: list[dict[str, Any]] | None = None, name: str = "hard.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in (questions() if rows is None else rows)))
    return str(folder / name)


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

    def embed_whole(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        each = [pixels[n, :, :h, :w].float().mean((1, 2)) for n, (h, w) in enumerate(sizes.tolist())]
        return torch.nn.functional.normalize(torch.stack(each) ** (4 * self.right), dim=1)

    def tokenize(self, texts: list[str]) -> list[str]:
        return texts

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(c in t) for c in COLOURS] for t in texts])


class Cut(LocalRunner):
    """Dies after so many shards of one stage."""

    def __init__(self, stage: str, after: int) -> None:
        self.stage, self.after = stage, after

    def shards(self, job: Job, shards: Sequence[str], done: Callable[[str], None], again: Any = None) -> None:
        if getattr(job, "folder", "") != self.stage:
            return super().shards(job, shards, done, again)
        super().shards(job, shards[: self.after], done, again)
        raise KeyboardInterrupt


class Backwards(LocalRunner):
    """A worker of its own for each shard, the last first."""

    def shards(self, job: Job, shards: Sequence[str], done: Callable[[str], None], again: Any = None) -> None:
        for shard in reversed(shards):
            super().shards(job, [shard], done, again)
