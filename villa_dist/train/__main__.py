"""One rank of a training job, for launchers that start ranks themselves and know nothing of Ray:

torchrun --nproc-per-node 2 -m villa_dist.train CONFIG JOB [--set a.b=c …]

JOB is one_to_one, mapping, villa or ground_truth. The stages before it must be done (`villa run` or `villa pairs`). The
number of ranks is the launcher's, whatever the config's `workers` say.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from shards.digest import fingerprint
from shards.errors import VillaError
from shards.lock import lock
from villa_dist import claims, models
from villa_dist.config import Config
from villa_dist.config_file import load
from villa_dist.names import JOBS
from villa_dist.observe import LOG, set_up_logging
from villa_dist.train import pulse, signals
from villa_dist.train.jobs import TrainRequest, run_request
from villa_dist.train.local import leave

SECTIONS = {
    "one_to_one": ("pretrain", "pretrain"),
    "mapping": ("mapping.fit", "fit-mapping"),
}  # of the config, and the stage
OTHERS = ("train", "train")


def main(arguments: list[str] | None = None) -> int:
    """The exit code; what is wrong goes to stderr, and rank 0's result to stdout as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m villa_dist.train", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="set_")
    given = parser.parse_args(arguments)
    set_up_logging()
    try:
        _train(given.config, given.job, given.set_)
    except VillaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _train(path: str, job: str, overrides: list[str]) -> None:
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        raise VillaError(
            "RANK and WORLD_SIZE are not set, so this is no rank of a group; start it by torchrun, or train by "
            "`villa train CONFIG`, which starts its ranks itself"
        )
    section, stage = SECTIONS.get(job, OTHERS)
    config = load(path, [*overrides, f"{section}.workers={os.environ['WORLD_SIZE']}"])
    first = os.environ["RANK"] == "0"
    held = lock(config.run, "set `run` to another folder") if first else None
    request = _bound(config, job, stage, first=first)
    done = models.done(request.folder)
    if done and done["fingerprint"] == request.fingerprint:
        LOG.info("train %s: complete", job)
    else:
        if first:
            pulse.clear(Path(request.folder))
            signals.clear(Path(request.folder))
        run_request(request)
    if first:
        print(json.dumps({"command": "train", "job": job, "run": config.run, "model": request.folder}), flush=True)
    del held


def _bound(config: Config, job: str, stage: str, *, first: bool) -> TrainRequest:
    """The request; rank 0 claims the job's folder for the config. Raises: StaleStageError when it has another's."""
    if first:
        claims.check_upstream(config, stage)
    claim = claims.training(config, job)
    bound = claim.folders[-1].claim(claim.config) if first else fingerprint(json.loads(json.dumps(claim.config)))
    return TrainRequest(job, config, bound)


if __name__ == "__main__":
    leave(main())
