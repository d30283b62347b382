"""Photos, product listings, chest radiographs from files to a report, by the commands of docs/reproduce.md as they stand."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import contents, sets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = [
    "runner=local",
    "evaluate.bootstrap=20",
    "regions.top_k=8",
    *(f"{job}.{s}" for job in ("pretrain", "train", "mapping.fit") for s in ("steps=2", "batch_images=8", "workers=1")),
]
CONV = ["model.image.width=8", "model.text.buckets=256"]


def commands(heading: str) -> str:
    """The first block of commands below a heading."""
    text = (ROOT / "docs/reproduce.md").read_text()
    found = re.search(rf"^# {heading}.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def at_home(folder: Path) -> dict[str, str]:
    """The environment of a folder with configs and a `villa` of its own."""
    (folder / "bin").mkdir()
    villa = folder / "bin/villa"
    villa.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cluster "$@"\n')
    villa.chmod(0o755)
    shutil.copytree(ROOT / "configs", folder / "configs")
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def follow(folder: Path, heading: str, *overrides: str) -> dict:
    """Run a block of commands in a folder, the run itself made small. Returns its result line."""
    environment = at_home(folder)
    given = " ".join(f"'{part}'" for part in sets(*SMALL, *overrides))
    script = re.sub(r"^(villa run .*)$", lambda line: f"{line[1]} {given}", commands(heading), flags=re.MULTILINE)
    script = re.sub(r"(villa shards (?:pack|reshard) )", r"\1--workers 1 ", script)
    ended = subprocess.run(
        ["sh", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    result: dict = json.loads(ended.stdout.splitlines()[-1])
    return result


def tiny_clip(folder: Path) -> str:
    sys.path.insert(0, str(ROOT / "tests/villa_dist"))
    try:
        import tiny_checkpoints
    finally:
        sys.path.pop(0)
    tiny_checkpoints.write("clip", folder)
    return str(folder)


def some_photos(data: Path, folder: Path, count: int) -> None:
    """The first photos with captions, in COCO's layout."""
    captions, boxes = (json.loads((data / f"natural/{name}.json").read_text()) for name in ("captions", "annotations"))
    ids = {image["id"] for image in captions["images"][:count]}
    for name, told in (("captions", captions), ("annotations", boxes)):
        told["images"] = [image for image in told["images"] if image["id"] in ids]
        told["annotations"] = [a for a in told["annotations"] if a["image_id"] in ids]
        (folder / f"{name}.json").write_text(json.dumps(told))
    (folder / "images").mkdir()
    for image in captions["images"]:
        (folder / "images" / image["file_name"]).symlink_to(data / "natural/images" / image["file_name"])


def test_photos_killed_at_three_random_moments(shared_data: Path, tmp_path: Path) -> None:
    """SIGKILL of the whole run, the same command again: the same metrics, shards, sidecars and weights."""
    some_photos(shared_data, tmp_path, 40)
    small = [*CONV, "evaluate.detection.bootstrap=20", "regions.segments.side=96"]
    alone = follow(tmp_path, "Photos, end to end", *small)
    seed = time.time_ns()
    assert alone["images"]["test"] > 5 and alone["detection"]["test"]["true_boxes"] > 10
    again = sets("vocabulary.lists=[annotations.json]", *SMALL, *small, "run=runs/killed")
    command = [sys.executable, "-m", "cluster", "run", "configs/photos.yaml", *again]
    random, environment = np.random.default_rng(seed), {**os.environ, "PYTHONPATH": str(ROOT)}
    photos, killed = tmp_path / "runs/photos", tmp_path / "runs/killed"
    done = sorted(photos.rglob("*done.json"), key=lambda p: p.stat().st_mtime_ns)[:-2]
    moments = sorted(random.choice(len(done), 3, replace=False).tolist())
    for moment in moments:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **quiet)
        until = time.monotonic() + 240
        while not (killed / done[moment].relative_to(photos)).exists():
            assert process.poll() is None and time.monotonic() < until, f"seed {seed}: {done[moment]} did not appear"
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"seed {seed}: it had ended by {done[moment]}"
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout)
    for part in ("metrics", "detection", "recall", "images"):
        assert result[part] == alone[part], f"seed {seed}: {part}"
    assert contents(killed) == contents(photos), f"seed {seed}"


def test_product_listings(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "fashion/styles.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[:61]
    with (tmp_path / "styles.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (tmp_path / "images").mkdir()
    for row in rows[1:]:
        with Image.open(shared_data / "fashion" / row[0]) as image:
            image.resize((56, 56)).save(tmp_path / row[0])
    clip = tiny_clip(tmp_path / "clip")
    result = follow(tmp_path, "Product listings, end to end", *CONV, f'evaluate.baselines=[{{weights: "{clip}"}}]')
    assert result["images"]["train"] > 30 and result["attributes"] > 3
    test = result["images"]["test"]
    recall, classes = result["recall"]["test"], result["classes"]["test"]
    assert list(recall["models"]) == ["one_to_one", "villa", "clip-dense"] and recall["images"] == test
    assert 0 < classes["images"] <= test and sum(classes["classes"].values()) == classes["images"]
    assert 0 <= classes["models"]["villa"]["top1"] <= 100
    page = Path(tmp_path / "runs/fashion/report.html").read_text()
    assert "Classes of whole images, test split" in page and "clip-dense" in page


def write_mimic(folder: Path, reports: list[dict[str, str]]) -> dict[str, str]:
    """MIMIC-CXR's folders and tables with small images; the text of each image by its id."""
    r = np.random.default_rng(0)
    columns = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"]
    columns += ["Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"]
    columns += ["Pneumothorax", "Support Devices"]
    split, labels, said = ["dicom_id,study_id,subject_id,split"], [",".join(["subject_id,study_id", *columns])], {}
    for n, report in enumerate(reports):
        subject, study = 10000000 + n // 2, 50000000 + n
        place = Path(f"files/p{str(subject)[:2]}/p{subject}/s{study}")
        (folder / place).mkdir(parents=True)
        (folder / "reports_as_given" / place.parent).mkdir(parents=True, exist_ok=True)
        text = f"FINAL REPORT\n INDICATION: rule out pneumothorax\n FINDINGS: {report['findings']}\n"
        text += f" IMPRESSION: {report['impression']}\n"
        (folder / "reports_as_given" / f"{place}.txt").write_text(text)
        values = ["1.0" if c in report["Problems"] else "" for c in columns]
        labels.append(f"{subject},{study}," + ",".join(values))
        for view in range(1 + n % 2):
            name = f"{n:08x}-{view:08x}"
            Image.fromarray(r.integers(0, 255, (40, 48), dtype=np.uint8)).save(folder / place / f"{name}.jpg")
            part = ("train", "train", "validate", "test")[n // 2 % 4]
            split.append(f"{name},{study},{subject},{part}")
            said[f"p10/p{subject}/s{study}/{name}"] = report["findings"]
    (folder / "mimic-cxr-2.0.0-split.csv").write_text("\n".join(split) + "\n")
    (folder / "mimic-cxr-2.0.0-chexpert.csv").write_text("\n".join(labels) + "\n")
    return said


def test_radiographs(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "cxr_text/indiana_reports.csv").open(encoding="utf-8", newline="") as file:
        every = [r for r in csv.DictReader(file) if r["findings"] and r["impression"]]
    five = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    reports = [r for r in every if sum(f in r["Problems"] for f in five) == 1][:48]
    said = write_mimic(tmp_path, reports)
    clip = tiny_clip(tmp_path / "clip")
    model = f'model={{weights: "{clip}", image: {{kind: hf}}}}'
    result = follow(tmp_path, "Chest radiographs, end to end", model, "pretrain.steps=0")
    assert result["images"] == {"train": 36, "test": 18} and result["attributes"] > 5
    classes = result["classes"]["test"]
    assert classes["images"] == result["images"]["test"] == sum(classes["classes"].values())
    assert (
        result["recall"]["test"]["texts"] < result["recall"]["test"]["images"]
    )  # two views of a study have one report
    run = tmp_path / "runs/reports"
    phrases = pq.read_table(run / "vocabulary.parquet")["phrase"].to_pylist()
    rows = [row for p in (run / "train/regions").glob("0*.parquet") for row in pq.read_table(p).to_pylist()]
    mentioned = {row["key"]: {phrases[a] for a in row["attributes"]} for row in rows}
    denied = [key for key in mentioned if "no pneumothorax" in said[key].lower()]
    assert denied and not any("pneumothorax" in mentioned[key] for key in denied)
    assert any("cardiomegaly" in found for found in mentioned.values())
    assert "Classes of whole images" in (run / "report.html").read_text()
