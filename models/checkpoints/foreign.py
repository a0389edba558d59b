"""Checkpoints of other projects: recognised by their names and converted to this project's form.

Known are the public DETR family (the detectors of ``models/__init__.py``, UP-DETR, DETReg), the authors' Siamese DETR
(as trained, and converted), the same detectors of Hugging Face, and single ResNets (torchvision, SwAV, MoCo).
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
"""Only checkpoints of this project have all of these keys."""

EVAL_SIZES = ("eval_size", "eval_max_size")
"""Arguments that give the size of images at evaluation."""

_OF_DETECTOR = ("backbone.0.body.", "backbone.1.", "transformer.", "input_proj.", "query_embed.")
_HEADS = ("class_embed.", "bbox_embed.")
_BARE_BODIES = ("", "encoder_q.", "backbone.")
"""Prefixes of the names of a ResNet without a detector; ``encoder_q.`` is MoCo's."""


def read_checkpoint(path: Path, typed: dict[str, Any]) -> tuple[dict[str, Any], Foreign | None]:
    """Read a checkpoint of this project, or convert one of another project to its form.

    Args:
        path: a file, or a Hugging Face model folder.
        typed: architecture flags of the command line, used if the file does not tell them; None: not given.

    Returns:
        ``model`` (weights under this project's names), ``args`` (the architecture and, if known, :data:`EVAL_SIZES`),
        ``stage`` ("pretrain", "finetune", or "backbone" if there is only a backbone) and ``categories`` (None:
        unknown). With it :class:`Foreign`, or None for a checkpoint of this project; its content is returned unchanged,
        without flags of other detectors.

    Raises:
        CheckpointError: unreadable or not recognised.
        UserError: a package that reads it is not installed.
    """
    if path.is_dir():
        config = read_config(path)
        check_model_type(config, path)
        return _convert(read_folder(path), {}, config, path, typed)
    content = read_content(path)
    if isinstance(content, dict) and content.keys() >= OWN_KEYS:
        check_own(content, path, _hints(content["args"], None, path))
        return {**content, "args": without_flags_of_others(content["args"], DETECTORS)}, None
    return _convert(*find_state_dict(content, path), None, path, typed)


def _convert(
    weights: dict[str, Tensor],
    others: dict[str, Any],
    config: dict[str, Any] | None,
    path: Path,
    typed: dict[str, Any],
) -> tuple[dict[str, Any], Foreign]:
    """Convert a checkpoint of another project, from its weights, its other entries and its configuration."""
    renaming = Renaming(weights)
    renaming.unwrap()
    if config is None and is_hugging_face(renaming.weights.keys()):
        config = _config_beside(path)
    kind = recognise(renaming, path, config)
    if kind == "backbone":
        body, left_over = renaming.split(lambda name: name.startswith("backbone.0.body."))
        content = {"model": body, "args": {"backbone": resnet_of(body, "backbone.0.body.")}}
        return {**content, "stage": "backbone", "categories": None}, Foreign(kind, renaming.sources, left_over)

    model, left_over = renaming.split(_belongs_to_detector)
    known = {name: value for name, value in typed.items() if value is not None}
    args, assumed = infer_architecture(model, known | _hints(others.get("args"), config, path), path)
    args |= _eval_sizes(others.get("args"), None if config is None else path if path.is_dir() else path.parent)
    heads = tuple(head for task in PRETEXTS.values() for head in task.heads)
    pretext = any(name.removeprefix(WRAPPER).startswith(heads) for name in left_over)
    finished = not pretext and num_class_logits(model) is not None
    content = {"model": model, "args": args, "stage": "finetune" if finished else "pretrain"}
    content["categories"] = _categories(model, args, others, config) if finished else None
    return content, Foreign(kind, renaming.sources, left_over + list(others), assumed)


def recognise(renaming: Renaming, path: Path, config: dict[str, Any] | None) -> str:
    """Recognise the project by its names and rename the tensors in place; returns the project.

    Args:
        renaming: the tensors of the file, without the prefix of a wrapper.
        path: the file, for messages.
        config: the configuration of Hugging Face, if there is one.

    Raises:
        CheckpointError: not recognised.
    """
    names = renaming.weights.keys()
    if is_hugging_face(names):
        to_public(renaming)
        _tidy(renaming, config, path)
        return "Hugging Face"
    if any(name.startswith("transformer.decoder.layers.") for name in names):
        return _recognise_public(renaming, path, config)
    if _rename_bare_body(renaming):
        return "backbone"
    if any(name.startswith("detr.model.") for name in names):
        raise CheckpointError(f"{path}: a segmentation model of Hugging Face; only its detectors are supported")
    raise CheckpointError(
        f"{path}: not recognised: its {len(names)} tensors ({next(iter(names), 'it is empty')}, ...) are not named as "
        "in the DETR family, Siamese DETR, Hugging Face's DETR models or ResNets; pass weights of another backbone as "
        "--backbone_weights"
    )


def _recognise_public(renaming: Renaming, path: Path, config: dict[str, Any] | None) -> str:
    """A pretext task that recognises the names, or the public DETR family; renames in place."""
    names = renaming.weights.keys()
    kinds = [kind for task in PRETEXTS.values() if (kind := task.foreign_kind(names))]
    for task in PRETEXTS.values():
        renaming.rename(task.public_name)
    detr = detector_of(names)
    if detr is not None:
        rules = compile_rules(DETECTORS[detr].public_names)
        renaming.rename(lambda name: apply_rules(rules, name))
    _tidy(renaming, config, path)
    return kinds[0] if kinds else "public DETR family"


def _rename_bare_body(renaming: Renaming) -> bool:
    """Rename a ResNet without a detector, in place; False: it is not one."""
    names = renaming.weights
    for prefix in _BARE_BODIES:
        if f"{prefix}conv1.weight" in names and resnet_of(names, prefix):
            body = re.compile(rf"{re.escape(prefix)}(?=conv1\.|bn1\.|layer[1-4]\.)")
            renaming.rename(lambda name: body.sub("backbone.0.body.", name, count=1) if body.match(name) else name)  # noqa: B023
            return True
    return False


def _tidy(renaming: Renaming, config: dict[str, Any] | None, path: Path) -> None:
    """Convert tensors with this project's names to the form of the detector."""
    detr = detector_of(renaming.weights)
    if detr is not None:
        try:
            DETECTORS[detr].tidy(renaming, config)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None


def _belongs_to_detector(name: str) -> bool:
    return name.startswith((*_OF_DETECTOR, *_HEADS)) and not name.endswith(".num_batches_tracked")


def _config_beside(path: Path) -> dict[str, Any] | None:
    """The configuration in the folder of a Hugging Face weights file, if there is one."""
    config = read_json(path.parent / CONFIG) if (path.parent / CONFIG).is_file() else {}
    return config if is_supported(config) else None


def _hints(args: Any, config: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """The architecture flags in a configuration, or in the arguments that a file holds."""
    if config is not None:
        return hints_of_config(config, path)
    saved = _saved(args)
    own = {name: value for record in DETECTORS.values() for name, value in defaults_of(record.flags).items()}
    kinds = {name: type(value) for name, value in (ASSUMED | own).items()} | {"feature_stride": int}
    hints = {name: saved[name] for name, kind in kinds.items() if type(saved.get(name)) is kind}
    if str(saved.get("backbone")).startswith("timm:"):  # the weights tell the others; projects name them differently
        hints["backbone"] = saved["backbone"]
    return hints


def _eval_sizes(args: Any, folder: Path | None) -> dict[str, int]:
    """:data:`EVAL_SIZES` of the arguments that a file holds, or of a Hugging Face ``folder``; empty if unknown."""
    if folder is None:
        sizes = [_saved(args).get(name) for name in EVAL_SIZES]
    else:
        sizes = eval_sizes(read_json(folder / PREPROCESSOR)) if (folder / PREPROCESSOR).is_file() else [None]
    if not all(type(size) is int and size > 0 for size in sizes):
        return {}
    if max(sizes) > LARGEST_SAVED_SIDE:
        raise CheckpointError(
            f"{folder / PREPROCESSOR if folder else 'its saved arguments'}: asks for images with a side of "
            f"{max(sizes)} pixels, but a file may ask for at most {LARGEST_SAVED_SIDE}; correct it"
        )
    return dict(zip(EVAL_SIZES, sizes, strict=True))


def _saved(args: Any) -> dict[str, Any]:
    """The arguments that a file holds, as a dictionary; empty if it holds something else."""
    return vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}


def _categories(
    model: dict[str, Tensor], args: dict[str, Any], others: dict[str, Any], config: dict[str, Any] | None
) -> list[dict[str, Any]] | None:
    """The categories of the class head; None if the file does not say and their number is not that of COCO."""
    if config is not None and (names := label_names(config)):
        return named_categories(names)
    if saved := saved_categories(others.get("categories")):
        return saved
    of_coco = num_outputs(COCO_LABELS, DETECTORS[args["detr"]].classification)
    data_set = getattr(others.get("args"), "dataset_file", "coco")
    is_coco = num_class_logits(model) == of_coco and data_set == "coco"
    return coco_categories() if is_coco else None
