"""vocabulary: count, shard by shard, how many texts mention each phrase."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.decode import sample_text
from shards.reader import BaseShard, read_sidecar
from villa_dist.attributes.extract import PhraseMatcher
from villa_dist.config import VocabularyConfig
from villa_dist.docmnist import words
from villa_dist.observe import Timers
from villa_dist.stages.base import StageRequest, commit_sidecar

COUNTS = pa.schema([("phrase", pa.int32()), ("count", pa.int64())])


def phrases(config: VocabularyConfig) -> list[dict[str, object]]:
    """The phrases to look for, in order: the config's, or the twenty of DocMNIST."""
    return words.phrases() if config.attributes is None else [p.model_dump() for p in config.attributes]


class VocabularyStage:
    def __init__(self, request: StageRequest) -> None:
        self.request = request
        self.base = StageFolder(request.dataset, "base")
        self.matcher = PhraseMatcher([str(p["phrase"]) for p in phrases(request.config.vocabulary)])

    def process(self, shard: str) -> Marker:
        timers, counts = Timers(), Counter[int]()
        base = BaseShard(self.base, shard)
        with timers.time("match"):
            for _, members in base.samples():
                counts.update(set(self.matcher.find(sample_text(members))))
        found = sorted(counts)
        table = sidecar.table(COUNTS, {"phrase": found, "count": [counts[i] for i in found]})
        with self.request.output().attempt(shard) as attempt:
            attempt.write(f"{shard}.parquet", sidecar.to_bytes(table))
            digest = base.marker.output(".tar").sha256
            return commit_sidecar(self.request, attempt, shard, keys=base.keys, input_digest=digest, timers=timers)


def merged_counts(folder: StageFolder, shards: tuple[str, ...]) -> Counter[int]:
    total = Counter[int]()
    for shard in shards:
        table = read_sidecar(folder, shard, COUNTS).to_pydict()
        total.update(dict(zip(table["phrase"], table["count"], strict=True)))
    return total
