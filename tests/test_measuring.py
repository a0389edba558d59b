"""Measuring pretraining as a user does: during training, and for a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_pretrain
from datasets.proposals.store import write_proposals
from tests.runs import assert_equal, read_log
from tests.tiny import BOTH, DETECTOR, write_data_set
from tools import visualize
from util.checkpoint import load_file
from util.errors import CheckpointError, UserError
from util.plot_utils import curves

METHODS = {
    "siamese": (["--num_regions", "5", "--recipe", "fast"], {"own_iou", "others_iou", "recall", "feature_top1"}),
    "updetr": (["--num_regions", "5"], {"own_iou", "others_iou", "recall", "feature_top1"}),
    "detreg": (["--num_proposals", "4"], {"best_iou", "best_recall"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("data"), num_images=8)


def pretrain(data, out, *argv) -> dict:
    """Run main_pretrain.py; returns the last checkpoint."""
    flags = [*BOTH, *DETECTOR, "--crop_size", "32", "--max_steps", "4", "--save_every_steps", "1"]
    main_pretrain.main(["--data_path", f"{data}/train", "--output_dir", str(out), *flags, *argv])
    return load_file(Path(out) / "checkpoint.pth")


def measure(checkpoint, folder, out, *argv) -> dict:
    """``--eval``; returns eval.json."""
    places = ["--data_path", str(folder), "--output_dir", str(out), "--device", "cpu", "--num_workers", "0"]
    main_pretrain.main(["--resume", str(checkpoint), "--eval", *places, *argv])
    return json.loads((out / "eval.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_measured_while_it_trains_and_alone(data, tmp_path, method):
    flags, names = METHODS[method]
    argv = ["--method", method, *flags]
    measured = pretrain(data, tmp_path / "a", *argv, "--val_path", f"{data}/val")
    lines = read_log(tmp_path / "a", "eval")
    assert [line["step"] for line in lines] == [4]
    assert names <= set(lines[0])
    assert names & set(curves(lines)), "the curves show it"
    plain = pretrain(data, tmp_path / "b", *argv)
    assert_equal(plain["model"], measured["model"])  # measuring changes nothing
    assert_equal(plain["rng"], measured["rng"])

    alone = measure(tmp_path / "a" / "checkpoint.pth", data / "val", tmp_path / "c")
    assert alone["images"] == 8
    assert {name: values[-1] for name, values in alone["by_layer"].items()} == {
        name: lines[0][name] for name in alone["by_layer"]
    }


def test_images_held_out_stay_held_out(data, tmp_path):
    argv = ["--num_regions", "5", "--val_fraction", "0.25", "--keep_checkpoints", "9"]
    whole = pretrain(data, tmp_path / "a", *argv)
    held = json.loads((tmp_path / "a" / "val_images.json").read_text())
    assert len(held) == 2
    assert whole["val_images"] == held
    assert len(read_log(tmp_path / "a", "eval")) == 2  # three batches of six images per epoch
    resumed = pretrain(data, tmp_path / "b", "--resume", f"{tmp_path}/a/checkpoint_00000002.pth", "--seed", "9")
    assert resumed["val_images"] == held
    with pytest.raises(CheckpointError, match=r"--val_fraction 0\.5 does not fit"):
        pretrain(data, tmp_path / "c", "--resume", f"{tmp_path}/a/checkpoint.pth", "--val_fraction", "0.5")


def test_proposals_go_with_their_images(data, tmp_path):
    """Of the images held out, and of the rest: box i marks image i."""
    paths = sorted(path.name for path in (data / "train").glob("*.png"))
    boxes = [np.array([[index, 0, index + 30, 40]], dtype=np.float32) for index in range(len(paths))]
    write_proposals(
        tmp_path / "p", paths=paths, boxes=boxes, scores=[np.ones(1)] * len(paths), method="edgebox", parameters={}
    )
    flags = [*BOTH, *DETECTOR, "--output_dir", str(tmp_path), "--val_fraction", "0.5"]
    argv = ["--data_path", f"{data}/train", "--proposals", "edgebox", "--proposal_dir", f"{tmp_path}/p", *flags]
    args, _ = main_pretrain.parse(argv)
    parts = main_pretrain.build_datasets(args, None)
    found = [part.images.path(index).name for part in parts for index in range(len(part))]
    assert sorted(found) == paths
    for part in parts:
        for index in range(len(part)):
            assert part.proposals_of(index)[0, 0] == paths.index(part.images.path(index).name)


def test_what_cannot_be_measured_is_one_clear_line(data, tmp_path):
    with pytest.raises(UserError, match="--eval needs the checkpoint to measure"):
        main_pretrain.main(["--eval", "--data_path", str(data)])
    pretrain(data, tmp_path / "a", "--num_regions", "5", "--no_feature_loss")
    with pytest.raises(CheckpointError, match="do not fit"):
        main_pretrain.main([
            "--resume", f"{tmp_path}/a/checkpoint.pth", "--eval", "--data_path", f"{data}/val",
            "--no_global_loss", "--output_dir", str(tmp_path / "b"), "--device", "cpu",
        ])  # fmt: skip
    with pytest.raises(CheckpointError, match="--recipe fast does not fit"):
        pretrain(data, tmp_path / "c", "--resume", f"{tmp_path}/a/checkpoint.pth", "--recipe", "fast")


def test_a_picture_of_what_is_found(data, tmp_path):
    pretrain(data, tmp_path / "a", "--num_regions", "5", "--recipe", "fast")
    out = tmp_path / "regions.png"
    checkpoint = str(tmp_path / "a" / "checkpoint.pth")
    argv = ["--data_path", f"{data}/val", "--device", "cpu", "--count", "2", "--out", str(out)]
    visualize.main(["regions", checkpoint, *argv])
    with Image.open(out) as picture:
        assert picture.width > 3 * 64
