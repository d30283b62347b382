"""`villa query CHECKPOINT IMAGE… "a red umbrella" …`."""

from __future__ import annotations

import io
import json
from typing import Annotated, Any

import typer

from cluster.commands.export import Checkpoint
from cluster.result import emit
from shards.errors import VillaError
from shards.store import Store
from villa_dist.observe import LOG


def command(
    checkpoint: Checkpoint,
    asked: Annotated[
        list[str],
        typer.Argument(help="images and texts: files are images, the rest are texts", metavar="IMAGE… TEXT…"),
    ],
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="a text to look for; repeatable")] = None,
    proposals: Annotated[
        str, typer.Option(help="where regions come from: segments, grid, or hf:PATH (a transformers detector)")
    ] = "segments",
    top: Annotated[int, typer.Option(help="regions to draw for each text", min=1, max=50)] = 3,
    out: Annotated[str, typer.Option("--out", "-o", help="folder for NAME.png and NAME.json of each image")] = "query",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU where there is one")] = None,
) -> None:
    """Find regions of images by texts: ranked, drawn on the picture, and written down."""
    from villa_dist import query, show
    from villa_dist.api import RegionVLM
    from villa_dist.regions.backends import make_proposer

    images, texts = query.split_arguments(asked)
    texts = list(dict.fromkeys([*texts, *(t for t in text or [] if t.strip())]))
    if not images or not texts:
        missing = "an image (a .jpg, .png or .webp)" if not images else 'a text, such as "a red umbrella"'
        raise VillaError(f"query needs {missing} after the checkpoint; it was given {', '.join(map(repr, asked))}")
    config = query.regions_config(proposals)
    proposer = make_proposer(config)
    model = RegionVLM.from_pretrained(checkpoint, device=device)
    store = Store(out)
    found: list[dict[str, Any]] = []
    for image, name in zip(images, query.names(images), strict=True):
        answer = query.ask(model, proposer, config, image, texts)
        written = query.as_json(answer, image, proposals)
        sink = io.BytesIO()
        view = query.view(answer, name, top)
        show.draw(view, len(view.regions)).save(sink, "PNG")
        store.put(f"{name}.png", sink.getvalue())
        store.put(f"{name}.json", json.dumps(written, indent=1, ensure_ascii=False).encode())
        best = {t["text"]: t["regions"][0] if t["regions"] else None for t in written["texts"]}
        found.append({"image": image, "png": store.path(f"{name}.png"), "regions": len(answer.boxes), "best": best})
        LOG.info("query: %s, %d regions: %s", image, len(answer.boxes), store.path(f"{name}.png"))
    emit({"command": "query", "checkpoint": checkpoint, "device": str(model.device), "out": out, "images": found})
