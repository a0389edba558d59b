"""``F.scaled_dot_product_attention`` with the dropout of ``models/fast/dropout.py``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.fast.dropout import Dropout, on_eager_cpu


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None, dropout: Dropout
) -> Tensor:
    """``dropout(softmax(query key^T / sqrt(E))) value``, head by head.

    In training on a CPU, PyTorch also computes the whole attention map, but with slower random numbers.

    Args:
        query: [B, heads, Q, E].
        key: [B, heads, S, E].
        value: [B, heads, S, V].
        blocked: bool, broadcastable to [B, heads, Q, S], True where a query may not attend to a key. PyTorch's function
            takes the opposite; only this function converts.
        dropout: of the attention weights.

    Returns:
        [B, heads, Q, V].
    """
    p = dropout.p if dropout.training else 0.0
    if p == 0 or not on_eager_cpu(query):
        may_attend = None if blocked is None else ~blocked
        return F.scaled_dot_product_attention(query, key, value, attn_mask=may_attend, dropout_p=p)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # [B, heads, Q, S]
    if blocked is not None:
        scores = scores.masked_fill_(blocked, float("-inf"))
    return dropout(scores.softmax(dim=-1)) @ value
