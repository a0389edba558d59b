"""The Siamese wrapper against a plain two-pass implementation of the paper's equations, and by its properties."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import box_iou, roi_align

from datasets.pretext.two_view import TwoViewBatch
from models import PRETEXTS
from models.pretext import siamese
from models.pretext.losses import pool_views
from tests.gloo import run_processes
from tests.models.detectors import build as build_detector
from tests.models.detectors import queries_of_regions, without_gradient
from util.box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, generalized_box_iou
from util.nested_tensor import NestedTensor

DETRS = ["vanilla", "conditional", "deformable", "dab"]


def small_args(**changes) -> argparse.Namespace:
    args = {
        "detr": "conditional", "backbone": "resnet18", "dilation": False, "feature_stride": None,
        "position_embedding": "sine", "enc_layers": 1, "dec_layers": 2, "hidden_dim": 32, "nheads": 4,
        "dim_feedforward": 64, "dropout": 0.0, "num_queries": 6, "num_regions": 3, "query_jitter": 0.1,
        "no_feature_loss": False, "no_global_loss": False, "feature_loss_coef": 5.0, "global_loss_coef": 10.0,
        "matching": "free", "region_nms": None, "content_in": "query_pos", "contrast_loss_coef": 0.0,
        "content_dropout": 0.0,
        "set_cost_class": 1.0, "set_cost_bbox": 5.0, "set_cost_giou": 2.0,
        "cls_loss_coef": 1.0, "bbox_loss_coef": 5.0, "giou_loss_coef": 2.0, "eos_coef": 0.1,
        "num_feature_levels": 4 if changes.get("detr") == "deformable" else 1, "enc_n_points": 2, "dec_n_points": 2,
        "with_box_refine": False, "two_stage": False, "pre_norm": False,
    }  # fmt: skip
    return argparse.Namespace(**{**args, **changes})


def build(**changes) -> siamese.SiameseDETR:
    """A small wrapper whose zero-initialised and constant parameters are made random, so that errors show."""
    torch.manual_seed(0)
    args = small_args(**changes)
    detector = build_detector(args, siamese.NUM_CLASSES + 1, classification="softmax", train_backbone=False)
    for parameter in detector.parameters():
        if parameter.numel() > 1 and parameter.std() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return PRETEXTS["siamese"].build(args, detector)


def random_batch(batch_size: int = 2, num_regions: int = 3) -> TwoViewBatch:
    """Views of unequal sizes with regions inside them."""
    generator = torch.Generator().manual_seed(1)
    height, width = 96, 128
    size = torch.tensor([[96, 100], [64, 128], [80, 96], [96, 128]])[:batch_size]
    mask = torch.ones(batch_size, 2, height, width, dtype=torch.bool)
    for image, (h, w) in enumerate(size.tolist()):
        mask[image, :, :h, :w] = False
    views = torch.randn(batch_size, 2, 3, height, width, generator=generator).masked_fill(mask.unsqueeze(2), 0)
    centre = 0.3 + 0.4 * torch.rand(batch_size, 2, num_regions, 2, generator=generator)
    side = 0.2 + 0.3 * torch.rand(batch_size, 2, num_regions, 2, generator=generator)
    boxes = box_cxcywh_to_xyxy(torch.cat([centre, side], -1)) * size.flip(-1).repeat(1, 2)[:, None, None]
    crops = torch.randn(batch_size, 2, num_regions, 3, 32, 32, generator=generator)
    return TwoViewBatch(views=views, mask=mask, boxes=boxes, size=size, crops=crops)


def swap_views(batch: TwoViewBatch) -> TwoViewBatch:
    return TwoViewBatch(
        views=batch.views.flip(1), mask=batch.mask.flip(1), boxes=batch.boxes.flip(1), size=batch.size,
        crops=batch.crops.flip(1),
    )  # fmt: skip


def plain_direction(model, batch: TwoViewBatch, source: int, target: int):
    """Losses [L] a term for queries of view ``source`` seen in view ``target``, image by image and layer by layer,
    and the encoded target view pooled."""
    detector, backbone = model.detector, model.detector.backbone[0]
    num_images, num_regions = batch.boxes.shape[0], batch.boxes.shape[2]

    def view(index):
        return NestedTensor(batch.views[:, index], batch.mask[:, index])

    with torch.no_grad():
        regions, wanted = [], []
        for level, stride in enumerate(backbone.strides):
            own = backbone(view(source))[level].tensors
            regions.append(torch.stack([
                roi_align(own[i : i + 1], [batch.boxes[i, source]], 7, 1 / stride, -1).mean((2, 3))
                for i in range(num_images)
            ]))  # fmt: skip
            crops = [backbone(NestedTensor(c, torch.zeros(len(c), 32, 32, dtype=torch.bool)))[level].tensors
                     for c in batch.crops[:, source]]  # fmt: skip
            wanted.append(torch.stack([c.mean((2, 3)) for c in crops]))
        regions, wanted = torch.cat(regions, -1), torch.cat(wanted, -1)
        seen = backbone(view(target))
    repeated = model.patch2query(regions).repeat_interleave(len(detector.query_embed.weight) // num_regions, 1)
    queries = queries_of_regions(detector.query_embed.weight.repeat(num_images, 1, 1), repeated)
    memory = detector.encode(seen, batch.mask[:, target])
    decoded = detector.decode(memory, queries)
    outputs = detector.predict(decoded)

    scale = batch.size.flip(-1).repeat(1, 2)
    losses = {name: [] for name in ("ce", "bbox", "giou", "feature")}
    for layer, (logits, boxes) in enumerate(zip(outputs["pred_logits"], outputs["pred_boxes"], strict=True)):
        targets = [
            {
                "labels": torch.ones(num_regions, dtype=torch.int64),
                "boxes": box_xyxy_to_cxcywh(batch.boxes[i, target]) / scale[i],
            }
            for i in range(num_images)
        ]
        one_layer = {"pred_logits": logits[None], "pred_boxes": boxes[None]}
        found = model.criterion.matcher(one_layer, targets)
        terms = dict.fromkeys(losses, 0.0)
        classes = torch.full(logits.shape[:2], 2)
        classes[found.image, found.query] = 1
        for image, query, region in zip(found.image, found.query, found.target, strict=True):
            box, truth = boxes[image, query], targets[image]["boxes"][region]
            terms["bbox"] += (box - truth).abs().sum()
            terms["giou"] += 1 - generalized_box_iou(box_cxcywh_to_xyxy(box), box_cxcywh_to_xyxy(truth))
            guess = F.normalize(model.feature_align(decoded.hidden[layer, image, query]), dim=0)
            terms["feature"] += (guess - F.normalize(wanted[image, region], dim=0)).square().sum()
        for name in ("bbox", "giou", "feature"):
            losses[name].append(terms[name] / (num_images * num_regions))
        losses["ce"].append(F.cross_entropy(logits.flatten(0, 1), classes.flatten(), torch.tensor([1.0, 1.0, 0.1])))
    pooled, start = [], 0
    for height, width in memory.shapes[: len(backbone.strides)]:
        level = slice(start, start + height * width)
        start = level.stop
        pooled.append(torch.stack([memory.tokens[i, level][~memory.mask[i, level]].mean(0) for i in range(num_images)]))
    pooled = torch.cat(pooled, -1)
    return {name: torch.stack(values) for name, values in losses.items()}, pooled


@pytest.mark.parametrize("detr", DETRS)
def test_one_batch_equals_two_plain_passes(detr):
    model, batch = build(detr=detr).eval(), random_batch()
    total, logs = model(batch)
    first, pooled2 = plain_direction(model, batch, source=0, target=1)
    second, pooled1 = plain_direction(model, batch, source=1, target=0)
    mean = {name: 0.5 * (first[name] + second[name]) for name in first}
    for name, value in mean.items():
        torch.testing.assert_close(logs[f"loss_{name}"], value[-1], rtol=1e-4, atol=1e-5)
    weights = {"ce": 1, "bbox": 5, "giou": 2, "feature": 5}
    expected = sum(weights[name] * value.sum() for name, value in mean.items())
    expected = expected + 10 * model.global_head(pooled1, pooled2)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("detr", DETRS)
def test_swapping_the_views_leaves_the_loss(detr):
    model, batch = build(detr=detr).eval(), random_batch()
    (total, logs), (swapped_total, swapped_logs) = model(batch), model(swap_views(batch))
    torch.testing.assert_close(swapped_total, total, rtol=1e-5, atol=1e-5)
    for name, value in logs.items():
        torch.testing.assert_close(swapped_logs[name], value, rtol=1e-5, atol=1e-5, msg=name)
    regions, other = model.region_features, siamese.other_view
    images, boxes, sizes = siamese.flatten_views(batch)
    swapped = siamese.flatten_views(swap_views(batch))
    features = model.frozen_backbone(images)
    torch.testing.assert_close(
        regions(model.frozen_backbone(swapped[0]), *swapped[1:]), other(regions(features, boxes, sizes)),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("detr", DETRS)
@pytest.mark.parametrize("off", [(), ("no_feature_loss",), ("no_global_loss",), ("no_feature_loss", "no_global_loss")])
def test_gradients_reach_everything_but_the_backbone(detr, off):
    model = build(detr=detr, **dict.fromkeys(off, True)).train()
    total, logs = model(random_batch())
    total.backward()
    assert ("loss_feature" in logs) == ("no_feature_loss" not in off)
    assert ("loss_global" in logs) == ("no_global_loss" not in off)
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            # nor does a bias do anything in front of a batch norm
            blind = without_gradient(name.removeprefix("detector.transformer.")) or (
                name.startswith("global_head.") and name.endswith("bias") and not name.endswith("predictor.3.bias")
            )
            assert blind or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("detr", DETRS)
def test_queries_differ_between_the_images_of_a_batch(detr):
    model, batch = build(detr=detr).eval(), random_batch()
    images, boxes, sizes = siamese.flatten_views(batch)
    queries = model.region_queries(model.region_features(model.frozen_backbone(images), boxes, sizes))
    learned = model.detector.query_embed.weight.expand(4, -1, -1)
    content = queries[..., 4:] if detr == "dab" else queries[..., :32] - learned[..., :32]
    torch.testing.assert_close(queries, queries_of_regions(learned, content))
    # each region fills Q/R consecutive queries
    torch.testing.assert_close(content[:, 0], content[:, 1])
    assert (content[:, 1] - content[:, 2]).abs().max() > 1e-3
    assert (content[0] - content[1]).abs().max() > 1e-3


@pytest.mark.parametrize("detr", DETRS)
def test_every_image_is_asked_for_its_own_regions(detr):
    """Other regions in image 0 change the losses of a batch by what they change for image 0 alone."""
    model = build(detr=detr, no_global_loss=True).eval()
    batch, other = random_batch(), random_batch()
    other.boxes[0, 0] += 8
    images, boxes, sizes = siamese.flatten_views(batch)
    features = model.frozen_backbone(images)
    memory = model.detector.encode(features, images.mask)

    def hidden(boxes):
        queries = siamese.other_view(model.region_queries(model.region_features(features, boxes, sizes)))
        return model.detector.decode(memory, queries).hidden

    # entry 0 is view 1 of image 0: its regions are looked for in entry 2, view 2 of that image
    difference = hidden(siamese.flatten_views(other)[1]) - hidden(boxes)
    changed = difference.abs().amax(dim=(0, 2, 3)) > 1e-6
    assert changed.tolist() == [False, False, True, False]


def test_whatever_stands_in_the_padding_of_the_features_changes_nothing():
    model, batch = build().eval(), random_batch()
    images, _, _ = siamese.flatten_views(batch)
    features = model.frozen_backbone(images)
    clean = model.detector.encode(features, images.mask)
    assert features[0].mask.any()
    dirty = [NestedTensor(f.tensors.masked_fill(f.mask.unsqueeze(1), 1e3), f.mask) for f in features]
    stained = model.detector.encode(dirty, images.mask)
    valid = ~clean.mask
    torch.testing.assert_close(stained.tokens[valid], clean.tokens[valid], rtol=0, atol=1e-5)
    torch.testing.assert_close(pool_views(stained, 1), pool_views(clean, 1), rtol=0, atol=1e-5)


def test_jitter_stays_within_its_bounds_and_the_view():
    boxes = torch.tensor([[[10.0, 20.0, 50.0, 80.0], [0.0, 0.0, 100.0, 96.0]]]).expand(500, -1, -1)
    sizes = torch.tensor([[96, 100]]).expand(500, -1)
    moved = siamese.jitter_boxes(boxes, sizes, 0.1)
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    assert ((moved - boxes).abs() <= 0.1 * sides + 1e-4).all()
    assert (moved - boxes)[:, 0].abs().amax(0).gt(0.06 * sides[0, 0]).all(), "it moves"
    assert moved.min() >= 0
    assert (moved[..., 2] <= 100).all()
    assert (moved[..., 3] <= 96).all()


def test_jitter_moves_queries_in_training_only_and_never_targets():
    model, batch = build(), random_batch()
    images, boxes, sizes = siamese.flatten_views(batch)
    features = model.frozen_backbone(images)
    model.train()
    assert not torch.equal(model.region_features(features, boxes, sizes), model.region_features(features, boxes, sizes))
    model.eval()
    assert torch.equal(model.region_features(features, boxes, sizes), model.region_features(features, boxes, sizes))


def test_targets_are_normalised_by_the_views_own_size():
    boxes = torch.tensor([[[10.0, 20.0, 30.0, 60.0]]])
    (target,) = siamese.region_targets(boxes, torch.tensor([[80, 100]]))
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.2, 0.5, 0.2, 0.5]]))
    assert target["labels"].tolist() == [siamese.REGION_LABEL]


def test_pretext_state_is_what_the_detector_has_not():
    model = build()
    names = model.pretext_state_dict()
    assert {name.split(".")[0] for name in names} == {"patch2query", "feature_align", "global_head"}
    other = build()
    for value in other.pretext_state_dict().values():
        value.data.zero_()
    other.load_pretext_state_dict(names)
    assert all(torch.equal(value, names[name]) for name, value in other.pretext_state_dict().items())
    with pytest.raises(KeyError, match="global_head"):
        build(no_global_loss=True).load_pretext_state_dict(names)


def _gradients(rows: slice, detr: str, parallel: bool) -> dict[str, torch.Tensor]:
    """Gradients for some images of a batch of 4, in float64: an untrained network pools all images to nearly the same
    vector, so that the batch norms of the global head amplify every rounding error."""
    batch = TwoViewBatch(**{
        name: value[rows].double() if value.is_floating_point() else value[rows]
        for name, value in vars(random_batch(4)).items()
    })  # fmt: skip
    model = build(detr=detr, query_jitter=0.0).double().train()
    trained = DistributedDataParallel(model) if parallel else model
    trained(batch)[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _half_batch(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    return {detr: _gradients(slice(2 * rank, 2 * rank + 2), detr, parallel=True) for detr in DETRS}


def test_two_processes_give_the_gradients_of_the_whole_batch():
    halves = run_processes(_half_batch)
    for detr in DETRS:
        whole = _gradients(slice(0, 4), detr, parallel=False)
        for half in halves:
            assert half[detr].keys() == whole.keys()
            for name, gradient in whole.items():
                torch.testing.assert_close(half[detr][name], gradient, rtol=1e-5, atol=1e-6, msg=f"{detr} {name}")


FAST = {"matching": "own", "content_in": "tgt", "contrast_loss_coef": 0.5}


@pytest.mark.parametrize("detr", DETRS)
def test_content_in_what_the_decoder_starts_with(detr):
    """The positions stay the learned ones, and content 0 decodes as the learned queries do."""
    model, batch = build(detr=detr, content_in="tgt").eval(), random_batch()
    views = model.extract_features(batch)
    queries = model.region_queries(views.regions)
    learned = model.detector.queries(4)
    positions = 4 if detr == "dab" else 32
    assert queries.shape == (4, 6, positions + 32)
    assert torch.equal(queries[..., :positions], learned[..., :positions])
    start = queries[..., positions:] - (learned[..., positions:] if detr == "deformable" else 0)
    torch.testing.assert_close(start, model.patch2query(views.regions).repeat_interleave(2, dim=1))
    memory = model.detector.encode(views.features, views.mask)
    empty = model.detector.with_content(learned, torch.zeros(4, 6, 32), "tgt")
    assert torch.equal(model.detector.decode(memory, empty).hidden, model.detector.decode(memory, learned).hidden)
    moved = model.detector.decode(memory, queries).hidden - model.detector.decode(memory, learned).hidden
    assert moved.abs().amax(dim=(1, 2, 3)).min() > 1e-3, "it reaches every layer"


@pytest.mark.parametrize("content_in", ["tgt", "query_pos"])
def test_queries_that_are_told_nothing_are_the_detectors_own(content_in):
    """Where view 0 of image 1 (entry 1 of 4) is not told, its partner (entry 3) gives no content to its queries."""
    model, batch = build(content_in=content_in).eval(), random_batch()
    views = model.extract_features(batch)
    told = torch.tensor([True, False, True, True])
    _, decoded, _ = model.predict(views, told)
    _, all_told, _ = model.predict(views)
    memory = model.detector.encode(views.features, views.mask)
    empty = model.detector.with_content(model.detector.queries(4), torch.zeros(4, 6, 32), content_in)
    alone = model.detector.decode(memory, empty).hidden
    for entry in range(4):
        expected = all_told.hidden if told[entry] else alone
        torch.testing.assert_close(decoded.hidden[:, entry], expected[:, entry])


def test_a_share_of_the_views_is_told_nothing_in_training_alone():
    model, num_views = build(content_dropout=0.25), 4000
    torch.manual_seed(0)
    assert model.train().draw_told(num_views).float().mean() == pytest.approx(0.75, abs=0.03)
    assert model.eval().draw_told(num_views) is None
    assert build().train().draw_told(num_views) is None
    loss, _ = model.train()(random_batch())
    assert loss.isfinite()


@pytest.mark.parametrize("detr", DETRS)
def test_the_parts_of_the_fast_recipe_add_up(detr):
    """Own matching: the matched queries of region i are of group i. The contrastive loss is added with its weight."""
    model, batch = build(detr=detr, **FAST).eval(), random_batch()
    found = []
    model.criterion.matcher.register_forward_hook(lambda module, inputs, matching: found.append(matching))
    total, _ = model(batch)
    assert torch.equal(found[0].query // 2, found[0].target)
    plain = build(detr=detr, **{**FAST, "contrast_loss_coef": 0.0}).eval()
    without, _ = plain(batch)
    views = model.extract_features(batch)
    _, decoded, _ = model.predict(views)
    wanted = F.normalize(siamese.other_view(views.crops), dim=-1)
    contrast = 0
    for hidden, query in zip(decoded.hidden, found[0].query.view(2, 4, 3), strict=True):
        chosen = torch.stack([of_view[rows] for of_view, rows in zip(hidden, query, strict=True)])
        cosines = torch.einsum("nrk,nsk->nrs", F.normalize(model.feature_align(chosen), dim=-1), wanted)
        contrast += F.cross_entropy(cosines.flatten(0, 1) / 0.1, torch.arange(3).repeat(4))
    torch.testing.assert_close(total - without, 0.5 * contrast, rtol=1e-3, atol=1e-3)
    total.backward()
    assert model.patch2query.weight.grad.abs().max() > 0


def test_measuring_asks_each_view_for_the_regions_of_its_partner():
    """A detector that answers every query with the right box is perfect."""
    model, batch = build().eval(), random_batch()
    views = model.extract_features(batch)
    right = torch.stack([target["boxes"] for target in siamese.region_targets(views.boxes, views.sizes)])
    predict = model.detector.predict

    def perfect(decoded):
        boxes = right.repeat_interleave(2, dim=1).expand(2, -1, -1, -1)
        return predict(decoded) | {"pred_boxes": boxes}

    model.detector.predict = perfect
    with torch.no_grad():
        values = model.measure(batch)
    assert {name: value.shape for name, value in values.items()} == dict.fromkeys(values, (2, 4 * 2))
    assert values["recall"].min() == values["best_recall"].min() == 1
    torch.testing.assert_close(values["matched_iou"], torch.ones(2, 8))
    torch.testing.assert_close(values["others_iou"], values["chance_iou"])
    places = (views.boxes / views.sizes.flip(-1).repeat(1, 2)[:, None])[:, 1:]
    stay = [box_iou(a, b).diagonal() for a, b in zip(places, places.roll(2, 0), strict=True)]
    torch.testing.assert_close(values["stay_iou"][0], torch.cat(stay))
