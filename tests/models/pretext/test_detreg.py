"""DETReg against a plain implementation, and with any number of regions."""

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from tests.models.pretext.cases import DETRS, build, one_view_batch, outputs_of
from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou

SMALL = ["--num_queries", "6"]


def layer2_mean(backbone, crop: torch.Tensor) -> torch.Tensor:
    """The ResNet's layer2 of one crop [3, s, s], averaged: [E]."""
    body = backbone.body
    x = body["maxpool"](body["relu"](body["bn1"](body["conv1"](crop[None]))))
    return body["layer2"](body["layer1"](x)).mean((2, 3))[0]


def plain_losses(model, batch) -> dict[str, torch.Tensor]:
    """Losses [L] a term, layer by layer, pair by pair."""
    detector = model.detector
    crops = batch.crops.split([len(boxes) for boxes in batch.boxes])
    decoded = detector.decode(
        detector.encode(detector.features(batch.images), batch.images.mask), detector.queries(len(batch))
    )
    outputs = detector.predict(decoded)
    losses = {name: [] for name in ("ce", "bbox", "giou", "feature")}
    num_boxes = sum(map(len, batch.boxes))
    for layer, (logits, boxes) in enumerate(zip(outputs["pred_logits"], outputs["pred_boxes"], strict=True)):
        targets = [{"labels": torch.zeros(len(own), dtype=torch.int64), "boxes": own} for own in batch.boxes]
        found = model.criterion.matcher({"pred_logits": logits[None], "pred_boxes": boxes[None]}, targets)
        objects = torch.zeros(logits.shape[:2], dtype=torch.bool)
        objects[found.image, found.query] = True
        terms = {"bbox": 0.0, "giou": 0.0}
        distances = []
        for image, query, region in zip(found.image, found.query, found.target, strict=True):
            box, truth = boxes[image, query], batch.boxes[image][region]
            terms["bbox"] += (box - truth).abs().sum() / num_boxes
            terms["giou"] += (1 - generalized_box_iou(box_cxcywh_to_xyxy(box), box_cxcywh_to_xyxy(truth))) / num_boxes
            guess = model.feature_embed(decoded.hidden[layer, image, query])
            with torch.no_grad():
                wanted = layer2_mean(detector.backbone[0], crops[image][region])
            distances.append((guess - wanted).abs().mean())
        for name, value in terms.items():
            losses[name].append(value)
        losses["feature"].append(torch.stack(distances).mean())
        losses["ce"].append(plain_classification(logits, objects, num_boxes))
    return {name: torch.stack(values) for name, values in losses.items()}


def plain_classification(logits: torch.Tensor, objects: torch.Tensor, num_boxes: int) -> torch.Tensor:
    """One logit: focal loss; two, "object" and "no object": cross entropy."""
    if logits.shape[-1] == 1:
        return sigmoid_focal_loss(logits[..., 0], objects.float(), alpha=0.25, gamma=2).sum() / num_boxes
    nll = -logits.log_softmax(-1)
    weights = objects + 0.1 * ~objects
    return (weights * torch.where(objects, nll[..., 0], nll[..., 1])).sum() / weights.sum()


@pytest.mark.parametrize("detr", DETRS)
def test_losses_equal_a_plain_implementation(detr):
    model, batch = build("detreg", detr, *SMALL), one_view_batch(3, 0, 8)  # more regions than queries in the last
    assert outputs_of(model, batch)["pred_logits"].shape[-1] == (2 if detr == "vanilla" else 1)
    total, logs = model(batch)
    plain = plain_losses(model, batch)
    for name, value in plain.items():
        torch.testing.assert_close(logs[f"loss_{name}"], value[-1], rtol=1e-4, atol=1e-5, msg=name)
    weights = {"ce": 1 if detr == "vanilla" else 2, "bbox": 5, "giou": 2, "feature": 1}
    expected = sum(weights[name] * value.sum() for name, value in plain.items())
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


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
