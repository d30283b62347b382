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
from villa_dist.config_file import YAML_TROUBLE, parse_yaml

MARK = "villa-complete "
RESULTS, REPORT = "results.json", "report.html"


def missing(config: Config) -> list[str]:
    """What a run still lacks of `config`, in the order of its stages; empty when it is whole.

    A stage counts by its manifest or done.json, made by this config; a damaged one counts as missing. The results are
    whole when they are of all that `evaluate` asks for, and the report when it shows them.
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
        lacking += _reported(store)
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


def _reported(store: Store) -> list[str]:
    """What is not there, or damaged, of the results and of the report on them."""
    from villa_dist.report.bound import shows

    results, page = store.find(RESULTS), store.find(REPORT)
    lacking = [] if _object(results) is not None else [f"evaluate ({RESULTS})"]
    if page is None:
        lacking.append(f"report ({REPORT})")
    elif results is not None and not lacking and not shows(page, results):
        lacking.append(f"report ({REPORT} is damaged, or not of {RESULTS})")
    return lacking


def _measured(config: Config, store: Store) -> None:
    """Raises: VillaError when the results are of other weights, or not of all that is asked for."""
    from villa_dist import claims, models

    results, place = _object(store.read(RESULTS)) or {}, store.shown(RESULTS)
    if results.get("weights") != models.digests(config.run):
        raise VillaError(f"{place} is of other weights than the run holds; run `villa evaluate`")
    if results.get("asked") != claims.results(config):
        raise VillaError(f"{place} is not of all that this config's `evaluate` asks for; run `villa evaluate`")


def _object(data: bytes | None) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or it is damaged."""
    try:
        found = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def as_config(text: str) -> Config:
    """The config that `villa_dist.config_file.dump` wrote. Raises: VillaError when another version wrote it."""
    try:
        return Config.model_validate(parse_yaml(text))
    except YAML_TROUBLE as error:  # pydantic's is a ValueError
        said = " ".join(str(error).split())[:300]
        raise VillaError(
            f"its config is none of this version of villa ({said}); ask with the version it was made by"
        ) from None


def record(run: str, submission: str) -> dict[str, Any] | None:
    """What a submission left in its run's folder; None where that cannot be seen from here, or is damaged."""
    try:
        found = Store(run).find(f"{RECORDS}/{submission}.json")
    except (VillaError, OSError):
        return None
    told = _object(found)
    return told if told and isinstance(told.get("config"), str) else None


def main() -> None:
    run, submission = sys.argv[1:3]
    found = record(run, submission)
    lost = f"everything: the job was not started, or {RECORDS}/{submission}.json is damaged"
    lacking = missing(as_config(found["config"])) if found else [lost]
    print(MARK + json.dumps(lacking), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
