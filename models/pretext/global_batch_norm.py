"""Batch norm over the batches of all processes, on any device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.layers import to_float32
from util import distributed


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce with the gradient of the sum: the loss of each process depends on the inputs of all processes."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose training statistics are those of the global batch.

    ``nn.SyncBatchNorm`` does the same on GPUs but refuses CPU tensors. Parameters and buffers have the same names.
    Mean and variance are reduced one after the other, because E[x^2] - E[x]^2 would cancel. All processes must have the
    same number of rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, C]."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        x = to_float32(x)
        count = len(x) * distributed.world_size()
        mean = _SumOverProcesses.apply(x.sum(0)) / count
        centred = x - mean
        variance = _SumOverProcesses.apply(centred.square().sum(0)) / count
        self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
