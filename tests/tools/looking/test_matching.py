"""Matching and curves: cases worked by hand, and pycocotools."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tools.looking.matching import ImageCase, best_threshold, confusion, curve_of, match, mistakes


def case(truth, found, crowd=None) -> ImageCase:
    """truth: (label, x1, y1, x2, y2); found: (label, score, x1, y1, x2, y2), best first."""
    truth, found = np.array(truth, dtype=float).reshape(-1, 5), np.array(found, dtype=float).reshape(-1, 6)
    crowd = np.zeros(len(truth), dtype=bool) if crowd is None else np.array(crowd)
    return ImageCase(truth[:, 1:], truth[:, 0].astype(int), crowd, found[:, 2:], found[:, 0].astype(int), found[:, 1])


A, B = (0, 0, 0, 10, 10), (1, 20, 20, 40, 40)


def test_the_better_detection_takes_the_object_and_its_double_is_wrong():
    seen = case([A, B], [(0, 0.9, 0, 0, 10, 9), (0, 0.8, 0, 0, 10, 10), (0, 0.7, 20, 20, 40, 40)])
    assert match(seen, by_class=True).tolist() == [0, -1, -1]
    assert match(seen, by_class=False).tolist() == [0, -1, 1]
    assert mistakes(seen, 0.0) == (2, 1)
    assert mistakes(seen, 0.75) == (1, 1)
    assert mistakes(seen, 0.95) == (0, 2)


def test_a_curve_by_hand():
    cases = [case([A], [(0, 0.9, 0, 0, 10, 10), (0, 0.6, 50, 50, 60, 60)]), case([A], [(0, 0.5, 0, 0, 10, 10)])]
    curve = curve_of(cases, 0)
    assert curve.precision.tolist() == [1, 1 / 2, 2 / 3]
    assert curve.recall.tolist() == [0.5, 0.5, 1]
    assert curve.average_precision() == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert best_threshold([curve]) == (0.5, pytest.approx(2 * 2 / (3 + 2)))


def test_what_is_not_there_and_what_is_not_found():
    nothing = curve_of([case([], [(0, 0.9, 0, 0, 10, 10)])], 0)
    assert np.isnan(nothing.average_precision())
    assert best_threshold([nothing]) == (1.0, 0.0)
    assert curve_of([case([A], [])], 0).average_precision() == 0


def test_detections_in_a_crowd_count_neither_way():
    seen = case([A, (0, 100, 100, 200, 200)], [(0, 0.9, 0, 0, 10, 10), (0, 0.8, 120, 120, 140, 140)], [False, True])
    assert match(seen, by_class=True).tolist() == [0, -2]
    assert curve_of([seen], 0).precision.tolist() == [1]
    assert mistakes(seen, 0) == (0, 0)


def test_a_confusion_matrix_by_hand():
    seen = case(
        [A, B, (1, 60, 60, 80, 80)],
        [(0, 0.9, 0, 0, 10, 10), (0, 0.8, 20, 20, 40, 40), (1, 0.7, 90, 0, 99, 9), (1, 0.2, 60, 60, 80, 80)],
    )
    # truth 0 found as 0; of truth 1 one found as 0 and one, below the threshold, missed; one 1 where nothing is
    assert confusion([seen, seen], [0, 1], 0.5).tolist() == [[2, 0, 0], [2, 0, 2], [0, 2, 0]]


def test_average_precision_is_that_of_pycocotools():
    rng = np.random.default_rng(1)
    cases, images, annotations, results = [], [], [], []
    for image_id in range(1, 13):
        truth = [(int(rng.integers(2)), x, y, x + w, y + h) for x, y, w, h in rng.integers(5, 60, (4, 4))]
        crowd = rng.random(len(truth)) < 0.2
        found = [(t[0], *np.array(t[1:]) + rng.normal(0, 3, 4)) for t in truth * 2]
        found = sorted([(label, float(rng.random()), *box) for label, *box in found], key=lambda row: -row[1])
        cases.append(case(truth, found, crowd))
        images.append({"id": image_id, "width": 200, "height": 200})
        for (label, x1, y1, x2, y2), group in zip(truth, crowd, strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1, "iscrowd": int(group),
                "bbox": [int(x1), int(y1), int(x2 - x1), int(y2 - y1)], "area": int((x2 - x1) * (y2 - y1)),
            })  # fmt: skip
        for label, score, x1, y1, x2, y2 in found:
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score})
    coco = COCO()
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    coco.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    for label in (0, 1):
        wanted = evaluation.eval["precision"][0, :, label, 0, -1].mean()
        assert 0.2 < wanted < 0.95
        assert curve_of(cases, label).average_precision() == pytest.approx(wanted, abs=1e-6)
