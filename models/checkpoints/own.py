"""Checks checkpoints of this project for damage and changes by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from models.checkpoints.architecture import infer_architecture
from models.checkpoints.categories import saved_categories
from models.checkpoints.load import num_class_logits
from util.errors import CheckpointError


def check_own(content: dict[str, Any], path: Path, hints: dict[str, Any]) -> None:
    """Check the types of a checkpoint's parts, and that its arguments fit its weights.

    Args:
        hints: the arguments that weights do not tell.

    Raises:
        CheckpointError: names the wrong part.
    """
    wrong = next((name for name, is_right in _parts(content).items() if not is_right), None)
    if wrong is not None:
        raise CheckpointError(f"{path}: damaged: its {wrong} is missing or invalid")
    _check_architecture(content, path, hints)
    if content["categories"]:
        highest = max(category["label"] for category in content["categories"])
        if highest >= (num_class_logits(content["model"]) or 0):
            raise CheckpointError(f"{path}: damaged: a category has label {highest}, but the class head does not")


def _parts(content: dict[str, Any]) -> dict[str, bool]:
    """Names of the parts, and whether each is valid."""
    model, args = content["model"], content["args"]
    is_finetuned = content["stage"] == "finetune"
    return {
        "stage": content["stage"] in ("pretrain", "finetune"),
        "model": isinstance(model, dict) and all(_is_named_tensor(*entry) for entry in model.items()),
        "args": isinstance(args, dict),
        "categories": content.get("categories", 0) is None or saved_categories(content.get("categories")) is not None,
        "class head": not is_finetuned or (isinstance(model, dict) and num_class_logits(model) is not None),
        "ema": _is_another(content.get("ema"), model),
        "evaluations": _are_evaluations(content.get("evaluations", [])),
        **{name: _is_list_of_names(content.get(name)) for name in ("train_images", "val_images")},
    }


def _is_list_of_names(images: Any) -> bool:
    return images is None or (isinstance(images, list) and all(isinstance(name, str) for name in images))


def _is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _is_another(weights: Any, model: Any) -> bool:
    """Whether these are other values of the same tensors, or None."""
    if weights is None:
        return True
    if not (isinstance(weights, dict) and isinstance(model, dict) and weights.keys() == model.keys()):
        return False
    return all(
        isinstance(value, Tensor) and value.shape == model[name].shape and value.dtype == model[name].dtype
        for name, value in weights.items()
    )


def _are_evaluations(evaluations: Any) -> bool:
    return isinstance(evaluations, list) and all(
        isinstance(scores, dict)
        and type(scores.get("step")) is int
        and all(isinstance(name, str) and type(value) in (int, float) for name, value in scores.items())
        for scores in evaluations
    )


def _check_architecture(content: dict[str, Any], path: Path, hints: dict[str, Any]) -> None:
    """Raises CheckpointError if the arguments, which build the detector, do not fit the weights."""
    args = content["args"]
    told, assumed = infer_architecture(content["model"], hints, path)
    for name, value in told.items():
        if name not in assumed and name in args and args[name] != value:
            raise CheckpointError(
                f"{path}: damaged or made by hand: its arguments say --{name} {args[name]!r:.60}, its weights {value}"
            )
