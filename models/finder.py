"""Finds regions of other images: a detector pretrained by Siamese DETR or UP-DETR gets a region as a query.

The path is that of pretraining: feature of the shown region -> ``patch2query`` -> decoder. The score of a box is the
class head's, times the agreement between the feature that the decoder predicts and the region's feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.images import STRICTLY, Reading, load_image
from datasets.pixels.photometric import Normalisation
from datasets.pixels.resample import resample
from datasets.pretext.two_view import as_planes
from models import PRETEXTS
from models.checkpoints.open import Restored
from models.detections import Detections
from models.interface import Memory
from models.precision import computing
from models.predictor import Predictor
from models.pretext.base import REGION_LABEL, RegionQueryTask, pooled_features
from util.box_ops import box_cxcywh_to_xyxy
from util.errors import CheckpointError, UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list
from util.plot_utils import contact_sheet, draw_boxes
from util.script import select_device


@dataclass(frozen=True)
class Shown:
    """A region to find in other images.

    Attributes:
        path: its image.
        box: xyxy in pixels of the upright image.
        query: [C], the content of its queries.
        feature: [K], the feature that the decoder should predict.
    """

    path: str
    box: tuple[float, float, float, float]
    query: Tensor
    feature: Tensor


class RegionFinder(Predictor):
    """Finds the regions of :meth:`show` in each image; the k-th region is category k, "query k"."""

    def __init__(
        self, restored: Restored, *, device: str = "auto", amp: str = "none", reading: Reading = STRICTLY, **sizes: int
    ) -> None:
        """``restored`` must be pretrained by siamese or updetr; ``sizes`` are eval_size and eval_max_size.

        Raises:
            CheckpointError: another pretraining, or the checkpoint has no pretext heads.
        """
        _check_pretrained(restored)
        size, longest = restored.eval_sizes
        super().__init__(
            restored.detector,
            None,
            [],
            backbone=restored.args.backbone,
            device=select_device(device),
            amp=amp,
            eval_size=sizes.get("eval_size") or size,
            eval_max_size=sizes.get("eval_max_size") or longest,
            reading=reading,
        )
        self.task = _build_task(restored).to(self.device).eval()
        self._crop_size = restored.args.crop_size
        self._normalise = Normalisation(*self.normalization)
        self.shown: list[Shown] = []

    @torch.no_grad()
    def show(self, path: str | Path, box: tuple[float, float, float, float]) -> None:
        """Add a region to find; ``box`` is xyxy in pixels of the upright image.

        Raises:
            DataError: the image cannot be read.
            UserError: the box is not inside the image.
        """
        image = load_image(path, reading=self.reading)
        check_inside(box, image.size, path)
        view = image.resize(self.resized(image.size), Image.Resampling.BILINEAR)
        placed = np.array(box) * np.tile(np.divide(view.size, image.size), 2)
        pixels = np.asarray(view)
        crop = self._as_input(resample(pixels, placed, (self._crop_size, self._crop_size)))
        feature = pooled_features(self.task.frozen_backbone, crop)
        features = self.task.frozen_backbone(nested_tensor_from_tensor_list(list(self._as_input(pixels))))
        sizes = torch.tensor([[view.height, view.width]], device=self.device)
        boxes = torch.from_numpy(placed).float().to(self.device)[None, None]
        region = self.task.features_shown(features, boxes, sizes, feature[None])[0, 0]
        label = len(self.shown)
        self.shown.append(Shown(str(path), tuple(box), self.task.patch2query(region), feature[0]))
        self.categories[label] = {"label": label, "id": label + 1, "name": f"query {label + 1}"}

    def _as_input(self, pixels: np.ndarray) -> Tensor:
        """A picture [H, W, 3] uint8 as input of the backbone: normalised [1, 3, H, W] on the device."""
        return self._normalise(as_planes(pixels.copy())[None]).to(self.device)

    @torch.no_grad()
    def detect(self, images: NestedTensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """See :meth:`Predictor.detect`."""
        images = images.to(self.device, non_blocking=True)
        with computing(self.task, self.device, self.amp):
            features = self.task.frozen_backbone(images)
            memory = self.detector.encode(features, images.mask)
            answers = [self._ask(memory, shown) for shown in self.shown]
        height, width = sizes.to(self.device).float().unbind(dim=1)
        scale = torch.stack([width, height, width, height], dim=1)[:, None]
        scores = torch.cat([scores for scores, _ in answers], dim=1)
        boxes = torch.cat([box_cxcywh_to_xyxy(boxes) * scale for _, boxes in answers], dim=1)
        labels = torch.arange(len(answers), device=self.device).repeat_interleave(scores.shape[1] // len(answers))
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return [
            {"scores": scores[image], "labels": labels[order[image]], "boxes": boxes[image, order[image]]}
            for image in range(len(scores))
        ]

    def _ask(self, memory: Memory, shown: Shown) -> tuple[Tensor, Tensor]:
        """Scores [B, q] and boxes [B, q, 4], cxcywh in [0, 1]; q = Q/R queries per region, as in pretraining."""
        batch_size = memory.tokens.shape[0]
        learned = self.detector.queries(batch_size)
        learned = learned[:, : learned.shape[1] // self.task.num_regions]
        content = shown.query.expand(batch_size, 1, -1)
        decoded = self.detector.decode(memory, self.task.queries_with_content(learned, content))
        outputs = self.detector.predict(decoded)
        scores = outputs["pred_logits"][-1].float().softmax(dim=-1)[..., REGION_LABEL]
        if self.task.feature_align is not None:
            predicted = self.task.feature_align(decoded.hidden[-1]).float()
            scores = scores * (1 + F.cosine_similarity(predicted, shown.feature, dim=-1)) / 2
        return scores, outputs["pred_boxes"][-1].float()

    def draw(self, detections: Detections) -> Image.Image:
        """The shown regions, and beside them the detections; one colour per query."""
        found = detections.draw()
        side = [self._draw_shown(label, found.height // len(self.shown)) for label in range(len(self.shown))]
        return contact_sheet([contact_sheet(side, columns=1, gap=0), found], columns=2, captions=["shown", "found"])

    def _draw_shown(self, label: int, height: int) -> Image.Image:
        """The image of a query with its box, resized to ``height`` pixels."""
        shown: Any = self.shown[label]
        image = load_image(shown.path, reading=self.reading)
        zoom = height / image.height
        small = image.resize((max(1, round(image.width * zoom)), max(1, height)), Image.Resampling.LANCZOS)
        return draw_boxes(small, np.array([shown.box]) * zoom, texts=[self.categories[label]["name"]], colours=[label])


def _check_pretrained(restored: Restored) -> None:
    if restored.method is None or restored.finds_regions:
        raise CheckpointError(f"{restored.path}: detects by itself; --query needs pretraining by siamese or updetr")
    if restored.pretext is None:
        raise CheckpointError(f"{restored.path}: holds no heads of a pretext task, but --query needs them")


def _build_task(restored: Restored) -> RegionQueryTask:
    task = PRETEXTS[restored.method].build(restored.args, restored.detector)
    try:
        task.load_pretext_state_dict(restored.pretext)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{restored.path}: its pretext heads do not fit ({error})") from None
    return task


def check_inside(box: tuple[float, float, float, float], size: tuple[int, int], path: str | Path) -> None:
    """Raises UserError if ``box`` (xyxy in pixels) is empty or leaves the image of (width, height) ``size``."""
    x1, y1, x2, y2 = box
    width, height = size
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        given = " ".join(f"{value:g}" for value in box)
        raise UserError(
            f"--query {path} {given}: not a box X1 Y1 X2 Y2 inside the image, which is {width} pixels wide and "
            f"{height} high"
        )
