"""The losses on features of regions and of whole views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.interface import Memory
from models.layers import to_float32
from models.pretext.global_batch_norm import GlobalBatchNorm1d
from util.distributed import all_reduce_mean, world_size

CONTRAST_TEMPERATURE = 0.1


def feature_loss(predicted: Tensor, target: Tensor, layer: Tensor, num_layers: int, num_regions: int) -> Tensor:
    """Squared distance of unit vectors, summed over the matched pairs of each decoder layer.

    Args:
        predicted: [M, K] features that the matched decoder outputs predict.
        target: [M, K] pooled backbone features of the crops of their regions; no gradient.
        layer: [M] int64, the decoder layer of each pair.
        num_layers: L.
        num_regions: regions in the batch, the normaliser.

    Returns:
        [L], in [0, 4].
    """
    predicted = F.normalize(to_float32(predicted), dim=-1)
    target = F.normalize(to_float32(target), dim=-1)
    distance = (predicted - target).square().sum(-1)
    return distance.new_zeros(num_layers).index_add(0, layer, distance) / num_regions


def contrastive_loss(
    predicted: Tensor, features: Tensor, right: Tensor, layer: Tensor, num_layers: int, num_regions: int
) -> Tensor:
    """InfoNCE (1807.03748): which of the image's regions does each prediction describe?

    Args:
        predicted: [M, K] features that the matched decoder outputs predict.
        features: [M, R, K] pooled backbone features of all regions of the prediction's image; no gradient.
        right: [M] int64, the region that it should describe, the correct answer.
        layer: [M] int64, the decoder layer of each pair.
        num_layers: L.
        num_regions: regions in the batch, the normaliser.

    Returns:
        [L]; cosines are divided by CONTRAST_TEMPERATURE.
    """
    predicted = F.normalize(to_float32(predicted), dim=-1)
    features = F.normalize(to_float32(features), dim=-1)
    cosines = (features @ predicted[..., None]).squeeze(-1)  # [M, R]
    entropy = F.cross_entropy(cosines / CONTRAST_TEMPERATURE, right, reduction="none")
    return entropy.new_zeros(num_layers).index_add(0, layer, entropy) / num_regions


def embedding_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the channels and the matched pairs of one decoder layer.

    Args:
        predicted, target: [M, E]; M may be 0.

    Returns:
        Scalar. As in the criterion, the divisor M is the mean over processes; all together count at least one pair.
    """
    distance = F.l1_loss(to_float32(predicted), to_float32(target), reduction="none").mean(-1)
    num_pairs = torch.tensor(float(len(distance))).to(distance.device, non_blocking=True)
    return distance.sum() / all_reduce_mean(num_pairs).clamp(min=1 / world_size())


def pool_views(memory: Memory, num_levels: int) -> Tensor:
    """Mean of the encoder's output over valid positions, of the first ``num_levels`` levels side by side.

    Values at padded positions do not count, not even NaN.

    Returns:
        [B, num_levels * C], float32 under autocast, too.
    """
    sizes = [height * width for height, width in memory.shapes]
    tokens = to_float32(memory.tokens).split(sizes, dim=1)[:num_levels]
    masks = memory.mask.split(sizes, dim=1)[:num_levels]
    pooled = []
    for level, padding in zip(tokens, masks, strict=True):
        valid = ~padding.unsqueeze(-1)
        pooled.append(level.masked_fill(~valid, 0).sum(1) / valid.sum(1).clamp(min=1))
    return torch.cat(pooled, dim=-1)


class AgreementHead(nn.Module):
    """Global discrimination as in SimSiam (2011.10566) and BYOL (2006.07733).

    Both views have a projector; one side has a predictor, the other a stopped gradient.
    """

    def __init__(self, *, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(input_dim, hidden_dim),
            GlobalBatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            GlobalBatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            GlobalBatchNorm1d(hidden_dim),
        )
        self.predictor = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim),
            GlobalBatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
        )

    def forward(self, view1: Tensor, view2: Tensor) -> Tensor:
        """Pooled views [B, input_dim] each -> scalar loss in [0, 4], symmetric in the views."""
        projected1, projected2 = self.projector(view1), self.projector(view2)
        return 0.5 * self._distance(projected1, projected2) + 0.5 * self._distance(projected2, projected1)

    def _distance(self, online: Tensor, target: Tensor) -> Tensor:
        cosine = F.cosine_similarity(to_float32(self.predictor(online)), to_float32(target).detach(), dim=-1)
        return (2 - 2 * cosine).mean()
