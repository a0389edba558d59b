"""Finding the checkpoint that a run starts from."""

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
        stage: ``"pretrain"`` or ``"finetune"``; only such a checkpoint can be resumed.

    Raises:
        CheckpointError: no such file, or it will not do.
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
    """File and content (see :func:`read_checkpoint`) of the checkpoint that ``--resume`` means; None if there is none.

    A process that the launcher started anew goes on as if by ``--resume auto`` if the run has saved anything.

    Raises:
        CheckpointError: it cannot be read; or there are some, and none is whole.
    """
    folder = Path(args.output_dir)
    if args.resume == "auto" or (distributed.was_restarted() and candidates(folder)):
        return newest_whole(folder, typed)
    return None if args.resume is None else (Path(args.resume), *read_checkpoint(Path(args.resume), typed))


def newest_whole(folder: Path, typed: dict[str, Any]) -> tuple[Path, dict[str, Any], Foreign | None] | None:
    """The newest checkpoint of a run that can be read, and what it holds; None if there is none at all.

    Raises:
        CheckpointError: there are some, and none can be read.
    """
    damaged = []
    for path in candidates(folder):
        try:
            found = path, *read_checkpoint(path, typed)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged or path.name != LATEST:
            reason = damaged[0] if damaged else f"{folder / LATEST} is gone"
            say(f"warning: {reason}; going on from {path}, the newest checkpoint that is whole")
        return found
    if damaged:
        raise CheckpointError(f"--resume auto: no checkpoint in {folder} is whole: {damaged[0]}")
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
    if stage == "finetune" and content["categories"] is None:
        raise CheckpointError(
            f"--resume {path}: does not say which categories its class head is for, nor is it COCO's; "
            "finetune it by --pretrain FILE"
        )
