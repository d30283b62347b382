"""The report of a finished run as one HTML file that asks for nothing from anywhere.

    figures    results.json, models/*/metrics.jsonl, the stages' markers
    pictures   base shards with their pairs and, where known, true pairs

What a run lacks is said in its section instead of failing the report; what is damaged is an error. All text that comes
from data passes `text.plain` and autoescaping, and the page's policy forbids every load but data URIs and every script but
the page's own, by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from shards.errors import ShardError
from shards.store import Store
from villa_dist import __version__, models
from villa_dist.attributes.vocabulary import Vocabulary
from villa_dist.config import Config
from villa_dist.config_train import OptimConfig
from villa_dist.evaluate import assemble, items
from villa_dist.names import JOBS, METRICS, VLMS
from villa_dist.report import attributes, card, confusion, drift, gallery, plots, provenance, tables, text
from villa_dist.report.baseline import RESULTS, read_results
from villa_dist.report.bound import bound_to
from villa_dist.report.detection import detection_tables, sentence
from villa_dist.report.evaluation import evaluation_tables, sentences
from villa_dist.report.explorer import explore
from villa_dist.report.mapping_boxes import attribute_tables
from villa_dist.report.markers import Markers
from villa_dist.report.scan import scan
from villa_dist.report.summary import summary
from villa_dist.train.journal import parse_metrics

NAME = "report.html"
SCRIPT = "explorer.js"


def build(config: Config) -> str:
    """Write `<run>/report.html` atomically and return its path.

    Raises: ShardError when results.json, a marker, a sidecar or an image of the run is damaged.
    """
    store = Store(config.run)
    store.put(NAME, render(config).encode())
    return store.path(NAME)


def render(config: Config) -> str:
    """The report's HTML. The same run gives the same bytes."""
    store = Store(config.run)
    bound = bound_to(store.find(RESULTS))
    results = read_results(store)
    measured_with = results.get("weights") or {}
    now = models.digests(config.run)
    stale = sorted(job for job, digest in measured_with.items() if now.get(job) != digest)
    if stale:
        raise ShardError(
            f"{store.path(RESULTS)} was measured with other weights of {', '.join(stale)} than the run has now; run the "
            "stages up to evaluate again, then the report"
        )
    metrics = read_metrics(store)
    committed = Markers(config.run)
    profile = tables.profile(committed)
    refused = tables.refusals(committed)
    kept = read_items(config, results)
    measured = tables.by_split(results, kept)
    detection, evaluation = detection_tables(results), evaluation_tables(results)
    images = results.get("images") or {row.split: row.samples for row in profile if row.folder == "base"}
    split = gallery.split_of(config)
    words = card.read_vocabulary(config.run)
    told = card.card(committed, words)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=PurePosixPath(store.path()).name or store.path(),
            run=store.path(),
            version=__version__,
            bound=bound,
            summary=[
                *sentence(detection),
                *summary(measured, images, refused)[not measured and bool(detection or evaluation) :],
                *sentences(evaluation),
            ],
            detection=detection,
            evaluation=evaluation,
            mapped=attribute_tables(results),
            facts=facts(config, images, measured),
            measured=measured,
            intervals=any(row.a2r.interval or row.r2a.interval for m in measured for row in m.rows),
            bars=attributes.bars(kept.get(measured[0].split, {}), words.phrases, words.groups)
            if measured and words
            else None,
            gallery_split=split,
            pictures=gallery.pictures(config, split) if split else [],
            judged=split is not None and gallery.has_truth(config, split),
            **seen(config, split, kept, words),
            quality=drift.mapping_quality(committed),
            plots=plots.curves(metrics),
            training=tables.training(metrics),
            card=told,
            profile=profile,
            refused=refused,
            provenance=provenance.provenance(config, results, told),
            config_yaml=yaml.safe_dump(
                text.redacted(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True
            ),
            results_json=json.dumps(results, indent=1, ensure_ascii=False) if results else "",
        )
    )


def seen(config: Config, split: str | None, kept: tables.Kept, words: Vocabulary | None) -> dict[str, Any]:
    """What the template shows of the pairs themselves: confusion, and the gallery by query with its script."""
    if split is None or words is None:
        return {"matrix": None, "confused": [], "together": [], "sampled": "", "explorer": "", "script_hash": ""}
    phrases, groups = words.phrases, words.groups
    found = scan(config, split, gallery.has_truth(config, split))
    data = explore(config, split, kept.get(split, {}), found, phrases, groups)
    script = (files("villa_dist.report") / "templates" / SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    part = f" (a sample: {text.count(found.images, 'image')} of {text.count(found.shards)} shards)"
    return {
        "matrix": confusion.matrix(found, phrases, groups),
        "confused": confusion.confused(found, phrases, groups),
        "together": confusion.together(found, phrases) if not found.judged else [],
        "sampled": part if found.part else "",
        "explorer": htmlsafe_json_dumps(data, ensure_ascii=False, separators=(",", ":")) if data else "",
        "script": Markup(script),
        "script_hash": Markup(f"sha256-{digest}") if data else "",
    }


def environment() -> Environment:
    """jinja2 with autoescape on; `finalize` makes every printed string fit to be shown."""
    env = Environment(
        loader=PackageLoader("villa_dist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=text.plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("figure", "signed", "percent", "between", "count", "seconds", "shortened"):
        env.filters[name] = getattr(text, name)
    env.filters["zip"] = zip
    return env


def read_items(config: Config, results: Mapping[str, Any]) -> dict[str, dict[str, items.Items]]:
    """What evaluate has kept, by split and job. What earlier versions did not keep, or was kept of other images, pairs or
    attributes than the run has now, is left out."""
    found: dict[str, dict[str, items.Items]] = {}
    for split in results.get("splits") or {}:
        try:
            task = assemble.task(config, split)
        except (ShardError, OSError):  # what it was measured on is gone
            continue
        read = {job: items.read(Store(config.run), split, job) for job in VLMS}
        found[split] = {job: kept for job, kept in read.items() if kept is not None and kept.task == task}
    return found


def read_metrics(store: Store) -> dict[str, list[dict[str, float]]]:
    """Logged lines of each training job that has any; a line cut by a crash is left out."""
    found = {}
    for job in JOBS:
        name = f"models/{job}/{METRICS}"
        lines = parse_metrics(store.read(name)) if store.exists(name) else []
        if lines:
            found[job] = lines
    return found


def _length(optim: OptimConfig) -> str:
    return f"{optim.epochs:g} epochs" if optim.epochs is not None else text.count(optim.steps, "step")


def facts(config: Config, images: Mapping[str, Any], measured: Sequence[tables.SplitResults]) -> list[tuple[str, str]]:
    """(name, value) of what a reader needs to place the figures."""
    known = [(f"{split} images", text.count(images[split])) for split in tables.SPLITS if split in images]
    known += [(f"{r.split} regions", text.count(r.regions)) for r in measured if r.regions is not None]
    lengths = [_length(optim) for optim in (config.pretrain, config.mapping.fit, config.train)]
    known.append(("one-to-one / mapping / VLMs", " / ".join(lengths)))
    known.append(("Seed", str(config.seed)))
    source = (
        f"DocMNIST, complexity {config.docmnist.target}" if config.data.source == "docmnist" else "image-text shards"
    )
    known.append(("Data", source))
    known.append(("Region proposals", config.regions.proposals))
    return [(name[0].upper() + name[1:], value) for name, value in known]
