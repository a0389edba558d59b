"""Detectors and pretext tasks by name. A new one is a file of its own and a line here."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import nn

from models.backbone import build_backbone
from models.conditional_transformer import build_conditional_transformer
from models.detr import DETR
from models.position_encoding import build_position_encoding, check_learned_positions
from models.pretext.siamese import build_siamese
from models.transformer import Transformer, build_transformer


def build_vanilla(args: argparse.Namespace, num_logits: int, *, focal: bool, train_backbone: bool) -> DETR:
    """DETR (arXiv 2005.12872)."""
    return _build_single_scale(args, num_logits, focal, train_backbone, build_transformer)


def build_conditional(args: argparse.Namespace, num_logits: int, *, focal: bool, train_backbone: bool) -> DETR:
    """Conditional DETR (arXiv 2108.06152)."""
    return _build_single_scale(args, num_logits, focal, train_backbone, build_conditional_transformer)


DETECTORS: dict[str, Callable[..., DETR]] = {
    "vanilla": build_vanilla,
    "conditional": build_conditional,
}
"""``--detr`` -> builder(args, num_logits, focal=, train_backbone=): the outputs of the class head, whether its bias
is initialised for the focal loss, whether the backbone gets gradients. Weights are random."""

PRETEXTS: dict[str, Callable[[argparse.Namespace, DETR], nn.Module]] = {
    "siamese": build_siamese,
}
"""``--method`` -> builder(args, detector) of a module ``forward(batch) -> (loss, logs)`` around the detector."""


def _build_single_scale(
    args: argparse.Namespace,
    num_logits: int,
    focal: bool,
    train_backbone: bool,
    build: Callable[..., Transformer],
) -> DETR:
    """A detector over one feature map.

    Raises:
        UserError: flags that do not go together; the message names them.
    """
    backbone = build_backbone(
        name=args.backbone,
        multi_scale=False,
        dilation=args.dilation,
        feature_stride=args.feature_stride,
        trainable=train_backbone,
    )
    if args.position_embedding == "learned":
        check_learned_positions(max(args.max_size, getattr(args, "eval_max_size", 0)), backbone.strides[-1])
    return DETR(
        backbone=backbone,
        position_encoding=build_position_encoding(args.position_embedding, args.hidden_dim),
        transformer=build(
            d_model=args.hidden_dim,
            nhead=args.nheads,
            num_encoder_layers=args.enc_layers,
            num_decoder_layers=args.dec_layers,
            dim_feedforward=args.dim_feedforward,
            dropout=args.dropout,
        ),
        num_logits=num_logits,
        num_queries=args.num_queries,
        focal_prior=focal,
    )
