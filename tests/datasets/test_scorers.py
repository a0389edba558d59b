"""faster-coco-eval against pycocotools: the same numbers, whatever the data."""

import sys

import numpy as np
import pytest

from datasets import build_detection
from datasets.coco_eval import DetectionEvaluator
from datasets.scorers import fastest_scorer, pycocotools_scorer
from tests.datasets.evaluation_case import LabelledSet, as_result, make_coco, random_case
from tests.datasets.test_detection import arguments
from tools.benchmark_eval import draw_case


@pytest.fixture
def fast():
    pytest.importorskip("faster_coco_eval", reason="pip install faster-coco-eval")
    return fastest_scorer()


class Recorder:
    """A scorer that keeps the evaluation."""

    def __init__(self, scorer):
        self.scorer = scorer

    def __call__(self, *args):
        self.evaluation = self.scorer(*args)
        return self.evaluation


def compare(dataset, results, fast):
    """Every entry of the curves, to 1e-12, also of more than 100 detections; returns the AP."""
    evaluations = []
    for scorer in (pycocotools_scorer(), fast):
        recorder = Recorder(scorer)
        evaluator = DetectionEvaluator(dataset, recorder, max_detections=300)
        evaluator.update(list(results), list(results.values()))
        summary = evaluator.summarize()
        evaluations.append(recorder.evaluation)
    slow, quick = evaluations
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(quick.eval[name], slow.eval[name], rtol=0, atol=1e-12, err_msg=name)
    return summary["AP"]


@pytest.mark.parametrize("flag", ["iscrowd", "difficult"])
@pytest.mark.parametrize("seed", range(5))
def test_random_sets(fast, seed, flag):
    coco, results = random_case(seed, flag=flag)
    assert 0.05 < compare(LabelledSet(coco, metric="voc"), results, fast) < 0.95


def test_many_detections_and_classes(fast):
    """More than 100 detections of an image count by their scores alone."""
    dataset, image_ids, results = draw_case(num_images=20, num_classes=5, per_image=300)
    assert compare(dataset, dict(zip(image_ids, results, strict=True)), fast) > 0


@pytest.mark.parametrize("boxes", [[], [(5, 7, (0, 0, 100, 100), {"iscrowd": 1})], [(5, 7, (0, 0, 100, 100))]])
@pytest.mark.parametrize("found", [[], [(0, 0.5, [0.0, 0, 99, 99])], [(1, 0.5, [0.0, 0, 0, 0])] * 3])
def test_little_to_score(fast, boxes, found):
    compare(LabelledSet(make_coco(boxes)), {5: as_result(found)}, fast)


@pytest.mark.parametrize(("name", "dataset_file"), [("coco_people", "coco"), ("raccoon", "coco"), ("bccd", "voc")])
def test_real_sets(real_data, fast, name, dataset_file):
    """Their own boxes, moved by a tenth of their sides, with some labels exchanged, as detections."""
    args = arguments(dataset_file=dataset_file, data_path=real_data / name)
    dataset = build_detection(args, "val", [0.5] * 3, [0.5] * 3)
    dataset.records = dataset.records.select(np.arange(min(len(dataset), 40)))
    labels = [category["label"] for category in dataset.categories]
    label_of_id = {category["id"]: category["label"] for category in dataset.categories}
    rng = np.random.default_rng(0)
    found = {image_id: [] for image_id in dataset.coco.imgs}
    for annotation in dataset.coco.dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        box = np.array([x, y, x + width, y + height])
        for _ in range(2):
            moved = box + rng.normal(0, 0.1, 4) * [width, height, width, height]
            label = label_of_id[annotation["category_id"]] if rng.random() < 0.8 else int(rng.choice(labels))
            found[annotation["image_id"]].append((label, round(rng.random(), 2), moved.tolist()))
    results = {image_id: as_result(detections) for image_id, detections in found.items()}
    assert 0.05 < compare(dataset, results, fast) < 0.95


def test_pycocotools_where_nothing_faster_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert fastest_scorer() == pycocotools_scorer()
    assert fastest_scorer().name.startswith("pycocotools 2")
