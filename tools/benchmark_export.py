"""A detector in eager mode, in ONNX, as `.pt2` and compiled from it: `benchmark.py export`."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch._inductor
from torch import Tensor

import main_finetune
from models.postprocess import PostProcess
from models.predictor import Predictor
from tools.benchmark_detector import random_detector
from tools.clock import describe, in_turn
from tools.exporting.check import Run, difference, expected, open_file
from tools.exporting.form import ExportForm
from tools.exporting.write import program_of, quiet, write_onnx, write_pt2
from util.errors import one_line
from util.nested_tensor import NestedTensor

CPU = torch.device("cpu")
COMPILED = "AOTInductor"
"""The row of the ``.pt2`` file as machine code."""


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
        runs: dict[str, Run] = {"eager": lambda images: expected(predictor, images)}
        runs |= {suffix: open_file(path, takes_mask=False) for suffix, path in files.items()}
        package = Path(folder) / "compiled.pt2"
        reason = compile_ahead(files[".pt2"], package)
        if reason is None:
            files[COMPILED], runs[COMPILED] = package, open_compiled(package)
        sizes = {name: f"{path.stat().st_size / 2**20:.1f} MiB" for name, path in files.items()}
        print(f"{describe(CPU)}, {detr}, 1 x float32 {size[0]} x {size[1]}, medians of {rounds} rounds in turn")
        times = in_turn({name: partial(run, images) for name, run in runs.items()}, rounds, CPU)
        wanted = runs["eager"](images)
        differs = {name: difference(run(images), wanted) for name, run in runs.items()}
    for name, values in times.items():
        spread = f"({min(values):.1f} .. {max(values):.1f})"
        told = f"   differs from eager by {differs[name]:.1g}" if name in files else ""
        print(f"{name:<12}{sizes.get(name, ''):>12}{median(values):>10.1f} ms   {spread}{told}")
    if reason:
        print(f"{COMPILED:<12} does not compile: {reason}")


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


def compile_ahead(file: Path, package: Path) -> str | None:
    """Compile a ``.pt2`` file to machine code with fused operations; returns None, or why that does not work here."""
    program = torch.export.load(file)
    try:
        with quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs={"freezing": True}
            )
    except Exception as error:  # whatever the compilers beneath raise
        return one_line(error)
    return None


def open_compiled(package: Path) -> Run:
    """A function that runs what :func:`compile_ahead` wrote."""
    compiled = torch._inductor.aoti_load_package(str(package))
    return lambda images: tuple(value.numpy() for value in compiled(images.tensors))
