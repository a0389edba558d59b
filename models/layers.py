"""Small layers that all Transformers and heads share."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout, on_eager_cpu


class MLP(nn.Module):
    """Linear layers with ReLU between them: [..., input_dim] -> [..., output_dim]."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ProjectedAttention(nn.Module):
    """Multi-head attention of queries, keys and values that the caller has projected already.

    Args:
        value_dim: total width of the values and of the output, over all heads.
        nhead: number of heads.
        dropout: dropout of the attention weights.
    """

    def __init__(self, *, value_dim: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.nhead = nhead
        self.weight_dropout = Dropout(dropout)
        self.out_proj = nn.Linear(value_dim, value_dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend, head by head, and mix the heads.

        Args:
            query: [B, Q, E], the heads one after the other; E may differ from value_dim.
            key: [B, S, E].
            value: [B, S, value_dim].
            allowed: bool, broadcastable to [B, heads, Q, S]; True where a query may attend to a key.

        Returns:
            [B, Q, value_dim].
        """
        query, key, value = (x.unflatten(-1, (self.nhead, -1)).transpose(1, 2) for x in (query, key, value))
        dropout = self.weight_dropout.p if self.training else 0.0
        if dropout and on_eager_cpu(query):  # the library has no faster form either
            mixed = self._mix(query, key, value, allowed)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if allowed is not None:
            scores = scores.masked_fill_(~allowed, float("-inf"))
        return self.weight_dropout(scores.softmax(dim=-1)) @ value


class MultiheadAttention(ProjectedAttention):
    """Multi-head attention with the parameter names of ``nn.MultiheadAttention``.

    That class moves batch-first inputs to sequence-first and back; this one leaves them where they are.
    """

    def __init__(self, *, d_model: int, nhead: int, dropout: float) -> None:
        super().__init__(value_dim=d_model, nhead=nhead, dropout=dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """query [B, Q, C], key and value [B, S, C] -> [B, Q, C]; ``allowed`` as in the base class."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return super().forward(*map(F.linear, (query, key, value), weights, biases), allowed)


class LayerHeads(nn.ModuleList):
    """A head for each decoder layer, which may all be the same one; more heads than layers may follow."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Outputs of the layers [L, ...] -> [L, ...]."""
        return torch.stack([head(layer) for head, layer in zip(self, hidden, strict=False)])


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits of probabilities, within +- log(1 / eps); ``eps`` is that of the public code."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def full_precision(device_type: str) -> torch.autocast:
    """Context without autocast, for what must not be rounded to 16 bit: coordinates and the final heads."""
    return torch.autocast(device_type, enabled=False)


def widen(x: Tensor) -> Tensor:
    """16-bit floating point -> float32, for sums and normalisations; anything wider stays as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
