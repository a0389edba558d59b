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
    """For every query and head the weighted sum of bilinear samples of the head's values, over levels and points.

    Args:
        value: [B, S, M, D], the positions of all levels one after the other, M heads of D channels.
        spatial_shapes: int64 [L, 2], (height, width) of each level; their areas add up to S.
        level_start_index: int64 [L], where each level begins in S.
        sampling_locations: [B, Q, M, L, P, 2], (x, y), 0 and 1 being the edges of a level; what lies outside is 0.
        attention_weights: [B, Q, M, L, P].

    All floating-point arguments have one dtype of float32, float64, bfloat16 and float16 (16-bit ones are computed with
    in float32) and one device; under autocast the compiled operator makes all float32. The integers may also stay on
    the CPU, which on a GPU saves waiting for it. Gradients reach value, sampling_locations and attention_weights; they
    are the same bit for bit for any number of threads on a CPU, but not from call to call on a GPU, whose atomic
    additions come in any order. There is no second derivative.

    Returns:
        [B, Q, M * D], of value's dtype.

    Raises:
        ValueError: sizes that do not add up or wrong level starts; by the compiled operator also mixed dtypes or
            devices. Names the argument.
    """
    compute = _compiled if has_kernels(value.device.type) else ms_deform_attn_reference
    return compute(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def _compiled(*arguments: Tensor) -> Tensor:
    return torch.ops.siamese_detr.ms_deform_attn(*arguments)
