"""Builds the detector of a checkpoint from nothing but the checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import DETECTORS, PRETEXTS
from models.checkpoints.files import CONFIG
from models.checkpoints.foreign import EVAL_SIZES, read_checkpoint
from models.checkpoints.load import num_class_logits
from models.checkpoints.origin import Foreign, Origin
from models.checkpoints.restore import restore_detector
from models.detr import DETR
from util.checkpoint import LATEST
from util.errors import CheckpointError
from util.recipes import adopt, architecture_defaults

UNTOLD = ("nheads", "dilation", "backbone", "num_queries")
"""Flags of the architecture that a checkpoint of another project may not tell."""

DEFAULT_SIZES = (800, 1333)
"""Short side and limit of the long side in DETR's evaluation, if a checkpoint does not tell them."""


@dataclass(frozen=True)
class Restored:
    """A detector and what its checkpoint says about it.

    Attributes:
        path: the checkpoint.
        detector: weights loaded, on the CPU, frozen.
        args: of the run that wrote it; for another project's checkpoint those of its architecture.
        categories: of its class head; None: unknown, or pretrained.
        method: the pretext task that pretrained it; None: it was trained on labels.
        pretext: the heads of the pretext task; None: there are no such heads of this project.
    """

    path: Path
    detector: DETR
    args: argparse.Namespace
    categories: list[dict[str, Any]] | None
    method: str | None
    pretext: dict[str, Any] | None

    @property
    def finds_regions(self) -> bool:
        """Whether it was pretrained to detect class-agnostic regions by itself."""
        return self.method is not None and PRETEXTS[self.method].detects_alone

    @property
    def eval_sizes(self) -> tuple[int, int]:
        """Short side and limit of the long side in pixels at evaluation."""
        saved = vars(self.args)
        if all(saved.get(name) for name in EVAL_SIZES):
            return tuple(saved[name] for name in EVAL_SIZES)
        if saved.get("scales") and saved.get("max_size"):
            return max(saved["scales"]), saved["max_size"]
        return DEFAULT_SIZES


def restore(checkpoint: str | Path, untold: dict[str, Any]) -> Restored:
    """Build the detector of a checkpoint and load it.

    Args:
        checkpoint: a file, a run's output folder or a Hugging Face model folder.
        untold: some of :data:`UNTOLD`, used if the checkpoint does not tell them; None: not given.

    Raises:
        CheckpointError: unreadable, not recognised, only a backbone, or contradicts ``untold``.
    """
    path = Path(checkpoint)
    if path.is_dir() and not (path / CONFIG).is_file() and (path / LATEST).is_file():
        path = path / LATEST
    typed = {name: untold.get(name) for name in UNTOLD}
    content, foreign = read_checkpoint(path, typed)
    if content["stage"] == "backbone":
        raise CheckpointError(f"{path}: only a backbone, not a detector; train one with main_finetune.py --pretrain")
    adopt(argparse.Namespace(**typed), UNTOLD, content["args"], path)
    if num_class_logits(content["model"]) is None:
        raise CheckpointError(f"{path}: holds no class head, so it cannot detect; finetune it with main_finetune.py")
    record = DETECTORS[content["args"]["detr"]]
    args = argparse.Namespace(**{**architecture_defaults(record), "dropout": 0.0, "max_size": 0, **content["args"]})
    method = _method_of(content, foreign)
    origin = Origin(path, content, resumes=True, foreign=foreign)
    detector = restore_detector(args, origin, PRETEXTS[method].classification if method else None)
    return Restored(
        path=path,
        detector=detector.requires_grad_(False).eval(),
        args=args,
        categories=content["categories"],
        method=method,
        pretext=content.get("pretext"),
    )


def _method_of(content: dict[str, Any], foreign: Foreign | None) -> str | None:
    """The pretext task of a pretrained checkpoint."""
    if content["stage"] != "pretrain":
        return None
    if foreign is None:
        return content["args"].get("method", next(iter(PRETEXTS)))
    names = [*foreign.left_over, *(name for found in foreign.sources.values() for name in found)]
    known = (name for name, task in PRETEXTS.items() if task.foreign_kind(names) == foreign.kind)
    return next(known, next(iter(PRETEXTS)))
