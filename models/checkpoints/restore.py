"""Builds the detector of a checkpoint."""

from __future__ import annotations

import argparse

from models import DETECTORS
from models.checkpoints.load import load_origin, num_class_logits
from models.checkpoints.origin import Origin
from models.detr import DETR
from util.logger import say
from util.records import Classification


def restore_detector(args: argparse.Namespace, origin: Origin, classification: Classification | None = None) -> DETR:
    """The detector of a checkpoint, class head included.

    Args:
        classification: of the class head; None: that of finetuning.
    """
    num_logits = num_class_logits(origin.content["model"])
    record = DETECTORS[args.detr]
    classification = classification or record.classification
    detector = record.build(args, num_logits, classification=classification, train_backbone=False)
    report = load_origin(detector, origin, keep_class_head=True)
    if origin.foreign:
        say(report.describe(origin.path))
    return detector
