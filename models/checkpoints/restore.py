"""From a finetuned checkpoint to the detector that it holds."""

from __future__ import annotations

import argparse

from models import DETECTORS
from models.checkpoints.load import load_origin, num_class_logits
from models.checkpoints.origin import Origin
from models.detr import DETR
from util.logger import say


def restore_detector(args: argparse.Namespace, origin: Origin) -> DETR:
    """The detector of a finetuned checkpoint, class head included."""
    num_logits = num_class_logits(origin.content["model"])
    record = DETECTORS[args.detr]
    detector = record.build(args, num_logits, classification=record.classification, train_backbone=False)
    report = load_origin(detector, origin, keep_class_head=True)
    if origin.foreign:
        say(report.describe(origin.path))
    return detector
