"""Measures a pretext task on a whole data set; ``models/pretext/measure.py`` says what is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from models.pretext.base import PretextTask
from util import distributed


@torch.no_grad()
def evaluate(method: PretextTask, batches: Iterable[Any]) -> dict[str, list[float]]:
    """Means over all regions of the batches of all processes, for each decoder layer. Collective.

    Args:
        batches: on the device of ``method``.

    Returns:
        Name -> means [L], in the task's order; NaN if there are no regions.
    """
    method.eval()
    sums: dict[str, tuple[torch.Tensor, int]] = {}
    for batch in batches:
        for name, values in method.measure(batch).items():
            total, count = sums.get(name, (0.0, 0))
            sums[name] = total + values.double().sum(1).cpu(), count + values.shape[1]
    by_process = distributed.all_gather_object(sums)
    names = dict.fromkeys(name for of_one in by_process for name in of_one)
    means = {}
    for name in names:
        found = [of_one[name] for of_one in by_process if name in of_one]
        count = sum(count for _, count in found)
        total = sum(total for total, _ in found)
        means[name] = (total / count if count else total * float("nan")).tolist()
    return means


def table(by_layer: dict[str, list[float]]) -> str:
    """The means as text: one line per name, one column per decoder layer."""
    width = max(map(len, ["decoder layer", *by_layer]))
    num_layers = max(map(len, by_layer.values()), default=0)
    head = "decoder layer".ljust(width) + "".join(f"{layer:8d}" for layer in range(1, num_layers + 1))
    rows = [name.ljust(width) + "".join(f"{value:8.3f}" for value in values) for name, values in by_layer.items()]
    return "\n".join([head, *rows])
