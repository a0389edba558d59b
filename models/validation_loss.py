"""The loss of a whole validation set, as if it were one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.criterion import SetCriterion
from util.distributed import all_gather_object


class ValidationLoss:
    """Adds up the losses of batches of any size on any number of processes.

    Each term is divided by its count over the whole set (objects; for softmax, weighted queries), so the result depends
    neither on ``--batch_size`` nor on how the images are shared out.
    """

    def __init__(self, criterion: SetCriterion) -> None:
        self._criterion = criterion
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    @torch.no_grad()
    def update(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> None:
        """Add a batch; arguments as those of :class:`SetCriterion`, on one device."""
        sums, counts = self._criterion.sums(outputs, targets)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value.double()
            self._counts[name] = self._counts.get(name, 0) + counts[name]

    def read(self) -> dict[str, float]:
        """``loss_val``, weighted over terms and decoder layers as ``loss`` in training, and each term unweighted at the
        last layer: ``loss_val_ce``, ... Collective.
        """
        own = {name: value.tolist() for name, value in self._sums.items()}
        shares = all_gather_object((own, self._counts))
        names = dict.fromkeys(name for sums, _ in shares for name in sums)
        losses = {}
        for name in names:
            count = sum(counts.get(name, 0) for _, counts in shares)
            total = torch.tensor([sums[name] for sums, _ in shares if name in sums], dtype=torch.float64).sum(0)
            losses[name] = total / (count or 1)  # nothing to find at all
        if not losses:
            return {}
        terms = {f"loss_val_{name}": float(value[-1]) for name, value in losses.items()}
        return {"loss_val": float(self._criterion.total(losses)), **terms}
