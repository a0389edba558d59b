"""A stopped run continues: nothing is lost, nothing is done twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import runs
from tests.gloo import run_script
from tests.runs import assert_equal, finetune, read_log
from tests.tiny import PRETRAIN, write_data_set
from tests.tiny import SMALL_DETECTOR as DETECTOR
from tests.util.test_run_lock import HOLD
from util.checkpoint import load_file, save_file
from util.errors import CheckpointError, DataError, UserError


def pretrain(data, out, *argv) -> dict:
    """With a small detector, for many checkpoints are written here."""
    return runs.pretrain(data, out, *DETECTOR, *argv)


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("sixteen"), num_images=16)


@pytest.mark.parametrize("eval_every", ["1", "0"])
def test_an_evaluation_that_failed_costs_nothing_and_is_made_up(data, tmp_path, eval_every):
    root, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, root)
    image = root / "val" / "3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:300])
    argv = [*DETECTOR, "--epochs", "1", "--eval_every", eval_every, "--check_images", "none", "--resume", "auto"]
    for _ in range(2):  # every start tries it again
        with pytest.raises(DataError, match=r"3\.png"):
            finetune(root, out, *argv)
        assert load_file(out / "checkpoint.pth")["step"] == 5
        assert read_log(out, "eval") == []
    image.write_bytes(whole)
    finetune(root, out, *argv)
    (scores,) = read_log(out, "eval")
    assert scores["step"] == 5
    assert scores["AP"] == json.loads((out / "eval.json").read_text())["AP"]
    before = (out / "eval.json").stat().st_mtime_ns
    # a finished evaluation is not repeated, here or in another folder, and training continues as if never stopped
    rest = finetune(root, out, *argv[:-2], "--resume", "auto", "--epochs", "2", "--lr_drop", "1", "--eval_every", "0")
    assert [line["step"] for line in read_log(out, "eval")] == [5, 10]
    assert (out / "eval.json").stat().st_mtime_ns > before
    undisturbed = finetune(data, tmp_path / "b", *DETECTOR, "--epochs", "2", "--lr_drop", "1", "--eval_every", "1")
    assert_equal(rest["model"], undisturbed["model"])
    assert_equal(rest["rng"], undisturbed["rng"])


def test_four_epochs_stay_four_with_other_batches(sixteen, tmp_path):
    """Stopped after 2.5 epochs with 4 images per step; lr drops after 3 epochs."""
    plan = ["--epochs", "4", "--lr_drop", "3", "--lr", "1e-3", "--save_every_steps", "10", "--keep_checkpoints", "9"]
    pretrain(sixteen, tmp_path / "a", *plan, "--batch_size", "4")
    stopped = tmp_path / "a" / "checkpoint_00000010.pth"
    assert {name: load_file(stopped)[name] for name in ("epoch", "images", "num_images")} == {
        "epoch": 2, "images": 8, "num_images": 16,
    }  # fmt: skip
    for batch_size in (2, 8):
        out = tmp_path / str(batch_size)
        done = pretrain(sixteen, out, "--resume", str(stopped), "--batch_size", str(batch_size))
        lines = read_log(out, "train")
        assert len(lines) == (8 + 16) // batch_size
        assert done["epoch"] == 4
        rates = [
            line["lr"] for line in lines
        ]  # logged after the step, so the last one before the drop has the new rate
        before = 8 // batch_size - 1
        assert rates == pytest.approx([1e-3] * before + [1e-4] * (len(lines) - before))
        assert lines[-1]["epoch"] == 4


def test_a_finished_epoch_is_finished_on_two_processes(sixteen, tmp_path):
    """2 of 4 epochs with 4 steps each, resumed on two processes with one step each."""
    plan = ["--epochs", "4", "--lr_drop", "3", "--lr", "1e-3"]
    pretrain(sixteen, tmp_path / "a", *plan, "--batch_size", "4", "--epochs", "2", "--lr_drop", "2")
    argv = ["--data_path", sixteen / "train", *PRETRAIN, *plan, "--batch_size", "8"]
    resume = ["--resume", tmp_path / "a" / "checkpoint.pth", "--output_dir", tmp_path / "b"]
    run_script("main_pretrain", *argv, *resume)
    assert [line["step"] for line in read_log(tmp_path / "b", "train")] == [9, 10]
    assert load_file(tmp_path / "b" / "checkpoint.pth")["epoch"] == 4


def test_an_epoch_that_a_larger_batch_ends_is_evaluated(data, tmp_path):
    """2 of 10 images are left, which are less than a batch of 4: the epoch is over, but not yet evaluated."""
    argv = [*DETECTOR, "--lr_drop", "1", "--eval_every", "1", "--save_every_steps", "4", "--resume", "auto"]
    finetune(data, tmp_path, *argv, "--epochs", "1")
    (tmp_path / "checkpoint_00000005.pth").unlink()
    (tmp_path / "checkpoint_00000004.pth").replace(tmp_path / "checkpoint.pth")
    for _ in range(2):  # the second time it is done
        finetune(data, tmp_path, *argv, "--epochs", "1", "--batch_size", "4")
        assert [line["step"] for line in read_log(tmp_path, "eval")] == [4]
    finetune(data, tmp_path, *argv, "--epochs", "2", "--batch_size", "4")
    assert [line["step"] for line in read_log(tmp_path, "eval")] == [4, 6]


def test_a_checkpoint_of_before_says_its_position_by_its_steps(data, tmp_path):
    pretrain(data, tmp_path / "a", "--epochs", "2", "--save_every_steps", "3", "--keep_checkpoints", "9")
    path = tmp_path / "a" / "checkpoint_00000003.pth"
    whole, content = load_file(tmp_path / "a" / "checkpoint.pth"), load_file(path)
    for name in ("images", "num_images", "evaluation_due"):
        del content[name]
    save_file({**content, "steps_per_epoch": 5}, path)
    rest = pretrain(data, tmp_path / "b", "--resume", str(path))
    assert_equal(rest["model"], whole["model"])


@pytest.mark.parametrize("how", ["gone", "dangling", "damaged"])
def test_the_newest_whole_checkpoint_is_taken_and_nothing_is_lost(data, tmp_path, capsys, how):
    argv = ["--max_steps", "4", "--save_every_steps", "1", "--keep_checkpoints", "2", "--resume", "auto"]
    pretrain(data, tmp_path, *argv)
    latest, newest = tmp_path / "checkpoint.pth", tmp_path / "checkpoint_00000004.pth"
    if how == "damaged":  # both are one file
        content = bytearray(latest.read_bytes())
        content[len(content) // 2] ^= 1
        latest.write_bytes(content)
    else:
        latest.unlink()
        if how == "dangling":
            latest.symlink_to(tmp_path / "nowhere.pth")
    log = (tmp_path / "log.txt").read_text()
    capsys.readouterr()
    again = pretrain(data, tmp_path, *argv, "--max_steps", "5")
    told = capsys.readouterr().out
    assert again["step"] == 5
    taken = "checkpoint_00000003.pth" if how == "damaged" else "checkpoint_00000004.pth"
    assert f"resuming from {tmp_path / taken}" in told
    assert f"resumed from {tmp_path / taken}" in told
    assert newest.exists() or how != "damaged"
    kept = log.splitlines()[: 3 if how == "damaged" else 4]
    assert (tmp_path / "log.txt").read_text().splitlines()[: len(kept)] == kept


def test_where_no_checkpoint_is_whole_nothing_is_begun(data, tmp_path):
    pretrain(data, tmp_path, "--max_steps", "1")
    for path in tmp_path.glob("checkpoint*.pth"):
        path.write_bytes(b"PK\x03\x04")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged: .*checkpoint\.pth"):
        pretrain(data, tmp_path, "--max_steps", "1", "--resume", "auto")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "checkpoint.pth").unlink()  # the others are a run too
    with pytest.raises(UserError, match="already holds a run"):
        pretrain(data, tmp_path, "--max_steps", "1")


def test_a_log_of_before_is_kept(data, tmp_path):
    (tmp_path / "log.txt").write_text('{"kind": "train", "step": 9}\n')
    pretrain(data, tmp_path, "--max_steps", "1", "--resume", "auto")
    assert [line["step"] for line in read_log(tmp_path, "train")] == [1]
    assert (tmp_path / "log.txt.1").read_text() == '{"kind": "train", "step": 9}\n'


def test_two_runs_in_one_folder(data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".checkpoint_00000002.pth.abc").write_text("a save that is going on")
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"process {holder.pid} on .* is writing there"):
            pretrain(data, out, "--max_steps", "1")
        holder.kill()
    assert (out / ".checkpoint_00000002.pth.abc").exists()
    assert not (out / "args.json").exists()
    pretrain(data, out, "--max_steps", "1")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(step="3"), "does not fit"),
        (lambda c: c.update(images=999), "does not fit"),
        (lambda c: c.update(rng=[{"python": 1}]), "does not fit"),
        (lambda c: c.update(optimizer=[]), "does not fit"),
        (lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)), "parameter 0"),
        (lambda c: c["optimizer"]["state"][0].update(step=None), "does not fit"),
        (lambda c: c["lr_scheduler"].update(step="x"), "learning rate"),
        (lambda c: c["lr_scheduler"].update(last_epoch="x"), "learning rate"),
        (lambda c: c.update(scaler={"scale": "x"}), "scale"),
        (lambda c: c.update(model=None), "its model"),
        (lambda c: c.update(model=[1]), "its model"),
        (lambda c: c.update(ema={"query_embed.weight": 1}), "its ema"),
        (lambda c: c.update(ema={name: value[:1] for name, value in c["model"].items() if value.ndim}), "its ema"),
        (lambda c: c.update(evaluations=[{"step": "1"}]), "its evaluations"),
        (lambda c: c["model"].update({"query_embed.weight": None}), "its model"),
        (lambda c: c["model"].update({"query_embed.weight": torch.zeros(10, 32, dtype=torch.int64)}), "int64"),
        (lambda c: c["model"].update({"query_embed.weight": torch.zeros(10, 32, dtype=torch.complex64)}), "complex64"),
        (lambda c: c.update(args=[]), "its args"),
        (lambda c: c["args"].update(enc_layers=10**8), "--enc_layers 100000000"),
        (lambda c: c["args"].update(nheads="4"), "nheads is '4'"),
        (lambda c: c["args"].update(scales=64), "scales is 64"),
        (lambda c: c["args"].update(lr="fast"), "lr is 'fast'"),
        (lambda c: c.update(categories=[{"id": 1}]), "categories"),
    ],
)
def test_a_checkpoint_that_somebody_changed_is_one_error(data, tmp_path_factory, tmp_path, change, told):
    source = tmp_path_factory.getbasetemp() / "changed.pth"
    if not source.exists():
        pretrain(data, tmp_path / "a", "--max_steps", "1")
        shutil.copy(tmp_path / "a" / "checkpoint.pth", source)
    content = load_file(source)
    change(content)
    save_file(content, tmp_path / "changed.pth")
    with pytest.raises(UserError, match=told):
        pretrain(data, tmp_path / "b", "--resume", str(tmp_path / "changed.pth"), "--max_steps", "2")
    assert not (tmp_path / "b" / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--warmup_steps 3",
        "--warmup_steps 3 --lr_schedule cosine --accum_steps 2",
        "--recipe fast --content_dropout 0.5",
        "--amp bf16_backbone --view_iou 0.3",
    ],
)
def test_whatever_the_recipe_a_pretraining_goes_on_bit_for_bit(sixteen, tmp_path, flags):
    argv = [*flags.split(), "--max_steps", "6", "--save_every_steps", "2", "--keep_checkpoints", "9"]
    whole = pretrain(sixteen, tmp_path / "whole", *argv)
    for step in (2, 4):  # within the warm-up and after it
        stopped = tmp_path / "whole" / f"checkpoint_0000000{step}.pth"
        rest = pretrain(sixteen, tmp_path / str(step), "--resume", str(stopped))
        assert_same_run(rest, whole)


@pytest.mark.parametrize(
    "flags",
    [
        "--warmup_steps 3 --dropout 0 --augment strong",
        "--warmup_steps 3 --ema 0.9 --lr_backbone 0",
        "--lr_schedule cosine",
    ],
)
def test_whatever_the_recipe_a_finetuning_goes_on_bit_for_bit(data, tmp_path, flags):
    argv = [*DETECTOR, *flags.split(), "--max_steps", "6", "--save_every_steps", "2", "--keep_checkpoints", "9"]
    whole = finetune(data, tmp_path / "whole", *argv, "--eval_every", "0")
    for step in (2, 4):
        stopped = tmp_path / "whole" / f"checkpoint_0000000{step}.pth"
        assert_same_run(finetune(data, tmp_path / str(step), "--resume", str(stopped)), whole)


def assert_same_run(rest: dict, whole: dict) -> None:
    """Everything but where they are."""
    for name in whole.keys() - {"args", "evaluations"}:
        assert_equal(rest[name], whole[name])


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_for_bit(data, tmp_path):
    """Dropout's random numbers and images of other sizes included."""
    torch._dynamo.reset()
    argv = ["--compile", "--max_steps", "4", "--save_every_steps", "2", "--keep_checkpoints", "9"]
    whole = pretrain(data, tmp_path / "whole", *argv)
    torch._dynamo.reset()
    rest = pretrain(data, tmp_path / "rest", "--resume", f"{tmp_path}/whole/checkpoint_00000002.pth")
    assert rest["args"]["compile"]
    assert_equal(rest["model"], whole["model"])
    assert_equal(rest["optimizer"], whole["optimizer"])
