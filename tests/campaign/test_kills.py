"""Runs that are killed again and again end with the same bits as an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import main_finetune
import main_pretrain
from tests.conftest import ROOT
from tests.runs import assert_equal, read_log
from tests.test_stopping import ENVIRONMENT, LAUNCHER
from tests.tiny import COMMON, DETECTOR, PRETRAIN
from tools import make_proposals
from tools.render_scenes import render_data_set
from util.checkpoint import load_file
from util.script import run_script

pytestmark = pytest.mark.slow
SHARE = float(os.environ.get("CAMPAIGN_SHARE", "1"))
KILLS = max(2, round(22 * SHARE))
"""Kills per kind of run with one process; half as many with two processes."""


def begin(task: Callable[[], None]) -> int:
    """``task`` as a script in a child that has imported everything; returns its process id."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            run_script(task)
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            os._exit(status)
    return child


def finish(task: Callable[[], None]) -> None:
    """Run ``task`` to its end."""
    assert os.waitstatus_to_exitcode(os.waitpid(begin(task), 0)[1]) == 0


def kill_at_random(task: Callable[[], None], rng: random.Random, number: int, longest: float) -> bool:
    """Begin ``task`` and send signal ``number`` to it or to its whole group; return whether it was still running.

    A run that is asked to stop tells the signal by its exit status; a killed one leaves no process behind.
    """
    child = begin(task)
    time.sleep(rng.uniform(0.1, longest))
    met = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    if met:
        (os.killpg if rng.random() < 0.5 else os.kill)(child, number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL, 128 + signal.SIGTERM), status
    end = time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < end, "loading processes outlive their parent"
        time.sleep(0.05)
    return met and status != 0


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def disturbed(task: Callable[[], None], rng: random.Random, is_done: Callable[[], bool], longest: float = 1.5) -> int:
    """Kill the run until it has finished or was killed often enough, then let it finish; return the number of kills."""
    kills = 0
    while kills < KILLS and not is_done():
        kills += kill_at_random(task, rng, (signal.SIGKILL, signal.SIGTERM)[kills % 2], longest)
    finish(task)
    return kills


def _pretraining(data: Path, out: Path, workers: str) -> None:
    argv = ["--data_path", f"{data}/train", *PRETRAIN, *DETECTOR, "--max_steps", "120", "--lr_drop_step", "90"]
    argv += ["--save_every_steps", "7", "--num_workers", workers, "--resume", "auto", "--output_dir", str(out)]
    main_pretrain.main(argv)


def _finetuning(data: Path, out: Path, workers: str) -> None:
    argv = ["--data_path", str(data), *COMMON, *DETECTOR, "--epochs", "16", "--lr_drop", "9", "--eval_every", "4"]
    argv += ["--save_every_steps", "3", "--num_workers", workers, "--resume", "auto", "--output_dir", str(out)]
    main_finetune.main(argv)


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("kind", [_pretraining, _finetuning], ids=["pretraining", "finetuning"])
def test_killed_training_ends_as_the_undisturbed(data, tmp_path, kind, workers):
    rng = random.Random(f"{kind.__name__} {workers}")
    finish(lambda: kind(data, tmp_path / "calm", workers))
    calm = load_file(tmp_path / "calm" / "checkpoint.pth")
    kills = rounds = 0
    while kills < KILLS:
        out = tmp_path / str(rounds)
        kills += disturbed(lambda: kind(data, out, workers), rng, lambda: _is_done(out, calm["step"]))  # noqa: B023
        rounds += 1
        found = load_file(out / "checkpoint.pth")
        assert_equal({**found, "args": None}, {**calm, "args": None})
        for name in ("train", "eval"):
            lines, expected = read_log(out, name), read_log(tmp_path / "calm", name)
            assert [line["step"] for line in lines] == [line["step"] for line in expected]
            assert [line.get("AP") for line in lines] == [line.get("AP") for line in expected]
    print(f"\n{kind.__name__} with {workers} workers: {kills} kills in {rounds} runs")


def _is_done(out: Path, step: int) -> bool:
    return (out / f"checkpoint_{step:08d}.pth").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_proposals_end_as_the_undisturbed(tmp_path, workers):
    pytest.importorskip("cv2.ximgproc")
    rng = random.Random(workers)
    render_data_set(tmp_path / "data", 1, 1, 120, size=128)

    def propose(out: Path) -> None:
        argv = ["--data_path", str(tmp_path / "data" / "unlabelled"), "--output_dir", str(out), "--size", "0"]
        make_proposals.main([*argv, "--num_workers", workers])

    finish(lambda: propose(tmp_path / "calm"))
    kills = rounds = 0
    while kills < KILLS // 2:
        out = tmp_path / str(rounds)
        kills += disturbed(lambda: propose(out), rng, out.exists, longest=0.8)  # noqa: B023
        rounds += 1
        for path in (tmp_path / "calm").iterdir():
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    print(f"\nproposals with {workers} workers: {kills} kills in {rounds} runs")


def test_two_processes_end_although_they_are_killed(data, tmp_path):
    rng = random.Random(0)
    argv = ["main_pretrain.py", "--data_path", data / "train", *PRETRAIN, *DETECTOR, "--batch_size", "1", "--max_steps",
            "400", "--save_every_steps", "5", "--resume", "auto", "--output_dir", tmp_path / "out"]  # fmt: skip
    command = [sys.executable, *LAUNCHER, "--nproc_per_node=2", *map(str, argv)]
    kills = 0
    for number in [signal.SIGKILL, signal.SIGTERM] * (KILLS // 4):
        with subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            time.sleep(rng.uniform(6, 14))
            kills += process.poll() is None
            process.send_signal(number)
            process.communicate(timeout=60)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "out" / "checkpoint.pth")["step"] == 400
    assert [line["step"] for line in read_log(tmp_path / "out", "train")] == list(range(1, 401))
    print(f"\ntwo processes: {kills} kills")
