"""Pairs of a run against known boxes: what is read of each shard, one shard at a time.

boxes sidecar    true boxes with names: true are those whose name is an attribute that the text mentions
regions sidecar  mentions, all proposals (fused pairs have none: the texts, and the proposals of `boxes` if it has any)
pairs sidecar    what the mapping has assigned
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.reader import BaseShard, read_sidecar
from shards.store import Store
from villa_dist import claims
from villa_dist.attributes import vocabulary
from villa_dist.attributes.vocabulary import Vocabulary
from villa_dist.config import Config
from villa_dist.evaluate import classes as choice
from villa_dist.evaluate import known_boxes
from villa_dist.evaluate.assemble import pair_rows
from villa_dist.evaluate.detection_run import regions_from
from villa_dist.evaluate.figures import together
from villa_dist.evaluate.known_boxes import KNOWN, NONE
from villa_dist.evaluate.mapping_boxes import ONCE, PAIRS, TRUE, Tally, attributes_of, named_boxes, only
from villa_dist.evaluate.mapping_quality import by_rule, largest, of_mentioned
from villa_dist.observe import LOG
from villa_dist.stages.propose import mentions_of

MAPPING, EVERY, LARGEST = "mapping", "every region", "the largest region"


@dataclass(frozen=True)
class Given:
    """Of the N images of a shard: ids that each text mentions, and its proposals, None where they are not known."""

    mentions: list[np.ndarray]
    proposals: list[np.ndarray] | None


class Source:
    """Where mentions and proposals of a split are. Raises: ShardError for a damaged sidecar or tar."""

    def __init__(self, config: Config, split: str, words: Vocabulary) -> None:
        wanted = config.evaluate.detection
        assert wanted is not None
        self.dataset = claims.dataset(config, split)
        self.regions = regions_from(config, split) == "regions"
        self.proposed = "proposals" in wanted.modes
        self.matcher = words.matcher(config.vocabulary.negation)

    def of(self, shard: str, known: pa.Table) -> Given:
        """known: the shard's boxes sidecar."""
        if self.regions:
            folder = StageFolder(self.dataset, "regions")
            table = read_sidecar(folder, shard, sidecar.REGIONS)
            sidecar.check_aligned(table, known["key"].to_pylist(), folder.store.path(shard))
            return Given([m.astype(np.int64) for m in _rows(table, "attributes")], _rows(table, "boxes"))
        samples = BaseShard(StageFolder(self.dataset, "base"), shard).samples()
        said = [mentions_of(self.matcher, shard, key, members).ids.astype(np.int64) for key, members in samples]
        return Given(said, _rows(known, "proposal") if self.proposed else None)


def _rows(table: pa.Table, name: str) -> list[np.ndarray]:
    values, at = sidecar.list_column(table, name)
    return [values[a:b] for a, b in zip(at[:-1], at[1:], strict=True)]


def mapping_boxes(config: Config, split: str) -> dict[str, Any] | None:
    """Precision, recall and F1 of a split's pairs, and of rules that assign without a mapping; None where there are no
    pairs, or no true box to hold them against, which is logged. Raises: VillaError for a damaged sidecar or tar."""
    dataset = claims.dataset(config, split)
    if not manifest.exists(StageFolder(dataset, "pairs")):
        LOG.info("%s has no pairs to hold against the known boxes", dataset)
        return None
    words = vocabulary.read(Store(config.run))
    attribute = attributes_of(category_names(config, split), words)
    judged = np.isin(np.arange(len(words)), list(attribute.values()))
    source = Source(config, split, words)
    tallies: dict[str, Tally] = {}
    unjudged = unknown = 0

    def tally(name: str, pairs: Any, truth: Any) -> None:
        tallies.setdefault(name, Tally.of(len(words))).add(pairs, truth)

    for shard, known in shards_of(config, split):
        keys = known["key"].to_pylist()
        given = source.of(shard, known)
        crowd, box, names = (_rows(known, f"true_{n}") for n in ("crowd", "box", "name"))
        for i, pairs in enumerate(pair_rows(config, split, "pairs", shard, keys)):
            if known["image"][i].as_py() == NONE:
                unknown += 1
                continue
            mine = only(pairs, judged)
            unjudged += len(pairs.region) - len(mine.region)
            said = given.mentions[i][judged[given.mentions[i]]]
            truth = of_mentioned(*named_boxes(box[i], names[i].tolist(), crowd[i].astype(bool), attribute), said)
            tally(MAPPING, mine, truth)
            if given.proposals is not None:
                proposals = given.proposals[i]
                tally(EVERY, by_rule(proposals, said, np.ones(len(proposals), bool)), truth)
                tally(LARGEST, by_rule(proposals, said, largest(proposals)), truth)
    total = tallies[MAPPING].sums.sum(0) if tallies else np.zeros(ONCE + 1, np.int64)
    if not total[TRUE]:
        LOG.warning(
            "%s has no known box whose name is an attribute that its image's text mentions, so its pairs are not judged "
            "(%d attributes are names of boxes)",
            dataset,
            judged.sum(),
        )
        return None
    warnings = []
    if unjudged:
        warnings.append(f"{unjudged:,} pairs of attributes that no box is named by cannot be judged and do not count")
    if unknown:
        warnings.append(f"{unknown:,} images have no known boxes and do not count")
    if EVERY not in tallies:
        warnings.append(
            "no proposals are at hand to compare with (with pairs.fused, set evaluate.detection.boxes: both)"
        )
    return {
        "images": len(tallies[MAPPING].sums),
        "pairs": int(total[PAIRS]),
        "true_boxes": int(total[TRUE]),
        "warnings": warnings,
        **together({n: t.figures() for n, t in tallies.items()}, config.evaluate.bootstrap, MAPPING),
        "by_attribute": tallies[MAPPING].by_attribute(words.phrases),
    }


def shards_of(config: Config, split: str) -> Iterator[tuple[str, pa.Table]]:
    """The boxes sidecars of a split, one at a time."""
    folder = StageFolder(claims.dataset(config, split), "boxes")
    for shard in manifest.read(folder).shards:
        yield shard, read_sidecar(folder, shard, KNOWN)


def category_names(config: Config, split: str) -> list[str]:
    """Of all categories: those of the truth's file, or those that the samples' boxes and the config name."""
    wanted = config.evaluate.detection
    assert wanted is not None
    if wanted.truth is not None:
        return list(known_boxes.read_file(wanted.truth).truth.names)
    names = {c for c in choice.asked(wanted) if isinstance(c, str)}
    for _, table in shards_of(config, split):
        names.update(known_boxes.names_of([table]))
    return sorted(names)
