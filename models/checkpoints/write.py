"""Writes detectors for other projects: in the public layout, and as a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from models import DETECTORS
from models.checkpoints.files import CONFIG, PREPROCESSOR, WEIGHTS_FILES
from models.checkpoints.hf_config import is_of_timm, make_config, make_preprocessor_config, of_detector
from models.checkpoints.hf_names import from_public
from models.checkpoints.load import num_class_logits
from models.checkpoints.renaming import apply_rules, compile_rules
from util.checkpoint import save_file
from util.errors import UserError
from util.files import folder_written_whole, write_json
from util.optional import require
from util.records import num_outputs


def write_public(
    weights: dict[str, Tensor], args: dict[str, Any], categories: list[dict[str, Any]] | None, path: Path
) -> None:
    """Write a state dict under ``model`` with public names, as the public DETR family does.

    The file also holds ``args`` (architecture, image size at evaluation) and the categories, as plain values. With them
    this project reads the file without guessing; other readers ignore them.
    """
    rules = compile_rules(DETECTORS[args["detr"]].public_names, back=True)
    weights = {apply_rules(rules, name): value for name, value in weights.items()}
    save_file({"model": weights, "args": args, "categories": categories}, path)


def write_hugging_face(
    weights: dict[str, Tensor],
    args: dict[str, Any],
    categories: list[dict[str, Any]] | None,
    folder: Path,
    *,
    eval_size: tuple[int, int],
) -> None:
    """Write a folder for ``from_pretrained`` of transformers; it appears when it is complete.

    Args:
        eval_size: (short side, limit of the long side) in pixels, to which images are resized.

    Raises:
        UserError: safetensors, or timm for its backbones, is not installed, or the folder cannot be written.
    """
    safetensors = require("safetensors", "safetensors", "--to hf")
    save_tensors = require("safetensors.torch", "safetensors", "--to hf").save_file
    num_labels = num_class_logits(weights) - num_outputs(0, DETECTORS[args["detr"]].classification)
    config = make_config(args, categories, num_labels)
    state = from_public(weights, of_detector(args["detr"]), timm_backbone=is_of_timm(args))
    with folder_written_whole(folder) as temporary:
        write_json(config, temporary / CONFIG)
        write_json(make_preprocessor_config(args, eval_size), temporary / PREPROCESSOR)
        try:
            save_tensors(state, temporary / WEIGHTS_FILES[0], metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # such as a full disk, which is not an OSError here
            raise UserError(f"{folder}: cannot be written ({error})") from None
