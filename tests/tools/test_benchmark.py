"""The benchmark accounts for the time of a step."""

import re

import pytest

from tests.tiny import COMMON, DETECTOR, PRETRAIN, write_data_set
from tools import benchmark
from util.errors import UserError


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_parts_add_up_to_the_step(tmp_path, capsys, stage):
    data = write_data_set(tmp_path / "data")
    flags = [*PRETRAIN, "--data_path", f"{data}/train"] if stage == "pretrain" else [*COMMON, "--data_path", str(data)]
    benchmark.main(["step", stage, "--steps", "3", *flags, *DETECTOR])
    rows = dict(re.findall(r"^ *(\w+) +([-\d.]+) +\(", capsys.readouterr().out, re.MULTILINE))
    times = {name: float(value) for name, value in rows.items()}
    assert set(times) == {*benchmark.PARTS, "other", "step"}
    assert all(times[name] > 0 for name in benchmark.PARTS)
    assert sum(times[name] for name in benchmark.PARTS) <= 1.2 * times["step"]


def test_no_steps_are_refused():
    with pytest.raises(UserError, match="--steps 0"):
        benchmark.main(["step", "pretrain", "--steps", "0"])
