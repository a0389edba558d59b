"""README and docs: links lead somewhere, flags exist, and (slow) each command runs as it is written."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.coco import COCO_CATEGORIES
from tests.conftest import ROOT
from tests.models.public_layouts import DETR_R50, PRETRAINING_LAYOUTS, PUBLIC_LAYOUTS, SWAV_LAYOUT
from tests.pages import COMMANDS, PAGES
from tests.tiny import BOTH, DETECTOR, write_data_set, write_voc
from tools import convert_checkpoint

SCRIPTS = sorted({command.script for command in COMMANDS if command.script} - {"tools/run_onnx.py"})  # it has no flags
WITH_COMMANDS = ("tools/visualize.py", "tools/benchmark.py")
OF_OTHERS = {"pip", "make", "bash", "tensorboard", "torchrun", ".venv/bin/python", ".venv/bin/ruff"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    links = re.findall(r"(?:\]\(|src=\")([^)\s\"]+)", text)
    broken = [link for link in links if not link.startswith(("http", "#")) and not (page.parent / link).exists()]
    assert not broken
    titles = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)", text, re.M)}
    assert {link[1:] for link in links if link.startswith("#")} <= titles


def test_every_command_is_of_the_project_or_known():
    assert [str(command) for command in COMMANDS if not command.script and command.words[0] not in OF_OTHERS] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_exist(script, monkeypatch, capsys):
    commands = [command for command in COMMANDS if command.script == script]
    asked = {(script, "")}
    if script in WITH_COMMANDS:
        asked = {(script, command.words[2]) for command in commands} - {(script, "--help")}
        asked |= {("main_pretrain.py", ""), ("main_finetune.py", "")}  # where the other flags go
    known = "".join(help_of(name, sub, monkeypatch, capsys) for name, sub in asked)
    for command in commands:
        flags = {word for word in command.words if word.startswith("--") and not word.startswith("--nproc")}
        assert flags <= set(re.findall(r"--\w+", known)), str(command)


def help_of(script: str, sub: str, monkeypatch, capsys) -> str:
    """What ``--help`` of a script, or of one of its commands, prints."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    monkeypatch.setattr(sys, "argv", [script, *([sub] if sub else []), "--help"])
    with pytest.raises(SystemExit):
        module.main()
    return capsys.readouterr().out


EVALUATION = "--eval_size 80 --eval_max_size 110".split()
SIZES = {  # what makes the commands of a script small
    "main_pretrain.py": [*BOTH, "--crop_size", "32", "--max_steps", "1"],
    "main_finetune.py": [*BOTH, *EVALUATION, "--max_steps", "1"],
    "main_predict.py": [*EVALUATION, "--device", "cpu", "--num_workers", "0"],
}
NOT_RUN = {  # words of a command -> where it is run instead
    "tools/compare.py": "tests/tools/test_compare.py, with a specification of its own",
    "tools/benchmark.py": "tests/tools/test_benchmark.py",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with everything that the commands read; what they write is read by those after them."""
    place = tmp_path_factory.mktemp("user")
    for name in ("coco", "mine"):
        write_data_set(place / "data" / name, num_images=20)
    categories = [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()]
    for path in (place / "data" / "coco" / "annotations").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"categories": categories}))
    write_voc(place / "data" / "VOCdevkit" / "VOC2007", place / "data" / "mine")
    for name, split in (("a", "train"), ("b", "val")):
        shutil.copy(place / "data" / "mine" / "annotations" / f"instances_{split}.json", place / f"{name}.json")
        shutil.copytree(place / "data" / "mine" / split, place / "images" / name)
    without_val = shutil.ignore_patterns("val", "instances_val.json")
    shutil.copytree(place / "data" / "mine", place / "data" / "unsplit", ignore=without_val)
    photos = place / "data" / "coco" / "train"
    for name in ("data/imagenet/train/n01", "data/photos", "data/new", "photos", "more/deep"):
        shutil.copytree(photos, place / name)
    picture = np.random.default_rng(0).integers(0, 255, (240, 240, 3), dtype=np.uint8)
    for name in ("street.jpg", "toy.jpg", "more/deep/street.jpg"):
        Image.fromarray(picture).save(place / name)
    (place / "list.txt").write_text("street.jpg\n")
    write_weights(place)
    return place


def write_weights(place: Path) -> None:
    """Random weights (positive, as variances are) under the names of the public files."""
    files = {
        "detr-r50-e632da11.pth": ("model", DETR_R50),
        "up-detr-pre-training-60ep.pth": ("model", PRETRAINING_LAYOUTS["up-detr-r50-pretrain"]),
        "deformable.pth": ("model", PUBLIC_LAYOUTS["deformable-detr-r50"]),
        "swav_800ep_pretrain.pth.tar": (None, SWAV_LAYOUT),
    }
    for name, (key, layout) in files.items():
        weights = {parameter: torch.rand(shape) * 0.02 for parameter, shape in layout.items()}
        torch.save({key: weights} if key else weights, place / name)
    convert_checkpoint.main([str(place / "deformable.pth"), str(place / "deformable-detr"), "--to", "hf"])


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.script], ids=str)
def test_command_runs(command, place):
    if command.script in NOT_RUN:
        pytest.skip(NOT_RUN[command.script])
    words = [sys.executable, *(made_small(word, place) for word in command.words[1:]), *SIZES.get(command.script, [])]
    if "--epochs" in words:
        words = words[: words.index("--max_steps")]
    if command.script == "main_pretrain.py" and "--resume" not in words:
        words += [*DETECTOR, "--backbone_weights", "swav_800ep_pretrain.pth.tar", "--backbone", "resnet50"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    shutil.rmtree(place / "outputs", ignore_errors=True)  # where runs write whose command ends in "..."
    run = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"


def made_small(word: str, place: Path) -> str:
    """The same word for this place: paths, processes and schedules."""
    if (ROOT / word).is_file() and word.endswith(".py"):
        return str(ROOT / word)
    if word.startswith("/data"):
        return str(place / word.lstrip("/"))
    smaller = {"--nproc_per_node=8": "--nproc_per_node=2", "80": "2", "DIR": str(place / "data" / "photos")}
    return smaller.get(word, word)
