"""Multi-scale deformable attention, the sampling at the heart of Deformable DETR (2010.04159)."""

from __future__ import annotations

from torch import Tensor

from ops.reference import ms_deform_attn_reference


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """For every query and head the weighted sum of bilinear samples of the head's values, over levels and points.

    Args:
        value: [B, S, M, D], the positions of all levels one after the other, M heads of D channels.
        spatial_shapes: int64 [L, 2], (height, width) of each level; their areas add up to S.
        level_start_index: int64 [L], where each level begins in S.
        sampling_locations: [B, Q, M, L, P, 2], (x, y), 0 and 1 being the edges of a level; what lies outside is 0.
        attention_weights: [B, Q, M, L, P].

    Returns:
        [B, Q, M * D], of value's dtype.
    """
    return ms_deform_attn_reference(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )
