"""Checkpoints of small detectors with random weights, for tests of prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import main_pretrain
from models import DETECTORS, PRETEXTS
from models.detr import DETR
from tests.models.detectors import build, randomize, small_args
from util.checkpoint import save_file
from util.records import num_outputs

CATEGORIES = [{"label": 0, "id": 10, "name": "square"}, {"label": 1, "id": 20, "name": "brick"}]


SIZES = {"eval_size": 64, "eval_max_size": 110, "enc_layers": 1, "dec_layers": 2}


def save_predicting(
    detr: str,
    path: Path,
    categories: list[dict[str, Any]] = CATEGORIES,
    *,
    num_logits: int = 2,
    **changes: object,
) -> Path:
    """A finetuned checkpoint; ``num_logits`` does not count "no object"."""
    args = small_args(detr, **{**SIZES, **changes})
    detector = build(args, num_outputs(num_logits, DETECTORS[detr].classification), train_backbone=False)
    randomize(detector)
    return _save(detector, vars(args), path, stage="finetune", categories=categories)


def save_pretrained(method: str, detr: str, path: Path, **changes: object) -> Path:
    """A pretrained checkpoint of this project with its pretext heads."""
    small = {**SIZES, "scales": 64, "max_size": 110, "crop_size": 32, "num_queries": 10, "hidden_dim": 32, "nheads": 4}
    small |= {"dim_feedforward": 48, "backbone": "resnet18", "method": method, "detr": detr, "data_path": "."}
    small |= {} if PRETEXTS[method].detects_alone else {"num_regions": 5}
    del small["eval_size"], small["eval_max_size"]
    args, _ = main_pretrain.parse(
        [str(word) for name, value in (small | changes).items() for word in (f"--{name}", value)]
    )
    task, record = PRETEXTS[method], DETECTORS[detr]
    classification = task.classification or record.classification
    detector = build(
        args, num_outputs(task.num_classes, classification), classification=classification, train_backbone=False
    )
    randomize(detector)
    pretext = task.build(args, detector).pretext_state_dict()
    return _save(detector, vars(args), path, stage="pretrain", categories=None, pretext=pretext)


def _save(detector: DETR, args: dict[str, Any], path: Path, **others: Any) -> Path:
    save_file({"model": detector.state_dict(), "args": args, **others}, path)
    return path


def write_images(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Noise images with a bright rectangle, of these (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (width, height) in enumerate(sizes):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
        pixels[height // 4 : height // 2, width // 4 : width // 2] = 240
        paths.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
