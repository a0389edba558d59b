"""The evaluator against direct calls of pycocotools, and what it must not do."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval

from datasets.coco_eval import COCO_STATISTICS, DIFFICULT, DetectionEvaluator
from tests.datasets.evaluation_case import (
    CATEGORIES,
    IMAGE_IDS,
    LabelledSet,
    as_result,
    make_coco,
    perfect_results,
    random_case,
)
from tests.gloo import run_processes


def evaluate(dataset, results, **options):
    evaluator = DetectionEvaluator(dataset, **options)
    evaluator.update(list(results), list(results.values()))
    evaluator.synchronize()
    return evaluator.summarize()


def pycocotools_statistics(coco, results, category_ids=None):
    """The twelve numbers of COCOeval, with pycocotools' own reader of results."""
    id_of_label = {category["label"]: category["id"] for category in CATEGORIES}
    found = [
        {
            "image_id": image_id,
            "category_id": id_of_label[label.item()],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score.item(),
        }
        for image_id, result in results.items()
        for label, score, (x0, y0, x1, y1) in zip(
            result["labels"], result["scores"], result["boxes"].tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        if category_ids is not None:
            evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(seed):
    coco, results = random_case(seed, flag="iscrowd")
    summary = evaluate(LabelledSet(coco), results)
    expected = pycocotools_statistics(coco, results)
    assert 0.05 < expected[0] < 0.95  # far from 0 and 1
    assert [summary[name] for name in COCO_STATISTICS] == pytest.approx(expected[:9], abs=1e-9)
    for category in CATEGORIES:
        expected = pycocotools_statistics(coco, results, [category["id"]])
        scores = summary["per_class"][category["name"]]
        assert (scores["AP"], scores["AP50"]) == pytest.approx((expected[0], expected[1]), abs=1e-9)
    assert "voc" not in summary


@pytest.mark.parametrize("metric", ["coco", "voc"])
def test_perfect_detections_score_one(metric):
    boxes = [
        (IMAGE_IDS[0], 7, (10, 10, 30, 30)),  # small
        (IMAGE_IDS[0], 3, (100, 100, 160, 160)),  # medium
        (IMAGE_IDS[1], 12, (50, 50, 300, 300)),  # large
        (IMAGE_IDS[2], 12, (5, 5, 300, 400)),
    ]
    coco = make_coco(boxes)
    summary = evaluate(LabelledSet(coco, metric=metric), perfect_results(coco))
    assert {name: summary[name] for name in COCO_STATISTICS} == pytest.approx(dict.fromkeys(COCO_STATISTICS, 1.0))
    for scores in summary["per_class"].values():
        assert scores == pytest.approx({"AP": 1.0, "AP50": 1.0})
    if metric == "voc":
        assert summary["voc"]["mAP50"] == summary["voc"]["mAP50_11point"] == 1.0


def test_by_hand():
    """One class, two objects: one found at IoU 0.8 (score 0.9), a false one (0.8), the other missed."""
    coco = make_coco([(5, 7, (0, 0, 100, 100)), (8, 7, (0, 0, 100, 100))])
    results = {5: as_result([(0, 0.9, [0.0, 0, 100, 80]), (0, 0.8, [300.0, 300, 400, 400])])}
    summary = evaluate(LabelledSet(coco), results)
    # Recall reaches 0.5 at precision 1: 51 of the 101 recall points. True at thresholds 0.5 ... 0.8: 7 of 10.
    assert summary["AP50"] == pytest.approx(51 / 101)
    assert summary["AP"] == pytest.approx(0.7 * 51 / 101)
    assert summary["AR100"] == pytest.approx(0.7 * 0.5)
    assert summary["APs"] == -1  # no small objects
    assert summary["per_class"]["dog"] == {"AP": -1.0, "AP50": -1.0}


@pytest.mark.parametrize("update", [True, False])
def test_no_detections_score_zero(update):
    coco, results = random_case(0)
    evaluator = DetectionEvaluator(LabelledSet(coco, metric="voc"))
    if update:
        evaluator.update(list(results), [as_result([]) for _ in results])
    evaluator.synchronize()
    summary = evaluator.summarize()
    assert {name: summary[name] for name in COCO_STATISTICS} == dict.fromkeys(COCO_STATISTICS, 0.0)
    assert summary["voc"]["mAP50"] == summary["voc"]["mAP50_11point"] == 0.0
    assert evaluator.table(summary)


def test_data_set_without_boxes_has_nothing_to_score():
    summary = evaluate(LabelledSet(make_coco([]), metric="voc"), {5: as_result([(0, 0.5, [0.0, 0, 9, 9])])})
    assert summary["AP"] == summary["voc"]["mAP50"] == -1


def test_labels_that_are_no_category_are_dropped():
    coco, results = random_case(1)
    expected = evaluate(LabelledSet(coco, metric="voc"), results)
    other = as_result([(2, 1.0, [0.0, 0, 50, 50]), (90, 0.9, [0.0, 0, 50, 50])])
    more = {
        image_id: {name: torch.cat([other[name], result[name]]) for name in result}
        for image_id, result in results.items()
    }
    assert evaluate(LabelledSet(coco, metric="voc"), more) == expected


def test_images_of_no_data_set_are_refused():
    evaluator = DetectionEvaluator(LabelledSet(make_coco([])))
    with pytest.raises(KeyError, match="image 99"):
        evaluator.update([5, 99], [as_result([]), as_result([])])


def test_an_image_added_twice_counts_once():
    coco, results = random_case(2)
    dataset = LabelledSet(coco, metric="voc")
    evaluator = DetectionEvaluator(dataset)
    for _ in range(2):
        evaluator.update(list(results), list(results.values()))
    assert evaluator.summarize() == evaluate(dataset, results)


def test_batches_and_their_order_do_not_matter():
    coco, results = random_case(2)
    dataset = LabelledSet(coco, metric="voc")
    evaluator = DetectionEvaluator(dataset)
    for image_id in reversed(results):
        evaluator.update([image_id], [results[image_id]])
    assert evaluator.summarize() == evaluate(dataset, results)


def test_scoring_again_gives_the_same_and_prints_nothing(capsys):
    coco, results = random_case(1)
    dataset = LabelledSet(coco, metric="voc")
    assert evaluate(dataset, results) == evaluate(dataset, results)
    assert capsys.readouterr().out == ""


def test_summary_is_plain_numbers():
    def numbers(value):
        return [n for v in value.values() for n in numbers(v)] if isinstance(value, dict) else [value]

    coco, results = random_case(1)
    summary = evaluate(LabelledSet(coco, metric="voc"), results)
    assert summary.pop("difficult") == DIFFICULT
    assert {type(number) for number in numbers(summary)} == {float}


def test_table():
    coco = make_coco([(5, 7, (0, 0, 100, 100)), (8, 12, (0, 0, 100, 100))])
    results = {5: as_result([(0, 0.9, [0.0, 0, 100, 80])])}
    text = DetectionEvaluator.table(evaluate(LabelledSet(coco, metric="voc"), results))
    lines = text.splitlines()
    assert lines[0].startswith("AP 0.350  AP50 0.500")
    assert lines[0].endswith("(from 0 to 1, as in log.txt and eval.json; difficult objects count)")
    assert lines[1] == "VOC mAP50 0.500  11-point 0.500  (difficult objects are ignored)"
    assert [line.split("  ")[0].strip() for line in lines[3:]] == ["class", "cat", "dog", "traffic light"]
    assert lines[4].split() == ["cat", "0.700", "1.000", "1.000", "1.000"]
    assert lines[5].split() == ["dog", "-", "-", "-", "-"]
    assert len({len(line) for line in lines[3:]}) == 1  # aligned
    coco_only = DetectionEvaluator.table(evaluate(LabelledSet(coco), results))
    assert "VOC" not in coco_only
    assert "from 0 to 1" in coco_only.splitlines()[0]
    assert "difficult" not in coco_only


def test_more_than_a_hundred_detections_count_in_scores_of_their_own():
    """150 objects in a row, each found once: COCO's scores see the 100 best of them, the others all."""
    boxes = [(5.0 * n, 0, 5.0 * n + 4, 4) for n in range(150)]
    coco = make_coco([(5, 7, box) for box in boxes])
    found = [(0, 1 - n / 1000, box) for n, box in enumerate(boxes)]
    usual = evaluate(LabelledSet(coco), {5: as_result(found)})
    assert usual["AR100"] == pytest.approx(100 / 150)
    more = evaluate(LabelledSet(coco), {5: as_result(found)}, max_detections=300)
    own = {name: more.pop(name) for name in ("AP@300", "AP50@300", "AR@300")}
    assert own == pytest.approx({"AP@300": 1, "AP50@300": 1, "AR@300": 1})
    assert more == usual  # what COCO defines stays as it is
    assert "AP@300 1.000" in DetectionEvaluator.table(more | own)


# Images of each of two processes; one image comes twice, the second time with other detections.
SHARES = [IMAGE_IDS[:2], IMAGE_IDS[1:]]


def summary_of_process(rank):
    coco, results = random_case(3)
    evaluator = DetectionEvaluator(LabelledSet(coco, metric="voc"))
    share = SHARES[rank]
    evaluator.update(share, [results[image_id] for image_id in share])
    if rank == 1:
        evaluator.update([IMAGE_IDS[1]], [as_result([(0, 1.0, [0.0, 0, 1, 1])] * 50)])
    evaluator.synchronize()
    return evaluator.summarize()


def test_two_processes_score_as_one():
    coco, results = random_case(3)
    expected = evaluate(LabelledSet(coco, metric="voc"), results)
    assert np.isfinite(expected["AP"])
    assert 0.05 < expected["voc"]["mAP50"] < 0.95
    assert run_processes(summary_of_process) == [expected, expected]
