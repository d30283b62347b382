"""What a training job leaves to follow it by: metrics and messages, read while another process writes them."""

from __future__ import annotations

import json
from pathlib import Path

from villa_dist.names import MESSAGES, METRICS
from villa_dist.observe import LOG
from villa_dist.train.journal import MessageReader, MetricsFile, last_metrics, messages_to, parse_metrics, read_metrics
from villa_dist.train.progress import watch


def test_a_resumed_job_keeps_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "job" / METRICS
    first = MetricsFile(path, 0)
    for step in (10, 20, 30):
        first.write(step=step, loss=1.0)
    path.write_bytes(path.read_bytes() + b'{"step": 4')  # cut by a crash
    second = MetricsFile(path, 20)
    second.write(step=30, loss=0.5)
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(10, 1.0), (20, 1.0), (30, 0.5)]
    assert read_metrics(tmp_path / "none") == []
    assert parse_metrics(b'{"step": 1}\nnull\n[2]\n\xff\n{"step": 2}') == [{"step": 1}, {"step": 2}]


def test_messages_of_a_rank_reach_the_driver_once(tmp_path: Path, caplog) -> None:
    with messages_to(tmp_path):
        LOG.info("from an earlier run")
    reader = MessageReader(tmp_path)
    assert reader.new() == []
    with messages_to(tmp_path):
        LOG.warning("checkpoint %s is passed over", "step-8")
        assert reader.new() == ["checkpoint step-8 is passed over"]
        with open(tmp_path / MESSAGES, "a", encoding="utf-8") as f:
            f.write("half a li")
        assert reader.new() == []
        with open(tmp_path / MESSAGES, "a", encoding="utf-8") as f:
            f.write("ne\n")
    assert reader.new() == ["half a line"]
    LOG.info("nobody listens")
    assert reader.new() == []


def test_the_driver_relays_what_was_said_just_before_the_end(tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(LOG, "info", lambda text, *values: said.append(text % values))
    with watch(str(tmp_path), "villa", 8):
        (tmp_path / MESSAGES).write_text("villa resumes at step 4\n", encoding="utf-8")
    assert said[0] == "villa resumes at step 4"


def test_the_last_line_is_read_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) is None
    path.write_text("")
    assert last_metrics(path) is None
    path.write_text("".join(json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, 5000)))
    assert last_metrics(path) == {"step": 4999, "loss": 1 / 4999} == read_metrics(path)[-1]
    with open(path, "a") as file:
        file.write('{"loss": 3}\n{"step": 5000, "lo')
    assert last_metrics(path) == {"step": 4999, "loss": 1 / 4999}, "neither a line without a step nor half a line"
