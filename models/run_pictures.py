"""Pictures of what a detector learns from and of what it finds, for tensorboard and tools/visualize.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.detection import DetectionDataset
from datasets.images import load_image
from datasets.pretext.two_view import TwoViewDataset, TwoViewSample, as_picture
from models.predictor import Predictor
from util.box_ops import box_cxcywh_to_xyxy
from util.nested_tensor import nested_tensor_from_tensor_list
from util.plot_utils import contact_sheet, draw_boxes, draw_detections, draw_two_views

LEGIBLE_SIDE = 320  # smaller images are enlarged to this short side


def draw_samples(dataset: DetectionDataset, count: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Image.Image:
    """The first ``count`` training samples of epoch 0 as the detector sees them, with their boxes.

    Args:
        mean, std: of RGB in [0, 1], by which the samples are normalised.
    """
    names = {category["label"]: category["name"] for category in dataset.categories}
    pictures = []
    for index in range(min(count, len(dataset))):
        pixels, target = dataset[0, index]
        picture = as_rgb(pixels, mean, std)
        boxes = box_cxcywh_to_xyxy(target["boxes"]) * torch.tensor([picture.width, picture.height] * 2)
        texts = [names[label] for label in target["labels"].tolist()]
        pictures.append(
            draw_boxes(picture, boxes, texts=texts, colours=target["labels"].tolist(), zoom=legible_zoom(picture))
        )
    return contact_sheet(pictures, columns=4)


def as_rgb(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Image.Image:
    """A normalised image, float32 [3, H, W], as a picture."""
    values = pixels.movedim(0, -1).numpy() * np.array(std, dtype=np.float32) + np.array(mean, dtype=np.float32)
    return Image.fromarray((255 * values).round().clip(0, 255).astype(np.uint8))


def draw_found(predictor: Predictor, dataset: DetectionDataset, count: int, threshold: float) -> Image.Image:
    """The first ``count`` images of an evaluation set: the true boxes, and beside them what a detector finds."""
    names = {label: category["name"] for label, category in predictor.categories.items()}
    pictures = [
        draw_detections(image, truth, found, names, threshold=threshold, zoom=legible_zoom(image))
        for image, truth, found in detect_and_compare(predictor, dataset, count)
    ]
    return contact_sheet(pictures, columns=2)


def detect_and_compare(
    predictor: Predictor, dataset: DetectionDataset, count: int
) -> Iterator[tuple[Image.Image, dict[str, Any], dict[str, Any]]]:
    """(image, truth, found) of the first ``count`` images, boxes xyxy in pixels of the image; see draw_detections."""
    for index in range(min(count, len(dataset))):
        pixels, target = dataset[0, index]
        found = predictor.detect(nested_tensor_from_tensor_list([pixels]), target["orig_size"][None])[0]
        height, width = target["orig_size"].tolist()
        boxes = box_cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
        image = load_image(dataset.records.path(index), size=(width, height))
        truth = {"boxes": boxes, "labels": target["labels"]}
        yield image, truth, {name: value.cpu() for name, value in found.items()}


def draw_views(dataset: TwoViewDataset, indices: list[int], regions: str) -> Image.Image:
    """Two-view samples of epoch 0; ``regions`` says what made the regions, for the captions."""
    samples = [dataset[0, index] for index in indices]
    return contact_sheet(
        [draw_sample(sample) for sample in samples],
        columns=1,
        captions=[f"regions: {regions}, IoU of the views {sample.geometry.iou:.2f}" for sample in samples],
    )


def draw_sample(sample: TwoViewSample) -> Image.Image:
    """The views side by side, region i with number i in both, its crops below."""
    views = [as_picture(view) for view in sample.views]
    crops = [[as_picture(crop) for crop in of_view] for of_view in sample.crops]
    return draw_two_views(views, sample.boxes, crops, zoom=legible_zoom(views[0]))


def legible_zoom(picture: Image.Image) -> float:
    """How much to enlarge ``picture`` for text to be legible on it; large ones stay as they are."""
    return max(1.0, LEGIBLE_SIDE / min(picture.size))
