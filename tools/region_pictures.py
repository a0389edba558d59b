"""The picture of ``visualize.py regions``: the regions of one view, and what is found for them in the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

import main_pretrain
from datasets.pretext.two_view import TwoViewDataset, TwoViewSample, as_picture
from models import PRETEXTS
from models.pretext.base import REGION_LABEL
from models.pretext.measure import class_confidence, most_confident
from models.pretext.siamese import SiameseDETR
from util.box_ops import box_cxcywh_to_xyxy, box_iou
from util.errors import UserError
from util.plot_utils import contact_sheet, draw_boxes
from util.script import select_device

EASY = 1
"""Regions before this one are not drawn: region 0 is the intersection of the views."""


def draw_regions(argv: Sequence[str], count: int, zoom: Callable[[Image.Image], float]) -> Image.Image:
    """One row per image: the regions in the first view, their places in the second, and what is found for them there.

    Args:
        argv: flags of main_pretrain.py, including ``--resume``.
        count: number of images to show, spread over the data set.
        zoom: view -> factor by which to enlarge it.

    Raises:
        UserError: no checkpoint, or one of another task than Siamese DETR.
    """
    args, origin = main_pretrain.parse(["--eval", *argv])
    if PRETEXTS[args.method].dataset is not TwoViewDataset:
        raise UserError(f"--method {args.method} has no two views to draw: regions goes with --method siamese")
    args.augment_device = "cpu"  # change the colours here, even if training would do it on a GPU
    device = select_device(args.device)
    dataset = main_pretrain.measured_data(args)
    method = main_pretrain.restore_method(args, origin).to(device).eval()
    rows, captions = [], []
    count = min(count, len(dataset))
    for index in (number * len(dataset) // count for number in range(count)):
        sample = dataset[0, index]
        batch = PRETEXTS[args.method].collate([sample]).to(device)
        found = find_regions(method, batch).cpu()
        rows.append(draw_row(sample, found, zoom))
        iou = box_iou(found, sample.boxes[1])[EASY:]
        captions.append(f"{dataset.images.path(index).name}: mean IoU {iou.mean():.2f}, at least 0.5: "
                        f"{int((iou >= 0.5).sum())} of {len(iou)}")  # fmt: skip
    return contact_sheet(rows, columns=1, captions=captions)


@torch.no_grad()
def find_regions(method: SiameseDETR, batch: object) -> Tensor:
    """The boxes [R, 4] (xyxy in pixels) that the most confident query of each region of view 0 predicts in view 1.

    Args:
        batch: a :class:`datasets.pretext.two_view.TwoViewBatch` of one image.
    """
    views = method.extract_features(batch)
    _, _, outputs = method.predict(views)
    confidence = class_confidence(outputs, REGION_LABEL, method.detector.classification)
    query = most_confident(confidence, method.num_regions)[-1, 1]  # entry 1: queries of view 0's regions, in view 1
    boxes = box_cxcywh_to_xyxy(outputs["pred_boxes"][-1, 1].float()[query])
    return boxes * views.sizes[1].flip(0).repeat(2)


def draw_row(sample: TwoViewSample, found: Tensor, zoom: Callable[[Image.Image], float]) -> Image.Image:
    """View 0 with its regions, view 1 with the same regions, and view 1 with the boxes ``found`` [R, 4].

    Region i has the same colour and number in all three.
    """
    views = [as_picture(view) for view in sample.views]
    numbers = list(range(EASY, len(found)))
    drawn = [
        draw_boxes(
            picture, boxes[EASY:], texts=[str(number) for number in numbers], colours=numbers, zoom=zoom(picture)
        )
        for picture, boxes in zip([views[0], views[1], views[1]], [*sample.boxes, found], strict=True)
    ]
    return contact_sheet(drawn, columns=3, captions=["regions", "the same in the other view", "found there"])
