"""What one lives with in a long run: the best checkpoint, patience, averaged weights, what is printed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import main_finetune
from models.predictor import load_detector
from tests.gloo import run_processes
from tests.runs import assert_equal, finetune, read_log
from tests.tiny import COMMON, write_data_set
from tests.tiny import SMALL_DETECTOR as DETECTOR
from util.checkpoint import load_file, save_file
from util.errors import UserError

MORE = ["--max_detections", "150"]

STILL = ["--lr", "0", "--lr_backbone", "0"]
"""No evaluation is better than the first."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four images, so an epoch has two steps."""
    return write_data_set(tmp_path_factory.mktemp("data"), num_images=4)


@pytest.fixture(scope="module")
def averaged(data, tmp_path_factory) -> Path:
    """The folder of a run of one epoch with averaged weights."""
    out = tmp_path_factory.mktemp("averaged")
    finetune(data, out, *DETECTOR, "--epochs", "1", "--lr", "1e-3", "--ema", "0.5", "--tensorboard", *MORE)
    return out


def evaluate(checkpoint, out) -> dict:
    main_finetune.main(["--resume", str(checkpoint), "--eval", "--device", "cpu", "--output_dir", str(out)])
    return json.loads((out / "eval.json").read_text())


def test_patience_ends_a_run_and_the_best_is_kept(data, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [*DETECTOR, *STILL, "--patience", "1"]
    last = finetune(data, out, *argv, "--epochs", "9")
    assert (last["step"], [scores["step"] for scores in last["evaluations"]]) == (4, [2])
    told = capsys.readouterr().out
    assert "ended after step 4 of 18: 1 evaluation without a better AP (--patience)" in told
    assert f"after step 2: {out}/checkpoint_best.pth" in told
    assert load_file(out / "checkpoint_best.pth")["step"] == 2
    assert [line["step"] for line in read_log(out, "eval")] == [2, 4]

    main_finetune.main(["--output_dir", str(out), "--resume", "auto", "--device", "cpu"])
    told = capsys.readouterr().out
    assert f"data of the resumed run: --data_path {data}" in told
    assert "ended after step 4 of 18" in told
    assert [line["step"] for line in read_log(out, "train")] == [1, 2, 3, 4]

    main_finetune.main(["--output_dir", str(out), "--resume", "auto", "--device", "cpu", "--patience", "2"])
    assert load_file(out / "checkpoint.pth")["step"] == 6


def test_the_best_is_kept_though_nothing_else_is_saved(data, tmp_path):
    argv = [*DETECTOR, *STILL, "--epochs", "2", "--save_every_epochs", "0", "--best_by", "loss_val"]
    whole = finetune(data, tmp_path / "a", *argv)
    best = load_file(tmp_path / "a" / "checkpoint_best.pth")
    assert (best["step"], best["evaluation_due"], len(best["evaluations"])) == (2, False, 1)
    again = finetune(data, tmp_path / "b", "--resume", f"{tmp_path}/a/checkpoint_best.pth")
    assert_equal({**again, "args": 0}, {**whole, "args": 0})


def test_a_number_that_the_data_cannot_give(data, tmp_path):
    with pytest.raises(UserError, match="--best_by voc_mAP50 needs data in VOC"):
        finetune(data, tmp_path, *DETECTOR, "--max_steps", "1", "--best_by", "voc_mAP50")


def test_what_is_logged(averaged):
    (scores,) = read_log(averaged, "eval")
    names = {"AP", "AP@150", "AR@150", "loss_val", "loss_val_ce", "loss_val_bbox", "loss_val_giou"}
    assert {*names, *(f"raw_{name}" for name in names)} <= scores.keys()
    assert scores["loss_val"] != scores["raw_loss_val"]
    assert json.loads((averaged / "eval.json").read_text())["loss_val"] == scores["loss_val"]


def test_tensorboard_shows_samples_and_what_is_found(averaged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(averaged / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("samples")] == [0]
    (found,) = events.Images("predictions")
    assert (found.step, found.width > 300) == (2, True)


def test_who_only_reads_a_checkpoint_takes_the_average(averaged, data, tmp_path):
    path = averaged / "checkpoint.pth"
    (logged,) = read_log(averaged, "eval")
    content = load_file(path)
    assert content["ema"].keys() == content["model"].keys()
    name = "transformer.encoder.layers.0.linear1.weight"
    assert not torch.equal(content["ema"][name], content["model"][name])
    assert evaluate(path, tmp_path / "average")["loss_val"] == logged["loss_val"]
    assert torch.equal(load_detector(path, device="cpu").detector.state_dict()[name], content["ema"][name])
    started = finetune(data, tmp_path / "on", "--pretrain", str(path), *STILL, "--max_steps", "1", "--eval_every", "0")
    assert torch.equal(started["model"][name], content["ema"][name])
    save_file({key: value for key, value in content.items() if key != "ema"}, tmp_path / "raw.pth")
    assert evaluate(tmp_path / "raw.pth", tmp_path / "raw")["loss_val"] == logged["raw_loss_val"]


def test_an_average_may_begin_and_end_later(averaged, tmp_path):
    go_on = ["--resume", f"{averaged}/checkpoint.pth", "--epochs", "2", "--eval_every", "0", "--device", "cpu"]
    main_finetune.main([*go_on, "--ema", "0", "--output_dir", str(tmp_path / "a")])
    without = load_file(tmp_path / "a" / "checkpoint.pth")
    assert "ema" not in without
    last = ["--resume", f"{tmp_path}/a/checkpoint.pth", "--lr", "0", "--epochs", "3", "--device", "cpu"]
    main_finetune.main([*last, "--ema", "0.9", "--output_dir", str(tmp_path / "b")])
    begun = load_file(tmp_path / "b" / "checkpoint.pth")
    name = "transformer.encoder.layers.0.linear1.weight"
    assert torch.equal(begun["ema"][name], without["model"][name])  # it stays from there on


def test_what_a_pipe_shows(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("util.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr("util.run_summary.FIRST_STEPS", 2)
    finetune(data, tmp_path, *DETECTOR, "--max_steps", "5", "--log_every", "3", "--eval_every", "0")
    lines = capsys.readouterr().out.splitlines()
    begins = ("data ", "sizes ", "device ", "detector ", "steps ", "lr ", "evaluated ", "saved ", "output ", "memory ")
    places = [next(n for n, line in enumerate(lines) if line.startswith(word)) for word in (*begins, "duration ")]
    assert places == sorted(places)
    sizes = "4 images to train on, 8 objects, 2 classes (square, brick); 4 images to evaluate on"
    assert lines[places[0]] == f"data       {sizes}"
    assert lines[places[4]] == "steps      5 = 2.5 epochs of 2 steps, 2 images each"
    steps = [line.split("  ") for line in lines if line.startswith("step ")]
    assert [parts[0] for parts in steps] == [f"step {n}/5" for n in range(1, 6)]
    for _, loss, lr, rate, left in steps:
        assert (loss[:5], lr[:3], rate.split()[1], left[:6]) == ("loss ", "lr ", "images/s", "about ")
    assert any(line.startswith("evaluate: 1/2, about ") for line in lines)


def two_processes(rank: int, data: str, out: str) -> list:
    """A whole run of three epochs, and another that goes on within the second one."""
    argv = ["--data_path", data, *COMMON, *DETECTOR, "--epochs", "3", "--batch_size", "1", "--ema", "0.9"]
    argv += ["--save_every_steps", "1", "--keep_checkpoints", "9", "--lr", "1e-3", "--patience", "3"]
    main_finetune.main([*argv, "--output_dir", f"{out}/whole"])
    resume = ["--resume", f"{out}/whole/checkpoint_00000003.pth", "--device", "cpu"]
    main_finetune.main([*resume, "--output_dir", f"{out}/rest"])
    return [load_file(f"{out}/{run}/checkpoint.pth") for run in ("whole", "rest")]


def test_two_processes_go_on_bit_for_bit(data, tmp_path):
    for whole, rest in run_processes(two_processes, str(data), str(tmp_path)):
        assert whole["step"] == 6
        assert [scores["step"] for scores in whole["evaluations"]] == [2, 4]
        assert_equal({**rest, "args": 0}, {**whole, "args": 0})
    assert read_log(tmp_path / "rest", "eval") == read_log(tmp_path / "whole", "eval")[1:]


def test_the_best_is_a_link_or_a_copy(data, averaged, tmp_path, monkeypatch):
    from util.checkpoint import keep_as_best

    source = tmp_path / "checkpoint.pth"
    shutil.copy(averaged / "checkpoint.pth", source)
    keep_as_best(tmp_path, source)
    assert (tmp_path / "checkpoint_best.pth").samefile(source)
    keep_as_best(tmp_path, tmp_path / "checkpoint_best.pth")  # itself
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    source.write_bytes(b"another")
    keep_as_best(tmp_path, source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth", "checkpoint_best.pth"]
    assert (tmp_path / "checkpoint_best.pth").read_bytes() == b"another"
