"""Comparisons: the runs of a specification, a whole tiny comparison, continuing, failing."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import main_finetune
import main_pretrain
from tests.processes import session, wait_until
from tests.tiny import BOTH, DETECTOR, write_data_set
from tools import compare
from tools.comparison.report import as_markdown, mean_and_spread
from tools.comparison.specification import make_runs, read_specification
from util.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("data"), num_images=4)


def specification(root: Path, weights: str = "weights.pth", **changes) -> dict:
    shared = " ".join(flag for flag in BOTH if flag not in ("--seed", "3"))
    return {
        "seeds": [1, 2],
        "methods": {"scratch": "", "updetr": "--num_regions 5", "detreg": {"all": "--num_proposals 3"}},
        "detectors": {"conditional": " ".join(["--detr conditional", *DETECTOR])},
        "backbone_weights": weights,
        "pretrain": {"noise": f"--data_path {root}/train --crop_size 32 --max_steps 2"},
        "finetune": {"shapes": {"all": f"--data_path {root} --max_steps 1", "conditional": "--lr 2e-4"}},
        "data": [["noise", "shapes"]],
        "common": shared,
        **changes,
    }


def write(folder: Path, content: dict) -> str:
    path = folder / "specification.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_pretrainings_are_shared_and_budgets_equal(tmp_path):
    sets = {"a": "--train_ann a", "b": "--train_ann b"}
    content = specification(tmp_path, finetune=sets, data=[["noise", "a"], ["noise", "b"]])
    runs = {run.name: run for run in make_runs(read_specification(write(tmp_path, content)))}
    pretrainings = [run for run in runs.values() if run.script == "main_pretrain.py"]
    assert len(pretrainings) == 2 * 2  # methods without scratch, seeds
    assert len(runs) == 4 + 2 * 3 * 2  # plus data sets, methods, seeds
    finetuning = runs["finetune/b/conditional/detreg_noise/seed2"]
    assert finetuning.needs == "pretrain/noise/conditional/detreg/seed2"
    assert "--backbone_weights" not in finetuning.flags
    scratch = runs["finetune/b/conditional/scratch/seed2"]
    assert scratch.needs is None
    assert [flag for flag in scratch.flags if flag not in ("--backbone_weights", "weights.pth")] == list(
        finetuning.flags
    )
    up_detr, detreg = (runs[f"pretrain/noise/conditional/{name}/seed1"].flags for name in ("updetr", "detreg"))
    assert set(up_detr) ^ set(detreg) == {"updetr", "detreg", "--num_regions", "5", "--num_proposals", "3"}


def test_a_hyphen_makes_a_variant_and_seeds_are_finished_one_by_one(tmp_path):
    content = specification(tmp_path, methods={"scratch": "", "siamese": "", "siamese-fast": "--recipe fast"})
    runs = make_runs(read_specification(write(tmp_path, content)))
    assert [run.labels["seed"] for run in runs] == [1] * 5 + [2] * 5
    plain, fast = (run for run in runs[:5] if run.script == "main_pretrain.py")
    assert plain.flags[:2] == fast.flags[:2] == ("--method", "siamese")
    assert [flag for flag in fast.flags if flag not in plain.flags] == ["--recipe", "fast"]
    assert "finetune/shapes/conditional/siamese-fast_noise/seed1" in {run.name for run in runs}


def test_one_pretraining_may_serve_all_seeds_of_finetuning(tmp_path):
    runs = make_runs(read_specification(write(tmp_path, specification(tmp_path, seeds=[5, 6], pretrain_seed=1))))
    assert [run.labels["seed"] for run in runs if run.script == "main_pretrain.py"] == [1, 1]
    needed = {(run.labels["seed"], run.needs) for run in runs if run.needs}
    assert needed == {
        (seed, f"pretrain/noise/conditional/{name}/seed1") for seed in (5, 6) for name in ("updetr", "detreg")
    }
    assert len(runs) == 2 + 2 * 3
    names = [run.name for run in runs]
    assert all(names.index(run.needs) < names.index(run.name) for run in runs if run.needs)


def test_flags_go_with_names_and_variables_are_put_in(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    flags = {"all": "--data_path $SOMEWHERE/x", "conditional": "--lr 1", "vanilla": "--lr 2"}
    detectors = {name: f"--detr {name}" for name in ("conditional", "vanilla")}
    finetune = {"shapes": {"all": "--data_path x", "updetr": "--new_parts bbox_embed"}}
    content = specification(tmp_path, pretrain={"noise": flags}, detectors=detectors, finetune=finetune)
    runs = make_runs(read_specification(write(tmp_path, content)))
    first = next(run for run in runs if run.script == "main_pretrain.py").flags
    assert "/data/x" in first
    assert first[first.index("--lr") + 1] == "1"
    with_new_parts = {run.labels["method"] for run in runs if "--new_parts" in run.flags}
    assert with_new_parts == {"updetr"}
    monkeypatch.delenv("SOMEWHERE")
    with pytest.raises(UserError, match="SOMEWHERE"):
        read_specification(write(tmp_path, content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [["noise", "nothing"]]}, 'nothing, which is not in "finetune"'),
        ({"data": ["noise"]}, "pairs"),
        ({"budget": 1}, '"budget" is not a key'),
        ({"methods": {"updetr": {"noise": "--max_steps=9"}}}, "--max_steps=9 of method updetr"),
        ({"pretrain": {"noise": {"all": "", "updetr": "--max_steps 9"}}}, "--max_steps of method updetr"),
        ({"finetune": {"shapes": {"all": "", "updetr": "--epochs 9"}}}, "--epochs of method updetr"),
        ({"methods": {"updtr": ""}}, '"methods: updtr" is not one of scratch, siamese, updetr, detreg'),
        ({"methods": {"scratch": "--lr 1"}}, '"methods: scratch" means no pretraining'),
        ({"methods": {"updetr": {"shapes": "--lr 1"}}}, '"methods: updetr: shapes" is never used'),
        ({"pretrain": {"noise": {"vanilla": "--lr 1"}}}, '"pretrain: noise: vanilla" is never used'),
        ({"common": {"nois": "--lr 1"}}, '"common: nois" is never used; use all, conditional, detreg'),
        ({"methods": ["scratch"]}, '"methods" must be an object'),
        ({"seeds": "12"}, '"seeds" must be a list'),
        ({"seeds": []}, '"seeds" must be a list, and not empty'),
        ({"seeds": [1.5]}, '"seeds" must be whole numbers'),
        ({"pretrain_seed": "1"}, '"pretrain_seed" must be a whole number'),
        ({"common": 3}, '"common" must be flags'),
        ({"methods": {"scratch": None}}, '"methods: scratch" must be flags'),
        ({"finetune": {"shapes": "--lr '1"}}, '"finetune: shapes" must be flags'),
        ({"backbone_weights": None}, '"backbone_weights" must be a file name'),
        ({"data": [[["noise"], "shapes"]]}, "pairs"),
    ],
)
def test_a_wrong_specification_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_specification(write(tmp_path, specification(tmp_path, **changes)))
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_specification(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("file", "num_runs"),
    [
        ("comparison.json", 3 * 2 * 2 + 4 * 2 * 2 * 2),
        ("comparison_own_images.json", 3 * 2 * 2 * 2 + 4 * 2 * 2 * 2),
        ("comparison_small.json", 2 * 4 + 3 * 2 * 2 * 5),
    ],
)
def test_the_examples_are_made_of_flags_that_go_together(monkeypatch, file, num_runs):
    names = "BACKBONE PHOTOS RACCOON BCCD PHOTO_PROPOSALS RACCOON_PROPOSALS BCCD_PROPOSALS"
    for name in names.split():
        monkeypatch.setenv(name, f"/somewhere/{name}")
    runs = make_runs(read_specification(Path(compare.__file__).parent.parent / "configs" / file))
    assert len(runs) == num_runs
    for run in runs:
        if run.needs is None:  # the others take the architecture from a checkpoint
            script = {"main_pretrain.py": main_pretrain, "main_finetune.py": main_finetune}[run.script]
            args, _ = script.parse(["paper" if flag == "small" else flag for flag in run.flags])  # small reads the data
            assert args.seed == run.labels["seed"]
            assert args.detr == run.labels["detector"]
    budgets = {
        (args.max_steps, args.batch_size, args.lr, tuple(args.scales))
        for args, _ in (main_pretrain.parse(run.flags) for run in runs if run.script == "main_pretrain.py")
    }
    assert len(budgets) == 1


def test_means_and_spreads_by_hand():
    assert mean_and_spread([0.1, 0.3]) == f"20.0 ± {10 * math.sqrt(2):.1f}"
    assert mean_and_spread([0.25]) == "25.0"
    row = {
        "finetune": "s",
        "detector": "d",
        "method": "scratch",
        "pretrain": None,
        "seeds": [1],
        "AP": [0.5],
        "AP50": [1],
        "over_steps": [{"AP": [[10, 20], [0.2, 0.5]], "AP50": [[10, 20], [0.4, 1]]}],
    }
    two = {"seeds": [1, 2], "AP": [0.6, 0.8], "AP50": [1, 1], "over_steps": [curve_of(0.6, 0.6), curve_of(0.4, 0.8)]}
    ours = {**row, "method": "siamese", "pretrain": "p", **two}
    lines = as_markdown([row, ours]).splitlines()
    assert lines[2] == "| s | d | scratch | - | 1 | 50.0 | 100.0 | 20 |"
    assert lines[3] == f"| s | d | siamese | p | 2 | 70.0 ± {10 * math.sqrt(2):.1f} | 100.0 ± 0.0 | 10 |"
    slow = {**ours, "over_steps": [curve_of(0.1, 0.4), curve_of(0.1, 0.4)]}
    assert as_markdown([row, slow]).splitlines()[3].endswith("| - |")
    assert as_markdown([ours]).splitlines()[2].endswith("| - |")  # nothing to compare with


def curve_of(first: float, last: float) -> dict:
    return {"AP": [[10, 20], [first, last]], "AP50": [[10, 20], [first, last]]}


def test_a_whole_comparison_fails_is_mended_and_goes_on(data, tmp_path, capsys):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    content = specification(data, str(tmp_path / "weights.pth"), seeds=[1], methods={"detreg": "", "scratch": ""})
    broken = {"shapes": f"--data_path {tmp_path}/nowhere --max_steps 1"}
    broken = {**content, "finetune": broken, "methods": {"scratch": ""}}
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"shapes/conditional/scratch/seed1 failed \(exit status 1\): error: .*nowhere"):
        compare.main([write(tmp_path, broken), "--output_dir", str(out)])

    argv = [write(tmp_path, content), "--output_dir", str(out), "--jobs", "2"]
    compare.main(argv)
    rows = json.loads((out / "table.json").read_text())
    assert {row["method"] for row in rows} == {"scratch", "detreg"}
    for row in rows:
        start = "scratch" if row["pretrain"] is None else "detreg_noise"
        scores = json.loads((out / "finetune/shapes/conditional" / start / "seed1/eval.json").read_text())
        assert (row["AP"], row["AP50"]) == ([scores["AP"]], [scores["AP50"]])
    assert as_markdown(rows) in capsys.readouterr().out
    for picture in ("plot.png", "curves.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert len((out / "commands.sh").read_text().splitlines()) == 3

    # an interrupted run continues; finished ones are not touched
    cut = out / "finetune/shapes/conditional/scratch/seed1"
    record = json.loads((cut / "compare.json").read_text())
    (cut / "compare.json").write_text(json.dumps({**record, "finished": False}))
    compare.main(argv)
    assert "2 of 3 runs are finished already" in capsys.readouterr().out
    assert "resumed from" in (cut / "output.txt").read_text()
    assert json.loads((out / "table.json").read_text()) == rows

    commands = (out / "commands.sh").read_text()
    other = {**content, "common": content["common"] + " --weight_decay 0.1"}
    with pytest.raises(UserError, match="other flags"):
        compare.main([write(tmp_path, other), "--output_dir", str(out)])
    shutil.rmtree(
        out / "pretrain"
    )  # a finetuning run belongs to its pretraining run, even if its own flags are the same
    other = {**content, "pretrain": {"noise": content["pretrain"]["noise"] + " --lr 1e-5"}}
    with pytest.raises(UserError, match="detreg_noise/seed1: was run with other flags"):
        compare.main([write(tmp_path, other), "--output_dir", str(out)])
    assert (out / "commands.sh").read_text() == commands


def test_sigterm_ends_the_runs_too(data, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    endless = {"shapes": f"--data_path {data} --max_steps 1000000 --save_every_epochs 0"}
    content = specification(data, str(tmp_path / "weights.pth"), seeds=[1], methods={"scratch": ""}, finetune=endless)
    command = [sys.executable, compare.__file__, write(tmp_path, content), "--output_dir", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: (tmp_path / "out/finetune/shapes/conditional/scratch/seed1/log.txt").is_file())
    assert len(session(process.pid)) == 2
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (143, "interrupted; the same command continues from here\n")
    assert not session(process.pid)
