"""Many runs side by side, each a `villa run` of its own; a finished one is read, not repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shards.errors import VillaError
from villa_dist.config import Config
from villa_dist.config_file import dump
from villa_dist.observe import Progress


def run_cells(cells: Sequence[Config], out: str, parallel: int) -> list[dict[str, Any]]:
    """The result line of every cell, in order. Raises: VillaError naming the first cell that failed and its log."""
    running: set[subprocess.Popen[bytes]] = set()
    with Progress("study", len(cells), "runs") as progress, ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(_run, cell, running) for cell in cells]
        try:
            for future in futures:
                future.result()
                progress.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            for process in list(running):
                process.terminate()
            raise
    return [f.result() for f in futures]


def _run(cell: Config, running: set[subprocess.Popen[bytes]]) -> dict[str, Any]:
    folder = Path(cell.run)
    folder.mkdir(parents=True, exist_ok=True)
    given, log = folder / "cell.yaml", folder / "log.txt"
    given.write_text(dump(cell), encoding="utf-8")
    with open(log, "a", encoding="utf-8") as stderr:
        command = [sys.executable, "-m", "cluster", "run", str(given)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
        running.add(process)
        stdout, _ = process.communicate()
        running.discard(process)
    if process.returncode:
        tail = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise VillaError(f"run {cell.run} of the study failed (exit {process.returncode}): {' '.join(tail)}; see {log}")
    result: dict[str, Any] = json.loads(stdout)
    return result
