"""Averaged weights: an exponential moving average of a detector's, which often scores better than the last ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """average <- d average + (1 - d) weights, after every step.

    d is ``decay``, but after t steps at most (1 + t) / (10 + t): so the first averages forget the random start (as
    TensorFlow's ExponentialMovingAverage does by ``num_updates``). Nothing waits for the device.

    Attributes:
        module: a copy of the module that has the averages, in evaluation mode and frozen.
        decay: in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._trained = module
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        pairs = zip(module.parameters(), self.module.parameters(), strict=True)
        # What is frozen is the same in both, and so are buffers: batch norms are frozen.
        trained = [(weight, average) for weight, average in pairs if weight.requires_grad]
        self._weights, self._averages = [list(side) for side in zip(*trained, strict=True)]

    def decay_after(self, steps: int) -> float:
        """d of the update that follows the step number ``steps``, counted from 1."""
        return min(self.decay, (1 + steps) / (10 + steps))

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights as they are after ``steps`` steps of the run."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay_after(steps))

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged module's, under the names of the module."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a saved average; None: begin with the weights as they are."""
        self.module.load_state_dict(self._trained.state_dict() if state is None else state)
