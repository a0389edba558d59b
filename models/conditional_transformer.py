"""The Transformer of Conditional DETR (arXiv 2108.06152): DETR's encoder, and a decoder whose cross-attention
matches content with content and position with position.

Names in the paper: a query's reference point s = sigmoid(ref_point_head(query)), its sine embedding p_s, and
the transformation T = query_scale(decoder embedding) that turns it into the spatial query p_q = T p_s.
"""

from __future__ import annotations

import argparse
import math
import re

import torch
from torch import Tensor, nn

from models.build import build_single_scale
from models.checkpoints.hf_shared import SINGLE_SCALE
from models.detr import DETR
from models.feed_forward import FeedForwardLayer
from models.interface import Decoded, Memory
from models.layers import MLP, ProjectedAttention, full_precision
from models.position_encoding import sine_waves
from models.transformer import Transformer, TransformerEncoder, may_attend
from util.records import Classification, DetectorRecord, Finetuning, HuggingFace


def sine_embedding(points: Tensor, num_features: int) -> Tensor:
    """Points (x, y) in [0, 1], [..., 2] -> [..., num_features]: the first half encodes y, the second x.

    The frequencies are those of the sine position encoding, so that a point's embedding is comparable with
    the encoding of the memory positions.
    """
    return sine_waves(2 * math.pi * points.flip(-1), num_features // 2).flatten(-2)


def concatenate_heads(content: Tensor, position: Tensor, nhead: int) -> Tensor:
    """[B, N, C] twice -> [B, N, 2C] in which each head holds its own slice of both."""
    parts = [x.unflatten(-1, (nhead, -1)) for x in (content, position)]
    return torch.cat(parts, dim=-1).flatten(-2)


class ConditionalDecoderLayer(FeedForwardLayer):
    """Self-attention of the queries, conditional cross-attention, feed-forward; post-norm.

    Args:
        is_first: in the first layer the decoder embedding holds nothing yet, so that the query and the
            position encoding also join the content part of the cross-attention; only this layer has
            ``ca_qpos_proj``.
    """

    def __init__(self, *, d_model: int, nhead: int, dim_feedforward: int, dropout: float, is_first: bool) -> None:
        super().__init__(d_model=d_model, dim_feedforward=dim_feedforward, dropout=dropout)
        self.nhead = nhead
        self.sa_qcontent_proj = nn.Linear(d_model, d_model)
        self.sa_qpos_proj = nn.Linear(d_model, d_model)
        self.sa_kcontent_proj = nn.Linear(d_model, d_model)
        self.sa_kpos_proj = nn.Linear(d_model, d_model)
        self.sa_v_proj = nn.Linear(d_model, d_model)
        self.self_attn = ProjectedAttention(value_dim=d_model, nhead=nhead, dropout=dropout)

        self.ca_qcontent_proj = nn.Linear(d_model, d_model)
        self.ca_qpos_proj = nn.Linear(d_model, d_model) if is_first else None
        self.ca_kcontent_proj = nn.Linear(d_model, d_model)
        self.ca_kpos_proj = nn.Linear(d_model, d_model)
        self.ca_v_proj = nn.Linear(d_model, d_model)
        self.ca_qpos_sine_proj = nn.Linear(d_model, d_model)
        self.cross_attn = ProjectedAttention(value_dim=d_model, nhead=nhead, dropout=dropout)

        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)

    def forward(
        self,
        target: Tensor,
        queries: Tensor,
        spatial_queries: Tensor,
        memory: Memory,
        allowed: Tensor,
        queries_allowed: Tensor | None,
    ) -> Tensor:
        """One layer.

        Args:
            target: [B, Q, C] decoder embeddings.
            queries: [B, Q, C].
            spatial_queries: [B, Q, C], p_q of the paper.
            memory: of the encoder.
            allowed: bool [B, 1, 1, S], the positions that are no padding.
            queries_allowed: bool [Q, Q], the queries (columns) that a query (row) may attend to; None: all.

        Returns:
            [B, Q, C].
        """
        attended = self._attend_to_queries(target, queries, queries_allowed)
        target = self.norm1(target + self.dropout(attended))
        attended = self._attend_to_memory(target, queries, spatial_queries, memory, allowed)
        return self.after_attention(target, attended, self.norm2, self.norm3)

    def _attend_to_queries(self, target: Tensor, queries: Tensor, allowed: Tensor | None) -> Tensor:
        query = self.sa_qcontent_proj(target) + self.sa_qpos_proj(queries)
        key = self.sa_kcontent_proj(target) + self.sa_kpos_proj(queries)
        return self.self_attn(query, key, self.sa_v_proj(target), allowed)

    def _attend_to_memory(
        self, target: Tensor, queries: Tensor, spatial_queries: Tensor, memory: Memory, allowed: Tensor
    ) -> Tensor:
        query = self.ca_qcontent_proj(target)
        key = self.ca_kcontent_proj(memory.tokens)
        key_position = self.ca_kpos_proj(memory.pos)
        if self.ca_qpos_proj is not None:
            query = query + self.ca_qpos_proj(queries)
            key = key + key_position
        query = concatenate_heads(query, self.ca_qpos_sine_proj(spatial_queries), self.nhead)
        key = concatenate_heads(key, key_position, self.nhead)
        return self.cross_attn(query, key, self.ca_v_proj(memory.tokens), allowed)


class ConditionalDecoder(nn.Module):
    """A stack of conditional decoder layers; boxes are relative to the queries' reference points."""

    has_reference = True

    def __init__(self, *, d_model: int, nhead: int, num_layers: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConditionalDecoderLayer(
                d_model=d_model,
                nhead=nhead,
                dim_feedforward=dim_feedforward,
                dropout=dropout,
                is_first=index == 0,
            )
            for index in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.query_scale = MLP(d_model, d_model, d_model, 2)
        self.ref_point_head = MLP(d_model, d_model, 2, 2)

    def forward(self, memory: Memory, queries: Tensor, query_mask: Tensor | None) -> Decoded:
        """See :meth:`Transformer.decode`; the reference is [B, Q, 2]."""
        reference, point_embedding = self._reference(queries)
        allowed = may_attend(memory.mask)
        queries_allowed = None if query_mask is None else ~query_mask
        target = torch.zeros_like(queries)
        outputs = []
        for index, layer in enumerate(self.layers):
            # The first layer has no decoder embedding to derive a transformation from.
            spatial_queries = point_embedding if index == 0 else point_embedding * self.query_scale(target)
            target = layer(target, queries, spatial_queries, memory, allowed, queries_allowed)
            outputs.append(target)
        return Decoded(hidden=self.norm(torch.stack(outputs)), reference=reference)

    def _reference(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the reference points [B, Q, 2] and the sine embedding of the points [B, Q, C]."""
        with full_precision(queries.device.type):
            reference = self.ref_point_head(queries.to(self.norm.weight.dtype))
            return reference, sine_embedding(reference.sigmoid(), queries.shape[-1])


def build_conditional_transformer(
    *,
    d_model: int,
    nhead: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    dim_feedforward: int,
    dropout: float,
) -> Transformer:
    """The Transformer of Conditional DETR."""
    widths = {"d_model": d_model, "nhead": nhead, "dim_feedforward": dim_feedforward, "dropout": dropout}
    return Transformer(
        d_model=d_model,
        encoder=TransformerEncoder(num_layers=num_encoder_layers, **widths),
        decoder=ConditionalDecoder(num_layers=num_decoder_layers, **widths),
    )


def build_conditional(
    args: argparse.Namespace, num_logits: int, *, classification: Classification, train_backbone: bool
) -> DETR:
    """Conditional DETR with random weights."""
    return build_single_scale(
        args, build_conditional_transformer, num_logits, classification=classification, train_backbone=train_backbone
    )


_ATTENTION_IN_MEMORY = re.compile(
    r"(model\.decoder\.layers\.\d+\.)(self|encoder)_attn\.([qk]_(?:content|pos|pos_sine)|v)_proj\."
)
_PROJECTIONS = (
    "sa_qcontent sa_qpos sa_kcontent sa_kpos sa_v ca_qcontent ca_qpos ca_kcontent ca_kpos ca_v ca_qpos_sine".split()
)


def _name_in_file(name: str) -> str:
    """``self_attn.q_pos_proj`` -> ``sa_qpos_proj``, ``encoder_attn.q_pos_sine_proj`` -> ``ca_qpos_sine_proj``."""
    match = _ATTENTION_IN_MEMORY.match(name)
    if match is None:
        return name
    short = {"self": "sa", "encoder": "ca"}[match[2]]
    return f"{match[1]}{short}_{match[3].replace('_', '', 1)}_proj.{name[match.end() :]}"


CONDITIONAL = DetectorRecord(
    title="Conditional DETR (arXiv 2108.06152)",
    build=build_conditional,
    classification="focal",
    finetuning=Finetuning(epochs=50, drop_at=0.8),
    pretraining={"siamese": {"feature_loss_coef": 5.0}},
    leaves_unused=lambda args: args.dec_layers == 1,  # query_scale serves the layers after the first
    signs=("transformer.decoder.layers.0.sa_qcontent_proj.weight",),
    hugging_face=HuggingFace(
        model_type="conditional_detr",
        class_name="ConditionalDetr",
        names=[
            *SINGLE_SCALE,
            ("model.decoder.layers.*.encoder_attn.", "transformer.decoder.layers.*.cross_attn."),
            *[
                (f"model.decoder.layers.*.{name}_proj.", f"transformer.decoder.layers.*.{name}_proj.")
                for name in _PROJECTIONS
            ],
            ("model.decoder.query_scale.", "transformer.decoder.query_scale."),
            ("model.decoder.ref_point_head.", "transformer.decoder.ref_point_head."),
        ],
        signs=("model.decoder.query_scale.",),
        name_in_file=_name_in_file,
    ),
)
