"""Requests to S3 for one shard of a stage that reads base shards and commits a sidecar, counted against a local server.

    python -m benchmarks.store_requests

Prints requests by operation: reading the input, committing, the driver's look at the marker, a listing of the stage. A tar
takes one more `get_object` for each further 8 MiB.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

from moto.server import ThreadedMotoServer

from shards.commit import StageFolder
from shards.reader import BaseShard
from shards.session import Session
from shards.store import Store

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "shards"), str(Path(__file__).parents[1] / "tests")]


def count() -> dict[str, dict[str, float]]:
    from faults.s3 import environment
    from made_dataset import SHARDS, make, sidecar_marker

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(environment(f"http://{host}:{port}"))
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder))
        whole = Store("s3://bucket/data")
        whole.objects.session.fs.mkdir("bucket")
        for path in (p for p in Path(made, "base").rglob("*") if p.is_file()):
            whole.put(str(path.relative_to(made)), path.read_bytes())
    found, seen = {}, Counter[str]()
    plain = Session.request

    def counted(self: Session, method: str, *given: object, **more: object) -> object:
        seen[method] += 1
        return plain(self, method, *given, **more)  # type: ignore[arg-type]

    def section(name: str, cpu: float) -> None:
        found[name] = {**seen, "ms CPU": round((time.process_time() - cpu) * 1e3, 2)}
        seen.clear()

    shard, stage = SHARDS[0], StageFolder("s3://bucket/data", "pairs")
    bound = stage.claim({"a": 1})
    with mock.patch.object(Session, "request", counted):
        for _ in range(3):  # the first makes connections
            stage.store.remove(f"{shard}.done.json")
            seen.clear()
            cpu = time.process_time()
            base = BaseShard(StageFolder("s3://bucket/data", "base"), shard)
            list(base.samples())
            section("read", cpu)
            cpu = time.process_time()
            with stage.attempt(shard) as attempt:
                attempt.write(f"{shard}.parquet", b"x" * 1000)
                attempt.commit(sidecar_marker("pairs", shard, base.marker.output(".tar").sha256, bound))
            section("commit", cpu)
            cpu = time.process_time()
            stage.marker(shard)
            section("driver", cpu)
            cpu = time.process_time()
            stage.store.list_sizes()
            section("a page of a listing", cpu)
    server.stop()
    return found


if __name__ == "__main__":
    print(json.dumps(count(), indent=1))
