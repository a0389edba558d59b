"""Our detectors against transformers' DETR, Conditional, Deformable and DAB-DETR holding the same random weights."""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models import DETECTORS
from models.checkpoints.hf_names import to_public
from models.checkpoints.renaming import Renaming
from models.detr import DETR
from tests.models.detectors import build, randomize, small_args, unequal_images
from util.nested_tensor import NestedTensor
from util.records import num_outputs

transformers = pytest.importorskip("transformers", minversion="5.0")

NUM_CLASSES = 5
TOLERANCE = 2e-5  # in logits and normalised coordinates
SAMPLING_TOLERANCE = 5e-5  # rounding also moves the points that deformable attention looks at
PUBLIC_SIZE = {
    "hidden_dim": 256,
    "nheads": 8,
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 2048,
    "num_queries": 100,
}
FAMILIES = {"vanilla": "Detr", "conditional": "ConditionalDetr", "deformable": "DeformableDetr", "dab": "DabDetr"}
HF_RESNETS = {
    "resnet18": {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    "resnet50": {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "layer_type": "bottleneck"},
}


@dataclass
class Prediction:
    """Of one decoder layer: logits [B, Q, K], boxes [B, Q, 4]."""

    logits: Tensor
    boxes: Tensor


def hf_model(args: argparse.Namespace, *, timm_backbone: bool = False) -> torch.nn.Module:
    """transformers' model of these arguments, with random weights and explicit (eager) attention maps."""
    family = FAMILIES[args.detr]
    if timm_backbone:
        backbone = transformers.TimmBackboneConfig(
            backbone=args.backbone,
            features_only=True,
            use_pretrained_backbone=False,
            out_indices=[4],
            output_stride=16 if args.dilation else 32,
        )
    else:
        resnet = HF_RESNETS[args.backbone]
        stages = ["stage2", "stage3", "stage4"] if getattr(args, "num_feature_levels", 1) > 1 else ["stage4"]
        backbone = transformers.ResNetConfig(embedding_size=64, out_features=stages, **resnet)
    config = getattr(transformers, f"{family}Config")(
        backbone_config=backbone,
        encoder_layers=args.enc_layers,
        decoder_layers=args.dec_layers,
        encoder_ffn_dim=args.dim_feedforward,
        decoder_ffn_dim=args.dim_feedforward,
        encoder_attention_heads=args.nheads,
        decoder_attention_heads=args.nheads,
        num_queries=args.num_queries,
        num_labels=NUM_CLASSES,
        attn_implementation="eager",
        **{"hidden_size" if args.detr == "dab" else "d_model": args.hidden_dim},
        **(deformable_options(args) if args.detr == "deformable" else {}),
    )
    model = getattr(transformers, f"{family}ForObjectDetection")(config)
    if args.detr == "deformable":
        arrange_heads(model, independent=args.with_box_refine)
    randomize(model)
    return model.eval()


def deformable_options(args: argparse.Namespace) -> dict:
    """What only DeformableDetrConfig knows; the auxiliary outputs are the predictions of the layers before the last."""
    return {
        "num_feature_levels": args.num_feature_levels,
        "encoder_n_points": args.enc_n_points,
        "decoder_n_points": args.dec_n_points,
        "with_box_refine": args.with_box_refine,
        "two_stage": args.two_stage,
        "two_stage_num_proposals": args.num_queries,
        "auxiliary_loss": True,
    }


def arrange_heads(model: torch.nn.Module, *, independent: bool) -> None:
    """Share heads between layers as the public code does; transformers 5 ties some and not others."""
    for name in ("class_embed", "bbox_embed"):
        heads = getattr(model, name)
        if independent:
            heads = [copy.deepcopy(heads[0]) for _ in heads]
        else:
            heads = [heads[0]] * len(heads)
        setattr(model, name, torch.nn.ModuleList(heads))
        if getattr(model.model.decoder, name, None) is not None:
            setattr(model.model.decoder, name, getattr(model, name))


@torch.no_grad()
def hf_predictions(model: torch.nn.Module, images: NestedTensor) -> list[Prediction]:
    """Predictions of every decoder layer, the last through the model's own outputs.

    With ``auxiliary_loss=True`` transformers 5 feeds each layer's *normalised* output to the next one, unlike the
    public code and unlike its own results without the flag; hence the layers' outputs are caught by hooks.
    """
    hidden: list[Tensor] = []
    decoder = model.model.decoder
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: hidden.append(output)) for layer in decoder.layers
    ]
    inputs = {"pixel_values": images.tensors, "pixel_mask": (~images.mask).long()}
    final = model(**inputs)
    for hook in hooks:
        hook.remove()
    if hasattr(decoder, "ref_anchor_head"):
        logits, boxes = dab_outputs(model, model.model(**inputs))
        torch.testing.assert_close(Prediction(logits[-1], boxes[-1]), Prediction(final.logits, final.pred_boxes))
        return [Prediction(*layer) for layer in zip(logits, boxes, strict=True)]
    predictions = [_hf_heads(model, output) for output in hidden[:-1]]
    return [*predictions, Prediction(final.logits, final.pred_boxes)]


def dab_outputs(model: torch.nn.Module, decoded: object) -> tuple[Tensor, Tensor]:
    """Logits [L, B, Q, K] and boxes [L, B, Q, 4] that transformers' DAB-DETR predicts from its decoder's outputs."""
    hidden, boxes = decoded.intermediate_hidden_states, decoded.reference_points.clamp(1e-5, 1 - 1e-5)
    return model.class_embed(hidden), (model.bbox_predictor(hidden) + torch.logit(boxes)).sigmoid()


def _hf_heads(model: torch.nn.Module, hidden: Tensor) -> Prediction:
    decoder = model.model.decoder
    hidden = decoder.layernorm(hidden)
    boxes = model.bbox_predictor(hidden)
    if hasattr(decoder, "ref_point_head"):
        boxes[..., :2] += decoder.ref_point_head(model.model.query_position_embeddings.weight)
    return Prediction(model.class_labels_classifier(hidden), boxes.sigmoid())


def same_detector(args: argparse.Namespace, hf: torch.nn.Module) -> DETR:
    """Our detector with the weights of ``hf``; every name must find its place."""
    detector = build(args, num_outputs(NUM_CLASSES, DETECTORS[args.detr].classification))
    renaming = Renaming(hf.state_dict())
    to_public(renaming)
    detector.load_state_dict(renaming.weights, strict=True)
    return detector.eval()


def assert_same_predictions(args: argparse.Namespace, images: NestedTensor, *, timm_backbone: bool = False) -> None:
    hf = hf_model(args, timm_backbone=timm_backbone)
    expected = hf_predictions(hf, images)
    with torch.no_grad():
        ours = same_detector(args, hf)(images)
    assert len(expected) == args.dec_layers
    logits = torch.stack([layer.logits for layer in expected])
    boxes = torch.stack([layer.boxes for layer in expected])
    # Predictions that hardly depend on layer, image or query would compare nothing.
    for dim in range(3):
        assert logits.std(dim).mean() > 100 * TOLERANCE
        assert boxes.std(dim).mean() > 100 * TOLERANCE
    torch.testing.assert_close(ours["pred_logits"], logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours["pred_boxes"], boxes, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("detr", ["vanilla", "conditional", "dab"])
@pytest.mark.parametrize(
    ("backbone", "sizes"), [("resnet18", {}), ("resnet50", {}), ("resnet50", PUBLIC_SIZE)], ids=["r18", "r50", "public"]
)
def test_every_decoder_layer_predicts_the_same(detr: str, backbone: str, sizes: dict) -> None:
    args = small_args(detr, backbone=backbone, **sizes)
    assert_same_predictions(args, unequal_images((96, 160), (128, 70), (64, 64)))


DEFORMABLE = {
    "multi-scale": {},
    "single-scale": {"num_feature_levels": 1},
    "refine": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
}


@torch.no_grad()
def deformable_predictions(model: torch.nn.Module, images: NestedTensor) -> dict:
    """Predictions of every decoder layer of transformers' Deformable DETR in our form, two-stage proposals included."""
    nothing = [{"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}] * len(images)
    output = model(pixel_values=images.tensors, pixel_mask=(~images.mask).long(), labels=nothing)
    layers = [*output.auxiliary_outputs, {"logits": output.logits, "pred_boxes": output.pred_boxes}]
    predictions = {
        "pred_logits": torch.stack([layer["logits"] for layer in layers]),
        "pred_boxes": torch.stack([layer["pred_boxes"] for layer in layers]),
    }
    if model.config.two_stage:
        boxes = output.enc_outputs_coord_logits.sigmoid()
        predictions["enc_outputs"] = {"pred_logits": output.enc_outputs_class[None], "pred_boxes": boxes[None]}
    return predictions


def in_their_places(ours: dict, expected: dict) -> None:
    """Undo that proposals whose encoder scores tie within rounding change places, and with them the queries."""
    for image in range(expected["pred_boxes"].shape[1]):
        distance = torch.cdist(expected["pred_boxes"][0, image], ours["pred_boxes"][0, image], p=1)
        order = torch.from_numpy(linear_sum_assignment(distance)[1])
        assert (order != torch.arange(len(order))).sum() <= 4
        for name in ("pred_logits", "pred_boxes"):
            ours[name][:, image] = ours[name][:, image, order]


@pytest.mark.parametrize("variant", DEFORMABLE)
@pytest.mark.parametrize(
    ("backbone", "sizes"), [("resnet18", {}), ("resnet50", {}), ("resnet50", PUBLIC_SIZE)], ids=["r18", "r50", "public"]
)
def test_every_layer_of_deformable_detr_predicts_the_same(variant: str, backbone: str, sizes: dict) -> None:
    args = small_args("deformable", backbone=backbone, **sizes, **DEFORMABLE[variant])
    images = unequal_images((96, 160), (128, 70), (64, 64))
    hf = hf_model(args)
    expected = deformable_predictions(hf, images)
    with torch.no_grad():
        ours = same_detector(args, hf)(images)
    assert ours.keys() == expected.keys()
    if args.two_stage:
        in_their_places(ours, expected)
    for name in ("pred_logits", "pred_boxes"):
        assert len(expected[name]) == args.dec_layers
        for dim in range(3):
            assert expected[name].std(dim).mean() > 100 * SAMPLING_TOLERANCE
        torch.testing.assert_close(ours[name], expected[name], atol=SAMPLING_TOLERANCE, rtol=0)
    for name, value in expected.get("enc_outputs", {}).items():
        assert value.std(2).mean() > 100 * SAMPLING_TOLERANCE
        torch.testing.assert_close(ours["enc_outputs"][name], value, atol=SAMPLING_TOLERANCE, rtol=0)


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
def test_gradients_of_dab_detr_are_theirs() -> None:
    """They show which boxes pass gradients from one layer to the next: those of the first, and each layer's own."""
    args = small_args("dab", dec_layers=4)
    hf = hf_model(args)
    detector = same_detector(args, hf)
    images = unequal_images((64, 96), (70, 40))
    theirs = dab_outputs(hf, hf.model(pixel_values=images.tensors, pixel_mask=(~images.mask).long()))
    ours = detector(images)
    weights = [torch.randn_like(value) for value in theirs]
    sum((value * weight).sum() for value, weight in zip(theirs, weights, strict=True)).backward()
    found = (ours["pred_logits"], ours["pred_boxes"])
    sum((value * weight).sum() for value, weight in zip(found, weights, strict=True)).backward()
    renaming = Renaming({name: value.grad for name, value in hf.named_parameters() if value.grad is not None})
    to_public(renaming)
    for name, parameter in detector.named_parameters():
        if not name.startswith("backbone."):
            torch.testing.assert_close(parameter.grad, renaming.weights[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("detr", ["vanilla", "conditional", "dab"])
def test_dilated_backbone_predicts_the_same(detr: str) -> None:
    pytest.importorskip("timm")
    args = small_args(detr, backbone="resnet50", dilation=True)
    assert_same_predictions(args, unequal_images((96, 160), (128, 70)), timm_backbone=True)
