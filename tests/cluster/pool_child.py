"""The pool on a local Ray, in a process of its own: Ray reads how to authenticate when it is imported.

python pool_child.py FOLDER      prints one JSON object, by scenario: what was told, retried, raised, and how long it took
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pool_jobs import Job

from cluster.session import RaySession
from shards.errors import VillaError
from villa_dist.config import RayConfig

UNITS = [f"{n:06d}" for n in range(8)]
SCENARIOS: dict[
    str, tuple[tuple[str, str, int] | None, int, float]
] = {  # what is asked of a unit or all, units, deadline
    "undisturbed": (None, 8, 60.0),
    "die": (("die", UNITS[2], 1), 8, 60.0),
    "deadline": (("hang", UNITS[0], 1), 2, 3.0),  # too few units for stragglers to be repeated
    "straggler": (("hang", UNITS[1], 1), 8, 60.0),
    "after a straggler": (None, 8, 60.0),
    "break": (("break", UNITS[3], 9), 8, 60.0),
    "break all": (("break", "*", 9), 8, 60.0),
    "wrong": (("wrong", UNITS[3], 1), 8, 60.0),
    "slow to load": (("load", UNITS[0], 1), 8, 2.0),  # by workers of its own: the pool was closed by the one before
}


def main() -> None:
    found = {}
    with RaySession(RayConfig()):
        from cluster.pool import ActorPool

        pool = ActorPool(workers=2, timeout=60.0, attempts=3)
        for name, (asked, units, timeout) in SCENARIOS.items():
            folder = Path(sys.argv[1], name)
            folder.mkdir()
            job = Job(str(folder))
            if asked:
                what, unit, times = asked
                for each in UNITS if unit == "*" else [unit]:
                    job.asks(what, each, times)
            pool.timeout = timeout
            found[name] = outcome(pool, job, UNITS[:units])
        pool.close()
    print(json.dumps(found))


def outcome(pool: Any, job: Job, units: list[str]) -> dict[str, Any]:
    told: list[str] = []
    retries: list[tuple[str, str]] = []
    raised, started = "", time.monotonic()
    try:
        pool.run(job, units, told.append, lambda unit, why: retries.append((unit, why)))
    except VillaError as error:
        raised = str(error)
    return {"told": told, "retries": retries, "raised": raised, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    main()
