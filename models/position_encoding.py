"""Position encodings of feature maps, added to keys and queries of the attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.nested_tensor import NestedTensor

LEARNED_POSITIONS = 50
"""Number of rows, and of columns, with a learned embedding in the public checkpoints."""


def sine_waves(positions: Tensor, num_features: int, temperature: float = 10_000.0) -> Tensor:
    """Sine and cosine, one after the other, of num_features / 2 frequencies: [...] -> [..., num_features].

    Args:
        positions: angles; 2 pi is one period of the fastest wave.
        num_features: even.
        temperature: ratio of the longest wavelength to the shortest.
    """
    exponents = torch.arange(0, num_features, 2, device=positions.device) / num_features
    angles = positions.unsqueeze(-1) / temperature**exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class PositionEmbeddingSine(nn.Module):
    """Sines and cosines of the position in the image, relative to its unpadded size (DETR, 2005.12872, A.4).

    Args:
        num_pos_feats: features per axis, even; half of the width.
        temperature: ratio of the longest wavelength to the shortest.
        offset: subtracted from rows and columns counted from 1; 0.5 gives pixel centres (Deformable DETR).
    """

    scale = 2 * math.pi
    eps = 1e-6

    def __init__(self, *, num_pos_feats: int, temperature: float = 10_000.0, offset: float = 0.0) -> None:
        super().__init__()
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.offset = offset

    def forward(self, level: NestedTensor) -> Tensor:
        """A feature map with its mask [B, H, W] -> [B, 2 * num_pos_feats, H, W]: first y, then x."""
        valid = (~level.mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)
        y = (y - self.offset) / (y[:, -1:, :] + self.eps) * self.scale
        x = (x - self.offset) / (x[:, :, -1:] + self.eps) * self.scale
        features = [sine_waves(axis, self.num_pos_feats, self.temperature) for axis in (y, x)]
        return torch.cat(features, dim=-1).permute(0, 3, 1, 2).to(level.tensors.dtype)


class PositionEmbeddingLearned(nn.Module):
    """A learned vector for each of the first 50 rows and columns."""

    def __init__(self, *, num_pos_feats: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(LEARNED_POSITIONS, num_pos_feats)
        self.col_embed = nn.Embedding(LEARNED_POSITIONS, num_pos_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, level: NestedTensor) -> Tensor:
        """A feature map [B, _, H, W] -> [B, 2 * num_pos_feats, H, W]: first x, then y.

        Raises:
            UserError: the map has more than 50 rows or columns.
        """
        batch_size, _, height, width = level.tensors.shape
        if max(height, width) > LEARNED_POSITIONS:
            raise UserError(
                f"--position_embedding learned has {LEARNED_POSITIONS} rows and columns, this feature map has "
                f"{height} x {width}; use --position_embedding sine or a smaller --max_size"
            )
        x = self.col_embed.weight[:width].expand(height, -1, -1)
        y = self.row_embed.weight[:height].unsqueeze(1).expand(-1, width, -1)
        encoding = torch.cat([x, y], dim=-1).permute(2, 0, 1)
        return encoding.expand(batch_size, -1, -1, -1).to(level.tensors.dtype)


def check_learned_positions(max_size: int, stride: int) -> None:
    """Raises UserError if images of ``max_size`` pixels have more rows or columns than are learned."""
    if math.ceil(max_size / stride) > LEARNED_POSITIONS:
        raise UserError(
            f"--position_embedding learned has {LEARNED_POSITIONS} rows and columns, {max_size} pixels need "
            f"{math.ceil(max_size / stride)} at stride {stride}; use --position_embedding sine or a smaller --max_size"
        )


def build_position_encoding(kind: str, hidden_dim: int, **sine: float) -> nn.Module:
    """``kind`` "sine" or "learned", for a Transformer of width ``hidden_dim``; ``sine``: options of the sines."""
    if kind == "learned":
        return PositionEmbeddingLearned(num_pos_feats=hidden_dim // 2)
    return PositionEmbeddingSine(num_pos_feats=hidden_dim // 2, **sine)
