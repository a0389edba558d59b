"""The loss of a validation set against the criterion on all its images at once."""

import pytest
import torch

from models.validation_loss import ValidationLoss
from tests.gloo import run_processes
from tests.models.detection_case import random_outputs, random_targets
from tests.models.test_criterion import CLASSIFICATIONS, NUM_CLASSES, make_criterion, num_logits

COUNTS = [3, 0, 5, 1, 2]


def case(classification):
    torch.manual_seed(1)
    outputs = random_outputs(2, len(COUNTS), 9, num_logits(classification))
    outputs["enc_outputs"] = random_outputs(1, len(COUNTS), 12, num_logits(classification))
    return outputs, random_targets(COUNTS, NUM_CLASSES)


def part(outputs, images):
    return {name: part(v, images) if isinstance(v, dict) else v[:, images] for name, v in outputs.items()}


def of_batches(classification, batches):
    outputs, targets = case(classification)
    loss = ValidationLoss(make_criterion(classification))
    for batch in batches:
        loss.update(part(outputs, batch), [targets[index] for index in batch])
    return loss.read()


def of_process(rank, classification):
    return of_batches(classification, [[[0, 2], [4]], [[1], [3]]][rank])


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_it_is_that_of_one_batch(classification):
    outputs, targets = case(classification)
    criterion = make_criterion(classification)
    losses, _ = criterion(outputs, targets)
    expected = {"loss_val": float(criterion.total(losses).detach())}
    expected |= {f"loss_val_{name}": float(value[-1].detach()) for name, value in losses.items()}
    assert of_batches(classification, [range(5)]) == pytest.approx(expected, rel=1e-5)
    assert of_batches(classification, [[4, 1], [0], [3, 2]]) == pytest.approx(expected, rel=1e-5)


def test_two_processes_have_the_same():
    expected = of_batches("softmax", [range(5)])
    assert run_processes(of_process, "softmax") == [pytest.approx(expected, rel=1e-5)] * 2


def test_without_objects_and_without_images():
    outputs, _ = case("focal")
    loss = ValidationLoss(make_criterion("focal"))
    assert loss.read() == {}
    loss.update(part(outputs, [0]), random_targets([0], NUM_CLASSES))
    found = loss.read()
    assert found["loss_val_bbox"] == found["loss_val_giou"] == 0
    assert 0 < found["loss_val_ce"] < float("inf")
