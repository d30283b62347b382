"""Where metrics go beside metrics.jsonl: TensorBoard's event files, or Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from shards.errors import VillaError
from villa_dist.observe import LOG
from villa_dist.train.events import EventFile

TENSORBOARD = "tensorboard"  # a folder of a job's folder
PROJECT = "villa_dist"


class Tracker(Protocol):
    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Events:
    """`<job>/tensorboard/events.out.tfevents.…`; `tensorboard --logdir <run>/models` shows all jobs of a run."""

    def __init__(self, folder: Path, start: int) -> None:
        self.file = EventFile(folder / TENSORBOARD, start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.file.write(step, values)

    def close(self) -> None:
        pass


class Wandb:
    """A run of Weights & Biases, named after run and job, and taken up again by a resumed job.

    Its own environment variables hold (WANDB_MODE=offline, WANDB_PROJECT, …).
    """

    def __init__(self, folder: Path, start: int, settings: Mapping[str, Any]) -> None:
        place = folder.absolute()
        name = f"{place.parent.parent.name}/{place.name}"
        self.run = importlib.import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=hashlib.sha256(str(place).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(place),
            config=dict(settings),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def check(track: str) -> None:
    """Raises: VillaError when what is asked for is not installed. Every rank calls it, so that all of them stop."""
    if track == "wandb" and importlib.util.find_spec("wandb") is None:
        raise VillaError(
            "track: wandb needs the package wandb, which is not installed; pip install wandb, or set track to tensorboard"
        )


def make(track: str, folder: Path, start: int, settings: Mapping[str, Any]) -> Tracker | None:
    """What `track` names; None for none, and for one that does not start, with a warning: training goes on without it."""
    if track == "none":
        return None
    try:
        return Wandb(folder, start, settings) if track == "wandb" else Events(folder, start)
    except Exception as error:  # noqa: BLE001  a service that does not answer raises anything
        LOG.warning("track: %s does not start (%s); %s is written all the same", track, error, "metrics.jsonl")
        return None
