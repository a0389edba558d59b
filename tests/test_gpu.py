"""The scripts on a GPU: the same numbers as on a CPU, and no needless waiting."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings

import pytest
import torch

import engine
import main_finetune
import main_pretrain
from tests.conftest import ROOT
from tests.devices import needs_gpu
from tests.runs import finetune, pretrain, read_log
from tests.tiny import COMMON, DETECTOR, PRETRAIN
from tools import benchmark
from util.checkpoint import load_file
from util.script import start

pytestmark = needs_gpu

DETECTORS = [
    ("--detr", "vanilla"),
    ("--detr", "conditional"),
    ("--detr", "dab"),
    ("--detr", "deformable", "--num_feature_levels", "1"),
    ("--detr", "deformable", "--with_box_refine"),
    ("--detr", "deformable", "--with_box_refine", "--two_stage"),
]
PRETRAINED = DETECTORS[:-1]  # two stages are not pretrained
METHODS = {"updetr": ["--num_regions", "5", "--patch_dropout", "0"], "detreg": ["--num_proposals", "4"]}
ON_GPU = ("--device", "cuda")


@pytest.fixture
def full_precision(monkeypatch):
    """Convolutions in float32, not in TF32 with its 11 bits, so that a GPU can be compared with a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def first_losses(out) -> dict[str, float]:
    return {name: value for name, value in read_log(out, "train")[0].items() if name.startswith("loss")}


def compare(run, data, tmp_path, *argv):
    """``run`` on both devices: the losses of the first step agree, the later ones stay finite."""
    for device in ("cpu", "cuda"):
        run(data, tmp_path / device, *argv, "--device", device, "--dropout", "0", "--max_steps", "3")
    expected, actual = (first_losses(tmp_path / device) for device in ("cpu", "cuda"))
    assert len(expected) > 2
    assert actual == pytest.approx(expected, rel=1e-3)
    assert all(math.isfinite(line["loss"]) for line in read_log(tmp_path / "cuda", "train"))


@pytest.mark.parametrize("detector", PRETRAINED, ids=" ".join)
def test_pretraining_starts_as_on_a_cpu(data, tmp_path, full_precision, detector):
    compare(pretrain, data, tmp_path, *detector)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_starts_as_on_a_cpu(data, tmp_path, full_precision, method):
    def run(data, out, *argv):
        main_pretrain.main(["--data_path", f"{data}/train", "--output_dir", str(out), *COMMON, *DETECTOR, *argv])

    compare(run, data, tmp_path, "--method", method, *METHODS[method])


@pytest.mark.parametrize("detector", DETECTORS, ids=" ".join)
def test_gradients_are_those_of_a_cpu(data, tmp_path, full_precision, detector):
    for device in ("cpu", "cuda"):
        argv = [*DETECTOR, *detector, "--device", device, "--dropout", "0", "--max_steps", "1", "--eval_every", "0"]
        finetune(data, tmp_path / device, *argv)
    cpu, gpu = (read_log(tmp_path / device, "train")[0]["grad_norm"] for device in ("cpu", "cuda"))
    assert gpu == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize("detector", DETECTORS, ids=" ".join)
def test_finetuning_starts_as_on_a_cpu(data, tmp_path, full_precision, detector):
    compare(finetune, data, tmp_path, *DETECTOR, *detector, "--eval_every", "0")


def test_views_changed_on_the_gpu_are_those_of_the_workers(data, tmp_path, full_precision):
    for where in ("cpu", "cuda"):
        pretrain(data, tmp_path / where, *ON_GPU, "--augment_device", where, "--dropout", "0", "--max_steps", "1")
    assert first_losses(tmp_path / "cuda") == pytest.approx(first_losses(tmp_path / "cpu"), rel=1e-2)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("detector", DETECTORS[1:4:2], ids=" ".join)
def test_mixed_precision(data, tmp_path, detector, amp):
    # without the global loss: its batch norm over four almost equal views turns rounding into per cents
    argv = [*ON_GPU, *detector, "--no_global_loss", "--dropout", "0", "--max_steps", "20"]
    for kind in ("none", amp):
        saved = pretrain(data, tmp_path / kind, *argv, "--amp", kind)
    losses = {kind: [line["loss"] for line in read_log(tmp_path / kind, "train")] for kind in ("none", amp)}
    assert losses[amp][0] == pytest.approx(losses["none"][0], rel=0.01)
    assert all(map(math.isfinite, losses[amp]))
    # zeros before training; fp16 skips the first steps until the scale of the loss fits
    last = [name for name in saved["model"] if name.startswith("bbox_embed") and name.endswith("layers.2.weight")]
    assert all(saved["model"][name].any() for name in last)


@pytest.mark.parametrize("detector", DETECTORS[1:4:2], ids=" ".join)
def test_compiled_steps_are_the_eager_ones(data, tmp_path, full_precision, detector):
    argv = [*ON_GPU, *detector, "--dropout", "0", "--max_steps", "3", "--pad_to", "64"]
    for kind in ([], ["--compile"]):
        pretrain(data, tmp_path / f"run{len(kind)}", *argv, *kind)
    eager, fused = (read_log(tmp_path / run, "train") for run in ("run0", "run1"))
    assert first_losses(tmp_path / "run1") == pytest.approx(first_losses(tmp_path / "run0"), rel=1e-3)
    assert [line["grad_norm"] for line in fused][:1] == pytest.approx([eager[0]["grad_norm"]], rel=1e-2)
    assert all(math.isfinite(line["loss"]) for line in fused)


@pytest.mark.parametrize("more", ["--accum_steps 2", "--content_dropout 0.5", "--detr deformable"])
def test_recorded_steps_are_the_compiled_ones(data, tmp_path, full_precision, more):
    """The third step is the first that replays what the second has recorded."""
    argv = [*ON_GPU, *more.split(), "--dropout", "0", "--max_steps", "6", "--pad_to", "128", "--compile"]
    compiled = pretrain(data, tmp_path / "compiled", *argv)
    recorded = pretrain(data, tmp_path / "recorded", *argv, "--cuda_graphs")
    losses = [[line["loss"] for line in read_log(tmp_path / run, "train")] for run in ("compiled", "recorded")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for name, value in recorded["model"].items():
        torch.testing.assert_close(value, compiled["model"][name], rtol=1e-2, atol=1e-4, msg=name)


def test_a_recorded_finetuning_is_evaluated_between_its_steps(data, tmp_path, full_precision):
    argv = [*DETECTOR, *ON_GPU, "--dropout", "0", "--epochs", "2", "--eval_every", "1", "--pad_to", "128", "--compile"]
    for run, more in (("compiled", []), ("recorded", ["--cuda_graphs"])):
        finetune(data, tmp_path / run, *argv, *more)
    compiled, recorded = (read_log(tmp_path / run, "eval") for run in ("compiled", "recorded"))
    assert [line["loss_val"] for line in recorded] == pytest.approx([line["loss_val"] for line in compiled], rel=1e-2)


def test_compiled_steps_in_bf16(data, tmp_path):
    argv = [*ON_GPU, "--amp", "bf16", "--compile", "--no_global_loss", "--dropout", "0", "--max_steps", "3"]
    pretrain(data, tmp_path / "eager", *[flag for flag in argv if flag != "--compile"])
    pretrain(data, tmp_path / "fused", *argv)
    eager, fused = (read_log(tmp_path / run, "train")[0]["loss"] for run in ("eager", "fused"))
    assert fused == pytest.approx(eager, rel=0.02)


def test_compiled_steps_launch_fewer_kernels(capsys):
    argv = "gpu pretrain --detectors vanilla --precisions bf16 --batch_sizes 2 --size 64 96 --steps 2".split()
    benchmark.main([*argv, *DETECTOR, "--num_regions", "5", "--crop_size", "32"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("vanilla")]
    launches = {row[2]: int(row[8]) for row in rows}
    assert 0 < launches["graphs"] < launches["compiled"] < launches["eager"]


@pytest.mark.parametrize("detector", DETECTORS[:2], ids=" ".join)
def test_a_checkpoint_moves_to_a_cpu(data, tmp_path, full_precision, detector):
    """It scores the same on the other device, and its training continues there and then here again."""
    finetune(data, tmp_path / "run", *DETECTOR, *detector, "--lr", "1e-3", "--max_steps", "30", *ON_GPU)
    for device in ("cpu", "cuda"):
        argv = ["--resume", f"{tmp_path}/run/checkpoint.pth", "--eval", "--data_path", str(data), "--num_workers", "0"]
        main_finetune.main([*argv, "--output_dir", str(tmp_path / device), "--device", device])
    cpu, gpu = (json.loads((tmp_path / device / "eval.json").read_text()) for device in ("cpu", "cuda"))
    assert cpu["AR100"] > 0, "a detector that finds nothing proves nothing"
    assert gpu["AP50"] == pytest.approx(cpu["AP50"], abs=0.01)
    for step, device in (("31", "cpu"), ("32", "cuda")):
        argv = ["--resume", "auto", "--max_steps", step, "--eval_every", "0", "--device", device]
        assert finetune(data, tmp_path / "run", *argv)["step"] == int(step)


def test_resumed_pretraining_draws_as_the_whole_one(data, tmp_path):
    """Dropout's generator lives on the GPU."""
    argv = [*ON_GPU, "--detr", "vanilla", "--dropout", "0.5", "--max_steps", "4", "--save_every_steps", "2"]
    pretrain(data, tmp_path / "whole", *argv, "--keep_checkpoints", "9")
    pretrain(data, tmp_path / "rest", *argv, "--resume", f"{tmp_path}/whole/checkpoint_00000002.pth")
    whole, rest = (read_log(tmp_path / run, "train")[-1]["loss"] for run in ("whole", "rest"))
    assert rest == pytest.approx(whole, rel=1e-4)


def test_a_process_of_its_own_group(data, tmp_path):
    """As torch.distributed.run starts it, NCCL and DistributedDataParallel included."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "main_pretrain.py"]
    command += ["--data_path", f"{data}/train", "--output_dir", str(tmp_path), *PRETRAIN, *DETECTOR, *ON_GPU]
    done = subprocess.run(
        [*command, "--max_steps", "2"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_file(tmp_path / "checkpoint.pth")["step"] == 2


def waits_of_a_step(module, argv) -> list[str]:
    """The calls that made the host wait for the GPU in the third training step of a script."""
    args, origin = module.parse(argv)
    device = start(args)
    training, loader, *_ = module.build(args, origin, device)
    training.method.train()
    batches = iter(loader)
    for _ in range(2):
        engine.train_step(training.method, training, batches, args, device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.train_step(training.method, training, batches, args, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


@pytest.mark.parametrize("detector", PRETRAINED, ids=" ".join)
def test_a_pretraining_step_waits_for_its_matching_alone(data, tmp_path, detector):
    argv = ["--data_path", f"{data}/train", *PRETRAIN, *DETECTOR, *detector, *ON_GPU]
    waits = waits_of_a_step(main_pretrain, [*argv, "--output_dir", str(tmp_path), "--max_steps", "4"])
    assert len(waits) == 1, waits


def test_untold_queries_make_a_step_wait_no_more(data, tmp_path):
    argv = ["--data_path", f"{data}/train", *PRETRAIN, *DETECTOR, *ON_GPU, "--matching", "own"]
    argv += ["--content_dropout", "0.5", "--output_dir", str(tmp_path), "--max_steps", "4"]
    waits = waits_of_a_step(main_pretrain, argv)
    assert len(waits) <= 1, waits  # none where all are told


@pytest.mark.parametrize("detector", DETECTORS, ids=" ".join)
def test_a_finetuning_step_waits_for_its_matchings_alone(data, tmp_path, detector):
    argv = ["--data_path", str(data), *COMMON, *DETECTOR, *detector, *ON_GPU]
    waits = waits_of_a_step(main_finetune, [*argv, "--output_dir", str(tmp_path), "--max_steps", "4"])
    assert len(waits) == (2 if "--two_stage" in detector else 1), waits
