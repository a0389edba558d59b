"""The VOC metric: worked by hand, against the devkit's loops, and on real annotations."""

from xml.etree import ElementTree

import numpy as np
import pytest

from datasets.coco_eval import DetectionEvaluator
from datasets.detection import DetectionDataset
from datasets.voc import read_voc, voc_sets
from tests.datasets.evaluation_case import CATEGORIES, LabelledSet, as_result, make_coco, random_case
from tests.datasets.test_voc import box, write, xml

A, B, FAR = (0, 0, 100, 100), (200, 200, 300, 300), [500.0, 400, 520, 420]


def voc_scores(boxes, detections):
    """(area, 11-point) AP of the class cat (id 7, label 0); boxes (xyxy, difficult), detections (score, xyxy)."""
    coco = make_coco([(5, 7, box, {"difficult": difficult}) for box, difficult in boxes])
    evaluator = DetectionEvaluator(LabelledSet(coco, metric="voc"))
    evaluator.update([5], [as_result([(0, score, [float(x) for x in box]) for score, box in detections])])
    scores = evaluator.summarize()["voc"]["per_class"]["cat"]
    return scores["AP50"], scores["AP50_11point"]


def test_by_hand():
    """True, at a difficult one (ignored), double (false), true: precision 1, -, 1/2, 2/3 at recall 1/2, -, 1/2, 1."""
    difficult = (400, 0, 500, 100)
    area, eleven = voc_scores([(A, 0), (B, 0), (difficult, 1)], [(0.9, A), (0.8, difficult), (0.7, A), (0.6, B)])
    assert area == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert eleven == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)  # recalls 0 ... 0.5, then 0.6 ... 1


@pytest.mark.parametrize(("height", "expected"), [(50, 1.0), (49.9, 0.0)])
def test_an_overlap_of_one_half_is_enough(height, expected):
    assert voc_scores([(A, 0)], [(0.5, (0, 0, 100, height))]) == (expected, expected)


def test_the_highest_overlap_decides_even_if_it_is_difficult():
    """The detection would be true for the ordinary box (IoU 0.8), but overlaps the difficult one more."""
    assert voc_scores([((0, 0, 100, 80), 0), (A, 1)], [(0.5, A)]) == (0.0, 0.0)


def test_the_highest_overlap_decides_even_if_it_is_taken():
    """The second detection does not get the free box, although their IoU is 0.8."""
    area, _ = voc_scores([(A, 0), ((0, 0, 100, 80), 0)], [(0.9, A), (0.8, A)])
    assert area == pytest.approx(1 / 2)


def test_detections_at_difficult_boxes_never_count():
    assert voc_scores([(A, 0), (B, 1)], [(0.9, B), (0.8, B), (0.7, A)]) == (1.0, 1.0)


def test_recall_of_exactly_three_tenths_counts_at_that_point():
    boxes = [((60 * k, 0, 60 * k + 50, 50), 0) for k in range(10)]
    area, eleven = voc_scores(boxes, [(0.9, box) for box, _ in boxes[:3]] + [(0.1, FAR)])
    assert area == pytest.approx(0.3)
    assert eleven == pytest.approx(4 / 11)


def test_precision_is_the_largest_at_no_less_recall():
    """False, true, true: the precisions 0, 1/2, 2/3 become 2/3 throughout."""
    area, eleven = voc_scores([(A, 0), (B, 0)], [(0.9, FAR), (0.8, A), (0.7, B)])
    assert area == pytest.approx(2 / 3)
    assert eleven == pytest.approx(2 / 3)


def test_categories_without_ground_truths_that_count_are_left_out_of_the_mean():
    coco = make_coco([(5, 7, A), (5, 3, B, {"difficult": 1})])
    evaluator = DetectionEvaluator(LabelledSet(coco, metric="voc"))
    evaluator.update([5], [as_result([(0, 0.5, A), (1, 0.5, B), (4, 0.5, A)])])
    voc = evaluator.summarize()["voc"]
    assert voc["per_class"]["dog"] == voc["per_class"]["traffic light"] == {"AP50": -1.0, "AP50_11point": -1.0}
    assert voc["mAP50"] == voc["mAP50_11point"] == 1.0


@pytest.mark.parametrize(
    ("found", "ap50", "devkit"),
    [
        ([], 0.0, 0.0),
        ([(0.9, A)], 51 / 101, 1.0),  # COCO: recall 1/2, which 51 of the 101 recall points reach; devkit: recall 1
        ([(0.9, A), (0.8, B)], 1.0, 1.0),
        ([(0.9, B), (0.8, A)], 1.0, 1.0),
        ([(0.9, FAR), (0.8, B)], 51 / 101 / 2, 0.0),  # COCO: precision 1/2 at recall 1/2; devkit: a false one alone
    ],
)
def test_cocos_scores_count_difficult_objects_and_the_devkits_ignore_them(tmp_path, found, ap50, devkit):
    """An image with an ordinary object A and a difficult one B, read from XML."""
    objects = [box("cat", 1, 1, 100, 100), box("cat", 201, 201, 300, 300, "<difficult>1</difficult>")]
    size = "<size><width>640</width><height>480</height></size>"
    write(tmp_path, {"a": xml(*objects, size=size)}, test=["a"])
    dataset = DetectionDataset(read_voc(tmp_path, voc_sets(tmp_path, ["test"], train=False)), transforms=None, seed=0)
    label = next(category["label"] for category in dataset.categories if category["name"] == "cat")
    evaluator = DetectionEvaluator(dataset)
    evaluator.update([0], [as_result([(label, score, [float(x) for x in place]) for score, place in found])])
    summary = evaluator.summarize()
    assert summary["AP50"] == summary["AP"] == pytest.approx(ap50)
    assert summary["AR100"] == pytest.approx(sum(place in (A, B) for _, place in found) / 2)
    assert summary["per_class"]["cat"]["AP50"] == pytest.approx(ap50)
    assert summary["voc"]["mAP50"] == pytest.approx(devkit)


def devkit_average_precisions(truths, detections):
    """VOCevaldet.m and VOCap.m, loop by loop, on boxes of pixel indices counted from 1, last one included.

    Args:
        truths: {image: [(box, difficult)]} of one class. detections: [(image, confidence, box)].
    """
    npos = sum(not difficult for boxes in truths.values() for _, difficult in boxes)
    detections = sorted(detections, key=lambda detection: -detection[1])
    taken = set()
    tp, fp = np.zeros(len(detections)), np.zeros(len(detections))
    for d, (image, _, bb) in enumerate(detections):
        ovmax = -np.inf
        for j, (bbgt, _) in enumerate(truths.get(image, [])):
            iw = min(bb[2], bbgt[2]) - max(bb[0], bbgt[0]) + 1
            ih = min(bb[3], bbgt[3]) - max(bb[1], bbgt[1]) + 1
            if iw > 0 and ih > 0:
                ua = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)
                ua += (bbgt[2] - bbgt[0] + 1) * (bbgt[3] - bbgt[1] + 1) - iw * ih
                if iw * ih / ua > ovmax:
                    ovmax, jmax = iw * ih / ua, j
        if ovmax < 0.5:
            fp[d] = 1
        elif not truths[image][jmax][1]:
            if (image, jmax) in taken:
                fp[d] = 1
            else:
                tp[d] = 1
                taken.add((image, jmax))
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    rec, prec = tp / npos, tp / np.maximum(tp + fp, 1)
    eleven = sum(max(prec[rec >= k / 10], default=0.0) / 11 for k in range(11))

    mrec, mpre = np.array([0, *rec, 1]), np.array([0, *prec, 0])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    area = sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])
    return area, eleven


def devkit_box(x0, y0, x1, y1):
    return x0 + 1, y0 + 1, x1, y1


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_devkit(seed):
    coco, results = random_case(seed)
    evaluator = DetectionEvaluator(LabelledSet(coco, metric="voc"))
    evaluator.update(list(results), list(results.values()))
    voc = evaluator.summarize()["voc"]

    areas, elevens = [], []
    for category in CATEGORIES:
        truths = {}
        for annotation in coco.dataset["annotations"]:
            if annotation["category_id"] == category["id"]:
                x, y, w, h = annotation["bbox"]
                entry = devkit_box(x, y, x + w, y + h), annotation["difficult"]
                truths.setdefault(annotation["image_id"], []).append(entry)
        detections = [
            (image_id, score.item(), devkit_box(*box.double().tolist()))
            for image_id in sorted(results)
            for label, score, box in zip(
                *(results[image_id][name] for name in ("labels", "scores", "boxes")), strict=True
            )
            if label == category["label"]
        ]
        area, eleven = devkit_average_precisions(truths, detections)
        scores = voc["per_class"][category["name"]]
        assert (scores["AP50"], scores["AP50_11point"]) == pytest.approx((area, eleven), abs=1e-9)
        areas.append(area)
        elevens.append(eleven)
    assert 0.05 < np.mean(areas) < 0.95
    assert (voc["mAP50"], voc["mAP50_11point"]) == pytest.approx((np.mean(areas), np.mean(elevens)), abs=1e-9)


def test_real_annotations_as_detections_score_one(real_data):
    """The boxes of bccd's XML files, read here by other code, as detections of its test set."""
    root = real_data / "bccd"
    sets = voc_sets(root, None, train=False)
    dataset = DetectionDataset(read_voc(root, sets), transforms=None, seed=0)
    label_of_name = {category["name"]: category["label"] for category in dataset.categories}
    evaluator = DetectionEvaluator(dataset)
    for image_id, stem in enumerate(sets[0].list_file.read_text().split()):
        found = []
        for element in ElementTree.parse(root / "Annotations" / f"{stem}.xml").iter("object"):
            x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
            if x1 > x0 and y1 > y0:
                found.append((label_of_name[element.findtext("name")], 1.0, [x0 - 1, y0 - 1, x1, y1]))
        evaluator.update([image_id], [as_result(found)])
    summary = evaluator.summarize()
    assert summary["AP"] == pytest.approx(1.0)
    assert summary["voc"]["per_class"].keys() == {"RBC", "WBC", "Platelets"}
    for scores in summary["voc"]["per_class"].values():
        assert scores == pytest.approx({"AP50": 1.0, "AP50_11point": 1.0})
    assert summary["voc"]["mAP50"] == pytest.approx(1.0)


def test_half_the_real_annotations_found_score_half(real_data):
    root = real_data / "bccd"
    dataset = DetectionDataset(read_voc(root, voc_sets(root, None, train=False)), transforms=None, seed=0)
    white = next(category for category in dataset.categories if category["name"] == "WBC")
    boxes = [a for a in dataset.coco.dataset["annotations"] if a["category_id"] == white["id"]]
    evaluator = DetectionEvaluator(dataset)
    found = {}
    for annotation in boxes[::2]:
        x, y, w, h = annotation["bbox"]
        found.setdefault(annotation["image_id"], []).append((white["label"], 0.5, [x, y, x + w, y + h]))
    evaluator.update(list(found), [as_result(detections) for detections in found.values()])
    scores = evaluator.summarize()["voc"]["per_class"]
    assert scores["WBC"]["AP50"] == pytest.approx(len(boxes[::2]) / len(boxes))
    assert scores["RBC"]["AP50"] == 0
