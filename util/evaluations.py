"""The evaluations of a run: which was the best, and how many followed it without a better one.

An evaluation is a dictionary of its ``step`` and its numbers, as in log.txt. A run's are in the order of their steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from util.errors import UserError

Scores = Mapping[str, float]

MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "voc_mAP50", "loss_val")
"""What ``--best_by`` can choose."""

LOWER_IS_BETTER = ("loss_val",)


def best_of(evaluations: Sequence[Scores], measure: str) -> Scores | None:
    """The first evaluation with the best value of ``measure``; None if none has a finite one.

    Raises:
        UserError: the evaluations have no such number.
    """
    sign = -1 if measure in LOWER_IS_BETTER else 1
    best, highest = None, -math.inf
    for scores in evaluations:
        if measure not in scores:
            raise UserError(f"--best_by {measure}: the evaluation on this data has no such number")
        value = sign * scores[measure]
        if value > highest:  # not so of NaN
            best, highest = scores, value
    return best


def since_best(evaluations: Sequence[Scores], measure: str) -> int:
    """How many evaluations came after the best one."""
    best = best_of(evaluations, measure)
    return len(evaluations) if best is None else sum(scores["step"] > best["step"] for scores in evaluations)


def is_out_of_patience(evaluations: Sequence[Scores], measure: str, patience: int) -> bool:
    """Whether the last ``patience`` evaluations were all no better than one before; 0: never."""
    return patience > 0 and since_best(evaluations, measure) >= patience
