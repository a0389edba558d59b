"""Multi-scale deformable attention as a layer, under the parameter names of Deformable DETR (2010.04159)."""

from __future__ import annotations

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import ms_deform_attn


class MSDeformAttn(nn.Module):
    """Attention of each query to a few points that it chooses around its reference, on every level.

    Args:
        d_model: C, the width of queries and values.
        nhead: M, attention heads.
        num_levels: L, feature maps.
        num_points: P, points a head and level.
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
        """Every head starts with a direction of its own, point p lying p + 1 pixels away, all weighed alike."""
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        for chooser in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(chooser.weight)
            nn.init.zeros_(chooser.bias)
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
        shapes: list[tuple[int, int]],
    ) -> Tensor:
        """Sample the levels around the references.

        Args:
            query: [B, Q, C].
            reference: [B, Q, L, 2 or 4], centre (x, y) and perhaps size (w, h) on each level, 0 and 1 being the
                edges of the padded map; float32 or wider.
            tokens: [B, S, C], the positions of all levels in a row.
            mask: [B, S] bool, True at padded positions, which count as zeros.
            shapes: (height, width) of each level.

        Returns:
            [B, Q, C].
        """
        # in one row, as in a feed-forward: changing a view in place would copy its whole gradient
        value = self.value_proj(tokens.flatten(0, 1)).masked_fill_(mask.flatten()[:, None], 0.0)
        value = value.unflatten(-1, (self.nhead, -1)).unflatten(0, mask.shape)
        dtype = torch.promote_types(query.dtype, torch.float32)  # coordinates are not for 16 bit
        weights = self.attention_weights(query).to(dtype).unflatten(-1, (self.nhead, -1)).softmax(dim=-1)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points))
        locations = self._locations(query.to(dtype), reference, shapes)
        sizes = torch.tensor(shapes, dtype=torch.int64)
        starts = torch.tensor([0, *accumulate(height * width for height, width in shapes[:-1])], dtype=torch.int64)
        sampled = ms_deform_attn(value.to(locations.dtype), sizes, starts, locations, weights)
        return self.output_proj(sampled)

    def _locations(self, query: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Sampling locations [B, Q, M, L, P, 2]: offsets count pixels around points, half sizes around boxes.

        The unit is put into the projection's few rows instead of the offsets: a tenth of the layer's time.
        """
        if reference.shape[-1] == 4:
            unit = reference.new_full((self.num_levels, 1, 2), 0.5 / self.num_points)
        else:
            widths_and_heights = torch.tensor([(width, height) for height, width in shapes], dtype=query.dtype)
            unit = widths_and_heights.to(query.device, non_blocking=True).reciprocal()[:, None]
        unit = unit.expand(self.nhead, -1, self.num_points, -1).flatten()  # as the rows lie: [M, L, P, 2]
        weight, bias = (x.to(query.dtype) for x in (self.sampling_offsets.weight, self.sampling_offsets.bias))
        with torch.autocast(query.device.type, enabled=False):  # a coordinate of 16 bit would be off by pixels
            offsets = F.linear(query, weight * unit[:, None], bias * unit)
        offsets = offsets.unflatten(-1, (self.nhead, self.num_levels, self.num_points, 2))
        # [B, Q, 1, L, P, 2] in memory: adding it to every head goes along rows of many numbers, not of two
        around = reference[:, :, None, :, None].expand(-1, -1, -1, -1, self.num_points, -1).contiguous()
        if reference.shape[-1] == 4:
            return around[..., :2] + offsets * around[..., 2:]
        return around + offsets
