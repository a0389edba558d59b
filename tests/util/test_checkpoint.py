"""Checkpoint files: written completely, read without running their code, and recognised."""

import argparse
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.checkpoints.origin import Origin
from tests.gloo import run_processes
from training import resume
from util.checkpoint import (
    BEST,
    LATEST,
    keep_as_best,
    load_file,
    open_output_dir,
    save_checkpoint,
    save_file,
    written_before,
)
from util.errors import CheckpointError, UserError
from util.rng import rng_state, set_rng_state


class _Evil:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


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


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", b"PK\x03\x04 half a zip", b"upload failed", b"best model", b"G" * 64]
)
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


def test_a_disk_that_takes_no_more_is_told_as_such(tmp_path):
    """A limit on the size of files stands for the full disk: torch's zip writer reports neither as what it is."""
    code = (
        "import resource, signal, torch\n"
        "from util.checkpoint import save_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n"
        "try:\n"
        "    save_file({'w': torch.zeros(10**6)}, 'a.pth')\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "File too large\n", done.stderr
    assert os.listdir(tmp_path) == []


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
    written = []
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, {"step": step}, keep=2, written=written)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [LATEST, "checkpoint_00000003.pth", "checkpoint_00000004.pth"]
    assert load_file(tmp_path / LATEST) == {"step": 4}


def test_only_what_the_run_has_written_is_deleted(tmp_path):
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, {"step": step}, keep=9)
    # a run that resumes after step 4: 2 and 4 are its own, 6 is damaged or of an abandoned run
    written = written_before(tmp_path, tmp_path / "checkpoint_00000004.pth", 4)
    save_checkpoint(tmp_path, {"step": 5}, keep=1, written=written)
    assert sorted(path.name for path in tmp_path.iterdir())[1:] == [
        "checkpoint_00000005.pth",
        "checkpoint_00000006.pth",
    ]
    assert load_file(tmp_path / LATEST) == {"step": 5}
    assert written_before(tmp_path, tmp_path.parent / "elsewhere.pth", 9) == []
    assert written_before(tmp_path, None, 9) == []


@pytest.mark.parametrize("name", [LATEST, "checkpoint_00000001.pth"])
def test_a_folder_in_place_of_a_checkpoint_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        save_checkpoint(tmp_path, {"step": 1}, keep=1)
    assert caught.value.filename == str(tmp_path / name)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_in_place_of_the_best_checkpoint_is_named(tmp_path):
    path = save_checkpoint(tmp_path, {"step": 1}, keep=1)
    (tmp_path / BEST).mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        keep_as_best(tmp_path, path)
    assert caught.value.filename == str(tmp_path / BEST)
    assert not list(tmp_path.glob(".*"))


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
    with pytest.raises(UserError, match="file: exists and is not a folder"):
        open_output_dir(argparse.Namespace(output_dir=str(tmp_path / "file")), None)
    args = argparse.Namespace(output_dir=str(tmp_path / "out"))
    open_output_dir(args, None)
    path = save_checkpoint(args.output_dir, {"step": 1}, keep=1)
    for resumed in (None, tmp_path / "run.pth"):
        with pytest.raises(UserError, match="--resume auto"):
            open_output_dir(args, resumed)
    (tmp_path / "out" / ".checkpoint_00000002.pth.abc").write_text("of a save that was killed")
    open_output_dir(args, path)
    assert not list((tmp_path / "out").glob(".checkpoint*"))


def _resume(rank, steps):
    origin = None if steps[rank] is None else Origin("f.pth", {"step": steps[rank]}, resumes=True)
    try:
        resume(None, origin, argparse.Namespace(resume="auto"))
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("steps", [(8, None), (None, 8), (8, 9)])
def test_processes_that_find_different_checkpoints_end_together(steps):
    for told in run_processes(_resume, steps):
        assert "--resume auto: not all processes found the same checkpoint" in told
