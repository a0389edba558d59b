"""Multi-scale deformable attention as a layer, with the parameter names of Deformable DETR (2010.04159)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import ms_deform_attn


@dataclass
class Levels:
    """The maps whose positions stand one after the other in the tokens [B, S, C]; made once for all layers.

    Attributes:
        shapes: (height, width) of each.
        sizes: the same as int64 [L, 2].
        starts: int64 [L], where each begins in S. Both stay on the CPU, as :func:`ms_deform_attn` prefers them.
        pixel: [L, 2], width and height of a pixel, the map's being 1; where the tokens are.
    """

    shapes: list[tuple[int, int]]
    sizes: Tensor
    starts: Tensor
    pixel: Tensor

    @classmethod
    def of(cls, shapes: list[tuple[int, int]], tokens: Tensor) -> Levels:
        """The levels of ``tokens``; pixels are in the precision that coordinates have, float32 at least."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        width_height = torch.tensor([(width, height) for height, width in shapes], dtype=dtype)
        return cls(
            shapes=shapes,
            sizes=torch.tensor(shapes, dtype=torch.int64),
            starts=torch.tensor([0, *accumulate(height * width for height, width in shapes[:-1])], dtype=torch.int64),
            pixel=1 / width_height.to(tokens.device, non_blocking=True),
        )


class MSDeformAttn(nn.Module):
    """Attention of each query to a few points around its reference, on every level; the query chooses the points.

    Args:
        d_model: C, the width of queries and values.
        nhead: M, attention heads.
        num_levels: L, feature maps.
        num_points: P, points per head and level.
    """

    def __init__(self, *, d_model: int, nhead: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.nhead = nhead
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(d_model, nhead * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(d_model, nhead * num_levels * num_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Each head has its own direction, points at 1, 2, ..., P pixels, and equal weights for all points."""
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        for projection in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        angles = torch.arange(self.nhead, dtype=torch.float32) * (2 * math.pi / self.nhead)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # onto the square's border
        distances = torch.arange(1, self.num_points + 1)
        ring = directions[:, None, None] * distances[:, None]  # [M, 1, P, 2]
        self.sampling_offsets.bias.copy_(ring.expand(-1, self.num_levels, -1, -1).flatten())

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        tokens: Tensor,
        mask: Tensor,
        levels: Levels,
    ) -> Tensor:
        """Equation 3 of the paper: sum over heads, levels and points of W_m A W'_m x(reference + offset).

        Args:
            query: [B, Q, C].
            reference: [B, Q, L, 2 or 4], centre (x, y) and perhaps size (w, h) on each level; 0 and 1 are the edges of
                the padded map; float32 or float64.
            tokens: [B, S, C], x of the paper: all levels one after the other.
            mask: [B, S] bool, True at padded positions, which count as zeros.
            levels: of the tokens.

        Returns:
            [B, Q, C].
        """
        dtype = torch.promote_types(query.dtype, torch.float32)  # 16 bits are too few for coordinates
        value = self._values(tokens, mask).to(dtype)  # W'_m x: [B, S, M, C / M]
        weights = self._weights(query, dtype)  # A: [B, Q, M, L, P]
        locations = self._locations(query.to(dtype), reference, levels.pixel)  # [B, Q, M, L, P, 2]
        return self.output_proj(self._sample(value, levels, locations, weights))

    def _sample(self, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        """The weighted sums of samples [B, Q, C], from values [B, S, M, C / M]; see :func:`ms_deform_attn`."""
        return ms_deform_attn(value, levels.sizes, levels.starts, locations, weights)

    def _values(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, S, C] -> [B, S, M, C / M], zeros at padding."""
        # All tokens in one row: after an in-place change of a view, autograd would copy the whole gradient.
        value = self.value_proj(tokens.flatten(0, 1)).masked_fill_(mask.flatten()[:, None], 0.0)
        return value.unflatten(-1, (self.nhead, -1)).unflatten(0, mask.shape)

    def _weights(self, query: Tensor, dtype: torch.dtype) -> Tensor:
        """Attention weights [B, Q, M, L, P]; those of a head add up to 1 over all levels and points."""
        weights = self.attention_weights(query).to(dtype).unflatten(-1, (self.nhead, -1)).softmax(dim=-1)
        return weights.unflatten(-1, (self.num_levels, self.num_points))

    def _locations(self, query: Tensor, reference: Tensor, pixel: Tensor) -> Tensor:
        """Where each query samples, (x, y) relative to each level: [B, Q, M, L, P, 2].

        Around points: ``reference + offsets / (W, H)``, offsets in pixels of the level. Around boxes:
        ``reference + offsets / P * size * 0.5``, so that a new layer's last points lie on the box's border.
        """
        # Contiguous [B, Q, 1, L, P, 2 or 4]: the addition then runs over rows of many numbers, not of two.
        reference = reference[:, :, None, :, None].expand(-1, -1, -1, -1, self.num_points, -1).contiguous()
        if reference.shape[-1] == 4:
            centre, size = reference[..., :2], reference[..., 2:]
            factor = reference.new_full((self.num_levels, 2), 0.5 / self.num_points)
            return centre + self._offsets_times(factor, query) * size
        return reference + self._offsets_times(pixel, query)

    def _offsets_times(self, factor: Tensor, query: Tensor) -> Tensor:
        """``sampling_offsets(query) * factor``: [B, Q, M, L, P, 2] times [L, 2], one factor per level and axis.

        The factor multiplies the few rows of the projection instead of its many outputs, which saves a tenth of the
        layer's time on a CPU.
        """
        factor = factor[:, None].expand(self.nhead, -1, self.num_points, -1).flatten()  # order of the rows: M, L, P, 2
        weight, bias = (x.to(query.dtype) for x in (self.sampling_offsets.weight, self.sampling_offsets.bias))
        with torch.autocast(query.device.type, enabled=False):  # a coordinate of 16 bits would be off by pixels
            offsets = F.linear(query, weight * factor[:, None], bias * factor)
        return offsets.unflatten(-1, (self.nhead, self.num_levels, self.num_points, 2))
