"""That there is something to learn from, before a model is trained on nothing."""

from __future__ import annotations

from collections.abc import Sequence

from shards.commit import StageFolder
from shards.errors import VillaError
from villa_dist import claims
from villa_dist.config import Config


def check_enough(config: Config, job: str) -> None:
    """Before a job of a run begins, its stages committed. Raises: VillaError naming what there is none of, and a remedy."""
    if job == "mapping":
        _check_mapping(config, stage(config, "regions"), claims.region_shards(config, "train"))
    elif job == "villa" and not config.data.mix:  # other data sets may have what this one lacks
        _check_pairs(stage(config, "pairs"), claims.stage_manifest(config, "train").shards)


def stage(config: Config, name: str) -> StageFolder:
    return StageFolder(claims.dataset(config, "train"), name)


def _check_mapping(config: Config, regions: StageFolder, shards: Sequence[str]) -> None:
    if not _some(regions, shards, "regions"):
        raise VillaError(
            f"{regions.store.path()}: no image has a region, so there is nothing to map. regions.proposals="
            f"{config.regions.proposals} found none in {len(shards):,} shards; "
            + (
                "it takes the boxes of the samples' .json: give samples that have boxes, or set regions.proposals to "
                "segments, grid or hf"
                if config.regions.proposals == "annotations"
                else "look at regions.min_size, and at an image with `villa shards show`"
            )
        )
    if not _some(regions, shards, "mentions"):
        raise VillaError(
            f"{regions.store.path()}: no text mentions an attribute of the vocabulary, so there is nothing to map. Name "
            "phrases that the texts use in vocabulary.lists or vocabulary.attributes; `villa mine` proposes some"
        )


def _check_pairs(pairs: StageFolder, shards: Sequence[str]) -> None:
    if not _some(pairs, shards, "pairs"):
        raise VillaError(
            f"{pairs.store.path()}: no region was assigned an attribute, so there is nothing to train on: no image has both "
            "a region and an attribute in its text. `villa status RUN` shows what there is of each; see "
            "regions.proposals and vocabulary.lists"
        )


def _some(folder: StageFolder, shards: Sequence[str], name: str) -> bool:
    """Looks at markers until one has some: one, in most runs."""
    return any(folder.marker(shard).counts.get(name) for shard in shards)
