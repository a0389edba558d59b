"""Small pretext tasks of one view, and batches for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import main_pretrain
from datasets.pretext.one_view import OneViewBatch
from models import PRETEXTS
from tests.models.detectors import randomize
from util.nested_tensor import NestedTensor

DETECTOR = (
    "--backbone resnet18 --enc_layers 1 --dec_layers 2 --hidden_dim 32 --nheads 4 --dim_feedforward 64 --dropout 0"
).split()
DETRS = {
    "vanilla": ["--detr", "vanilla"],
    "conditional": ["--detr", "conditional"],
    "deformable": ["--detr", "deformable"],
    "dab": ["--detr", "dab"],
    "single-scale": ["--detr", "deformable", "--num_feature_levels", "1"],
}
SIZES = [(96, 100), (64, 128), (80, 96), (96, 128)]


def build(method: str, detr: str, *argv: str) -> nn.Module:
    """The method of the command line around a small detector with random weights, in evaluation mode."""
    torch.manual_seed(0)
    args, _ = main_pretrain.parse(["--data_path", "nowhere", "--method", method, *DETECTOR, *DETRS[detr], *argv])
    detector = main_pretrain.build_detector(args, None)
    randomize(detector)
    return PRETEXTS[method].build(args, detector).eval()


def one_view_batch(*num_regions: int) -> OneViewBatch:
    """Images of unequal sizes, one for each number of regions."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(len(num_regions), 96, 128, dtype=torch.bool)
    for image, (height, width) in enumerate(SIZES[: len(num_regions)]):
        mask[image, :height, :width] = False
    images = torch.randn(len(num_regions), 3, 96, 128, generator=generator).masked_fill(mask[:, None], 0)
    centre = 0.3 + 0.4 * torch.rand(sum(num_regions), 2, generator=generator)
    side = 0.1 + 0.4 * torch.rand(sum(num_regions), 2, generator=generator)
    boxes = torch.cat([centre, side], dim=1).split(list(num_regions))
    crops = torch.randn(sum(num_regions), 3, 32, 32, generator=generator)
    return OneViewBatch(images=NestedTensor(images, mask), boxes=list(boxes), crops=crops)


def rows_of(batch: OneViewBatch, rows: slice) -> OneViewBatch:
    """Some images of a batch, in float64."""
    counts = [len(boxes) for boxes in batch.boxes]
    return OneViewBatch(
        images=NestedTensor(batch.images.tensors[rows].double(), batch.images.mask[rows]),
        boxes=[boxes.double() for boxes in batch.boxes[rows]],
        crops=torch.cat([batch.crops[:0], *batch.crops.split(counts)[rows]]).double(),
    )


def outputs_of(method: nn.Module, batch: OneViewBatch) -> dict[str, Tensor]:
    """What ``forward`` hands to the criterion."""
    caught = {}
    handle = method.criterion.register_forward_pre_hook(lambda module, inputs: caught.update(inputs[0]))
    with torch.no_grad():
        method(batch)
    handle.remove()
    return caught
