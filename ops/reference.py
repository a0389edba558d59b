"""Multi-scale deformable attention in plain PyTorch: slow, but easy to read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The sampling of Deformable DETR (2010.04159, equation 3), without the projections.

    Arguments and result as in :func:`ops.functional.ms_deform_attn`; it computes in the dtype of the arguments, for
    16-bit types in float32.

    Raises:
        ValueError: the levels have gaps or do not fill ``value``.
    """
    _check_levels(value, spatial_shapes, level_start_index)
    dtype = value.dtype
    if dtype in (torch.float16, torch.bfloat16):
        arguments = (value.float(), sampling_locations.float(), attention_weights.float())
        value, sampling_locations, attention_weights = arguments
    batch_size, _, num_heads, channels = value.shape
    num_queries = sampling_locations.shape[1]
    grids = 2 * sampling_locations - 1
    output = value.new_zeros(batch_size * num_heads, channels, num_queries)
    starts = level_start_index.tolist()
    for level, (height, width) in enumerate(spatial_shapes.tolist()):
        if height * width == 0:  # grid_sample takes no empty map
            continue
        rows = value[:, starts[level] : starts[level] + height * width]
        maps = rows.permute(0, 2, 3, 1).reshape(batch_size * num_heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B * M, Q, P, 2]
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        # sampled: [B * M, D, Q, P]
        weights = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)  # [B * M, 1, Q, P]
        output = output + (sampled * weights).sum(-1)
    output = output.view(batch_size, num_heads * channels, num_queries).transpose(1, 2)
    return output.contiguous().to(dtype)


def _check_levels(value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor) -> None:
    total = 0
    for level, (start, (height, width)) in enumerate(
        zip(level_start_index.tolist(), spatial_shapes.tolist(), strict=True)
    ):
        if start != total:
            raise ValueError(f"level_start_index: expected level {level} to start at {total}, got {start}")
        total += height * width
    if total != value.shape[1]:
        raise ValueError(f"spatial_shapes: the levels have {total} positions, but value has {value.shape[1]}")
