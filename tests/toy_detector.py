"""A detector in one file: DETR whose learned queries are boxes, as in DAB-DETR, and regions are what they look for."""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor, nn

from models.build import build_single_scale
from models.detr import DETR
from models.interface import ContentPlace, Decoded, Memory, check_widths
from models.layers import TransformerConfig
from models.transformer import Transformer, TransformerDecoder, TransformerEncoder
from util.errors import UserError
from util.records import Classification, DetectorRecord, Finetuning, Flag, Stage


class ToyTransformer(Transformer):
    """Learned queries [B, Q, 4]; with the content of regions they are [B, Q, 4 + C]."""

    def __init__(self, config: TransformerConfig, *, query_gain: float) -> None:
        super().__init__(config.d_model, encoder=TransformerEncoder(config), decoder=TransformerDecoder(config))
        self.query_dim = 4
        self.query_gain = query_gain
        self.query_proj = nn.Linear(4, config.d_model)

    def decode(self, memory: Memory, queries: Tensor, query_mask: Tensor | None = None) -> Decoded:
        """See ``models/interface.py``; ``queries`` are [B, Q, 4], or the result of :meth:`with_content`."""
        placed = self.query_gain * self.query_proj(queries[..., :4])
        content = queries[..., 4:]
        return super().decode(memory, placed + content if content.shape[-1] else placed, query_mask)

    def with_content(self, queries: Tensor, content: Tensor, into: ContentPlace = "query_pos") -> Tensor:
        """Queries and content side by side, [B, Q, 4 + C]."""
        if into != "query_pos":
            raise ValueError("the toy's decoder always starts with zeros")
        check_widths(queries, content, 4, self.d_model)
        return torch.cat([queries, content], dim=-1)


def build_toy(
    args: argparse.Namespace, num_logits: int, *, classification: Classification, train_backbone: bool
) -> DETR:
    """The detector with random weights."""
    return build_single_scale(
        args,
        partial(ToyTransformer, query_gain=args.query_gain),
        num_logits,
        classification=classification,
        train_backbone=train_backbone,
    )


def _check(args: argparse.Namespace, stage: Stage) -> None:
    if args.query_gain > 9:
        raise UserError(f"--query_gain {args.query_gain}: too large")


TOY_DETECTOR = DetectorRecord(
    title="Toy DETR",
    build=build_toy,
    classification="focal",
    finetuning=Finetuning(lr=3e-4, epochs=7, drop_at=0.5),
    flags=(Flag(name="query_gain", help="factor of the queries", options={"type": float}, default=2.0, least=0),),
    training_flags={
        "finetune": (
            Flag(name="lr_query_mult", help="queries learn at --lr times this", options={"type": float}, default=0.5),
        )
    },
    defaults={"num_queries": 20},
    pretraining={"toy": {"toy_weight": 4.0}},
    check=_check,
    rates={"query_": "lr_query_mult"},
    # vanilla DETR's decoder, and a parameter that only this detector has
    signs=("transformer.decoder.layers.0.multihead_attn.in_proj_weight", "transformer.query_proj.weight"),
    public_names=[("refpoint_embed.", "query_embed.")],
)
