"""The budget of restarts, what the ends of ranks mean together, and the ledger's reading of attempts."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from shards.errors import VillaError
from villa_dist.config_train import OptimConfig
from villa_dist.names import RANKS, STOP
from villa_dist.train import agree as agreeing
from villa_dist.train import local, nonfinite, signals
from villa_dist.train.agree import agree, check_shared, from_rank_0
from villa_dist.train.checkpoint import MARKER, tag
from villa_dist.train.elastic import GroupDied, with_restarts
from villa_dist.train.ledger import Ledger, committed, opened
from villa_dist.train.stalls import ABORT


def deaths(folder: Path, at: list[int | None], restarts: int) -> int:
    """Run attempts that die after having sealed the step given, or end well at None. Returns how many were made."""
    made = iter(at)
    count = [0]

    def attempt() -> None:
        count[0] += 1
        assert not list((folder / RANKS).glob("*"))
        step = next(made)
        if step is None:
            return
        place = folder / "checkpoints" / tag(step)
        place.mkdir(parents=True, exist_ok=True)
        (place / MARKER).touch()
        (folder / RANKS).mkdir(exist_ok=True)
        (folder / RANKS / ABORT).write_text(f"stalled at {step}")
        raise GroupDied("rank 1 was ended by SIGKILL")

    with_restarts("villa", folder, restarts, attempt)
    return count[0]


def test_deaths_with_progress_between_never_spend_the_budget(tmp_path: Path) -> None:
    assert deaths(tmp_path, [10, 20, 30, 40, None], restarts=1) == 5


def test_deaths_without_progress_do(tmp_path: Path) -> None:
    with pytest.raises(VillaError, match=r"lost its workers 3 times without.*last by: stalled at 20"):
        deaths(tmp_path, [10, 20, 20, 20, None], restarts=2)
    with pytest.raises(VillaError, match="lost its workers 1 times"):
        deaths(tmp_path, [20, None], restarts=0)


def test_what_a_user_must_mend_is_not_tried_again(tmp_path: Path) -> None:
    made = []

    def attempt() -> None:
        made.append(1)
        raise VillaError("mend me")

    with pytest.raises(VillaError, match="mend me"):
        with_restarts("villa", tmp_path, 5, attempt)
    assert made == [1]


def test_a_stop_of_an_earlier_run_is_forgotten(tmp_path: Path) -> None:
    signals.ask_ranks(tmp_path)
    assert (tmp_path / STOP).exists()
    with_restarts("villa", tmp_path, 0, lambda: None)
    assert not (tmp_path / STOP).exists()


# ---- groups of real processes that train nothing


@dataclass(frozen=True)
class Request:
    """What each rank does, by its number: see `act`."""

    acts: tuple[str, ...]
    folder: str
    job: str = "villa"
    optim: OptimConfig = field(default_factory=OptimConfig)


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")  # cannot be unpickled


def act(request: Request) -> None:
    what = request.acts[int(os.environ["RANK"])]
    Path(request.folder, f"at-{os.environ['RANK']}").touch()
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "mend":
        time.sleep(0.3)
        raise VillaError("mend me")
    elif what == "peer":
        raise RuntimeError("connection closed by peer")
    elif what == "mistake":
        raise KeyError("a mistake")
    elif what == "odd":
        raise OddError(1, 2)
    elif what == "stop":
        while not signals.asked():
            time.sleep(0.01)
        raise signals.preempted("villa", 6)
    elif what == "hang":
        time.sleep(60)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`run_group` with forked ranks that act as they are told."""
    forked = local.multiprocessing.get_context("fork")
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: forked)
    monkeypatch.setattr(local, "run_request", act)
    monkeypatch.setattr(local, "GRACE_SECONDS", 1.0)

    def run(*acts: str) -> None:
        local.run_group(Request(acts, str(tmp_path), optim=OptimConfig(workers=len(acts))))  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize(
    ("acts", "error", "said"),
    [
        (("die", "hang"), GroupDied, "rank 0 was ended by SIGKILL"),
        (("peer", "die"), GroupDied, "rank 1 was ended by SIGKILL"),
        (("peer", "peer"), GroupDied, "connection closed by peer"),
        (("peer", "mend"), VillaError, "mend me"),
        (("mistake", "peer"), RuntimeError, "failed on rank 0:(.|\n)*KeyError"),
        (("end", "odd"), RuntimeError, "failed on rank 1:(.|\n)*OddError"),
    ],
)
def test_the_ends_of_ranks_are_read_together(
    group: Callable[..., None], acts: tuple[str, ...], error: type[Exception], said: str
) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=said):
        group(*acts)
    assert time.monotonic() - began < 20


def test_ranks_that_end_well_say_nothing(group: Callable[..., None]) -> None:
    group("end", "end", "end")


def test_sigterm_is_passed_on_and_answered_with_75(group: Callable[..., None], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def terminate() -> None:
        while not all((tmp_path / f"at-{r}").exists() for r in (0, 1)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(signals.Preempted, match="saved at step 6") as raised:
        group("stop", "stop")
    assert raised.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before


# ---- what all ranks agree on


def test_one_rank_agrees_with_itself() -> None:
    fine, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    assert agree(fine, 1.0, stop=False, save=False).nonfinite is False
    assert agree(bad, None, stop=False, save=False).nonfinite
    assert agree(fine, float("nan"), stop=False, save=False).nonfinite
    assert agree(fine, float("inf"), stop=False, save=False).nonfinite
    verdict = agree(fine, 1.0, stop=True, save=True)
    assert verdict.stop and verdict.save
    assert from_rank_0(lambda: 3) == 3


def test_a_folder_that_a_rank_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_shared(tmp_path / "checkpoints")
    assert not list((tmp_path / "checkpoints").iterdir())
    monkeypatch.setattr(agreeing, "gathered", lambda value: [value, ("node-b", False), ("node-b", False)])
    with pytest.raises(
        VillaError, match=r"checkpoints on .* is not seen by node-b: .*file system that the nodes share"
    ):
        check_shared(tmp_path / "checkpoints")


# ---- the ledger


def test_the_ledger_counts_what_is_in_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 1-4; killed after 3 were made and 2 saved; a torn checkpoint then sends the next one back to 1."""
    for attempt, start, stop in (("1", 0, 3), ("2", 2, 3), ("3", 1, 4)):
        ledger = Ledger(tmp_path / f"villa-{attempt}-0.jsonl", attempt)
        ledger.write([{"kind": "begins", "start": start, "world": 1}])
        for step in range(start, stop):
            ledger.write([{"kind": "sample", "step": step + 1, "key": f"k{step + 1}", "by": attempt}])
    with open(tmp_path / "villa-3-0.jsonl", "a") as f:
        f.write('{"attempt": "3", "kind": "sam')  # cut by a kill
    found = committed(tmp_path, "villa")
    assert sorted((line["step"], line["by"]) for line in found) == [(1, "1"), (2, "3"), (3, "3"), (4, "3")]
    monkeypatch.delenv("VILLA_LEDGER", raising=False)
    assert opened("villa", 0) is None


def test_the_samples_of_a_bad_step_are_written_for_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named:
        seed = 5

        def keys(self, step: int, rank: int) -> list[tuple[int, str, int, str]]:
            return [(0, "000003", row, f"k{step}-{rank}-{row}") for row in range(2)]

    monkeypatch.setattr(nonfinite, "world_size", lambda: 3)
    monkeypatch.setattr(nonfinite, "gathered", lambda value: [1.0, value, 2.0])
    error = nonfinite.stopped(Named(), 41, float("nan"), None, tmp_path / "villa", OptimConfig())  # type: ignore[arg-type]
    path = tmp_path / "villa/nonfinite/step-00000042.json"
    content = json.loads(path.read_text())
    assert str(path) in str(error) and "is nan at step 42" in str(error)
    assert content["loss"] == ["1.0", "nan", "2.0"]
    assert [(s["rank"], s["shard"], s["key"]) for s in content["samples"]][3] == (1, "000003", "k41-1-1")
    assert len(content["samples"]) == 6
    monkeypatch.setattr(nonfinite, "gathered", lambda value: [value] * 3)
    assert "norm of its gradient inf" in str(
        nonfinite.stopped(Named(), 41, 1.0, float("inf"), tmp_path / "villa", OptimConfig())  # type: ignore[arg-type]
    )
