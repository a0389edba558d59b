"""Detectors through ``torch.hub``, as DETR has them.

model = torch.hub.load(REPO, "detector", checkpoint="FILE", source="local")
model("street.jpg").draw().show()
"""

from __future__ import annotations

import argparse
from typing import Any

from models import DETECTORS
from models.checkpoints.open import restore
from models.detr import DETR
from models.predictor import Predictor, load_detector
from util.errors import CheckpointError
from util.recipes import architecture_defaults
from util.records import num_outputs

dependencies = ["torch", "torchvision", "numpy", "scipy", "pycocotools", "tqdm", "PIL"]


def detector(checkpoint: str, **options: Any) -> Predictor:
    """A trained detector that takes images as they are; see :func:`models.predictor.load_detector`."""
    return load_detector(checkpoint, **options)


def detr_resnet50(pretrained: str | None = None, num_classes: int = 91, **architecture: Any) -> DETR:
    """DETR (2005.12872) with a ResNet-50.

    Args:
        pretrained: a checkpoint of such a detector, of any project; its own classes and architecture then count.
            None: random weights.
        num_classes: outputs of the class head, "no object" not counted.
        architecture: other values than the paper's of the flags of main_finetune.py: enc_layers=3, dilation=True, ...

    Returns:
        The module; it takes a :class:`util.nested_tensor.NestedTensor` of normalised images.
    """
    return _resnet50("vanilla", pretrained, num_classes, architecture)


def conditional_detr_resnet50(pretrained: str | None = None, num_classes: int = 91, **architecture: Any) -> DETR:
    """Conditional DETR (2108.06152) with a ResNet-50; see :func:`detr_resnet50`."""
    return _resnet50("conditional", pretrained, num_classes, architecture)


def deformable_detr_resnet50(pretrained: str | None = None, num_classes: int = 91, **architecture: Any) -> DETR:
    """Multi-scale Deformable DETR (2010.04159) with a ResNet-50; see :func:`detr_resnet50`."""
    return _resnet50("deformable", pretrained, num_classes, architecture)


def _resnet50(detr: str, pretrained: str | None, num_classes: int, architecture: dict[str, Any]) -> DETR:
    """Raises CheckpointError if ``pretrained`` is another detector than was asked for."""
    if pretrained is not None:
        restored = restore(pretrained, architecture)
        found = restored.args.detr, restored.args.backbone
        if found != (detr, "resnet50"):
            raise CheckpointError(f"{pretrained}: --detr {found[0]} --backbone {found[1]}, not {detr} with resnet50")
        return restored.detector.requires_grad_(True)
    record = DETECTORS[detr]
    defaults = {**architecture_defaults(record), "detr": detr, "dropout": 0.1, "max_size": 1333}
    unknown = architecture.keys() - defaults.keys()
    if unknown:
        raise TypeError(f"unknown architecture flags: {', '.join(sorted(unknown))}")
    args = argparse.Namespace(**{**defaults, **architecture})
    num_logits = num_outputs(num_classes, record.classification)
    return record.build(args, num_logits, classification=record.classification, train_backbone=True)
