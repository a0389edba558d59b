"""The best evaluation, and patience, on made-up scores."""

import math

import pytest

from util.errors import UserError
from util.evaluations import best_of, is_out_of_patience, since_best


def run(values, name="AP"):
    return [{"step": 10 * n, name: value} for n, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "best", "since"),
    [
        ([], None, 0),
        ([0.1], 10, 0),
        ([0.1, 0.3, 0.2], 20, 1),
        ([0.1, 0.3, 0.3], 20, 1),  # as good is not better
        ([-1.0, -1.0], 10, 1),  # nothing to score
        ([math.nan, 0.1, math.nan], 20, 1),
        ([math.nan, math.nan], None, 2),
    ],
)
def test_the_first_of_the_best(values, best, since):
    found = best_of(run(values), "AP")
    assert (found and found["step"]) == best
    assert since_best(run(values), "AP") == since


def test_a_lower_loss_is_better():
    assert best_of(run([3.0, 1.0, 2.0], "loss_val"), "loss_val")["step"] == 20


def test_training_ends_when_patience_does():
    """0.5 comes fourth, and 0.6 would come eighth."""
    values = [0.1, 0.2, 0.2, 0.5, 0.4, 0.5, 0.3, 0.6]
    ends = {n: [is_out_of_patience(run(values[:k]), "AP", n) for k in range(1, 9)] for n in (0, 1, 2, 3, 4)}
    assert ends == {
        0: [False] * 8,
        1: [False, False, True, False, True, True, True, False],
        2: [False, False, False, False, False, True, True, False],
        3: [False, False, False, False, False, False, True, False],
        4: [False] * 8,
    }


def test_a_number_that_the_evaluation_has_not():
    with pytest.raises(UserError, match="--best_by voc_mAP50: the evaluation on this data has no such number"):
        best_of(run([0.1]), "voc_mAP50")
