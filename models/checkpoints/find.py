"""Finding the checkpoint that a run starts from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models import DETECTORS
from models.checkpoints.foreign import read_checkpoint
from models.checkpoints.origin import Foreign, Origin
from util.checkpoint import LATEST
from util.errors import CheckpointError
from util.recipes import architecture_names


def find_origin(args: argparse.Namespace, stage: str) -> Origin | None:
    """The checkpoint of ``--resume`` (``auto``: the output folder's newest), else of ``--pretrain``, else None.

    Args:
        args: ``resume``, ``output_dir``, the architecture's flags and, for finetuning, ``pretrain`` and ``eval``.
        stage: ``"pretrain"`` or ``"finetune"``; only such a checkpoint can be resumed.

    Raises:
        CheckpointError: no such file, or it will not do.
    """
    typed = {name: getattr(args, name) for name in architecture_names(DETECTORS)}
    resume = None if args.resume is None else Path(args.resume)
    if args.resume == "auto":
        newest = Path(args.output_dir) / LATEST
        resume = newest if newest.is_file() else None
    if resume is not None:
        content, foreign = read_checkpoint(resume, typed)
        check_resumable(content, foreign, resume, stage, evaluates=stage == "finetune" and args.eval)
        return Origin(resume, content, resumes=True, foreign=foreign)
    if stage == "finetune" and args.pretrain:
        content, foreign = read_checkpoint(Path(args.pretrain), typed)
        return Origin(Path(args.pretrain), content, resumes=False, foreign=foreign)
    return None


def check_resumable(
    content: dict[str, Any], foreign: Foreign | None, path: Path, stage: str, *, evaluates: bool
) -> None:
    """Whether ``--resume`` can take this checkpoint.

    Args:
        content, foreign: from :func:`read_checkpoint`.
        path: its file.
        stage: the only one that will do.
        evaluates: the checkpoint is not to go on, only to be evaluated.

    Raises:
        CheckpointError: it is of another stage, or of another project; the message says what it is for.
    """
    if content["stage"] == "backbone":
        raise CheckpointError(f"--resume {path}: a backbone alone, no detector: --backbone_weights takes it")
    if foreign and not evaluates:
        raise CheckpointError(
            f"--resume {path}: not a checkpoint of this project that could go on ({foreign.kind}); start from it by "
            "main_finetune.py --pretrain FILE"
        )
    if content["stage"] != stage:
        advice = (
            "start from it by main_finetune.py --pretrain FILE"
            if stage == "finetune"
            else "it continues by main_finetune.py --resume FILE"
        )
        raise CheckpointError(f"--resume {path}: a {content['stage']} checkpoint, not a {stage} one; {advice}")
    if evaluates and content["categories"] is None:
        raise CheckpointError(
            f"--resume {path}: does not say which categories its class head is for, nor is it COCO's; "
            "finetune it by --pretrain FILE"
        )
