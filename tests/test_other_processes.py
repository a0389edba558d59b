"""A schedule of epochs that is stopped and goes on with other numbers of processes and other batches."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.runs import read_log
from tests.test_stopping import LAUNCHER, begin
from tests.tiny import COMMON, DETECTOR, PRETRAIN, write_data_set
from util.checkpoint import load_file

IMAGES = 16
PLAN = "--epochs 4 --lr_drop 3 --lr 1e-3 --resume auto".split()
STAGES = {
    "main_pretrain.py": ["--data_path", "data/train", *PRETRAIN],
    "main_finetune.py": ["--data_path", "data", *COMMON, "--eval_every", "1"],
}


def launch(script: str, root: Path, out: Path, processes: int, batch_size: int, stop: int = 0) -> str:
    """Run ``script`` under the launcher, audited; returns all that it says."""
    out.mkdir(exist_ok=True)
    _, data, *flags = STAGES[script]
    argv = ["--data_path", root / data, *flags, *DETECTOR, *PLAN, "--batch_size", batch_size, "--output_dir", out]
    run = [*LAUNCHER, f"--nproc_per_node={processes}", "-m", "tests.audit", out, stop, script, *argv]
    return "".join(begin(*run).communicate(timeout=600))


def seen(out: Path) -> list[tuple[int, int, float]]:
    """(epoch, image, learning rate) of all images that the runs in ``out`` were trained on."""
    steps = [json.loads(line) for path in sorted(out.glob("[0-9].txt")) for line in path.read_text().splitlines()]
    return [(step["epoch"], image, step["lr"]) for step in steps for image in step["images"]]


@pytest.mark.slow
@pytest.mark.parametrize("script", STAGES)
def test_four_epochs_are_four_whoever_goes_on(tmp_path, script):
    """Two processes with 2 images each are stopped after 2.5 epochs; lr drops after 3."""
    write_data_set(tmp_path / "data", num_images=IMAGES)
    told = launch(script, tmp_path, tmp_path / "stopped", 2, 2, stop=9)
    assert "stopped by SIGTERM after step 10 of 16" in told, told
    state = load_file(tmp_path / "stopped" / "checkpoint.pth")
    assert (state["epoch"], state["images"]) == (2, 8)
    for processes, batch_size in ((1, 2), (2, 4), (1, 4), (4, 1), (2, 3)):
        out = tmp_path / f"{processes}x{batch_size}"
        shutil.copytree(tmp_path / "stopped", out)
        told = launch(script, tmp_path, out, processes, batch_size)
        per_step = processes * batch_size
        steps = 10 + 8 // per_step + IMAGES // per_step
        assert f"{steps}/{steps} steps, 4 epochs done" in told, told
        images = seen(out)
        assert {(epoch, rate) for epoch, _, rate in images} == {(0, 1e-3), (1, 1e-3), (2, 1e-3), (3, 1e-4)}
        counts = Counter((epoch, image) for epoch, image, _ in images)
        assert max(counts.values()) == 1, "an image twice in an epoch"
        number = Counter(epoch for epoch, _ in counts)
        assert number == {0: 16, 1: 16, 2: 8 + 8 // per_step * per_step, 3: IMAGES // per_step * per_step}
        assert load_file(out / "checkpoint.pth")["epoch"] == 4
        lines = read_log(out, "train")
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        assert lines[-1]["epoch"] == 4
        if script == "main_finetune.py":
            assert [line["epoch"] for line in read_log(out, "eval")] == [1, 2, 3, 4]
