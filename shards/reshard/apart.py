"""That nothing which is written can be taken for a source, now or when the same command is run again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from braceexpand import braceexpand  # type: ignore[attr-defined]
from fsspec.utils import glob_translate

from shards.errors import VillaError
from shards.reshard.options import WORK
from shards.reshard.sources import BASE, Sources
from shards.store import WILD, Store, place_of


def check_apart(src: str, sources: Sources, dst: str) -> None:
    """Raises: VillaError when DST lies in a folder of the sources, a source lies where DST's shards will, or the pattern SRC
    would match them."""
    target = _real(dst)
    own = [f"{target}/{name}" for name in (BASE, WORK, *sources.sidecars)]
    for url in sorted({sources.dataset} if sources.dataset else set(sources.url)):
        place = _real(url)
        if _within(target, place):
            raise VillaError(f"{dst} lies in the sources, {url}; give a folder outside of them for DST")
        taken = next((folder for folder in own if _within(place, folder)), "")
        if taken:
            raise VillaError(
                f"the sources in {url} lie where DST {dst} keeps its own files, {taken}; give another folder for DST"
            )
    for pattern, folder in _patterns(src):
        if re.match(folder, own[0]):
            raise VillaError(
                f"{src}: the pattern {pattern} matches what will be written to {dst}/{BASE}, so a second run would take "
                "it for sources; give a DST that it does not match, or a narrower SRC"
            )


def _patterns(src: str) -> Iterator[tuple[str, str]]:
    """(pattern, regular expression of the folders it looks in) of each part of SRC that has wild cards."""
    if not any(c in src for c in WILD):
        return
    for part in braceexpand(src):
        local, path = place_of(part)
        folder = path.rpartition("/")[0]
        if any(c in path for c in WILD):
            wild = [at for at, c in enumerate(folder) if c in WILD]
            fixed = folder[: wild[0]].rpartition("/")[0] if wild else folder
            yield part, glob_translate((os.path.realpath(fixed) if local else fixed) + folder[len(fixed) :])


def _real(url: str) -> str:
    store = Store(url)
    return os.path.realpath(store.path()) if store.local else store.path()


def _within(a: str, b: str) -> bool:
    return f"{a.rstrip('/')}/".startswith(f"{b.rstrip('/')}/")
