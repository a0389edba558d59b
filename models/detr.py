"""The detector: backbone, Transformer, heads; one class for all Transformers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.layers import MLP, full_precision
from models.transformer import Decoded, Memory
from util.nested_tensor import NestedTensor

FOCAL_PRIOR = 0.01
"""Probability of every class before training, with the focal loss (arXiv 1708.02002, section 3.3)."""


class DETR(nn.Module):
    """A detector whose stages can be called one by one, as a pretext task does.

    ``forward(images)`` is ``predict(decode(encode(features(images)), queries(len(images))))``.

    Attributes:
        hidden_dim: C, width of queries and decoder outputs.

    Args:
        backbone: images -> feature maps (one level), with ``num_channels``, a list of the channels of each.
        position_encoding: feature map -> position encoding [B, C, H, W].
        transformer: ``encode`` and ``decode``, see ``models/transformer.py``.
        num_logits: K, outputs of the class head.
        num_queries: Q, learned queries.
        focal_prior: set the class head's bias for the focal loss.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        position_encoding: nn.Module,
        transformer: nn.Module,
        num_logits: int,
        num_queries: int,
        focal_prior: bool,
    ) -> None:
        super().__init__()
        self.hidden_dim = d_model = transformer.d_model
        # A list for the sake of the public names: backbone.0.body..., backbone.1.row_embed...
        self.backbone = nn.ModuleList([backbone, position_encoding])
        self.input_proj = nn.Conv2d(backbone.num_channels[-1], d_model, kernel_size=1)
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, d_model)
        self.class_embed = nn.Linear(d_model, num_logits)
        self.bbox_embed = MLP(d_model, d_model, 4, 3)
        if focal_prior:
            nn.init.constant_(self.class_embed.bias, -math.log((1 - FOCAL_PRIOR) / FOCAL_PRIOR))
        if transformer.has_reference:
            # Training starts from boxes centred on the reference points.
            nn.init.zeros_(self.bbox_embed.layers[-1].weight)
            nn.init.zeros_(self.bbox_embed.layers[-1].bias)

    def features(self, images: NestedTensor) -> list[NestedTensor]:
        """Feature maps of the backbone, finest first: [B, K_l, H_l, W_l] and masks [B, H_l, W_l]."""
        return self.backbone[0](images)

    def encode(self, features: list[NestedTensor]) -> Memory:
        """Project the backbone's maps to C channels, add positions, run the encoder."""
        levels = self.project(features)
        return self.transformer.encode(
            [level.tensors for level in levels],
            [level.mask for level in levels],
            [self.backbone[1](level) for level in levels],
        )

    def project(self, features: list[NestedTensor]) -> list[NestedTensor]:
        """The levels that the Transformer sees: [B, C, H_l, W_l]."""
        return [NestedTensor(self.input_proj(level.tensors), level.mask) for level in features]

    def queries(self, batch_size: int) -> Tensor:
        """The learned queries for every image: [B, Q, C], a view of one copy."""
        return self.query_embed.weight.expand(batch_size, -1, -1)

    def decode(self, memory: Memory, queries: Tensor, query_mask: Tensor | None = None) -> Decoded:
        """Decode queries [B, Q, C] of any origin.

        Args:
            memory: from :meth:`encode`.
            queries: [B, Q, C]; image b's queries look into image b's memory.
            query_mask: bool [Q, Q], True where the query of the row may not attend to that of the column. No row
                may be all True.
        """
        return self.transformer.decode(memory, queries, query_mask)

    def predict(self, decoded: Decoded) -> dict[str, Tensor]:
        """Classes and boxes of every decoder layer, in float32 under autocast as well.

        Returns:
            "pred_logits" [L, B, Q, K] and "pred_boxes" [L, B, Q, 4], cxcywh in [0, 1] of each image's own
            (unpadded) size; layer L - 1 is the final one.
        """
        with full_precision(decoded.hidden.device.type):
            hidden = decoded.hidden.to(self.class_embed.weight.dtype)
            boxes = self.bbox_embed(hidden)
            if decoded.reference is not None:
                located = decoded.reference.shape[-1]  # the centre, or centre and size
                boxes = torch.cat([boxes[..., :located] + decoded.reference, boxes[..., located:]], dim=-1)
            return {"pred_logits": self.class_embed(hidden), "pred_boxes": boxes.sigmoid()}

    def forward(self, images: NestedTensor) -> dict[str, Tensor]:
        """Detect with the learned queries; see :meth:`predict` for what is returned."""
        memory = self.encode(self.features(images))
        return self.predict(self.decode(memory, self.queries(len(images))))
