"""vocabulary: count, shard by shard, how many texts mention each phrase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.decode import sample_text
from shards.errors import VillaError
from shards.reader import BaseShard, read_sidecar
from shards.store import Store
from villa_dist.attributes import vocabulary
from villa_dist.attributes.extract import PhraseMatcher
from villa_dist.attributes.lists import read_list
from villa_dist.attributes.phrases import Phrase, check, key, merge, prompts_of, without_phrase
from villa_dist.attributes.vocabulary import Counts
from villa_dist.config import VocabularyConfig
from villa_dist.docmnist import words
from villa_dist.observe import LOG, Timers
from villa_dist.stages.base import StageRequest, write_sidecar

# count: texts that mention a phrase; negated: texts that mention it only to deny it
COUNTS = pa.schema([("phrase", pa.int32()), ("count", pa.int64()), ("negated", pa.int64())])


def phrases(config: VocabularyConfig, *, report: bool = False) -> list[Phrase]:
    """The phrases to look for, in order, with their prompts: those of the config, then those of its lists, or else the
    twenty of DocMNIST. report: log what was merged or looks wrong. Raises: VillaError.
    """
    if config.attributes is None and not config.lists:
        return [_phrase(p) for p in words.phrases()]
    given = [_phrase(p.model_dump()) for p in config.attributes or []]
    place = "vocabulary.attributes"
    for said in (s for p in given for s in (p.phrase, *p.synonyms)):
        check(said, place)
    twice = [p for p, count in Counter(key(p.phrase) for p in given).items() if count > 1]
    if twice:
        same = [p.phrase for p in given if key(p.phrase) == twice[0]]
        raise VillaError(f"{place}: the phrases {', '.join(map(repr, same))} are the same; keep one of them")
    lists = [read_list(name) for name in config.lists]
    merged = merge([given, *(each.phrases for each in lists)])
    templates: dict[str, list[str]] = {}
    for each in lists:
        for group, prompts in each.templates.items():
            templates.setdefault(group, prompts)
    templates.update(config.templates)
    if report:
        _report("phrases are named more than once; the first stands", merged.repeated)
        _report("synonyms are phrases themselves, or another phrase's, and stay so", merged.synonyms_dropped)
        _report("prompts do not name their phrase", without_phrase(merged.phrases))
    return [Phrase(p.phrase, p.group, prompts_of(p, templates), p.synonyms) for p in merged.phrases]


def _phrase(given: dict[str, object]) -> Phrase:
    prompts, synonyms = given.get("prompts") or (), given.get("synonyms") or ()
    assert isinstance(prompts, Sequence) and isinstance(synonyms, Sequence)
    return Phrase(str(given["phrase"]), str(given["group"]), tuple(prompts), tuple(synonyms))


def _report(what: str, values: Sequence[str]) -> None:
    if values:
        shown = ", ".join(repr(v) for v in values[:5])
        LOG.info("vocabulary: %d %s: %s%s", len(values), what, shown, ", …" if len(values) > 5 else "")


class VocabularyStage:
    def __init__(self, request: StageRequest) -> None:
        self.request = request
        self.base = StageFolder(request.dataset, "base")
        candidates = vocabulary.read_candidates(Store(request.run))
        self.matcher = PhraseMatcher(
            [p.phrase for p in candidates], [p.synonyms for p in candidates], request.config.vocabulary.negation
        )

    def process(self, shard: str) -> Marker:
        timers, said, denied = Timers(), Counter[int](), Counter[int]()
        base = BaseShard(self.base, shard)
        for _, members in timers.each("read", base.samples()):
            with timers.time("match"):
                positive, negated = self.matcher.documents(sample_text(members))
                said.update(positive)
                denied.update(negated)
        found = sorted({*said, *denied})
        columns = {"phrase": found, "count": [said[i] for i in found], "negated": [denied[i] for i in found]}
        return write_sidecar(self.request, base, lambda: sidecar.table(COUNTS, columns), timers)


def merged_counts(folder: StageFolder, shards: Sequence[str], size: int, texts: int) -> Counts:
    """Counts of `size` phrases over all shards, which hold `texts` texts."""
    said, negated = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for shard in shards:
        table = read_sidecar(folder, shard, COUNTS)
        index = table["phrase"].to_numpy()  # each phrase once a shard
        said[index] += table["count"].to_numpy()
        negated[index] += table["negated"].to_numpy()
    return Counts(said, negated, texts)
