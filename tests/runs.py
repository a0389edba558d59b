"""Whole runs of the scripts on a tiny data set, and what they leave."""

import json
from pathlib import Path

import torch

import main_finetune
import main_pretrain
from tests.tiny import COMMON, DETECTOR, PRETRAIN
from util.checkpoint import load_file


def pretrain(data, out, *argv) -> dict:
    """Run main_pretrain.py; returns the last checkpoint."""
    main_pretrain.main(["--data_path", f"{data}/train", "--output_dir", str(out), *PRETRAIN, *DETECTOR, *argv])
    return load_file(Path(out) / "checkpoint.pth")


def finetune(data, out, *argv) -> dict:
    """Run main_finetune.py; returns the last checkpoint."""
    main_finetune.main(["--data_path", str(data), "--output_dir", str(out), *COMMON, *argv])
    return load_file(Path(out) / "checkpoint.pth")


def read_log(out, kind) -> list[dict]:
    lines = [json.loads(line) for line in (Path(out) / "log.txt").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def assert_equal(a, b, where="checkpoint"):
    """Nested containers are equal bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
