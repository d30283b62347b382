"""The conv tower: whole images pooled by activation, regions at the same scale."""

from __future__ import annotations

import pytest
import torch

from villa_dist.config import ImageTowerConfig
from villa_dist.encoders.image import ConvTower, mean_by_activation


def test_it_equals_a_scalar_transcription() -> None:
    torch.manual_seed(0)
    places = torch.rand(3, 5, 4, 6, dtype=torch.float64)
    for image, pooled in zip(places, mean_by_activation(places), strict=True):
        activation = [[float(image[:, y, x].mean()) for x in range(6)] for y in range(4)]
        lowest = min(min(row) for row in activation)
        total = sum(a - lowest for row in activation for a in row)
        for channel in range(5):
            expected = sum(
                (activation[y][x] - lowest) * float(image[channel, y, x]) for y in range(4) for x in range(6)
            )
            assert float(pooled[channel]) == pytest.approx(expected / (total + 1e-3), abs=1e-12)


def test_background_does_not_dilute_an_image() -> None:
    """A thing on a large background is embedded as the thing, on which a plain mean fails."""
    thing, background = torch.tensor([3.0, 0.0, 1.0]), torch.tensor([0.1, 0.5, 0.1])
    few = background[:, None, None].repeat(1, 9, 9)
    few[:, 4, 4] = thing
    pooled = mean_by_activation(few[None])[0]
    assert torch.cosine_similarity(pooled, thing, dim=0) > 0.99
    assert torch.cosine_similarity(few.mean((1, 2)), thing, dim=0) < 0.7


def test_a_flat_image_is_finite_with_a_finite_gradient() -> None:
    flat = torch.full((2, 4, 3, 3), 0.7, requires_grad=True)
    pooled = mean_by_activation(flat)
    pooled.sum().backward()
    assert torch.isfinite(pooled).all() and flat.grad is not None and torch.isfinite(flat.grad).all()


def test_an_image_of_any_size_and_a_region_have_one_width() -> None:
    tower = ConvTower(ImageTowerConfig(width=8)).eval()
    for height, width in ((84, 84), (60, 132)):
        maps = tower.feature_map(torch.rand(2, 3, height, width))
        boxes = torch.tensor([[0.0, 0.0, 28.0, 28.0], [20.0, 10.0, 55.0, 50.0], [4.0, 4.0, 12.0, 40.0]])
        assert tower.whole(maps).shape == (2, tower.feature_dim)
        assert tower.regions(maps, boxes, torch.tensor([0, 1, 1])).shape == (3, tower.feature_dim)


@pytest.mark.parametrize("bins", [3, 7, 14])
def test_the_smallest_images_are_embedded_too(bins: int) -> None:
    tower = ConvTower(ImageTowerConfig(width=8, roi_bins=bins)).eval()
    for height, width in ((1, 1), (tower.least - 1, 200), (200, 3), (tower.least, tower.least)):
        pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        whole, regions = tower.encode_both(pixels, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1]))
        assert whole.shape == (2, tower.feature_dim) and regions.shape == (1, tower.feature_dim)
        assert torch.equal(whole, tower.encode_whole(pixels)) and torch.isfinite(whole).all()
    with pytest.raises(RuntimeError):  # `least` is the least: one pixel fewer makes no place
        tower.whole(tower.feature_map(torch.rand(1, 3, tower.least - 1, tower.least - 1)))
