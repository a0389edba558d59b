"""UP-DETR: its attention mask by perturbation, its losses against a plain implementation, its queries."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models.pretext.base import NUM_CLASSES, REGION_LABEL
from tests.models.detectors import queries_of_regions
from tests.models.pretext.cases import DETRS, build, one_view_batch, outputs_of
from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from util.nested_tensor import NestedTensor

SMALL = ["--num_queries", "6", "--num_regions", "3"]


@pytest.mark.parametrize("num_queries", [100, 300])
@pytest.mark.parametrize("detr", DETRS)
def test_queries_of_different_patches_do_not_influence_each_other(detr, num_queries):
    model = build("updetr", detr, "--num_queries", str(num_queries))
    batch = one_view_batch(10, 10)
    crops = batch.crops.clone()
    crops[3] = 2 * crops[3].flip(-1) + 1  # patch 3 of image 0
    changed = dataclasses.replace(batch, crops=crops)

    def movement() -> torch.Tensor:
        """How far each patch's outputs move in any layer: [B, R]."""
        before, after = outputs_of(model, batch), outputs_of(model, changed)
        moved = [(after[name] - before[name]).abs().amax((0, -1)) for name in ("pred_logits", "pred_boxes")]
        return torch.maximum(*moved).unflatten(1, (10, num_queries // 10)).amax(-1)

    moved = movement()
    assert moved[0, 3] > 1e-3
    moved[0, 3] = 0
    assert moved.max() < 1e-6
    model.query_mask.zero_()
    assert (movement()[0] > 1e-6).all(), "without the mask all queries of the image see the patch"


def plain_losses(model, batch) -> dict[str, torch.Tensor]:
    """Losses [L] a term, image by image, layer by layer, pair by pair."""
    detector, num_regions = model.detector, model.num_regions
    with torch.no_grad():
        features = detector.features(batch.images)
        patches = []
        for crop in batch.crops:
            maps = detector.features(NestedTensor(crop[None], torch.zeros(1, 32, 32, dtype=torch.bool)))
            patches.append(torch.cat([level.tensors.mean((2, 3)) for level in maps], dim=1)[0])
    patches = torch.stack(patches).unflatten(0, (-1, num_regions))
    learned = detector.query_embed.weight.repeat(len(batch), 1, 1)
    each = learned.shape[1] // num_regions
    contents = [model.patch2query(patches[:, query // each]) for query in range(learned.shape[1])]
    queries = queries_of_regions(learned, torch.stack(contents, dim=1))
    mask = torch.ones(queries.shape[1], queries.shape[1], dtype=torch.bool)
    for patch in range(num_regions):
        mask[patch * each : (patch + 1) * each, patch * each : (patch + 1) * each] = False
    decoded = detector.decode(detector.encode(features, batch.images.mask), queries, mask)
    outputs = detector.predict(decoded)

    losses = {name: [] for name in ("ce", "bbox", "giou", "feature")}
    for layer, (logits, boxes) in enumerate(zip(outputs["pred_logits"], outputs["pred_boxes"], strict=True)):
        targets = [{"labels": torch.full((num_regions,), REGION_LABEL), "boxes": own} for own in batch.boxes]
        found = model.criterion.matcher({"pred_logits": logits[None], "pred_boxes": boxes[None]}, targets)
        classes = torch.full(logits.shape[:2], NUM_CLASSES)
        classes[found.image, found.query] = REGION_LABEL
        terms = {"bbox": 0.0, "giou": 0.0, "feature": 0.0}
        for image, query, region in zip(found.image, found.query, found.target, strict=True):
            box, truth = boxes[image, query], batch.boxes[image][region]
            terms["bbox"] += (box - truth).abs().sum()
            terms["giou"] += 1 - generalized_box_iou(box_cxcywh_to_xyxy(box), box_cxcywh_to_xyxy(truth))
            guess = F.normalize(model.feature_align(decoded.hidden[layer, image, query]), dim=0)
            terms["feature"] += (guess - F.normalize(patches[image, region], dim=0)).square().sum()
        for name, value in terms.items():
            losses[name].append(value / (len(batch) * num_regions))
        losses["ce"].append(F.cross_entropy(logits.flatten(0, 1), classes.flatten(), torch.tensor([1.0, 1.0, 0.1])))
    return {name: torch.stack(values) for name, values in losses.items()}


@pytest.mark.parametrize("detr", DETRS)
def test_losses_equal_a_plain_implementation(detr):
    model, batch = build("updetr", detr, *SMALL), one_view_batch(3, 3)
    total, logs = model(batch)
    plain = plain_losses(model, batch)
    for name, value in plain.items():
        torch.testing.assert_close(logs[f"loss_{name}"], value[-1], rtol=1e-4, atol=1e-5)
    weights = {"ce": 1, "bbox": 5, "giou": 2, "feature": 1}
    expected = sum(weights[name] * value.sum() for name, value in plain.items())
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


def test_a_share_of_the_queries_is_not_told_its_patch():
    model = build("updetr", "conditional", "--num_queries", "300", "--patch_dropout", "0.1")
    patches = torch.randn(8, 10, 512)
    learned = model.detector.query_embed.weight

    def untold(queries):
        return (queries == learned).all(-1).float()

    assert not untold(model.patch_queries(patches)).any(), "all of them know it in evaluation"
    dropped = untold(model.train().patch_queries(patches))
    assert 0.07 < dropped.mean() < 0.13  # 2400 draws: a standard deviation of 0.006
    assert (dropped[0] != dropped[1]).any()


@pytest.mark.parametrize("detr", ["conditional", "deformable"])
def test_shuffled_queries_meet_other_patches(detr):
    model = build("updetr", detr, *SMALL, "--shuffle_queries", "--patch_dropout", "0")
    patches = torch.randn(2, 3, model.patch2query.in_features)
    learned = model.detector.query_embed.weight
    content = F.pad(model.patch2query(patches), (0, learned.shape[1] - 32)).repeat_interleave(2, dim=1)
    torch.testing.assert_close(model.patch_queries(patches), learned + content)
    model.train()
    seen = set()
    for _ in range(8):
        own = model.patch_queries(patches) - content
        torch.testing.assert_close(own[0], own[1], rtol=0, atol=1e-5)
        order = torch.cdist(own[0], learned).argmin(1)
        torch.testing.assert_close(own[0], learned[order], rtol=0, atol=1e-5)
        assert order.sort().values.tolist() == list(range(6))
        seen.add(tuple(order.tolist()))
    assert len(seen) > 1


@pytest.mark.parametrize("off", [False, True])
def test_pretext_state_is_what_the_detector_has_not(off):
    model = build("updetr", "vanilla", *SMALL, *(["--no_feature_loss"] if off else []))
    heads = {name.split(".")[0] for name in model.pretext_state_dict()}
    assert heads == ({"patch2query"} if off else {"patch2query", "feature_align"})
    _, logs = model(one_view_batch(3, 3))
    assert ("loss_feature" in logs) != off
