"""The Transformer of Conditional DETR (arXiv 2108.06152): DETR's encoder, and a decoder whose cross-attention
compares content with content and position with position.

Names in the paper: a query's reference point is s = sigmoid(ref_point_head(query)) and p_s its sine embedding. The
transformation T = query_scale(decoder embedding) turns it into the spatial query p_q = T p_s.
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
from models.interface import Decoded, Memory, split_queries
from models.layers import MLP, ProjectedAttention, TransformerConfig, TransformerLayer, full_precision
from models.position_encoding import sine_waves
from models.transformer import PRE_NORM, Transformer, TransformerEncoder, infer_norms, only_post_norm
from util.records import Classification, DetectorRecord, Finetuning, HuggingFace


def sine_embedding(points: Tensor, num_features: int) -> Tensor:
    """Points (x, y) in [0, 1], [..., 2] -> [..., num_features]: the first half encodes y, the second x.

    The frequencies are those of the sine position encoding, so that attention can compare a point's embedding with
    the encoding of the memory positions.
    """
    return sine_waves(2 * math.pi * points.flip(-1), num_features // 2).flatten(-2)


def concatenate_heads(content: Tensor, position: Tensor, nhead: int) -> Tensor:
    """Content and position [B, N, C] -> [B, N, 2C]; each head holds its own slice of both."""
    parts = [x.unflatten(-1, (nhead, -1)) for x in (content, position)]
    return torch.cat(parts, dim=-1).flatten(-2)


class ConditionalDecoderLayer(TransformerLayer):
    """Self-attention of the queries, conditional cross-attention, feed-forward (figure 3 of the paper).

    Args:
        is_first: in the first layer the content ``tgt`` is still zero; so its cross-attention also adds ``query_pos``
            and the position encoding to the content part. Only this layer has ``ca_qpos_proj``.
    """

    def __init__(self, config: TransformerConfig, *, is_first: bool) -> None:
        super().__init__(config)
        d_model = config.d_model
        self.nhead = config.nhead
        self.sa_qcontent_proj = nn.Linear(d_model, d_model)
        self.sa_qpos_proj = nn.Linear(d_model, d_model)
        self.sa_kcontent_proj = nn.Linear(d_model, d_model)
        self.sa_kpos_proj = nn.Linear(d_model, d_model)
        self.sa_v_proj = nn.Linear(d_model, d_model)
        self.self_attn = ProjectedAttention(config)

        self.ca_qcontent_proj = nn.Linear(d_model, d_model)
        self.ca_qpos_proj = nn.Linear(d_model, d_model) if is_first else None
        self.ca_kcontent_proj = nn.Linear(d_model, d_model)
        self.ca_kpos_proj = nn.Linear(d_model, d_model)
        self.ca_v_proj = nn.Linear(d_model, d_model)
        self.ca_qpos_sine_proj = nn.Linear(d_model, d_model)
        self.cross_attn = ProjectedAttention(config)

        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)

    def forward(
        self, tgt: Tensor, query_pos: Tensor, query_sine: Tensor, memory: Memory, query_mask: Tensor | None
    ) -> Tensor:
        """One layer.

        Args:
            tgt: [B, Q, C], the decoder embeddings, the output of the previous layer.
            query_pos: [B, Q, C], the learned queries.
            query_sine: [B, Q, C], the spatial queries p_q.
            memory: of the encoder, S positions.
            query_mask: see :meth:`Transformer.decode`.

        Returns:
            [B, Q, C].
        """
        tgt = self.sublayer(tgt, self.norm1, lambda x: self._self_attention(x, query_pos, query_mask))
        tgt = self.sublayer(tgt, self.norm2, lambda x: self._cross_attention(x, query_pos, query_sine, memory))
        return self.sublayer(tgt, self.norm3, self.feed_forward)

    def _self_attention(self, x: Tensor, query_pos: Tensor, query_mask: Tensor | None) -> Tensor:
        q = self.sa_qcontent_proj(x) + self.sa_qpos_proj(query_pos)
        k = self.sa_kcontent_proj(x) + self.sa_kpos_proj(query_pos)
        return self.self_attn(q, k, self.sa_v_proj(x), attn_mask=query_mask)

    def _cross_attention(self, x: Tensor, query_pos: Tensor, query_sine: Tensor, memory: Memory) -> Tensor:
        q = self.ca_qcontent_proj(x)  # [B, Q, C]
        k = self.ca_kcontent_proj(memory.tokens)  # [B, S, C]
        k_pos = self.ca_kpos_proj(memory.pos)
        if self.ca_qpos_proj is not None:
            q = q + self.ca_qpos_proj(query_pos)
            k = k + k_pos
        q = concatenate_heads(q, self.ca_qpos_sine_proj(query_sine), self.nhead)  # [B, Q, 2C]
        k = concatenate_heads(k, k_pos, self.nhead)  # [B, S, 2C]
        return self.cross_attn(q, k, self.ca_v_proj(memory.tokens), key_padding_mask=memory.mask)


class ConditionalDecoder(nn.Module):
    """A stack of conditional decoder layers; boxes are relative to the queries' reference points."""

    has_reference = True

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d_model, num_layers = config.d_model, config.num_decoder_layers
        self.layers = nn.ModuleList(ConditionalDecoderLayer(config, is_first=i == 0) for i in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.query_scale = MLP(d_model, d_model, d_model, 2)
        self.ref_point_head = MLP(d_model, d_model, 2, 2)

    def forward(self, memory: Memory, queries: Tensor, query_mask: Tensor | None) -> Decoded:
        """See :meth:`Transformer.decode`; the reference is [B, Q, 2]."""
        query_pos, tgt = split_queries(queries, memory.tokens.shape[-1])  # [B, Q, C] each
        reference, point_embedding = self._reference(query_pos)  # [B, Q, 2], [B, Q, C]
        outputs = []
        for index, layer in enumerate(self.layers):
            # p_q = T p_s; in the first layer T = 1, because the decoder embedding is still zero.
            query_sine = point_embedding if index == 0 else point_embedding * self.query_scale(tgt)
            tgt = layer(tgt, query_pos, query_sine, memory, query_mask)
            outputs.append(tgt)
        return Decoded(hidden=self.norm(torch.stack(outputs)), reference=reference)  # [L, B, Q, C]

    def _reference(self, query_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the reference points [B, Q, 2] and the sine embedding of the points [B, Q, C]."""
        with full_precision(query_pos.device.type):
            reference = self.ref_point_head(query_pos.to(self.norm.weight.dtype))
            return reference, sine_embedding(reference.sigmoid(), query_pos.shape[-1])


def build_conditional_transformer(config: TransformerConfig) -> Transformer:
    """The Transformer of Conditional DETR.

    The public code has ``pre_norm`` in the encoder only; here the decoder has it as well, as in DETR.
    """
    return Transformer(config.d_model, encoder=TransformerEncoder(config), decoder=ConditionalDecoder(config))


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
    flags=(PRE_NORM,),
    signs=("transformer.decoder.layers.0.sa_qcontent_proj.weight",),
    infer=infer_norms,
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
        config=only_post_norm,
    ),
)
