"""Finetuning on some of the labelled images, as a user runs it."""

import json
from pathlib import Path

import pytest

import main_finetune
from tests.tiny import COMMON, DETECTOR
from util.checkpoint import load_file
from util.errors import CheckpointError


def finetune(data, out, *argv) -> list[str]:
    """Run main_finetune.py; returns the list of images that it wrote."""
    main_finetune.main(["--data_path", str(data), "--output_dir", str(out), *COMMON, "--eval_every", "0", *argv])
    return json.loads((Path(out) / "train_images.json").read_text())


def test_a_fraction_is_drawn_by_seed_and_kept_on_resuming(data, tmp_path, capsys):
    argv = [*DETECTOR, "--train_fraction", "0.4", "--epochs"]
    images = finetune(data, tmp_path / "a", *argv, "1")
    assert len(images) == 4
    assert set(images) <= {f"{index}.png" for index in range(10)}
    assert "training on 4 of 10 images, listed in" in capsys.readouterr().out
    assert finetune(data, tmp_path / "b", *argv, "1") == images
    assert finetune(data, tmp_path / "c", *argv, "1", "--seed", "4") != images

    # the list is the checkpoint's, whatever is typed now; an epoch has two steps
    resume = ["--resume", str(tmp_path / "a" / "checkpoint.pth"), "--epochs", "2"]
    assert finetune(data, tmp_path / "resumed", *resume, "--seed", "4") == images
    assert load_file(tmp_path / "resumed" / "checkpoint.pth")["step"] == 4
    with pytest.raises(CheckpointError, match=r"--train_fraction 0\.5"):
        finetune(data, tmp_path / "other", *resume, "--train_fraction", "0.5")


def test_images_per_class(data, tmp_path):
    images = finetune(data, tmp_path, *DETECTOR, "--train_images_per_class", "1", "--max_steps", "1")
    content = json.loads((data / "annotations" / "instances_train.json").read_text())
    id_of = {image["file_name"]: image["id"] for image in content["images"]}
    shown = {a["category_id"] for a in content["annotations"] for name in images if a["image_id"] == id_of[name]}
    assert shown == {10, 20}
    assert len(images) <= 2
