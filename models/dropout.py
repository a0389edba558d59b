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
        if not draws_cheaply(x):
            return F.dropout(x, self.p)
        return _Drop.apply(x, *self._draw(x.shape))

    def after_relu_(self, x: Tensor) -> Tensor:
        """``self(relu(x))`` in place of ``x``, which nothing else may need.

        On a CPU the first touch of fresh memory costs ten times what the arithmetic does, and a feed-forward is the
        widest part of a Transformer.
        """
        if self.training and self.p and draws_cheaply(x):
            return _ReluDrop.apply(x, *self._draw(x.shape))
        return self(F.relu(x, inplace=True))

    def _draw(self, shape: torch.Size) -> tuple[Tensor, float]:
        """Which elements are dropped (bool), and what the others are multiplied by."""
        threshold = min(round(self.p * STEPS), STEPS - 1)
        return _random_numbers(shape) < threshold - STEPS // 2, STEPS / (STEPS - threshold)


class _Drop(torch.autograd.Function):
    """Keeps one byte an element, where products with a mask would keep the mask as floating point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(dropped)
        ctx.scale = scale
        return x.masked_fill(dropped, 0.0).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.masked_fill(*ctx.saved_tensors, 0.0).mul_(ctx.scale), None, None


class _ReluDrop(torch.autograd.Function):
    """Keeps the output alone: where it is zero, ReLU or dropout let nothing through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, scale: float) -> Tensor:
        ctx.mark_dirty(x)
        x.relu_().masked_fill_(dropped, 0.0).mul_(scale)
        ctx.save_for_backward(x)
        ctx.scale = scale
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, output, 0.0).mul_(ctx.scale), None, None


def draws_cheaply(x: Tensor) -> bool:
    """Whether the cheap numbers are for ``x``: not where a GPU draws or a compiler would have to see through them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _random_numbers(shape: torch.Size) -> Tensor:
    """Uniform int16 on the CPU."""
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    words = generator.random_raw(-(-shape.numel() // 4))
    return torch.from_numpy(words.view(np.int16))[: shape.numel()].view(shape)
