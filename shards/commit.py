"""Exactly-once output of a shard: attempt, flush, then one marker created exclusively.

    <stage>/.attempts/<shard>.<id>/<file>   written by a worker, never read by anyone else
    <stage>/<shard>.done.json               the commit: created once, by exactly one of any number of racing workers
    <stage>/<file>                          the winner's attempt, moved here after the commit

A crash before the marker leaves an orphan that nobody reads; a crash after it leaves output that readers find
through the marker and that the next visitor moves into place. Readers trust only markers and manifests.

On an object store a worker writes to a local temporary folder and uploads the finished files to `.attempts/`; before the
marker is made, a listing shows that all are there and whole; the move is a copy inside the storage and a removal, and a
visitor who comes between the two copies again. An orphan has no process to ask for there, and is collected after a day.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from shards.digest import difference, fingerprint, sha256
from shards.errors import ShardError, StaleStageError, VillaError, storage_errors
from shards.outfile import HashingFile as HashingFile
from shards.retry import Budget
from shards.store import ORPHAN_SECONDS, Store, is_orphan, owner, remove_orphans

Content = bytes | memoryview  # where `bytes` is a field
SUFFIX = ".done.json"
ATTEMPTS = ".attempts"
SCRATCH = "villa-attempt-"
QUICK = Budget(tries=2, seconds=5.0)  # to tidy up on the way out of a failure


@dataclass(frozen=True)
class Output:
    """A committed file: `file` is its final name in the stage's folder, `attempt` where it was written."""

    file: str
    attempt: str
    bytes: int
    sha256: str  # empty where the writer was told not to hash

    def is_content(self, data: Content) -> bool:
        """Whether `data` is what was committed, as far as was recorded."""
        return len(data) == self.bytes and (not self.sha256 or sha256(data) == self.sha256)


@dataclass(frozen=True)
class Marker:
    """What one committed shard holds. `samples` rows in tar order; digests are of `shards.digest`."""

    shard: str
    stage: str
    fingerprint: str
    input_digest: str
    samples: int
    keys_digest: str
    outputs: tuple[Output, ...]
    came_in: int
    refused: Mapping[str, int] = field(default_factory=dict)  # reason -> samples
    came_in_digest: str = ""
    refused_digest: str = ""
    content_digest: str = ""
    counts: Mapping[str, float] = field(default_factory=dict)  # stage-specific, such as regions or pairs
    seconds: Mapping[str, float] = field(default_factory=dict)  # part of the work -> seconds
    warnings: tuple[str, ...] = ()

    def output(self, suffix: str) -> Output:
        for output in self.outputs:
            if output.file.endswith(suffix) and "/" not in output.file:
                return output
        raise ShardError(f"marker of shard {self.shard} in {self.stage} names no {suffix} output")

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self), sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> Marker:
        try:
            values = json.loads(data)
            values["outputs"] = tuple(Output(**o) for o in values["outputs"])
            values["warnings"] = tuple(values["warnings"])
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ShardError(
                f"marker {place} is damaged ({error}); remove it and run again: the shard is redone"
            ) from error


def _make_folder(folder: Path, tries: int = 100) -> None:
    """A folder and its parents, one of which another process may remove meanwhile, where it tidies up what is empty."""
    for left in reversed(range(tries)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return
        except (FileNotFoundError, FileExistsError) as error:  # a parent went, before or after another made it again
            if not left or _is_no_folder(error.filename):
                raise


def _is_no_folder(path: str) -> bool:
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False  # gone already


class Attempt:
    """One worker's try at one shard. Leaving the `with` block without `commit` removes what was written."""

    def __init__(self, stage: StageFolder, shard: str) -> None:
        self.stage, self.shard = stage, shard
        self.name = f"{ATTEMPTS}/{shard}.{owner()}.{secrets.token_hex(4)}"
        self._files: dict[str, HashingFile] = {}
        self._marking = False  # from here on the marker may stand, and promises our files
        self._uploaded: list[str] = []
        if stage.store.local:
            self._scratch = Path(stage.store.path(self.name))
        else:
            self._scratch = Path(tempfile.gettempdir(), SCRATCH + self.name.removeprefix(f"{ATTEMPTS}/{shard}."))

    def __enter__(self) -> Attempt:
        with storage_errors(str(self._scratch)):
            if self.stage.store.local:
                _make_folder(self._scratch)
            else:
                self._scratch.mkdir(mode=0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            try:
                file.close()
            except Exception:
                if error is None:
                    raise
        if not self.stage.store.local:
            _remove_tree(self._scratch)
            if not self._marking:
                self._withdraw()
        elif not (error is not None and self._marking and self._is_committed()):
            _remove_tree(self._scratch)

    def _withdraw(self) -> None:
        """Remove what was uploaded and no marker can promise; what cannot be removed now is collected after a day."""
        store = self.stage.store
        try:
            store.objects.remove([store.path(name) for name in self._uploaded], QUICK)
        except VillaError:
            pass

    def _is_committed(self) -> bool:
        """Whether the marker that stands names this attempt's files."""
        try:
            outputs = self.stage.marker(self.shard).outputs
        except (ShardError, OSError):
            return self.stage.store.exists(self.shard + SUFFIX)
        return any(o.attempt.startswith(f"{self.name}/") for o in outputs)

    def open(self, file: str, *, hashed: bool = True, direct: bool = False) -> HashingFile:
        """A writer for the output that will be called `file` in the stage's folder. direct: nothing reads it soon."""
        path = self._scratch / file
        with storage_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[file] = HashingFile(str(path), hashed=hashed, direct=direct and self.stage.store.local)
        return self._files[file]

    def write(self, file: str, data: bytes) -> None:
        handle = self.open(file)
        handle.write(data)
        handle.close()

    def commit(self, make_marker: Callable[[tuple[Output, ...]], Marker]) -> Marker:
        """Flush, then create the marker exclusively. Returns the marker that stands: ours, or the one of the
        worker that was faster, whose output then counts and ours is dropped."""
        outputs = []
        for file, handle in sorted(self._files.items()):
            handle.close()
            outputs.append(Output(file, f"{self.name}/{file}", handle.bytes, handle.sha256))
        store = self.stage.store
        if not store.local:
            for output in outputs:
                self._uploaded.append(output.attempt)
                store.upload(str(self._scratch / output.file), output.attempt)
        marker = make_marker(tuple(outputs))
        gone = self._gone(outputs)
        if gone:
            raise ShardError(
                f"shard {self.shard}: {store.path()} was cleared while it was worked on ({gone[0]} is gone); nothing was "
                "committed, run the same command again"
            )
        bound = self.stage.bound_to()
        if bound and marker.fingerprint != bound:
            raise StaleStageError(
                f"shard {self.shard} was made with config {marker.fingerprint}, and {self.stage.store.path()} is bound to "
                f"{bound} by now; nothing was committed, run the same command again"
            )
        self._marking = True
        if not store.put_if_absent(self.shard + SUFFIX, marker.to_bytes()):
            if not store.local:
                self._withdraw()  # the marker that stands is another's
            standing = self.stage.marker(self.shard)
            if standing.fingerprint != marker.fingerprint:
                raise StaleStageError(
                    f"shard {self.shard} of {self.stage.store.path()} was committed by a worker with another config; repeat "
                    "with --force to redo it"
                )
            return standing
        self.stage.settle(marker)
        return marker

    def _gone(self, outputs: Sequence[Output]) -> list[str]:
        """Files of this attempt that are no longer as they were written."""
        store = self.stage.store
        if store.local:
            return [o.file for o in outputs if not (self._scratch / o.file).exists()]
        there = {e.path: e.size for e in store.objects.entries(store.path(self.name) + "/", recursive=True)}
        return [o.file for o in outputs if there.get(store.path(o.attempt)) != o.bytes]


class StageFolder:
    """One stage's folder of a dataset: `<dataset>/<stage>`."""

    def __init__(self, dataset_url: str, stage: str) -> None:
        self.dataset_url, self.stage = dataset_url.rstrip("/"), stage
        self.store = Store(f"{self.dataset_url}/{stage}")

    def claim(self, config: Mapping[str, Any], instead: str = "Set `run` to another folder") -> str:
        """Bind this folder to one config, before any work. Returns the config's fingerprint.

        instead: how to keep both, for the message.

        Raises: StaleStageError naming every difference when the folder holds another config's output.
        """
        text = json.dumps(config, sort_keys=True, indent=1)
        config = json.loads(text)  # as it will be read back: a tuple is a list
        mine = fingerprint(config)
        data = text.encode() + b"\n"
        if self.store.put_if_absent("config.json", data):
            if not self.store.local and self.store.put_if_absent("config.json", data):
                raise VillaError(
                    f"the storage of {self.store.shown()} creates an object twice: it ignores `If-None-Match: *`, without "
                    "which two workers could commit one shard; use AWS S3 or another storage that honours it"
                )
            return mine
        theirs = self.claimed()
        if theirs is None:  # cleared by another just now
            raise StaleStageError(f"{self.store.path()} was cleared while it was claimed; run the same command again")
        if fingerprint(theirs) == mine:
            return mine
        lines = "\n".join(f"  {line}" for line in difference(theirs, config))
        raise StaleStageError(
            f"{self.store.path()} was made with another config, and the two are never mixed. What differs (there -> "
            f"here):\n{lines}\n{instead} to keep both, or repeat with --force to redo this one and all that follow from "
            "it."
        )

    def claimed(self) -> dict[str, Any] | None:
        """The config that claimed this folder; None where none has. Raises: StaleStageError when it is damaged."""
        data = self.store.find("config.json")
        if data is None:
            return None
        try:
            config = json.loads(data)
        except ValueError:
            config = None
        if not isinstance(config, dict):
            raise StaleStageError(
                f"{self.store.path('config.json')} is damaged, so what this stage was made with is unknown; repeat with "
                "--force to redo it"
            )
        return config

    def bound_to(self) -> str:
        """The fingerprint of the config that claimed this folder; empty where none has."""
        try:
            config = self.claimed()
        except StaleStageError:
            return "damaged"
        return "" if config is None else fingerprint(config)

    def shards_done(self) -> list[str]:
        return [name.removesuffix(SUFFIX) for name in self.store.list("", SUFFIX)]

    def marker(self, shard: str) -> Marker:
        found = self.find_marker(shard)
        if found is None:
            raise ShardError(
                f"{self.store.path(shard + SUFFIX)} does not exist, so shard {shard} is not committed; restore the marker, "
                f"or run again what makes {self.stage!r} (`villa shards verify` lists all that is missing)"
            )
        return found

    def find_marker(self, shard: str) -> Marker | None:
        """None where the shard is not committed. Raises: ShardError when its marker is damaged."""
        name = shard + SUFFIX
        data = self.store.find(name)
        return None if data is None else Marker.from_bytes(data, self.store.path(name))

    def attempt(self, shard: str) -> Attempt:
        return Attempt(self, shard)

    def locate(self, output: Output) -> str:
        """The name under which a committed output is found now."""
        return self.find(output)[0]

    def find(self, output: Output) -> tuple[str, int | None]:
        """The name under which a committed output is found now, and its size; None where it is missing."""
        size = self.store.find_size(output.file)
        if size != output.bytes:  # not moved yet, over what an earlier commit may have left, or moved between the looks
            waiting = self.store.find_size(output.attempt)
            if waiting is not None:
                return output.attempt, waiting
            size = self.store.find_size(output.file)
        return output.file, size

    def settle(self, marker: Marker) -> None:
        """Move a committed attempt to its final names. Safe to repeat and to race."""
        for output in marker.outputs:
            try:
                self.store.rename(output.attempt, output.file, output.bytes)
            except FileNotFoundError:
                if not self.store.is_file(output.file):
                    raise ShardError(
                        f"{self.store.path(output.file)} is missing although its marker {marker.shard}{SUFFIX} stands; "
                        "remove the marker and run again to redo the shard"
                    ) from None

    def damaged(self, shard: str, *, content: bool, bound: str = "", sizes: Mapping[str, int] | None = None) -> str:
        """Why a committed shard's files cannot be used; empty for good ones. Sizes are looked at, and with `content` the
        sha256 too.

        bound: the fingerprint its marker must have. sizes: of this folder's files, as listed just now, to ask for fewer.
        """
        try:
            marker = self.marker(shard)
        except ShardError as error:
            return str(error)
        for output in marker.outputs:
            if not content and sizes and sizes.get(output.file) == output.bytes:
                continue
            name, size = self.find(output)
            place = self.store.path(name)
            if size is None:
                return f"{place} is missing although its marker stands"
            if size != output.bytes:
                return f"{place} has {size} bytes, its marker says {output.bytes}: it was cut or changed"
            if content and output.sha256 and self._sha256(name) != output.sha256:
                return f"{place} no longer has the content its marker recorded"
        if bound and marker.fingerprint != bound:
            return f"shard {shard} of {self.store.path()} was committed under another config"
        return ""

    def _sha256(self, name: str) -> str:
        found = hashlib.sha256()
        for block in self.store.blocks(name):
            found.update(block)
        return found.hexdigest()

    def settle_all(self) -> None:
        """Finish what a crash between commit and move has left, and collect orphaned attempts."""
        remove_orphaned_scratch()
        for attempt, orphaned in self._attempts().items():
            marker = self.find_marker(attempt.split(".", 1)[0])
            if marker and any(o.attempt.startswith(f"{ATTEMPTS}/{attempt}/") for o in marker.outputs):
                self.settle(marker)
            if orphaned:
                self._drop(attempt)
        if self.store.local:
            try:
                Path(self.store.path(ATTEMPTS)).rmdir()
            except OSError:
                pass  # there is none, or a live worker still writes there

    def _attempts(self) -> dict[str, bool]:
        """Attempts that have left files, and whether their worker is gone."""
        if self.store.local:
            remove_orphans(Path(self.store.path()))
            folder = Path(self.store.path(ATTEMPTS))
            found = sorted(folder.iterdir()) if folder.is_dir() else []
            return {f.name: is_orphan(f, f.name.split(".")[1] if "." in f.name else "") for f in found}
        newest: dict[str, float] = {}
        place = self.store.path(ATTEMPTS) + "/"
        for entry in self.store.objects.entries(place, recursive=True):
            name = entry.path[len(place) :].partition("/")[0]
            newest[name] = max(newest.get(name, 0.0), entry.modified)
        return {name: time.time() - newest[name] > ORPHAN_SECONDS for name in sorted(newest)}

    def _drop(self, attempt: str) -> None:
        if self.store.local:
            _remove_tree(Path(self.store.path(f"{ATTEMPTS}/{attempt}")))
        else:
            self.store.remove(f"{ATTEMPTS}/{attempt}", recursive=True)

    def clear(self) -> None:
        """Remove the stage's output. Markers go first, so that a crash midway leaves nothing that looks committed."""
        self.store.remove("done.json")  # a model's marker
        self.store.remove_files([shard + SUFFIX for shard in self.shards_done()])
        self.store.remove("manifest.parquet")
        self.store.remove("", recursive=True)


def remove_orphaned_scratch() -> None:
    """Remove the local files of uploads whose process was killed on this host."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        if is_orphan(folder, folder.name.removeprefix(SCRATCH).split(".")[0]):
            _remove_tree(folder)


def _remove_tree(folder: Path) -> None:
    if not folder.exists():
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        try:
            path.rmdir() if path.is_dir() else path.unlink()
        except OSError:
            pass
    try:
        folder.rmdir()
    except OSError:
        pass
