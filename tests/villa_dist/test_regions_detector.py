"""transformers detectors as proposers: tiny random ones of each family, and stubs whose boxes are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_detectors import EDGES, KINDS, SQUARE, write
from torch import Tensor, nn

from shards.errors import ShardError, VillaError
from villa_dist.config import DetectorConfig, RegionsConfig
from villa_dist.config_file import load
from villa_dist.regions import detector
from villa_dist.regions.backends import make_proposer
from villa_dist.regions.boxes import problem
from villa_dist.regions.detector import FAMILIES, DetectorProposer, Preparation, identity, load_detector
from villa_dist.regions.proposals import Photo, regions_of

F32 = np.float32
SIZES = [(64, 64), (120, 80), (80, 120), (61, 97), (500, 40), (3, 7), (7, 3), (1, 1), (1, 300)]  # width, height


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only get in each other's way on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photo(width: int, height: int, seed: int = 0) -> Photo:
    noise = np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photo(f"{width}x{height}", width, height, noise)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    return {kind: write(kind, root / kind) for kind in KINDS}


def loaded(folder: Path, **settings: Any) -> DetectorProposer:
    return load_detector(DetectorConfig(model=str(folder), device="cpu", **settings))


# ---- every family, from a folder


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_inside_and_a_batch_gives_what_single_images_give(kind: str, folders: dict[str, Path]) -> None:
    proposer = loaded(folders[kind], batch_images=3)
    config = RegionsConfig(top_k=5, nms_iou=1.0, min_size=0.0)
    photos = [photo(w, h) for w, h in SIZES] + [photo(120, 80, seed) for seed in (1, 2, 3)]
    raw = proposer.propose(photos)
    assert [len(r.boxes) for r in raw] == [KINDS[kind][3]] * len(photos)
    for shown, whole in zip(photos, raw, strict=True):
        assert ((whole.objectness >= 0) & (whole.objectness <= 1)).all()
        if shown.width * shown.height == 1:
            continue  # one colour: two-stage detectors choose among equal queries
        alone = proposer.propose([shown])[0]
        extent = max(shown.width, shown.height)
        assert np.abs(alone.boxes - whole.boxes).max() < 1e-3 * extent
        assert np.abs(alone.objectness - whole.objectness).max() < 1e-4
    for shown, found in zip(photos, regions_of(proposer, config, photos), strict=True):
        assert problem(found.regions.boxes, shown.width, shown.height) == ""
        assert len(found.regions.boxes) <= 5
        assert found.regions.objectness.argmax() == 0


@pytest.mark.parametrize("kind", ["detr", "yolos", "deformable_detr", "rt_detr", "d_fine"])
def test_boxes_and_scores_are_those_of_the_librarys_own_pipeline(kind: str, folders: dict[str, Path]) -> None:
    """transformers' image processor and post-processing, an image at a time."""
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind])
    model = transformers.AutoModelForObjectDetection.from_pretrained(folders[kind]).eval()
    ours = loaded(folders[kind], score="max")
    for width, height in [(120, 80), (80, 120), (61, 97), (333, 200)]:
        shown = photo(width, height)
        inputs = processor(images=[shown.pixels], input_data_format="channels_last", return_tensors="pt")
        with torch.inference_mode():
            out = model(pixel_values=inputs["pixel_values"])
        theirs = processor.post_process_object_detection(out, threshold=-1, target_sizes=[(height, width)])[0]
        mine = ours.propose([shown])[0]

        def ordered(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:  # focal families reorder their queries
            rows = np.concatenate([boxes, scores[:, None]], 1)
            return rows[np.lexsort(rows.round(3).T)]

        if kind in ("detr", "yolos"):
            expected = ordered(theirs["boxes"].numpy(), theirs["scores"].numpy())
            assert np.abs(ordered(mine.boxes, mine.objectness) - expected).max() < 2e-2
        else:  # theirs lists (query, class) pairs; its best is our best
            best = int(theirs["scores"].argmax())
            assert mine.objectness.max() == pytest.approx(float(theirs["scores"][best]), abs=1e-3)
            assert np.abs(mine.boxes[mine.objectness.argmax()] - theirs["boxes"][best].numpy()).max() < 0.05


def test_detrs_objectness_is_what_no_object_leaves(folders: dict[str, Path]) -> None:
    shown = [photo(90, 70)]
    best, any_class = (loaded(folders["detr"], score=s).propose(shown)[0] for s in ("max", "objectness"))
    assert np.array_equal(best.boxes, any_class.boxes)
    assert (any_class.objectness > best.objectness).all(), "all classes together outweigh the best one"
    assert np.array_equal(loaded(folders["detr"]).propose(shown)[0].objectness, any_class.objectness)


def test_size_changes_the_input(folders: dict[str, Path]) -> None:
    plain, larger = (loaded(folders[k]).preparation.size for k in ("detr", "rt_detr"))
    assert plain == EDGES and larger == {"height": 64, "width": 96}
    assert loaded(folders["detr"], size=128).preparation.size == {"shortest_edge": 128, "longest_edge": 212}
    assert loaded(folders["rt_detr"], size=128).preparation.size == {"height": 128, "width": 128}
    bigger = loaded(folders["owlv2"], size=96)
    assert len(bigger.propose([photo(50, 90)])[0].boxes) == 36, "6 x 6 patches of 16"


# ---- geometry, by stubs


class Finder(nn.Module):
    """Finds the red rectangle in its input and gives it as a fraction of the input, with a faint box beside it."""

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        boxes = []
        for image in pixel_values:
            red = image[0] - image[2] > 0.5
            rows, columns = torch.nonzero(red.any(1)).flatten(), torch.nonzero(red.any(0)).flatten()
            height, width = image.shape[1:]
            y1, y2 = float(rows[0]) / height, float(rows[-1] + 1) / height
            x1, x2 = float(columns[0]) / width, float(columns[-1] + 1) / width
            boxes.append([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], [0.5, 0.5, 0.2, 0.2]])
        logits = torch.tensor([[[4.0, 0.0], [-4.0, 0.0]]]).expand(len(boxes), -1, -1)
        return SimpleNamespace(pred_boxes=torch.tensor(boxes), logits=logits)


class SquareFinder(Finder):
    """The same, asked as OWLv2 is."""

    def image_embedder(self, pixel_values: Tensor, interpolate_pos_encoding: bool) -> tuple[Tensor]:
        self.found = self.forward(pixel_values)
        return (torch.zeros(len(pixel_values), 1, 2, 3),)

    def box_predictor(self, places: Tensor, maps: Tensor, interpolate_pos_encoding: bool) -> Tensor:
        return self.found.pred_boxes

    def objectness_predictor(self, places: Tensor) -> Tensor:
        return self.found.logits[..., 0]


def stub(kind: str, **settings: Any) -> DetectorProposer:
    size = {"detr": {"shortest_edge": 256, "longest_edge": 512}, "rt_detr": {"height": 256, "width": 320}}
    square = FAMILIES[kind].square
    model = SquareFinder() if square else Finder()
    prepare = Preparation({"height": 320, "width": 320} if square else size[kind])
    return DetectorProposer(model, FAMILIES[kind], prepare, DetectorConfig(model="stub", device="cpu", **settings))


@pytest.mark.parametrize("kind", ["detr", "rt_detr", "owlv2"])
@pytest.mark.parametrize("size", [(320, 240), (241, 517), (640, 427), (97, 61), (900, 90), (60, 600)])
def test_resizing_and_padding_are_undone(kind: str, size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[..., 0], pixels[..., 2] = 90, 160
    x1, y1, x2, y2 = round(width * 0.55), round(height * 0.3), round(width * 0.9), round(height * 0.85)
    pixels[y1:y2, x1:x2] = (255, 0, 0)
    found = stub(kind).propose([Photo("a", width, height, pixels)])[0]
    input_cell = max(width, height) / 256  # pixels of the photo in one of the smallest input
    assert np.abs(found.boxes[found.objectness.argmax()] - [x1, y1, x2, y2]).max() <= 1.0 + input_cell


class Fixed(nn.Module):
    """Always one box, given as centre and size in fractions; and what it was given to see."""

    def __init__(self, box: list[float], logits: list[float]) -> None:
        super().__init__()
        self.box, self.logits, self.seen = box, logits, []

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        self.seen.append(tuple(pixel_values.shape))
        count = len(pixel_values)
        return SimpleNamespace(
            pred_boxes=torch.tensor([[self.box]]).expand(count, -1, -1),
            logits=torch.tensor([[self.logits]]).expand(count, -1, -1),
        )


@pytest.mark.parametrize(("width", "height"), [(641, 427), (33, 1000), (1, 1), (7, 5)])
def test_a_normalised_box_comes_back_in_pixels_exactly(width: int, height: int) -> None:
    model = Fixed([0.25, 0.5, 0.5, 0.25], [0.0, 0.0, 0.0])
    proposer = DetectorProposer(model, FAMILIES["detr"], Preparation(EDGES), DetectorConfig(model="stub", device="cpu"))
    found = proposer.propose([photo(width, height)])[0]
    assert found.boxes[0].tolist() == pytest.approx([0, height * 0.375, width * 0.5, height * 0.625], rel=1e-6)
    assert found.objectness.tolist() == pytest.approx([2 / 3])


def test_images_of_one_size_share_a_batch_and_none_is_padded() -> None:
    model = Fixed([0.5, 0.5, 1, 1], [0.0, 0.0])
    config = DetectorConfig(model="stub", device="cpu", batch_images=2)
    proposer = DetectorProposer(model, FAMILIES["detr"], Preparation(EDGES), config)
    proposer.propose([photo(80, 80), photo(160, 80), photo(40, 40), photo(80, 160), photo(64, 64)])
    assert sorted(model.seen) == [(1, 3, 64, 64), (1, 3, 64, 106), (1, 3, 106, 64), (2, 3, 64, 64)]


@pytest.mark.parametrize("kind", ["detr", "rt_detr", "grounding-dino"])
def test_the_input_is_the_librarys(kind: str, folders: dict[str, Path]) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind])
    ours = loaded(folders[kind])
    shown = photo(133, 90)
    theirs = processor(images=[shown.pixels], input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
    _, mine = ours._prepared(shown)
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max() < 0.03, "a step of 8 bits after normalising"


def test_owlv2_sees_the_image_in_the_corner_of_a_grey_square(folders: dict[str, Path]) -> None:
    ours = loaded(folders["owlv2"])
    plain = Preparation(SQUARE, mean=ours.preparation.mean, deviation=ours.preparation.deviation)
    white = Photo("a", 100, 50, np.full((50, 100, 3), 255, np.uint8))
    _, seen = ours._prepared(white)
    values = seen * torch.tensor(plain.deviation).view(3, 1, 1) + torch.tensor(plain.mean).view(3, 1, 1)
    assert values.shape == (3, 64, 64)
    assert torch.allclose(values[:, :32], torch.ones(1), atol=1e-5)
    assert torch.allclose(values[:, 32:], torch.tensor(0.5), atol=1e-5)


# ---- what a user can get wrong


def test_numbers_that_are_none_are_refused_by_name() -> None:
    model = Fixed([0.5, float("nan"), 1, 1], [0.0, 0.0])
    proposer = DetectorProposer(model, FAMILIES["detr"], Preparation(EDGES), DetectorConfig(model="stub", device="cpu"))
    config = RegionsConfig(proposals="hf", hf=DetectorConfig(model="stub"))
    with pytest.raises(ShardError, match=r"sample '20x10'.*proposals: hf.*NaN"):
        regions_of(proposer, config, [photo(20, 10)])


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(VillaError, match=r"regions\.hf\.model='.*nowhere' is not a folder"):
        loaded(tmp_path / "nowhere")


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(VillaError, match=r"has no config that transformers can read.*config\.json"):
        loaded(tmp_path)


def test_a_model_that_is_no_detector_is_named_with_its_class(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(VillaError, match=r"no object detector.*BertConfig \(model_type 'bert'\); known are detr"):
        loaded(tmp_path)


def test_a_backbone_without_its_head_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers would fill the head with random weights and only warn."""
    whole = transformers.DetrForObjectDetection.from_pretrained(folders["detr"])
    whole.model.save_pretrained(tmp_path)
    shutil.copy(folders["detr"] / "preprocessor_config.json", tmp_path)
    with pytest.raises(VillaError, match=r"lacks \d+ weights of a DetrForObjectDetection.*random"):
        loaded(tmp_path)


def test_weights_that_are_missing_or_damaged_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["detr"], tmp_path / "a")
    (tmp_path / "a/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(VillaError, match=r"\(DetrConfig\) cannot be loaded"):
        loaded(tmp_path / "a")
    (tmp_path / "a/model.safetensors").unlink()
    with pytest.raises(VillaError, match=r"\(DetrConfig\) cannot be loaded"):
        loaded(tmp_path / "a")


def test_a_score_the_model_does_not_have_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(VillaError, match=r"score=objectness.*RTDetrForObjectDetection.*set regions\.hf\.score=max"):
        loaded(folders["rt_detr"], score="objectness")
    with pytest.raises(VillaError, match=r"score=max.*Owlv2.*score=objectness"):
        loaded(folders["owlv2"], score="max")


def test_a_model_that_fails_is_told_with_the_remedy() -> None:
    class Broken(nn.Module):
        def forward(self, pixel_values: Tensor) -> None:
            raise RuntimeError("out of memory")

    proposer = DetectorProposer(Broken(), FAMILIES["detr"], Preparation(EDGES), DetectorConfig(model="s", device="cpu"))
    with pytest.raises(VillaError, match=r"Broken failed on 1 inputs of 64x64: out of memory; lower"):
        proposer.propose([photo(10, 10)])


def test_the_config_names_the_backend_and_its_folder_is_made_absolute(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["detr"].parent)
    config = load(None, ["regions.proposals=hf", "regions.hf.model=detr"])
    assert config.regions.hf.model == str(folders["detr"])
    assert isinstance(make_proposer(config.regions), DetectorProposer)
    assert load(None, ["regions.hf.model=owner/name"]).regions.hf.model == "owner/name"


def test_regions_are_bound_to_the_checkpoints_content(folders: dict[str, Path], tmp_path: Path) -> None:
    one, moved = tmp_path / "one", tmp_path / "moved"
    shutil.copytree(folders["detr"], one)
    shutil.copytree(folders["detr"], moved)
    first = identity(DetectorConfig(model=str(one)))
    assert identity(DetectorConfig(model=str(moved))) == first
    settings = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": False}))
    assert identity(DetectorConfig(model=str(moved))) != first
    assert identity(DetectorConfig(model="owner/name", revision="v2")) == "owner/name@v2"


def test_reading_in_parts_does_not_change_the_identity(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = identity(DetectorConfig(model=str(folders["detr"])))
    monkeypatch.setattr(detector, "READ", 1000)
    assert identity(DetectorConfig(model=str(folders["detr"]))) == whole
