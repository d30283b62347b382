"""Runs with nothing to learn from, and images that have nothing to say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import VillaError
from shards.tar import TarWriter
from villa_dist.config import Config
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.train.jobs import mention_counts

STAGES = ("ingest", "vocabulary", "regions")
BOXES = [[0, 0, 10, 10], [10, 10, 30, 30]]


def config(folder: Path, samples: list[tuple[str, list[list[int]]]]) -> Config:
    """samples: the text and the boxes of each image."""
    (folder / "tars").mkdir()
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(buffer, "PNG")
    with open(folder / "tars/0.tar", "wb") as file:
        tar = TarWriter(file)
        for n, (text, boxes) in enumerate(samples):
            told = {"json": json.dumps({"boxes": boxes}).encode(), "png": buffer.getvalue(), "txt": text.encode()}
            for suffix, data in told.items():
                tar.add(f"{n:04d}.{suffix}", data)
        tar.close()
    job = {"steps": 1, "batch_images": 4, "workers": 1}
    return Config.model_validate(
        {
            "run": str(folder / "run"),
            "runner": "local",
            "data": {"source": "shards", "train": str(folder / "tars"), "test": str(folder / "tars")},
            "vocabulary": {"attributes": [{"phrase": p, "group": "animal"} for p in ("cat", "dog")], "min_count": 0},
            "model": {"image": {"width": 8}, "text": {"buckets": 64}},
            "pretrain": job,
            "train": job,
            "mapping": {"fit": job},
        }
    )


def test_images_without_regions_do_not_count_for_the_rates(tmp_path: Path) -> None:
    """They have no region that could have what their text mentions, nor lack it."""
    given = config(tmp_path, [("a cat", BOXES), ("a dog", BOXES), ("a cat", []), ("a cat and a dog", []), ("x", [])])
    Pipeline(given, LocalRunner()).run(STAGES)
    images_with, mentions = mention_counts(given, 2)
    assert images_with.tolist() == [0, 0, 2] and mentions.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([("a cat", [])] * 4, r"no image has a region.*regions\.proposals=annotations"),
        ([("a bird", BOXES)] * 4, r"no text mentions an attribute.*vocabulary\.lists"),
    ],
)
def test_a_mapping_of_nothing_is_refused(samples: list, said: str, tmp_path: Path) -> None:
    given = config(tmp_path, samples)
    pipeline = Pipeline(given, LocalRunner())
    pipeline.run(("ingest", "vocabulary", "pretrain", "regions"))
    with pytest.raises(VillaError, match=said):
        pipeline.run(("fit-mapping",))
    assert not (tmp_path / "run/models/mapping/done.json").exists()


def test_a_vlm_of_no_pairs_is_refused(tmp_path: Path) -> None:
    """Some images have regions, others are mentioned, none is both."""
    given = config(tmp_path, [("a cat", []), ("a bird", BOXES)] * 4)
    pipeline = Pipeline(given, LocalRunner())
    pipeline.run(("ingest", "vocabulary", "pretrain", "regions", "fit-mapping", "pairs"))
    with pytest.raises(VillaError, match=r"no region was assigned an attribute.*villa status"):
        pipeline.run(("train",))
    assert not (tmp_path / "run/models/villa/done.json").exists()
