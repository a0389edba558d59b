"""The measure of pretraining on predictions made by hand: perfect, shuffled, and what chance gives."""

from __future__ import annotations

import torch
from torch import Tensor

from models.matcher import GroupMatcher
from models.pretext.measure import class_confidence, measure_queries, measure_recall, measure_stay

# Region 0 covers all; the others are disjoint quarters, except the last: its IoU with region 1 is 1/3.
REGIONS = torch.tensor([
    [0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.25, 0.5, 0.5, 0.5],
])  # fmt: skip
GROUP = 3
NEXT = [0, 2, 3, 1]


def predictions(regions: Tensor, place: int = 1) -> tuple[Tensor, Tensor]:
    """Confidence [1, 1, 12] and boxes [1, 1, 12, 4]; query ``place`` of each group has its region of ``regions``, query
    1 is the most confident."""
    boxes = torch.tensor([0.9, 0.9, 0.01, 0.01]).repeat(4, GROUP, 1)
    boxes[:, place] = regions
    return torch.tensor([0.1, 0.8, 0.3]).repeat(4)[None, None], boxes.flatten(0, 1)[None, None]


def measure(confidence: Tensor, boxes: Tensor, **options) -> dict[str, float]:
    """Means over all regions except region 0."""
    matcher = GroupMatcher(cost_class=0, cost_bbox=5, cost_giou=2, classification="softmax")
    outputs = {"pred_logits": torch.zeros(1, 1, 12, 3), "pred_boxes": boxes}
    matching = matcher(outputs, [{"labels": torch.ones(4, dtype=torch.int64), "boxes": REGIONS}])
    return means(measure_queries(confidence, boxes, REGIONS[None], matching=matching, first=1, **options))


def means(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: round(value.mean().item(), 6) for name, value in values.items()}


def test_perfect_predictions() -> None:
    found = measure(*predictions(REGIONS))
    assert found["own_iou"] == found["recall"] == found["best_iou"] == found["best_recall"] == found["matched_iou"] == 1
    # of the three pairs of regions but region 0, one has an IoU of 1/3: its two regions have a mean of 1/6
    assert found["others_iou"] == found["chance_iou"] == round(1 / 9, 6)


def test_boxes_of_the_next_region_find_the_others_but_not_their_own() -> None:
    found = measure(*predictions(REGIONS[NEXT]))
    assert found["own_iou"] == found["chance_iou"] == round(1 / 9, 6)
    assert found["recall"] == 0
    assert found["others_iou"] == round((1 / 2 + 2 / 3 + 1 / 2) / 3, 6)  # hand-worked: guess 1 is region 2, ...


def test_a_box_that_is_unsure_counts_as_the_best_and_the_matched_one_alone() -> None:
    found = measure(*predictions(REGIONS, place=0))
    assert found["recall"] == 0
    assert found["best_recall"] == found["matched_iou"] == 1


def test_features_are_right_when_closest_to_their_own_region() -> None:
    features = torch.eye(4)[None]

    def top1(predicted: Tensor) -> float:
        found = measure(*predictions(REGIONS), predicted=lambda query: predicted[None], features=features)
        return found["feature_top1"]

    assert top1(3 * features + 0.1) == 1
    assert top1(features[:, NEXT]) == 0
    assert top1(features[:, [1, 1, 3, 3]]) == round(2 / 3, 6)  # region 0 competes but does not count


def test_features_are_those_of_the_most_confident_query() -> None:
    asked = []

    def predicted(query: Tensor) -> Tensor:
        asked.append(query.tolist())
        return torch.zeros(1, 1, 4, 2)

    measure(*predictions(REGIONS), predicted=predicted, features=torch.zeros(1, 4, 2))
    assert asked == [[[[1, 4, 7, 10]]]]


def test_staying_is_the_iou_of_the_places_in_both_views() -> None:
    elsewhere = REGIONS[[0, 1, 1, 1]][None]
    found = measure_stay(elsewhere, REGIONS[None], 2, first=1)
    torch.testing.assert_close(found["stay_iou"], torch.tensor([[1.0, 0.0, 1 / 3]] * 2))
    assert found["stay_recall"].tolist() == [[1, 0, 0]] * 2


def test_recall_counts_the_most_confident_boxes_alone() -> None:
    confidence, boxes = predictions(REGIONS)
    regions = [REGIONS[1:3]]
    assert means(measure_recall(confidence, boxes, regions, most=4)) == {"best_iou": 1, "best_recall": 1}
    assert means(measure_recall(1 - confidence, boxes, regions, most=8))["best_recall"] == 0


def test_recall_of_images_with_other_numbers_of_regions() -> None:
    confidence, boxes = predictions(REGIONS)
    both = [x.expand(2, 3, *x.shape[2:]) for x in (confidence, boxes)]
    found = measure_recall(*both, [REGIONS[:1], REGIONS[:0], REGIONS[1:]])
    assert found["best_recall"].shape == (2, 4)


def test_confidence_is_the_probability_of_the_class() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).log1p()[None, None, None]  # odds 1 : 2 : 3
    assert round(class_confidence({"pred_logits": logits}, 1, "softmax").item(), 6) == round(2 / 6, 6)
    assert round(class_confidence({"pred_logits": logits}, 1, "focal").item(), 6) == round(2 / 3, 6)
