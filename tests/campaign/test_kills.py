"""Runs that are killed again and again end with the same bits as an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import main_finetune
import main_pretrain
from tests.processes import wait_until
from tests.runs import assert_equal, read_log
from tests.test_stopping import LAUNCHER, pretraining, steps_logged
from tests.test_stopping import begin as start
from tests.tiny import COMMON, DETECTOR, PRETRAIN
from tools import make_proposals
from tools.render_scenes import render_data_set
from util.checkpoint import load_file
from util.script import run_script

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
SHARE = float(os.environ.get("CAMPAIGN_SHARE", "1"))
KILLS = max(2, round(22 * SHARE))
"""Kills per kind of training with one process; half as many of making proposals and with two processes."""


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


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and how far it may go on until it is killed."""

    now: Callable[[], int]
    is_done: Callable[[], bool]
    stride: int


def kill_at_random(task: Callable[[], None], rng: random.Random, kills: Counter[int], progress: Progress) -> None:
    """Begin ``task``, send the rarer signal so far to it or to its whole group, and count it if it ended the run.

    One in four is killed while it starts, the others after some progress. A run that is asked to stop tells the signal
    by its exit status; a killed one leaves no process behind.
    """
    number, wanted = rarer(kills), progress.now() + rng.randint(1, progress.stride)
    child = begin(task)
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0.1, 1.5))
    else:
        wait_until(lambda: progress.now() >= wanted or _has_ended(child), 300, every=0.01)
        time.sleep(rng.uniform(0, 0.2))
    if not _has_ended(child):
        (os.killpg if rng.random() < 0.5 else os.kill)(child, number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL, 128 + signal.SIGTERM), status
    kills[number] += status != 0
    wait_until(lambda: not _lives(child), 10)  # else loading processes outlive their parent


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def rarer(kills: Counter[int]) -> int:
    """The signal that has ended fewer runs."""
    return min((signal.SIGTERM, signal.SIGKILL), key=lambda number: kills[number])


def tell(what: str, kills: Counter[int], rounds: int = 1) -> None:
    """Print the number of kills."""
    print(f"\n{what}: {kills[signal.SIGKILL]} SIGKILL and {kills[signal.SIGTERM]} SIGTERM in {rounds} run(s)")


def disturb(task: Callable[[], None], rng: random.Random, kills: Counter[int], enough: int, progress: Progress) -> None:
    """Kill the run until it has finished or ``kills`` are enough, then let it finish."""
    while kills.total() < enough and not progress.is_done():
        kill_at_random(task, rng, kills, progress)
    finish(task)


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
    rng = random.Random(f"{SEED} {kind.__name__} {workers}")
    finish(lambda: kind(data, tmp_path / "calm", workers))
    calm = load_file(tmp_path / "calm" / "checkpoint.pth")
    kills, rounds = Counter(), 0
    while kills.total() < KILLS:
        out = tmp_path / str(rounds)
        last = out / f"checkpoint_{calm['step']:08d}.pth"
        progress = Progress(partial(steps_logged, out), last.exists, stride=7)
        disturb(partial(kind, data, out, workers), rng, kills, KILLS, progress)
        rounds += 1
        found = load_file(out / "checkpoint.pth")
        assert_equal({**found, "args": None}, {**calm, "args": None})
        for name in ("train", "eval"):
            lines, expected = read_log(out, name), read_log(tmp_path / "calm", name)
            assert [line["step"] for line in lines] == [line["step"] for line in expected]
            assert [line.get("AP") for line in lines] == [line.get("AP") for line in expected]
    tell(f"{kind.__name__} with {workers} workers", kills, rounds)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_proposals_end_as_the_undisturbed(tmp_path, workers):
    pytest.importorskip("cv2.ximgproc")
    rng = random.Random(f"{SEED} {workers}")
    render_data_set(tmp_path / "data", 1, 1, 120, size=128)

    def propose(out: Path) -> None:
        argv = ["--data_path", str(tmp_path / "data" / "unlabelled"), "--output_dir", str(out), "--size", "0"]
        make_proposals.main([*argv, "--num_workers", workers])

    finish(lambda: propose(tmp_path / "calm"))
    kills, rounds = Counter(), 0
    while kills.total() < KILLS // 2:
        out = tmp_path / str(rounds)
        progress = Progress(partial(_bytes_in, tmp_path / f"{rounds}.parts"), out.exists, stride=30_000)
        disturb(partial(propose, out), rng, kills, KILLS // 2, progress)
        rounds += 1
        for path in (tmp_path / "calm").iterdir():
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    tell(f"proposals with {workers} workers", kills, rounds)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.journal"))


def test_two_processes_end_although_they_are_killed(data, tmp_path):
    """The launcher or the main process is killed some steps after it began or went on."""
    rng = random.Random(SEED)
    out = tmp_path / "out"
    plan = ["--batch_size", "1", "--max_steps", "400", "--save_every_steps", "5", "--resume", "auto"]
    command = [*LAUNCHER, "--nproc_per_node=2", *pretraining(data, out, *plan)]
    kills = Counter()
    while kills.total() < KILLS // 2:
        number, wanted = rarer(kills), steps_logged(out) + rng.randrange(1, 35)
        process = start(*command)
        wait_until(lambda: steps_logged(out) >= wanted or process.poll() is not None)  # noqa: B023
        assert process.poll() is None, process.communicate()[1]
        main_process = json.loads((out / ".lock").read_text())["pid"]
        os.kill(rng.choice([process.pid, main_process]), number)
        told = process.communicate(timeout=60)[1]
        assert process.returncode != 0, told
        kills[number] += 1
    output, told = start(*command).communicate(timeout=200)
    assert load_file(out / "checkpoint.pth")["step"] == 400, output + told
    assert [line["step"] for line in read_log(out, "train")] == list(range(1, 401))
    tell("pretraining on two processes", kills)
