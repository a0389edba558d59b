"""The losses against transformers, hand-worked numbers, and one process against two."""

import argparse
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.loss.loss_for_object_detection import HungarianMatcher as DetrHungarianMatcher
from transformers.loss.loss_for_object_detection import ImageLoss

from models.criterion import SetCriterion, build_criterion
from models.matcher import HungarianMatcher
from tests.gloo import run_processes
from tests.models.detection_case import random_outputs, random_targets

LAYERS = 6
NUM_CLASSES = 5
WEIGHTS = {"ce": 2.0, "bbox": 5.0, "giou": 2.0}
CLASSIFICATIONS = ["softmax", "focal"]
COUNTS = [[7, 0, 1, 4], [0, 0], [1]]


def make_criterion(classification, eos_coef=0.1):
    matcher = HungarianMatcher(cost_class=1.0, cost_bbox=5.0, cost_giou=2.0, classification=classification)
    return SetCriterion(
        num_logits=num_logits(classification),
        matcher=matcher,
        classification=classification,
        weight_ce=WEIGHTS["ce"],
        weight_bbox=WEIGHTS["bbox"],
        weight_giou=WEIGHTS["giou"],
        eos_coef=eos_coef,
    )


def num_logits(classification):
    return NUM_CLASSES + (classification == "softmax")


def reference_losses(classification, outputs, targets):
    """The dictionary of losses of transformers: last layer without suffix, layer i before it with suffix _i."""
    costs = {"class_cost": 1.0, "bbox_cost": 5.0, "giou_cost": 2.0}
    kinds = ["labels", "boxes", "cardinality"]
    if classification == "softmax":
        criterion = ImageLoss(DetrHungarianMatcher(**costs), NUM_CLASSES, eos_coef=0.1, losses=kinds)
    else:
        criterion = DeformableDetrImageLoss(DeformableDetrHungarianMatcher(**costs), NUM_CLASSES, 0.25, kinds)
    layers = [
        {"logits": logits, "pred_boxes": boxes}
        for logits, boxes in zip(outputs["pred_logits"], outputs["pred_boxes"], strict=True)
    ]
    theirs = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
    return criterion({**layers[-1], "auxiliary_outputs": layers[:-1]}, theirs)


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("queries", [12, 3])
def test_every_loss_of_every_layer_equals_transformers(classification, counts, queries):
    outputs = random_outputs(LAYERS, len(counts), queries, num_logits(classification))
    targets = random_targets(counts, NUM_CLASSES)
    expected = reference_losses(classification, outputs, targets)

    losses, _ = make_criterion(classification)(outputs, targets)

    assert losses.keys() == {"ce", "bbox", "giou"}
    suffixes = [f"_{layer}" for layer in range(LAYERS - 1)] + [""]
    for name, values in losses.items():
        theirs = torch.stack([expected[f"loss_{name}{suffix}"] for suffix in suffixes])
        torch.testing.assert_close(values, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_a_matching_that_is_given_is_used(classification):
    criterion = make_criterion(classification)
    outputs = random_outputs(LAYERS, 4, 12, num_logits(classification))
    targets = random_targets(COUNTS[0], NUM_CLASSES)
    losses, matching = criterion(outputs, targets)
    again, same = criterion(outputs, targets, matching)
    assert same is matching
    assert all(torch.equal(again[name], values) for name, values in losses.items())

    # Another matching: each object keeps its layer and image, and goes to the query beside its own.
    moved = replace(matching, query=(matching.query + 1) % 12)
    others, used = criterion(outputs, targets, moved)
    assert used is moved
    boxes = torch.cat([target["boxes"] for target in targets])
    rows = torch.tensor([0, *(len(target["boxes"]) for target in targets)]).cumsum(0)[matching.image]
    found = outputs["pred_boxes"][moved.layer, moved.image, moved.query]
    by_hand = (found - boxes[rows + matching.target]).abs().sum(-1).view(LAYERS, -1).sum(1) / sum(COUNTS[0])
    torch.testing.assert_close(others["bbox"], by_hand)


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_gradients_equal_transformers(classification):
    outputs = random_outputs(LAYERS, 4, 12, num_logits(classification))
    targets = random_targets(COUNTS[0], NUM_CLASSES)
    criterion = make_criterion(classification)
    losses, _ = criterion(outputs, targets)
    ours = torch.autograd.grad(criterion.total(losses), list(outputs.values()))

    expected = reference_losses(classification, outputs, targets)
    total = sum(WEIGHTS[name.split("_")[1]] * value for name, value in expected.items() if name.startswith("loss_"))
    theirs = torch.autograd.grad(total, list(outputs.values()))
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_errors_of_the_last_layer(classification, counts):
    outputs = random_outputs(LAYERS, len(counts), 12, num_logits(classification))
    targets = random_targets(counts, NUM_CLASSES)
    criterion = make_criterion(classification)
    _, matching = criterion(outputs, targets)
    errors = criterion.errors(outputs, targets, matching)

    expected = reference_losses(classification, outputs, targets)
    torch.testing.assert_close(errors["cardinality_error"], expected["cardinality_error"], rtol=0, atol=1e-5)

    wrong = matched = 0
    for layer, image, query, target in zip(
        matching.layer, matching.image, matching.query, matching.target, strict=True
    ):
        if layer == LAYERS - 1:
            matched += 1
            guess = outputs["pred_logits"][layer, image, query].argmax()
            wrong += int(guess != targets[image]["labels"][target])
    assert matched == sum(counts)
    assert errors["class_error"].item() == pytest.approx(100 * wrong / max(matched, 1), abs=1e-4)


def test_proposals_of_the_encoder_are_scored_as_objects_of_label_0():
    outputs = random_outputs(LAYERS, 4, 12, NUM_CLASSES)
    outputs["enc_outputs"] = random_outputs(1, 4, 30, NUM_CLASSES)
    targets = random_targets(COUNTS[0], NUM_CLASSES)
    criterion = make_criterion("focal")
    losses, matching = criterion(outputs, targets)
    objects = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
    expected = reference_losses("focal", outputs["enc_outputs"], objects)
    assert len(matching) == LAYERS * sum(COUNTS[0])
    for name in ("ce", "bbox", "giou"):
        torch.testing.assert_close(losses[f"enc_{name}"], expected[f"loss_{name}"][None], rtol=1e-5, atol=1e-5)
    of_layers, _ = criterion({name: outputs[name] for name in ("pred_logits", "pred_boxes")}, targets)
    total = criterion.total(of_layers) + sum(WEIGHTS[name] * expected[f"loss_{name}"] for name in WEIGHTS)
    torch.testing.assert_close(criterion.total(losses), total)


def perfect_outputs(classification, targets, queries):
    """One layer whose first queries are the objects of each image, with confident logits."""
    outputs = random_outputs(1, len(targets), queries, num_logits(classification))
    logits, boxes = (value.detach() for value in outputs.values())
    logits.fill_(-20)
    if classification == "softmax":
        logits[..., -1] = 0
    for image, target in enumerate(targets):
        count = len(target["labels"])
        logits[0, image, torch.arange(count), target["labels"]] = 20
        boxes[0, image, :count] = target["boxes"]
    return {"pred_logits": logits, "pred_boxes": boxes}


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_perfect_predictions_have_no_loss_and_no_error(classification):
    targets = random_targets([3, 0, 5], NUM_CLASSES)
    outputs = perfect_outputs(classification, targets, queries=8)
    criterion = make_criterion(classification)
    losses, matching = criterion(outputs, targets)
    for values in losses.values():
        assert values.item() == pytest.approx(0, abs=1e-6)
    errors = criterion.errors(outputs, targets, matching)
    assert errors["class_error"] == 0
    assert errors["cardinality_error"] == 0

    outputs["pred_logits"][0, 0] = outputs["pred_logits"][0, 0].roll(1, dims=-1)  # other classes, image 0
    outputs["pred_boxes"][0, 0, 3:] = 0.01  # small: the matching stays as it was
    matching = criterion.matcher(perfect_outputs(classification, targets, queries=8), targets)
    assert criterion.errors(outputs, targets, matching)["class_error"].item() == pytest.approx(100 * 3 / 8)


def one_object_case(classification):
    """Two queries, one object (label 0). Query 0 covers its left half; query 1 is the far corner."""
    logits = torch.zeros(1, 1, 2, num_logits(classification))
    logits[0, 0, 0, 0] = math.log(3)
    boxes = torch.tensor([[0.2, 0.4, 0.2, 0.4], [0.95, 0.95, 0.1, 0.1]]).view(1, 1, 2, 4)
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.3, 0.4, 0.4, 0.4]])}]
    return {"pred_logits": logits, "pred_boxes": boxes}, targets


def test_softmax_by_hand():
    outputs, targets = one_object_case("softmax")
    losses, _ = make_criterion("softmax")(outputs, targets)
    # Matched: probability 3 / (3 + 5). Unmatched: 1 / 6, weight 0.1. Weighted mean.
    expected = (-math.log(3 / 8) + 0.1 * math.log(6)) / 1.1
    assert losses["ce"].item() == pytest.approx(expected, abs=1e-6)
    assert losses["bbox"].item() == pytest.approx(0.1 + 0.2, abs=1e-6)
    assert losses["giou"].item() == pytest.approx(0.5, abs=1e-6)  # half of the object, which is the hull


def test_focal_by_hand():
    outputs, targets = one_object_case("focal")
    losses, _ = make_criterion("focal")(outputs, targets)
    # The object's logit has probability 3/4; the other nine are negatives of probability 1/2.
    expected = 0.25 * (1 / 4) ** 2 * -math.log(3 / 4) + 9 * 0.75 * (1 / 2) ** 2 * -math.log(1 / 2)
    assert losses["ce"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
@pytest.mark.parametrize("eos_coef", [0.1, 0.0])
def test_batch_without_objects_trains_on(classification, eos_coef):
    outputs = random_outputs(LAYERS, 2, 4, num_logits(classification))
    criterion = make_criterion(classification, eos_coef)
    losses, matching = criterion(outputs, random_targets([0, 0], NUM_CLASSES))
    criterion.total(losses).backward()
    assert len(matching) == 0
    assert torch.isfinite(outputs["pred_logits"].grad).all()
    assert not outputs["pred_boxes"].grad.any()  # zeros, not None: all parameters take part on every process


def test_total_weighs_every_term_and_layer():
    criterion = make_criterion("softmax")
    losses = {"ce": torch.tensor([1.0, 2.0]), "bbox": torch.tensor([3.0, 4.0]), "giou": torch.tensor([5.0, 6.0])}
    assert criterion.total(losses).item() == pytest.approx(2 * 3 + 5 * 7 + 2 * 11)
    with pytest.raises(KeyError, match="feature"):
        criterion.total({**losses, "feature": torch.tensor([1.0, 1.0])})


def test_losses_are_float32_for_half_precision_predictions():
    outputs = {name: value.detach().bfloat16() for name, value in random_outputs(2, 2, 6, NUM_CLASSES).items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = make_criterion("focal")(outputs, random_targets([2, 3], NUM_CLASSES))
    assert {values.dtype for values in losses.values()} == {torch.float32}


def test_build_from_arguments():
    args = argparse.Namespace(
        set_cost_class=1.5,
        set_cost_bbox=4.0,
        set_cost_giou=3.0,
        cls_loss_coef=2.0,
        bbox_loss_coef=6.0,
        giou_loss_coef=7.0,
        eos_coef=None,
        focal_alpha=0.3,
    )
    criterion = build_criterion(args, num_logits=4, classification="focal")
    assert criterion.weights == {"ce": 2.0, "bbox": 6.0, "giou": 7.0}
    assert (criterion.focal_alpha, criterion.num_logits) == (0.3, 4)
    matcher = criterion.matcher
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (1.5, 4.0, 3.0)
    args.eos_coef, args.focal_alpha = 0.2, None
    criterion = build_criterion(args, num_logits=3, classification="softmax")
    assert (criterion.classification, criterion.eos_coef) == ("softmax", 0.2)


class NoHostReads(TorchDispatchMode):
    """Refuses what waits for a GPU: reading values on the host, and results whose size depends on values.

    So does the gradient of prod, but not within such a mode; what tests/test_gpu.py finds is the last word.
    """

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "prod")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        assert name not in self.REFUSED, f"{name} waits for the device"
        assert not by_mask, "indexing by a mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [Tensor.item, Tensor.nonzero, bool, Tensor.prod, lambda x: x[x > 0]])
def test_reads_on_the_host_are_noticed(read):
    with NoHostReads(), pytest.raises(AssertionError, match="waits for the device"):
        read(torch.ones(()))


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_after_the_matching_nothing_is_read_on_the_host(classification):
    outputs = random_outputs(LAYERS, 3, 8, num_logits(classification))
    targets = random_targets([3, 0, 2], NUM_CLASSES)
    criterion = make_criterion(classification)
    matching = criterion.matcher(outputs, targets)
    criterion.matcher.forward = lambda *_: matching
    with NoHostReads():
        losses, _ = criterion(outputs, targets)
        criterion.total(losses).backward()
        criterion.errors(outputs, targets, matching)


# Two processes against one. The images are shared out unequally: one for the first process, the rest for the second.
SHARED_OUT = [slice(0, 1), slice(1, None)]
CASES = [
    (classification, counts)
    for classification in CLASSIFICATIONS
    for counts in ([3, 0, 2, 5], [0, 4, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0])
]


class Predictor(nn.Module):
    """Predictions [L, B, Q, ...] from features [L, B, Q, 8] by parameters that all images share."""

    def __init__(self, logits):
        super().__init__()
        self.to_logits = nn.Linear(8, logits)
        self.to_boxes = nn.Linear(8, 4)

    def forward(self, features):
        return {"pred_logits": self.to_logits(features), "pred_boxes": self.to_boxes(features).sigmoid()}


def gradients(classification, counts, chosen, wrap=lambda model: model):
    """Gradients of the total loss of the images ``chosen``; model and data are the same in every process."""
    torch.manual_seed(len(counts) + sum(counts))
    model = wrap(Predictor(num_logits(classification)))
    features, targets = torch.randn(3, len(counts), 6, 8), random_targets(counts, NUM_CLASSES)
    criterion = make_criterion(classification)
    losses, _ = criterion(model(features[:, chosen]), targets[chosen])
    criterion.total(losses).backward()
    return [parameter.grad for parameter in model.parameters()]


def gradients_of_process(rank):
    return [
        gradients(classification, counts, SHARED_OUT[rank], DistributedDataParallel) for classification, counts in CASES
    ]


@pytest.fixture(scope="module")
def averaged_gradients():
    return run_processes(gradients_of_process)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{counts}" for name, counts in CASES])
def test_two_processes_have_the_gradients_of_one(case, averaged_gradients):
    classification, counts = CASES[case]
    whole = gradients(classification, counts, slice(None))
    assert whole[0].abs().max() > 1e-3
    for of_process in averaged_gradients:
        for mine, expected in zip(of_process[case], whole, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
