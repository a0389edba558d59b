"""The detector: public names, stages, heads, batching; agreement with transformers is in test_hf_oracle.py."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import DETECTORS
from models.checkpoints.renaming import apply_rules, compile_rules
from models.detr import DETR
from models.interface import Decoded, Memory
from tests.models.detectors import (
    NUM_LOGITS,
    build,
    queries_of_regions,
    small_args,
    small_detector,
    unequal_images,
    without_gradient,
)
from tests.models.public_layouts import PUBLIC_LAYOUTS, with_pre_norm
from util.nested_tensor import NestedTensor

PUBLIC_SIZE = {"hidden_dim": 256, "nheads": 8, "enc_layers": 6, "dec_layers": 6, "dim_feedforward": 2048}
PUBLIC_MODELS = {
    "detr-r50": ("vanilla", 92, {"backbone": "resnet50", "num_queries": 100}),
    "detr-r50-dc5": ("vanilla", 92, {"backbone": "resnet50", "num_queries": 100, "dilation": True}),
    "detr-r101": ("vanilla", 92, {"backbone": "resnet101", "num_queries": 100}),
    "conditional-detr-r50": ("conditional", 91, {"backbone": "resnet50", "num_queries": 300}),
    "dab-detr-r50": ("dab", 91, {"backbone": "resnet50", "num_queries": 300}),
}
DEFORMABLE = {"backbone": "resnet50", "num_queries": 300, "dim_feedforward": 1024, "enc_n_points": 4, "dec_n_points": 4}
REFINE, TWO_STAGE = {"with_box_refine": True}, {"with_box_refine": True, "two_stage": True}
PUBLIC_MODELS |= {
    "deformable-detr-r50": ("deformable", 91, DEFORMABLE),
    "deformable-detr-r50-single-scale": ("deformable", 91, DEFORMABLE | {"num_feature_levels": 1}),
    "deformable-detr-r50-refine": ("deformable", 91, DEFORMABLE | REFINE),
    "deformable-detr-r50-refine-two-stage": ("deformable", 91, DEFORMABLE | TWO_STAGE),
}


QUERY_DIMS = {"vanilla": 32, "conditional": 32, "deformable": 64, "dab": 4}


@pytest.fixture(params=DETECTORS)
def detr(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", PUBLIC_MODELS)
def test_state_dict_has_the_public_names_and_shapes(name: str) -> None:
    kind, num_logits, changes = PUBLIC_MODELS[name]
    args = small_args(kind, **{**PUBLIC_SIZE, **changes})
    with torch.device("meta"):
        detector = build(args, num_logits)
    rules = compile_rules(DETECTORS[kind].public_names, back=True)
    shapes = {apply_rules(rules, key): tuple(value.shape) for key, value in detector.state_dict().items()}
    assert shapes == PUBLIC_LAYOUTS[name]


@pytest.mark.parametrize("name", [name for name in PUBLIC_LAYOUTS if name != "dab-detr-r50"])  # not listed there
def test_compact_layouts_equal_the_listed_ones(name: str, real_data: Path) -> None:
    plain = name.removesuffix("-pre-norm")
    listed = json.loads((real_data / "layouts" / f"{plain}.json").read_text())
    layout = {key: tuple(shape) for key, shape in listed.items()}
    assert (layout if plain == name else with_pre_norm(layout)) == PUBLIC_LAYOUTS[name]


def encode(detector: DETR, images: NestedTensor) -> Memory:
    return detector.encode(detector.features(images), images.mask)


def query_dim(detector: DETR) -> int:
    return detector.query_embed.embedding_dim


def test_stages_compose_to_forward(detr: str) -> None:
    detector = small_detector(detr)
    images = unequal_images((64, 96), (70, 40))
    memory = encode(detector, images)
    queries = detector.queries(2)
    assert queries.shape == (2, 7, query_dim(detector))
    assert query_dim(detector) == QUERY_DIMS[detr]
    composed = detector.predict(detector.decode(memory, queries))
    outputs = detector(images)
    assert outputs["pred_logits"].shape == (3, 2, 7, NUM_LOGITS)
    assert outputs["pred_boxes"].shape == (3, 2, 7, 4)
    assert outputs["pred_boxes"].min() > 0
    assert outputs["pred_boxes"].max() < 1
    for name, value in outputs.items():
        torch.testing.assert_close(composed[name], value)


def test_content_enters_the_queries_as_the_detector_takes_it(detr: str) -> None:
    detector = small_detector(detr)
    queries, content = detector.queries(2), torch.randn(2, 7, 32)
    changed = detector.with_content(queries, content)
    torch.testing.assert_close(changed, queries_of_regions(queries, content))
    for wrong in (torch.randn(2, 7, 33), torch.randn(2, 7, 1), torch.randn(2, 1, 32), torch.randn(7, 32)):
        with pytest.raises(ValueError, match=r"must be \[B, Q"):
            detector.with_content(queries, wrong)
    with pytest.raises(ValueError, match=r"must be \[B, Q"):
        detector.with_content(queries[..., :-1], content)


def test_each_image_is_asked_its_own_queries(detr: str) -> None:
    """Queries that differ between images: image b answers those of row b."""
    detector = small_detector(detr)
    memory = encode(detector, unequal_images((64, 96), (70, 40)))
    queries = torch.randn(2, 9, query_dim(detector))  # any number of them
    together = detector.predict(detector.decode(memory, queries))["pred_boxes"]
    for image in range(2):
        repeated = queries[image].expand(2, -1, -1)
        alone = detector.predict(detector.decode(memory, repeated))["pred_boxes"]
        torch.testing.assert_close(alone[:, image], together[:, image], atol=1e-6, rtol=0)


def test_query_mask_isolates_groups_of_queries(detr: str) -> None:
    """With the mask of two blocks every block predicts as if it were alone."""
    detector = small_detector(detr)
    memory = encode(detector, unequal_images((64, 96), (70, 40)))
    queries = torch.randn(2, 6, query_dim(detector))
    group = torch.tensor([0, 0, 1, 1, 1, 0])
    mask = group[:, None] != group
    masked = detector.predict(detector.decode(memory, queries, mask))
    open_ = detector.predict(detector.decode(memory, queries))
    for name, value in masked.items():
        assert (value - open_[name]).abs().max() > 1e-4
        for index in range(2):
            alone = detector.predict(detector.decode(memory, queries[:, group == index]))[name]
            torch.testing.assert_close(value[:, :, group == index], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("garbage", [1e4, float("nan")])
@pytest.mark.parametrize("detr", ["vanilla", "conditional", "dab"])  # deformable normalises levels, padding included
def test_padding_of_the_feature_maps_changes_nothing(detr: str, garbage: float) -> None:
    detector = small_detector(detr)
    images = unequal_images((64, 128), (128, 60))
    features = detector.features(images)
    assert features[0].mask.any()
    queries = detector.queries(2)
    clean = detector.predict(detector.decode(detector.encode(features, images.mask), queries))
    spoilt = [NestedTensor(torch.where(f.mask[:, None], garbage, f.tensors), f.mask) for f in features]
    outputs = detector.predict(detector.decode(detector.encode(spoilt, images.mask), queries))
    for name, value in outputs.items():
        torch.testing.assert_close(value, clean[name], atol=1e-5, rtol=0)


def test_batch_equals_single_images(detr: str) -> None:
    """Each image alone on the same canvas (a ResNet sees the canvas: its biases make padding non-zero)."""
    detector = small_detector(detr)
    images = unequal_images((96, 64), (64, 128), (96, 128))
    with torch.no_grad():
        together = detector(images)
        for index in range(3):
            alone = detector(NestedTensor(images.tensors[index : index + 1], images.mask[index : index + 1]))
            for name, value in alone.items():
                torch.testing.assert_close(value[:, 0], together[name][:, index], atol=1e-5, rtol=0)


def test_boxes_are_relative_to_the_reference() -> None:
    """With a box head of constant logits (ln 3, 0, -ln 3, 0) around the reference (0, ln 3)."""
    detector = small_detector("conditional")
    last = detector.bbox_embed.layers[-1]
    log3 = torch.tensor(3.0).log()
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(log3 * torch.tensor([1.0, 0.0, -1.0, 0.0]))
    hidden = torch.randn(2, 1, 5, 32)
    reference = (log3 * torch.tensor([0.0, 1.0])).expand(1, 5, 2)
    boxes = detector.predict(Decoded(hidden, reference))["pred_boxes"]
    torch.testing.assert_close(boxes, torch.tensor([0.75, 0.75, 0.25, 0.5]).expand(2, 1, 5, 4))
    boxes = detector.predict(Decoded(hidden, None))["pred_boxes"]
    torch.testing.assert_close(boxes, torch.tensor([0.75, 0.5, 0.25, 0.5]).expand(2, 1, 5, 4))


def new_conditional_detector(classification: str) -> DETR:
    return build(small_args("conditional"), NUM_LOGITS, classification=classification)


def test_new_conditional_detector_predicts_boxes_around_its_reference_points() -> None:
    detector = new_conditional_detector("focal").eval()
    boxes = detector(unequal_images((64, 64)))["pred_boxes"]
    centres = detector.transformer.decoder.ref_point_head(detector.query_embed.weight).sigmoid()
    torch.testing.assert_close(boxes[..., :2], centres.expand(3, 1, 7, 2))
    torch.testing.assert_close(boxes[..., 2:], torch.full((3, 1, 7, 2), 0.5))


def test_focal_prior_is_one_percent() -> None:
    focal = new_conditional_detector("focal")
    torch.testing.assert_close(focal.class_embed.bias.sigmoid(), torch.full((NUM_LOGITS,), 0.01))
    softmax = new_conditional_detector("softmax")
    assert softmax.class_embed.bias.abs().max() < 1


@pytest.mark.parametrize("train_backbone", [False, True])
def test_gradients_reach_every_trainable_parameter(detr: str, train_backbone: bool) -> None:
    detector = small_detector(detr, train_backbone=train_backbone).train()
    outputs = detector(unequal_images((96, 96), (64, 128)))
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    backbone_trained = False
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            assert name.startswith("backbone.0."), name
            assert parameter.grad is None, name
            continue
        backbone_trained |= name.startswith("backbone.0.")
        assert parameter.grad is not None, name
        if not without_gradient(name.removeprefix("transformer.")):
            assert parameter.grad.abs().max() > 0, name
    assert backbone_trained == train_backbone


def test_learned_positions_are_trained_under_their_public_names(detr: str) -> None:
    detector = small_detector(detr, position_embedding="learned", max_size=320)
    detector(unequal_images((64, 96)))["pred_boxes"].sum().backward()
    positions = [name for name, _ in detector.named_parameters() if name.startswith("backbone.1.")]
    assert sorted(positions) == ["backbone.1.col_embed.weight", "backbone.1.row_embed.weight"]
    for name in positions:
        assert detector.get_parameter(name).grad.abs().max() > 0


def test_autocast_keeps_predictions_and_reference_in_float32(detr: str) -> None:
    detector = small_detector(detr)
    images = unequal_images((64, 96), (70, 40))
    with torch.no_grad():
        exact = staged(detector, images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = staged(detector, images)
    for name in ("pred_logits", "pred_boxes", "reference"):
        if exact[name] is not None:
            assert rounded[name].dtype == torch.float32
    if exact["reference"] is not None:
        # Boxes that each layer refines are rounded with the layers; the first layer's are not.
        refined = exact["reference"].dim() == 4
        first = [outputs["reference"][0] if refined else outputs["reference"] for outputs in (rounded, exact)]
        torch.testing.assert_close(*first, atol=0, rtol=0)
    difference = (rounded["pred_boxes"] - exact["pred_boxes"]).abs()
    assert 0 < difference.mean() < 0.005  # rounding there was, in the Transformer
    assert difference.max() < 0.02


def staged(detector: DETR, images: NestedTensor) -> dict[str, Tensor | None]:
    memory = encode(detector, images)
    decoded = detector.decode(memory, detector.queries(len(images)))
    return {**detector.predict(decoded), "reference": decoded.reference}


def test_training_under_autocast_has_finite_gradients(detr: str) -> None:
    detector = small_detector(detr, dropout=0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detector(unequal_images((64, 96), (70, 40)))
    outputs["pred_boxes"].sum().backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_more_padding_of_the_maps_changes_nothing(detr: str) -> None:
    """As ``--pad_to`` adds it: the Transformer answers the same, Deformable DETR included, but for rounding."""
    detector = small_detector(detr)
    levels = [torch.randn(2, detector.hidden_dim, *shape) for shape in [(8, 10), (4, 5), (2, 3), (1, 2)]]
    levels = levels[: getattr(detector.input_proj, "__len__", lambda: 1)()]
    answers = []
    for extra in (0, 5):
        padded = [nn.functional.pad(level, (0, extra, 0, extra), value=7.0) for level in levels]
        masks = [nn.functional.pad(torch.zeros_like(level[:, 0]), (0, extra, 0, extra), value=1.0) for level in levels]
        maps = [NestedTensor(level, mask.bool()) for level, mask in zip(padded, masks, strict=True)]
        pos = [detector.backbone[1](level) for level in maps]
        memory = detector.transformer.encode([m.tensors for m in maps], [m.mask for m in maps], pos)
        answers.append(detector.predict(detector.decode(memory, detector.queries(2))))
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(answers[1][name], answers[0][name], atol=2e-5, rtol=1e-4)
