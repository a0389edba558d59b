"""Checkpoint files: read without running code, written whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from util import distributed
from util.errors import CheckpointError, UserError
from util.load_report import LoadReport

LATEST = "checkpoint.pth"

# Which flag decides the shape of a parameter, by the beginning of its name; the first that fits is named.
_DECIDING_FLAG = (
    ("query_embed", "--num_queries"),
    ("transformer.encoder.layers", "--enc_layers, --dim_feedforward, --hidden_dim, --num_feature_levels or --detr"),
    ("transformer.decoder.layers", "--dec_layers, --dim_feedforward, --hidden_dim, --num_feature_levels or --detr"),
    ("transformer.decoder.bbox_embed", "--with_box_refine, --two_stage or --dec_layers"),
    ("transformer.decoder.class_embed", "--two_stage or --dec_layers"),
    ("transformer.enc_output", "--two_stage"),
    ("transformer.pos_trans", "--two_stage"),
    ("transformer.reference_points", "--two_stage or --detr"),
    ("transformer.level_embed", "--num_feature_levels or --detr"),
    ("transformer", "--detr or --hidden_dim"),
    ("input_proj", "--backbone, --feature_stride, --num_feature_levels or --hidden_dim"),
    ("backbone.1", "--position_embedding"),
    ("backbone", "--backbone"),
    ("bbox_embed", "--hidden_dim, --dec_layers or --detr"),
)

CLASS_HEADS = ("class_embed.", "transformer.decoder.class_embed.")
"""How the names of class heads begin; those of a two-stage detector are known to its decoder, too."""


def load_file(path: str | Path) -> Any:
    """Read a file written by ``torch.save`` onto the CPU. Code in it never runs (``weights_only=True``).

    Raises:
        CheckpointError: no such file, truncated, not a checkpoint, or holding objects other than tensors and
            plain containers; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():  # a class or function that the file asks for
            raise CheckpointError(
                f"{path}: refused: it holds more than tensors and plain containers, loading it could run code"
            ) from None
        raise CheckpointError(f"{path}: not a checkpoint, or damaged") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or truncated ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def save_file(value: Any, path: str | Path) -> None:
    """Write ``value`` by ``torch.save``: to a temporary file beside ``path``, synced, then renamed."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock colleagues out
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_checkpoint(output_dir: str | Path, checkpoint: dict[str, Any], *, keep: int) -> Path:
    """Write ``checkpoint_STEP.pth``, point ``checkpoint.pth`` at it, and delete all but the ``keep`` last written.

    ``checkpoint.pth`` is a hard link (a copy where there are none): it costs no space and is complete
    at any moment.
    """
    folder = Path(output_dir)
    path = folder / f"checkpoint_{checkpoint['step']:08d}.pth"
    save_file(checkpoint, path)
    temporary = folder / f".{LATEST}.link"
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        os.replace(temporary, folder / LATEST)
    except OSError:  # no hard links here
        save_file(checkpoint, folder / LATEST)
    by_age = sorted(folder.glob("checkpoint_????????.pth"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    for old in by_age[:-keep]:
        old.unlink()
    return path


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run starts from.

    Attributes:
        path: its file.
        content: what the file holds.
        resumes: the run goes on where this one stopped; otherwise it only takes over the detector.
    """

    path: Path
    content: dict[str, Any]
    resumes: bool


def find_origin(args: argparse.Namespace, stage: str) -> Origin | None:
    """The checkpoint of ``--resume`` (``auto``: the output folder's newest), else of ``--pretrain``, else None.

    Args:
        args: ``resume``, ``output_dir`` and, for finetuning, ``pretrain``.
        stage: ``"pretrain"`` or ``"finetune"``; only such a checkpoint can be resumed.

    Raises:
        CheckpointError: no such file, or it will not do.
    """
    resume = None if args.resume is None else Path(args.resume)
    if args.resume == "auto":
        newest = Path(args.output_dir) / LATEST
        resume = newest if newest.is_file() else None
    if resume is not None:
        return Origin(resume, load_run(resume, stage), resumes=True)
    if stage == "finetune" and args.pretrain:
        return Origin(Path(args.pretrain), load_run(args.pretrain), resumes=False)
    return None


def load_run(path: str | Path, stage: str | None = None) -> dict[str, Any]:
    """Read a checkpoint that this project wrote.

    Args:
        path: the file.
        stage: ``"pretrain"`` or ``"finetune"`` if only one of them will do.

    Raises:
        CheckpointError: unreadable, of another project, or of the other stage.
    """
    checkpoint = load_file(path)
    needed = {"model", "args", "stage"}
    missing = sorted(needed - checkpoint.keys() if isinstance(checkpoint, dict) else needed)
    if missing:
        raise CheckpointError(f"{path}: not a checkpoint of this project (it lacks {', '.join(missing)})")
    if stage is not None and checkpoint["stage"] != stage:
        advice = (
            "start from it by main_finetune.py --pretrain FILE"
            if stage == "finetune"
            else "it continues by main_finetune.py --resume FILE"
        )
        raise CheckpointError(f"--resume {path}: a {checkpoint['stage']} checkpoint, not a {stage} one; {advice}")
    return checkpoint


def load_detector(detector: nn.Module, weights: dict, source: str | Path, *, keep_class_head: bool) -> LoadReport:
    """Load a detector's state dict into ``detector``; every name and shape is checked.

    Args:
        detector: receives the weights.
        weights: ``{name: tensor}`` under the detector's own names.
        source: the file, for messages.
        keep_class_head: False leaves :data:`CLASS_HEADS` as they are newly made (other categories).

    Raises:
        CheckpointError: a parameter is missing, unknown or of another shape; names the flags that decide it.
    """
    own = detector.state_dict()
    skipped = [] if keep_class_head else [name for name in own if name.startswith(CLASS_HEADS)]
    expected = {name: value for name, value in own.items() if name not in skipped}
    for name, value in expected.items():
        if name not in weights:
            raise CheckpointError(f"{source}: lacks {name}; another architecture: see {deciding_flag(name)}")
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"{source}: {name} has shape {list(weights[name].shape)}, "
                f"this detector has {list(value.shape)}; see {deciding_flag(name)}"
            )
    left_over = [name for name in weights if name not in expected]
    unknown = [name for name in left_over if not name.startswith(CLASS_HEADS)]
    if unknown:
        raise CheckpointError(
            f"{source}: holds {unknown[0]}, which this detector has not; see {deciding_flag(unknown[0])}"
        )
    detector.load_state_dict({name: weights[name] for name in expected}, strict=False)
    return LoadReport(loaded=list(expected), new=skipped, left_over=left_over)


def num_class_logits(weights: dict) -> int:
    """Outputs of the class head in a detector's state dict, whether layers share one or each has its own."""
    return len(weights["class_embed.bias"] if "class_embed.bias" in weights else weights["class_embed.0.bias"])


def deciding_flag(name: str) -> str:
    """The flags on which the presence and shape of the parameter ``name`` depend."""
    return next((flag for prefix, flag in _DECIDING_FLAG if name.startswith(prefix)), "--detr")


def rng_state() -> dict[str, Any]:
    """The global random states of this process, as tensors and plain numbers (safe to load)."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global state is meant
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [
            name,
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def restore_rank_rng(states: list[dict[str, Any]]) -> None:
    """Give this process its own random state of those that the ranks of the stopped run had.

    A run resumed with more processes than before keeps the fresh seeds in the additional ones.
    """
    if distributed.rank() < len(states):
        set_rng_state(states[distributed.rank()])


def open_output_dir(args: argparse.Namespace, origin: Origin | None) -> Path:
    """Make the folder of a training run, prove that it can be written, write ``args.json``. Collective.

    Raises:
        UserError: it cannot be made or written, or holds another run that this one would overwrite.
    """
    folder = Path(args.output_dir)
    if distributed.is_main():
        make_writable(folder)
        goes_on_here = origin is not None and origin.resumes and origin.path.resolve().parent == folder.resolve()
        if not goes_on_here and (folder / LATEST).exists():
            raise UserError(
                f"--output_dir {folder} holds a run already: go on with --resume auto, or name another folder"
            )
        for leftover in folder.glob(".checkpoint_*.pth.*"):  # of a save that was killed
            leftover.unlink()
        write_json(vars(args), folder / "args.json")
    distributed.barrier()
    return folder


def make_writable(folder: str | Path) -> None:
    """Make ``folder`` and prove that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror or error})") from None


def write_json(value: Any, path: str | Path) -> None:
    """Write ``value`` as JSON: to a temporary file, then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
