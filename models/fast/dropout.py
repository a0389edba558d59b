"""Dropout with cheap random numbers on a CPU, and with little memory for the backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

STEPS = 2**16
"""Number of values of 16 random bits; probabilities are rounded to multiples of 1 / STEPS."""


class Dropout(nn.Module):
    """In training, zeroes each element with probability ``p`` and divides the others by 1 - p, as ``nn.Dropout``.

    On a CPU ``nn.Dropout`` draws 64 random bits per element, which takes a fifth of a small detector's training step.
    Here 16 bits decide. They come from a faster generator; PyTorch's generator seeds it in every call, so that the same
    random state always gives the same numbers.
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
        """The same in place; only on a CPU and without a gradient."""
        return apply_mask(x, self._draw(x.shape), self.scale, out=x) if self.training and self.p else x

    @property
    def scale(self) -> float:
        """The factor of the elements that are kept."""
        return STEPS / (STEPS - self._threshold) if self.training else 1.0

    @property
    def _threshold(self) -> int:
        return min(round(self.p * STEPS), STEPS - 1)

    def _draw(self, shape: torch.Size) -> Tensor:
        """Which elements are kept: 1 or 0, uint8."""
        # Not bool: PyTorch's loops over bool are not vectorised and take five times as long.
        kept = torch.empty(shape, dtype=torch.uint8)
        return torch.ge(_random_numbers(shape), self._threshold - STEPS // 2, out=kept)


class _Drop(torch.autograd.Function):
    """Keeps one byte per element for the gradient; a product with the mask would keep floating-point numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return apply_mask(x, kept, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return apply_mask(grad, *ctx.saved_tensors, ctx.scale), None, None


def apply_mask(x: Tensor, kept: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """``x * scale`` where ``kept`` is 1, and 0 where it is 0; written to ``out`` if given."""
    factors = kept.to(x.dtype)
    return torch.mul(x, factors, out=factors if out is None else out).mul_(scale)


def on_eager_cpu(x: Tensor) -> bool:
    """Whether ``x`` is on a CPU and no compiler traces the code."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _random_numbers(shape: torch.Size) -> Tensor:
    """Uniform int16 on the CPU."""
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    words = generator.random_raw(-(-shape.numel() // 4))
    return torch.from_numpy(words.view(np.int16))[: shape.numel()].view(shape)
