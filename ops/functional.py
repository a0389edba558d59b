"""Multi-scale deformable attention, the sampling at the heart of Deformable DETR (2010.04159)."""

from __future__ import annotations

import torch
from torch import Tensor

from .extension import has_kernels
from .reference import ms_deform_attn_reference


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """For every query and head: the weighted sum of bilinear samples of the head's values, over levels and points.

    Args:
        value: [B, S, M, D], the positions of all levels one after the other, M heads of D channels.
        spatial_shapes: int64 [L, 2], (height, width) of each level; their areas add up to S.
        level_start_index: int64 [L], where each level begins in S.
        sampling_locations: [B, Q, M, L, P, 2], (x, y); 0 and 1 are the edges of a level, values outside are 0.
        attention_weights: [B, Q, M, L, P].

    All floating-point arguments have the same device and the same dtype, float32, float64, bfloat16 or float16; sums of
    16-bit values are in float32. Under autocast the compiled operator converts all to float32. The integers may stay on
    the CPU, so that the host need not wait for a GPU. Value, sampling_locations and attention_weights have gradients.
    On a CPU these are equal bit for bit with any number of threads. On a GPU they differ from call to call, because
    atomic additions have no fixed order. There is no second derivative.

    Returns:
        [B, Q, M * D], of value's dtype.

    Raises:
        ValueError: sizes that do not fit, or wrong level starts; from the compiled operator also mixed dtypes or
            devices. Names the argument.
    """
    compute = _compiled if has_kernels(value.device.type) else ms_deform_attn_reference
    return compute(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def _compiled(*arguments: Tensor) -> Tensor:
    return torch.ops.siamese_detr.ms_deform_attn(*arguments)
