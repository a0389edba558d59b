"""Every pretext task on every detector, as a user runs it."""

from pathlib import Path

import pytest
import torch

import main_finetune
import main_pretrain
from tests.runs import assert_equal, read_log
from tests.tiny import COMMON, DETECTOR, PRETRAIN, write_data_set
from util.checkpoint import load_file
from util.errors import CheckpointError

DETRS = {
    "vanilla": ["--detr", "vanilla"],
    "pre-norm": ["--detr", "vanilla", "--pre_norm"],
    "conditional": ["--detr", "conditional"],
    "deformable": ["--detr", "deformable"],
    "dab": ["--detr", "dab"],
    "single-scale": ["--detr", "deformable", "--num_feature_levels", "1"],
}
METHODS = {"updetr": ["--num_regions", "5", "--shuffle_queries"], "detreg": ["--num_proposals", "4"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("data"), num_images=4)


def pretrain(data, out, *argv) -> dict:
    """Run main_pretrain.py; returns the last checkpoint."""
    flags = [*COMMON, "--crop_size", "32", *DETECTOR, "--save_every_steps", "1", "--max_steps", "3"]
    flags += ["--keep_checkpoints", "3"]
    main_pretrain.main(["--data_path", f"{data}/train", "--output_dir", str(out), *flags, *argv])
    return load_file(Path(out) / "checkpoint.pth")


@pytest.mark.parametrize("detr", DETRS)
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_resumes_bit_for_bit_and_is_finetuned(data, tmp_path, capsys, method, detr):
    argv = ["--method", method, *METHODS[method], *DETRS[detr]]
    whole = pretrain(data, tmp_path / "whole", *argv)
    assert ("warning: DETReg on random boxes" in capsys.readouterr().out) == (method == "detreg")
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_feature"} <= set(read_log(tmp_path / "whole", "train")[0])
    stopped = tmp_path / "whole" / "checkpoint_00000001.pth"  # within the first epoch
    resumed = pretrain(data, tmp_path / "resumed", "--resume", str(stopped))  # the method is the checkpoint's
    assert resumed["args"]["method"] == method
    del whole["args"], resumed["args"]
    assert_equal(resumed, whole)

    start = ["--pretrain", str(stopped), "--data_path", str(data), "--output_dir", str(tmp_path / "fine"), *COMMON]
    main_finetune.main([*start, "--max_steps", "1", "--lr", "0", "--lr_backbone", "0"])
    finetuned, pretrained = load_file(tmp_path / "fine" / "checkpoint.pth"), load_file(stopped)
    for name, value in pretrained["model"].items():
        if not name.startswith("class_embed"):
            assert torch.equal(finetuned["model"][name], value), name


def test_a_run_keeps_its_method(data, tmp_path):
    pretrain(data, tmp_path / "a", "--method", "updetr", "--num_regions", "5")
    resume = ["--resume", str(tmp_path / "a" / "checkpoint_00000002.pth")]
    with pytest.raises(CheckpointError, match="--method siamese does not fit"):
        pretrain(data, tmp_path / "b", *resume, "--method", "siamese")


def test_siamese_is_the_default(data, tmp_path):
    main_pretrain.main(
        ["--data_path", f"{data}/train", "--output_dir", str(tmp_path), *PRETRAIN, *DETECTOR, "--max_steps", "1"]
    )
    assert load_file(tmp_path / "checkpoint.pth")["args"]["method"] == "siamese"
