"""log.txt and the meters."""

import json

import torch

from util.logger import Meters, RunLog


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


def test_tensorboard_receives_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    RunLog(tmp_path, step=0, tensorboard=True).write("train", 7, {"loss": 1.5, "note": "text"})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = events.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (7, 1.5)


def test_infinity_is_written_as_null(tmp_path):
    RunLog(tmp_path, step=0, tensorboard=False).write("train", 1, {"loss": 1.0, "grad_norm": float("inf")})
    assert json.loads((tmp_path / "log.txt").read_text())["grad_norm"] is None
