"""`villa export CHECKPOINT OUT`."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.result import emit
from villa_dist.observe import LOG

Checkpoint = Annotated[
    str,
    typer.Argument(
        help="a run (its `villa` model), <run>/models/<job>, a checkpoint …/checkpoints/step-…, an exported folder, or a "
        "CLIP or SigLIP folder or hub id"
    ),
]


def command(
    checkpoint: Checkpoint,
    out: Annotated[str, typer.Argument(help="the folder to write")],
    force: Annotated[bool, typer.Option("--force", help="replace a folder that was exported before")] = False,
) -> None:
    """Write a trained model as a folder that transformers loads with from_pretrained, with a model card."""
    from villa_dist.export.folder import export

    made = export(checkpoint, out, force=force)
    LOG.info("export: %s; read its README.md and fill in the licence before it is published", made["out"])
    emit({"command": "export", **made})
