"""The Transformer of DETR (arXiv 2005.12872), with the interface of ``models/interface.py``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.build import build_single_scale
from models.checkpoints.hf_shared import SINGLE_SCALE
from models.detr import DETR
from models.interface import ContentPlace, Decoded, Memory, check_widths, split_queries
from models.layers import MLP, MultiheadAttention, TransformerConfig, TransformerLayer
from util.errors import UserError
from util.records import SWITCH, Classification, DetectorRecord, Finetuning, Flag, HuggingFace


class TransformerEncoderLayer(TransformerLayer):
    """Self-attention and feed-forward (figure 10 of the paper)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_attn = MultiheadAttention(config)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)

    def forward(self, src: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """src and pos [B, S, C], mask [B, S] (True = padding) -> [B, S, C]."""

        def self_attention(x: Tensor) -> Tensor:
            q = k = x + pos
            return self.self_attn(q, k, x, key_padding_mask=mask)

        src = self.sublayer(src, self.norm1, self_attention)
        return self.sublayer(src, self.norm2, self.feed_forward)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; each adds the position encoding to its queries and keys.

    Attributes:
        norm: with pre-norm the final norm, because the last layer does not norm its sum; None with post-norm.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerEncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.norm = nn.LayerNorm(config.d_model) if config.pre_norm else None

    def forward(self, src: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """src and pos [B, S, C], mask [B, S] (True = padding) -> [B, S, C]."""
        for layer in self.layers:
            src = layer(src, pos, mask)
        return src if self.norm is None else self.norm(src)


class TransformerDecoderLayer(TransformerLayer):
    """Self-attention of the queries, cross-attention to the memory, feed-forward (figure 10 of the paper)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_attn = MultiheadAttention(config)
        self.multihead_attn = MultiheadAttention(config)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.norm3 = nn.LayerNorm(config.d_model)

    def forward(
        self, tgt: Tensor, query_pos: Tensor, memory: Memory, memory_key: Tensor, query_mask: Tensor | None
    ) -> Tensor:
        """One layer.

        Args:
            tgt: [B, Q, C], the queries' content, the output of the previous layer.
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
    """A stack of decoder layers, and one norm between their outputs and the heads."""

    has_reference = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerDecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(config.d_model)

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

    def __init__(self, d_model: int, *, encoder: nn.Module, decoder: nn.Module) -> None:
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
        # Padding has attention weights of 0, but 0 times infinity is NaN: so padding becomes 0, too.
        src = level.flatten(2).transpose(1, 2).masked_fill(mask[..., None], 0.0)  # [B, S, C]
        return Memory(self.encoder(src, positions, mask), mask, positions, [tuple(level.shape[-2:])])

    def decode(self, memory: Memory, queries: Tensor, query_mask: Tensor | None = None) -> Decoded:
        """Decode the queries; returns the outputs of all decoder layers.

        Args:
            memory: from :meth:`encode`.
            queries: [B, Q, C], added as positions in every layer; the content starts as zeros. Or [B, Q, 2C]: first
                the positions, then the content that the first layer starts with.
            query_mask: bool [Q, Q], True where a query (row) may not attend to another (column). No row may be all
                True. None: every query attends to all.
        """
        return self.decoder(memory, queries, query_mask)

    def with_content(self, queries: Tensor, content: Tensor, into: ContentPlace = "query_pos") -> Tensor:
        """Learned queries [B, Q, C] that ask for the regions with the content ``content`` [B, Q, C].

        Returns:
            Their sum [B, Q, C]. With ``into`` "tgt" both side by side, [B, Q, 2C]: the decoder starts with ``content``.

        Raises:
            ValueError: other widths.
        """
        check_widths(queries, content, self.query_dim, self.d_model)
        return queries + content if into == "query_pos" else torch.cat([queries, content], dim=-1)


def build_transformer(config: TransformerConfig) -> Transformer:
    """The Transformer of vanilla DETR."""
    return Transformer(config.d_model, encoder=TransformerEncoder(config), decoder=TransformerDecoder(config))


PRE_NORM = Flag(
    name="pre_norm",
    help="norm the inputs of attention and feed-forward instead of their sums, as UP-DETR's checkpoints need",
    options=SWITCH,
    default=False,
)
ENCODER_NORM = "transformer.encoder.norm.weight"
"""A parameter that only encoders with pre-norm have."""


def infer_norms(weights: dict[str, Any], sizes: Callable[[str], int], known: dict[str, Any]) -> dict[str, Any]:
    """``--pre_norm`` of a state dict."""
    return {PRE_NORM.name: ENCODER_NORM in weights}


def only_post_norm(args: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of Hugging Face, unchanged; raises UserError for pre-norm, which transformers does not have."""
    if args.get(PRE_NORM.name):
        raise UserError(f"--to hf: transformers has no --pre_norm for --detr {args['detr']}; use --to detr")
    return config


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
