"""What the markers of a stage say, as one table, and a cache of it beside them while the stage is not complete.

A marker is the truth. A row of the cache counts only while the marker is as large and as old as when it was read (on an
object store: has the same ETag), so a listing takes the place of reading a million small files again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards import sidecar
from shards.commit import SUFFIX, Marker, StageFolder
from shards.errors import ShardError
from shards.objects import PARALLEL
from shards.prefetch import in_order

NAME = ".markers.parquet"
WORTH = 1000  # markers: fewer are read again sooner than a file of them is kept
TOGETHER = 50_000  # markers held as Python objects
ROW = pa.schema(
    [
        ("shard", pa.string()),
        ("samples", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("keys_digest", pa.string()),
        ("came_in", pa.int64()),
        ("refused", pa.int64()),
        ("fingerprint", pa.string()),
    ]
)
SCHEMA = pa.schema([*ROW, ("stamp", pa.string()), ("files", pa.list_(pa.string())), ("sizes", pa.list_(pa.int64()))])


def rows(stage: StageFolder, shards: Sequence[str] | None = None, *, strict: bool = False) -> pa.Table:
    """`SCHEMA` of the committed ones of `shards` (None: of all), in order. Keeps what it read when that is much.

    strict: all of them must be committed. Raises: ShardError, when strict, for the first marker that is missing or damaged;
    otherwise those are left out.
    """
    stamps = stage.store.list_stamps("", SUFFIX)
    wanted = [name.removesuffix(SUFFIX) for name in stamps] if shards is None else shards
    known = _kept(stage, stamps)
    have = set(known["shard"].to_pylist())
    unread = [s for s in wanted if s not in have and (strict or s + SUFFIX in stamps)]
    if unread:
        known = pa.concat_tables([known, *_read(stage, unread, stamps, strict)])
        if len(unread) >= WORTH:
            stage.store.put(NAME, sidecar.to_bytes(known))
    if len(known) > len(wanted):
        known = known.filter(pc.is_in(known["shard"], pa.array(wanted, pa.string())))
    return known.sort_by("shard").combine_chunks()


def forget(stage: StageFolder) -> None:
    """Remove the cache; the manifest takes its place."""
    stage.store.remove(NAME)


def as_committed(table: pa.Table, sizes: Mapping[str, int], bound: str) -> set[str]:
    """Shards of `rows` whose files all have the sizes their markers say, and the config `bound`.

    sizes: of the files directly in the stage's folder, as listed just now.
    """
    columns = (table[n].to_pylist() for n in ("shard", "fingerprint", "files", "sizes"))
    return {
        shard
        for shard, made, files, said in zip(*columns, strict=True)
        if made == bound and all(sizes.get(f) == size for f, size in zip(files, said, strict=True))
    }


def row_of(marker: Marker) -> dict[str, Any]:
    """What the manifest says of one committed shard."""
    main = [o for o in marker.outputs if "/" not in o.file and not o.file.endswith(".idx")]
    return {
        "shard": marker.shard,
        "samples": marker.samples,
        "bytes": sum(o.bytes for o in main),
        "sha256": "+".join(o.sha256 for o in main),
        "keys_digest": marker.keys_digest,
        "came_in": marker.came_in,
        "refused": sum(marker.refused.values()),
        "fingerprint": marker.fingerprint,
    }


def _kept(stage: StageFolder, stamps: Mapping[str, str]) -> pa.Table:
    """The rows of the cache whose markers are as they were."""
    try:
        data = stage.store.find(NAME)
        table = SCHEMA.empty_table() if data is None else sidecar.from_bytes(data, stage.store.path(NAME), SCHEMA)
    except ShardError:
        return SCHEMA.empty_table()
    pairs = zip(table["shard"].to_pylist(), table["stamp"].to_pylist(), strict=True)
    same = pa.array([stamps.get(shard + SUFFIX) == stamp for shard, stamp in pairs], pa.bool_())
    return table.select(SCHEMA.names).filter(same)


def _read(stage: StageFolder, shards: Sequence[str], stamps: Mapping[str, str], strict: bool) -> Iterator[pa.Table]:
    def look(shard: str) -> Marker | None:
        try:
            return stage.marker(shard)
        except ShardError:
            if strict:
                raise
            return None

    for first in range(0, len(shards), TOGETHER):
        some = shards[first : first + TOGETHER]
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        tasks: list[Callable[[], Marker | None]] = [partial(look, shard) for shard in some]
        found = (task() for task in tasks) if stage.store.local else in_order(tasks, PARALLEL)
        for shard, marker in zip(some, found, strict=True):
            if marker is not None:
                told = {"files": [o.file for o in marker.outputs], "sizes": [o.bytes for o in marker.outputs]}
                row = {**row_of(marker), "shard": shard, "stamp": stamps.get(shard + SUFFIX, ""), **told}
                for name, value in row.items():
                    columns[name].append(value)
        yield pa.table(columns, schema=SCHEMA)
