"""The Transformer of Deformable DETR (arXiv 2010.04159), over one or several levels of feature maps.

Attention to the maps samples a few points around a reference. In the encoder each position is its own reference; in
the decoder each query has a point or a box. The paper has two variants (section 4.2). With iterative box refinement,
the box that a decoder layer predicts is the next layer's reference. With two stages, the encoder's best boxes are the
first references, and the queries are made from them.
"""

from __future__ import annotations

import argparse
import copy
import math

import torch
from torch import Tensor, nn

from models.build import backbone_of, config_of, positions_of
from models.checkpoints.deformable import DECIDING_FLAGS, HUGGING_FACE, infer, tidy
from models.detr import DETR
from models.input_projection import NORM_GROUPS, LevelProjection
from models.interface import ContentPlace, Decoded, Memory, check_widths
from models.layers import (
    MLP,
    LayerHeads,
    MultiheadAttention,
    TransformerConfig,
    TransformerLayer,
    full_precision,
    inverse_sigmoid,
)
from models.position_encoding import sine_waves
from models.reference_points import anchors_of, as_box_logits, pixel_centres, valid_ratios
from ops.module import Levels, MSDeformAttn
from util.errors import UserError
from util.records import SWITCH, Classification, DetectorRecord, Finetuning, Flag, Stage

PIXEL_CENTRE = 0.5
"""Deformable DETR subtracts it from rows and columns counted from 1; the other detectors subtract nothing."""

INITIAL_SIZE_LOGIT = -2.0
"""With one stage, boxes start small: width and height are sigmoid(-2) = 0.12."""


class DeformableEncoderLayer(TransformerLayer):
    """Deformable self-attention of all positions, feed-forward.

    ``sampling`` are ``num_levels`` and ``num_points`` of :class:`ops.module.MSDeformAttn`, here and below.
    """

    def __init__(self, config: TransformerConfig, **sampling: int) -> None:
        super().__init__(config)
        self.self_attn = MSDeformAttn(d_model=config.d_model, nhead=config.nhead, **sampling)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)

    def forward(self, src: Tensor, pos: Tensor, reference: Tensor, mask: Tensor, levels: Levels) -> Tensor:
        """src and pos [B, S, C], reference [B, S, L, 2], mask [B, S] (True = padding) -> [B, S, C]."""
        src = self.sublayer(src, self.norm1, lambda x: self.self_attn(x + pos, reference, x, mask, levels))
        return self.sublayer(src, self.norm2, self.feed_forward)


class DeformableEncoder(nn.Module):
    """A stack of deformable encoder layers without a final norm."""

    def __init__(self, config: TransformerConfig, **sampling: int) -> None:
        super().__init__()
        num_layers = config.num_encoder_layers
        self.layers = nn.ModuleList(DeformableEncoderLayer(config, **sampling) for _ in range(num_layers))

    def forward(self, src: Tensor, pos: Tensor, reference: Tensor, mask: Tensor, levels: Levels) -> Tensor:
        """As :meth:`DeformableEncoderLayer.forward`."""
        for layer in self.layers:
            src = layer(src, pos, reference, mask, levels)
        return src


class DeformableDecoderLayer(TransformerLayer):
    """Self-attention of the queries, deformable attention to the memory, feed-forward.

    In the public checkpoints ``norm2`` belongs to the self-attention and ``norm1`` to the cross-attention.
    """

    def __init__(self, config: TransformerConfig, **sampling: int) -> None:
        super().__init__(config)
        self.cross_attn = MSDeformAttn(d_model=config.d_model, nhead=config.nhead, **sampling)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.self_attn = MultiheadAttention(config)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.norm3 = nn.LayerNorm(config.d_model)

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        reference: Tensor,
        memory: Memory,
        levels: Levels,
        query_mask: Tensor | None,
    ) -> Tensor:
        """One layer.

        Args:
            tgt: [B, Q, C], the queries' content, the output of the previous layer.
            query_pos: [B, Q, C], the queries' positions, added to ``tgt`` in queries and keys, never in values.
            reference: [B, Q, levels, 2 or 4], points or boxes relative to the padded maps.
            memory: of the encoder.
            levels: of the memory.
            query_mask: see :meth:`DeformableTransformer.decode`.

        Returns:
            [B, Q, C].
        """

        def self_attention(x: Tensor) -> Tensor:
            q = k = x + query_pos
            return self.self_attn(q, k, x, attn_mask=query_mask)

        def cross_attention(x: Tensor) -> Tensor:
            return self.cross_attn(x + query_pos, reference, memory.tokens, memory.mask, levels)

        tgt = self.sublayer(tgt, self.norm2, self_attention)
        tgt = self.sublayer(tgt, self.norm1, cross_attention)
        return self.sublayer(tgt, self.norm3, self.feed_forward)


class DeformableDecoder(nn.Module):
    """A stack of deformable decoder layers without a final norm.

    Attributes:
        bbox_embed: the detector's box heads, one per layer, if they refine the references; else None.
        class_embed: the detector's class heads with two stages; else None.
    """

    def __init__(self, config: TransformerConfig, **sampling: int) -> None:
        super().__init__()
        num_layers = config.num_decoder_layers
        self.layers = nn.ModuleList(DeformableDecoderLayer(config, **sampling) for _ in range(num_layers))
        self.bbox_embed: nn.ModuleList | None = None
        self.class_embed: nn.ModuleList | None = None

    def forward(
        self, memory: Memory, tgt: Tensor, query_pos: Tensor, reference: Tensor, query_mask: Tensor | None
    ) -> Decoded:
        """Decode the queries; returns the outputs of all layers.

        Args:
            memory: of the encoder.
            tgt: [B, Q, C], the content that the first layer starts with.
            query_pos: [B, Q, C], the queries' position embeddings.
            reference: [B, Q, 2 or 4], points or boxes in [0, 1] of the unpadded image.
            query_mask: see :meth:`DeformableTransformer.decode`.
        """
        ratios = valid_ratios(memory.mask, memory.shapes, reference.dtype)[:, None]  # [B, 1, levels, 2]
        levels = Levels.of(memory.shapes, memory.tokens)
        hidden, references = [], []
        for index, layer in enumerate(self.layers):
            in_padded_maps = reference[:, :, None] * ratios.repeat(1, 1, 1, reference.shape[-1] // 2)
            tgt = layer(tgt, query_pos, in_padded_maps, memory, levels, query_mask)
            hidden.append(tgt)
            references.append(inverse_sigmoid(reference))
            if self.bbox_embed is not None:
                reference = self._refine(self.bbox_embed[index], tgt, references[-1])
        if self.bbox_embed is None:
            return Decoded(hidden=torch.stack(hidden), reference=references[0])
        return Decoded(hidden=torch.stack(hidden), reference=torch.stack([as_box_logits(x) for x in references]))

    @staticmethod
    @torch.no_grad()
    def _refine(box_head: nn.Module, tgt: Tensor, reference: Tensor) -> Tensor:
        """The boxes [B, Q, 4] in [0, 1] that a layer predicts, from the logits of its references; no gradient."""
        with full_precision(tgt.device.type):
            return (box_head(tgt.to(reference.dtype)) + as_box_logits(reference)).sigmoid()


class DeformableTransformer(nn.Module):
    """An encoder and a decoder that see one or several feature maps; see ``models/interface.py``.

    Args:
        num_levels: number of feature maps.
        enc_n_points, dec_n_points: points per head and map.
        with_box_refine: each decoder layer starts from the box that the layer before predicts.
        num_proposals: with two stages, the number of queries that are made from the memory; :meth:`decode` then takes
            no queries. None: one stage.
    """

    has_reference = True

    def __init__(
        self,
        config: TransformerConfig,
        *,
        num_levels: int,
        enc_n_points: int,
        dec_n_points: int,
        with_box_refine: bool = False,
        num_proposals: int | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model = config.d_model
        self.query_dim = None if num_proposals else 2 * d_model
        self.with_box_refine = with_box_refine
        self.num_proposals = num_proposals
        self.encoder = DeformableEncoder(config, num_levels=num_levels, num_points=enc_n_points)
        self.decoder = DeformableDecoder(config, num_levels=num_levels, num_points=dec_n_points)
        self.level_embed = nn.Parameter(torch.empty(num_levels, d_model))
        if num_proposals:
            self.enc_output = nn.Linear(d_model, d_model)
            self.enc_output_norm = nn.LayerNorm(d_model)
            self.pos_trans = nn.Linear(2 * d_model, 2 * d_model)
            self.pos_trans_norm = nn.LayerNorm(2 * d_model)
        else:
            self.reference_points = nn.Linear(d_model, 2)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        if not self.num_proposals:
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def make_heads(self, class_embed: nn.Linear, bbox_embed: MLP) -> tuple[LayerHeads, LayerHeads]:
        """One class head and one box head per decoder layer, and with two stages one more for the encoder.

        With refinement the heads are independent. The decoder registers the heads that it needs a second time, as in
        the public checkpoints. Without refinement all heads are the same module.
        """
        num_heads = len(self.decoder.layers) + (1 if self.num_proposals else 0)
        if self.with_box_refine:
            class_embed = LayerHeads(copy.deepcopy(class_embed) for _ in range(num_heads))
            bbox_embed = LayerHeads(copy.deepcopy(bbox_embed) for _ in range(num_heads))
            # Later layers start from the first layer's box; proposals already have a size.
            if not self.num_proposals:
                nn.init.constant_(bbox_embed[0].layers[-1].bias.data[2:], INITIAL_SIZE_LOGIT)
            self.decoder.bbox_embed = bbox_embed
        else:
            nn.init.constant_(bbox_embed.layers[-1].bias.data[2:], INITIAL_SIZE_LOGIT)
            class_embed = LayerHeads([class_embed] * num_heads)
            bbox_embed = LayerHeads([bbox_embed] * num_heads)
        if self.num_proposals:
            self.decoder.class_embed = class_embed
        return class_embed, bbox_embed

    def encode(self, maps: list[Tensor], masks: list[Tensor], pos: list[Tensor]) -> Memory:
        """Encode the feature maps of a batch of images.

        Args:
            maps: per level [B, C, H, W], finest first. Values at padded positions do not matter.
            masks: per level [B, H, W] bool, True at padded positions; the top left corner is never padding.
            pos: per level [B, C, H, W], position encoding.

        Returns:
            The memory of S positions, the sum of all H * W.
        """
        shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        mask = torch.cat([level.flatten(1) for level in masks], dim=1)  # [B, S]
        positions = torch.cat(
            [level.flatten(2).transpose(1, 2) + embed for level, embed in zip(pos, self.level_embed, strict=True)],
            dim=1,
        )  # [B, S, C]
        src = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # [B, S, C]
        # Padding counts as 0 in the attention, but the projection's gradient is 0 times padding, which may be NaN.
        src = src.masked_fill(mask[..., None], 0.0)
        ratios = valid_ratios(mask, shapes, self.level_embed.dtype)
        centres = torch.cat(pixel_centres(ratios, shapes), dim=1)
        reference = centres[:, :, None] * ratios[:, None]  # [B, S, levels, 2]
        tokens = self.encoder(src, positions, reference, mask, Levels.of(shapes, src))
        return Memory(tokens, mask, positions, shapes)

    def decode(self, memory: Memory, queries: Tensor | None, query_mask: Tensor | None = None) -> Decoded:
        """Decode the queries; returns the outputs of all decoder layers.

        Args:
            memory: from :meth:`encode`.
            queries: [B, Q, 2C]: first ``query_pos``, which also gives the reference point, then ``tgt``, the content
                that the first layer starts with. With two stages None: the queries are made from the memory.
            query_mask: bool [Q, Q], True where a query (row) may not attend to another (column). No row may be all
                True. None: every query attends to all.
        """
        proposals = None
        if queries is None:
            queries, reference, proposals = self._propose(memory)
            query_pos, tgt = queries.chunk(2, dim=-1)
        else:
            query_pos, tgt = queries.chunk(2, dim=-1)
            with full_precision(queries.device.type):
                reference = self.reference_points(query_pos.to(self.level_embed.dtype)).sigmoid()
        decoded = self.decoder(memory, tgt, query_pos, reference, query_mask)
        decoded.proposals = proposals
        return decoded

    def with_content(self, queries: Tensor, content: Tensor, into: ContentPlace = "query_pos") -> Tensor:
        """Learned queries [B, Q, 2C] that ask for the regions with ``content`` [B, Q, C]: it is added to one half.

        Raises:
            ValueError: other widths.
        """
        check_widths(queries, content, 2 * self.d_model, self.d_model)
        query_pos, tgt = queries.chunk(2, dim=-1)
        halves = [query_pos + content, tgt] if into == "query_pos" else [query_pos, tgt + content]
        return torch.cat(halves, dim=-1)

    def _propose(self, memory: Memory) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The first stage: every position proposes a box, and the best boxes become queries.

        Returns:
            Queries [B, Q, 2C], their boxes [B, Q, 4] cxcywh in [0, 1] without gradient, and all proposals as
            ``pred_logits`` [1, B, S, K] and ``pred_boxes`` [1, B, S, 4]. Q is num_proposals, or S if S is smaller.
        """
        with full_precision(memory.tokens.device.type):
            anchors, usable = anchors_of(memory.mask, memory.shapes, self.level_embed.dtype)
            tokens = memory.tokens.to(self.level_embed.dtype).masked_fill(~usable[..., None], 0.0)
            tokens = self.enc_output_norm(self.enc_output(tokens))
            logits = self.decoder.class_embed[-1](tokens)
            box_logits = self.decoder.bbox_embed[-1](tokens) + anchors
            # The encoder's loss knows only one class, "object", with label 0.
            best = logits[..., 0].topk(min(self.num_proposals, logits.shape[1]), dim=1).indices
            boxes = box_logits.detach().gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()
            embedding = sine_waves(2 * math.pi * boxes, self.d_model // 2).flatten(-2)  # [B, Q, 2C]
            queries = self.pos_trans_norm(self.pos_trans(embedding))
            return queries, boxes, {"pred_logits": logits[None], "pred_boxes": box_logits.sigmoid()[None]}


def build_deformable(
    args: argparse.Namespace, num_logits: int, *, classification: Classification, train_backbone: bool
) -> DETR:
    """Deformable DETR with random weights, single or multi-scale.

    Raises:
        UserError: flags that do not go together; the message names them.
    """
    backbone = backbone_of(args, train_backbone, multi_scale=args.num_feature_levels > 1)
    transformer = DeformableTransformer(
        config_of(args),
        num_levels=args.num_feature_levels,
        enc_n_points=args.enc_n_points,
        dec_n_points=args.dec_n_points,
        with_box_refine=args.with_box_refine,
        num_proposals=args.num_queries if args.two_stage else None,
    )
    return DETR(
        backbone=backbone,
        position_encoding=positions_of(args, backbone, offset=PIXEL_CENTRE),
        input_proj=LevelProjection(backbone.num_channels, args.hidden_dim, args.num_feature_levels),
        transformer=transformer,
        num_logits=num_logits,
        num_queries=args.num_queries,
        classification=classification,
    )


def _check(args: argparse.Namespace, stage: Stage) -> None:
    if args.two_stage and not args.with_box_refine:
        raise UserError("--two_stage needs --with_box_refine: the decoder refines the encoder's boxes")
    if args.two_stage and stage == "pretrain":
        raise UserError("--two_stage cannot be pretrained: its queries are the encoder's proposals, not regions")
    if args.hidden_dim % NORM_GROUPS:
        raise UserError(
            f"--hidden_dim {args.hidden_dim}: must be a multiple of {NORM_GROUPS}, because Deformable DETR normalises "
            f"{NORM_GROUPS} groups of channels"
        )


_FLAGS = (
    Flag(
        name="num_feature_levels",
        help="4: maps of strides 8 to 64, better for small objects; 1: one map, faster",
        options={"type": int, "choices": [1, 4]},
        default=4,
    ),
    Flag(name="enc_n_points", help="points per head and map, encoder", options={"type": int}, default=4, least=1),
    Flag(name="dec_n_points", help="points per head and map, decoder", options={"type": int}, default=4, least=1),
    Flag(
        name="with_box_refine",
        help="every decoder layer starts from the box that the previous one predicts",
        options=SWITCH,
        default=False,
    ),
    Flag(
        name="two_stage",
        help="queries are the encoder's best boxes; needs --with_box_refine, cannot be pretrained",
        options=SWITCH,
        default=False,
    ),
)


def _slower(default: float) -> Flag:
    return Flag(
        name="lr_linear_proj_mult",
        help="learning rate of reference points and sampling offsets, as a multiple of --lr",
        options={"type": float},
        default=default,
        least=0,
    )


DEFORMABLE = DetectorRecord(
    title="Deformable DETR (arXiv 2010.04159)",
    build=build_deformable,
    classification="focal",
    finetuning=Finetuning(lr=2e-4, lr_backbone_pretrained=2e-5, lr_backbone_scratch=2e-5, epochs=50, drop_at=0.8),
    flags=_FLAGS,
    training_flags={"pretrain": (_slower(1.0),), "finetune": (_slower(0.1),)},
    defaults={"dim_feedforward": 1024, "num_queries": 300},
    check=_check,
    pretraining={"detreg": {"lr": 2e-4, "lr_linear_proj_mult": 0.1}},
    rates={"reference_points": "lr_linear_proj_mult", "sampling_offsets": "lr_linear_proj_mult"},
    signs=("transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",),
    infer=infer,
    tidy=tidy,
    deciding_flags=DECIDING_FLAGS,
    hugging_face=HUGGING_FACE,
)
