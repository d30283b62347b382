"""When a checkpoint is due, which ones stay, what becomes of their copies, and a disk that is full."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import VillaError
from shards.store import Store
from villa_dist.config_file import load
from villa_dist.config_train import OptimConfig
from villa_dist.observe import LOG
from villa_dist.train import checkpoint, remote, resume, saving
from villa_dist.train.checkpoint import MARKER, TrainState, kept, newest, prune, reached, seal, tag
from villa_dist.train.saving import Saver


def state(step: int, **measured: float) -> TrainState:
    return TrainState(step, 7, 64, "manifest-digest", "config-fingerprint", 2, measured)


def make(folder: Path, step: int, **measured: float) -> Path:
    place = folder / tag(step)
    (place / "zero").mkdir(parents=True)
    (place / "model.pt").write_bytes(b"weights %d " % step * 100)
    (place / "zero/rank0.pt").write_bytes(b"optimizer %d" % step)
    seal(place, state(step, **measured))
    return place


def left(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*"))


def test_the_best_one_is_never_pruned(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 1.5), (5, 1.2)):
        make(tmp_path, step, loss=loss)
        prune(tmp_path, 2, "loss")
    assert left(tmp_path) == [2, 4, 5]
    make(tmp_path, 6, loss=0.5)
    prune(tmp_path, 2, "loss")
    assert left(tmp_path) == [5, 6]
    assert newest(tmp_path) == (tmp_path / tag(6), state(6, loss=0.5))


def test_a_metric_is_better_when_it_is_higher_and_a_later_one_of_equals() -> None:
    states = {
        tag(s): state(s, recall=r, validation_loss=r) for s, r in ((1, 0.1), (2, 0.9), (3, 0.9), (4, 0.2), (5, 0.3))
    }
    assert kept(states, 1, "recall") == {tag(3), tag(5)}
    assert kept(states, 1, "validation_loss") == {tag(1), tag(5)}
    assert kept(states, 1, "other") == kept(states, 1, None) == {tag(5)}
    assert kept({}, 2, "recall") == set()


def test_what_is_being_copied_is_spared_and_what_is_damaged_does_not_stop_pruning(tmp_path: Path) -> None:
    for step in range(1, 6):
        make(tmp_path, step)
    (tmp_path / tag(2) / MARKER).write_bytes(b"{")
    prune(tmp_path, 1, "loss", {tag(3)})
    assert left(tmp_path) == [3, 5]


def test_how_far_a_job_is(tmp_path: Path) -> None:
    assert reached(tmp_path / "nowhere") == 0
    for step in (20, 100):
        make(tmp_path, step)
    (tmp_path / tag(100) / MARKER).unlink()
    assert reached(tmp_path) == 20


class FakeEngine:
    """Saves a file; a step of it takes no time."""

    def save(self, folder: Path, name: str, content: dict[str, Any]) -> None:
        (folder / name).mkdir(parents=True)
        (folder / name / "model.pt").write_text(json.dumps(content))


def saver(folder: Path, **settings: Any) -> Saver:
    optim = OptimConfig(checkpoint_steps=10, **settings)
    return Saver(FakeEngine(), folder / "villa" / "checkpoints", optim, state(0))  # type: ignore[arg-type]


def test_saves_by_steps_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    with saver(tmp_path, checkpoint_minutes=2.0) as own:
        assert [s for s in range(1, 26) if own.due(s, 25)] == [10, 20, 25]
        clock[0] = 219.0
        assert not own.overdue
        clock[0] = 220.0
        assert own.overdue
        own.save(7)
        assert not own.overdue
    with saver(tmp_path) as own:
        clock[0] = 1e9
        assert not own.overdue


def test_the_mean_loss_since_the_last_checkpoint_is_kept_with_it(tmp_path: Path) -> None:
    with saver(tmp_path, keep_best="loss", keep_checkpoints=1) as own:
        for step, losses in ((2, [1.0, 2.0]), (4, [4.0, 6.0]), (6, [3.0])):
            for loss in losses:
                own.stepped(torch.tensor(loss))
            own.measured({"validation_recall": 0.5})
            own.save(step)
    assert left(own.folder) == [2, 6]
    assert checkpoint.read_marker(own.folder / tag(2))[0].measured == {"loss": 1.5, "validation_recall": 0.5}
    with (
        saver(tmp_path, keep_best="validation_recal", validate_steps=4) as own,
        pytest.raises(VillaError, match=r"'validation_recal'.*known here: validation_recall"),
    ):
        own.stepped(torch.tensor(1.0))
        own.save(8)  # nothing is measured yet
        own.measured({"validation_recall": 0.5})
        own.save(9)


def test_a_save_replaces_what_a_cut_save_of_more_ranks_left(tmp_path: Path) -> None:
    with saver(tmp_path) as own:
        torn = own.folder / tag(4)
        torn.mkdir(parents=True)
        (torn / "zero_pp_rank_3_optim_states.pt").write_bytes(b"of four ranks")
        own.save(4)
    assert sorted(p.name for p in torn.iterdir()) == ["model.pt", MARKER]


@pytest.mark.parametrize("url", ["/local/folder", "s3://key:secret@bucket/x", "gs://bucket/x", "s3:///x"])
def test_copies_go_to_a_bucket_or_nowhere(url: str) -> None:
    with pytest.raises(VillaError, match="checkpoint_copy must be s3://bucket/prefix"):
        load(None, [f"train.checkpoint_copy={json.dumps(url)}"])
    assert load(None, ["train.checkpoint_copy=s3://bucket/some/prefix"]).train.checkpoint_copy


# ---- copies


def test_a_job_whose_folder_is_gone_goes_on_from_its_copy(tmp_path: Path, s3: Any) -> None:
    to = {"checkpoint_copy": s3.url("copies")}
    with saver(tmp_path, **to) as own:
        own.save(2)
        own.save(4)
    shutil.rmtree(tmp_path / "villa")
    other = resume.find(own.folder, OptimConfig(**to), "manifest-digest", "another-fingerprint")
    assert (other.step, other.tag) == (0, ""), "copies of another config are not taken"
    start = resume.find(own.folder, OptimConfig(**to), "manifest-digest", "config-fingerprint")
    assert (start.step, start.tag) == (4, tag(4)) and checkpoint.problem(own.folder / start.tag) == ""
    assert resume.find(own.folder, OptimConfig(), "manifest-digest", "config-fingerprint") == start
    with pytest.raises(VillaError, match="belongs to other data"):
        resume.find(own.folder, OptimConfig(), "other-digest", "config-fingerprint")


def test_copies_follow_what_is_saved_and_a_fresh_folder_starts_from_them(tmp_path: Path, s3: Any) -> None:
    store = remote.place_of(s3.url("copies/"), "villa", "f" * 64)
    copies = remote.Copies(store, 2, "loss")
    for step, loss in ((1, 1.0), (2, 3.0), (3, 2.5), (4, 2.0)):
        copies.offer(make(tmp_path, step, loss=loss))
        while copies.busy:
            threading.Event().wait(0.01)
    copies.close()
    copies.close()
    assert sorted(remote.sealed(store)) == [tag(1), tag(3), tag(4)], "the newest two and the best"
    names = s3.names("copies/villa-ffffffffffffffff/")
    assert len(names) == 9 and not [n for n in names if tag(2) in n]
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    remote.fetch_newest(store, fresh)
    assert newest(fresh) == (fresh / tag(4), state(4, loss=2.0)) and left(fresh) == [4]
    before = (fresh / tag(4) / "model.pt").stat().st_mtime_ns
    remote.fetch_newest(store, fresh)
    assert (fresh / tag(4) / "model.pt").stat().st_mtime_ns == before, "what is here is not fetched"
    make(fresh, 9)
    remote.fetch_newest(store, fresh)
    assert left(fresh) == [4, 9]


def test_a_whole_copy_replaces_a_damaged_newest_checkpoint(tmp_path: Path, s3: Any) -> None:
    store = Store(s3.url("copies"))
    for step in (1, 2):
        remote.upload(store, make(tmp_path, step))
    (tmp_path / tag(2) / "model.pt").write_bytes(b"torn")
    remote.fetch_newest(store, tmp_path)
    assert newest(tmp_path) == (tmp_path / tag(2), state(2))


def test_a_damaged_copy_falls_back_loudly_and_a_half_one_is_not_seen(
    tmp_path: Path, s3: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    store = Store(s3.url("copies"))
    for step in (1, 2, 3, 4):
        remote.upload(store, make(tmp_path, step))
    store.remove(f"{tag(4)}/{MARKER}")  # as an upload that was cut off leaves it
    s3.put(f"copies/{tag(3)}/model.pt", b"weights 3 " * 99 + b"weights X ")
    s3.put(f"copies/{tag(2)}/zero/rank0.pt", b"shorter")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with caplog.at_level(logging.WARNING, logger=LOG.name):
        remote.fetch_newest(store, fresh)
    assert newest(fresh) == (fresh / tag(1), state(1))
    assert caplog.text.count("is passed over") == 2
    assert sorted(p.name for p in fresh.iterdir()) == [tag(1)], "nothing half fetched stays"


def test_trouble_with_copies_is_told_and_training_goes_on(
    tmp_path: Path, s3: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    copies = remote.Copies(Store(s3.url("copies")), 2, None)
    fault = s3.fail("status", "PUT", status=403, code="AccessDenied", times=1000)
    with caplog.at_level(logging.WARNING, logger=LOG.name):
        copies.offer(make(tmp_path, 1))
        while copies.busy:
            threading.Event().wait(0.01)
    assert "could not be copied" in caplog.text and not s3.names("copies")
    s3.proxy.faults.remove(fault)
    copies.offer(make(tmp_path, 2))
    copies.close()
    assert sorted(remote.sealed(copies.store)) == [tag(2)]


def test_a_copy_that_stands_is_not_sent_again_and_one_of_the_same_step_is_replaced(tmp_path: Path, s3: Any) -> None:
    store = Store(s3.url("copies"))
    place = make(tmp_path, 1)
    remote.upload(store, place)
    stamps = store.list_stamps(tag(1))
    remote.upload(store, place)
    assert store.list_stamps(tag(1)) == stamps
    shutil.rmtree(place)
    make(tmp_path, 1, loss=4.0)
    remote.upload(store, place)
    assert remote.sealed(store)[tag(1)].measured == {"loss": 4.0}


def test_copies_that_cannot_be_read_are_an_error_with_a_remedy(tmp_path: Path, s3: Any) -> None:
    s3.fail("status", "GET", status=503, times=1000)
    with pytest.raises(VillaError, match="checkpoint_copy to null"):
        remote.fetch_newest(Store(s3.url("copies")), tmp_path)


def test_a_marker_that_points_outside_is_refused(tmp_path: Path, s3: Any) -> None:
    place = make(tmp_path, 1)
    content = json.loads((place / MARKER).read_text())
    content["files"]["../../evil"] = content["files"].pop("model.pt")
    content.pop("sha256")
    body = json.dumps({**content, "sha256": checkpoint.canonical_sha256(content)})
    s3.put(f"copies/{tag(1)}/{MARKER}", body.encode())
    s3.put("copies/evil", b"x")
    fresh = tmp_path / "fresh/in/here"
    fresh.mkdir(parents=True)
    remote.fetch_newest(Store(s3.url("copies")), fresh)
    assert not list((tmp_path / "fresh").rglob("evil")) and left(fresh) == []
