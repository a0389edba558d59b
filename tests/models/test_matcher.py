"""The matching against the implementation in transformers, brute force, and hand-made cases."""

import itertools
import math

import pytest
import torch
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher as DetrHungarianMatcher

from models.matcher import GroupMatcher, HungarianMatcher, match_as_told, pad_targets
from tests.models.detection_case import random_outputs, random_targets

COUNTS = [7, 0, 1, 4]  # objects of each image
REFERENCE = {"softmax": DetrHungarianMatcher, "focal": DeformableDetrHungarianMatcher}


def make_matcher(classification, cost_class=2.0):
    return HungarianMatcher(cost_class=cost_class, cost_bbox=5.0, cost_giou=2.0, classification=classification)


def pairs_of(matching, layer, image):
    chosen = (matching.layer == layer) & (matching.image == image)
    return list(zip(matching.query[chosen].tolist(), matching.target[chosen].tolist(), strict=True))


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize(("queries", "num_logits"), [(30, 21), (7, 4), (5, 92)])
def test_equals_the_matcher_of_transformers(classification, queries, num_logits):
    """Unequal numbers of objects, one image without any, and (5 queries) more objects than queries."""
    outputs = random_outputs(layers=6, images=len(COUNTS), queries=queries, logits=num_logits)
    targets = random_targets(COUNTS, num_logits - 1)
    reference = REFERENCE[classification](class_cost=2.0, bbox_cost=5.0, giou_cost=2.0)
    theirs = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]

    matching = make_matcher(classification)(outputs, targets)

    assert len(matching) == 6 * sum(min(queries, count) for count in COUNTS)
    for layer in range(6):
        layer_outputs = {
            "logits": outputs["pred_logits"][layer].detach(),
            "pred_boxes": outputs["pred_boxes"][layer].detach(),
        }
        for image, (query, target) in enumerate(reference(layer_outputs, theirs)):
            expected = list(zip(query.tolist(), target.tolist(), strict=True))
            assert pairs_of(matching, layer, image) == expected


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_no_other_assignment_is_cheaper(classification):
    outputs, targets = random_outputs(2, 2, 5, 4), random_targets([3, 2], 3)
    matcher = make_matcher(classification)
    costs = matcher.costs(outputs, targets)
    matching = matcher(outputs, targets)
    for layer, image in itertools.product(range(2), range(2)):
        count = len(targets[image]["labels"])
        cheapest = min(
            sum(costs[layer, image, query, target].item() for target, query in enumerate(queries))
            for queries in itertools.permutations(range(5), count)
        )
        found = sum(costs[layer, image, query, target].item() for query, target in pairs_of(matching, layer, image))
        assert found == pytest.approx(cheapest, abs=1e-6)


def test_costs_by_hand():
    """One query at the left half of the image, one object at the right half: L1 0.5, GIoU 0 - touching boxes."""
    outputs = {
        "pred_logits": torch.tensor([0.0, math.log(3.0), 0.0]).view(1, 1, 1, 3),
        "pred_boxes": torch.tensor([0.25, 0.5, 0.5, 1.0]).view(1, 1, 1, 4),
    }
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.75, 0.5, 0.5, 1.0]])}]

    softmax = make_matcher("softmax").costs(outputs, targets)
    # Probability of label 1: 3 / (1 + 3 + 1).
    assert softmax.item() == pytest.approx(2 * -0.6 + 5 * 0.5 - 2 * 0.0, abs=1e-6)

    focal = make_matcher("focal").costs(outputs, targets)
    # Sigmoid of ln 3 is 3/4: positive 0.25 (1/4)^2 (-ln 3/4), negative 0.75 (3/4)^2 (-ln 1/4).
    expected = -0.25 / 16 * math.log(0.75) + 0.75 * 9 / 16 * math.log(0.25)
    assert focal.item() == pytest.approx(2 * expected + 5 * 0.5, abs=1e-6)


def test_sorted_by_layer_with_equally_many_pairs_each():
    matching = make_matcher("softmax")(random_outputs(3, 3, 4, 3), random_targets([2, 6, 0], 2))
    assert matching.layer.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert matching.image.tolist() == [0, 0, 1, 1, 1, 1] * 3
    for name in ("layer", "image", "query", "target"):
        assert getattr(matching, name).dtype == torch.int64


def test_batch_without_objects_has_no_pairs():
    matching = make_matcher("focal")(random_outputs(2, 2, 4, 3), random_targets([0, 0], 2))
    assert len(matching) == 0


def test_an_image_matches_the_same_alone_and_in_a_batch():
    outputs, targets = random_outputs(2, 3, 10, 5), random_targets([4, 9, 1], 4)
    matcher = make_matcher("focal")
    together = matcher(outputs, targets)
    for image in range(3):
        alone = matcher({name: value[:, image : image + 1] for name, value in outputs.items()}, [targets[image]])
        for layer in range(2):
            assert pairs_of(alone, layer, 0) == pairs_of(together, layer, image)


def test_half_precision_predictions_are_costed_in_float32():
    outputs, targets = random_outputs(1, 2, 6, 3), random_targets([2, 3], 2)
    half = {name: value.detach().bfloat16() for name, value in outputs.items()}
    widened = {name: value.float() for name, value in half.items()}
    matcher = make_matcher("softmax")
    assert matcher.costs(half, targets).dtype == torch.float32
    torch.testing.assert_close(matcher.costs(half, targets), matcher.costs(widened, targets), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_are_told(name, value):
    outputs, targets = random_outputs(2, 2, 6, 3), random_targets([2, 0], 2)
    with torch.no_grad():
        outputs[name][1, 1, 2] = value  # in the image without objects
    with pytest.raises(FloatingPointError, match="--lr"):
        make_matcher("softmax")(outputs, targets)


def test_unknown_classification_is_refused():
    with pytest.raises(KeyError):
        make_matcher("sigmoid")


def test_padding_of_targets():
    targets = random_targets([2, 0, 3], 5)
    labels, boxes = pad_targets(targets)
    assert labels.shape == (3, 3)
    assert boxes.shape == (3, 3, 4)
    for image, target in enumerate(targets):
        count = len(target["labels"])
        assert torch.equal(labels[image, :count], target["labels"])
        assert torch.equal(boxes[image, :count], target["boxes"])
        assert not labels[image, count:].any()
        assert not boxes[image, count:].any()


def test_a_group_answers_for_its_own_region_whatever_others_find():
    """By hand: boxes of one size on a line, so that costs are 5 times the distance of the centres."""
    centres = torch.tensor([0.5, 0.3, 0.2, 0.4])  # queries 0 and 1 are of the region at 0.2, 2 and 3 of that at 0.6
    boxes = torch.stack([centres, *torch.full((3, 4), 0.1)], dim=1)
    regions = torch.tensor([[0.2, 0.1, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1]])
    outputs = {"pred_logits": torch.zeros(1, 1, 4, 3), "pred_boxes": boxes[None, None]}
    targets = [{"labels": torch.ones(2, dtype=torch.int64), "boxes": regions}]
    costs = {"cost_class": 1.0, "cost_bbox": 5.0, "cost_giou": 0.0, "classification": "softmax"}
    # freely, the region at 0.2 gets query 2, which is there, and the other query 0, which is nearest
    assert pairs_of(HungarianMatcher(**costs)(outputs, targets), 0, 0) == [(0, 1), (2, 0)]
    assert pairs_of(GroupMatcher(**costs)(outputs, targets), 0, 0) == [(1, 0), (3, 1)]


def test_groups_are_matched_as_freely_among_themselves():
    """Each region with its own queries alone is a problem of one object, which the Hungarian matching solves."""
    regions, group = 4, 3
    outputs = random_outputs(layers=3, images=2, queries=regions * group, logits=3)
    targets = random_targets([regions, regions], 2)
    costs = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0, "classification": "softmax"}
    matching = GroupMatcher(**costs)(outputs, targets)
    for region in range(regions):
        own = slice(region * group, (region + 1) * group)
        alone = HungarianMatcher(**costs)(
            {name: value[:, :, own] for name, value in outputs.items()},
            [{name: value[region : region + 1] for name, value in target.items()} for target in targets],
        )
        chosen = matching.target == region
        assert torch.equal(matching.query[chosen], alone.query + region * group)
        assert torch.equal(matching.layer[chosen], alone.layer)
        assert torch.equal(matching.image[chosen], alone.image)
    order = (matching.layer * 2 + matching.image) * regions * group + matching.query
    assert (order.diff() > 0).all(), "sorted by layer, image, query"


def test_queries_that_regions_cannot_share_are_an_error():
    outputs = random_outputs(layers=1, images=1, queries=7, logits=3)
    costs = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0, "classification": "softmax"}
    with pytest.raises(ValueError, match="7 queries"):
        GroupMatcher(**costs)(outputs, random_targets([3], 2))


@pytest.mark.parametrize("told", [[True, False, True], [True] * 3, [False] * 3])
def test_images_that_were_told_nothing_are_matched_freely(told):
    regions, queries = 3, 6
    outputs = random_outputs(layers=2, images=3, queries=queries, logits=3)
    targets = random_targets([regions] * 3, 2)
    costs = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0, "classification": "softmax"}
    own, free = GroupMatcher(**costs), HungarianMatcher(**costs)
    matching = match_as_told(own, outputs, targets, torch.tensor(told))
    expected = {True: own(outputs, targets), False: free(outputs, targets)}
    for layer in range(2):
        for image in range(3):
            assert pairs_of(matching, layer, image) == pairs_of(expected[told[image]], layer, image)
    assert ((matching.layer * 3 + matching.image) * queries + matching.query).diff().gt(0).all()
