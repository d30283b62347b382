"""The local Ray's folder: nobody's is removed while its owner lives, and none outlives a killed owner for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster.session import OWNER, PREFIX, remove_orphans, unreachable

HOLDER = """
import fcntl, sys, time
owner = open(sys.argv[1], "w")
fcntl.flock(owner, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_only_folders_of_dead_owners_are_removed(tmp_path: Path) -> None:
    folder, other = tmp_path / (PREFIX + "a"), tmp_path / "somebody-elses"
    unfinished = tmp_path / (PREFIX + "being-made")
    for place in (folder, other, unfinished):
        place.mkdir()
        (place / "log").write_text("x")
    (other / OWNER).write_text("")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder / OWNER)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        remove_orphans(tmp_path)
        assert (folder / "log").exists()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(timeout=30)
        remove_orphans(tmp_path)
        assert not folder.exists() and other.exists() and unfinished.exists()
    finally:
        holder.kill()
        holder.wait(timeout=30)


def test_an_address_that_nobody_answers_is_told_at_once() -> None:
    assert unreachable("auto") == ""
    assert unreachable("127.0.0.1:1") != ""
