"""Small layers that all Transformers and heads share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fast.attention import scaled_dot_product_attention
from models.fast.dropout import Dropout
from models.fast.feed_forward import feed_forward


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The sizes of a Transformer; each of its layers is built from them.

    Attributes:
        d_model: C, the width of the tokens.
        nhead: heads of each attention.
        num_encoder_layers, num_decoder_layers: the number of layers.
        dim_feedforward: hidden units of the feed-forward.
        dropout: of the attention weights, of the hidden units and of what each sublayer adds.
        pre_norm: norm what goes into a sublayer (True) or the sum that comes out of it (False, as in the paper).
    """

    d_model: int
    nhead: int
    num_encoder_layers: int
    num_decoder_layers: int
    dim_feedforward: int
    dropout: float
    pre_norm: bool = False


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
    """Multi-head attention of queries, keys and values that the caller has projected already."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.nhead = config.nhead
        self.weight_dropout = Dropout(config.dropout)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend, head by head, and mix the heads. The masks are those of ``nn.MultiheadAttention``.

        Args:
            query: [B, Q, E], the heads one after the other; E may differ from C.
            key: [B, S, E].
            value: [B, S, C].
            key_padding_mask: bool [B, S], True at keys that are padding.
            attn_mask: bool [Q, S], True where a query (row) may not attend to a key (column).

        Returns:
            [B, Q, C].
        """
        query, key, value = (x.unflatten(-1, (self.nhead, -1)).transpose(1, 2) for x in (query, key, value))
        blocked = _join_masks(key_padding_mask, attn_mask)
        mixed = scaled_dot_product_attention(query, key, value, blocked, self.weight_dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B, heads, Q, V] -> [B, Q, C]


def _join_masks(key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
    """Where a query may not attend to a key: bool [B, 1, 1, S], [Q, S] or [B, 1, Q, S]; None: nowhere."""
    if key_padding_mask is None:
        return attn_mask
    padding = key_padding_mask[:, None, None, :]
    return padding if attn_mask is None else padding | attn_mask


class MultiheadAttention(ProjectedAttention):
    """Multi-head attention with the parameter names of ``nn.MultiheadAttention``.

    That class transposes batch-first inputs to sequence-first and back; this one does not.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.d_model, config.d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * config.d_model))
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **masks: Tensor | None) -> Tensor:
        """query [B, Q, C], key and value [B, S, C] -> [B, Q, C]; masks as in the base class."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return super().forward(*map(F.linear, (query, key, value), weights, biases), **masks)


class TransformerLayer(nn.Module):
    """What the layers of all Transformers share: the feed-forward, the dropout, and where the norms stand.

    Subclasses add attention and norms. ``linear1`` and ``linear2`` lie directly in the layer, where the public
    checkpoints have them.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.linear1 = nn.Linear(config.d_model, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, config.d_model)
        self.dropout = Dropout(config.dropout)

    def sublayer(self, x: Tensor, norm: nn.LayerNorm, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Add ``f(x)``, attention or feed-forward, to x [B, N, C], with a norm before or after."""
        if self.pre_norm:
            return x + self.dropout(f(norm(x)))
        return norm(x + self.dropout(f(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> dim_feedforward hidden units per token -> [B, N, C]."""
        return feed_forward(x, self.linear1, self.linear2, self.dropout)


class LayerHeads(nn.ModuleList):
    """One head per decoder layer, perhaps all the same module; with two stages one more, for the encoder."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Outputs of the layers [L, ..., C] -> [L, ..., K], each by its own head."""
        return torch.stack([head(layer) for head, layer in zip(self, hidden, strict=False)])


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits of probabilities, limited to +- log(1 / eps); ``eps`` is that of the public code."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def full_precision(device_type: str) -> torch.autocast:
    """Context without autocast, for what must not be rounded to 16 bits: coordinates and the final heads."""
    return torch.autocast(device_type, enabled=False)


def to_float32(x: Tensor) -> Tensor:
    """16-bit floating point -> float32, for sums and normalisations; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
