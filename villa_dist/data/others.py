"""Data sets of other runs: where they are, and whether their pairs mean the same attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shards import manifest
from shards.commit import StageFolder
from shards.errors import ShardError, VillaError
from shards.manifest import Manifest
from shards.store import Store
from villa_dist.attributes import vocabulary


class Entry(Protocol):
    """A line of `data.mix`."""

    @property
    def train(self) -> str: ...

    @property
    def weight(self) -> float: ...


@dataclass(frozen=True)
class Other:
    """A data set to mix in: its folder, its weight, its base shards, and its sidecars of the stage learnt from."""

    dataset_url: str
    weight: float
    base: Manifest
    pairs: Manifest


def others(mix: Sequence[Entry], stage: str, fingerprint: str) -> list[Other]:
    """The data sets of `data.mix`, checked. fingerprint: of the vocabulary that all must have.

    Raises: VillaError that names the data set and what it lacks or has otherwise.
    """
    found = []
    for entry in mix:
        run, dataset = places(entry.train)
        theirs = vocabulary.read(Store(run)).fingerprint
        if theirs != fingerprint:
            raise VillaError(
                f"data.mix: {entry.train} has another vocabulary (fingerprint {theirs}, this run's is {fingerprint}), so "
                "its attributes have other numbers; give both runs the same vocabulary (the same lists, with "
                "vocabulary.min_count: 0 and order: list, so that nothing is chosen by counts), or leave it out"
            )
        base, pairs = joinable(dataset, stage)
        if base.total == 0:
            raise VillaError(f"data.mix: {dataset} holds no sample; see its quarantine for why, or leave it out")
        found.append(Other(dataset, entry.weight, base, pairs))
    return found


def joinable(dataset: str, stage: str) -> tuple[Manifest, Manifest]:
    """The manifests of base shards and of a stage's sidecars. Raises: ShardError when they are not of the same keys."""
    base, pairs = manifest.read(StageFolder(dataset, "base")), manifest.read(StageFolder(dataset, stage))
    if (base.shards, base.samples, base.keys_digests) != (pairs.shards, pairs.samples, pairs.keys_digests):
        raise ShardError(
            f"{dataset}/{stage} has not the shards and keys of {dataset}/base; redo the stage {stage!r} with --force"
        )
    return base, pairs


def places(run_or_dataset: str, split: str = "train") -> tuple[str, str]:
    """(run, data set) of a run's path, or of the path of one of its splits.

    Raises: VillaError when there is no vocabulary, by which a run with attributes is known.
    """
    given = run_or_dataset.rstrip("/")
    if Store(given).exists(vocabulary.NAME):
        return given, f"{given}/{split}"
    parent = given.rpartition("/")[0] or "."
    if Store(given).exists(f"base/{manifest.NAME}") and Store(parent).exists(vocabulary.NAME):
        return parent, given
    raise VillaError(
        f"{run_or_dataset} is no run with a {vocabulary.NAME}, nor a split's folder in one; give the folder that `run` of "
        "its config names, after its vocabulary stage"
    )
