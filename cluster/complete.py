"""Whether a run is whole, from what is committed and nothing else: `python -m cluster.complete RUN ID` on a cluster."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from cluster.probe import RECORDS
from shards import manifest
from shards.commit import StageFolder
from shards.errors import VillaError
from shards.store import Store
from villa_dist.config import Config
from villa_dist.config_file import parse_yaml

MARK = "villa-complete "
REPORTS = (("evaluate", "results.json"), ("report", "report.html"))


def missing(config: Config) -> list[str]:
    """What a run still lacks of `config`, in the order of its stages; empty when it is whole.

    A stage counts by its manifest or done.json, made by this config; a damaged one counts as missing.
    """
    from villa_dist import claims, models  # torch: not needed to submit
    from villa_dist.attributes import vocabulary

    store, lacking = Store(config.run), []
    try:
        for split in claims.splits(config):
            lacking += _stage(config, split, "base", "ingest")
        if not store.is_file(vocabulary.NAME):
            lacking.append("vocabulary")
        if "ingest train" not in lacking:
            for split in claims.region_splits(config):
                lacking += _stage(config, split, "regions", "regions")
            for split in claims.splits(config):
                lacking += _stage(config, split, "pairs", "pairs")
        for job in [*claims.jobs(config)[:1], "mapping", *claims.jobs(config)[1:]]:
            if models.done(f"{config.run}/models/{job}") is None:
                lacking.append(f"train {job}")
        lacking += [f"{what} ({name})" for what, name in REPORTS if not store.is_file(name)]
        if not lacking:
            claims.check_upstream(config, "report")
            _measured(config, store)
    except VillaError as error:
        lacking.append(str(error))
    return lacking


def _stage(config: Config, split: str, folder: str, stage: str) -> list[str]:
    found = StageFolder(f"{config.run}/{split}", folder)
    try:
        manifest.read(found)
    except VillaError:
        return [f"{stage} {split}"]
    return []


def _measured(config: Config, store: Store) -> None:
    """Raises: VillaError when the results are of other weights."""
    from villa_dist import models

    if json.loads(store.read("results.json")).get("weights") != models.digests(config.run):
        raise VillaError(f"{store.shown('results.json')} is of other weights than the run holds; run `villa evaluate`")


def as_config(text: str) -> Config:
    """The config that `villa_dist.config_file.dump` wrote."""
    return Config.model_validate(parse_yaml(text))


def record(run: str, submission: str) -> dict[str, Any] | None:
    """What a submission left in its run's folder; None where that folder cannot be seen from here."""
    try:
        found = Store(run).find(f"{RECORDS}/{submission}.json")
    except (VillaError, OSError):
        return None
    return json.loads(found) if found else None


def main() -> None:
    run, submission = sys.argv[1:3]
    found = record(run, submission)
    lacking = missing(as_config(found["config"])) if found else ["everything: the job was not started"]
    print(MARK + json.dumps(lacking), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
