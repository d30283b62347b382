"""Processes that race for one run's lease. Called with: RUN RACERS SECONDS; prints one line a racer."""

from __future__ import annotations

import os
import sys
import time

from cluster import lease
from shards.errors import VillaError


def race(run: str, seconds: float, start: float, others: int) -> str:
    lease.place = lambda: ""  # as if each were on a host of its own
    time.sleep(max(0.0, start - time.time()))
    try:
        held = lease.acquire(run, "use another run", lease.Terms(seconds))
    except VillaError as error:
        return f"refused {error}"
    os.read(others, 1)  # until all others have ended
    return f"lost {held.lost}" if held.lost else f"held {held.number}"


def main() -> None:
    run, racers, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    start, (others, over) = time.time() + 0.3, os.pipe()
    for _ in range(racers):
        if not os.fork():
            os.close(over)
            os.write(1, f"{race(run, seconds, start, others)}\n".encode())
            os._exit(0)
    for _ in range(racers - 1):
        os.wait()
    os.close(over)
    os.wait()


main()
