"""Finds the checkpoint that a run starts from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models import DETECTORS
from models.checkpoints.foreign import read_checkpoint
from models.checkpoints.origin import Foreign, Origin
from util import distributed
from util.checkpoint import LATEST, candidates
from util.errors import CheckpointError
from util.logger import say
from util.recipes import architecture_names


def find_origin(args: argparse.Namespace, stage: str) -> Origin | None:
    """The checkpoint of ``--resume`` (``auto``: the output folder's newest), else of ``--pretrain``, else None.

    Args:
        args: ``resume``, ``output_dir``, the architecture's flags and, for finetuning, ``pretrain`` and ``eval``.
        stage: ``"pretrain"`` or ``"finetune"``; a run can only resume a checkpoint of its own stage.

    Raises:
        CheckpointError: no such file, or the run cannot start from it.
    """
    typed = {name: getattr(args, name) for name in architecture_names(DETECTORS)}
    found = find_resumed(args, typed)
    if found is not None:
        path, content, foreign = found
        check_resumable(content, foreign, path, stage, evaluates=stage == "finetune" and args.eval)
        return Origin(path, content, resumes=True, foreign=foreign)
    if stage == "finetune" and args.pretrain:
        content, foreign = read_checkpoint(Path(args.pretrain), typed)
        return Origin(Path(args.pretrain), content, resumes=False, foreign=foreign)
    return None


def find_resumed(args: argparse.Namespace, typed: dict[str, Any]) -> tuple[Path, dict[str, Any], Foreign | None] | None:
    """Path and content (see :func:`read_checkpoint`) of the checkpoint of ``--resume``; None: a new run.

    A process that the launcher has restarted resumes as with ``--resume auto``, if the run has saved a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or ``auto`` finds only damaged checkpoints.
    """
    folder = Path(args.output_dir)
    if args.resume == "auto" or (distributed.was_restarted() and candidates(folder)):
        return newest_whole(folder, typed)
    return None if args.resume is None else (Path(args.resume), *read_checkpoint(Path(args.resume), typed))


def newest_whole(folder: Path, typed: dict[str, Any]) -> tuple[Path, dict[str, Any], Foreign | None] | None:
    """Path and content of the newest readable checkpoint of a run; None if there is no checkpoint.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    damaged = []
    for path in candidates(folder):
        try:
            found = path, *read_checkpoint(path, typed)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged or path.name != LATEST:
            reason = damaged[0] if damaged else f"{folder / LATEST} is missing"
            say(f"warning: {reason}; resuming from {path}, the newest undamaged checkpoint")
        return found
    if damaged:
        raise CheckpointError(f"--resume auto: all checkpoints in {folder} are damaged: {damaged[0]}")
    return None


def check_resumable(
    content: dict[str, Any], foreign: Foreign | None, path: Path, stage: str, *, evaluates: bool
) -> None:
    """Check that ``--resume`` can use this checkpoint.

    Args:
        content, foreign: from :func:`read_checkpoint`.
        path: its file.
        stage: the stage of the run.
        evaluates: the run only evaluates the checkpoint.

    Raises:
        CheckpointError: it is of another stage or project; the message says what it can be used for.
    """
    if content["stage"] == "backbone":
        raise CheckpointError(f"--resume {path}: only a backbone, not a detector; pass it as --backbone_weights")
    if foreign and not evaluates:
        raise CheckpointError(
            f"--resume {path}: a checkpoint of another project ({foreign.kind}) cannot be resumed; start from it with "
            "main_finetune.py --pretrain FILE"
        )
    if content["stage"] != stage:
        advice = (
            "start from it with main_finetune.py --pretrain FILE"
            if stage == "finetune"
            else "resume it with main_finetune.py --resume FILE"
        )
        raise CheckpointError(f"--resume {path}: a {content['stage']} checkpoint, not a {stage} one; {advice}")
    if stage == "finetune" and content["categories"] is None:
        raise CheckpointError(
            f"--resume {path}: its categories are unknown, and its class head is not COCO's; finetune it with "
            "--pretrain FILE"
        )
