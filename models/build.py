"""Builds the parts that all detectors have from arguments; the rest is in each Transformer's own file."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import nn

from models.backbone import Backbone, build_backbone
from models.detr import DETR
from models.input_projection import MapProjection
from models.layers import TransformerConfig
from models.position_encoding import build_position_encoding, check_learned_positions
from util.records import Classification


def build_single_scale(
    args: argparse.Namespace,
    make_transformer: Callable[[TransformerConfig], nn.Module],
    num_logits: int,
    *,
    classification: Classification,
    train_backbone: bool,
    **sine: float,
) -> DETR:
    """A detector over one feature map.

    Args:
        make_transformer: called after the backbone is made, so that random numbers are always drawn in this order.
        sine: options of :class:`models.position_encoding.PositionEmbeddingSine`.

    Raises:
        UserError: flags that do not go together; the message names them.
    """
    backbone = backbone_of(args, train_backbone, multi_scale=False)
    return DETR(
        backbone=backbone,
        position_encoding=positions_of(args, backbone, **sine),
        input_proj=MapProjection(backbone.num_channels[-1], args.hidden_dim),
        transformer=make_transformer(config_of(args)),
        num_logits=num_logits,
        num_queries=args.num_queries,
        classification=classification,
    )


def backbone_of(args: argparse.Namespace, trainable: bool, *, multi_scale: bool) -> Backbone:
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


def positions_of(args: argparse.Namespace, backbone: Backbone, **sine: float) -> nn.Module:
    """The position encoding of the flags; for ``sine`` see :func:`build_single_scale`.

    Raises:
        UserError: images can have more rows or columns than positions are learned.
    """
    if args.position_embedding == "learned":
        check_learned_positions(max(args.max_size, getattr(args, "eval_max_size", 0)), backbone.strides[0])
    return build_position_encoding(args.position_embedding, args.hidden_dim, **sine)


def config_of(args: argparse.Namespace) -> TransformerConfig:
    """The sizes of the Transformer; a detector without the flag ``--pre_norm`` has post-norm."""
    return TransformerConfig(
        d_model=args.hidden_dim,
        nhead=args.nheads,
        num_encoder_layers=args.enc_layers,
        num_decoder_layers=args.dec_layers,
        dim_feedforward=args.dim_feedforward,
        dropout=args.dropout,
        pre_norm=bool(getattr(args, "pre_norm", False)),
    )
