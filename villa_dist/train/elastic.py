"""Starting a group of ranks again after a death, from the newest checkpoint, up to a budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shards.errors import VillaError
from villa_dist.names import CHECKPOINTS, RANKS
from villa_dist.observe import LOG
from villa_dist.train import pulse, signals
from villa_dist.train.checkpoint import reached
from villa_dist.train.stalls import ABORT


class GroupDied(Exception):
    """A group of ranks ended without an error that a user can mend: a rank was killed, lost its node or failed."""


def with_restarts(job: str, folder: Path, restarts: int, attempt: Callable[[], None]) -> None:
    """Call `attempt` until it returns, again after a GroupDied.

    The budget is of deaths in a row: a checkpoint that is newer than at the death before starts the count anew, so a long
    job is not ended by the third lost node of its month, and a crash that comes back before any progress is.

    Raises: what `attempt` raises, such as VillaError for what must be mended first; VillaError when the budget is spent.
    """
    deaths, mark = 0, reached(folder / CHECKPOINTS)
    signals.clear(folder)
    while True:
        pulse.clear(folder)
        try:
            return attempt()
        except GroupDied as error:
            said = _said_of_stall(folder) or " ".join(str(error).split())[-400:]
            now = reached(folder / CHECKPOINTS)
            deaths, mark = (1 if now > mark else deaths + 1), now
            if deaths > restarts:
                raise VillaError(
                    f"training {job} lost its workers {deaths} times without a new checkpoint between, last by: {said}; "
                    "look at the nodes and their memory (a smaller batch_images needs less), then run the same command "
                    "again: it resumes from the newest checkpoint"
                ) from error
            LOG.warning(
                "workers of training %s died: %s; they start again from step %d (restart %d of %d)",
                *(job, said, now, deaths, restarts),
            )


def _said_of_stall(folder: Path) -> str:
    path = folder / RANKS / ABORT
    return path.read_text(encoding="utf-8") if path.is_file() else ""
