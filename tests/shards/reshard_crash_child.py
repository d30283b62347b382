"""Run as a program by the reshard crash test: kills a reshard before and after calls that change the disk, then reruns it.

    reshard_crash_child.py ROOT EVERY    EVERY: each how many-th point; 1 for all. Reports as JSON

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


def sweep(root: Path, every: int) -> dict[str, object]:
    failed: dict[str, list[str]] = {}
    points: dict[str, int] = {}
    assert in_child(lambda: data_set(root / "src", some_samples(1, 4, 14)) and None) == 0
    for name, options in OPTIONS.items():
        whole, out = root / f"{name}-whole", root / "out"

        def work(dst: Path, options: dict[str, object] = options) -> None:
            run(str(root / "src"), dst, **options)

        def count(dst: Path) -> None:
            killer = Killer(0)
            work(dst)
            dst.with_suffix(".points").write_text("\n".join(killer.names))

        assert in_child(lambda: count(whole)) == 0
        names = whole.with_suffix(".points").read_text().splitlines()
        expected, points[name] = tree(whole), len(names)
        for at in range(1, len(names) + 1, every):
            shutil.rmtree(out, ignore_errors=True)

            def crash(at: int = at) -> None:
                Killer(at)
                work(out)

            died = in_child(crash)
            bad = [] if died == -signal.SIGKILL else [f"exit status {died}"]
            bad += [] if in_child(lambda: work(out)) == 0 else ["the rerun failed"]
            found = tree(out)
            bad += [f"{f} differs" for f in expected if found.get(f) != expected[f]]
            bad += [f"{f} is left over" for f in found if f not in expected]
            if bad:
                failed[f"{name}: point {at}, {names[at - 1]}"] = bad
    return {"points": points, "failed": failed}


if __name__ == "__main__":
    print(json.dumps(sweep(Path(sys.argv[1]), int(sys.argv[2]))))
