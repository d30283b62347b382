"""Which commit the code is of: its checkout's own, or the one it was submitted from."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

SUBMITTED = "VILLA_COMMIT"  # set in a submitted job, whose copy of a checkout has no .git
DESCRIBED = re.compile(r"[0-9a-f]{4,40}(-dirty)?")


def commit(folder: Path) -> str | None:
    """The commit of a git checkout, with "-dirty" where files differ from it; None where `folder` is not one's root."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def revision(folder: Path) -> str | None:
    """`commit`, or what the job was submitted with."""
    told = os.environ.get(SUBMITTED, "")
    return commit(folder) or (told if DESCRIBED.fullmatch(told) else None)
