"""The Transformer of DETR (arXiv 2005.12872); see ``models/interface.py`` for what every Transformer here has."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from models.build import build_single_scale
from models.checkpoints.hf_shared import SINGLE_SCALE
from models.detr import DETR
from models.feed_forward import FeedForwardLayer
from models.interface import Decoded, Memory, check_widths
from models.layers import MLP, MultiheadAttention
from util.records import Classification, DetectorRecord, Finetuning, HuggingFace


def may_attend(mask: Tensor) -> Tensor:
    """Padding [B, S] (True = padding) -> the keys that attention may use, bool [B, 1, 1, S]."""
    return ~mask[:, None, None, :]


class TransformerEncoderLayer(FeedForwardLayer):
    """Self-attention and feed-forward, each followed by a norm ("post-norm")."""

    def __init__(self, *, d_model: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__(d_model=d_model, dim_feedforward=dim_feedforward, dropout=dropout)
        self.self_attn = MultiheadAttention(d_model=d_model, nhead=nhead, dropout=dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, tokens: Tensor, pos: Tensor, allowed: Tensor) -> Tensor:
        """tokens and pos [B, S, C] -> [B, S, C]; ``allowed`` bool [B, 1, 1, S]."""
        placed = tokens + pos
        attended = self.self_attn(placed, placed, tokens, allowed)
        return self.after_attention(tokens, attended, self.norm1, self.norm2)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; the position encoding enters each of them."""

    def __init__(self, *, d_model: int, nhead: int, num_layers: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(d_model=d_model, nhead=nhead, dim_feedforward=dim_feedforward, dropout=dropout)
            for _ in range(num_layers)
        )

    def forward(self, tokens: Tensor, mask: Tensor, pos: Tensor) -> Tensor:
        """tokens [B, S, C], mask [B, S] (True = padding), pos [B, S, C] -> [B, S, C]."""
        allowed = may_attend(mask)
        for layer in self.layers:
            tokens = layer(tokens, pos, allowed)
        return tokens


class TransformerDecoderLayer(FeedForwardLayer):
    """Self-attention of the queries, cross-attention to the memory, feed-forward; post-norm."""

    def __init__(self, *, d_model: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__(d_model=d_model, dim_feedforward=dim_feedforward, dropout=dropout)
        self.self_attn = MultiheadAttention(d_model=d_model, nhead=nhead, dropout=dropout)
        self.multihead_attn = MultiheadAttention(d_model=d_model, nhead=nhead, dropout=dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)

    def forward(
        self,
        target: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        allowed: Tensor,
        queries_allowed: Tensor | None,
    ) -> Tensor:
        """One layer.

        Args:
            target: [B, Q, C] what the layers before made of the queries.
            queries: [B, Q, C], added wherever ``target`` asks or is asked.
            keys: [B, S, C] memory with its position encoding added.
            values: [B, S, C] memory.
            allowed: bool [B, 1, 1, S], the positions that are no padding.
            queries_allowed: bool [Q, Q], the queries (columns) that a query (row) may attend to; None: all.

        Returns:
            [B, Q, C].
        """
        placed = target + queries
        attended = self.self_attn(placed, placed, target, queries_allowed)
        target = self.norm1(target + self.dropout(attended))
        attended = self.multihead_attn(target + queries, keys, values, allowed)
        return self.after_attention(target, attended, self.norm2, self.norm3)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers, and the norm that each layer's output goes through before the heads."""

    has_reference = False

    def __init__(self, *, d_model: int, nhead: int, num_layers: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(d_model=d_model, nhead=nhead, dim_feedforward=dim_feedforward, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, memory: Memory, queries: Tensor, query_mask: Tensor | None) -> Decoded:
        """See :meth:`Transformer.decode`."""
        keys = memory.tokens + memory.pos
        allowed = may_attend(memory.mask)
        queries_allowed = None if query_mask is None else ~query_mask
        target = torch.zeros_like(queries)
        outputs = []
        for layer in self.layers:
            target = layer(target, queries, keys, memory.tokens, allowed, queries_allowed)
            outputs.append(target)
        return Decoded(hidden=self.norm(torch.stack(outputs)), reference=None)


class Transformer(nn.Module):
    """An encoder and a decoder that see one feature map.

    Args:
        d_model: C, the width of tokens and queries.
        encoder: (tokens, mask, pos) -> tokens.
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

    def spread_heads(self, class_embed: nn.Linear, bbox_embed: MLP) -> tuple[nn.Module, nn.Module]:
        """The heads as they are: all decoder layers share them."""
        return class_embed, bbox_embed

    def encode(self, maps: list[Tensor], masks: list[Tensor], pos: list[Tensor]) -> Memory:
        """Encode the feature maps of a batch of images; this Transformer takes exactly one level.

        Args:
            maps: [B, C, H, W] a level. What stands at padded positions is of no influence.
            masks: [B, H, W] bool a level, True at padded positions.
            pos: [B, C, H, W] position encoding a level.
        """
        (level,), (level_mask,), (level_pos,) = maps, masks, pos
        mask = level_mask.flatten(1)
        positions = level_pos.flatten(2).transpose(1, 2)
        # Attention weighs padding with 0, but 0 times an overflow is NaN: hence the zeros.
        tokens = level.flatten(2).transpose(1, 2).masked_fill(mask[..., None], 0.0)
        return Memory(self.encoder(tokens, mask, positions), mask, positions, [tuple(level.shape[-2:])])

    def decode(self, memory: Memory, queries: Tensor, query_mask: Tensor | None = None) -> Decoded:
        """Let the queries look into the memory; all decoder layers are returned.

        Args:
            memory: from :meth:`encode`.
            queries: [B, Q, C].
            query_mask: bool [Q, Q], True where the query of the row may not attend to that of the column. No row
                may be all True.
        """
        return self.decoder(memory, queries, query_mask)

    def with_content(self, queries: Tensor, content: Tensor) -> Tensor:
        """Learned queries [B, Q, C] that ask for what ``content`` [B, Q, C] describes: their sum.

        Raises:
            ValueError: other widths.
        """
        check_widths(queries, content, self.query_dim, self.d_model)
        return queries + content


def build_transformer(
    *,
    d_model: int,
    nhead: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    dim_feedforward: int,
    dropout: float,
) -> Transformer:
    """The Transformer of vanilla DETR."""
    widths = {"d_model": d_model, "nhead": nhead, "dim_feedforward": dim_feedforward, "dropout": dropout}
    return Transformer(
        d_model=d_model,
        encoder=TransformerEncoder(num_layers=num_encoder_layers, **widths),
        decoder=TransformerDecoder(num_layers=num_decoder_layers, **widths),
    )


def build_vanilla(
    args: argparse.Namespace, num_logits: int, *, classification: Classification, train_backbone: bool
) -> DETR:
    """DETR with random weights."""
    return build_single_scale(
        args, build_transformer, num_logits, classification=classification, train_backbone=train_backbone
    )


VANILLA = DetectorRecord(
    title="DETR (arXiv 2005.12872)",
    build=build_vanilla,
    classification="softmax",
    finetuning=Finetuning(epochs=150, drop_at=2 / 3),
    signs=("transformer.decoder.layers.0.multihead_attn.in_proj_weight",),
    hugging_face=HuggingFace(
        model_type="detr",
        class_name="Detr",
        names=[
            *SINGLE_SCALE,
            ("model.decoder.layers.*.encoder_attn.", "transformer.decoder.layers.*.multihead_attn."),
        ],
    ),
)
