"""Detections from logits and boxes, by hand and against transformers."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import ConditionalDetrImageProcessor, DetrImageProcessor

from models.postprocess import PostProcess
from tests.models.detection_case import random_outputs

SIZES = torch.tensor([[480, 640], [333, 500]])
PROCESSOR = {"softmax": DetrImageProcessor, "focal": ConditionalDetrImageProcessor}


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize(("queries", "num_logits"), [(12, 6), (60, 4)])
def test_equals_transformers(classification, queries, num_logits):
    outputs = {name: value.detach() for name, value in random_outputs(3, 2, queries, num_logits).items()}
    last = SimpleNamespace(logits=outputs["pred_logits"][-1], pred_boxes=outputs["pred_boxes"][-1])
    expected = PROCESSOR[classification]().post_process_object_detection(last, threshold=0.0, target_sizes=SIZES)
    results = PostProcess(classification)(outputs, SIZES)
    assert len(results) == len(expected) == 2
    for result, theirs in zip(results, expected, strict=True):
        order = theirs["scores"].argsort(descending=True)
        assert len(result["scores"]) == len(order)
        assert torch.equal(result["labels"], theirs["labels"][order])
        torch.testing.assert_close(result["scores"], theirs["scores"][order])
        torch.testing.assert_close(result["boxes"], theirs["boxes"][order], rtol=0, atol=1e-3)


def test_softmax_by_hand():
    """Query 0 is probably nothing, but gives its best real class; query 1 has a higher score and comes first."""
    logits = torch.tensor([[1.0, 2.0, 5.0], [6.0, 2.0, 0.0]]).log().view(1, 1, 2, 3)  # exp(-inf) for the 0
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]]).view(1, 1, 2, 4)
    (result,) = PostProcess("softmax")({"pred_logits": logits, "pred_boxes": boxes}, torch.tensor([[100, 200]]))
    torch.testing.assert_close(result["scores"], torch.tensor([6 / 8, 2 / 8]))
    assert result["labels"].tolist() == [0, 1]
    torch.testing.assert_close(result["boxes"], torch.tensor([[0.0, 40, 100, 60], [0, 0, 200, 100]]))


def test_focal_by_hand():
    """One query may give several detections; top_k limits them all."""
    logits = torch.tensor([[math.log(4), 0.0], [-math.log(4), math.log(9)]]).view(1, 1, 2, 2)
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]]).view(1, 1, 2, 4)
    outputs = {"pred_logits": logits, "pred_boxes": boxes}
    (result,) = PostProcess("focal", top_k=3)(outputs, torch.tensor([[100, 200]]))
    torch.testing.assert_close(result["scores"], torch.tensor([0.9, 0.8, 0.5]))
    assert result["labels"].tolist() == [1, 0, 1]
    whole, part = [0.0, 0, 200, 100], [0.0, 40, 100, 60]
    torch.testing.assert_close(result["boxes"], torch.tensor([part, whole, whole]))
    (everything,) = PostProcess("focal")(outputs, torch.tensor([[100, 200]]))
    assert len(everything["scores"]) == 4


def test_only_the_last_layer_counts():
    outputs = {name: value.detach() for name, value in random_outputs(3, 2, 5, 4).items()}
    alone = {name: value[-1:] for name, value in outputs.items()}
    for result, expected in zip(
        PostProcess("softmax")(outputs, SIZES), PostProcess("softmax")(alone, SIZES), strict=True
    ):
        for name in ("scores", "labels", "boxes"):
            assert torch.equal(result[name], expected[name])


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_types(classification):
    outputs = {name: value.detach().bfloat16() for name, value in random_outputs(1, 2, 5, 4).items()}
    for result in PostProcess(classification)(outputs, SIZES):
        assert result["scores"].dtype == torch.float32
        assert result["labels"].dtype == torch.int64
        assert result["boxes"].dtype == torch.float32
