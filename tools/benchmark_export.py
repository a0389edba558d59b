"""A detector in eager mode, in ONNX and as `.pt2`: `benchmark.py export`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import main_finetune
from models.postprocess import PostProcess
from models.predictor import Predictor
from tools.benchmark_detector import random_detector
from tools.clock import describe, milliseconds
from tools.exporting.check import open_file
from tools.exporting.form import ExportForm
from tools.exporting.write import program_of, write_onnx, write_pt2
from util.nested_tensor import NestedTensor

CPU = torch.device("cpu")


def benchmark_export(detr: str, rounds: int, size: tuple[int, int]) -> None:
    """Print the size of each file and milliseconds for one image, in turn, with random weights on a CPU.

    Raises:
        UserError: a package is missing.
    """
    torch.manual_seed(0)
    predictor = random_predictor(detr)
    pixels = torch.randn(1, 3, *size)
    images = NestedTensor(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool))
    with tempfile.TemporaryDirectory() as folder:
        files = {suffix: write(predictor, Path(folder) / f"detector{suffix}", pixels) for suffix in (".onnx", ".pt2")}
        sizes = {suffix: f"{path.stat().st_size / 2**20:.1f} MiB" for suffix, path in files.items()}
        runs: dict[str, Callable[[], object]] = {"eager": lambda: predictor.detect(images, torch.ones(1, 2))}
        for suffix, path in files.items():
            opened = open_file(path, takes_mask=False)
            runs[suffix] = lambda opened=opened: opened(images)
        print(f"{describe(CPU)}, {detr}, 1 x float32 {size[0]} x {size[1]}, medians of {rounds} rounds in turn")
        times: dict[str, list[float]] = {name: [] for name in runs}
        for count in range(rounds + 1):  # the first round warms up
            for name, run in runs.items():
                began = milliseconds(CPU)
                run()
                if count:
                    times[name].append(milliseconds(CPU) - began)
    for name, values in times.items():
        print(
            f"{name:<8}{sizes.get(name, ''):>12}{median(values):>10.1f} ms   ({min(values):.1f} .. {max(values):.1f})"
        )


def random_predictor(detr: str) -> Predictor:
    """A ResNet-50 detector as the recipe builds it, with random weights."""
    args, _ = main_finetune.parse(["--recipe", "paper", "--detr", detr, "--dataset_file", "coco", "--data_path", "."])
    detector = random_detector(args, train_backbone=False).eval()
    postprocess = PostProcess(detector.classification)
    return Predictor(detector, postprocess, [], backbone=args.backbone, device=CPU, amp="none")


def write(predictor: Predictor, path: Path, pixels: Tensor) -> Path:
    """Export for images of one size; returns ``path``."""
    standard = path.suffix == ".onnx"
    form = ExportForm(predictor.detector, predictor.postprocess, standard_sampling=standard, half=False).eval()
    program = program_of(form, (pixels,), dynamic=False)
    if standard:
        write_onnx(program, (pixels,), path, {})
    else:
        write_pt2(program, path, {})
    return path
