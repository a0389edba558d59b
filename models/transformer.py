"""The Transformer of DETR (arXiv 2005.12872); see ``models/interface.py`` for what every Transformer here has."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.build import build_single_scale
from models.checkpoints.hf_shared import SINGLE_SCALE
from models.detr import DETR
from models.interface import ContentPlace, Decoded, Memory, check_widths, split_queries
from models.layers import MLP, MultiheadAttention, TransformerLayer
from util.errors import UserError
from util.records import Classification, DetectorRecord, Finetuning, Flag, HuggingFace


class TransformerEncoderLayer(TransformerLayer):
    """Self-attention and feed-forward (figure 10 of the paper)."""

    def __init__(self, *, d_model: int, nhead: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(d_model=d_model, dim_feedforward=dim_feedforward, dropout=dropout, pre_norm=pre_norm)
        self.self_attn = MultiheadAttention(d_model=d_model, nhead=nhead, dropout=dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, src: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """src and pos [B, S, C], mask [B, S] (True = padding) -> [B, S, C]."""

        def self_attention(x: Tensor) -> Tensor:
            q = k = x + pos
            return self.self_attn(q, k, x, key_padding_mask=mask)

        src = self.sublayer(src, self.norm1, self_attention)
        return self.sublayer(src, self.norm2, self.feed_forward)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; the position encoding enters each of them.

    Attributes:
        norm: the final norm of a stack with pre-norm, whose last sum no layer norms; None with post-norm.
    """

    def __init__(
        self, *, d_model: int, nhead: int, num_layers: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        widths = {"d_model": d_model, "nhead": nhead, "dim_feedforward": dim_feedforward, "dropout": dropout}
        self.layers = nn.ModuleList(TransformerEncoderLayer(**widths, pre_norm=pre_norm) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model) if pre_norm else None

    def forward(self, src: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """src and pos [B, S, C], mask [B, S] (True = padding) -> [B, S, C]."""
        for layer in self.layers:
            src = layer(src, pos, mask)
        return src if self.norm is None else self.norm(src)


class TransformerDecoderLayer(TransformerLayer):
    """Self-attention of the queries, cross-attention to the memory, feed-forward (figure 10 of the paper)."""

    def __init__(self, *, d_model: int, nhead: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(d_model=d_model, dim_feedforward=dim_feedforward, dropout=dropout, pre_norm=pre_norm)
        self.self_attn = MultiheadAttention(d_model=d_model, nhead=nhead, dropout=dropout)
        self.multihead_attn = MultiheadAttention(d_model=d_model, nhead=nhead, dropout=dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)

    def forward(
        self, tgt: Tensor, query_pos: Tensor, memory: Memory, memory_key: Tensor, query_mask: Tensor | None
    ) -> Tensor:
        """One layer.

        Args:
            tgt: [B, Q, C], the queries' content so far: what the layers before made of them.
            query_pos: [B, Q, C], the queries' positions, added to ``tgt`` in queries and keys, never in values.
            memory: of the encoder, S positions.
            memory_key: [B, S, C], the memory with its position encoding added.
            query_mask: see :meth:`Transformer.decode`.

        Returns:
            [B, Q, C].
        """

        def self_attention(x: Tensor) -> Tensor:
            q = k = x + query_pos
            return self.self_attn(q, k, x, attn_mask=query_mask)

        def cross_attention(x: Tensor) -> Tensor:
            return self.multihead_attn(x + query_pos, memory_key, memory.tokens, key_padding_mask=memory.mask)

        tgt = self.sublayer(tgt, self.norm1, self_attention)
        tgt = self.sublayer(tgt, self.norm2, cross_attention)
        return self.sublayer(tgt, self.norm3, self.feed_forward)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers, and the norm between each layer's output and the heads."""

    has_reference = False

    def __init__(
        self, *, d_model: int, nhead: int, num_layers: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        widths = {"d_model": d_model, "nhead": nhead, "dim_feedforward": dim_feedforward, "dropout": dropout}
        self.layers = nn.ModuleList(TransformerDecoderLayer(**widths, pre_norm=pre_norm) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, memory: Memory, queries: Tensor, query_mask: Tensor | None) -> Decoded:
        """See :meth:`Transformer.decode`."""
        memory_key = memory.tokens + memory.pos  # [B, S, C], once for all layers
        query_pos, tgt = split_queries(queries, memory.tokens.shape[-1])  # [B, Q, C] each
        outputs = []
        for layer in self.layers:
            tgt = layer(tgt, query_pos, memory, memory_key, query_mask)
            outputs.append(tgt)
        return Decoded(hidden=self.norm(torch.stack(outputs)), reference=None)  # [L, B, Q, C]


class Transformer(nn.Module):
    """An encoder and a decoder that see one feature map.

    Args:
        d_model: C, the width of tokens and queries.
        encoder: (src, pos, mask) -> tokens.
        decoder: (memory, queries, query_mask) -> :class:`Decoded`, with ``has_reference``.
    """

    def __init__(self, *, d_model: int, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.d_model = self.query_dim = d_model
        self.has_reference = decoder.has_reference
        self.encoder = encoder
        self.decoder = decoder
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def make_heads(self, class_embed: nn.Linear, bbox_embed: MLP) -> tuple[nn.Module, nn.Module]:
        """The heads as they are, because all decoder layers share them."""
        return class_embed, bbox_embed

    def encode(self, maps: list[Tensor], masks: list[Tensor], pos: list[Tensor]) -> Memory:
        """Encode the feature maps of a batch of images; this Transformer takes exactly one level.

        Args:
            maps: per level [B, C, H, W]. Values at padded positions do not matter.
            masks: per level [B, H, W] bool, True at padded positions.
            pos: per level [B, C, H, W], position encoding.

        Returns:
            The memory of S = H * W positions.
        """
        (level,), (level_mask,), (level_pos,) = maps, masks, pos
        mask = level_mask.flatten(1)  # [B, S]
        positions = level_pos.flatten(2).transpose(1, 2)  # [B, S, C]
        # Padding gets attention weights of 0, but 0 times infinity is NaN: so padding becomes 0, too.
        src = level.flatten(2).transpose(1, 2).masked_fill(mask[..., None], 0.0)  # [B, S, C]
        return Memory(self.encoder(src, positions, mask), mask, positions, [tuple(level.shape[-2:])])

    def decode(self, memory: Memory, queries: Tensor, query_mask: Tensor | None = None) -> Decoded:
        """Decode the queries; the outputs of all decoder layers are returned.

        Args:
            memory: from :meth:`encode`.
            queries: [B, Q, C], added as positions in every layer; the first layer's content is zeros. Or [B, Q, 2C]:
                the second half is that content.
            query_mask: bool [Q, Q], True where a query (row) may not attend to another (column). No row may be all
                True. None: every query attends to all.
        """
        return self.decoder(memory, queries, query_mask)

    def with_content(self, queries: Tensor, content: Tensor, into: ContentPlace = "query_pos") -> Tensor:
        """Learned queries [B, Q, C] that ask for what ``content`` [B, Q, C] describes.

        Returns:
            Their sum [B, Q, C]; with ``into`` "tgt" [B, Q, 2C], where the first layer's content is ``content``.

        Raises:
            ValueError: other widths.
        """
        check_widths(queries, content, self.query_dim, self.d_model)
        return queries + content if into == "query_pos" else torch.cat([queries, content], dim=-1)


def build_transformer(
    *,
    d_model: int,
    nhead: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    dim_feedforward: int,
    dropout: float,
    pre_norm: bool = False,
) -> Transformer:
    """The Transformer of vanilla DETR; ``pre_norm`` is that of DETR and UP-DETR (see ``TransformerLayer``)."""
    shared = {"d_model": d_model, "nhead": nhead, "dim_feedforward": dim_feedforward}
    shared |= {"dropout": dropout, "pre_norm": pre_norm}
    return Transformer(
        d_model=d_model,
        encoder=TransformerEncoder(num_layers=num_encoder_layers, **shared),
        decoder=TransformerDecoder(num_layers=num_decoder_layers, **shared),
    )


PRE_NORM = Flag(
    name="pre_norm",
    help="norm what enters attention and feed-forward, not the sum that leaves them, as UP-DETR's checkpoints do",
    options={"action": "store_true"},
    default=False,
)
ENCODER_NORM = "transformer.encoder.norm.weight"
"""A parameter that only encoders with pre-norm have."""


def infer_norms(weights: dict[str, Any], sizes: Callable[[str], int], known: dict[str, Any]) -> dict[str, Any]:
    """``--pre_norm`` of a state dict."""
    return {PRE_NORM.name: ENCODER_NORM in weights}


def only_post_norm(args: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of Hugging Face as it is.

    Raises:
        UserError: the detector has pre-norm, for which transformers has no option.
    """
    if args.get(PRE_NORM.name):
        raise UserError(f"--to hf: transformers has no --pre_norm for --detr {args['detr']}; --to detr can hold it")
    return config


def build_vanilla(
    args: argparse.Namespace, num_logits: int, *, classification: Classification, train_backbone: bool
) -> DETR:
    """DETR with random weights."""
    make = partial(build_transformer, pre_norm=args.pre_norm)
    return build_single_scale(args, make, num_logits, classification=classification, train_backbone=train_backbone)


VANILLA = DetectorRecord(
    title="DETR (arXiv 2005.12872)",
    build=build_vanilla,
    classification="softmax",
    finetuning=Finetuning(epochs=150, drop_at=2 / 3),
    pretraining={"detreg": {"epochs": 60, "lr_drop": 200}},
    flags=(PRE_NORM,),
    signs=("transformer.decoder.layers.0.multihead_attn.in_proj_weight",),
    infer=infer_norms,
    deciding_flags=((r"transformer\.encoder\.norm", "--pre_norm"),),
    hugging_face=HuggingFace(
        model_type="detr",
        class_name="Detr",
        names=[
            *SINGLE_SCALE,
            ("model.decoder.layers.*.encoder_attn.", "transformer.decoder.layers.*.multihead_attn."),
        ],
        config=only_post_norm,
    ),
)
