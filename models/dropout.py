"""Dropout, with random numbers that are cheap on a CPU, and little memory kept for the backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

STEPS = 2**16
"""Values of a random number of 16 bits; probabilities are rounded to multiples of 1 / STEPS."""


class Dropout(nn.Module):
    """In training, zeroes each element with probability ``p`` and divides the others by 1 - p, as ``nn.Dropout``.

    That class draws a random number of 64 bits for each element, on a CPU one after the other: a fifth of the step of
    a small detector. Here 16 bits decide, from a faster generator, which torch's seeds anew for every call, so that a
    restored random state still gives the same numbers.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Floating point [...] -> [...]."""
        if not self.training or self.p == 0:
            return x
        if not on_eager_cpu(x):
            return F.dropout(x, self.p)
        return _Drop.apply(x, self._draw(x.shape), self.scale)

    def drop_(self, x: Tensor) -> Tensor:
        """The same in place, for a CPU and where no gradient is recorded."""
        return _thin_out(x, self._draw(x.shape), self.scale, out=x) if self.training and self.p else x

    @property
    def scale(self) -> float:
        """What the elements that are kept are multiplied by."""
        return STEPS / (STEPS - self._threshold) if self.training else 1.0

    @property
    def _threshold(self) -> int:
        return min(round(self.p * STEPS), STEPS - 1)

    def _draw(self, shape: torch.Size) -> Tensor:
        """Which elements are kept: ones among zeros, of 8 bits."""
        # Not bool: PyTorch's loops over it are not vectorised and take five times as long.
        kept = torch.empty(shape, dtype=torch.uint8)
        return torch.ge(_random_numbers(shape), self._threshold - STEPS // 2, out=kept)


class _Drop(torch.autograd.Function):
    """Keeps one byte an element, where products with a mask would keep the mask as floating point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _thin_out(x, kept, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _thin_out(grad, *ctx.saved_tensors, ctx.scale), None, None


def _thin_out(x: Tensor, kept: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """x where ``kept`` is 1, times ``scale``."""
    factors = kept.to(x.dtype)
    return torch.mul(x, factors, out=factors if out is None else out).mul_(scale)


def on_eager_cpu(x: Tensor) -> bool:
    """Whether ``x`` is on a CPU and no compiler has to see through what is done to it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _random_numbers(shape: torch.Size) -> Tensor:
    """Uniform int16 on the CPU."""
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    words = generator.random_raw(-(-shape.numel() // 4))
    return torch.from_numpy(words.view(np.int16))[: shape.numel()].view(shape)
