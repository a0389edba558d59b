"""The picture of predictions: what it says and what it shows, on hand-made cases."""

import numpy as np
from PIL import Image

from tests.tools.looking.test_matching import case
from tools.looking import predictions
from tools.looking.predictions import Found, best_few, draw_side_by_side, fitting_threshold, verdict, without_overlaps
from util.plot_utils import colour_of

CUP, LEAF = (0, 10, 10, 40, 40), (1, 60, 50, 90, 90)
SEEN = case(
    [CUP, LEAF],
    [(0, 0.9, 10, 10, 40, 38), (0, 0.6, 60, 50, 90, 90), (1, 0.31, 60, 50, 90, 90), (1, 0.1, 0, 0, 9, 9)],
)


def test_what_is_said_of_an_image() -> None:
    assert verdict(SEEN, 0.5) == "1 of 2 found, 1 wrong, score from 0.50"
    assert verdict(SEEN, 0.3) == "2 of 2 found, 1 wrong, score from 0.30"
    assert verdict(SEEN, 0.95) == "nothing above 0.95: best was 0.90"
    assert verdict(case([CUP], []), 0.5) == "nothing above 0.50"


def test_the_threshold_has_the_best_f1() -> None:
    """At 0.9: 1 of 2 found, none wrong, F1 2/3; at 0.31: 2 of 2 and one wrong, F1 4/5; the others are lower."""
    assert fitting_threshold([SEEN], [0, 1]) == 0.31


def test_no_thickets() -> None:
    many = case([CUP], [(0, 1 - 0.01 * rank, 0, 0, 5 + rank, 9) for rank in range(50)])
    few = best_few(many)
    assert len(few["boxes"]) == len(few["labels"]) == len(few["scores"]) == 4
    assert few["scores"].min() > 0.96
    assert verdict(many, 0.5) == "0 of 1 found, 50 wrong, best 4 drawn"
    assert len(best_few(case([CUP] * 3, [(0, 0.5, 0, 0, 9, 9)] * 50))["boxes"]) == 6


def test_of_overlapping_boxes_the_best_stays() -> None:
    """IoU with the best box by hand: 80/120, 50/150 and 0; classes do not matter, the order of scores does."""
    found = [(0, 0.9, 0, 0, 10, 10), (1, 0.8, 0, 2, 10, 12), (0, 0.7, 5, 0, 15, 10), (0, 0.6, 50, 0, 60, 10)]
    kept = without_overlaps(case([CUP], found))
    assert kept.scores.tolist() == [0.9, 0.7, 0.6]
    assert kept.found[:, 0].tolist() == [0, 5, 50]
    assert kept.found_labels.tolist() == [0, 0, 0]
    assert kept.truth.tolist() == case([CUP], []).truth.tolist()
    assert not len(without_overlaps(case([CUP], [])).scores)


def test_each_detector_has_a_column_of_boxes_above_its_threshold() -> None:
    names, sizes = {0: "cup", 1: "leaf"}, [(100, 100), (400, 200)]
    detectors = [Found("one", [SEEN, SEEN], 0.95), Found("other", [SEEN, SEEN], 0.31)]
    sheet = draw_side_by_side(
        detectors, names, load=lambda index: Image.new("RGB", sizes[index]), files=["a.jpg", "b.jpg"], count=5
    )
    pixels = np.asarray(sheet)
    assert pixels.shape[0] > 2 * predictions.SHORT_SIDE  # both images, at one size
    assert 3 * 2 * predictions.SHORT_SIDE < pixels.shape[1] < 3 * 2 * predictions.SHORT_SIDE + 60
    top = pixels[: pixels.shape[0] // 2]
    third = top.shape[1] // 3
    for label in names:
        shown = [(top[:, i * third : (i + 1) * third] == colour_of(label)).all(-1).any() for i in range(3)]
        assert shown == [True, False, True]
