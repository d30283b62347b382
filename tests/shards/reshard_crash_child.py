"""Run as a program by the reshard crash test: kills a reshard before and after calls that change the disk, then reruns it.

    reshard_crash_child.py ROOT FIRST EVERY    points FIRST, FIRST + EVERY and so on. Reports as JSON

Nothing of Arrow may run in this process before a fork, so the parent only forks, waits and compares files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
from pathlib import Path

from crash_child import Killer, in_child
from reshard_data import data_set, run, some_samples

from shards.reshard import units

units.UNIT_SOURCES = 3  # several units, one of them of several sources
OPTIONS = {
    "in order": {"max_count": 9, "where": "pairs >= 1"},
    "shuffled": {"max_count": 9, "shuffle": 1, "dedupe": "content"},
}


def tree(root: Path) -> dict[str, str]:
    """Every file by content; of markers and results what does not tell which attempt or second it was."""
    found = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name.endswith(".json"):
            value = json.loads(data)
            for told in ("outputs", "seconds", "dataset"):
                value.pop(told, None)
            data = json.dumps(value, sort_keys=True).encode()
        found[str(path.relative_to(root))] = hashlib.sha256(data).hexdigest()
    return found


def killed(at: int, dst: Path, options: dict[str, object]) -> list[str]:
    """A reshard killed at a point and run again in processes of their own; what was not as expected."""

    def crash() -> None:
        Killer(at)
        work(dst, options)

    died = in_child(crash)
    bad = [] if died == -signal.SIGKILL else [f"exit status {died}"]
    return bad + ([] if in_child(lambda: work(dst, options)) == 0 else ["the rerun failed"])


def work(dst: Path, options: dict[str, object]) -> None:
    run(str(dst.parent / "src"), dst, **options)


def count(dst: Path, options: dict[str, object]) -> None:
    killer = Killer(0)
    work(dst, options)
    dst.with_suffix(".points").write_text("\n".join(killer.names))


def points_of(dst: Path, options: dict[str, object]) -> list[str]:
    assert in_child(lambda: count(dst, options)) == 0
    return dst.with_suffix(".points").read_text().splitlines()


def sweep(root: Path, first: int, every: int) -> dict[str, object]:
    failed: dict[str, list[str]] = {}
    points: dict[str, int] = {}
    assert in_child(lambda: data_set(root / "src", some_samples(1, 4, 14)) and None) == 0
    for name, options in OPTIONS.items():
        whole, out = root / f"{name}-whole", root / "out"
        names = points_of(whole, options)
        expected, points[name] = tree(whole), len(names)
        for at in range(first, len(names) + 1, every):
            shutil.rmtree(out, ignore_errors=True)
            bad = killed(at, out, options)
            found = tree(out)
            bad += [f"{f} differs" for f in expected if found.get(f) != expected[f]]
            bad += [f"{f} is left over" for f in found if f not in expected]
            if bad:
                failed[f"{name}: point {at}, {names[at - 1]}"] = bad
    return {"points": points, "failed": failed}


if __name__ == "__main__":
    print(json.dumps(sweep(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
