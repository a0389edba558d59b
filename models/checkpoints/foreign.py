"""Checkpoints of other projects, recognised by the names in them and brought into this project's form.

Known are the public DETR family (the detectors of ``models/__init__.py``, UP-DETR, DETReg), the authors' Siamese DETR
in its training layout and converted, the same detectors of Hugging Face, and ResNets alone (torchvision, SwAV, MoCo).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from models import DETECTORS, PRETEXTS
from models.checkpoints.architecture import ASSUMED, detector_of, infer_architecture, resnet_of
from models.checkpoints.categories import COCO_LABELS, coco_categories, named_categories, saved_categories
from models.checkpoints.files import (
    CONFIG,
    PREPROCESSOR,
    find_state_dict,
    read_config,
    read_content,
    read_folder,
    read_json,
)
from models.checkpoints.hf_config import check_model_type, eval_sizes, hints_of_config, is_supported, label_names
from models.checkpoints.hf_names import is_hugging_face, to_public
from models.checkpoints.load import num_class_logits
from models.checkpoints.origin import Foreign
from models.checkpoints.own import check_own
from models.checkpoints.renaming import WRAPPER, Renaming, apply_rules, compile_rules
from util.errors import CheckpointError
from util.recipes import defaults_of, without_flags_of_others
from util.records import num_outputs
from util.resources import LARGEST_SAVED_SIDE

OWN_KEYS = {"model", "args", "stage"}
"""What only checkpoints of this project hold side by side."""

EVAL_SIZES = ("eval_size", "eval_max_size")
"""Arguments that say at which size images are detected in."""

_OF_DETECTOR = ("backbone.0.body.", "backbone.1.", "transformer.", "input_proj.", "query_embed.")
_HEADS = ("class_embed.", "bbox_embed.")
_BARE_BODIES = ("", "encoder_q.", "backbone.")
"""What stands before the names of a ResNet that comes without a detector; MoCo's is ``encoder_q``."""


def read_checkpoint(path: Path, typed: dict[str, Any]) -> tuple[dict[str, Any], Foreign | None]:
    """Read a checkpoint of this project, or bring another into its form.

    Args:
        path: a file, or a Hugging Face model folder.
        typed: architecture flags of the command line, for what the file does not tell; None: left out.

    Returns:
        ``model`` (weights under this project's names), ``args`` (the architecture and, where they are told,
        :data:`EVAL_SIZES`), ``stage`` ("pretrain", "finetune", or "backbone" where there is no more) and ``categories``
        (None: not known); and None if it is this project's, whose content is returned as it is, less flags of other
        detectors.

    Raises:
        CheckpointError: unreadable or not recognised.
        UserError: a package is missing that reads it.
    """
    if path.is_dir():
        config = read_config(path)
        check_model_type(config, path)
        weights, others = read_folder(path), {}
    else:
        content = read_content(path)
        if isinstance(content, dict) and content.keys() >= OWN_KEYS:
            check_own(content, path, _hints(content["args"], None, path))
            return {**content, "args": without_flags_of_others(content["args"], DETECTORS)}, None
        weights, others = find_state_dict(content, path)
        config = None
    renaming = Renaming(weights)
    renaming.unwrap()
    if not path.is_dir() and is_hugging_face(renaming.weights.keys()):
        config = _config_beside(path)
    kind = recognise(renaming, path, config)
    if kind == "backbone":
        body, left_over = renaming.split(lambda name: name.startswith("backbone.0.body."))
        content = {"model": body, "args": {"backbone": resnet_of(body, "backbone.0.body.")}}
        return {**content, "stage": "backbone", "categories": None}, Foreign(kind, renaming.sources, left_over)

    model, left_over = renaming.split(_belongs_to_detector)
    hints = _hints(others.get("args"), config, path)
    known = {**{name: value for name, value in typed.items() if value is not None}, **hints}
    args, assumed = infer_architecture(model, known, path)
    heads = tuple(head for task in PRETEXTS.values() for head in task.heads)
    pretext = any(name.removeprefix(WRAPPER).startswith(heads) for name in left_over)
    finished = not pretext and num_class_logits(model) is not None
    foreign = Foreign(kind, renaming.sources, left_over + list(others), assumed)
    args |= _eval_sizes(others.get("args"), None if config is None else path if path.is_dir() else path.parent)
    content = {"model": model, "args": args, "stage": "finetune" if finished else "pretrain"}
    return {**content, "categories": _categories(model, args, others, config) if finished else None}, foreign


def recognise(renaming: Renaming, path: Path, config: dict[str, Any] | None) -> str:
    """Rename what came under the names of a known project, in place; returns which it is.

    Args:
        renaming: the tensors of the file, without what a wrapper puts before their names.
        path: the file, for messages.
        config: the configuration of Hugging Face, if there is one.

    Raises:
        CheckpointError: none of them.
    """
    names = renaming.weights.keys()
    if is_hugging_face(names):
        to_public(renaming)
        _tidy(renaming, config, path)
        return "Hugging Face"
    if any(name.startswith("transformer.decoder.layers.") for name in names):
        kinds = [kind for task in PRETEXTS.values() if (kind := task.foreign_kind(names))]
        for task in PRETEXTS.values():
            renaming.rename(task.public_name)
        detr = detector_of(names)
        if detr is not None:
            rules = compile_rules(DETECTORS[detr].public_names)
            renaming.rename(lambda name: apply_rules(rules, name))
        _tidy(renaming, config, path)
        return kinds[0] if kinds else "public DETR family"
    for prefix in _BARE_BODIES:
        if f"{prefix}conv1.weight" in names and resnet_of(dict.fromkeys(names), prefix):
            body = re.compile(rf"{re.escape(prefix)}(?=conv1\.|bn1\.|layer[1-4]\.)")
            renaming.rename(lambda name: body.sub("backbone.0.body.", name, count=1) if body.match(name) else name)  # noqa: B023
            return "backbone"
    if any(name.startswith("detr.model.") for name in names):
        raise CheckpointError(f"{path}: a segmentation model of Hugging Face; only its detectors are supported")
    raise CheckpointError(
        f"{path}: not recognised: its {len(names)} tensors ({next(iter(names), 'it is empty')}, ...) are named as in "
        "none of the DETR family, Siamese DETR, Hugging Face's DETR models and ResNets; weights of another backbone "
        "go to --backbone_weights"
    )


def _tidy(renaming: Renaming, config: dict[str, Any] | None, path: Path) -> None:
    """Bring what has this project's names into the form that the detector has."""
    detr = detector_of(renaming.weights)
    if detr is not None:
        try:
            DETECTORS[detr].tidy(renaming, config)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None


def _belongs_to_detector(name: str) -> bool:
    return name.startswith((*_OF_DETECTOR, *_HEADS)) and not name.endswith(".num_batches_tracked")


def _config_beside(path: Path) -> dict[str, Any] | None:
    """The configuration in the folder of a Hugging Face weights file, if it is there."""
    config = read_json(path.parent / CONFIG) if (path.parent / CONFIG).is_file() else {}
    return config if is_supported(config) else None


def _hints(args: Any, config: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """Architecture flags that a configuration, or the arguments saved in a file, tell; others are ignored."""
    if config is not None:
        return hints_of_config(config, path)
    saved = _saved(args)
    own = {name: value for record in DETECTORS.values() for name, value in defaults_of(record.flags).items()}
    kinds = {name: type(value) for name, value in (ASSUMED | own).items()} | {"feature_stride": int}
    hints = {name: saved[name] for name, kind in kinds.items() if type(saved.get(name)) is kind}
    if str(saved.get("backbone")).startswith("timm:"):  # weights tell the others, and projects differ in their names
        hints["backbone"] = saved["backbone"]
    return hints


def _eval_sizes(args: Any, folder: Path | None) -> dict[str, int]:
    """:data:`EVAL_SIZES` of the arguments saved in a file, or of a Hugging Face ``folder``; empty if it tells none."""
    if folder is None:
        sizes = [_saved(args).get(name) for name in EVAL_SIZES]
    else:
        sizes = eval_sizes(read_json(folder / PREPROCESSOR)) if (folder / PREPROCESSOR).is_file() else [None]
    if not all(type(size) is int and size > 0 for size in sizes):
        return {}
    if max(sizes) > LARGEST_SAVED_SIDE:
        raise CheckpointError(
            f"{folder / PREPROCESSOR if folder else 'its saved arguments'}: asks for images of {max(sizes)} pixels a "
            f"side, at most {LARGEST_SAVED_SIDE} are taken from a file; correct it"
        )
    return dict(zip(EVAL_SIZES, sizes, strict=True))


def _saved(args: Any) -> dict[str, Any]:
    """Arguments as a file holds them; none if it is something else."""
    return vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}


def _categories(
    model: dict[str, Tensor], args: dict[str, Any], others: dict[str, Any], config: dict[str, Any] | None
) -> list[dict[str, Any]] | None:
    """What the class head's outputs stand for; None if the file does not say and they are not as many as COCO's."""
    if config is not None and (names := label_names(config)):
        return named_categories(names)
    if saved := saved_categories(others.get("categories")):
        return saved
    of_coco = num_outputs(COCO_LABELS, DETECTORS[args["detr"]].classification)
    data_set = getattr(others.get("args"), "dataset_file", "coco")
    is_coco = num_class_logits(model) == of_coco and data_set == "coco"
    return coco_categories() if is_coco else None
