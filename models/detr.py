"""The detector: backbone, Transformer, heads; one class for all Transformers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.interface import ContentPlace, Decoded, Memory
from models.layers import MLP, full_precision, to_float32
from util.nested_tensor import NestedTensor
from util.records import Classification

FOCAL_PRIOR = 0.01
"""Probability of every class before training, with the focal loss (arXiv 1708.02002, section 3.3)."""


class DETR(nn.Module):
    """A detector; pretext tasks call its stages one by one.

    ``forward(images)`` is ``predict(decode(encode(features(images), images.mask), queries(len(images))))``; :meth:`ask`
    is all of it but the features.

    Attributes:
        hidden_dim: C, width of decoder outputs.
        num_logits: K, outputs of the class head.
        classification: what the outputs mean: "softmax" (the last one is "no object") or "focal".
        query_embed: the learned queries [Q, D], D as the Transformer needs; None: the Transformer makes its own.

    Args:
        backbone: images -> feature maps, finest first.
        position_encoding: feature map -> position encoding [B, C, H, W].
        input_proj: the backbone's maps and the images' mask -> the maps that the Transformer sees.
        transformer: see ``models/interface.py``.
        num_logits: K.
        num_queries: Q.
        classification: "focal" sets the class head's bias for the focal loss.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        position_encoding: nn.Module,
        input_proj: nn.Module,
        transformer: nn.Module,
        num_logits: int,
        num_queries: int,
        classification: Classification,
    ) -> None:
        super().__init__()
        self.hidden_dim = d_model = transformer.d_model
        self.num_logits = num_logits
        self.classification = classification
        # A list, to have the public names: backbone.0.body..., backbone.1.row_embed...
        self.backbone = nn.ModuleList([backbone, position_encoding])
        self.input_proj = input_proj
        self.transformer = transformer
        self.query_embed = None if transformer.query_dim is None else nn.Embedding(num_queries, transformer.query_dim)
        class_embed = nn.Linear(d_model, num_logits)
        bbox_embed = MLP(d_model, d_model, 4, 3)
        if classification == "focal":
            nn.init.constant_(class_embed.bias, -math.log((1 - FOCAL_PRIOR) / FOCAL_PRIOR))
        if transformer.has_reference:
            # Training starts from boxes centred on the reference points.
            nn.init.zeros_(bbox_embed.layers[-1].weight)
            nn.init.zeros_(bbox_embed.layers[-1].bias)
        self.class_embed, self.bbox_embed = transformer.make_heads(class_embed, bbox_embed)

    def features(self, images: NestedTensor) -> list[NestedTensor]:
        """Feature maps of the backbone, finest first: [B, K_l, H_l, W_l] and masks [B, H_l, W_l]."""
        return self.backbone[0](images)

    def encode(self, features: list[NestedTensor], image_mask: Tensor) -> Memory:
        """Project the backbone's maps to C channels, add positions, run the encoder.

        Args:
            features: from :meth:`features`.
            image_mask: [B, h, w] of the images, True at padded pixels.
        """
        levels = self.input_proj(features, image_mask)
        return self.transformer.encode(
            [level.tensors for level in levels],
            [level.mask for level in levels],
            [self.backbone[1](level) for level in levels],
        )

    def queries(self, batch_size: int) -> Tensor | None:
        """The learned queries for every image, [B, Q, D]; None: the Transformer makes its own."""
        return None if self.query_embed is None else self.query_embed.weight.expand(batch_size, -1, -1)

    def decode(self, memory: Memory, queries: Tensor | None, query_mask: Tensor | None = None) -> Decoded:
        """Decode queries.

        Args:
            memory: from :meth:`encode`.
            queries: from :meth:`queries` or :meth:`with_content`. Those of image b attend to the memory of image b.
            query_mask: bool [Q, Q], True where a query (row) may not attend to another (column). No row may be all
                True.
        """
        return self.transformer.decode(memory, queries, query_mask)

    def with_content(self, queries: Tensor, content: Tensor, into: ContentPlace = "query_pos") -> Tensor:
        """Queries for :meth:`decode` that ask for regions; ``content`` [B, Q, C] says what the regions look like.

        The Transformer adds it to the queries' positions ("query_pos") or to the content of the first decoder layer
        ("tgt").

        Raises:
            ValueError: other widths.
        """
        return self.transformer.with_content(queries, content, into)

    def predict(self, decoded: Decoded) -> dict[str, Any]:
        """Classes and boxes of every decoder layer, in float32 under autocast as well.

        Returns:
            "pred_logits" [L, B, Q, K] and "pred_boxes" [L, B, Q, 4], cxcywh in [0, 1] of each image's unpadded size;
            layer L - 1 is the last one. With two stages also "enc_outputs", the encoder's proposals at each of its S
            positions: "pred_logits" [1, B, S, K] and "pred_boxes" [1, B, S, 4].
        """
        with full_precision(decoded.hidden.device.type):
            hidden = to_float32(decoded.hidden)
            boxes = self.bbox_embed(hidden)
            if decoded.reference is not None:
                located = decoded.reference.shape[-1]  # the centre, or centre and size
                boxes = torch.cat([boxes[..., :located] + decoded.reference, boxes[..., located:]], dim=-1)
            outputs = {"pred_logits": self.class_embed(hidden), "pred_boxes": boxes.sigmoid()}
        return outputs if decoded.proposals is None else {**outputs, "enc_outputs": decoded.proposals}

    def ask(
        self,
        features: list[NestedTensor],
        image_mask: Tensor,
        queries: Tensor | None,
        query_mask: Tensor | None = None,
    ) -> tuple[Memory, Decoded, dict[str, Any]]:
        """What the queries find in the images of these features: :meth:`encode`, :meth:`decode` and :meth:`predict`.

        One call, for ``--compile`` makes one graph of it.
        """
        memory = self.encode(features, image_mask)
        decoded = self.decode(memory, queries, query_mask)
        return memory, decoded, self.predict(decoded)

    def forward(self, images: NestedTensor) -> dict[str, Any]:
        """Detect with the learned queries; returns what :meth:`predict` does."""
        _, _, outputs = self.ask(self.features(images), images.mask, self.queries(len(images)))
        return outputs
