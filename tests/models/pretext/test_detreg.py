"""DETReg against a plain implementation, and with any number of regions."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import sigmoid_focal_loss

from tests.models.pretext.cases import DETRS, build, one_view_batch, outputs_of, rows_of
from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou

SMALL = ["--num_queries", "6"]


def layer2_mean(backbone, crop: torch.Tensor) -> torch.Tensor:
    """The ResNet's layer2 of one crop [3, s, s], averaged: [E]."""
    body = backbone.body
    x = body["maxpool"](body["relu"](body["bn1"](body["conv1"](crop[None]))))
    return body["layer2"](body["layer1"](x)).mean((2, 3))[0]


def plain_losses(model, batch) -> dict[str, torch.Tensor]:
    """Losses [L] a term, layer by layer, pair by pair, with a matching of its own; "feature" of the last layer [1]."""
    detector = model.detector
    crops = batch.crops.split([len(boxes) for boxes in batch.boxes])
    decoded = detector.decode(
        detector.encode(detector.features(batch.images), batch.images.mask), detector.queries(len(batch))
    )
    outputs = detector.predict(decoded)
    losses = {name: [] for name in ("ce", "bbox", "giou", "feature")}
    num_boxes = sum(map(len, batch.boxes))
    for layer, (logits, boxes) in enumerate(zip(outputs["pred_logits"], outputs["pred_boxes"], strict=True)):
        objects = torch.zeros(logits.shape[:2], dtype=torch.bool)
        terms = {"bbox": 0.0, "giou": 0.0}
        distances = []
        for image, truths in enumerate(batch.boxes):
            for query, region in plain_matching(logits[image], boxes[image], truths):
                objects[image, query] = True
                box, truth = boxes[image, query], truths[region]
                giou = generalized_box_iou(box_cxcywh_to_xyxy(box), box_cxcywh_to_xyxy(truth))
                terms["bbox"] += (box - truth).abs().sum() / num_boxes
                terms["giou"] += (1 - giou) / num_boxes
                guess = model.feature_embed(decoded.hidden[layer, image, query])
                with torch.no_grad():
                    wanted = layer2_mean(detector.backbone[0], crops[image][region])
                distances.append((guess - wanted).abs().mean())
        for name, value in terms.items():
            losses[name].append(value)
        losses["feature"] = [torch.stack(distances).mean()]
        losses["ce"].append(plain_classification(logits, objects, num_boxes))
    return {name: torch.stack(values) for name, values in losses.items()}


def plain_matching(logits: torch.Tensor, boxes: torch.Tensor, truths: torch.Tensor) -> list[tuple[int, int]]:
    """(query, region) pairs at least cost, as DETR (two logits) and Deformable DETR (one) have it."""
    if logits.shape[-1] == 2:
        class_cost = -logits.softmax(-1)[:, 0]
    else:
        p = logits[:, 0].sigmoid()
        class_cost = -0.25 * (1 - p) ** 2 * (p + 1e-8).log() + 0.75 * p**2 * (1 - p + 1e-8).log()
        class_cost = 2 * class_cost
    cost = torch.zeros(len(boxes), len(truths), dtype=boxes.dtype)
    for query, box in enumerate(boxes):
        for region, truth in enumerate(truths):
            giou = generalized_box_iou(box_cxcywh_to_xyxy(box), box_cxcywh_to_xyxy(truth))
            cost[query, region] = class_cost[query] + 5 * (box - truth).abs().sum() - 2 * giou
    return list(zip(*(indices.tolist() for indices in linear_sum_assignment(cost.detach())), strict=True))


def plain_classification(logits: torch.Tensor, objects: torch.Tensor, num_boxes: int) -> torch.Tensor:
    """One logit: focal loss; two, "object" and "no object": cross entropy."""
    if logits.shape[-1] == 1:
        return sigmoid_focal_loss(logits[..., 0], objects.float(), alpha=0.25, gamma=2).sum() / num_boxes
    nll = -logits.log_softmax(-1)
    weights = objects + 0.1 * ~objects
    return (weights * torch.where(objects, nll[..., 0], nll[..., 1])).sum() / weights.sum()


@pytest.mark.parametrize("detr", DETRS)
def test_losses_equal_a_plain_implementation_in_float64(detr):
    model = build("detreg", detr, *SMALL).double()
    batch = rows_of(one_view_batch(3, 0, 8), slice(None))  # more regions than queries in the last
    assert outputs_of(model, batch)["pred_logits"].shape[-1] == (2 if detr == "vanilla" else 1)
    total, logs = model(batch)
    plain = plain_losses(model, batch)
    for name, value in plain.items():
        # The criterion computes in float32, and the folded batch norms are rounded to it.
        torch.testing.assert_close(logs[f"loss_{name}"].double(), value[-1], rtol=1e-6, atol=1e-6, msg=name)
    weights = {"ce": {"vanilla": 1, "dab": 1}.get(detr, 2), "bbox": 5, "giou": 2, "feature": 1}
    expected = sum(weights[name] * value.sum() for name, value in plain.items())
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_embedding_loss_is_the_last_layers_alone():
    """Other layers' outputs do not reach it: it is the same when they are exchanged for noise."""
    model, batch = build("detreg", "vanilla", *SMALL), one_view_batch(2, 3)
    decode = model.detector.decode

    def noisy(*inputs):
        decoded = decode(*inputs)
        first = torch.randn_like(decoded.hidden[:1])
        return replace(decoded, hidden=torch.cat([first, decoded.hidden[1:]]))

    _, logs = model(batch)
    model.detector.decode = noisy
    _, changed = model(batch)
    torch.testing.assert_close(changed["loss_feature"], logs["loss_feature"])
    without = build("detreg", "vanilla", *SMALL, "--no_feature_loss")
    assert "loss_feature" not in without(batch)[1]


@pytest.mark.parametrize("detr", DETRS)
def test_a_batch_without_any_region_trains(detr):
    model, batch = build("detreg", detr, *SMALL).train(), one_view_batch(0, 0)
    total, logs = model(batch)
    assert logs["loss_feature"] == logs["loss_bbox"] == 0
    total.backward()
    for name, parameter in model.named_parameters():
        if "backbone" not in name and "frozen" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_the_embedding_is_as_wide_as_layer2():
    model = build("detreg", "conditional", *SMALL)
    assert set(model.pretext_state_dict()) == {
        f"feature_embed.layers.{n}.{w}" for n in (0, 1) for w in ("weight", "bias")
    }
    assert model.feature_embed.layers[-1].out_features == 128  # ResNet-18; 512 in a ResNet-50
    assert build("detreg", "conditional", *SMALL, "--backbone", "resnet50").feature_embed.layers[-1].out_features == 512
    _, logs = build("detreg", "conditional", *SMALL, "--no_feature_loss")(one_view_batch(2, 2))
    assert "loss_feature" not in logs


def test_other_backbones_give_their_map_of_stride_8():
    pytest.importorskip("timm")
    model = build("detreg", "conditional", *SMALL, "--backbone", "timm:tf_efficientnet_lite0", "--feature_stride", "16")
    assert model.feature_embed.layers[-1].out_features == 40
    batch = one_view_batch(2, 1)
    total, _ = model(batch)
    assert total.isfinite()
    whole = build("detreg", "deformable", *SMALL, "--backbone", "timm:tf_efficientnet_lite0")
    whole.detector.backbone[0].body.load_state_dict(
        whole.detector.backbone[0].body.state_dict() | model.detector.backbone[0].body.state_dict()
    )
    finest = whole.detector.features(type(batch.images)(batch.crops, torch.zeros(3, 32, 32, dtype=torch.bool)))[0]
    encoded = model.frozen_encoder(type(batch.images)(batch.crops, torch.zeros(3, 32, 32, dtype=torch.bool)))[0]
    torch.testing.assert_close(encoded.tensors, finest.tensors, rtol=1e-4, atol=1e-4)
