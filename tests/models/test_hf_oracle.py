"""Our detectors against transformers' DETR and Conditional DETR holding the same random weights."""

import argparse
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models import DETECTORS
from models.detr import DETR
from tests.models.detectors import randomize, small_args, unequal_images
from tests.models.hf_weights import to_public
from util.nested_tensor import NestedTensor

transformers = pytest.importorskip("transformers", minversion="5.0")

NUM_CLASSES = 5
TOLERANCE = 2e-5  # in logits and normalised coordinates
PUBLIC_SIZE = {
    "hidden_dim": 256,
    "nheads": 8,
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 2048,
    "num_queries": 100,
}
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
    family = {"vanilla": "Detr", "conditional": "ConditionalDetr"}[args.detr]
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
        backbone = transformers.ResNetConfig(embedding_size=64, out_features=["stage4"], **resnet)
    config = getattr(transformers, f"{family}Config")(
        backbone_config=backbone,
        d_model=args.hidden_dim,
        encoder_layers=args.enc_layers,
        decoder_layers=args.dec_layers,
        encoder_ffn_dim=args.dim_feedforward,
        decoder_ffn_dim=args.dim_feedforward,
        encoder_attention_heads=args.nheads,
        decoder_attention_heads=args.nheads,
        num_queries=args.num_queries,
        num_labels=NUM_CLASSES,
        attn_implementation="eager",
    )
    model = getattr(transformers, f"{family}ForObjectDetection")(config)
    randomize(model)
    return model.eval()


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
    predictions = [_hf_heads(model, output) for output in hidden[:-1]]
    return [*predictions, Prediction(final.logits, final.pred_boxes)]


def _hf_heads(model: torch.nn.Module, hidden: Tensor) -> Prediction:
    decoder = model.model.decoder
    hidden = decoder.layernorm(hidden)
    boxes = model.bbox_predictor(hidden)
    if hasattr(decoder, "ref_point_head"):
        boxes[..., :2] += decoder.ref_point_head(model.model.query_position_embeddings.weight)
    return Prediction(model.class_labels_classifier(hidden), boxes.sigmoid())


def same_detector(args: argparse.Namespace, hf: torch.nn.Module) -> DETR:
    """Our detector with the weights of ``hf``; every name must find its place."""
    focal = args.detr != "vanilla"
    num_logits = NUM_CLASSES if focal else NUM_CLASSES + 1
    detector = DETECTORS[args.detr](args, num_logits, focal=focal, train_backbone=True)
    detector.load_state_dict(to_public(hf.state_dict()), strict=True)
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


@pytest.mark.parametrize("detr", ["vanilla", "conditional"])
@pytest.mark.parametrize(
    ("backbone", "sizes"), [("resnet18", {}), ("resnet50", {}), ("resnet50", PUBLIC_SIZE)], ids=["r18", "r50", "public"]
)
def test_every_decoder_layer_predicts_the_same(detr: str, backbone: str, sizes: dict) -> None:
    args = small_args(detr, backbone=backbone, **sizes)
    assert_same_predictions(args, unequal_images((96, 160), (128, 70), (64, 64)))


@pytest.mark.parametrize("detr", ["vanilla", "conditional"])
def test_dilated_backbone_predicts_the_same(detr: str) -> None:
    pytest.importorskip("timm")
    args = small_args(detr, backbone="resnet50", dilation=True)
    assert_same_predictions(args, unequal_images((96, 160), (128, 70)), timm_backbone=True)


def test_a_name_without_a_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match="no rule for model"):
        to_public({"model.unknown": torch.zeros(1)})
