"""Arguments of multi-scale deformable attention for tests."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = ((6, 4), (3, 2), (2, 5), (1, 1))


def random_arguments(
    *,
    batch: int = 2,
    queries: int = 5,
    heads: int = 2,
    channels: int = 8,
    points: int = 3,
    shapes: tuple[tuple[int, int], ...] = SHAPES[:3],
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> list[Tensor]:
    """Value, shapes, starts, locations in [-0.3, 1.3], weights; rounded to ``dtype``; shapes and starts on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    spatial_shapes = torch.tensor(shapes).view(-1, 2)
    areas = spatial_shapes.prod(1)
    value = torch.randn(batch, int(areas.sum()), heads, channels, generator=generator, dtype=torch.float64)
    sampling = (batch, queries, heads, len(shapes), points)
    locations = torch.rand(*sampling, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(sampling, generator=generator, dtype=torch.float64)
    value, locations, weights = (tensor.to(device, dtype) for tensor in (value, locations, weights))
    return [value, spatial_shapes, areas.cumsum(0) - areas, locations, weights]


def as_double(arguments: list[Tensor]) -> list[Tensor]:
    """The same numbers in float64, on the CPU."""
    return [tensor.cpu().double() if tensor.is_floating_point() else tensor for tensor in arguments]
