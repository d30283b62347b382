"""Event files that TensorBoard reads, and Weights & Biases where it is asked for."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import VillaError
from villa_dist.train import trackers
from villa_dist.train.events import EventFile, crc32c, masked

# the protocol buffers of another implementation, where it is installed
event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
record_writer = pytest.importorskip("tensorboardX.record_writer")


def events(path: Path) -> list[Any]:
    """The events of a file, its checksums proved."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        body = data[at + 12 : at + 12 + length]
        assert struct.unpack("<I", data[at + 8 : at + 12])[0] == record_writer.masked_crc32c(data[at : at + 8])
        assert struct.unpack("<I", data[at + 12 + length : at + 16 + length])[0] == record_writer.masked_crc32c(body)
        event = event_pb2.Event()
        event.ParseFromString(body)
        found.append(event)
        at += 16 + length
    return found


def test_checksums_are_those_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    assert crc32c(b"\x00" * 32) == 0x8A9136AA and crc32c(b"") == 0


@given(st.binary(max_size=300))
def test_checksums_are_those_of_another_implementation(data: bytes) -> None:
    assert masked(data) == record_writer.masked_crc32c(data)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
VALUES = st.floats(allow_nan=False, width=32)


@given(st.lists(st.tuples(st.integers(0, 2**62), st.dictionaries(NAMES, VALUES, max_size=4)), max_size=4))
def test_another_implementation_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Any]
) -> None:
    file = EventFile(tmp_path_factory.mktemp("events"), 0)
    for step, values in lines:
        file.write(step, values)
    first, *rest = events(file.path)
    assert first.file_version == "brain.Event:2" and first.wall_time > 1.6e9
    assert [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in rest] == lines


def test_a_resumed_job_hides_what_came_after_its_start(tmp_path: Path) -> None:
    file = EventFile(tmp_path, 40)
    _, start = events(file.path)
    assert start.session_log.status == 1 and start.step == 41
    assert len(list(tmp_path.iterdir())) == 1


class FakeWandb(ModuleType):
    """What of the package is used; it remembers what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("wandb", None)
        self.said: list[Any] = []

    def init(self, **settings: Any) -> FakeWandb:
        self.said.append(settings)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.said.append((step, values))

    def finish(self) -> None:
        self.said.append("finished")


def test_wandb_is_told_what_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = tmp_path / "myrun" / "models" / "villa"
    trackers.check("wandb")
    for _ in range(2):
        tracker = trackers.make("wandb", folder, 0, {"steps": 7})
        assert tracker is not None
        tracker.write(10, {"loss": 0.5})
        tracker.close()
    first, line, ended, second = fake.said[:4]
    assert first["name"] == "myrun/villa" and first["config"] == {"steps": 7} and first["resume"] == "allow"
    assert first["id"] == second["id"], "a resumed job goes on in the same run"
    assert (line, ended) == ((10, {"loss": 0.5}), "finished")


def test_wandb_that_is_not_there_or_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VillaError, match="pip install wandb"):
        trackers.check("wandb")
    trackers.check("tensorboard")
    fake = FakeWandb()
    monkeypatch.setattr(fake, "init", lambda **_: 1 / 0, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    said: list[str] = []
    monkeypatch.setattr(trackers.LOG, "warning", lambda text, *values: said.append(text % values))
    assert trackers.make("wandb", tmp_path, 0, {}) is None and "does not start" in said[0]
    assert trackers.make("none", tmp_path, 0, {}) is None
