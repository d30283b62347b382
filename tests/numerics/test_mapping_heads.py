"""Mapping heads: what is computed at once for all attributes equals one attribute at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from villa_dist.config import ImageTowerConfig, MappingConfig, PairsConfig
from villa_dist.mapping.assign import assign
from villa_dist.mapping.evidence import ALONE
from villa_dist.mapping.heads import Adapter, PerAttributeHeads, SharedHead
from villa_dist.mapping.model import MappingModel

REGIONS, FEATURES, DIM, HIDDEN, VOCABULARY = 6, 5, 7, 4, 9


def unit(rows: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, DIM), dim=-1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_batched_heads_equal_a_loop_over_attributes() -> None:
    head, attribute, feature = (
        PerAttributeHeads(FEATURES, DIM, HIDDEN, VOCABULARY),
        unit(VOCABULARY),
        torch.randn(REGIONS, FEATURES),
    )
    with torch.no_grad():
        head.first_bias.normal_()
        head.second_bias.normal_()
    ids = torch.tensor([7, 0, 3, 7])
    found = head(feature, attribute, ids).detach().numpy()
    w1, b1, w2, b2 = (
        p.detach().numpy().astype(np.float64) for p in (head.first, head.first_bias, head.second, head.second_bias)
    )
    for r in range(REGIONS):
        for column, a in enumerate(ids.tolist()):
            hidden = np.maximum(feature[r].numpy() @ w1[a] + b1[a, 0], 0)
            assert found[r, column] == pytest.approx(cosine(hidden @ w2[a] + b2[a, 0], attribute[a].numpy()), abs=1e-5)


def test_only_the_heads_of_the_chosen_attributes_get_gradients() -> None:
    head = PerAttributeHeads(FEATURES, DIM, HIDDEN, VOCABULARY)
    head(torch.randn(REGIONS, FEATURES), unit(VOCABULARY), torch.tensor([2, 5])).sum().backward()
    assert head.first.grad is not None
    assert sorted(head.first.grad.flatten(1).abs().sum(1).nonzero()[:, 0].tolist()) == [2, 5]


def test_the_shared_head_is_one_product_and_equals_one_attribute_at_a_time() -> None:
    head, attribute, feature = SharedHead(FEATURES, DIM, HIDDEN), unit(VOCABULARY), torch.randn(REGIONS, FEATURES)
    ids = torch.tensor([8, 1, 4])
    found = head(feature, attribute, ids).detach().numpy()
    w1, b1, gate, gate_bias, w2 = (
        p.detach().numpy().astype(np.float64)
        for p in (head.region.weight, head.region.bias, head.gate.weight, head.gate.bias, head.attribute.weight)
    )
    for r in range(REGIONS):
        u = np.maximum(w1 @ feature[r].numpy() + b1, 0)
        for column, a in enumerate(ids.tolist()):
            h = attribute[a].numpy().astype(np.float64)
            opened = 1 / (1 + np.exp(-(gate @ h + gate_bias)))
            projected = w2.T @ (u * opened)  # P(e; h) = W2' (relu(W1 e) * gate(h)), scored against h
            assert projected @ h == pytest.approx(u @ (opened * (w2 @ h)))
            assert found[r, column] == pytest.approx(cosine(u, opened * (w2 @ h)), abs=1e-5)
    assert (
        np.linalg.matrix_rank(head(torch.randn(50, FEATURES), unit(30), torch.arange(30)).detach().numpy(), tol=1e-4)
        <= HIDDEN
    )


def test_an_attribute_added_later_is_scored_and_moves_no_other() -> None:
    head, feature = SharedHead(FEATURES, DIM, HIDDEN), torch.randn(REGIONS, FEATURES)
    before = unit(VOCABULARY)
    after = torch.cat([before, unit(1)])
    ids = torch.arange(VOCABULARY + 1)
    scored = head(feature, after, ids)
    assert torch.allclose(scored[:, :VOCABULARY], head(feature, before, ids[:-1]), atol=1e-6)
    assert torch.isfinite(scored[:, VOCABULARY]).all()
    assert scored[:, VOCABULARY].std() > 0


@pytest.mark.parametrize("head", ["shared", "per_attribute"])
@pytest.mark.parametrize("loss", ["contrastive", "noisy_or"])
def test_scores_are_cosines_or_calibrated_probabilities(head: str, loss: str) -> None:
    config = MappingConfig.model_validate(
        {"encoder": "frozen", "head": head, "hidden": HIDDEN, "loss": loss, "temperature": 0.1}
    )
    rate = torch.linspace(0.02, 0.6, VOCABULARY)
    model = MappingModel(config, ImageTowerConfig(), unit(VOCABULARY), rate, FEATURES)
    feature, ids = torch.randn(REGIONS, FEATURES), torch.tensor([1, 6])
    cosines, scores = model.cosine(feature, ids), model.scores(feature, ids)
    assert (cosines.abs() <= 1 + 1e-6).all()
    if loss == "contrastive":
        assert torch.equal(scores, cosines)
        return
    odds = rate[ids] / (1 - rate[ids])
    expected = 1 / (1 + torch.exp(-10 * cosines) / odds)
    assert torch.allclose(scores, expected, atol=1e-6)


SCORES = np.array([[0.9, 0.05, 0.5], [0.75, 0.3, 0.5], [0.5, 0.2, -0.2]])


def test_relative_assignment_keeps_what_is_within_epsilon_of_the_best() -> None:
    found = assign(SCORES, PairsConfig(assign="relative", epsilon=0.2))
    assert found.tolist() == [[True, False, True], [True, True, True], [False, True, False]]
    best_alone = assign(SCORES, PairsConfig(assign="relative", epsilon=0.0))
    assert best_alone.tolist() == [[True, False, True], [False, True, True], [False, False, False]]
    at_the_edge = assign(np.array([[0.75], [0.5]]), PairsConfig(assign="relative", epsilon=0.25))
    assert at_the_edge.tolist() == [[True], [False]]


def test_absolute_assignment_keeps_what_reaches_the_threshold_and_always_the_best() -> None:
    found = assign(SCORES, PairsConfig(assign="absolute", threshold=0.5))
    assert found.tolist() == [[True, False, True], [True, True, True], [True, False, False]]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("rule", ["relative", "absolute"])
def test_nothing_to_assign_is_no_error(shape: tuple[int, int], rule: str) -> None:
    assert assign(np.zeros(shape), PairsConfig.model_validate({"assign": rule})).shape == shape


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error(bad: float) -> None:
    scores = SCORES.copy()
    scores[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        assign(scores, PairsConfig())


def model_of(experts: int = 1, **options: object) -> MappingModel:
    config = MappingConfig.model_validate({"encoder": "frozen", "hidden": HIDDEN, **options})
    group = torch.tensor([0, ALONE, 1, 0, 1, ALONE, 0, 1, 1])
    expert = torch.tensor([0, 0, 1, 0, 1, 1, 0, 1, 1]) if experts > 1 else None
    start = (ImageTowerConfig(), unit(VOCABULARY), torch.full((VOCABULARY,), 0.3), FEATURES)
    model = MappingModel(config, *start, group=group, expert=expert, experts=experts)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.requires_grad_(False)


@pytest.mark.parametrize("head", ["shared", "per_attribute"])
@pytest.mark.parametrize(
    "options", [{}, {"exclusive": ["a", "b"]}, {"loss": "contrastive"}], ids=["alone", "exclusive", "contrastive"]
)
@pytest.mark.parametrize("experts", [1, 2])
def test_images_scored_together_are_scored_as_each_alone(head: str, options: dict[str, object], experts: int) -> None:
    model = model_of(experts, head=head, **options)
    regions, mentions = (
        [3, 0, 2, 4],
        [np.array([6, 0, 5, 2]), np.array([1]), np.zeros(0, np.int64), np.array([3, 8, 7])],
    )
    feature = torch.randn(sum(regions), FEATURES * experts)
    found = model.score_images(feature, regions, mentions)
    first = 0
    for count, ids, scores in zip(regions, mentions, found, strict=True):
        expected = model.scores(feature[first : first + count], torch.from_numpy(ids))
        assert scores.shape == (count, len(ids))
        assert np.abs(scores - expected.numpy()).max(initial=0) < 1e-5
        first += count


def test_an_exclusive_score_does_not_depend_on_the_other_images() -> None:
    model, feature = model_of(exclusive=["a", "b"]), torch.randn(7, FEATURES)
    mentions = [np.array([0, 3, 4]), np.array([6, 2, 1])]
    together = model.score_images(feature, [3, 4], mentions)
    assert np.array_equal(together[1], model.score_images(feature[3:], [4], mentions[1:])[0])


def test_the_residual_changes_only_its_own_attribute() -> None:
    model, feature = model_of(residual=True), torch.randn(REGIONS, FEATURES)
    ids = torch.arange(VOCABULARY)
    before = model.cosine(feature, ids)
    head = model.of(0).head
    assert isinstance(head, SharedHead)
    assert head.residual is not None
    head.residual[4] += 3.0
    moved = (model.cosine(feature, ids) - before).abs().max(0).values > 1e-4
    assert moved.nonzero()[:, 0].tolist() == [4]


def test_an_adapter_begins_as_the_identity() -> None:
    adapter, feature = Adapter(FEATURES, HIDDEN), torch.randn(REGIONS, FEATURES)
    assert torch.equal(adapter(feature), feature)
    adapter(feature).square().sum().backward()
    assert adapter.second.weight.grad is not None and adapter.second.weight.grad.any()


def test_an_expert_scores_its_own_attributes_from_its_own_features() -> None:
    model, feature, ids = model_of(2), torch.randn(REGIONS, 2 * FEATURES), torch.arange(VOCABULARY)
    before = model.scores(feature, ids)
    feature[:, FEATURES:] = torch.randn(REGIONS, FEATURES)
    moved = (model.scores(feature, ids) - before).abs().max(0).values > 1e-6
    assert torch.equal(moved, model.expert == 1)
