"""What a failure is called, and what the user is told to do about it."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError

from cluster.trouble import KILLED, LATE, MEMORY, NODES, OURS, LostNode, Overdue, lost_ranks, trouble


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (MemoryError(), MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), MEMORY),
        (RuntimeError("shapes differ"), OURS),
    ],
)
def test_an_error_in_a_worker_is_told_without_its_traceback(cause: Exception, remedy: str) -> None:
    task = RayTaskError("process", "Traceback (most recent call last): …", cause, pid=1, ip="10.0.0.1")
    for error in (task, task.as_instanceof_cause()):
        told = trouble(error)
        assert told.kind == type(cause).__name__ and told.remedy == remedy
        assert told.kind in told.reason and str(cause) in told.reason and "Traceback" not in told.reason


@pytest.mark.parametrize(
    ("error", "kind", "remedy"),
    [
        (Overdue("no result after 4 s"), "Deadline", LATE),
        (LostNode("the node of its worker is gone"), "LostNode", NODES),
        (NodeDiedError("node 3 died"), "NodeDiedError", NODES),
        (OutOfMemoryError("Task was killed due to the node running low on memory"), "OutOfMemoryError", MEMORY),
        (ActorDiedError(), "ActorDiedError", KILLED),
    ],
)
def test_each_kind_names_its_remedy(error: Exception, kind: str, remedy: str) -> None:
    assert (trouble(error).kind, trouble(error).remedy) == (kind, remedy)


def test_a_reason_is_one_line_of_bounded_length() -> None:
    told = trouble(RayTaskError("process", "", ValueError("word \n" * 1000), pid=1, ip="10.0.0.1"))
    assert "\n" not in told.reason and len(told.reason) < 400


def test_lost_ranks_are_told_in_a_line_each() -> None:
    failed = RuntimeError("Training failed due to worker errors:\n" + "actor 0123 on node 4567\n" * 99)
    wrapped = RuntimeError("A worker health check failed.\n" + "logs\n" * 99)
    wrapped.health_check_failure = ActorDiedError()  # type: ignore[attr-defined]
    failed.worker_failures = {1: wrapped, 0: RuntimeError("gloo: connection closed by peer")}  # type: ignore[attr-defined]
    told = lost_ranks(failed)
    assert told.startswith("rank 0: RuntimeError: gloo: connection closed by peer; rank 1: its worker died (")
    assert "\n" not in told and len(told) < 500
    assert lost_ranks(RuntimeError("no group")) == "no group"
