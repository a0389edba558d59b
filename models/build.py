"""From arguments to the parts that all detectors have; what is particular is in each Transformer's own file."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import nn

from models.backbone import Backbone, build_backbone
from models.detr import DETR
from models.input_projection import MapProjection
from models.position_encoding import build_position_encoding, check_learned_positions
from util.records import Classification


def build_single_scale(
    args: argparse.Namespace,
    make_transformer: Callable[..., nn.Module],
    num_logits: int,
    *,
    classification: Classification,
    train_backbone: bool,
    **sine: float,
) -> DETR:
    """A detector over one feature map.

    Args:
        make_transformer: called with :func:`widths_of` the arguments, after the backbone is made: the order in which
            random numbers are drawn stays as it always was.
        sine: options of :class:`models.position_encoding.PositionEmbeddingSine` that are not the defaults.

    Raises:
        UserError: flags that do not go together; the message names them.
    """
    backbone = backbone_of(args, train_backbone, multi_scale=False)
    return DETR(
        backbone=backbone,
        position_encoding=positions_of(args, backbone, **sine),
        input_proj=MapProjection(backbone.num_channels[-1], args.hidden_dim),
        transformer=make_transformer(**widths_of(args)),
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
    """The position encoding of the flags; ``sine``: options of the sines, see :func:`build_single_scale`.

    Raises:
        UserError: learned positions, and images that can have more of them.
    """
    if args.position_embedding == "learned":
        check_learned_positions(max(args.max_size, getattr(args, "eval_max_size", 0)), backbone.strides[0])
    return build_position_encoding(args.position_embedding, args.hidden_dim, **sine)


def widths_of(args: argparse.Namespace) -> dict[str, int | float]:
    """What the Transformers of all detectors are built from."""
    return {
        "d_model": args.hidden_dim,
        "nhead": args.nheads,
        "num_encoder_layers": args.enc_layers,
        "num_decoder_layers": args.dec_layers,
        "dim_feedforward": args.dim_feedforward,
        "dropout": args.dropout,
    }
