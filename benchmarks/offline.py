"""The offline pass (read, decode, propose, embed, map, write in one go) costs little more than the encoder's forward
pass, and twice the workers do almost twice the work.

    python -m benchmarks.offline [vit | tower | workers] [ROUNDS]

vit      a random CLIP ViT-B/16 on 480 x 640 JPEGs, 3 x 3 grid: seconds of the pass over those of the bare forward on
         the same batches in memory, by the clock and in CPU time, one thread each
tower    the quickstart's tower on DocMNIST: CPU time of the pass over that of decoding, proposing and embedding alone
workers  shards a second of two Ray workers over one, that tower with segments as proposals; both pools warm. `machine` is
         the same ratio for processes that only count, in the same round: what a shared machine has to give. `busy`: the
         share of the time that workers were at a shard; what they lack of 1 is the pool's, whatever the machine does

Medians over rounds of ratios within a round, in which both sides are measured one after the other.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shards.commit import StageFolder
from shards.decode import decode_image, image_member
from shards.reader import BaseShard
from shards.store import Store
from shards.tar import TarWriter
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.mapping.model import MappingModel
from villa_dist.observe import Timers
from villa_dist.pipeline import Pipeline
from villa_dist.planning.measure import stand_in
from villa_dist.profile import worker_seconds
from villa_dist.runner import LocalRunner
from villa_dist.stages.base import StageRequest
from villa_dist.stages.images import image_batches
from villa_dist.stages.pairs import PairsStage
from villa_dist.stages.windows import windows

PHOTOS, HEIGHT, WIDTH = 24, 480, 640
SHARDS = 24
COUNTED = 30_000_000
Clock = tuple[float, float]  # seconds by the clock, of CPU


def timed(work: Callable[[], object]) -> Clock:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def photos(folder: Path) -> None:
    """A tar of smooth noise, which takes JPEG about as long as a photo."""
    make = np.random.default_rng(0)
    with open(folder / "photos.tar", "wb") as file:
        tar = TarWriter(file)
        for n in range(PHOTOS):
            small = Image.fromarray(make.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
            sink = io.BytesIO()
            small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
            tar.add(f"{n:04d}.jpg", sink.getvalue())
            tar.add(f"{n:04d}.txt", b"a red dog . a blue car")
        tar.close()


def with_vit(folder: Path) -> Config:
    """A run whose mapping has a ViT-B/16 with random weights."""
    from benchmarks.encoders import tower

    photos(folder)
    said = [{"phrase": p} for p in ("dog", "car", "red", "blue")]
    values = {
        "run": f"{folder}/run",
        "data": {"source": "shards", "train": str(folder)},
        "vocabulary": {"attributes": said},
        "regions": {"proposals": "grid", "batch_images": 8},
    }
    config = Config.model_validate(values)
    Pipeline(config, LocalRunner()).run(["ingest", "vocabulary"])
    vlm = tower("clip_vit_b16", "dense")
    config = config.model_copy(update={"model": vlm.config})
    attribute = torch.nn.functional.normalize(torch.randn(len(said), vlm.dim), dim=-1)
    features = vlm.image.feature_dim
    model = MappingModel(config.mapping, vlm.config.image, attribute, torch.full((4,), 0.3), features, vlm.published)
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    described = models.mapping_description(config.mapping, vlm.config, features, vlm.published)
    models.commit(f"{config.run}/models/mapping", weights, described, {}, "benchmark")
    return config


def with_tower(folder: Path, images: int, shard: int, proposals: str = "annotations") -> Config:
    """A run of DocMNIST with the quickstart's models, untrained."""
    every = {"train": images, "validation": 1, "test": 1}
    values = {"run": f"{folder}/run", "docmnist": {"images": every, "shard_images": shard}}
    values["regions"] = {"proposals": proposals}
    config = Config.model_validate(values)
    Pipeline(config, LocalRunner()).run(["ingest", "vocabulary"])
    assert len(vocabulary.read(Store(config.run)))
    stand_in(config, config)
    return config


def request_of(config: Config, folder: str = "pairs") -> StageRequest:
    """Fused pairs: no region sidecar is of this fingerprint."""
    params = {"model": f"{config.run}/models/mapping", "vlm": "", "regions": "none"}
    return StageRequest("pairs", folder, "train", config, "b" * 16, params)


class Bare:
    """The parts of the pass by themselves, on one shard."""

    def __init__(self, stage: PairsStage, config: Config, shard: str) -> None:
        self.stage, self.config, self.shard = stage, config, shard
        self.base = BaseShard(stage.base, shard)
        given = stage.finder.given(shard, self.base) if stage.finder else None
        self.given, self.batches = given, []
        self.held = list(windows(self.base, config, Timers(), pixels=True))
        assert stage.finder is not None
        for window in self.held:
            boxes = [f.boxes for f in stage.finder.of(shard, window, given, Timers())]
            self.batches += list(image_batches(window, boxes, config))
        self.encoded = [image_member(members) for _, members in self.base.samples()]

    def forward(self) -> None:
        with torch.inference_mode():
            for b in self.batches:
                self.stage.model.features(b.pixels, b.boxes, b.image_of, b.sizes)

    def decode(self) -> None:
        for data in self.encoded:
            decode_image(data)

    def propose(self) -> None:
        assert self.stage.finder is not None
        for window in self.held:
            self.stage.finder.of(self.shard, window, self.given, Timers())


def against(config: Config, rounds: int, parts: Callable[[Bare], list[Callable[[], None]]]) -> dict[str, Any]:
    """Ratios of the pass over `parts`; the pass commits its shard anew in each round."""
    stage = PairsStage(request_of(config))
    folder = StageFolder(f"{config.run}/train", "pairs")
    shard = StageFolder(f"{config.run}/train", "base").shards_done()[0]
    stage.process(shard)
    bare = Bare(stage, config, shard)
    walls, cpus, passes = [], [], []
    for work in parts(bare):
        work()
    for _ in range(rounds):
        folder.clear()
        whole = timed(lambda: stage.process(shard))
        alone = [timed(work) for work in parts(bare)]
        walls.append(whole[0] / sum(a[0] for a in alone))
        cpus.append(whole[1] / sum(a[1] for a in alone))
        passes.append(whole)
    images = len(bare.base)
    return {
        "images": images,
        "rounds": rounds,
        "ms_an_image": round(1000 * statistics.median(p[0] for p in passes) / images, 2),
        "cpu_ms_an_image": round(1000 * statistics.median(p[1] for p in passes) / images, 2),
        **_spread("wall", walls),
        **_spread("cpu", cpus),
    }


def vit(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return against(with_vit(Path(folder)), rounds, lambda bare: [bare.forward])


def tower(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = with_tower(Path(folder), 256, 256)
        return against(config, rounds, lambda bare: [bare.decode, bare.propose, bare.forward])


def workers(rounds: int) -> dict[str, Any]:
    from cluster.session import RaySession
    from villa_dist.config import RayConfig

    with tempfile.TemporaryDirectory() as folder, RaySession(RayConfig()):
        from cluster.pool import ActorPool

        config = with_tower(Path(folder), SHARDS * 16, 16, "segments")
        shards = StageFolder(f"{config.run}/train", "base").shards_done()
        pools = {n: ActorPool(n, 600.0, 2) for n in (1, 2)}
        seconds: dict[int, list[float]] = {1: [], 2: []}
        busy: dict[int, list[float]] = {1: [], 2: []}
        machine: list[float] = []
        for turn in range(-1, rounds):
            for number, pool in pools.items():
                StageFolder(f"{config.run}/train", "pairs").clear()
                start = time.perf_counter()
                pool.run(request_of(config), shards, lambda shard: None)
                if turn >= 0:  # the first is to warm up
                    seconds[number].append(time.perf_counter() - start)
                    made = [StageFolder(f"{config.run}/train", "pairs").marker(s).seconds for s in shards]
                    busy[number].append(sum(map(worker_seconds, made)) / number / seconds[number][-1])
            if turn >= 0:
                machine.append(counting(1, 2) / counting(2, 1))
        for pool in pools.values():
            pool.close()
        ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
        found = {f"seconds_{n}": round(statistics.median(s), 2) for n, s in seconds.items()}
        return {
            "shards": len(shards),
            "rounds": rounds,
            **found,
            **{f"busy_{n}": round(statistics.median(b), 3) for n, b in busy.items()},
            **_spread("speedup", ratios),
            **_spread("machine", machine),
        }


def counting(processes: int, times: int) -> float:
    """Seconds until each of so many processes has counted `times` times."""
    command = [sys.executable, "-c", f"for _ in range({times} * {COUNTED}): pass"]
    start = time.perf_counter()
    running = [subprocess.Popen(command) for _ in range(processes)]
    for process in running:
        process.wait()
    return time.perf_counter() - start


def _spread(name: str, values: list[float]) -> dict[str, float]:
    low, middle, high = min(values), statistics.median(values), max(values)
    return {name: round(middle, 3), f"{name}_low": round(low, 3), f"{name}_high": round(high, 3)}


def main() -> None:
    torch.set_num_threads(1)
    wanted = [a for a in sys.argv[1:] if not a.isdigit()] or ["vit", "tower", "workers"]
    rounds = next((int(a) for a in sys.argv[1:] if a.isdigit()), 5)
    made = {"vit": vit, "tower": tower, "workers": workers}
    load = os.getloadavg()[0]
    print(json.dumps({"load_before": round(load, 1), **{name: made[name](rounds) for name in wanted}}))


if __name__ == "__main__":
    main()
