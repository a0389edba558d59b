"""log.txt and the meters."""

import json
import shutil

import pytest
import torch

from util.errors import UserError
from util.logger import Meters, RunLog, find_evaluation


def _steps(folder):
    return [json.loads(line)["step"] for line in (folder / "log.txt").read_text().splitlines()]


def test_meters_average_and_start_anew():
    meters = Meters()
    for value in (1.0, 2.0, 6.0):
        meters.update({"loss": torch.tensor(value), "error": torch.tensor(10 * value)})
    assert meters.read() == {"loss": 3.0, "error": 30.0}
    assert meters.read() == {}
    meters.update({"loss": torch.tensor(5.0)})
    assert meters.read() == {"loss": 5.0}


def test_meters_can_be_looked_at_between_readings():
    meters = Meters()
    assert meters.peek("loss") is None
    for value in (1.0, 3.0):
        meters.update({"loss": torch.tensor(value)})
    assert meters.peek("loss") == 2
    assert meters.read() == {"loss": 2.0}
    meters.update({"loss": torch.zeros((), device="meta")})  # any device that is not the host
    assert meters.peek("loss") is None


def test_a_resumed_log_drops_the_steps_that_are_done_again(tmp_path):
    log = RunLog(tmp_path, step=0, tensorboard=False)
    for step in (10, 20, 30):
        log.write("train", step, {"loss": 1.0})
    with (tmp_path / "log.txt").open("a") as file:
        file.write('{"kind": "train", "st')  # cut by a crash
    RunLog(tmp_path, step=20, tensorboard=False).write("train", 25, {"loss": 2.0})
    assert _steps(tmp_path) == [10, 20, 25]


def test_a_new_run_begins_an_empty_log(tmp_path):
    RunLog(tmp_path, step=0, tensorboard=False).write("train", 10, {"loss": 1.0})
    RunLog(tmp_path, step=0, tensorboard=False).write("train", 5, {"loss": 1.0})
    assert _steps(tmp_path) == [5]


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b'{"kind": "train"}', b'{"step": "3"}', b"[" * 10**5, b""])
def test_a_line_that_is_no_record_is_named_and_skipped(tmp_path, capsys, line):
    log = RunLog(tmp_path, step=0, tensorboard=False)
    log.write("train", 1, {"loss": 1.0})
    with (tmp_path / "log.txt").open("ab") as file:
        file.write(line + b"\n")
    log.write("train", 2, {"loss": 1.0})
    before = (tmp_path / "log.txt").read_bytes()
    RunLog(tmp_path, step=2, tensorboard=False)
    assert _steps(tmp_path) == [1, 2]
    assert "line 2 is damaged and dropped; the old log is kept as log.txt.1" in capsys.readouterr().out
    assert (tmp_path / "log.txt.1").read_bytes() == before


def test_whether_a_step_find_evaluation(tmp_path):
    log = RunLog(tmp_path, step=0, tensorboard=False)
    log.write("train", 5, {"loss": 1.0})
    assert not find_evaluation(tmp_path, 5)
    log.write("eval", 5, {"AP": 0.1})
    assert find_evaluation(tmp_path, 5)
    assert not find_evaluation(tmp_path, 4)
    assert not find_evaluation(tmp_path / "nowhere", 5)


def test_a_log_that_is_no_file(tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/zero")
    for read in (lambda: RunLog(tmp_path, step=1, tensorboard=False), lambda: find_evaluation(tmp_path, 1)):
        with pytest.raises(UserError, match=r"log\.txt: cannot be read \(a pipe, socket or device"):
            read()


def test_a_folder_that_is_gone_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    log = RunLog(tmp_path / "a", step=0, tensorboard=False)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as caught:
        log.write("train", 1, {"loss": 1.0})
    assert caught.value.filename == str(tmp_path / "a" / "log.txt")


def test_tensorboard_receives_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    RunLog(tmp_path, step=0, tensorboard=True).write("train", 7, {"loss": 1.5, "note": "text"})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = events.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (7, 1.5)


def test_infinity_is_written_as_null(tmp_path):
    RunLog(tmp_path, step=0, tensorboard=False).write("train", 1, {"loss": 1.0, "grad_norm": float("inf")})
    assert json.loads((tmp_path / "log.txt").read_text())["grad_norm"] is None
