"""What Deformable DETR has beyond the other detectors; agreement with transformers is in test_hf_oracle.py."""

import pytest
import torch
from torch import Tensor

from models.criterion import SetCriterion
from models.deformable_transformer import DeformableTransformer
from models.detr import DETR
from models.layers import inverse_sigmoid
from models.matcher import HungarianMatcher
from models.supervised import SupervisedDETR
from ops.module import Levels, MSDeformAttn
from tests.models.detection_case import random_targets
from tests.models.detectors import (
    NUM_LOGITS,
    build,
    randomize,
    small_args,
    small_config,
    small_detector,
    unequal_images,
    without_gradient,
)

VARIANTS = {
    "multi-scale": {},
    "single-scale": {"num_feature_levels": 1},
    "refine": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
}
SHAPES = [(6, 8), (3, 4), (2, 2)]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict:
    return VARIANTS[request.param]


def new_detector(**changes: object) -> DETR:
    return build(small_args("deformable", **changes), NUM_LOGITS)


def supervised(detector: DETR) -> SupervisedDETR:
    matcher = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, classification="focal")
    weights = {"weight_ce": 2, "weight_bbox": 5, "weight_giou": 2}
    criterion = SetCriterion(num_logits=NUM_LOGITS, matcher=matcher, classification="focal", **weights)
    return SupervisedDETR(detector=detector, criterion=criterion)


def test_inverse_sigmoid_inverts_up_to_its_limit() -> None:
    logits = torch.tensor([-3.0, 0.0, 2.0])
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits)
    limit = torch.tensor(1e5).log()
    torch.testing.assert_close(inverse_sigmoid(torch.tensor([0.0, 1.0])), torch.stack([-limit, limit]))


def test_a_new_attention_looks_in_all_directions() -> None:
    """Four heads: right, down, left, up; the second point lies two pixels away."""
    attention = MSDeformAttn(d_model=8, nhead=4, num_levels=3, num_points=2)
    offsets = attention.sampling_offsets(torch.randn(8)).view(4, 3, 2, 2)
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for point in range(2):
        expected = (point + 1) * directions[:, None].expand(-1, 3, -1)
        torch.testing.assert_close(offsets[:, :, point], expected, atol=1e-6, rtol=0)
    assert not attention.attention_weights(torch.randn(8)).any()


def test_new_weights_of_a_transformer_keep_the_attentions_own() -> None:
    for module in new_detector().modules():
        if isinstance(module, MSDeformAttn):
            assert not module.sampling_offsets.weight.any()
            assert module.sampling_offsets.bias.abs().max() == module.num_points


def test_new_box_heads(variant: dict) -> None:
    """Sizes start small; with refinement only in the first layer, and proposals already have a size."""
    refines, two_stage = "with_box_refine" in variant, "two_stage" in variant
    sizes = [0] * 4 if two_stage else [-2, 0, 0] if refines else [-2] * 3
    detector = new_detector(**variant)
    assert [head.layers[-1].bias.tolist() for head in detector.bbox_embed] == [[0, 0, size, size] for size in sizes]
    for heads in (detector.bbox_embed, detector.class_embed):
        assert len(set(map(id, heads))) == (len(sizes) if refines else 1)
    assert detector.transformer.decoder.bbox_embed is (detector.bbox_embed if refines else None)
    assert detector.transformer.decoder.class_embed is (detector.class_embed if two_stage else None)
    for head in detector.class_embed:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((NUM_LOGITS,), 0.01))


def test_new_detector_predicts_small_boxes_around_its_reference_points() -> None:
    detector = new_detector().eval()
    boxes = detector(unequal_images((64, 96)))["pred_boxes"]
    position, _ = detector.query_embed.weight.chunk(2, dim=1)
    centres = detector.transformer.reference_points(position).sigmoid()
    torch.testing.assert_close(boxes[..., :2], centres.expand(3, 1, 7, 2))
    torch.testing.assert_close(boxes[..., 2:], torch.tensor(-2.0).sigmoid().expand(3, 1, 7, 2))


def test_the_extra_level_has_the_mask_of_the_images() -> None:
    detector = small_detector("deformable")
    images = unequal_images((64, 200), (130, 72))
    levels = detector.input_proj(detector.features(images), images.mask)
    assert [tuple(level.mask.shape[1:]) for level in levels] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    # Row i of 3 over 130 pixels is pixel int(i * 130 / 3): 0, 43, 86; column j of 4 over 200 pixels is 50 j.
    rows, columns = torch.tensor([0, 43, 86]), torch.tensor([0, 50, 100, 150])
    assert torch.equal(levels[-1].mask, images.mask[:, rows][:, :, columns])


def multi_level_input() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Maps, masks and positions of two images on three levels; the second image fills half of each."""
    maps, masks, positions = [], [], []
    for height, width in SHAPES:
        level, pos = torch.randn(2, 2, 32, height, width, dtype=torch.float64)
        mask = torch.zeros(2, height, width, dtype=torch.bool)
        mask[1, :, width // 2 :] = True
        maps.append(level)
        masks.append(mask)
        positions.append(pos)
    return maps, masks, positions


def multi_level_transformer() -> DeformableTransformer:
    config = small_config(d_model=32, dim_feedforward=48)
    transformer = DeformableTransformer(config, num_levels=len(SHAPES), enc_n_points=3, dec_n_points=2)
    randomize(transformer)
    return transformer.double()


@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_padding_of_several_levels_changes_neither_outputs_nor_gradients(garbage: float) -> None:
    transformer = multi_level_transformer()
    maps, masks, positions = multi_level_input()
    queries = torch.randn(2, 5, 64, dtype=torch.float64)
    results = []
    for filling in (0.0, garbage):
        spoilt = [torch.where(mask[:, None], filling, level) for level, mask in zip(maps, masks, strict=True)]
        memory = transformer.encode(spoilt, masks, positions)
        assert memory.shapes == SHAPES
        hidden = transformer.decode(memory, queries).hidden
        gradients = torch.autograd.grad(hidden[-1].sum(), list(transformer.parameters()), allow_unused=True)
        results.append([hidden, *(gradient for gradient in gradients if gradient is not None)])
    for clean, other in zip(*results, strict=True):
        torch.testing.assert_close(other, clean, atol=1e-9, rtol=0)


def test_every_level_matters() -> None:
    transformer = multi_level_transformer()
    maps, masks, positions = multi_level_input()
    queries = torch.randn(2, 5, 64, dtype=torch.float64)
    plain = transformer.decode(transformer.encode(maps, masks, positions), queries).hidden[-1]
    for index in range(len(SHAPES)):
        changed = [level + 1 if number == index else level for number, level in enumerate(maps)]
        other = transformer.decode(transformer.encode(changed, masks, positions), queries).hidden[-1]
        assert (other - plain).abs().amax(dim=(1, 2)).min() > 1e-3


def test_refinement_sends_no_gradient_from_layer_to_layer() -> None:
    detector = small_detector("deformable", with_box_refine=True)
    boxes = detector(unequal_images((64, 96)))["pred_boxes"]
    for layer in range(3):
        parameters = [head.layers[-1].bias for head in detector.bbox_embed]
        gradients = torch.autograd.grad(boxes[layer].sum(), parameters, retain_graph=True, allow_unused=True)
        reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        assert reached == [index == layer for index in range(3)]


def test_refined_references_are_the_boxes_of_the_layer_before() -> None:
    detector = small_detector("deformable", with_box_refine=True)
    images = unequal_images((64, 96))
    memory = detector.encode(detector.features(images), images.mask)
    decoded = detector.decode(memory, detector.queries(1))
    boxes = detector.predict(decoded)["pred_boxes"]
    torch.testing.assert_close(decoded.reference[1:].sigmoid(), boxes[:-1], atol=1e-5, rtol=0)
    assert not decoded.reference[0, ..., 2:].any()


def test_training_reaches_every_parameter(variant: dict) -> None:
    method = supervised(small_detector("deformable", **variant)).train()
    images = unequal_images((96, 96), (64, 128))
    loss, logs = method((images, random_targets([3, 1], NUM_LOGITS)))
    loss.backward()
    assert ("loss_enc_giou" in logs) == ("two_stage" in variant)
    for name, parameter in method.detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            if not without_gradient(name.removeprefix("transformer.")):
                assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("counts", [[3, 1], [0, 0]])
def test_training_under_autocast_is_finite(variant: dict, counts: list[int]) -> None:
    method = supervised(small_detector("deformable", dropout=0.1, **variant)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method((unequal_images((96, 96), (64, 128)), random_targets(counts, NUM_LOGITS)))
    loss.backward()
    for name, parameter in method.detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name  # or processes would wait for each other
            assert parameter.grad.isfinite().all(), name


def test_two_stages_make_no_more_queries_than_there_are_positions() -> None:
    detector = small_detector("deformable", num_queries=100, with_box_refine=True, two_stage=True)
    assert detector.queries(1) is None
    outputs = detector(unequal_images((40, 72)))
    positions = 5 * 9 + 3 * 5 + 2 * 3 + 1 * 2
    assert outputs["enc_outputs"]["pred_logits"].shape == (1, 1, positions, NUM_LOGITS)
    assert outputs["pred_boxes"].shape == (3, 1, positions, 4)


def test_proposals_lie_where_their_positions_are() -> None:
    """With a box head of zeros; positions near the border and the padding propose nothing."""
    detector = small_detector("deformable", with_box_refine=True, two_stage=True)
    last = detector.bbox_embed[-1].layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    boxes = detector(unequal_images((64, 128), (64, 64)))["enc_outputs"]["pred_boxes"][0]
    finest = boxes[:, : 8 * 16].unflatten(1, (8, 16))
    torch.testing.assert_close(finest[0, 2, 5], torch.tensor([5.5 / 16, 2.5 / 8, 0.05, 0.05]))
    torch.testing.assert_close(finest[1, 2, 5], torch.tensor([5.5 / 8, 2.5 / 8, 0.05, 0.05]))
    assert (finest[1, :, 8:] == 1).all()
    coarser = boxes[0, 8 * 16 : 8 * 16 + 4 * 8].unflatten(0, (4, 8))
    torch.testing.assert_close(coarser[1, 1], torch.tensor([1.5 / 8, 1.5 / 4, 0.1, 0.1]))


def test_the_layer_takes_an_empty_batch():
    layer = MSDeformAttn(d_model=16, nhead=2, num_levels=2, num_points=3)
    tokens, mask = torch.zeros(0, 20, 16, requires_grad=True), torch.zeros(0, 20, dtype=torch.bool)
    levels = Levels.of([(4, 4), (2, 2)], tokens)
    found = layer(torch.zeros(0, 5, 16), torch.zeros(0, 5, 2, 2), tokens, mask, levels)
    found.sum().backward()
    assert found.shape == (0, 5, 16)
    assert tokens.grad.shape == (0, 20, 16)


def test_levels_by_hand():
    levels = Levels.of([(4, 8), (2, 5)], torch.zeros(1, 42, 16, dtype=torch.bfloat16))
    assert levels.sizes.tolist() == [[4, 8], [2, 5]]
    assert levels.starts.tolist() == [0, 32]
    torch.testing.assert_close(levels.pixel, torch.tensor([[1 / 8, 1 / 4], [1 / 5, 1 / 2]]))
