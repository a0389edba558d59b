"""Both scripts as a user runs them, on a tiny data set."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import main_finetune
import main_pretrain
from datasets.proposals.store import write_proposals
from tests.conftest import ROOT
from tests.gloo import run_script
from tests.runs import assert_equal, finetune, pretrain, read_log
from tests.tiny import COMMON, DETECTOR, PRETRAIN, SMALL_DETECTOR, write_voc
from util.checkpoint import load_file
from util.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def voc(data, tmp_path_factory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "data", data)


@pytest.mark.parametrize("detr", ["vanilla", "conditional", "deformable", "dab"])
def test_finetuning_takes_over_what_was_pretrained(data, tmp_path, detr):
    pretrained = pretrain(data, tmp_path / "pre", "--detr", detr, "--max_steps", "3")
    assert pretrained["stage"] == "pretrain"
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_feature", "loss_global", "lr", "images_per_second"} <= set(
        read_log(tmp_path / "pre", "train")[0]
    )
    assert json.loads((tmp_path / "pre" / "args.json").read_text())["detr"] == detr

    # the architecture need not be typed again
    args = ["--pretrain", f"{tmp_path}/pre/checkpoint.pth", "--epochs", "1", "--lr", "0"]
    finetuned = finetune(data, tmp_path / "fine", *args, "--lr_backbone", "0")
    for name, value in pretrained["model"].items():
        if not name.startswith("class_embed"):
            assert torch.equal(finetuned["model"][name], value), name
    assert {group["lr"] for group in finetuned["optimizer"]["param_groups"]} == {0}
    assert [category["name"] for category in finetuned["categories"]] == ["square", "brick"]


def test_finetuning_starts_parts_anew(data, tmp_path):
    pretrained = pretrain(data, tmp_path / "pre", "--max_steps", "1")["model"]
    still = ["--lr", "0", "--lr_backbone", "0", "--max_steps", "1", "--eval_every", "0"]
    argv = ["--pretrain", f"{tmp_path}/pre/checkpoint.pth", "--new_parts", "bbox_embed", *still]
    finetuned = finetune(data, tmp_path / "fine", *argv)["model"]
    for name, value in pretrained.items():
        if name.endswith("weight") and not name.startswith("class_embed"):
            assert torch.equal(finetuned[name], value) != name.startswith("bbox_embed."), name
    # the same command goes on with what the stopped run had made
    continued = finetune(data, tmp_path / "fine", *argv, "--resume", "auto", "--max_steps", "2", "--seed", "4")["model"]
    assert torch.equal(continued["bbox_embed.layers.0.weight"], finetuned["bbox_embed.layers.0.weight"])


@pytest.mark.parametrize(
    ("detr", "form", "amp"), [("vanilla", "voc", "none"), ("conditional", "coco", "bf16_backbone")]
)
def test_eval_prints_what_training_printed(data, voc, tmp_path, detr, form, amp, capsys):
    root = {"coco": data, "voc": voc}[form]
    schedule = ["--lr", "1e-3", "--eval_every", "0", "--dataset_file", form]
    finetune(root, tmp_path / "first", *DETECTOR, "--detr", detr, *schedule, "--max_steps", "29")
    capsys.readouterr()
    # one step is enough to get a checkpoint of this precision
    last = ["--resume", f"{tmp_path}/first/checkpoint.pth", "--max_steps", "30", "--amp", amp]
    finetune(root, tmp_path / "fine", *last)
    trained = json.loads((tmp_path / "fine" / "eval.json").read_text())
    (logged,) = read_log(tmp_path / "fine", "eval")
    assert trained["AR100"] > 0, "a detector that finds nothing proves nothing"
    assert logged["AP"] == trained["AP"]
    if form == "voc":
        assert set(trained["voc"]["per_class"]) == {"square", "brick"}
        assert logged["voc_mAP50"] == trained["voc"]["mAP50"]

    table = capsys.readouterr().out.split("steps, ")[-1].partition("\n")[2].partition("best AP")[0]
    # sizes, data set form, batch size and precision are the checkpoint's
    argv = ["--resume", f"{tmp_path}/fine/checkpoint.pth", "--eval", "--data_path", str(root), "--num_workers", "0"]
    main_finetune.main([*argv, "--device", "cpu", "--output_dir", str(tmp_path / "eval")])
    assert json.loads((tmp_path / "eval" / "eval.json").read_text()) == trained
    assert table.strip() in capsys.readouterr().out


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_pretraining_continues_bit_for_bit(data, tmp_path, num_workers):
    # 10 images in batches of 2: 5 batches per epoch, 2 steps of 2 batches each; the stop is within the second epoch
    argv = ["--max_steps", "5", "--accum_steps", "2", "--lr_drop_step", "4", "--save_every_steps", "1"]
    argv += ["--num_workers", str(num_workers), "--keep_checkpoints", "9"]
    whole = pretrain(data, tmp_path / "whole", *argv)
    stopped = tmp_path / "whole" / "checkpoint_00000003.pth"
    resumed = pretrain(data, tmp_path / "resumed", *argv, "--resume", str(stopped))
    assert resumed["step"] == 5
    for name in ("args",):
        del whole[name], resumed[name]
    assert_equal(resumed, whole)
    logs = [read_log(tmp_path / run, "train")[-1] for run in ("resumed", "whole")]
    assert logs[0]["loss"] == logs[1]["loss"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_finetuning_continues_bit_for_bit(data, tmp_path, num_workers):
    argv = [
        *SMALL_DETECTOR,
        "--num_workers",
        str(num_workers),
        "--epochs",
        "2",
        "--lr_drop",
        "1",
        "--save_every_steps",
        "1",
        "--keep_checkpoints",
        "20",
        "--ema",
        "0.9",
    ]
    whole = finetune(data, tmp_path / "whole", *argv)
    resume = ["--resume", str(tmp_path / "whole" / "checkpoint_00000007.pth")]
    resumed = finetune(data, tmp_path / "resumed", *argv, *resume)
    del whole["args"], resumed["args"]
    assert_equal(resumed, whole)
    assert read_log(tmp_path / "resumed", "eval")[-1] == read_log(tmp_path / "whole", "eval")[-1]


def test_resume_auto_starts_and_goes_on(data, tmp_path):
    argv = ["--resume", "auto", "--save_every_steps", "1", "--max_steps"]
    assert pretrain(data, tmp_path, *argv, "2")["step"] == 2
    assert pretrain(data, tmp_path, *argv, "3")["step"] == 3
    assert [line["step"] for line in read_log(tmp_path, "train")] == [1, 2, 3]


def test_two_processes_train_and_evaluate_as_one(data, tmp_path):
    """Two processes with one image each train like one process that accumulates the gradients of two images."""
    common = "--batch_size 1 --no_global_loss --dropout 0 --query_jitter 0 --max_steps 3".split()
    argv = ["--data_path", f"{data}/train", *PRETRAIN, *DETECTOR, *common]
    run_script("main_pretrain", *argv, "--output_dir", tmp_path / "two")
    one = pretrain(data, tmp_path / "one", *common, "--accum_steps", "2")
    two = load_file(tmp_path / "two" / "checkpoint.pth")
    assert len(two["rng"]) == 2
    assert two["model"].keys() == one["model"].keys()
    assert two["pretext"].keys() == one["pretext"].keys()
    logs = [read_log(tmp_path / run, "train") for run in ("one", "two")]
    for step in range(3):
        for name in ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_feature", "class_error", "grad_norm"):
            assert logs[0][step][name] == pytest.approx(logs[1][step][name], rel=1e-3), f"{name} at {step}"

    finetune(data, tmp_path / "fine", *DETECTOR, "--epochs", "1")
    resume = ["--resume", tmp_path / "fine" / "checkpoint.pth", "--eval", "--batch_size", "1", "--data_path", data]
    for processes in (1, 2):
        argv = [*resume, "--device", "cpu", "--num_workers", "0", "--output_dir", tmp_path / f"eval{processes}"]
        run_script("main_finetune", *argv, world_size=processes)
    scores = [json.loads((tmp_path / f"eval{n}" / "eval.json").read_text()) for n in (1, 2)]
    assert scores[0]["AP50"] == pytest.approx(scores[1]["AP50"], abs=1e-6)
    assert scores[0]["AR100"] == pytest.approx(scores[1]["AR100"], abs=1e-6)


@pytest.mark.parametrize("amp", ["bf16", "bf16_backbone"])
def test_mixed_precision_trains(data, tmp_path, amp):
    checkpoint = pretrain(data, tmp_path, "--amp", amp, "--max_steps", "2")
    assert all(value.isfinite().all() for value in checkpoint["model"].values())
    assert all(value.dtype != torch.bfloat16 for value in checkpoint["model"].values())


def test_a_loss_that_explodes_ends_the_run(data, tmp_path):
    with pytest.raises(FloatingPointError, match="--lr"):
        pretrain(data, tmp_path, "--lr", "1e30", "--clip_max_norm", "0", "--max_steps", "20")


def test_a_diverged_run_with_next_to_no_boxes_is_noticed(data, tmp_path):
    """Without boxes there are no matching costs that could be NaN."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    argv = [*DETECTOR, "--lr", "1e30", "--max_steps", "9", "--log_every", "100"]
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        finetune(root, tmp_path / "out", *argv)


def test_every_save_and_the_last_log_line_happen(data, tmp_path):
    argv = ["--save_every_steps", "5", "--save_every_epochs", "0", "--max_steps", "7", "--log_every", "3"]
    pretrain(data, tmp_path, *argv, "--keep_checkpoints", "9")  # an epoch has 5 steps
    assert sorted(path.name for path in tmp_path.glob("checkpoint_*")) == [
        "checkpoint_00000005.pth",
        "checkpoint_00000007.pth",
    ]
    assert [line["step"] for line in read_log(tmp_path, "train")] == [3, 6, 7]


def test_a_resumed_run_takes_the_rates_that_are_typed(data, tmp_path):
    finetune(data, tmp_path / "a", *DETECTOR, "--max_steps", "2", "--lr_drop_step", "1")
    argv = ["--resume", str(tmp_path / "a" / "checkpoint.pth"), "--max_steps", "3", "--lr_drop_step", "1"]
    resumed = finetune(data, tmp_path / "b", *argv, "--lr", "7e-4", "--weight_decay", "0.5")
    assert read_log(tmp_path / "b", "train")[-1]["lr"] == pytest.approx(7e-5)
    assert [group["weight_decay"] for group in resumed["optimizer"]["param_groups"]] == [0.5, 0.5]
    assert resumed["optimizer"]["param_groups"][1]["lr"] == pytest.approx(1e-6)


def test_deformable_detr_has_rates_of_its_own_and_two_stages(data, tmp_path):
    flags = ["--detr", "deformable", "--with_box_refine", "--two_stage", "--lr_linear_proj_mult", "0.5"]
    finetune(data, tmp_path / "a", *DETECTOR, *flags, "--max_steps", "1", "--lr_drop_step", "9")
    assert {"loss_enc_ce", "loss_enc_bbox", "loss_enc_giou"} <= set(read_log(tmp_path / "a", "train")[0])
    argv = ["--resume", str(tmp_path / "a" / "checkpoint.pth"), "--max_steps", "2", "--lr_drop_step", "1"]
    resumed = finetune(data, tmp_path / "b", *argv, "--lr", "7e-4")
    groups = resumed["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([7e-5, 2e-6, 3.5e-5])
    assert len(groups[2]["params"]) == 2 * (1 + 2)  # weight and bias of the offsets, one encoder and two decoder layers
    evaluate = ["--resume", str(tmp_path / "b" / "checkpoint.pth"), "--eval", "--data_path", str(data)]
    main_finetune.main([*evaluate, "--device", "cpu", "--num_workers", "0", "--output_dir", str(tmp_path / "eval")])
    scores = [json.loads((tmp_path / run / "eval.json").read_text()) for run in ("b", "eval")]
    assert scores[0] == scores[1]


def test_resume_on_other_categories_is_refused(data, tmp_path):
    finetune(data, tmp_path / "a", *DETECTOR, "--max_steps", "1")
    root = tmp_path / "zoo"
    shutil.copytree(data, root)
    for path in (root / "annotations").iterdir():
        path.write_text(path.read_text().replace("square", "zebra"))
    with pytest.raises(CheckpointError, match=r"square, brick.*zebra, brick.*--pretrain"):
        finetune(root, tmp_path / "b", "--resume", str(tmp_path / "a" / "checkpoint.pth"))
    kept = finetune(root, tmp_path / "c", "--pretrain", str(tmp_path / "a" / "checkpoint.pth"), "--max_steps", "1")
    assert [category["name"] for category in kept["categories"]] == ["zebra", "brick"]


def test_proposals_from_disk(data, tmp_path):
    paths = sorted(path.name for path in (data / "train").iterdir())
    boxes = [np.array([[5, 5, 60, 60], [20, 10, 70, 50]], dtype=np.float32)] * len(paths)
    scores = [np.array([0.9, 0.5], dtype=np.float32)] * len(paths)
    write_proposals(
        tmp_path / "boxes", paths=paths, boxes=boxes, scores=scores, method="edgebox", parameters={"by": "hand"}
    )
    argv = ["--proposals", "edgebox", "--proposal_dir", str(tmp_path / "boxes"), "--max_steps", "1"]
    assert pretrain(data, tmp_path / "out", *argv)["args"]["proposals"] == "edgebox"
    with pytest.raises(DataError, match="made by edgebox"):
        pretrain(data, tmp_path / "other", "--proposals", "selective_search", *argv[2:])


def test_an_error_on_one_of_two_processes_is_one_line(data, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(data / "train", images)
    for path in sorted(images.iterdir())[::2]:
        path.write_bytes(path.read_bytes()[:200])
    argv = ["--data_path", images, *PRETRAIN, *DETECTOR, "--batch_size", "1", "--max_steps", "5"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr=127.0.0.1"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, "--nproc_per_node=2", "main_pretrain.py", *argv, "--output_dir", tmp_path / "out"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert told
    assert all("png" in line or "another process" in line for line in told)
    assert "main_pretrain.py" not in "".join(line for line in done.stderr.splitlines() if "File" in line)


def test_a_finished_run_says_so(data, tmp_path, capsys):
    pretrain(data, tmp_path, "--max_steps", "1")
    pretrain(data, tmp_path, "--max_steps", "1", "--resume", "auto")
    assert "nothing is left to train" in capsys.readouterr().out


def test_one_decoder_layer_trains_on_two_processes(data, tmp_path):
    argv = ["--data_path", f"{data}/train", *PRETRAIN, *DETECTOR, "--dec_layers", "1", "--batch_size", "1"]
    run_script("main_pretrain", *argv, "--max_steps", "2", "--output_dir", tmp_path / "out")
    assert load_file(tmp_path / "out" / "checkpoint.pth")["step"] == 2


def test_the_progress_bar_is_for_terminals(data, tmp_path, capsys, monkeypatch):
    pretrain(data, tmp_path / "quiet", "--max_steps", "2")
    assert "images/s" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    pretrain(data, tmp_path / "bar", "--max_steps", "2")
    bar = capsys.readouterr().err
    for word in ("2/2", "loss", "lr", "images/s"):
        assert word in bar


@pytest.mark.parametrize("method", ["siamese", "updetr"])
def test_pretraining_pads_to_multiples(data, tmp_path, method):
    argv = ["--data_path", f"{data}/train", "--output_dir", str(tmp_path), *PRETRAIN, *DETECTOR, "--method", method]
    args, origin = main_pretrain.parse([*argv, "--pad_to", "48", "--max_steps", "1"])
    _, loader, _ = main_pretrain.build(args, origin, torch.device("cpu"))
    batch = next(iter(loader)).to("cpu")
    images = batch.views if method == "siamese" else batch.images.tensors
    assert [side % 48 for side in images.shape[-2:]] == [0, 0]


def test_finetuning_pads_to_multiples(data, tmp_path):
    argv = ["--data_path", str(data), "--output_dir", str(tmp_path), *COMMON, *DETECTOR, "--pad_to", "48"]
    args, origin = main_finetune.parse([*argv, "--max_steps", "1"])
    _, train_loader, val_loader = main_finetune.build(args, origin, torch.device("cpu"))
    images, _ = next(iter(train_loader))
    assert [side % 48 for side in images.tensors.shape[-2:]] == [0, 0]
    images, _ = next(iter(val_loader))  # scores do not depend on a flag of training
    assert any(side % 48 for side in images.tensors.shape[-2:])
