"""Pictures and numbers from the results of :mod:`tools.looking.matching`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.predictor import Predictor
from tools.looking.matching import ImageCase, best_threshold, confusion, curve_of, mistakes
from util.errors import DataError
from util.files import write_json
from util.logger import shows_progress
from util.optional import require
from util.plot_utils import contact_sheet, draw_detections, save_figure, save_picture

MANY_CLASSES = 20
"""The legend names at most this many classes, the most frequent ones."""


def collect(predictor: Predictor, loader: DataLoader) -> list[ImageCase]:
    """Ground truth and detections of every image of ``loader``, in its order."""
    dataset = loader.dataset
    label_of_id = {category["id"]: category["label"] for category in dataset.categories}
    found: dict[int, dict[str, torch.Tensor]] = {}
    for images, targets in tqdm(loader, desc="detect", leave=False, disable=not shows_progress()):
        results = predictor.detect(images, torch.stack([target["orig_size"] for target in targets]))
        for target, result in zip(targets, results, strict=True):
            found[int(target["image_id"])] = {name: value.cpu() for name, value in result.items()}
    return [
        _case(dataset.coco, image["id"], found[image["id"]], label_of_id) for image in dataset.coco.dataset["images"]
    ]


def _case(coco: Any, image_id: int, result: dict[str, torch.Tensor], label_of_id: dict[int, int]) -> ImageCase:
    annotations = coco.imgToAnns[image_id]
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    known = np.isin(result["labels"].numpy(), list(label_of_id.values()))
    return ImageCase(
        truth=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        labels=np.array([label_of_id[annotation["category_id"]] for annotation in annotations], dtype=np.int64),
        crowd=np.array([annotation["iscrowd"] for annotation in annotations], dtype=bool),
        found=result["boxes"].numpy()[known],
        found_labels=result["labels"].numpy()[known],
        scores=result["scores"].numpy()[known],
    )


def draw_curves(cases: Sequence[ImageCase], names: dict[int, str], out: Path) -> None:
    """Draw precision over recall at IoU 0.5, one curve per class that occurs; write the numbers as JSON beside it.

    Raises:
        DataError: the whole data set has no object.
        UserError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "matplotlib", "drawing curves")
    curves = {label: curve for label in names if (curve := curve_of(cases, label)).num_objects}
    if not curves:
        raise DataError("the data set has no object at all; choose another one")
    threshold, f1 = best_threshold(list(curves.values()))
    figure = figure_module.Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="IoU at least 0.5")
    axes.grid(alpha=0.3)
    told = sorted(curves, key=lambda label: -curves[label].num_objects)
    for place, label in enumerate(told):
        average = curves[label].average_precision()
        text = f"{names[label]}  AP50 {average:.3f}" if place < MANY_CLASSES else None
        axes.plot(curves[label].recall, curves[label].precision, label=text, linewidth=1.5)
    axes.legend(fontsize="small")
    save_figure(figure, out)
    classes = {
        names[label]: {
            "AP50": curve.average_precision(),
            "objects": curve.num_objects,
            "recall": curve.recall.round(4).tolist(),
            "precision": curve.precision.round(4).tolist(),
            "score": curve.scores.round(4).tolist(),
        }
        for label, curve in curves.items()
    }
    write_json({"best_threshold": threshold, "F1": f1, "classes": classes}, beside(out))


def draw_confusion(cases: Sequence[ImageCase], names: dict[int, str], out: Path) -> None:
    """Draw the confusion matrix at the threshold of the best F1; write the numbers as JSON beside it.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "matplotlib", "drawing a confusion matrix")
    threshold, _ = best_threshold([curve_of(cases, label) for label in names])
    counts = confusion(cases, list(names), threshold)
    rows, columns = [*names.values(), "nothing there"], [*names.values(), "missed"]
    side = 2.5 + 0.45 * len(rows)
    figure = figure_module.Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="found", ylabel="truth", title=f"score at least {threshold:.2f}, IoU at least 0.5")
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    save_figure(figure, out)
    write_json({"threshold": threshold, "truth": rows, "found": columns, "counts": counts.tolist()}, beside(out))


def draw_worst(
    cases: Sequence[ImageCase],
    names: dict[int, str],
    out: Path,
    *,
    load: Callable[[int], Image.Image],
    files: Sequence[str],
    count: int,
    zoom: Callable[[Image.Image], float],
) -> None:
    """Draw the images with the most mistakes, truth and detections side by side; write the numbers as JSON beside it.

    Args:
        load: index of a case -> its image.
        files: names of the images.
        count: number of images to show.
        zoom: image -> factor by which to enlarge it.
    """
    threshold, _ = best_threshold([curve_of(cases, label) for label in names])
    wrong = [mistakes(case, threshold) for case in cases]
    worst = sorted(range(len(cases)), key=lambda index: (-sum(wrong[index]), index))[:count]
    pictures = []
    for index in worst:
        image, case = load(index), cases[index]
        truth = {"boxes": case.truth, "labels": case.labels}
        found = {"boxes": case.found, "labels": case.found_labels, "scores": case.scores}
        pictures.append(draw_detections(image, truth, found, names, threshold=threshold, zoom=zoom(image)))
    captions = [f"{wrong[index][0]} false, {wrong[index][1]} missed: {files[index]}" for index in worst]
    save_picture(contact_sheet(pictures, columns=1, captions=captions), out)
    told = [{"file": files[i], "false_positives": wrong[i][0], "missed": wrong[i][1]} for i in worst]
    write_json({"threshold": threshold, "images": told}, beside(out))


def beside(out: Path) -> Path:
    """The JSON file for the numbers of a picture."""
    return out.with_suffix(".json")
