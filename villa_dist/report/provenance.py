"""Where a run comes from: the code that measured it, its config and data by digest."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import villa_dist
from shards.commit import StageFolder
from shards.digest import fingerprint
from shards.store import Store
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.names import TITLES
from villa_dist.report.card import Card
from villa_dist.revision import revision

STAGES = ("base", "regions", "pairs")


def code() -> dict[str, str]:
    """The version of this package, the commit it is of where that is known, and what it runs on."""
    told = {"villa-dist": villa_dist.__version__, "python": platform.python_version(), "torch": torch.__version__}
    found = revision(Path(villa_dist.__file__).parents[1])
    return {**told, "commit": found} if found else told


def provenance(config: Config, results: Mapping[str, Any], card: Card) -> list[tuple[str, str]]:
    """(name, value), the code first, then what went in and what came out."""
    here, then = code(), results.get("code")
    rows = [("Report written by", _told(here))]
    if isinstance(then, Mapping):
        rows.append(("Measured by", _told(then)))
    rows.append(("Config", fingerprint(config.model_dump(mode="json", exclude={"run"}))))
    rows += [(f"Images, {s.split}", s.digest) for s in card.splits if s.digest]
    store = Store(config.run)
    if store.exists(vocabulary.NAME):
        rows.append(("Vocabulary", vocabulary.read(store).fingerprint))
    for split in card.splits:
        bound = [(stage, StageFolder(f"{config.run}/{split.split}", stage).bound_to()) for stage in STAGES]
        rows += [(f"{stage}, {split.split}, made with", found) for stage, found in bound if found]
    rows += [(f"Weights, {TITLES[job]}", digest) for job, digest in models.digests(config.run).items()]
    return rows


def _told(made_by: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in made_by.items())
