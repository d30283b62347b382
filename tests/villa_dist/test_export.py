"""An exported folder gives another process, without this project, what RegionVLM gives; and is whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import pytest
import tiny_checkpoints
import tiny_clip
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer

from shards.errors import VillaError
from villa_dist import RegionVLM, models, trained
from villa_dist.config import ModelConfig
from villa_dist.encoders.preprocess import Preprocess
from villa_dist.encoders.published import Published
from villa_dist.encoders.tokenizer import TextTokenizer
from villa_dist.export import folder as exporting
from villa_dist.export.bundle import BundleError, bundle
from villa_dist.vlm.model import RegionVLM as Towers

TOLERANCE = 2e-6  # of coordinates of unit vectors: the same float32 operations, in another process
LIBRARY = 2e-3  # images resized by PIL instead of torch, which differ by up to 2 of 255 levels
TEXTS = ["a cat", "two", "Red dog, a cat!", "a cat " * 30, "&amp; it's  a   DOG"]
NAMES = ("conv", "clip_rn50", "clip_vit", "siglip", "siglip2")


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1) * 255
    return np.ascontiguousarray(image.to(torch.uint8).numpy().transpose(1, 2, 0))


LARGE, SMALL = smooth(90, 130, 1), smooth(64, 64, 2)
BOXES = np.array([[0, 0, 130, 90], [10.5, 20, 60, 71.25], [100, 3, 129, 88], [64, 40, 70, 45]], np.float32)


def built(name: str, place: Path) -> Towers:
    torch.manual_seed(3)
    if name == "conv":
        vlm = Towers(ModelConfig.model_validate({"image": {"width": 8}, "text": {"buckets": 64}, "dim": 16}))
        for _ in range(5):  # statistics of its own
            vlm.train().embed_whole(torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8))
        return vlm
    if name == "clip_rn50":
        save_file(tiny_clip.state_dict(), place / "rn50.safetensors")
        text = {"vocabulary": tiny_clip.vocabulary(place)}
        weights = str(place / "rn50.safetensors")
        return Towers(ModelConfig.model_validate({"image": {"kind": name}, "text": text, "weights": weights}))
    tiny_checkpoints.write(name.split("_")[0], place / "hf")
    image = {"kind": "hf", "regions": "crops" if name == "siglip" else "dense", "roi_bins": 4}
    vlm = Towers(ModelConfig.model_validate({"image": image, "weights": str(place / "hf")}))
    with torch.no_grad():  # as if it had been trained
        vlm.log_scale += 0.1
        next(vlm.image.parameters()).mul_(1.1)
    return vlm


class Exported:
    """All models exported, and what a process without this project got from the folders."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.mine: dict[str, RegionVLM] = {}
        for name in NAMES:
            (place / "from" / name).mkdir(parents=True)
            job = place / "runs" / name / "models" / "villa"
            models.write(str(job), built(name, place / "from" / name), "0")
            exporting.export(str(place / "runs" / name), str(place / name))
            self.mine[name] = RegionVLM.from_pretrained(place / "runs" / name, device="cpu")
        np.savez(place / "asked.npz", texts=np.array(TEXTS), boxes=BOXES, large=LARGE, small=SMALL)
        child = str(Path(__file__).with_name("export_child.py"))
        env = {**os.environ, "HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        ended = subprocess.run(
            [sys.executable, child, str(place), *NAMES], env=env, cwd=place, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        self.theirs = {name: dict(np.load(place / f"{name}.npz")) for name in NAMES}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.set_num_threads(1)
    return Exported(tmp_path_factory.mktemp("export"))


def far(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_process_without_this_project_gets_the_same_embeddings(exported: Exported, name: str) -> None:
    mine, theirs = exported.mine[name], exported.theirs[name]
    assert far(mine.embed_image([LARGE, SMALL, LARGE]), theirs["image"]) < TOLERANCE
    assert far(mine.embed_regions(LARGE, BOXES), theirs["region"]) < TOLERANCE
    assert far(mine.embed_text(TEXTS), theirs["text"]) < TOLERANCE
    assert far(mine.score(LARGE, BOXES, TEXTS), theirs["score"]) < TOLERANCE
    assert theirs["none"].tolist() == [0, 0]
    assert theirs["scale"] == pytest.approx(float(mine.scale), rel=1e-6)
    assert far(np.linalg.norm(theirs["region"], axis=1), 1) < 1e-5
    assert far(theirs["region"][0], theirs["region"][1]) > 1e-3, "boxes differ, so must embeddings"


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("clip_vit", "siglip"))])
def test_the_library_alone_gives_the_whole_image_and_the_texts(exported: Exported, name: str) -> None:
    mine, theirs = exported.mine[name], exported.theirs[name]
    assert far(mine.embed_image([LARGE]), theirs["library_image"]) < LIBRARY
    assert far(mine.embed_text(TEXTS), theirs["library_text"]) < TOLERANCE
    assert theirs["library_scale"] == pytest.approx(float(mine.scale), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_folder_is_read_back(exported: Exported, name: str) -> None:
    again = RegionVLM.from_pretrained(exported.place / name, device="cpu")
    assert torch.equal(again.embed_regions(LARGE, BOXES), exported.mine[name].embed_regions(LARGE, BOXES))
    assert torch.equal(again.embed_text(TEXTS), exported.mine[name].embed_text(TEXTS))
    assert torch.equal(again.scale, exported.mine[name].scale)


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_says_what_it_is_and_nothing_of_the_machine(exported: Exported, name: str) -> None:
    folder = exported.place / name
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_villa.py", "README.md"} <= names
    assert not any(p.suffix in (".bin", ".pt", ".pkl") for p in folder.iterdir())
    for text in ("config.json", "README.md", "modeling_villa.py"):
        assert str(exported.place) not in (folder / text).read_text(encoding="utf-8")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: fill in" in card and "Nothing was measured" in card and "trust_remote_code=True" in card
    code = (folder / "modeling_villa.py").read_text(encoding="utf-8")
    imported = {line.split()[1].split(".")[0] for line in code.splitlines() if line.startswith(("import ", "from "))}
    assert imported - sys.stdlib_module_names <= {"torch", "transformers", "tokenizers"}


def test_the_bundled_code_names_nothing_that_is_not_there(exported: Exported, tmp_path: Path) -> None:
    """By another tool's eyes: no undefined name, no unused import."""
    for name in ("conv", "clip_rn50", "clip_vit"):
        file = exported.place / name / "modeling_villa.py"
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "F,E9",
            "--ignore",
            "F722,F821",
            str(file),
        ]
        checked = subprocess.run(ruff, capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stdout


def test_a_module_that_cannot_be_bundled_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "entry_a.py").write_text("from villa_dist import models\n\ndef f():\n    return models.done\n")
    with pytest.raises(BundleError, match="models"):
        bundle("entry_a")
    inside = "def f():\n    from villa_dist.config import Config\n    return Config\n"
    (tmp_path / "entry_b.py").write_text(inside)
    with pytest.raises(BundleError, match=r"villa_dist\.config inside a function"):
        bundle("entry_b")
    (tmp_path / "entry_c.py").write_text(
        "from villa_dist.roi_align import roi_align\n\ndef _axis():\n    return roi_align\n"
    )
    with pytest.raises(BundleError, match="_axis is defined in both"):
        bundle("entry_c")


LETTERS = st.text(st.sampled_from("abcdogtwr redCATS.,!?'-_ \t\n09éÅß"), max_size=30)


@given(st.lists(LETTERS, min_size=1, max_size=5))
def test_the_librarys_tokenizer_cleans_texts_as_ours_does(texts: list[str]) -> None:
    _, _, tokenizer = tiny_checkpoints.siglip()
    content = tokenizer.backend_tokenizer.to_str()
    ours = TextTokenizer(content, 9, 1, "length", "right", "canonical")
    published = Published("siglip", {}, Preprocess(8, (0, 0, 0), (1, 1, 1)), 4, 0.0, ours)
    theirs = Tokenizer.from_str(exporting.library_tokenizer(published)["tokenizer.json"].decode())
    theirs.enable_truncation(9)
    assert [e.ids for e in theirs.encode_batch(texts)] == ours.ids(texts)


def test_what_is_there_is_not_replaced_unasked(exported: Exported, tmp_path: Path) -> None:
    run, out = str(exported.place / "runs" / "conv"), tmp_path / "out"
    exporting.export(run, str(out))
    before = (out / "model.safetensors").stat().st_ino
    with pytest.raises(VillaError, match="--force"):
        exporting.export(run, str(out))
    assert (out / "model.safetensors").stat().st_ino == before
    exporting.export(run, str(out), force=True)
    assert (out / "model.safetensors").stat().st_ino != before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(VillaError, match="no exported folder"):
        exporting.export(run, str(mine), force=True)
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(VillaError, match="is a file"):
        exporting.export(run, str(mine / "thesis.txt"), force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"], "nothing temporary is left"


def test_a_write_that_fails_leaves_what_was_there(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(exported.place / "runs" / "conv"), tmp_path / "out"
    exporting.export(run, str(out))
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VillaError, match="no space left"):
        exporting.export(run, str(out), force=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_no_model_is_named(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(place: Path | str) -> str:
        with pytest.raises(VillaError) as caught:
            trained.find(str(place))
        return str(caught.value)

    def no_hub(name: str, revision: str | None) -> Path:
        raise VillaError(f"model.weights: {name} could not be fetched")

    monkeypatch.setattr(trained, "local_folder", no_hub)
    assert "runs/nothing is not there" in refused("runs/nothing") and "a run" in refused("runs/nothing")
    monkeypatch.setattr(trained, "local_folder", lambda name, revision: exported.place / "siglip")
    assert trained.find("org/name").vlm.config.image.kind == "hf"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert "is not there" in refused(tmp_path / "none") and "a run" in refused(tmp_path / "none")
    assert "is a file" in refused(tmp_path / "file")
    assert "holds no model" in refused(tmp_path / "empty")
    torn = tmp_path / "run/models/villa/checkpoints/step-00000004"
    torn.mkdir(parents=True)
    assert "no marker" in refused(torn) and "no whole checkpoint" in refused(torn)
    assert "not finished" in refused(tmp_path / "run") and "not finished" in refused(tmp_path / "run/models/villa")
    models.commit(str(tmp_path / "run/models/mapping"), {"w": torch.zeros(1)}, {"kind": "mapping"}, {}, "0")
    assert "mapping model" in refused(tmp_path / "run/models/mapping")
    folder = tmp_path / "cut"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((exported.place / "conv" / name).read_bytes())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    assert "no whole safetensors" in refused(folder)
    (folder / "config.json").write_text(json.dumps({"villa": {"model": {"dim": "wide"}}}))
    (folder / "model.safetensors").write_bytes((exported.place / "conv" / "model.safetensors").read_bytes())
    assert "does not describe a model" in refused(folder)


def test_the_card_tells_what_was_measured_of_these_weights_only(exported: Exported, tmp_path: Path) -> None:
    run = exported.place / "runs" / "conv"
    digest = models.load(str(run / "models/villa")).sha256
    results = {"weights": {"villa": digest}, "splits": {"test": {"villa": {"a2r": 81.5, "r2a": 79.25, "regions": 12}}}}
    (run / "results.json").write_text(json.dumps(results))
    (run / "config.yaml").write_text("seed: 5\ndata: {source: docmnist}\ndocmnist: {target: 16}\ntrain: {steps: 70}\n")
    exporting.export(str(run), str(tmp_path / "a"))
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| test | 81.5 | 79.25 | 12 |" in card and "complexity 16" in card and "| steps | 70 |" in card
    (run / "results.json").write_text(json.dumps({**results, "weights": {"villa": "others"}}))
    exporting.export(str(run), str(tmp_path / "b"))
    assert "Nothing was measured" in (tmp_path / "b" / "README.md").read_text()
    (run / "results.json").unlink()
