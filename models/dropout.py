"""Dropout, with random numbers that are cheap on a CPU."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        threshold = min(round(self.p * STEPS), STEPS - 1)
        kept = _random_numbers(x.shape) >= threshold - STEPS // 2
        return x * kept.to(x.dtype).mul_(STEPS / (STEPS - threshold))


def draws_cheaply(x: Tensor) -> bool:
    """Whether the cheap numbers are for ``x``: not where a GPU draws or a compiler would have to see through them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _random_numbers(shape: torch.Size) -> Tensor:
    """Uniform int16 on the CPU."""
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    words = generator.random_raw(-(-shape.numel() // 4))
    return torch.from_numpy(words.view(np.int16))[: shape.numel()].view(shape)
