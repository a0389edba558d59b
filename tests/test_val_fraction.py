"""Finetuning on data that have no validation images, as a user runs it."""

import json

import pytest

import main_finetune
from tests.datasets.layouts import Picture, write_roboflow, write_voc_folders
from tests.tiny import COMMON, DETECTOR
from util.checkpoint import load_file
from util.errors import CheckpointError, DataError, UserError

PICTURES = [
    Picture(f"p{number}", (40 + number, 50), [(number % 2, 2, 3, 20 + number, 30)] * (number != 4))
    for number in range(10)
]


@pytest.fixture
def data(tmp_path):
    """Ten images in ``images/``, XML files in ``annots/``: nothing else."""
    write_voc_folders(tmp_path / "data", {"": PICTURES})
    return tmp_path / "data"


def finetune(data, out, *argv):
    main_finetune.main(["--data_path", str(data), "--output_dir", str(out), *COMMON, *argv])
    return load_file(out / "checkpoint.pth")


def test_a_share_is_held_out_and_kept(data, tmp_path, capsys):
    saved = finetune(data, tmp_path / "a", *DETECTOR, "--max_steps", "1")
    told = capsys.readouterr().out
    assert (
        f"{data}: VOC's XML files, 8 images to train on (annots/), 2 images to evaluate on (annots/), 2 classes" in told
    )
    assert "the data have no validation images: 2 of 10 images are held out to evaluate on" in told
    held = json.loads((tmp_path / "a" / "val_images.json").read_text())
    assert saved["val_images"] == held
    assert (saved["args"]["val_fraction"], saved["args"]["dataset_file"], saved["num_images"]) == (0.2, "voc_loose", 8)
    assert "eval.json" in {path.name for path in (tmp_path / "a").iterdir()}

    resume = ["--resume", f"{tmp_path}/a/checkpoint.pth", "--max_steps", "2", "--seed", "8"]
    again = finetune(data, tmp_path / "b", *resume)
    assert again["val_images"] == held == json.loads((tmp_path / "b" / "val_images.json").read_text())
    with pytest.raises(CheckpointError, match=r"--val_fraction 0\.5"):
        finetune(data, tmp_path / "c", *resume, "--val_fraction", "0.5")

    capsys.readouterr()
    main_finetune.main(["--resume", f"{tmp_path}/a/checkpoint.pth", "--data_path", str(data), "--eval", *COMMON,
                        "--output_dir", f"{tmp_path}/d"])  # fmt: skip
    assert "evaluating on the 2 images that were held out" in capsys.readouterr().out
    assert json.loads((tmp_path / "d" / "eval.json").read_text()) == json.loads((tmp_path / "a/eval.json").read_text())


def test_damaged_images_are_told_together_or_skipped(data, tmp_path, capsys):
    for name in ("p1", "p2"):
        (data / "images" / f"{name}.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"2 of 10 images of train cannot be used"):
        finetune(data, tmp_path / "a", *DETECTOR, "--max_steps", "1")
    told = capsys.readouterr().out
    assert "p1.png: not an image" in told
    assert "p2.png: not an image" in told
    saved = finetune(data, tmp_path / "b", *DETECTOR, "--max_steps", "1", "--damaged", "skip")
    assert saved["num_images"] + len(saved["val_images"]) == 8


def test_without_validation(data, tmp_path):
    saved = finetune(data, tmp_path / "a", *DETECTOR, "--max_steps", "1", "--val_fraction", "0")
    assert saved["num_images"] == 10
    assert not {"eval.json", "val_images.json"} & {path.name for path in (tmp_path / "a").iterdir()}
    again = finetune(data, tmp_path / "b", "--resume", f"{tmp_path}/a/checkpoint.pth", "--max_steps", "2")
    assert again["args"]["val_fraction"] == 0


def test_a_set_with_validation_images_of_its_own(tmp_path, capsys):
    write_roboflow(tmp_path / "data", {"train": PICTURES[:6], "val": PICTURES[6:]})
    with pytest.raises(
        UserError, match=r"--val_fraction 0\.3: the data set has its own validation images \(valid/_ann"
    ):
        finetune(tmp_path / "data", tmp_path / "a", *DETECTOR, "--max_steps", "1", "--val_fraction", "0.3")
    saved = finetune(tmp_path / "data", tmp_path / "b", *DETECTOR, "--max_steps", "1", "--val_fraction", "0")
    assert (saved["num_images"], saved["val_images"]) == (6, None)
    assert 'the category "things" has no boxes and only groups the others' in capsys.readouterr().out


def test_images_that_are_in_both_parts_are_told(tmp_path, capsys):
    write_voc_folders(tmp_path / "data", {"": PICTURES})
    annotations = tmp_path / "coco.json"
    content = {"categories": [{"id": 1, "name": "brick"}], "annotations": [], "images": []}
    for number, picture in enumerate(PICTURES):
        content["images"].append({"id": number, "file_name": picture.file, "width": picture.size[0], "height": 50})
        content["annotations"].append({"id": number, "image_id": number, "category_id": 1, "bbox": [1, 2, 9, 9]})
    annotations.write_text(json.dumps(content))
    files = ["_ann", str(annotations), "_images", f"{tmp_path}/data/images"]
    argv = [f"--{split}{word}" if word.startswith("_") else word for split in ("train", "val") for word in files]
    main_finetune.main([*argv, *COMMON, *DETECTOR, "--max_steps", "1", "--output_dir", f"{tmp_path}/out"])
    assert "warning: 10 of 10 images to evaluate on are also trained on" in capsys.readouterr().out
