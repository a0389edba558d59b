"""A new detector, pretext task and data format, each one file and one entry, work in everything that the scripts do."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import main_finetune
import main_pretrain
from datasets import DATASETS
from models import DETECTORS, PRETEXTS
from models.checkpoints.foreign import read_checkpoint
from tests.runs import assert_equal
from tests.tiny import COMMON, DETECTOR, write_data_set
from tests.toy_detector import TOY_DETECTOR
from tests.toy_format import TOY_FORMAT
from tests.toy_pretext import TOY_PRETEXT
from tools import convert_checkpoint
from util.checkpoint import load_file
from util.errors import UserError

TINY = [*COMMON, *DETECTOR, "--detr", "toy"]
METHODS = {
    "siamese": ["--num_regions", "5"],
    "updetr": ["--num_regions", "5"],
    "detreg": ["--num_proposals", "4"],
}


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    monkeypatch.setitem(DETECTORS, "toy", TOY_DETECTOR)
    monkeypatch.setitem(PRETEXTS, "toy", TOY_PRETEXT)
    monkeypatch.setitem(DATASETS, "toy", TOY_FORMAT)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images with one labelled box each."""
    folder = write_data_set(tmp_path_factory.mktemp("data"), num_images=4) / "train"
    lines = []
    for path in sorted(folder.glob("*.png")):
        width, height = Image.open(path).size
        lines.append(f"{path.name} {width} {height} 5 6 40 50")
    (folder / "labels.txt").write_text("\n".join(lines))
    return folder


def run(script, data, out, *argv) -> dict:
    """Run a script on the toy format; returns the last checkpoint."""
    script.main(["--dataset_file", "toy", "--data_path", str(data), "--output_dir", str(out), *argv])
    return load_file(Path(out) / "checkpoint.pth")


def test_they_train_save_resume_and_evaluate(data, tmp_path, capsys):
    steps = ["--save_every_steps", "1", "--keep_checkpoints", "9"]
    pretrained = run(main_pretrain, data, tmp_path / "pre", *TINY, "--method", "toy", "--crop_size", "32", *steps)
    assert "warning: it is a toy" in capsys.readouterr().out
    args = pretrained["args"]
    assert (args["max_steps"], args["query_gain"], args["toy_weight"]) == (2, 2.0, 5.0)  # the data have the last word
    assert (args["num_regions"], args["num_feature_levels"]) == (None, None)  # flags of others
    assert pretrained["model"]["query_embed.weight"].shape == (10, 4)
    assert set(pretrained["pretext"]) == {"weight"}
    first = tmp_path / "pre" / "checkpoint_00000001.pth"
    resumed = run(main_pretrain, data, tmp_path / "again", "--resume", str(first), "--num_workers", "0")
    assert_equal({**resumed, "args": 0}, {**pretrained, "args": 0})

    flags = [*COMMON, "--max_steps", "2", "--label_file", f"{data}/labels.txt", *steps]
    start = ["--pretrain", f"{tmp_path}/pre/checkpoint.pth"]
    finetuned = run(main_finetune, data, tmp_path / "fine", *start, *flags)
    assert [group["initial_lr"] for group in finetuned["optimizer"]["param_groups"]] == [3e-4, 5e-5, 1.5e-4]
    assert (finetuned["args"]["detr"], finetuned["args"]["lr_drop_step"]) == ("toy", 1)
    first = tmp_path / "fine" / "checkpoint_00000001.pth"
    resumed = run(main_finetune, data, tmp_path / "on", "--resume", str(first), "--num_workers", "0", "--device", "cpu")
    assert_equal({**resumed, "args": 0}, {**finetuned, "args": 0})
    run(main_finetune, data, tmp_path / "on", "--resume", f"{tmp_path}/on/checkpoint.pth", "--eval")
    assert (tmp_path / "on" / "eval.json").is_file()


def test_the_public_form_of_its_checkpoint_is_recognised(data, tmp_path):
    run(main_finetune, data, tmp_path / "fine", *TINY, "--query_gain", "3", "--max_steps", "1", "--eval_every", "0")
    own, public = tmp_path / "fine" / "checkpoint.pth", tmp_path / "public.pth"
    convert_checkpoint.main([str(own), str(public), "--to", "detr"])
    weights = load_file(public)["model"]
    assert "refpoint_embed.weight" in weights
    content, _ = read_checkpoint(public, {})
    assert (content["args"]["detr"], content["args"]["query_gain"]) == ("toy", 3.0)  # as the arguments beside it say
    torch.save(weights, tmp_path / "bare.pth")
    still = ["--lr", "0", "--lr_backbone", "0", "--max_steps", "1", "--eval_every", "0", "--nheads", "4", *COMMON]
    again = run(main_finetune, data, tmp_path / "again", "--pretrain", f"{tmp_path}/bare.pth", *still)
    assert (again["args"]["detr"], again["args"]["query_gain"]) == ("toy", 2.0)
    queries = load_file(own)["model"]["query_embed.weight"]
    assert torch.equal(again["model"]["query_embed.weight"], queries)
    with pytest.raises(UserError, match="transformers has no detector of --detr toy"):
        convert_checkpoint.main([str(own), str(tmp_path / "hf"), "--to", "hf"])


@pytest.mark.parametrize("method", METHODS)
def test_other_tasks_pretrain_the_detector(data, tmp_path, method):
    flags = ["--method", method, *METHODS[method], "--crop_size", "32", "--max_steps", "1"]
    assert run(main_pretrain, data, tmp_path, *TINY, *flags)["model"]["query_embed.weight"].shape == (10, 4)


@pytest.mark.parametrize("detr", list(DETECTORS))
def test_the_task_pretrains_other_detectors(data, tmp_path, detr):
    flags = ["--detr", detr, "--method", "toy", "--crop_size", "32", "--max_steps", "1"]
    saved = run(main_pretrain, data, tmp_path, *COMMON, *DETECTOR, *flags)
    assert len(saved["model"].get("class_embed.bias", saved["model"].get("class_embed.0.bias"))) == (
        2 if DETECTORS[detr].classification == "softmax" else 1
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--detr", "conditional", "--query_gain", "2"], "--query_gain goes with --detr toy, not with --detr condit"),
        (["--detr", "toy", "--query_gain", "-1"], "--query_gain -1.0: must be at least 0"),
        (["--detr", "toy", "--query_gain", "10"], "--query_gain 10.0: too large"),
        (["--method", "siamese", "--toy_weight", "0"], "--toy_weight goes with --method toy"),
        (["--method", "toy", "--toy_weight", "10"], "--toy_weight 10.0: too large"),
        (["--method", "toy", "--view_iou", "0.5"], "--view_iou goes with --method siamese, not with --method toy"),
    ],
)
def test_their_flags_are_checked_like_all_others(data, argv, message):
    with pytest.raises(UserError, match=message):
        main_pretrain.parse(["--data_path", str(data), *argv])


def test_a_flag_of_another_format_is_an_error(data):
    with pytest.raises(UserError, match="--label_file goes with --dataset_file toy, not with --dataset_file coco"):
        main_finetune.parse(["--dataset_file", "coco", "--data_path", str(data), "--label_file", "x"])
    with pytest.raises(UserError, match="--train_ann goes with --dataset_file coco, not with --dataset_file toy"):
        main_finetune.parse(["--dataset_file", "toy", "--data_path", str(data), "--train_ann", "x"])


def test_the_help_tells_them(capsys):
    with pytest.raises(SystemExit):
        main_pretrain.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "toy: Toy DETR" in told
    assert "only with --detr toy: --query_gain QUERY_GAIN factor of the queries; default: 2" in told
    assert "of everything; default: 1 (--dataset_file toy 5) (--detr toy 4)" in told
    assert re.search(r"default: 100 \(deformable 300, [^)]*toy 20\)", told)
