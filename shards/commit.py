"""Exactly-once output of a shard: attempt, flush, then one marker created exclusively.

    <stage>/.attempts/<shard>.<id>/<file>   written by a worker, never read by anyone else
    <stage>/<shard>.done.json               the commit: created once, by exactly one of any number of racing workers
    <stage>/<file>                          the winner's attempt, moved here after the commit

A crash before the marker leaves an orphan that nobody reads; a crash after it leaves output that readers find
through the marker and that the next visitor moves into place. Readers trust only markers and manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from shards.digest import difference, fingerprint, sha256
from shards.errors import ShardError, StaleStageError, storage_errors
from shards.store import Store, is_orphan, owner, remove_orphans

Content = bytes  # where `bytes` is a field
SUFFIX = ".done.json"
ATTEMPTS = ".attempts"


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


class HashingFile:
    """A binary file that counts and (if `hashed`) hashes what is written, and is on the disk when closed."""

    def __init__(self, path: str, *, hashed: bool = True) -> None:
        self._file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115
        self._hash = hashlib.sha256() if hashed else None
        self.path = path
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        with storage_errors(self.path):
            self._file.write(data)
        if self._hash is not None:
            self._hash.update(data)
        self.bytes += len(data)
        return len(data)

    def copy_from(self, source: BinaryIO, offset: int, length: int) -> None:
        """Append a range of a local file that is not hashed, inside the kernel where it can."""
        assert self._hash is None
        with storage_errors(self.path):
            self._file.flush()
            done = 0
            while done < length:
                count = copy_range(source.fileno(), self._file.fileno(), length - done, offset + done)
                if count == 0:
                    raise ShardError(f"{source.name} was cut while it was copied to {self.path}; restore the file")
                done += count
        self.bytes += length

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        with storage_errors(self.path):
            self._file.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        if self._file.closed:
            return
        with storage_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest() if self._hash is not None else ""


def copy_range(source: int, target: int, length: int, offset: int) -> int:
    """Copy up to `length` bytes from `offset` of one descriptor to the end of another; returns how many."""
    if sys.platform == "linux":
        return os.sendfile(target, source, offset, min(length, 1 << 30))
    return os.write(target, os.pread(source, min(length, 1 << 20), offset))


class Attempt:
    """One worker's try at one shard. Leaving the `with` block without `commit` removes what was written."""

    def __init__(self, stage: StageFolder, shard: str) -> None:
        self.stage, self.shard = stage, shard
        self.name = f"{ATTEMPTS}/{shard}.{owner()}.{secrets.token_hex(4)}"
        self._files: dict[str, HashingFile] = {}
        self._marking = False  # from here on the marker may stand, and promises our files
        self._scratch = (
            Path(stage.store.path(self.name)) if stage.store.local else Path(tempfile.mkdtemp(prefix="villa-attempt-"))
        )

    def __enter__(self) -> Attempt:
        with storage_errors(str(self._scratch)):
            self._scratch.mkdir(parents=True, exist_ok=True)
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
        if not (error is not None and self._marking and self._is_committed()):
            _remove_tree(self._scratch)

    def _is_committed(self) -> bool:
        """Whether the marker that stands names this attempt's files."""
        try:
            outputs = self.stage.marker(self.shard).outputs
        except (ShardError, OSError):
            return self.stage.store.exists(self.shard + SUFFIX)
        return any(o.attempt.startswith(f"{self.name}/") for o in outputs)

    def open(self, file: str, *, hashed: bool = True) -> HashingFile:
        """A writer for the output that will be called `file` in the stage's folder."""
        path = self._scratch / file
        with storage_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[file] = HashingFile(str(path), hashed=hashed)
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
                store.upload(str(self._scratch / output.file), output.attempt)
        marker = make_marker(tuple(outputs))
        gone = [o.file for o in outputs if not (self._scratch / o.file).exists()]
        if gone:
            raise ShardError(
                f"shard {self.shard}: {self.stage.store.path()} was cleared while it was worked on ({gone[0]} is gone); "
                "nothing was committed, run the same command again"
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
                store.remove(self.name, recursive=True)
            standing = self.stage.marker(self.shard)
            if standing.fingerprint != marker.fingerprint:
                raise StaleStageError(
                    f"shard {self.shard} of {self.stage.store.path()} was committed by a worker with another config; repeat "
                    "with --force to redo it"
                )
            return standing
        self.stage.settle(marker)
        return marker


class StageFolder:
    """One stage's folder of a dataset: `<dataset>/<stage>`."""

    def __init__(self, dataset_url: str, stage: str) -> None:
        self.dataset_url, self.stage = dataset_url.rstrip("/"), stage
        self.store = Store(f"{self.dataset_url}/{stage}")

    def claim(self, config: Mapping[str, Any]) -> str:
        """Bind this folder to one config, before any work. Returns the config's fingerprint.

        Raises: StaleStageError naming every difference when the folder holds another config's output.
        """
        text = json.dumps(config, sort_keys=True, indent=1)
        config = json.loads(text)  # as it will be read back: a tuple is a list
        mine = fingerprint(config)
        if self.store.put_if_absent("config.json", text.encode() + b"\n"):
            return mine
        theirs = self.claimed()
        if theirs is None:  # cleared by another just now
            raise StaleStageError(f"{self.store.path()} was cleared while it was claimed; run the same command again")
        if fingerprint(theirs) == mine:
            return mine
        lines = "\n".join(f"  {line}" for line in difference(theirs, config))
        raise StaleStageError(
            f"{self.store.path()} was made with another config, and the two are never mixed. What differs (there -> "
            f"here):\n{lines}\nSet `run` to another folder to keep both, or repeat with --force to redo this stage "
            "and all that follow from it."
        )

    def claimed(self) -> dict[str, Any] | None:
        """The config that claimed this folder; None where none has. Raises: StaleStageError when it is damaged."""
        if not self.store.exists("config.json"):
            return None
        try:
            config = json.loads(self.store.read("config.json"))
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
        name = shard + SUFFIX
        return Marker.from_bytes(self.store.read(name), self.store.path(name))

    def attempt(self, shard: str) -> Attempt:
        return Attempt(self, shard)

    def locate(self, output: Output) -> str:
        """The name under which a committed output is found now."""
        if self.store.exists(output.file) or not self.store.exists(output.attempt):
            return output.file
        return output.attempt

    def settle(self, marker: Marker) -> None:
        """Move a committed attempt to its final names. Safe to repeat and to race."""
        for output in marker.outputs:
            try:
                self.store.rename(output.attempt, output.file)
            except FileNotFoundError:
                if not self.store.exists(output.file):
                    raise ShardError(
                        f"{self.store.path(output.file)} is missing although its marker {marker.shard}{SUFFIX} stands; "
                        "remove the marker and run again to redo the shard"
                    ) from None

    def damaged(self, shard: str, *, content: bool) -> str:
        """Why a committed shard's files cannot be used; empty for good ones. Sizes are looked at, and with `content` the
        sha256 too."""
        try:
            outputs = self.marker(shard).outputs
        except ShardError as error:
            return str(error)
        for output in outputs:
            name = self.locate(output)
            place = self.store.path(name)
            if not self.store.exists(name):
                return f"{place} is missing although its marker stands"
            if self.store.size(name) != output.bytes:
                return (
                    f"{place} has {self.store.size(name)} bytes, its marker says {output.bytes}: it was cut or changed"
                )
            if content and not output.is_content(self.store.read(name)):
                return f"{place} no longer has the content its marker recorded"
        return ""

    def settle_all(self) -> None:
        """Finish what a crash between commit and move has left, and collect orphaned attempts."""
        if not self.store.local:
            return
        remove_orphans(Path(self.store.path()))
        attempts = Path(self.store.path(ATTEMPTS))
        if not attempts.is_dir():
            return
        for folder in sorted(attempts.iterdir()):
            shard = folder.name.split(".", 1)[0]
            if self.store.exists(shard + SUFFIX):
                marker = self.marker(shard)
                if any(o.attempt.startswith(f"{ATTEMPTS}/{folder.name}/") for o in marker.outputs):
                    self.settle(marker)
            if is_orphan(folder, folder.name.split(".")[1] if "." in folder.name else ""):
                _remove_tree(folder)
        try:
            attempts.rmdir()
        except OSError:
            pass  # a live worker still writes there

    def clear(self) -> None:
        """Remove the stage's output. Markers go first, so that a crash midway leaves nothing that looks committed."""
        self.store.remove("done.json")  # a model's marker
        for shard in self.shards_done():
            self.store.remove(shard + SUFFIX)
        self.store.remove("manifest.parquet")
        self.store.remove("", recursive=True)


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
