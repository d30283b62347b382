"""Asking a trained model: what it takes, what it refuses, and what `villa query` draws and writes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cluster.commands import export, query
from shards.errors import VillaError
from villa_dist import RegionVLM, models
from villa_dist import query as asking
from villa_dist.api import pixels_of
from villa_dist.config import ModelConfig
from villa_dist.embedding import checked_boxes
from villa_dist.regions.backends import make_proposer
from villa_dist.vlm.model import RegionVLM as Towers

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8)
BOXES = [[0, 0, 60, 40], [5, 6, 20, 30], [30, 10, 55, 39]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "run"
    torch.manual_seed(1)
    vlm = Towers(ModelConfig.model_validate({"image": {"width": 8}, "text": {"buckets": 64}, "dim": 12}))
    for _ in range(5):
        vlm.train().embed_whole(torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8))
    models.write(str(folder / "models/villa"), vlm.eval(), "0")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> RegionVLM:
    return RegionVLM.from_pretrained(run, device="cpu")


def test_the_package_stays_light() -> None:
    code = "import sys, villa_dist; assert 'RegionVLM' in dir(villa_dist) and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ImportError):
        from villa_dist import Nothing  # type: ignore[attr-defined]  # noqa: F401


def test_embeddings_are_those_of_the_towers(model: RegionVLM) -> None:
    pixels = torch.from_numpy(PICTURE.transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        whole = model.towers.embed_whole(pixels)
        regions = model.towers.embed_regions(
            pixels, torch.tensor(BOXES, dtype=torch.float32), torch.zeros(3, dtype=torch.int64)
        )
        texts = model.towers.embed_texts(model.towers.tokenize(["red", "a blue dog"]))
    assert torch.equal(model.embed_image(PICTURE), whole)
    for boxes in (BOXES, np.array(BOXES), torch.tensor(BOXES), tuple(map(tuple, BOXES))):
        assert torch.equal(model.embed_regions(PICTURE, boxes), regions)
    assert torch.allclose(model.embed_text(["red", "a blue dog"]), texts)
    assert torch.allclose(model.score(PICTURE, BOXES, ["red", "a blue dog"]), regions @ texts.T)
    assert torch.allclose(model.score(PICTURE, None, "red"), whole @ texts[:1].T)
    assert model.embed_image([]).shape == (0, 12) and model.embed_regions(PICTURE, []).shape == (0, 12)
    assert model.embed_text([]).shape == (0, 12) and model.score(PICTURE, [], ["red"]).shape == (0, 1)
    assert float(model.scale) == pytest.approx(1 / 0.07)


def test_an_image_gives_the_same_alone_and_among_others(model: RegionVLM) -> None:
    others = [RANDOM.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(40, 60), (33, 60), (40, 60)] * 7]
    together = model.embed_image([*others, PICTURE])
    assert torch.allclose(together[-1], model.embed_image(PICTURE)[0], atol=1e-6)
    assert torch.allclose(together[1], model.embed_image(others[1])[0], atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(22), atol=1e-5)


def test_images_are_paths_pictures_and_arrays(model: RegionVLM, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    for image in (path, str(path), Image.fromarray(PICTURE), Image.open(path)):
        assert np.array_equal(pixels_of(image), PICTURE)
    turned = Image.fromarray(PICTURE)
    exif = turned.getexif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    turned.save(sink, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(sink.getvalue()))
    assert pixels_of(opened).shape == (60, 40, 3) and opened.size == (60, 40), "the caller's own is left alone"
    deep = Image.fromarray(np.linspace(0, 60_000, 60 * 40).reshape(40, 60).astype(np.uint16))
    assert pixels_of(deep).min() == 0 and pixels_of(deep).max() == 255


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("none.png", "none.png cannot be read"),
        (PICTURE.astype(np.float32), "float32 array of shape"),
        (PICTURE[..., 0], "uint8 array of shape"),
        (PICTURE[:0], "no pixels"),
        (7, "an image is a int"),
    ],
)
def test_what_is_no_image_is_named(model: RegionVLM, image: object, said: str) -> None:
    with pytest.raises(VillaError, match=said):
        model.embed_image([image])


def test_a_damaged_file_is_named(model: RegionVLM, tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(VillaError, match=r"b\.jpg cannot be used"):
        model.embed_image(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[1, 2, 3]], r"shape \(1, 3\)"),
        ([1, 2, 3, 4], r"shape \(4,\)"),
        ([[0, 0, 5, 5], [4, 4, 4, 9]], r"box 1 = \[4, 4, 4, 9\] has no area"),
        ([[30, 30, 10, 10]], "not x, y, w, h"),
        ([[0, 0, float("nan"), 5]], "not finite"),
        ([[0, 0, 61, 40]], "outside the image of 60x40"),
        ([[-3, 0, 6, 4]], "outside"),
        ([["a", 0, 1, 1]], "cannot be read"),
        ([[0, 0, 1, 1], [0, 0, 1]], "cannot be read"),
        (None, "cannot be read|shape"),
    ],
)
def test_bad_boxes_are_named(model: RegionVLM, boxes: object, said: str) -> None:
    with pytest.raises(VillaError, match=said):
        model.embed_regions(PICTURE, boxes)


@given(st.lists(st.tuples(*[st.floats(-5, 70, width=32)] * 4), max_size=4))
def test_boxes_that_are_taken_lie_in_the_image(boxes: list[tuple[float, ...]]) -> None:
    try:
        found = checked_boxes(boxes, 60, 40)
    except VillaError:
        assert any(x2 <= x1 or y2 <= y1 or min(x1, y1) < -0.5 or x2 > 60.5 or y2 > 40.5 for x1, y1, x2, y2 in boxes)
        return
    assert found.shape == (len(boxes), 4)
    assert (found >= 0).all() and (found[:, 2] <= 60).all() and (found[:, 3] <= 40).all()


def test_a_text_that_is_none_and_a_device_that_is_not_there(model: RegionVLM) -> None:
    with pytest.raises(VillaError, match="a text is a int"):
        model.embed_text(["a", 3])  # type: ignore[list-item]
    with pytest.raises(VillaError, match="device 'nowhere'"):
        model.to("nowhere")
    assert model.device.type == "cpu"


# ---- villa query


def test_arguments_are_images_or_texts(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    here = str(tmp_path / "x")
    assert asking.split_arguments([here, "a dog", "two.5 cats", "  "]) == ([here], ["a dog", "two.5 cats"])
    long = "赤い傘を持っている人" * 30  # more bytes than a file's name can have
    assert asking.split_arguments([long, "a\0b"]) == ([], [long, "a\0b"])
    assert asking.split_arguments(["what is in a.png"]) == ([], ["what is in a.png"])
    with pytest.raises(VillaError, match=r"gone\.JPG does not exist"):
        asking.split_arguments(["gone.JPG", "a dog"])
    assert asking.names(["a/x.png", "b/x.jpg", "x.webp", "y"]) == ["x", "x-2", "x-3", "y"]
    assert asking.regions_config("hf:org/name").hf.model == "org/name"
    for wrong in ("annotations", "hf:", "hf", "Segments"):
        with pytest.raises(VillaError, match="--proposals"):
            asking.regions_config(wrong)


def test_regions_are_ranked_by_the_score_of_their_own_box(model: RegionVLM, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(PICTURE).save(path)
    config = asking.regions_config("grid")
    answer = asking.ask(model, make_proposer(config), config, str(path), ["red", "a dog"])
    written = asking.as_json(answer, str(path), "grid")
    for text in written["texts"]:
        boxes = [r["box"] for r in text["regions"]]
        scores = [r["score"] for r in text["regions"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 9
        own = model.score(PICTURE, boxes, [text["text"]])[:, 0].numpy()
        assert np.abs(own - scores).max() < 1e-5
        assert text["whole_image"] == pytest.approx(float(model.score(PICTURE, None, text["text"])), abs=1e-5)
    view = asking.view(answer, "p", 2)
    best = {tuple(r["box"]) for text in written["texts"] for r in text["regions"][:2]}
    assert {tuple(round(v, 2) for v in r.box) for r in view.regions} == best
    assert view.regions[0].group == 0 and view.regions[0].marks[0][0] == "red"


def test_the_commands_write_pictures_and_one_line(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(PICTURE).save(path)
    out = tmp_path / "found"
    query.command(
        str(run), [str(path), "red"], text=["blue.png"], proposals="segments", top=2, out=str(out), device="cpu"
    )
    line = json.loads(capfd.readouterr().out)
    assert (line["command"], list(line["images"][0]["best"])) == ("query", ["red", "blue.png"])
    with Image.open(out / "p.png") as picture:
        assert picture.format == "PNG" and picture.width > 900
    written = json.loads((out / "p.json").read_text(encoding="utf-8"))
    assert [t["text"] for t in written["texts"]] == ["red", "blue.png"] and (written["width"], written["height"]) == (
        60,
        40,
    )
    export.command(str(run), str(tmp_path / "exported"))
    assert json.loads(capfd.readouterr().out)["out"] == str(tmp_path / "exported")
    with pytest.raises(VillaError, match="needs a text"):
        query.command(str(run), [str(path)], proposals="grid", out=str(out))
    with pytest.raises(VillaError, match="needs an image"):
        query.command(str(run), ["red"], proposals="grid", out=str(out))
