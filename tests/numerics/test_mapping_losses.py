"""The losses that fit a mapping, against float64 loops over the formulas, and the rates they are calibrated by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from villa_dist.config import MappingConfig
from villa_dist.mapping.contrast import image_attribute_logits, mapping_contrast
from villa_dist.mapping.evidence import ALONE, Evidence, chances
from villa_dist.mapping.losses import contrast_over_attributes, mapping_loss, negative_unlabelled, noisy_or
from villa_dist.mapping.rates import positive_share, rates

IMAGES, ATTRIBUTES = 6, 5


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def mentions() -> torch.Tensor:
    """Attribute 3 is mentioned by every image, attribute 4 by none, image 5 mentions only attribute 3."""
    said = torch.rand(IMAGES, ATTRIBUTES) < 0.5
    said[:, 3], said[:, 4] = True, False
    said[5, :3] = False
    said[0, :3] = torch.tensor([True, True, False])
    return said


def regions(per_image: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(per_image)), torch.tensor(per_image))


def contrast_by_loops(logit: np.ndarray, said: np.ndarray, *, published_code: bool) -> float:
    """-log(exp S_ia / (exp S_ia + sum_j exp S_ja)), j without a; the published code takes all j and S_ja * [j lacks a]."""
    terms = []
    for i in range(len(logit)):
        for a in range(logit.shape[1]):
            if said[i, a]:
                if published_code:
                    others = [float(logit[j, a]) * (0.0 if said[j, a] else 1.0) for j in range(len(logit))]
                else:
                    others = [float(logit[j, a]) for j in range(len(logit)) if not said[j, a]]
                terms.append(log_sum_exp([float(logit[i, a]), *others]) - float(logit[i, a]))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("published_code", [False, True], ids=["formula", "published code"])
@pytest.mark.parametrize("size", [0.1, 3.0, 800.0])
def test_mapping_contrast_equals_the_formula(size: float, published_code: bool) -> None:
    """At 800 a naive exp overflows even float64."""
    said = mentions()
    logit = (size * torch.randn(IMAGES, ATTRIBUTES, dtype=torch.float64)).requires_grad_()
    loss = mapping_contrast(logit, said, reference_denominator=published_code)
    expected = contrast_by_loops(logit.detach().numpy(), said.numpy(), published_code=published_code)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    narrow = mapping_contrast(logit.float(), said, reference_denominator=published_code)
    assert narrow.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logit)
    assert torch.isfinite(gradient).all()
    step = 1e-6 * max(size, 1.0)
    for place in ((0, 0), (5, 0), (2, 1), (1, 3), (1, 4)):
        moved = []
        for sign in (1, -1):
            other = logit.detach().numpy().copy()
            other[place] += sign * step
            moved.append(contrast_by_loops(other, said.numpy(), published_code=published_code))
        assert gradient[place].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-6)


def test_contrast_over_attributes_equals_the_formula_with_roles_exchanged() -> None:
    said, logit = mentions(), 3 * torch.randn(IMAGES, ATTRIBUTES, dtype=torch.float64)
    expected = contrast_by_loops(logit.numpy().T, said.numpy().T, published_code=False)
    assert contrast_over_attributes(logit, said).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [mapping_contrast, contrast_over_attributes])
def test_a_batch_without_a_mention_has_no_loss(loss) -> None:
    logit = torch.randn(IMAGES, ATTRIBUTES, requires_grad=True)
    value = loss(logit, torch.zeros(IMAGES, ATTRIBUTES, dtype=torch.bool))
    assert value.item() == 0.0
    assert not torch.autograd.grad(value, logit)[0].any()


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("pooling", ["max", "logsumexp", "attention"])
def test_pooling_equals_loops(pooling: str, null: bool) -> None:
    image_of = regions([3, 1, 4, 2])
    score = 50 * torch.randn(10, ATTRIBUTES, dtype=torch.float64)
    found = image_attribute_logits(score, image_of, 4, pooling, null=null)
    for i in range(4):
        for a in range(ATTRIBUTES):
            own = [float(score[r, a]) for r in range(10) if image_of[r] == i] + [0.0] * null
            weight = [math.exp(x - max(own)) for x in own]
            attended = sum(w * x for w, x in zip(weight, own, strict=True)) / sum(weight)
            expected = {"max": max(own), "logsumexp": log_sum_exp(own), "attention": attended}[pooling]
            assert found[i, a].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pooling", ["max", "logsumexp"])
def test_pooling_passes_gradients_to_the_regions_that_count(pooling: str) -> None:
    score = torch.tensor([[1.0], [3.0], [2.0]], requires_grad=True)
    image_attribute_logits(score, torch.tensor([0, 0, 1]), 2, pooling).sum().backward()
    assert score.grad is not None
    share = [0.0, 1.0] if pooling == "max" else torch.softmax(torch.tensor([1.0, 3.0]), 0).tolist()
    assert score.grad[:, 0].tolist() == pytest.approx([*share, 1.0])


CONTRASTS = [
    {"loss": "contrastive", "pooling": pooling, "contrast": contrast}
    for pooling in ("max", "logsumexp", "attention")
    for contrast in ("images", "both")
]


@pytest.mark.parametrize("options", [*CONTRASTS, *({"loss": n} for n in ("noisy_or", "negative_unlabelled", "both"))])
def test_an_image_without_regions_does_not_spoil_the_batch(options: dict[str, str]) -> None:
    config = MappingConfig.model_validate(options)
    image_of = regions([2, 0, 3, 1, 1, 2])  # image 1 has none, and mentions attributes all the same
    cosine = torch.rand(9, ATTRIBUTES, requires_grad=True)
    said = mentions()
    assert said[1].any()
    evidence = Evidence(image_of, said, torch.full((ATTRIBUTES,), 0.3))
    loss = mapping_loss(config, cosine, chances(10 * cosine - 2), evidence)
    assert torch.isfinite(loss)
    loss.backward()
    assert cosine.grad is not None
    assert torch.isfinite(cosine.grad).all()
    assert cosine.grad.any()


@pytest.mark.parametrize("group", [None, torch.tensor([0, 0, 0, 1, 1])], ids=["alone", "exclusive"])
def test_a_confident_mistake_is_felt(group: torch.Tensor | None) -> None:
    """A region sure of what its image lacks, and an image none of whose regions has what it mentions."""
    said = torch.zeros(2, ATTRIBUTES, dtype=torch.bool)
    said[1] = True
    logit = torch.full((3, ATTRIBUTES), -17.0)
    logit[0, 0] = 20.0
    logit.requires_grad_()
    evidence = Evidence(torch.tensor([0, 1, 1]), said, torch.full((ATTRIBUTES,), 0.3))
    (of_or,) = torch.autograd.grad(noisy_or(chances(logit, group), evidence), logit)
    assert of_or[0, 0] > 0.05 / ATTRIBUTES
    assert (of_or[1:] < -1e-3).all()
    (of_risk,) = torch.autograd.grad(negative_unlabelled(chances(logit, group), evidence), logit)
    assert of_risk[0, 0] > 0.05 / ATTRIBUTES


HALF = torch.full((ATTRIBUTES,), 0.5, dtype=torch.float64)


WEIGHT = torch.tensor([0.3, 5.0, 1.0, 2.0, 0.7, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_noisy_or_equals_loops(weighted: bool) -> None:
    """Image 1 has no region, so it teaches nothing."""
    said, image_of = mentions(), regions([2, 0, 4, 1, 1, 2])
    logit = 2 * torch.randn(10, ATTRIBUTES, dtype=torch.float64)
    weight = WEIGHT.tolist() if weighted else [1.0] * IMAGES
    means = []
    for a in range(ATTRIBUTES):
        total = 0.0
        for i in (0, 2, 3, 4, 5):
            none = 1.0
            for r in range(10):
                if image_of[r] == i:
                    none *= 1 - 1 / (1 + math.exp(-float(logit[r, a])))
            total -= weight[i] * (math.log(1 - none) if said[i, a] else math.log(none))
        means.append(total / (sum(weight) - weight[1]))
    evidence = Evidence(image_of, said, HALF, WEIGHT if weighted else None)
    assert noisy_or(chances(logit), evidence).item() == pytest.approx(sum(means) / len(means), rel=1e-9)


def test_exclusive_attributes_share_a_softmax_with_none_of_them() -> None:
    logit = 3 * torch.randn(4, ATTRIBUTES, dtype=torch.float64)
    found = chances(logit, torch.tensor([1, ALONE, 0, 1, 0]))
    for r in range(4):
        for group in ([0, 3], [2, 4], [1]):
            total = 1.0 + sum(math.exp(float(logit[r, a])) for a in group)
            for a in group:
                p = math.exp(float(logit[r, a])) / total
                assert found.has[r, a].item() == pytest.approx(math.log(p), rel=1e-9)
                assert found.lacks[r, a].item() == pytest.approx(math.log1p(-p), rel=1e-9)
    alone = chances(logit, torch.full((ATTRIBUTES,), ALONE))
    assert torch.equal(alone.has, chances(logit).has)


@pytest.mark.parametrize("group", [None, torch.tensor([0, 0, 1, 1, 1])], ids=["alone", "exclusive"])
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
def test_noisy_or_stays_finite(size: float, group: torch.Tensor | None) -> None:
    logit = (size * torch.randn(10, ATTRIBUTES)).requires_grad_()
    loss = noisy_or(chances(logit, group), Evidence(regions([2, 1, 3, 1, 1, 2]), mentions(), HALF))
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, logit)[0]).all()


def risk_by_loops(
    logit: np.ndarray, image_of: list[int], said: np.ndarray, share: list[float], weight: list[float]
) -> float:
    """Non-negative risk with the classes exchanged: R = (1-p) R_n^-(g) + max(0, R_u^+(g) - (1-p) R_n^+(g))."""
    risks = []
    for a in range(logit.shape[1]):
        at = {u: [r for r in range(len(logit)) if bool(said[image_of[r], a]) is u] for u in (True, False)}
        if not at[True] or not at[False]:
            continue

        def mean(rows: list[int], sign: int, a: int = a) -> float:
            total = sum(weight[image_of[r]] for r in rows)
            return sum(weight[image_of[r]] * math.log1p(math.exp(sign * float(logit[r, a]))) for r in rows) / total

        positive = mean(at[True], -1) - (1 - share[a]) * mean(at[False], -1)
        risks.append(max(0.0, positive) + (1 - share[a]) * mean(at[False], 1))
    return sum(risks) / len(risks)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.95])
def test_negative_unlabelled_equals_loops(share: float, weighted: bool) -> None:
    said, image_of = mentions(), regions([2, 1, 3, 1, 1, 2])
    logit = 2 * torch.randn(10, ATTRIBUTES, dtype=torch.float64)
    share_A = torch.linspace(share / 2, share, ATTRIBUTES, dtype=torch.float64)
    weight = WEIGHT.tolist() if weighted else [1.0] * IMAGES
    expected = risk_by_loops(logit.numpy(), image_of.tolist(), said.numpy(), share_A.tolist(), weight)
    evidence = Evidence(image_of, said, share_A, WEIGHT if weighted else None)
    assert negative_unlabelled(chances(logit), evidence).item() == pytest.approx(expected, rel=1e-12)


def test_rates_recover_what_simulated_data_were_made_with() -> None:
    random = np.random.default_rng(3)
    true = np.array([0.02, 0.1, 0.2, 1 / 3, 0.5, 0.8])
    count = random.integers(1, 10, 6000)
    mentioned = np.zeros(len(true), np.int64)
    for n in count:
        mentioned += (random.random((n, len(true))) < true).any(0)
    found = rates(np.bincount(count), mentioned)
    assert np.abs(found - true).max() < 0.03
    assert np.abs(found[:4] - true[:4]).max() < 0.012


def test_rates_of_never_and_always_stay_inside_the_open_interval() -> None:
    found = rates(np.array([0, 0, 10]), np.array([0, 10]))
    assert 0 < found[0] < 1e-5
    assert 1 - 1e-5 < found[1] < 1


def test_one_region_an_image_makes_the_rate_the_share_of_mentions() -> None:
    assert rates(np.array([0, 200]), np.array([50]))[0] == pytest.approx(0.25, abs=1e-9)


def test_positive_share_by_hand() -> None:
    """One image of two regions at rate 1/2: it mentions a with 3/4, so 3/2 regions are unlabelled; one has it."""
    assert positive_share(np.array([0, 0, 1]), np.array([0.5]))[0] == pytest.approx(2 / 3)
    # images of one region and of three: (1*.2 + 3*.2) / (1*.2 + 3*(1-.8^3))
    assert positive_share(np.array([0, 1, 0, 1]), np.array([0.2]))[0] == pytest.approx(0.8 / (0.2 + 3 * (1 - 0.512)))
    assert positive_share(np.array([0, 7]), np.array([0.3]))[0] == pytest.approx(1 - 1e-4), "alone, the region has it"
