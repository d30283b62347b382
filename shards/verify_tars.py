"""Foreign tars: their structure, and the indices beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shards.findings import Findings
from shards.gather import Look
from shards.places import open_tar
from shards.store import Store
from shards.verify_base import check_index, read_index, walk_tar


@dataclass(frozen=True)
class VerifyTarsTask:
    """A unit is a tar of others."""

    url: str
    deep: bool

    def open(self) -> Look:
        store = Store(self.url)
        return lambda name: verify_tar(store, name, self.deep)


def verify_tar(store: Store, name: str, deep: bool) -> dict[str, Any]:
    found, place = Findings(), store.path(name)
    with open_tar(store, name) as (view, file):
        walked = walk_tar(view, file, place, found, ours=False, deep=deep, sizes=False)
        size = len(view)
    idx = name.removesuffix(".tar") + ".idx"
    if store.exists(idx):
        remedy = "remove it and run `villa shards index` again"
        table = read_index(store.read(idx), store.path(idx), found, remedy)
        if table is not None:
            check_index(table, walked, store.path(idx), found, remedy)
    return {"findings": found.to_json(), "samples": len(walked.samples), "bytes": size}
