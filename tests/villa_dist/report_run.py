"""Runs made without training, whose reports are tested: of known quality, of foreign data, measured by made-up models."""

from __future__ import annotations

import io
import json
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards import manifest, sidecar
from shards.collect import commit_rows
from shards.commit import StageFolder
from shards.reader import BaseShard
from shards.store import Store
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.config_file import dump, load
from villa_dist.evaluate import assemble, items
from villa_dist.evaluate.assemble import pair_rows
from villa_dist.evaluate.retrieval import r_precision
from villa_dist.names import JOBS
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.stages.pairs import pairs_table
from villa_dist.types import RegionAttributePairs

HOSTILE = "<script>alert(1)</script>"
MEASURED = {
    "one_to_one": {"a2r": 41.07, "r2a": 55.5, "a2r_by_group": {"digit": 22.25, "colour": 77.13}, "regions": 90},
    "villa": {"a2r": 61.39, "r2a": 54.25, "a2r_by_group": {"digit": 51.31, "colour": 80.04}, "regions": 90},
    "ground_truth": {"a2r": 81.71, "r2a": 60.5, "a2r_by_group": {"digit": 70.02, "colour": 99.99}, "regions": 90},
    "mapping": {"precision": 71.23, "recall": 64.56, "f1": 67.73, "f1_by_group": {"digit": 50.17}, "pairs": 321},
}


class Page(HTMLParser):
    """Elements, attributes, and table rows of a report as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []  # the type of data, the text of code
        self._cell = self._style = self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._style, self._script = tag == "style", tag == "script"
        if tag == "script":
            self.scripts.append(dict(attrs).get("type") or "")
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        self._style, self._script = self._style and tag != "style", self._script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._script and not self.scripts[-1].startswith("application/"):
            self.scripts[-1] += data
        if not self._style and not self._script:
            self.words.append(data)
        if self._cell:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return [cell.strip() for cell in next(r for r in self.rows if r and r[0].strip() == first)]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


# ---- runs made without training


def docmnist_run(folder: Path) -> Config:
    """A finished run: DocMNIST, pairs of known quality, hand-written metrics."""
    config = load(
        None,
        [f"run={folder}", "runner=local", "docmnist.shard_images=8", "docmnist.images={train: 12, test: 20}", "seed=3"],
    )
    Pipeline(config, LocalRunner()).run(["ingest", "vocabulary"])
    for shard in manifest.read(StageFolder(f"{config.run}/test", "base")).shards:
        write_pairs(config, "test", shard, [spoiled(p) for p in pair_rows(config, "test", "truth", shard)])
    finish_pairs(config, "test")
    put(config, "results.json", json.dumps({"metrics": MEASURED, "splits": {"test": MEASURED}, "images": {"test": 20}}))
    for job in JOBS:
        lines = [{"step": s, "loss": 9.0 / s, "images_per_second": 100.0 + s, "data_wait": 0.02} for s in (10, 20, 30)]
        put(config, f"models/{job}/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    return config


def spoiled(true: RegionAttributePairs) -> RegionAttributePairs:
    """The true pairs without the first, and with a wrong one in its place."""
    region, attribute = true.region.copy(), true.attribute.copy()
    attribute[0] = (attribute[0] + 1) % 10  # another digit
    return RegionAttributePairs(true.boxes, region, attribute, np.full(len(region), 0.75, np.float16))


def write_pairs(
    config: Config, split: str, shard: str, pairs: list[RegionAttributePairs], quality: dict[str, float] | None = None
) -> None:
    """quality: what the shard's marker says of its mapping."""
    keys = BaseShard(StageFolder(f"{config.run}/{split}", "base"), shard).keys
    with StageFolder(f"{config.run}/{split}", "pairs").attempt(shard) as attempt:
        attempt.write(f"{shard}.parquet", sidecar.to_bytes(pairs_table(keys, pairs)))
        counts = {"pairs": sum(len(p.region) for p in pairs), **(quality or {})}
        made_from = {"stage": "pairs", "fingerprint": "0" * 16, "input_digest": ""}
        commit_rows(attempt, shard, keys=keys, seconds={"embed": 1.25, "map": 0.5}, counts=counts, **made_from)


def finish_pairs(config: Config, split: str) -> None:
    folder = StageFolder(f"{config.run}/{split}", "pairs")
    manifest.write(folder, folder.shards_done())


def put(config: Config, name: str, content: str) -> None:
    path = Path(config.run) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def foreign_run(folder: Path) -> Config:
    """A run over somebody else's shards: hostile keys, texts and phrases, refused samples, nothing known to be true."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    members = []
    for key in (HOSTILE, '" onload="alert(2)', "plain"):
        members += [(f"{key}.png", png(noise)), (f"{key}.txt", f"a cat {HOSTILE} & a dog \u202e".encode())]
    members += [("<img src=x onerror=alert(3)>.png", b"not an image"), ("<img src=x onerror=alert(3)>.txt", b"a cat")]
    members += [(f"silent{i}.png", png(noise)) for i in range(2)]
    with tarfile.open(source / "a.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    phrases = [{"phrase": "cat", "group": HOSTILE}, {"phrase": "dog"}]
    config = load(
        None,
        [
            f"run={folder / 'run'}",
            "data.source=shards",
            f"data.train={source}",
            "regions.proposals=grid",
            f"vocabulary.attributes={json.dumps(phrases)}",
            "data.quarantine_allowance=50",
        ],
    )
    Pipeline(config, LocalRunner()).run(["ingest", "vocabulary"])
    shard = manifest.read(StageFolder(f"{config.run}/train", "base")).shards[0]
    boxes = np.array([[0, 0, 200, 150], [10, 5, 390, 290]], np.float32)
    said = RegionAttributePairs(boxes, np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([0.25, 0.875, 0.5]))
    count = len(BaseShard(StageFolder(f"{config.run}/train", "base"), shard))
    write_pairs(config, "train", shard, [said] * count)
    finish_pairs(config, "train")
    return config


def png(pixels: np.ndarray) -> bytes:
    handle = io.BytesIO()
    Image.fromarray(pixels).save(handle, "PNG")
    return handle.getvalue()


def measured_run(folder: Path, spread: dict[str, float], seed: int = 0) -> Config:
    """A finished run of twelve shards, measured by made-up models. spread: how far each model's region embeddings are from
    the true ones. The mapping of shard 000007 does badly."""
    sizes = ["docmnist.shard_images=4", "docmnist.images={train: 8, test: 48}", "seed=3"]
    config = load(None, [f"run={folder}", "runner=local", *sizes])
    Pipeline(config, LocalRunner()).run(["ingest", "vocabulary"])
    for number, shard in enumerate(manifest.read(StageFolder(f"{config.run}/test", "base")).shards):
        won = 600.0 if shard == "000007" else 960.0 + number
        quality = {"presence_won": won, "presence_of": 1000.0, "regions": 20.0, "empty": 1.0}
        quality |= {"doubt_bits": 12.0 + number / 10, "scored": 60.0, "mentions": 40.0}
        pairs = [spoiled(p) for p in pair_rows(config, "test", "truth", shard)]
        write_pairs(config, "test", shard, pairs, quality)
    finish_pairs(config, "test")
    figures: dict[str, Any] = {job: model_figures(config, job, far, seed) for job, far in spread.items()}
    figures["mapping"] = assemble.mapping(config, "test")
    results = {"metrics": figures, "splits": {"test": figures}, "images": {"test": 48}}
    put(config, "results.json", json.dumps(results))
    put(config, "config.yaml", dump(config))
    for job in JOBS:
        put(config, f"models/{job}/metrics.jsonl", "".join(f'{{"step": {n}, "loss": {9 / n}}}\n' for n in range(1, 60)))
    return config


def model_figures(config: Config, job: str, far: float, seed: int) -> dict[str, Any]:
    """What evaluate says and keeps of a model whose regions are the sum of their attributes and noise."""
    shards = manifest.read(StageFolder(f"{config.run}/test", "base"))
    attributes = len(vocabulary.read(Store(config.run)))
    truth = np.concatenate([assemble.truth_matrix(config, "test", s, attributes) for s in shards.shards])
    image = [len(p.boxes) for s in shards.shards for p in pair_rows(config, "test", "truth", s)]
    noise = np.random.default_rng(seed).normal(size=truth.shape)
    region = truth + far * noise
    region /= np.linalg.norm(region, axis=1, keepdims=True)
    attribute = np.eye(attributes)
    found = r_precision(region, attribute, truth)
    places = np.repeat(np.arange(len(image)), image)
    kept = items.of_model(assemble.task(config, "test"), found, [(region, truth, places)], attribute, len(image))
    items.write(Store(config.run), "test", job, kept)
    figures = {"a2r": round(100 * found.a2r, 2), "r2a": round(100 * found.r2a, 2), "regions": len(region)}
    return {**figures, **assemble.intervals(kept)}
