"""The module that is exported: tensors in, detections out."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.detr import DETR
from models.fast.frozen_backbone import fold_frozen_batch_norms
from models.postprocess import PostProcess
from ops.module import Levels, MSDeformAttn
from util.box_ops import box_cxcywh_to_xyxy
from util.nested_tensor import NestedTensor


class ExportForm(nn.Module):
    """A detector with its postprocessing, without the parts that only training needs.

    Args:
        detector: is copied, not changed.
        postprocess: selects the detections.
        standard_sampling: build deformable attention from standard operations, which ONNX needs.
        half: store weights in 16 bits and convert them to float32 where they are used.
    """

    def __init__(self, detector: DETR, postprocess: PostProcess, *, standard_sampling: bool, half: bool) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).requires_grad_(False).eval()
        self.postprocess = postprocess
        if standard_sampling:
            use_standard_sampling(self.detector)
        if half:
            keep_half(self.detector)
        else:
            self.detector.backbone[0] = fold_frozen_batch_norms(self.detector.backbone[0])

    def forward(self, pixel_values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            pixel_values: float32 [B, 3, H, W], RGB, normalised by the backbone's mean and standard deviation; images
                in the top left corner, zeros elsewhere.
            mask: bool [B, H, W], True where padded; None: no image is padded.

        Returns:
            Best first: boxes float32 [B, N, 4], xyxy as fractions of each image's own width and height; scores
            float32 [B, N]; labels int64 [B, N].
        """
        batch_size, _, height, width = pixel_values.shape
        if mask is None:
            mask = torch.zeros(batch_size, height, width, dtype=torch.bool, device=pixel_values.device)
        features = self.detector.features(NestedTensor(pixel_values, mask))
        _, _, outputs = self.detector.ask(features, mask, self.detector.queries(batch_size))
        scores, labels, queries = self.postprocess.select(outputs["pred_logits"][-1])
        boxes = outputs["pred_boxes"][-1].gather(1, queries[..., None].expand(-1, -1, 4))
        return box_cxcywh_to_xyxy(boxes), scores, labels


class StandardMSDeformAttn(MSDeformAttn):
    """The same layer, but it samples with ``grid_sample``, level by level; sizes of levels may be symbolic."""

    def _sample(self, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = levels.shapes
        batch_size, _, heads, channels = value.shape
        grids = 2 * locations - 1
        output: Any = 0
        for level, rows in enumerate(value.split([height * width for height, width in shapes], dim=1)):
            maps = rows.permute(0, 2, 3, 1).reshape(batch_size * heads, channels, *shapes[level])
            grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B * M, Q, P, 2]
            sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)  # [B * M, 1, Q, P]
            output = output + (sampled * weight).sum(-1)
        return output.unflatten(0, (batch_size, heads)).flatten(1, 2).transpose(1, 2)


def use_standard_sampling(detector: nn.Module) -> None:
    """Make every deformable attention of ``detector`` use standard operations, in place."""
    for module in detector.modules():
        if type(module) is MSDeformAttn:
            module.__class__ = StandardMSDeformAttn


class Widen(nn.Module):
    """Parametrisation: a weight stored in 16 bits becomes float32 when it is used."""

    def forward(self, kept: Tensor) -> Tensor:
        """[...] -> [...]."""
        return kept.float()


def keep_half(detector: nn.Module) -> None:
    """Store all matrices and convolutions of ``detector`` in 16 bits, in place; vectors stay as they are."""
    for module in list(detector.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dim() > 1:
                weight.data = weight.data.half()
                parametrize.register_parametrization(module, name, Widen(), unsafe=True)
