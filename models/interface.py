"""What passes between the detector and its Transformer; every Transformer here has this interface.

Attributes of a Transformer: ``d_model`` (C), ``query_dim`` (width of the learned queries; None: it makes its own) and
``has_reference`` (whether :class:`Decoded` has one). Its methods: ``encode`` (feature maps -> :class:`Memory`),
``decode`` (memory and queries -> :class:`Decoded`), ``with_content`` (adds the content of regions to the queries, see
:data:`ContentPlace`) and ``make_heads`` (one head for all decoder layers, or one per layer). All tensors are batch
first. A mask is True at padding, or where a query may not attend, as in ``nn.MultiheadAttention``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ContentPlace = Literal["query_pos", "tgt"]
"""What the content of a region is added to: the queries' positions, or the content of the first decoder layer."""


@dataclass
class Memory:
    """The encoder's output for a batch: S positions, all levels one after the other.

    Attributes:
        tokens: [B, S, C]; ignore the values at padded positions.
        mask: [B, S] bool, True at padded positions.
        pos: [B, S, C] position encoding.
        shapes: (height, width) of each level, in the order of its positions in S.
    """

    tokens: Tensor
    mask: Tensor
    pos: Tensor
    shapes: list[tuple[int, int]]


@dataclass
class Decoded:
    """The decoder's output, of every layer.

    Attributes:
        hidden: [L, B, Q, C], after the decoder's final norm.
        reference: logits of the points (or boxes) that the box head's output is added to, broadcastable to
            [L, B, Q, 2 or 4] in the order cx, cy(, w, h); None: the box head predicts the whole box.
        proposals: what a two-stage encoder predicts at each of its S positions, "pred_logits" [1, B, S, K] and
            "pred_boxes" [1, B, S, 4] (cxcywh in [0, 1]); None with one stage.
    """

    hidden: Tensor
    reference: Tensor | None
    proposals: dict[str, Tensor] | None = None

    def at(self, query: Tensor) -> Tensor:
        """Outputs of N queries per layer and image, by their indices: [L, B, N] -> [L, B, N, C]."""
        return self.hidden.gather(2, query[..., None].expand(*query.shape, self.hidden.shape[-1]))


def check_widths(queries: Tensor, content: Tensor, query_dim: int, content_dim: int) -> None:
    """Check the shapes of queries [B, Q, query_dim] and contents [B, Q, content_dim].

    Raises:
        ValueError: they differ from these; the calling code is wrong.
    """
    expected = (*queries.shape[:2], query_dim), (*queries.shape[:2], content_dim)
    if (queries.shape, content.shape) != expected:
        raise ValueError(
            f"queries {list(queries.shape)} and contents {list(content.shape)}: must be [B, Q, {query_dim}] and "
            f"[B, Q, {content_dim}]"
        )


def split_queries(queries: Tensor, d_model: int) -> tuple[Tensor, Tensor]:
    """Queries [B, Q, C] or [B, Q, 2C] -> ``query_pos`` and ``tgt`` (zeros without a second half), [B, Q, C] each."""
    if queries.shape[-1] == d_model:
        return queries, torch.zeros_like(queries)
    return queries.chunk(2, dim=-1)
