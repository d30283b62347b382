"""The script that starts nodes on this machine: what it removes, and what it says where none are up. Ray is a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "local_three_nodes.sh"
STAND_IN = """#!/usr/bin/env bash
[ "$1" = -c ] && exec {python} "$@"
case " $* " in *" $FAILS "*) exit 1 ;; esac
echo "Ray runtime started"
while :; do sleep 0.05; done
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)
    return {**os.environ, "PYTHON": str(python), "VILLA_NODES_DIR": str(tmp_path / "mine"), "FAILS": "none"}


def script(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=30)


def alive(*pids: str) -> list[str]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_what_was_in_the_folder_stays(env: dict[str, str]) -> None:
    place = Path(env["VILLA_NODES_DIR"])
    (place / "thesis").mkdir(parents=True)
    (place / "thesis" / "a.tex").write_text("years of work")
    place.chmod(0o755)
    down = script(env, "down")
    assert down.returncode == 0 and (place / "thesis" / "a.tex").exists(), "nothing was up"

    up = script(env, "up", "2")
    assert up.returncode == 0, up.stderr
    pids = [(place / "up" / f"{node}.pid").read_text().strip() for node in ("head", "node1")]
    assert len(alive(*pids)) == 2 and (place / "up").stat().st_mode & 0o777 == 0o700
    told = script(env, "env")
    assert told.returncode == 0 and told.stdout == up.stdout and f"TOKEN_PATH={place}/up/token" in up.stdout
    again = script(env, "up")
    assert again.returncode == 1 and "end them with" in again.stderr and len(alive(*pids)) == 2
    assert script(env, "down").returncode == 0
    assert not alive(*pids) and not (place / "up").exists()
    assert (place / "thesis" / "a.tex").read_text() == "years of work" and place.stat().st_mode & 0o777 == 0o755


def test_nodes_that_do_not_start_cost_nothing_that_was_there(env: dict[str, str]) -> None:
    place = Path(env["VILLA_NODES_DIR"])
    place.mkdir()
    (place / "kept").touch()
    up = script({**env, "FAILS": "--head"}, "up")
    assert up.returncode == 1 and "node head did not start" in up.stderr
    assert [p.name for p in place.iterdir()] == ["kept"]


def test_a_folder_it_did_not_make_is_not_removed(env: dict[str, str]) -> None:
    """Not even one of the name that it gives its own."""
    place = Path(env["VILLA_NODES_DIR"])
    (place / "up").mkdir(parents=True)
    (place / "up" / "kept").touch()
    for what, told in (("down", "was not made by"), ("up", "is there already")):
        done = script(env, what)
        assert done.returncode == 1 and told in done.stderr
    assert (place / "up" / "kept").exists()


def test_a_folder_it_made_goes_with_it(env: dict[str, str]) -> None:
    assert script(env, "up", "1").returncode == 0
    assert script(env, "down").returncode == 0
    assert not Path(env["VILLA_NODES_DIR"]).exists()


def test_the_environment_of_nothing_is_an_error(env: dict[str, str]) -> None:
    told = script(env, "env")
    assert told.returncode == 1 and told.stdout == "", "eval would set an address without a port"
    assert "no nodes are up in" in told.stderr and " up" in told.stderr
