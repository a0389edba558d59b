"""Detectors and pretext tasks by name; a new one is a file of its own and is entered here."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import nn

from models.backbone import Backbone, build_backbone
from models.conditional_transformer import build_conditional_transformer
from models.deformable_transformer import DeformableTransformer
from models.detr import DETR
from models.input_projection import LevelProjection, MapProjection
from models.position_encoding import build_position_encoding, check_learned_positions
from models.pretext.base import region_class_head
from models.pretext.detreg import build_detreg, detreg_class_head
from models.pretext.siamese import build_siamese
from models.pretext.up_detr import build_up_detr
from models.transformer import Transformer, build_transformer

PIXEL_CENTRE = 0.5
"""What Deformable DETR subtracts from rows and columns counted from 1; the others subtract nothing."""


def build_vanilla(args: argparse.Namespace, num_logits: int, *, focal: bool, train_backbone: bool) -> DETR:
    """DETR (arXiv 2005.12872)."""
    return _build_single_scale(args, num_logits, focal, train_backbone, build_transformer)


def build_conditional(args: argparse.Namespace, num_logits: int, *, focal: bool, train_backbone: bool) -> DETR:
    """Conditional DETR (arXiv 2108.06152)."""
    return _build_single_scale(args, num_logits, focal, train_backbone, build_conditional_transformer)


def build_deformable(args: argparse.Namespace, num_logits: int, *, focal: bool, train_backbone: bool) -> DETR:
    """Deformable DETR (arXiv 2010.04159), single or multi-scale."""
    backbone = _backbone_of(args, train_backbone, multi_scale=args.num_feature_levels > 1)
    transformer = DeformableTransformer(
        **_widths_of(args),
        num_levels=args.num_feature_levels,
        enc_n_points=args.enc_n_points,
        dec_n_points=args.dec_n_points,
        with_box_refine=args.with_box_refine,
        num_proposals=args.num_queries if args.two_stage else None,
    )
    return DETR(
        backbone=backbone,
        position_encoding=_positions_of(args, backbone, offset=PIXEL_CENTRE),
        input_proj=LevelProjection(backbone.num_channels, args.hidden_dim, args.num_feature_levels),
        transformer=transformer,
        num_logits=num_logits,
        num_queries=args.num_queries,
        focal_prior=focal,
    )


DETECTORS: dict[str, Callable[..., DETR]] = {
    "vanilla": build_vanilla,
    "conditional": build_conditional,
    "deformable": build_deformable,
}
"""``--detr`` -> builder(args, num_logits, focal=, train_backbone=): the outputs of the class head, whether its bias
is initialised for the focal loss, whether the backbone gets gradients. Weights are random."""

PRETEXTS: dict[str, Callable[[argparse.Namespace, DETR], nn.Module]] = {
    "siamese": build_siamese,
    "updetr": build_up_detr,
    "detreg": build_detreg,
}
"""``--method`` -> builder(args, detector) of a module ``forward(batch) -> (loss, logs)`` around the detector."""

PRETEXT_CLASS_HEADS: dict[str, Callable[[argparse.Namespace], tuple[int, bool]]] = {
    "siamese": region_class_head,
    "updetr": region_class_head,
    "detreg": detreg_class_head,
}
"""``--method`` -> the class head that its detector needs: args -> (outputs, whether it is for the focal loss)."""


def _build_single_scale(
    args: argparse.Namespace, num_logits: int, focal: bool, train_backbone: bool, build: Callable[..., Transformer]
) -> DETR:
    """A detector over one feature map."""
    backbone = _backbone_of(args, train_backbone, multi_scale=False)
    return DETR(
        backbone=backbone,
        position_encoding=_positions_of(args, backbone),
        input_proj=MapProjection(backbone.num_channels[-1], args.hidden_dim),
        transformer=build(**_widths_of(args)),
        num_logits=num_logits,
        num_queries=args.num_queries,
        focal_prior=focal,
    )


def _backbone_of(args: argparse.Namespace, trainable: bool, *, multi_scale: bool) -> Backbone:
    """The backbone of the flags.

    Raises:
        UserError: flags that do not go together; the message names them.
    """
    return build_backbone(
        name=args.backbone,
        multi_scale=multi_scale,
        dilation=args.dilation,
        feature_stride=args.feature_stride,
        trainable=trainable,
    )


def _positions_of(args: argparse.Namespace, backbone: Backbone, *, offset: float = 0.0) -> nn.Module:
    """The position encoding of the flags.

    Raises:
        UserError: learned positions, and images that can have more of them.
    """
    if args.position_embedding == "learned":
        check_learned_positions(max(args.max_size, getattr(args, "eval_max_size", 0)), backbone.strides[0])
    return build_position_encoding(args.position_embedding, args.hidden_dim, offset=offset)


def _widths_of(args: argparse.Namespace) -> dict[str, int | float]:
    """What the Transformers of all detectors are built from."""
    return {
        "d_model": args.hidden_dim,
        "nhead": args.nheads,
        "num_encoder_layers": args.enc_layers,
        "num_decoder_layers": args.dec_layers,
        "dim_feedforward": args.dim_feedforward,
        "dropout": args.dropout,
    }
