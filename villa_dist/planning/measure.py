"""Putting a few small shards of a config's data through the real stages, in a folder beside the run that is removed then."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from shards.commit import SUFFIX, Marker, StageFolder
from shards.errors import VillaError
from shards.reader import scan_tar
from shards.sample import chosen
from shards.store import Store
from shards.tar import Scan, TarWriter
from shards.work import Again, Job
from villa_dist import claims, models
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.mapping.model import MappingModel
from villa_dist.pipeline import Pipeline
from villa_dist.planning.estimate import Load, Measured
from villa_dist.profile import summed, worker_seconds
from villa_dist.runner import Runner
from villa_dist.stages.base import StageRequest
from villa_dist.stages.ingest import Unit, units
from villa_dist.train import lessons
from villa_dist.train.jobs import TrainRequest, kept_below, model_folder
from villa_dist.train.start import first_vlm

FOLDERS = {
    "ingest": ("base",),
    "vocabulary": ("vocabulary",),
    "regions": ("regions", "embeddings"),
    "pairs": ("pairs",),
}
RATE = 0.3  # of a mapping with random weights; any does


@dataclass(frozen=True)
class Source:
    """The data set as it is known before anything is read. images: estimated from `bytes` for tars."""

    units: dict[str, list[Unit]]  # by split
    images: dict[str, int]


@dataclass
class Watched:
    """A runner that notes when each stage began, and on what."""

    inner: Runner
    started: dict[str, float] = field(default_factory=dict)
    on_device: dict[str, bool] = field(default_factory=dict)

    def shards(self, job: Job, shards: Sequence[str], done: Callable[[str], None], again: Again | None = None) -> None:
        assert isinstance(job, StageRequest)
        if job.split == "train":
            self.started[job.stage] = time.time()
            self.on_device[job.stage] = job.on_device
        self.inner.shards(job, shards, done, again)

    def train(self, request: TrainRequest) -> None:
        raise VillaError("a plan trains nothing")

    def close(self) -> None:
        self.inner.close()


def small_config(config: Config, shards: int, images: int) -> Config:
    """The config of the trial: the same stages over `shards` shards of `images` images, in a folder of its own."""
    run = f"{config.run}.plan"
    values = config.model_dump()
    values["run"] = run
    values["vocabulary"]["min_count"] = 1  # few texts are counted
    if config.pairs.fused:
        values["regions"]["keep_embeddings"] = 1.0  # regions are measured on all shards, then removed
    values["evaluate"]["splits"] = ["test"]
    if config.data.source == "shards":
        values["data"] |= {"train": f"{run}/source", "validation": None, "test": None, "max_quarantine_fraction": 1.0}
    else:
        every = {"train": shards * images, "validation": 1, "test": 1}
        values["docmnist"] |= {"images": every, "shard_images": images}
    return Config.model_validate(values)


@contextmanager
def trial(config: Config, shards: int, images: int) -> Iterator[tuple[Config, Source]]:
    """The small config with its source in place; what was made is removed on leaving."""
    small = small_config(config, shards, images)
    store = Store(small.run)
    for folder in store.folders():  # of a plan that was killed; the lock stays
        store.remove(folder, recursive=True)
    try:
        plan = {split: units(config, split) for split in claims.splits(config)}
        counts = {split: sum(u.images for u in plan[split]) for split in plan}
        if config.data.source == "shards":
            an_image = _cut(config, plan["train"], small, shards, images)
            counts = {split: round(sum(u.bytes for u in plan[split]) / an_image) for split in plan}
        yield small, Source(plan, counts)
    finally:
        store.remove("", recursive=True)


def _cut(config: Config, train: list[Unit], small: Config, shards: int, images: int) -> float:
    """Write small tars of evenly spaced samples of evenly spaced tars. Returns the source's bytes an image."""
    source, target = Store(config.data.train or ""), Store(small.data.train or "")
    wanted = min(shards, len(train))
    seen = size = 0
    for n in range(wanted):
        unit = train[n * len(train) // wanted]
        found, kept = spaced(scan_tar(source, unit.source, Scan()), images * -(-shards // wanted))
        seen, size = seen + found, size + unit.bytes
        for part in range(n, shards, wanted):  # fewer tars than shards: several shards of one
            sink = io.BytesIO()
            tar = TarWriter(sink)
            for sample, members in kept[part // wanted :: -(-shards // wanted)]:
                for suffix, data in members.items():
                    tar.add(f"{sample.key}.{suffix}", data)
            tar.close()
            target.put(f"{part:06d}.tar", sink.getvalue())
    if not seen:
        raise VillaError(
            f"data.train={config.data.train!r}: the {wanted} tars looked at hold no sample; nothing can be planned"
        )
    return size / seen


def spaced(items: Iterator[Any], most: int) -> tuple[int, list[Any]]:
    """(their number, `most` of them at even distances or all), holding no more than twice as many."""
    kept: list[Any] = []
    stride, number = 1, 0
    for item in items:
        if number % stride == 0:
            kept.append(item)
            if len(kept) == 2 * most:
                kept, stride = kept[::2], stride * 2
        number += 1
    return number, kept if len(kept) <= most else [kept[i * len(kept) // most] for i in range(most)]


def measure(config: Config, small: Config, runner: Runner, workers: int) -> dict[str, Measured]:
    """Every offline stage over the trial's shards, by the runner the job will have."""
    watched = Watched(runner)
    line = Pipeline(small, watched)
    found = {}
    for stage in FOLDERS:
        if stage == "regions":
            stand_in(config, small)
        getattr(line, stage)()
        found[stage] = _measured(small, stage, watched, workers)
        if stage == "regions" and config.pairs.fused:
            for folder in FOLDERS[stage]:
                StageFolder(f"{small.run}/train", folder).clear()
    return found


def _measured(small: Config, stage: str, watched: Watched, workers: int) -> Measured:
    folders = FOLDERS[stage]
    markers = sorted(_markers(small, folders[0]), key=lambda at_marker: at_marker[0])
    images = sum(m.samples for _, m in markers)
    if not images:
        raise VillaError(
            f"the samples that were looked at in {small.data.train} were all refused; nothing can be planned"
        )
    steady = [m for _, m in markers[workers:] or markers]  # each worker's first shard is slower
    scale = images / max(sum(m.samples for m in steady), 1)
    seconds = {part: s * scale for part, s in summed([m.seconds for m in steady]).items()}
    first_at, first = markers[0]
    start = max(0.0, first_at - watched.started[stage] - worker_seconds(first.seconds))
    written = {}
    for folder in folders:
        outputs = _markers(small, folder)
        in_all = sum(o.bytes for _, m in outputs for o in m.outputs)
        written[folder] = round(in_all * images / max(sum(m.samples for _, m in outputs), 1))
    if stage == "ingest" and small.data.source == "shards":
        read = sum(Store(small.data.train or "").list_sizes("", ".tar").values())
    else:
        read = sum(m.output(".tar").bytes for _, m in _markers(small, "base")) if stage != "ingest" else 0
    made = summed([{k: m.counts[k] for k in ("regions", "pairs") if k in m.counts} for _, m in markers])
    return Measured(stage, images, seconds, start, read, written, made, watched.on_device[stage])


def loads(config: Config, source: Source) -> dict[str, Load]:
    """What each stage has to do."""
    shards = {split: [u.shard for u in plan] for split, plan in source.units.items()}
    every = Load(sum(source.images.values()), sum(map(len, shards.values())))
    train = Load(source.images["train"], len(shards["train"]))
    part = {split: _share(config, names) for split, names in shards.items()}
    frozen = config.mapping.frozen
    kept = round(sum(source.images[split] * part[split] for split in shards)) if frozen else 0
    regions = Load(every.images, every.shards, kept)
    if config.pairs.fused:
        images, count = round(train.images * part["train"]), round(train.shards * part["train"])
        regions = Load(images, count, images if frozen else 0)
    return {"ingest": every, "vocabulary": train, "regions": regions, "pairs": every}


def _share(config: Config, shards: list[str]) -> float:
    """Of how many shards the embeddings are kept."""
    below = kept_below(config, shards)
    return sum(chosen(s, below) for s in shards) / max(len(shards), 1)


def stand_in(config: Config, small: Config) -> None:
    """The models of the run where they are trained, else such as they will be, with the weights they start from."""
    place = model_folder(config, "one_to_one")
    vlm = models.load_vlm(place) if models.done(place) else first_vlm(config).eval()
    models.write(model_folder(small, "one_to_one"), vlm, "plan")
    words, features = vocabulary.read(Store(small.run)), vlm.image.feature_dim
    attribute = torch.nn.functional.normalize(torch.randn(len(words), vlm.dim), dim=-1)
    rate = torch.full((len(words),), RATE)
    image, attention = config.model.image, config.model.attention
    changes, expert = lessons.changes(config.mapping, words.groups)
    start = (attribute, rate, features, vlm.published, attention)
    mapping = MappingModel(config.mapping, image, *start, expert=expert, experts=len(changes))
    weights = {name: tensor.detach().contiguous() for name, tensor in mapping.state_dict().items()}
    description = models.mapping_description(config.mapping, config.model, features, vlm.published, len(changes))
    models.commit(model_folder(small, "mapping"), weights, description, {}, "plan")


def _markers(small: Config, folder: str) -> list[tuple[float, Marker]]:
    """(when committed, marker) of a stage of the trial."""
    stage = StageFolder(f"{small.run}/train", folder)
    return [(at, stage.marker(n.removesuffix(SUFFIX))) for n, at in stage.store.list_modified("", SUFFIX).items()]
