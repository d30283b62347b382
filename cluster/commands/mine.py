"""`villa mine PATH --out FILE`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from cluster.commands.common import Path
from cluster.result import emit
from shards.decode import DecodeError, sample_text
from shards.errors import VillaError
from shards.places import look_at
from shards.reader import view_tar
from shards.store import Store
from shards.tar import Scan
from villa_dist.attributes.mining import Mined, Tally, phrases
from villa_dist.observe import LOG, Progress

EXAMPLES = 10  # in the result line


def command(
    path: Path,
    out: Annotated[str, typer.Option("--out", "-o", help="the list to write: a .txt, for vocabulary.lists")],
    top: Annotated[int, typer.Option(help="phrases at most", min=1)] = 5000,
    min_count: Annotated[int, typer.Option(help="texts that use a phrase, at least", min=1)] = 5,
    max_words: Annotated[int, typer.Option(help="words of a phrase, at most", min=1, max=8)] = 3,
    sample: Annotated[int, typer.Option("--sample", help="shards that are read, evenly spaced", min=1)] = 64,
) -> None:
    """Find phrases that the texts of shards use often, as candidates for a vocabulary: English, without a list or a model.

    Read the list before it is used: it holds whatever is said often, not only what can be seen.
    """
    if not out.endswith(".txt"):
        raise VillaError(f"--out {out!r}: the list is written as text, one phrase a line; name a .txt file")
    store, tars = _tars(path)
    tars = tars[:: -(-len(tars) // sample)]
    tally, without = Tally(), 0
    with Progress("mine", len(tars), "shards") as progress:
        for tar in tars:
            for text in _texts(store, tar):
                if text is None:
                    without += 1
                else:
                    tally.add(text, max_words)
            progress.advance()
    found = phrases(tally, min_count, top)
    if not found:
        raise VillaError(f"{path}: of {tally.texts} texts none uses a phrase {min_count} times; lower --min-count")
    _write(out, path, tally, found)
    LOG.info("mine: %d phrases of %d texts, %s to %s", len(found), tally.texts, found[0].count, found[-1].count)
    examples = {m.phrase: m.count for m in found[:EXAMPLES]}
    counts = {"shards": len(tars), "texts": tally.texts, "without_text": without, "phrases": len(found)}
    emit({"command": "mine", "path": path, "out": out, **counts, "most_used": examples})


def _tars(path: str) -> tuple[Store, list[str]]:
    place = look_at(path)
    if place.kind == "tars":
        return Store(place.url), list(place.tars)
    stage = "base" if "base" in place.stages else place.stages[0]
    store = Store(f"{place.url}/{stage}")
    tars = sorted(store.list("", ".tar"))
    if not tars:
        raise VillaError(f"{path}: {store.path()} holds no tars, so no texts; name a data set or its base stage")
    return store, tars


def _texts(store: Store, tar: str) -> Iterator[str | None]:
    """The text of each sample, None for one without a readable one."""
    scan = Scan()
    for _, members in view_tar(store, tar, scan):
        try:
            yield sample_text({s: bytes(data) for s, data in members.items() if s in ("txt", "json")})
        except DecodeError:
            yield None
    if scan.problem:
        LOG.warning("mine: %s: %s; what stands before it was read", tar, scan.problem)


def _write(out: str, path: str, tally: Tally, found: list[Mined]) -> None:
    folder, _, name = out.rpartition("/")
    lines = [f"# phrases that {tally.texts} texts of {path} use often; strike out what is no attribute"]
    Store(folder or ".").put(name, "\n".join([*lines, *(m.phrase for m in found), ""]).encode())
