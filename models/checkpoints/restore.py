"""From a finetuned checkpoint to the detector that it holds."""

from __future__ import annotations

import argparse

from models import DETECTORS
from models.checkpoints.load import load_origin, num_class_logits
from models.checkpoints.origin import Origin
from models.detr import DETR
from util.logger import say
from util.recipes import is_focal


def restore_detector(args: argparse.Namespace, origin: Origin) -> DETR:
    """The detector of a finetuned checkpoint, class head included."""
    num_logits = num_class_logits(origin.content["model"])
    detector = DETECTORS[args.detr](args, num_logits, focal=is_focal(args), train_backbone=False)
    report = load_origin(detector, origin, keep_class_head=True)
    if origin.foreign:
        say(report.describe(origin.path))
    return detector
