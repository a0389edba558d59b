"""Signals during training, as job managers send them, and lost processes."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch

from tests.conftest import ROOT
from tests.processes import session, wait_until, without_nohup
from tests.runs import assert_equal, finetune, pretrain, read_log
from tests.tiny import COMMON, DETECTOR, PRETRAIN
from util.checkpoint import load_file

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--local_addr=127.0.0.1"]
# As many threads as in this process: they split sums, and runs are compared bit for bit.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": str(torch.get_num_threads()), "GLOO_SOCKET_IFNAME": "lo"}


def begin(*argv) -> subprocess.Popen:
    command = [sys.executable, *map(str, argv)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def pretraining(data, out, *argv) -> list:
    return ["main_pretrain.py", "--data_path", data / "train", "--output_dir", out, *PRETRAIN, *DETECTOR, *argv]


def steps_logged(out) -> int:
    log = out / "log.txt"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize(
    ("number", "to_all", "workers"),
    [(signal.SIGINT, True, 2), (signal.SIGTERM, True, 1), (signal.SIGUSR1, False, 0)],
    ids=["SIGINT", "SIGTERM", "SIGUSR1"],
)
def test_a_signal_saves_the_present_step_and_the_rest_is_as_if_nothing_was(data, tmp_path, number, to_all, workers):
    plan = ["--max_steps", "5000", "--num_workers", str(workers), "--save_every_epochs", "0", "--lr_drop_step", "9000"]
    process = begin(*pretraining(data, tmp_path / "a", *plan))
    wait_until(lambda: steps_logged(tmp_path / "a") >= 3)
    (os.killpg if to_all else os.kill)(process.pid, number)
    told = process.communicate(timeout=60)[1].strip().splitlines()
    assert process.returncode == 128 + number
    assert told[0].startswith(f"{number.name}: finishing the step and saving")
    assert "--resume auto goes on" in told[-1]
    assert len(told) == 2
    wait_until(lambda: not session(process.pid))
    step = load_file(tmp_path / "a" / "checkpoint.pth")["step"]
    assert f"stopped by {number.name} after step {step} of 5000" in told[-1]
    assert step >= 3
    end = ["--max_steps", str(step + 2), "--lr_drop_step", "9000"]
    rest = pretrain(data, tmp_path / "a", "--resume", "auto", *end)
    whole = pretrain(data, tmp_path / "b", *plan, *end)
    del rest["args"], whole["args"]
    assert_equal(rest, whole)


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_run_whose_output_nobody_reads_any_more_is_saved(data, tmp_path, both):
    """As by ``| head``: a run that loads with processes of its own."""
    plan = ["--max_steps", "5000", "--num_workers", "2", "--save_every_epochs", "0", "--log_every", "1"]
    command = [sys.executable, *map(str, pretraining(data, tmp_path, *plan))]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT if both else subprocess.PIPE, preexec_fn=without_nohup,
    )  # fmt: skip
    wait_until(lambda: steps_logged(tmp_path) >= 3)
    process.stdout.close()
    told = process.communicate(timeout=60)[1] if not both else None
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    wait_until(lambda: not session(process.pid))
    step = load_file(tmp_path / "checkpoint.pth")["step"]
    assert 3 <= step == steps_logged(tmp_path)
    if not both:
        assert f"stopped by SIGHUP after step {step} of 5000" in told


def test_a_run_whose_terminal_is_closed_is_saved(data, tmp_path):
    ours, its = pty.openpty()
    os.set_blocking(ours, False)

    def read_until_the_third_step() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 10_000)
        return steps_logged(tmp_path) >= 3

    plan = ["--max_steps", "5000", "--save_every_epochs", "0"]
    command = [sys.executable, *map(str, pretraining(data, tmp_path, *plan))]

    def take_the_terminal() -> None:
        without_nohup()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, stdin=its, stdout=its, stderr=its,
        preexec_fn=take_the_terminal,
    )  # fmt: skip
    os.close(its)
    wait_until(read_until_the_third_step)
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert load_file(tmp_path / "checkpoint.pth")["step"] == steps_logged(tmp_path)


def test_all_processes_stop_after_the_same_step(data, tmp_path):
    """The launcher passes the signal on."""
    plan = ["--max_steps", "5000", "--batch_size", "1", "--save_every_epochs", "0"]
    process = begin(*LAUNCHER, "--nproc_per_node=2", *pretraining(data, tmp_path, *plan))
    wait_until(lambda: steps_logged(tmp_path) >= 3)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    step = load_file(tmp_path / "checkpoint.pth")["step"]
    assert f"stopped by SIGTERM after step {step} of 5000" in told
    assert "another process ended" not in told
    assert steps_logged(tmp_path) == step


def test_a_lost_process_costs_the_steps_since_the_last_save(data, tmp_path):
    """The launcher starts the same command again, without --resume, and it continues."""
    plan = ["--max_steps", "20", "--save_every_steps", "5", "--save_every_epochs", "0", "--batch_size", "1"]
    process = begin(*LAUNCHER, "--nproc_per_node=1", "--max_restarts=3", *pretraining(data, tmp_path, *plan,
                    "--no_global_loss"))  # fmt: skip
    wait_until(lambda: (tmp_path / "checkpoint_00000005.pth").exists())
    os.kill(json.loads((tmp_path / ".lock").read_text())["pid"], signal.SIGKILL)
    output, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "resumed from" in output
    assert load_file(tmp_path / "checkpoint.pth")["step"] == 20
    assert [line["step"] for line in read_log(tmp_path, "train")] == list(range(1, 21))


def test_no_process_trains_on_without_its_launcher(data, tmp_path):
    plan = ["--max_steps", "5000", "--save_every_epochs", "0"]
    process = begin(*LAUNCHER, "--nproc_per_node=1", *pretraining(data, tmp_path, *plan))
    wait_until(lambda: steps_logged(tmp_path) >= 3)
    process.kill()
    _, told = process.communicate(timeout=60)  # returns when all processes that write there have ended
    assert "stopped by SIGTERM after step" in told
    assert load_file(tmp_path / "checkpoint.pth")["step"] == steps_logged(tmp_path)


def test_a_signal_while_evaluating_costs_nothing(data, tmp_path):
    argv = ["--data_path", data, "--output_dir", tmp_path, *COMMON, *DETECTOR, "--epochs", "1"]
    code = (
        "import main_finetune, sys, time; from util.script import run_script\n"
        "true_score = main_finetune.score\n"
        "def slow(*args): print('evaluating', flush=True); time.sleep(60)\n"
        "main_finetune.score = slow\n"
        "run_script(lambda: main_finetune.main(sys.argv[1:]))"
    )
    process = begin("-c", code, *argv)
    for line in process.stdout:
        if line == "evaluating\n":
            break
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    told = process.communicate(timeout=30)[1]
    assert time.monotonic() - begun < 10
    assert process.returncode == 143
    assert "stopped by SIGTERM after step 5 of 5" in told
    assert load_file(tmp_path / "checkpoint.pth")["evaluation_due"] is True
    finetune(data, tmp_path, "--resume", "auto")
    assert [line["step"] for line in read_log(tmp_path, "eval")] == [5]


def test_ctrl_c_while_starting_is_one_line(data, tmp_path):
    for delay in (0.3, 1.5):
        process = begin(*pretraining(data, tmp_path / "a", "--max_steps", "5000"))
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1].strip()
        assert process.returncode == 130, told
        assert told == "interrupted before training began: run the same command again"
