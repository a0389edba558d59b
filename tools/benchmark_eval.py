"""How long the scores of COCO take, by pycocotools and by faster-coco-eval: `benchmark.py eval`."""

from __future__ import annotations

import contextlib
import io
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO

from datasets.coco_eval import DetectionEvaluator
from datasets.scorers import Scorer, fastest_scorer, pycocotools_scorer
from util.errors import UserError

OBJECTS_PER_IMAGE = 7.3  # as COCO's val2017 has
CROWD = 0.01  # share of the objects, likewise
WIDTH, HEIGHT = 640, 480


@dataclass
class DrawnSet:
    """What :class:`datasets.coco_eval.DetectionEvaluator` asks of a data set."""

    coco: COCO
    categories: list[dict[str, Any]]
    metric: str = "coco"


def benchmark_eval(rounds: int, num_images: int, num_classes: int, per_image: int, num_processes: int) -> None:
    """Print seconds of both packages in turn, how far their numbers differ, and what gathering costs.

    Args:
        per_image: detections of each image, half of them near an object.
        num_processes: so many share the images.

    Raises:
        UserError: faster-coco-eval is not installed.
    """
    fast, slow = fastest_scorer(), pycocotools_scorer()
    if fast == slow:
        raise UserError("nothing to compare: pip install faster-coco-eval")
    dataset, image_ids, results = draw_case(num_images, num_classes, per_image)
    print(f"{num_images} images x {per_image} detections, {num_classes} classes; medians of {rounds} rounds in turn")
    seconds: dict[str, list[float]] = {slow.name: [], fast.name: []}
    numbers: dict[str, list[float]] = {}
    for _ in range(rounds):
        for scorer in (slow, fast):
            evaluator = DetectionEvaluator(dataset, scorer)
            evaluator.update(image_ids, results)
            began = time.perf_counter()
            summary = evaluator.summarize()
            seconds[scorer.name].append(time.perf_counter() - began)
            numbers[scorer.name] = list(numbers_of(summary))
    for name, values in seconds.items():
        print(f"{name:<26}{median(values):>8.2f} s   ({min(values):.2f} .. {max(values):.2f})")
    old, new = (median(values) for values in seconds.values())
    apart = np.abs(np.subtract(*numbers.values())).max()
    print(f"ratio {old / new:.1f}; {len(numbers[fast.name])} numbers differ by at most {apart:.1g}")
    print_gathering(dataset, image_ids, results, fast, num_processes)


def print_gathering(dataset: DrawnSet, image_ids: list[int], results: list, scorer: Scorer, num_processes: int) -> None:
    """Print what :meth:`DetectionEvaluator.synchronize` sends between so many processes, and its work on each."""
    shares = []
    for rank in range(num_processes):
        evaluator = DetectionEvaluator(dataset, scorer)
        evaluator.update(image_ids[rank::num_processes], results[rank::num_processes])
        shares.append(evaluator.detections)
    began = time.perf_counter()
    sent = pickle.dumps(shares[0])
    received = [sent] + [pickle.dumps(share) for share in shares[1:]]
    packed = time.perf_counter()
    for content in received:
        pickle.loads(content)
    unpacked = time.perf_counter()
    most = max(map(len, received))  # all are padded to it
    print(
        f"gathering over {num_processes} processes: each sends {len(sent) / 2**20:.2f} MiB and receives "
        f"{num_processes * most / 2**20:.1f} MiB; packing takes {(packed - began) / num_processes:.4f} s, unpacking "
        f"{unpacked - packed:.3f} s"
    )


def draw_case(num_images: int, num_classes: int, per_image: int) -> tuple[DrawnSet, list[int], list[dict]]:
    """A data set with random boxes, the ids of its images, and detections: half near an object, half anywhere."""
    rng = np.random.default_rng(0)
    categories = [{"label": label, "id": label + 1, "name": f"class {label}"} for label in range(num_classes)]
    image_ids = list(range(1, num_images + 1))
    annotations: list[dict[str, Any]] = []
    results = []
    for image_id in image_ids:
        boxes, labels = draw_boxes(rng, 1 + rng.poisson(OBJECTS_PER_IMAGE - 1)), rng.integers(num_classes, size=1000)
        labels = labels[: len(boxes)]
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            sides = box[2] - box[0], box[3] - box[1]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1,
                "bbox": [box[0], box[1], *sides], "area": sides[0] * sides[1], "iscrowd": int(rng.random() < CROWD),
            })  # fmt: skip
        results.append(draw_detections(rng, boxes, labels, num_classes, per_image))
    images = [{"id": image_id, "width": WIDTH, "height": HEIGHT} for image_id in image_ids]
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return DrawnSet(coco, categories), image_ids, results


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 4] xyxy within the image, small, medium and large ones."""
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def draw_detections(
    rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, num_classes: int, count: int
) -> dict[str, torch.Tensor]:
    """A detector's result in an image with these objects; one label in five of those near an object is wrong."""
    near = rng.integers(len(boxes), size=count // 2)
    sides = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
    found = np.concatenate([
        boxes[near] + rng.normal(0, 0.1, sides.shape) * sides,
        draw_boxes(rng, count - len(near)),
    ])  # fmt: skip
    names = np.concatenate([labels[near], rng.integers(num_classes, size=count - len(near))])
    wrong = rng.random(count) < 0.2
    names[wrong] = rng.integers(num_classes, size=int(wrong.sum()))
    scores = np.sort(rng.random(count))[::-1].copy()
    order = rng.permutation(count)
    return {
        "boxes": torch.from_numpy(found[order]).float(),
        "scores": torch.from_numpy(scores).float(),
        "labels": torch.from_numpy(names[order]),
    }


def numbers_of(summary: Any) -> Iterator[float]:
    """All numbers in nested dictionaries."""
    if isinstance(summary, dict):
        for value in summary.values():
            yield from numbers_of(value)
    elif isinstance(summary, float):
        yield summary
