"""Checkpoint files: written whole, read without running code, and told apart."""

import argparse
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from util.checkpoint import (
    LATEST,
    Origin,
    find_origin,
    load_detector,
    load_file,
    load_run,
    num_class_logits,
    open_output_dir,
    rng_state,
    save_checkpoint,
    save_file,
    set_rng_state,
)
from util.errors import CheckpointError, UserError


class _Evil:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def _run(tmp_path, stage="pretrain", step=1):
    path = tmp_path / "run.pth"
    save_file({"model": {}, "args": {}, "stage": stage, "step": step}, path)
    return path


def test_what_is_saved_is_read(tmp_path):
    value = {"model": {"w": torch.randn(2, 3)}, "args": {"lr": 0.1, "scales": [1, 2], "pretrain": None}}
    save_file(value, tmp_path / "a.pth")
    read = load_file(tmp_path / "a.pth")
    assert torch.equal(read["model"]["w"], value["model"]["w"])
    assert read["args"] == value["args"]


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_never_runs(tmp_path, protocol):
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    if protocol == "torch":
        torch.save({"model": {}, "x": _Evil(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {}, "x": _Evil(proof)}, protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_file(path)
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 half a zip"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pth: not a checkpoint") as error:
        load_file(tmp_path / "bad.pth")
    assert "\n" not in str(error.value)


def test_truncated_file(tmp_path):
    save_file({"model": {"w": torch.randn(1000)}}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"half\.pth"):
        load_file(tmp_path / "half.pth")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth: no such"):
        load_file(tmp_path / "none.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    save_file({"step": 1}, tmp_path / "a.pth")
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_file({"step": lambda: 2}, tmp_path / "a.pth")
    assert load_file(tmp_path / "a.pth") == {"step": 1}
    assert os.listdir(tmp_path) == ["a.pth"]


def test_killed_while_writing_leaves_a_readable_file(tmp_path):
    """A process that is killed at a random moment of a loop of writes."""
    code = (
        "import sys, torch\n"
        "from util.checkpoint import save_checkpoint\n"
        "step = 0\n"
        "while True:\n"
        "    step += 1\n"
        f"    save_checkpoint({str(tmp_path)!r}, {{'step': step, 'w': torch.full((200_000,), float(step))}}, keep=2)\n"
        "    print(step, flush=True)\n"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            process.stdout.readline()
            process.kill()
        read = load_file(tmp_path / LATEST)
        assert (read["w"] == read["step"]).all()


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, {"step": step}, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [LATEST, "checkpoint_00000003.pth", "checkpoint_00000004.pth"]
    assert load_file(tmp_path / LATEST) == {"step": 4}
    # a run that goes on from an earlier step does not lose its own files to those of the abandoned one
    save_checkpoint(tmp_path, {"step": 1}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir())[1:] == [
        "checkpoint_00000001.pth",
        "checkpoint_00000004.pth",
    ]
    assert load_file(tmp_path / LATEST) == {"step": 1}


@pytest.mark.parametrize(("stage", "other"), [("pretrain", "finetune"), ("finetune", "pretrain")])
def test_resume_in_the_other_script(tmp_path, stage, other):
    path = _run(tmp_path, stage)
    with pytest.raises(CheckpointError, match=f"a {stage} checkpoint, not a {other} one"):
        load_run(path, other)
    assert load_run(path, stage)["stage"] == stage


def test_a_file_of_another_project(tmp_path):
    save_file({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        load_run(tmp_path / "foreign.pth")


def test_origin(tmp_path):
    args = argparse.Namespace(resume="auto", output_dir=str(tmp_path), pretrain=None)
    assert find_origin(args, "finetune") is None
    args.pretrain = str(_run(tmp_path))
    assert not find_origin(args, "finetune").resumes
    save_checkpoint(tmp_path, {"model": {}, "args": {}, "stage": "finetune", "step": 3}, keep=1)
    origin = find_origin(args, "finetune")
    assert origin.resumes
    assert origin.content["step"] == 3
    args.resume = str(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        find_origin(args, "finetune")


class _Detector(nn.Module):
    def __init__(self, classes=3, width=4, layers=2):
        super().__init__()
        self.query_embed = nn.Embedding(5, width)
        self.transformer = nn.ModuleDict(
            {"decoder": nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(width, width) for _ in range(layers))})}
        )
        self.class_embed = nn.Linear(width, classes)


def test_detector_loads_without_its_class_head():
    source, detector = _Detector(classes=7), _Detector()
    head = detector.class_embed.weight.clone()
    report = load_detector(detector, source.state_dict(), "f.pth", keep_class_head=False)
    assert torch.equal(detector.query_embed.weight, source.query_embed.weight)
    assert torch.equal(detector.class_embed.weight, head)
    assert report.new == report.left_over == ["class_embed.weight", "class_embed.bias"]
    assert "query_embed.weight" in report.loaded


class _LayeredDetector(_Detector):
    """A class head a layer, which the decoder knows, too."""

    def __init__(self, classes=3):
        super().__init__()
        self.class_embed = nn.ModuleList(nn.Linear(4, classes) for _ in range(2))
        self.transformer["decoder"]["class_embed"] = self.class_embed


def test_detector_loads_without_the_class_heads_of_its_layers():
    source, detector = _LayeredDetector(classes=7), _LayeredDetector()
    report = load_detector(detector, source.state_dict(), "f.pth", keep_class_head=False)
    names = [f"class_embed.{index}.{kind}" for index in range(2) for kind in ("weight", "bias")]
    assert set(report.new) == set(report.left_over) == {*names, *(f"transformer.decoder.{name}" for name in names)}
    assert (num_class_logits(source.state_dict()), num_class_logits(_Detector().state_dict())) == (7, 3)


@pytest.mark.parametrize(
    ("saved", "flag"),
    [({"width": 8}, "--num_queries"), ({"layers": 1}, "--dec_layers"), ({"layers": 3}, "--dec_layers")],
)
def test_another_architecture_names_the_flag(saved, flag):
    with pytest.raises(CheckpointError, match=flag) as error:
        load_detector(_Detector(), _Detector(**saved).state_dict(), "f.pth", keep_class_head=True)
    assert "f.pth" in str(error.value)


def test_random_states_come_back(tmp_path):
    save_file(rng_state(), tmp_path / "rng.pth")

    def draw():
        return random.random(), np.random.rand(), torch.rand(3).tolist()  # noqa: NPY002

    wanted = draw()
    set_rng_state(load_file(tmp_path / "rng.pth"))
    assert draw() == wanted


def test_output_dir_that_is_a_file_or_holds_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_output_dir(argparse.Namespace(output_dir=str(tmp_path / "file" / "out")), None)
    args = argparse.Namespace(output_dir=str(tmp_path / "out"))
    open_output_dir(args, None)
    path = save_checkpoint(args.output_dir, {"step": 1}, keep=1)
    elsewhere = Origin(tmp_path / "run.pth", {}, resumes=True)
    for origin in (None, elsewhere, Origin(path, {}, resumes=False)):
        with pytest.raises(UserError, match="--resume auto"):
            open_output_dir(args, origin)
    (tmp_path / "out" / ".checkpoint_00000002.pth.abc").write_text("of a save that was killed")
    open_output_dir(args, Origin(path, {}, resumes=True))
    assert not list((tmp_path / "out").glob(".checkpoint*"))
