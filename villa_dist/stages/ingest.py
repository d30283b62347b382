"""ingest: image-text sources -> base shards, one unit a shard. Every sample is checked here once, so that later
stages meet only images that decode and texts that are text; what is refused goes to quarantine with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.collect import Collector, commit_rows
from shards.commit import Marker, StageFolder
from shards.decode import (
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    DecodeError,
    decode_image,
    image_member,
    sample_text,
)
from shards.errors import VillaError
from shards.reader import scan_tar
from shards.store import Store
from shards.tar import Scan
from villa_dist.config import Config
from villa_dist.docmnist import digits, generate
from villa_dist.observe import Timers
from villa_dist.stages.base import StageRequest

KEPT = IMAGE_SUFFIXES + TEXT_SUFFIXES


@dataclass(frozen=True)
class Unit:
    """One shard to make: a shard of DocMNIST, or a foreign tar."""

    shard: str
    images: int = 0
    source: str = ""
    bytes: int = 0


def units(config: Config, split: str) -> list[Unit]:
    """The shards of a split, in order. Raises: VillaError when a source folder is missing or empty."""
    if config.data.source == "docmnist":
        doc = config.docmnist
        budget, images = getattr(doc.budget, split), getattr(doc.images, split)
        plan = generate.plan(doc.target, config.seed, split, budget, images, doc.shard_images)
        if not plan:
            raise VillaError(f"docmnist.budget.{split}={budget} is too small for one image of target {doc.target}")
        return [Unit(f"{p.shard:06d}", images=p.images) for p in plan]
    url = getattr(config.data, split)
    store = Store(url)
    if not store.exists():
        raise VillaError(f"data.{split}={url!r} does not exist; point it at a folder of .tar shards")
    sizes = store.list_sizes("", ".tar")
    if not sizes:
        raise VillaError(f"data.{split}={url!r} holds no .tar shards; point it at a folder of WebDataset tars")
    return [Unit(f"{i:06d}", source=name, bytes=size) for i, (name, size) in enumerate(sizes.items())]


class IngestStage:
    """process(shard): DocMNIST's generator, or one foreign tar checked sample by sample."""

    def __init__(self, request: StageRequest) -> None:
        self.request = request
        self.config = request.config
        self.units = {u.shard: u for u in units(self.config, request.split)}
        self.digits = (
            digits.load(request.split, self.config.digits.mnist_dir) if self.config.data.source == "docmnist" else None
        )

    def process(self, shard: str) -> Marker:
        if self.digits is not None:
            return self._generate(self.units[shard], self.digits)
        return self._check(self.units[shard])

    def _generate(self, unit: Unit, chosen: digits.Digits) -> Marker:
        timers, doc = Timers(), self.config.docmnist
        plan = generate.ShardPlan(int(unit.shard), unit.images)
        with timers.time("generate"):
            flaws = generate.Flaws(doc.text_noise, doc.coupling)
            made = generate.generate(
                doc.target, self.config.seed, self.request.split, plan, doc.shard_images, chosen, flaws
            )
        keys = [f"{unit.shard}-{n:05d}" for n in range(unit.images)]
        truth = StageFolder(self.request.dataset, "truth")
        with truth.attempt(unit.shard) as attempt, timers.time("write"):
            attempt.write(f"{unit.shard}.parquet", sidecar.to_bytes(truth_table(made, keys)))
            commit_rows(
                attempt,
                unit.shard,
                stage="truth",
                fingerprint=self.request.fingerprint,
                keys=keys,
                input_digest=self.request.fingerprint,
                seconds={},
                counts={"pairs": int(made.attributes.sum()), "regions": len(made.boxes)},
            )
        with self.request.output().attempt(unit.shard) as attempt, timers.time("write"):
            collector = Collector(attempt, unit.shard)
            for key, pixels, text in zip(keys, made.pixels, made.texts, strict=True):
                collector.add(key, {"png": generate.png(pixels), "txt": text.encode()})
            return self._commit(collector, self.request.fingerprint, timers)

    def _check(self, unit: Unit) -> Marker:
        store = Store(getattr(self.config.data, self.request.split))
        timers, scan = Timers(), Scan()
        ignored: dict[str, int] = {}
        with self.request.output().attempt(unit.shard) as attempt:
            collector = Collector(attempt, unit.shard)
            for sample, members in timers.each("read", scan_tar(store, unit.source, scan)):
                for suffix in [s for s in members if s not in KEPT]:
                    ignored[suffix] = ignored.get(suffix, 0) + 1
                    del members[suffix]
                self._take(collector, sample.key, members, timers)
            warnings = self._aftermath(collector, scan, store.path(unit.source), ignored)
            return self._commit(collector, f"{unit.source}:{unit.bytes}", timers, warnings)

    def _commit(
        self, collector: Collector, input_digest: str, timers: Timers, warnings: tuple[str, ...] = ()
    ) -> Marker:
        return collector.commit(
            stage=self.request.folder,
            fingerprint=self.request.fingerprint,
            input_digest=input_digest,
            seconds=timers.rounded(),
            warnings=warnings,
        )

    def _take(self, collector: Collector, key: str, members: dict[str, bytes], timers: Timers) -> None:
        try:
            if key in collector.seen:
                raise DecodeError("duplicate_key", "an earlier sample of this shard has the same key; it is kept")
            with timers.time("decode"):
                decode_image(image_member(members), self.config.data.max_pixels)
                sample_text(members)
        except DecodeError as error:
            collector.refuse(key, members, error.reason, error.detail)
        else:
            with timers.time("write"):
                collector.add(key, members)

    def _aftermath(self, collector: Collector, scan: Scan, place: str, ignored: dict[str, int]) -> tuple[str, ...]:
        """Members that never became samples, and a damaged end, recorded like refused samples."""
        warnings = []
        for name, reason in scan.refused:
            collector.refuse(name, {}, reason, f"member {name!r} of {place}")
        if scan.problem:
            collector.refuse("(end of shard)", {}, "damaged_shard", scan.problem)
            warnings.append(
                f"shard {place}: {scan.problem}; the {len(collector.samples)} good samples before that are kept, what "
                "came after is lost. Fetch the shard again and repeat with --force to have it whole"
            )
        if ignored:
            listed = ", ".join(f".{s} x {n}" for s, n in sorted(ignored.items()))
            warnings.append(f"shard {place}: members that are neither image nor text were left out: {listed}")
        return tuple(warnings)


def truth_table(made: generate.DocShard, keys: list[str]) -> pa.Table:
    """The pairs sidecar of what is known to be true; every region keeps its box."""
    images = len(keys)
    regions_N = np.bincount(made.image_of, minlength=images)
    first_N = np.cumsum(regions_N) - regions_N
    region_P, attribute_P = np.nonzero(made.attributes)
    image_P = made.image_of[region_P]
    pairs_N = np.bincount(image_P, minlength=images)
    types = {f.name: f.type for f in sidecar.PAIRS}
    columns = {
        "key": keys,
        "boxes": sidecar.ragged(types["boxes"], made.boxes, regions_N),
        "region": sidecar.ragged(types["region"], (region_P - first_N[image_P]).astype(np.uint16), pairs_N),
        "attribute": sidecar.ragged(types["attribute"], attribute_P.astype(np.int32), pairs_N),
        "score": sidecar.ragged(types["score"], np.ones(len(region_P), np.float16), pairs_N),
    }
    return sidecar.table(sidecar.PAIRS, columns)
