"""`villa shards index`: an index for each foreign tar, beside it or under another folder.

An index appears whole and once: it is created exclusively, so racing workers leave one. A tar that is damaged gets none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shards.errors import ShardError
from shards.findings import Findings
from shards.gather import Look, gather
from shards.index import ShardIndex
from shards.places import find_tars, open_tar
from shards.store import Store
from shards.verify_base import walk_tar
from shards.work import RunUnits

FORCE = "remove it, repeat with --force to replace it, or give another folder with --out"


@dataclass(frozen=True)
class IndexTask:
    """A unit is a tar below `url`; its index goes below `out`."""

    url: str
    out: str
    force: bool

    def open(self) -> Look:
        tars, out = Store(self.url), Store(self.out)
        return lambda name: index_tar(tars, name, out, force=self.force)


@dataclass
class Indexed:
    """written, there (made before, of a tar of that size) and refused count tars."""

    tars: int
    out: str
    written: int = 0
    there: int = 0
    refused: int = 0
    samples: int = 0
    findings: Findings = field(default_factory=Findings)


def index_name(tar: str) -> str:
    return tar.removesuffix(".tar") + ".idx"


def index_tars(
    path: str,
    run: RunUnits,
    *,
    out: str | None = None,
    force: bool = False,
    scratch: str | None = None,
    progress: Callable[[int], None] = lambda total: None,
) -> Indexed:
    """Index the tars at `path`. progress: called with the number of tars, then with 0 for each that is done.

    Raises: VillaError when there are no tars at `path`, or committed shards.
    """
    place = find_tars(path)
    indexed = Indexed(len(place.tars), out or place.url)
    progress(len(place.tars))

    def take(unit: str, result: dict[str, Any]) -> None:
        indexed.findings.merge(Findings.from_json(result["findings"]))
        indexed.samples += result["samples"]
        setattr(indexed, result["state"], getattr(indexed, result["state"]) + 1)
        progress(0)

    gather(run, IndexTask(place.url, indexed.out, force), place.tars, take, scratch)
    return indexed


def index_tar(tars: Store, tar: str, out: Store, *, force: bool) -> dict[str, Any]:
    found, name = Findings(), index_name(tar)
    if out.exists(name) and not force:
        return _result(found, *_of_before(tars.size(tar), out, name, found))
    with open_tar(tars, tar) as (view, file):
        samples = walk_tar(view, file, tars.path(tar), found, ours=False, deep=False, sizes=False).samples
        size = len(view)
    if found.total("error"):
        return _result(found, "refused", 0)
    data = ShardIndex.of(samples).to_bytes(size)
    if force:
        out.put(name, data)
    elif not out.put_if_absent(name, data):
        return _result(found, "there", len(samples))
    return _result(found, "written", len(samples))


def _of_before(size: int, out: Store, name: str, found: Findings) -> tuple[str, int]:
    """What an index that is there already is worth."""
    place = out.path(name)
    try:
        index = ShardIndex.from_bytes(out.read(name), place)
    except ShardError as error:
        found.add("error", "another file", place, expected="no file, or an index", found=error, remedy=FORCE)
        return "refused", 0
    if index.tar_bytes != size:
        of = "a tar of a size not recorded" if index.tar_bytes is None else f"one of a tar of {index.tar_bytes} bytes"
        found.add("error", "index of another tar", place, expected=f"one of {size} bytes", found=of, remedy=FORCE)
        return "refused", 0
    return "there", len(index)


def _result(found: Findings, state: str, samples: int) -> dict[str, Any]:
    return {"findings": found.to_json(), "state": state, "samples": samples}
